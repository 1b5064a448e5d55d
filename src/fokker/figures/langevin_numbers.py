r"""The numbers of the Langevin figures, on laws that are known: three normals in the plane, two on the line, two moons.

The moons are in their natural units; their exact score is that of the data set itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import noise
from ..calculus import Grid, divergence_between, euler_maruyama, ito_sum, stratonovich_sum, wiener
from ..classic import Gauged, Motion, inverse_cdf
from ..data import Fashion, Moons
from ..exact import Empirical, Gaussian, GaussianMixture
from ..forward import diffuse
from ..process import EDM, OU, VP, Flow, Process
from ..sampling import encode, sample, trajectory
from ..solvers import EulerMaruyama, Heun, Solver

F64 = torch.float64
THREE = GaussianMixture(
    [0.3, 0.45, 0.25],  # type: ignore[arg-type]
    [[-1.4, 0.4], [1.1, 0.9], [0.4, -1.4]],  # type: ignore[arg-type]
    [[[0.24, 0.1], [0.1, 0.2]], [[0.16, -0.06], [-0.06, 0.26]], [[0.3, 0.0], [0.0, 0.1]]],  # type: ignore[arg-type]
)
LINE = GaussianMixture([0.3, 0.7], [[-1.0], [0.8]], [0.35**2, 0.25**2])  # type: ignore[arg-type]
OTHER = GaussianMixture([0.6, 0.4], [[-0.7], [1.2]], [0.3, 0.2])  # type: ignore[arg-type]
HALF = VP(beta_min=1.0, beta_max=1.0)
"""dx = -x/2 dt + dw."""
TURN = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64)


def normal_quantiles(n: int) -> Tensor:
    """n equally likely standard normal numbers, (n, 1)."""
    u = (torch.arange(n, dtype=F64) + 0.5) / n
    return inverse_cdf(torch.special.ndtr, u, -8.0, 8.0)[:, None]


def langevin_path(tau: float, steps: int, n: int, seed: int = 0) -> Tensor:
    """States of n samples of THREE under dx = s dtau + sqrt(2) dw, (steps + 1, n, 2)."""
    times, p = torch.linspace(0.0, tau, steps + 1, dtype=F64), THREE.at(HALF, 0.0)
    start, moves = THREE.sample(n, seed, dtype=F64), wiener(seed, torch.arange(n), times, (2,))
    return euler_maruyama(lambda x, t: p.score(x), math.sqrt(2.0), start, times, moves)


class Clouds(NamedTuple):
    """The same data and noise as x (variance preserving), z (exploding) and r (rectified flow), each (L, n, 2)."""

    x: Tensor
    z: Tensor
    r: Tensor


def forward_clouds(levels: Sequence[float], n: int) -> Clouds:
    """At noise levels rho = sigma / alpha: z = x_0 + rho eps, x = z / sqrt(1 + rho^2), r = z / (1 + rho)."""
    data, eps = THREE.sample(n, dtype=F64), noise.normal(1, torch.arange(n), (2,), dtype=F64)
    rho = torch.tensor(list(levels), dtype=F64)[:, None, None]
    z = data + rho * eps
    return Clouds(z / (1 + rho**2).sqrt(), z, z / (1 + rho))


class Halves(NamedTuple):
    """n ends each of a forward step from x, of a reverse step from there, and of one Langevin step from x; (n, 2)."""

    forward: Tensor
    both: Tensor
    whole: Tensor


def halves(x: tuple[float, float], t: float, h: float, n: int) -> Halves:
    """Steps of length h at level t of THREE, on the clock dx = -x/2 dt + dw."""
    start = torch.tensor([x], dtype=F64).expand(n, 2)
    z, w, u = noise.normal(2, torch.arange(n), (3, 2), dtype=F64).unbind(1)
    ahead, back = Motion.forward(HALF, t), Motion.reverse(HALF, t + h)
    up = ahead.step(start, start, h, z)
    down = back.step(up, THREE.at(HALF, t + h).score(up), h, w)
    return Halves(up, down, Motion.langevin().step(start, THREE.at(HALF, t).score(start), h, u))


def split_errors(steps: Sequence[float], t: float = 0.2, var: float = 0.25) -> Tensor:
    """By how much a forward step and a reverse one change the variance of N(0, var) at level t, (len(steps),)."""
    law, one, found = Gaussian([0.0], var), torch.ones(1, 1, dtype=F64), []  # type: ignore[arg-type]
    here = float(law.at(HALF, t).cov)
    for h in steps:
        scale, std = (float(c) for c in HALF.transition(t, t + h))
        gain = float(Motion.reverse(HALF, t + h).step(one, law.at(HALF, t + h).score(one), h, 0 * one))
        found.append(gain**2 * (scale**2 * here + std**2) + h - here)
    return torch.tensor(found, dtype=F64)


class Course(NamedTuple):
    """A model's trajectories from noise to one data point, (N + 1, n, 2), and their chord over their length, (n,)."""

    states: Tensor
    straightness: Tensor


