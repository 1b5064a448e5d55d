r"""The numbers of the orders of convergence: solvers of a stiff equation, Euler-Maruyama on a reverse SDE."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from ..solvers.semilinear import integrate
from .score_numbers import F64

__all__ = ["reverse_errors", "stiff_errors"]

Rate = Callable[[Tensor, Tensor], Tensor]


def _source(x: Tensor, t: Tensor) -> Tensor:
    return x.sin() + (3.0 * t).cos()


def _runge_kutta(v: Rate, x: Tensor, times: Tensor, order: int) -> Tensor:
    """Euler, Heun or the classical method: x at the last time."""
    for s, t in pairwise(times):
        h, k1 = t - s, v(x, s)
        if order == 1:
            x = x + h * k1
        elif order == 2:
            x = x + 0.5 * h * (k1 + v(x + h * k1, t))
        else:
            k2 = v(x + 0.5 * h * k1, s + 0.5 * h)
            k3 = v(x + 0.5 * h * k2, s + 0.5 * h)
            x = x + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + v(x + h * k3, t))
    return x


def stiff_errors(steps: Sequence[int], rate: float = -20.0, end: float = 2.0) -> dict[str, list[float]]:
    """|x - exact| at `end` of x' = rate x + sin x + cos 3t, x(0) = 1, by five solvers at each number of steps."""
    reference = solve_ivp(
        lambda t, x: rate * x + _source(torch.from_numpy(x), torch.tensor(t)).numpy(),
        (0.0, end), [1.0], method="DOP853", rtol=1e-13, atol=1e-14,
    )  # fmt: skip
    exact, x = float(reference.y[0, -1]), torch.ones(1, dtype=F64)

    def v(x: Tensor, t: Tensor) -> Tensor:
        return rate * x + _source(x, t)

    found: dict[str, list[float]] = {}
    for name, order in (("Euler", 1), ("Heun", 2), ("RK4", 4)):
        runs = [_runge_kutta(v, x, torch.linspace(0.0, end, n + 1, dtype=F64), order) for n in steps]
        found[name] = [abs(float(run) - exact) for run in runs]
    for name, exponent in (("exponential Euler", 1), ("exponential Heun", 2)):
        runs = [
            integrate(rate, _source, x, torch.linspace(0.0, end, n + 1, dtype=F64), order=exponent)  # type: ignore[arg-type]
            for n in steps
        ]
        found[name] = [abs(float(run) - exact) for run in runs]
    return found


def reverse_errors(
    steps: Sequence[int], mean: float = 2.0, var: float = 0.25, end: float = 3.0
) -> tuple[list[float], list[float]]:
    """|mean - exact| and |variance - exact| of Euler-Maruyama on the reverse SDE of dx = -x/2 dt + dw, without draws.

    From the exact law at `end` back to N(mean, var). A step of length h at t, where the law is N(m_t, v_t), is affine:
    y + h (y/2 - (y - m_t) / v_t) + sqrt(h) z, which takes (m, v) to (m + h (m/2 - (m - m_t) / v_t), (1 + h (1/2 -
    1/v_t))^2 v + h).
    """
    means, variances = [], []
    for n in steps:
        h = end / n
        m, v = mean * math.exp(-0.5 * end), 1.0 + (var - 1.0) * math.exp(-end)
        for k in range(n):
            t = end - k * h
            at, spread = mean * math.exp(-0.5 * t), 1.0 + (var - 1.0) * math.exp(-t)
            m, v = m + h * (0.5 * m - (m - at) / spread), (1.0 + h * (0.5 - 1.0 / spread)) ** 2 * v + h
        means.append(abs(m - mean))
        variances.append(abs(v - var))
    return means, variances
