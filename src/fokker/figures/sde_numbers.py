r"""The numbers of the figures of score SDEs (book Ch. 4), on mixtures whose p_t, score and flow are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from .. import noise
from ..exact import GaussianMixture
from ..forward import diffuse
from ..process import EDM, VE, VP, Process, SubVP
from ..sampling import trajectory
from ..solvers import RK4, EulerMaruyama
from .score_numbers import F64, LINE

__all__ = ["PAIR", "SIGNS", "SPREAD", "clock_moments", "kernels"]

PAIR = GaussianMixture([0.5, 0.5], [[-1.5, -1.0], [1.5, 1.0]], [0.12, 0.12])  # type: ignore[arg-type]
SPREAD = 1.6
"""T of Figs. 4.4 and 4.5, where g = sqrt(2 t)."""


class OneStep(NamedTuple):
    """Fig. 4.1: (mean, std) of x_{t + dt} given x_t = x, by f and g at t (Euler-Maruyama) and exactly."""

    euler: tuple[float, float]
    exact: tuple[float, float]


def one_step(process: Process, x: float, t: float, dt: float) -> OneStep:
    """One noising step of the forward SDE, dx = f x dt + g dw."""
    scale, std = process.transition(t, t + dt)
    g = math.sqrt(float(process.g2(t)) * dt)
    return OneStep((x + float(process.f(t)) * x * dt, g), (float(scale) * x, float(std)))


class Heat(NamedTuple):
    """Figs. 4.2 and 4.3: p_t(x) (X, T) over x and time; paths (T, n) at `times` of the SDE and, forwards, the flow."""

    x: Tensor
    times: Tensor
    density: Tensor
    sde: Tensor
    ode: Tensor | None


def density_over_time(times: Tensor, x: Tensor) -> Tensor:
    """p_t(x) of LINE on VP, (X, T)."""
    columns = [LINE.at(VP(), t).log_prob(x[:, None]).exp() for t in times.tolist()]
    return torch.stack(columns, dim=1)


def forward_paths(n: int = 5, points: int = 101, cells: int = 200) -> Heat:
    """Data to noise: the forward SDE from its exact kernels, and the flow from the same starts, exactly."""
    times = torch.linspace(0.0, 1.0, points, dtype=F64)
    x0 = torch.linspace(-2.0, 1.9, n, dtype=F64)[:, None]
    sde = diffuse(VP(), x0, times, seed=4)[..., 0]
    ode = torch.stack([LINE.flow_map(VP(), x0, 0.0, t)[:, 0] for t in times.tolist()])
    x = torch.linspace(-3.7, 3.7, cells, dtype=F64)
    return Heat(x, times, density_over_time(times, x), sde, ode)


def reverse_paths(n: int = 6, points: int = 401, cells: int = 200) -> Heat:
    """Noise to data: the reverse SDE by Euler-Maruyama, exact score."""
    times = torch.linspace(1.0, VP().t_min, points, dtype=F64)
    start = torch.linspace(-1.7, 1.7, n, dtype=F64)[:, None]
    denoiser = LINE.denoiser(VP())
    sde = trajectory(denoiser, x=start, solver=EulerMaruyama(), grid=times, seed=3, dtype=F64)[1][..., 0]
    x = torch.linspace(-3.7, 3.7, cells, dtype=F64)
    shown = torch.linspace(VP().t_min, 1.0, 151, dtype=F64)
    return Heat(x, times, density_over_time(shown, x), sde, None)


class Ways(NamedTuple):
    """Fig. 4.5: times (N+1,), many reverse-SDE paths from one x_T, (N+1, n, 2), and the flow's, (N+1, 2)."""

    times: Tensor
    sde: Tensor
    ode: Tensor


def ways_from_one_start(n: int = 40, steps: int = 300) -> Ways:
    """From x_T = (-0.6, 2.2), on a geometric grid down to t = .01."""
    times = torch.logspace(math.log10(SPREAD), -2.0, steps + 1, dtype=F64)
    denoiser, start = PAIR.denoiser(EDM()), torch.tensor([[-0.6, 2.2]], dtype=F64)
    sde = trajectory(denoiser, x=start.repeat(n, 1), solver=EulerMaruyama(), grid=times, seed=3, dtype=F64)[1]
    ode = trajectory(denoiser, x=start, solver=RK4(), grid=times, dtype=F64)[1]
    return Ways(times, sde, ode[:, 0])