def straightness(states: Tensor) -> Tensor:
    """Chord over length of paths (N + 1, n, d): 1 where straight, (n,)."""
    chord, length = (states[-1] - states[0]).norm(dim=-1), states.diff(dim=0).norm(dim=-1).sum(0)
    ratio: Tensor = chord / length
    return ratio


def towards_one_point(point: tuple[float, float], eps: Tensor, steps: int = 300) -> dict[str, Course]:
    """Reverse processes of four models where the data are one point; the flows from the noise eps (n, 2)."""
    law = Empirical(torch.tensor([point], dtype=F64))  # type: ignore[arg-type]
    models: dict[str, tuple[Process, Solver, float]] = {
        "VP-SDE": (OU(3.0), EulerMaruyama(), 3.0),
        "VP-ODE": (OU(3.0), Heun(), 3.0),
        "VE-Karras": (EDM(sigma_max=3.0), Heun(), 3.0),
        "rectified flow": (Flow(), Heun(), 1.0),
    }
    found = {}
    for name, (process, solver, top) in models.items():
        times = torch.linspace(1.0, 0.0, steps + 1, dtype=F64) ** 2 * top
        start = process.perturb(torch.tensor(point, dtype=F64).expand_as(eps), top, eps)
        states = trajectory(law.denoiser(process), x=start, solver=solver, grid=times, dtype=F64, seed=5)[1]
        found[name] = Course(states, straightness(states))
    return found


def mixture_straightness(n: int = 200, steps: int = 100) -> dict[str, float]:
    """The median chord over length of the flows of THREE, by model."""
    found = {}
    for name, process in (("VP-ODE", OU(5.0)), ("VE-Karras", EDM()), ("rectified flow", Flow())):
        states = trajectory(THREE.denoiser(process), n=n, solver=Heun("lam"), steps=steps, grid="lam", dtype=F64)[1]
        found[name] = float(straightness(states).median())
    return found


class Cycle(NamedTuple):
    """LINE to noise and back on OU: densities (2 N + 1, K) over x (K,) at levels (2 N + 1,), and paths likewise."""

    x: Tensor
    levels: Tensor
    density: Tensor
    paths: Tensor


def cycle(T: float, steps: int, n: int, points: int = 200) -> Cycle:
    """Forward paths of n samples, and reverse paths from where they end; levels are equal in sqrt t."""
    process, up = OU(T), torch.linspace(0.0, 1.0, steps + 1, dtype=F64) ** 2 * T
    x = torch.linspace(-3.2, 3.2, points, dtype=F64)[:, None]
    there = diffuse(process, LINE.sample(n, seed=2, dtype=F64), up, seed=2)
    down = trajectory(LINE.denoiser(process), x=there[-1], grid=up.flip(0), solver=EulerMaruyama(), seed=3, dtype=F64)[
        1
    ]
    density = torch.stack([LINE.at(process, t).log_prob(x).exp() for t in up])
    both = torch.cat([density, density.flip(0)[1:]])
    return Cycle(x[:, 0], torch.cat([up, up.flip(0)[1:]]), both, torch.cat([there, down[1:]])[..., 0])


class Ladder(NamedTuple):
    """Samples going up and coming down through the same levels, (L, n) each."""

    levels: Tensor
    up: Tensor
    down: Tensor