class Perturbed(NamedTuple):
    """Fig. 4.6: samples of x_t drawn through `steps` transitions (n,), at once (n,), and the density over x."""

    stepwise: Tensor
    direct: Tensor
    x: Tensor
    density: Tensor


def perturbed(t: float = 0.35, steps: int = 20, n: int = 10_000) -> Perturbed:
    """LINE on VP, two ways to one law."""
    process, x0 = VP(), LINE.sample(n, dtype=F64)
    stepwise = diffuse(process, x0, torch.linspace(0.0, t, steps + 1, dtype=F64), seed=1)[-1]
    direct = process.perturb(x0, t, noise.normal(2, torch.arange(n), (1,), domain="training", dtype=F64))
    x = torch.linspace(-3.5, 3.5, 281, dtype=F64)
    return Perturbed(stepwise[:, 0], direct[:, 0], x, LINE.at(process, t).log_prob(x[:, None]).exp())


class Kernel(NamedTuple):
    """Table 4.1 at one time: x_t given x_0 is N(scale x_0, var), stepped from f and g^2, and in closed form."""

    scale: float
    var: float
    closed_scale: float
    closed_var: float


def kernels(times: Sequence[float]) -> list[list[Kernel]]:
    """VE, VP and sub-VP at increasing times: RK4 on a' = f a, v' = 2 f v + g^2, beside alpha and sigma^2."""
    found = []
    for process in (VE(), VP(), SubVP()):

        def rates(t: float, y: Tensor, process: Process = process) -> Tensor:
            f = float(process.f(t))
            return torch.stack([f * y[0], 2.0 * f * y[1] + process.g2(t)])

        row, y, last = [], torch.tensor([1.0, 0.0], dtype=F64), 0.0
        for t in times:
            h = (t - last) / 400
            for k in range(400):
                s = last + k * h
                k1 = rates(s, y)
                k2 = rates(s + 0.5 * h, y + 0.5 * h * k1)
                k3 = rates(s + 0.5 * h, y + 0.5 * h * k2)
                y = y + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + rates(s + h, y + h * k3))
            row.append(Kernel(float(y[0]), float(y[1]), float(process.alpha(t)), float(process.sigma(t)) ** 2))
            last = t
        found.append(row)
    return found


class Clocks(NamedTuple):
    """Mean and variance along u = T - t by what each reverse SDE says, (points,) each, and the law's own."""

    u: Tensor
    mean: dict[str, Tensor]
    var: dict[str, Tensor]
    law_mean: Tensor
    law_var: Tensor


SIGNS = ("right", "unflipped", "printed")
"""dy = [-f + g^2 s(T - u)] du; [f - g^2 s(T - u)] du; and Thm 4.1.1(ii) as printed, [f - g^2 s(u)] du; all + g dw."""


def clock_moments(
    mean: float = 2.0, var: float = 0.25, horizon: float = 3.0, beta: float = 1.0, points: int = 121
) -> Clocks:
    """dx = -beta x / 2 dt + sqrt(beta) dw from N(mean, var), and back from the exact law at T by three drifts.

    Every drift is affine, a(u) y + b(u), so that m' = a m + b and v' = 2 a v + beta give the moments without sampling.
    """

    def law(t: float) -> tuple[float, float]:
        shrink = math.exp(-beta * t)
        return mean * math.sqrt(shrink), var * shrink + 1.0 - shrink

    def slopes(kind: str, u: float) -> tuple[float, float]:
        m, v = law(u if kind == "printed" else horizon - u)
        sign = 1.0 if kind == "right" else -1.0  # the score at m, v is -(y - m) / v
        return sign * (0.5 * beta - beta / v), sign * beta * m / v

    u = torch.linspace(0.0, horizon, points, dtype=F64)
    means, variances = {}, {}
    for kind in SIGNS:

        def rates(at: float, y: list[float], kind: str = kind) -> list[float]:
            a, b = slopes(kind, at)
            return [a * y[0] + b, 2.0 * a * y[1] + beta]

        found = solve_ivp(rates, (0.0, horizon), law(horizon), t_eval=u.numpy(), rtol=1e-10, atol=1e-12).y
        means[kind], variances[kind] = torch.from_numpy(found[0]), torch.from_numpy(found[1])
    own = torch.tensor([law(horizon - at) for at in u.tolist()], dtype=F64)
    return Clocks(u, means, variances, own[:, 0], own[:, 1])