def ladder(levels: Sequence[float], n: int, fine: int = 60) -> Ladder:
    """LINE on OU: a forward chain through the levels, and a reverse one from p_T (other samples), `fine` steps each."""
    rungs, process = torch.tensor(list(levels), dtype=F64), OU(float(max(levels)))
    up = diffuse(process, LINE.sample(n, seed=4, dtype=F64), rungs, seed=4)[..., 0]
    x, down = LINE.at(process, process.T).sample(n, seed=9, dtype=F64), []
    down.append(x[:, 0])
    for k in range(len(rungs) - 1, 0, -1):
        times = torch.linspace(float(rungs[k]), float(rungs[k - 1]), fine + 1, dtype=F64)
        x = sample(LINE.denoiser(process), x=x, solver=EulerMaruyama(), grid=times, seed=10 + k, dtype=F64)
        down.insert(0, x[:, 0])
    return Ladder(rungs, up, torch.stack(down))


def moons(n: int, seed: int = 0) -> Tensor:
    """n points of the two moons in their natural units, (n, 2) float64."""
    law = Moons(noise=0.05)
    return law.sample(n, seed).double() * law.scale + torch.tensor(law.centre, dtype=F64)


def backward(data: Tensor, beta: float, times: Tensor, n: int, seed: int = 0) -> Tensor:
    """States (N + 1, n, d) of the beta family on OU from N(0, I), by the exact score of a data set."""
    denoiser = Empirical(data).denoiser(OU(float(times[0])))  # type: ignore[arg-type]
    return trajectory(denoiser, n=n, solver=EulerMaruyama(eta=math.sqrt(beta)), grid=times, seed=seed, dtype=F64)[1]


def uniform_times(tau: float, T: float = 3.0) -> Tensor:
    """T, T - tau, ..., tau and (nearly) 0: where Euler-Maruyama asks for the score, as in the seed."""
    times = torch.linspace(T, 0.0, round(T / tau) + 1, dtype=F64)
    times[-1] = 1e-9
    return times


def memorised(data: Tensor, beta: float, t_mins: Sequence[float], n: int, steps: int) -> list[float]:
    """`to_nearest` of x0 at times t_mins, on equal steps of log t from 3 to the least of them."""
    process = OU(3.0)
    times = torch.logspace(math.log10(3.0), math.log10(min(t_mins)), steps + 1, dtype=F64)
    states, denoiser = backward(data, beta, times, n), Empirical(data).denoiser(process)  # type: ignore[arg-type]
    at = [int((times.log() - math.log(t)).abs().argmin()) for t in t_mins]
    return [to_nearest(denoiser(states[k], times[k]).x0, data) for k in at]


def to_nearest(x: Tensor, data: Tensor) -> float:
    """The median distance of the samples x to the nearest row of the data."""
    return float(torch.cdist(x, data).amin(1).median())


class Returns(NamedTuple):
    """Pictures (n, 1, 28, 28): the data, noised, from there by the flow and by the SDE; encoded and decoded."""

    data: Tensor
    noised: Tensor
    by_flow: Tensor
    by_sde: Tensor
    encoded: Tensor
    decoded: Tensor


def returns(n: int, rows: int = 500, steps: int = 60, T: float = 3.0) -> Returns:
    """The first n of `rows` pictures of clothes, whose exact empirical denoiser is the model."""
    pictures = Fashion().load().take(torch.arange(rows))[0].double()
    process, x = OU(T), pictures[:n]
    denoiser = Empirical(pictures).denoiser(process)  # type: ignore[arg-type]
    times = torch.logspace(math.log10(T), -3.0, steps + 1, dtype=F64)
    whole = torch.cat([times, torch.zeros(1).double()])
    noised = process.perturb(x, T, noise.normal(6, torch.arange(n), (1, 28, 28), dtype=F64))
    by_flow = sample(denoiser, x=noised, solver=Heun("lam"), grid=whole, dtype=F64)
    by_sde = sample(denoiser, x=noised, solver=EulerMaruyama(), grid=whole, seed=6, dtype=F64)
    # A point itself is at rest: what is encoded is the state at t_min, the picture and noise that none can see.
    seen = process.perturb(x, float(times[-1]), noise.normal(16, torch.arange(n), (1, 28, 28), dtype=F64))
    encoded = encode(denoiser, seen, solver=Heun("lam"), grid=times.flip(0))
    decoded = sample(denoiser, x=encoded, solver=Heun("lam"), grid=whole, dtype=F64)
    return Returns(x, noised, by_flow, by_sde, encoded, decoded)


def joint(n: int, steps: int = 150, T: float = 1.0) -> dict[str, Tensor]:
    """(x_0, x_T) pairs (n, 2) of LINE on OU: the forward kernel, the reverse SDE, the flow, and either by a coin."""
    process, denoiser = OU(T), LINE.denoiser(OU(T))
    x0 = LINE.sample(n, seed=1, dtype=F64)
    there = process.perturb(x0, T, noise.normal(1, torch.arange(n), (1,), dtype=F64))
    start = LINE.at(process, T).sample(n, seed=3, dtype=F64)
    times = torch.linspace(1.0, 0.03, steps + 1, dtype=F64) ** 2 * T
    back = sample(denoiser, x=start, solver=EulerMaruyama(), grid=times, seed=3, dtype=F64)
    image = LINE.flow_map(process, x0, 0.0, T)
    coin = noise.uniform(7, torch.arange(n), (1,), dtype=F64) < 0.5
    pairs = {
        "forward kernel": (x0, there),
        "reverse SDE": (back, start),
        "probability flow": (x0, image),
        "kernel or flow, by a coin": (x0, torch.where(coin, there, image)),
    }
    return {name: torch.cat(pair, 1) for name, pair in pairs.items()}


class Gauge(NamedTuple):
    """Trajectories (N + 1, n, 2) of THREE on OU from the same noise, by the flow and by a gauged one."""

    plain: Tensor
    turned: Tensor


def gauge(n: int, steps: int = 60, strength: float = 1.0) -> Gauge:
    """Heun in lam from N(0, I) at T = 3 to t = .001."""
    process = OU(3.0)
    denoiser = THREE.denoiser(process)
    found = [
        trajectory(d, n=n, solver=Heun("lam"), steps=steps, grid="lam", final="t_min", seed=8, dtype=F64)[1]
        for d in (denoiser, Gauged(denoiser, strength * TURN))
    ]
    return Gauge(*found)


class Sums(NamedTuple):
    """A path w (N + 1,), its running sums of w dw, left-point and midpoint, (N + 1,), over times (N + 1,)."""

    times: Tensor
    path: Tensor
    left: Tensor
    middle: Tensor


def _path(n: int, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    times = torch.linspace(0.0, 1.0, steps + 1, dtype=F64)
    moves = wiener(seed, torch.arange(n), times, (1,))
    return times, torch.cat([torch.zeros(1, n, 1, dtype=F64), moves.cumsum(0)])


def running_sums(steps: int, seed: int = 0) -> Sums:
    """The two stochastic integrals of w dw along one path, growing with time."""
    times, w = _path(1, steps, seed)
    ends = [(ito_sum(w[: k + 1], w[: k + 1]), stratonovich_sum(w[: k + 1], w[: k + 1])) for k in range(1, steps + 1)]
    left, middle = (torch.cat([torch.zeros(1, dtype=F64), *part]) for part in zip(*ends, strict=True))
    return Sums(times, w[:, 0, 0], left, middle)


def sum_errors(steps: Sequence[int], n: int) -> tuple[Tensor, Tensor]:
    """RMS errors of the left-point sums against (w^2 - 1)/2, and of the midpoint sums against w^2/2."""
    left, middle = [], []
    for many in steps:
        w = _path(n, many, 1)[1]
        end = 0.5 * w[-1, :, 0].square()
        left.append((ito_sum(w, w) - end + 0.5).square().mean().sqrt())
        middle.append((stratonovich_sum(w, w) - end).square().mean().sqrt())
    return torch.stack(left), torch.stack(middle)


class Decay(NamedTuple):
    """KL(p_t, N(0, 1)) and KL(p_t, q_t) at times (K,) of OU, from LINE and OTHER; and how fast the latter falls."""

    times: Tensor
    to_normal: Tensor
    between: Tensor
    rate: Tensor


def decay(times: Tensor) -> Decay:
    """By quadrature; the rate is g^2/2 Fisher(p_t, q_t), the likelihood that belongs to the time t."""
    process, grid, normal = OU(), Grid((-9.0,), (9.0,), (1800,)), Gaussian([0.0], 1.0)  # type: ignore[arg-type]
    rows = []
    for t in times.tolist():
        p, q = LINE.at(process, t), OTHER.at(process, t)
        fisher = divergence_between(p, q, "fisher", grid=grid).value
        kls = [divergence_between(p, law, grid=grid).value for law in (normal, q)]
        rows.append(torch.stack([*kls, 0.5 * process.g2(t) * fisher]))
    return Decay(times, *torch.stack(rows).unbind(1))
