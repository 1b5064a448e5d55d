r"""The numbers of the likelihood figures: paths, weights, likelihoods, bounds (book Sec. 5.1, App. A-D)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from numpy.polynomial.hermite_e import hermegauss
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from ..calculus import Hutchinson, euler_maruyama, wiener
from ..exact import Empirical, Gaussian, GaussianMixture
from ..likelihood import elbo, log_prob
from ..prediction import READINGS, Denoiser, Prediction, coefficients, edm_reading
from ..process import EDM, VP, Process
from ..sampling import trajectory
from ..solvers import RK4
from .score_numbers import F64, LINE

__all__ = ["DATA", "Scaled", "error_budget", "girsanov", "picard"]

DATA = Gaussian([0.0], [[0.3]])  # type: ignore[arg-type]
SLOW = VP(0.1, 5.0)
"""The process of the error budget; e^{-B(1) / 2} = 0.28 of the data is still there at T."""


class Iterates(NamedTuple):
    """Picard on x' = -x + sin 3t: times (N+1,), iterates (K+1, N+1), Euler's own states, the largest error of each."""

    times: Tensor
    iterates: Tensor
    euler: Tensor
    errors: Tensor


def picard(iterations: int = 20, steps: int = 20, end: float = 2.0, x: float = 1.0) -> Iterates:
    """x_j <- x_0 + h sum_{i < j} v(x_i, t_i), all nodes at once, from the constant path; exact after `steps`."""
    times = torch.linspace(0.0, end, steps + 1, dtype=F64)
    h = end / steps

    def v(state: Tensor, t: Tensor) -> Tensor:
        return -state + (3.0 * t).sin()

    euler = [torch.tensor(x, dtype=F64)]
    for t in times[:-1]:
        euler.append(euler[-1] + h * v(euler[-1], t))
    rows = [torch.full_like(times, x)]
    for _ in range(iterations):
        rows.append(torch.cat([rows[0][:1], x + h * v(rows[-1], times)[:-1].cumsum(0)]))
    iterates, states = torch.stack(rows), torch.stack(euler)
    return Iterates(times, iterates, states, (iterates - states).abs().amax(1))


class Weights(NamedTuple):
    """Girsanov: log dP_f / dP_g of paths of the denominator and of the numerator (n,), and ESS / n at each horizon.

    kl: 1/2 delta^2 T, the mean of the numerator's and minus that of the denominator's; both have variance 2 kl.
    """

    denominator: Tensor
    numerator: Tensor
    kl: float
    horizons: Tensor
    ess: Tensor
    exact: Tensor


def girsanov(delta: float = 1.0, n: int = 4000, horizon: float = 2.0, steps: int = 100) -> Weights:
    """dx = (-x + delta) dt + dw against dx = -x dt + dw, from x = 0; the exact law of the log-ratio is normal.

    log ratio = int delta (dx - g dt) - 1/2 int delta^2 dt along any path: dx less the denominator's drift, whichever
    model drew the path. The share of effective paths is 1 / E_g[w^2] = exp(-delta^2 T).
    """
    times = torch.linspace(0.0, horizon, steps + 1, dtype=F64)
    rows = []
    for seed, extra in ((0, 0.0), (1, delta)):
        moved = wiener(seed, torch.arange(n), times, (1,))
        path = euler_maruyama(lambda x, t, extra=extra: extra - x, 1.0, torch.zeros(n, 1, dtype=F64), times, moved)
        h = times.diff()[:, None]
        less = path.diff(dim=0)[..., 0] + path[:-1, :, 0] * h
        rows.append((delta * less - 0.5 * delta**2 * h).cumsum(0))
    log_w = rows[0][steps // 10 - 1 :: steps // 10]
    ess = torch.exp(2.0 * log_w.logsumexp(1) - (2.0 * log_w).logsumexp(1)) / n
    horizons = times[steps // 10 :: steps // 10]
    return Weights(rows[0][-1], rows[1][-1], 0.5 * delta**2 * horizon, horizons, ess, (-(delta**2) * horizons).exp())


class Merging(NamedTuple):
    """Two points +-1 under EDM: states (N+1, n) at times (N+1,) from the starts; maps x_T -> x_t for some t, (M, T)."""

    times: Tensor
    states: Tensor
    starts: Tensor
    ends: Tensor
    at: tuple[float, ...]


def merging(start: float = 3.0, n: int = 16, steps: int = 200, at: Sequence[float] = (1.0, 0.5, 0.2, 0.02)) -> Merging:
    """The probability flow dx/dt = (x - tanh(x / t^2)) / t, down to t = .02 on a geometric grid, by RK4."""
    points = Empirical([[-1.0], [1.0]])  # type: ignore[arg-type]
    times = torch.logspace(math.log10(start), math.log10(0.02), steps + 1, dtype=F64)
    fan = torch.linspace(-6.0, 6.0, n, dtype=F64)
    dense = torch.linspace(-6.0, 6.0, 241, dtype=F64)
    x = torch.cat([fan, dense])[:, None]
    known, states = trajectory(points.denoiser(EDM()), x=x, solver=RK4(), grid=times, dtype=F64)
    where = [int((known - t).abs().argmin()) for t in at]
    return Merging(known, states[:, :n, 0], dense, states[where][:, n:, 0], tuple(at))


def preconditioning(sigma: Tensor, sigma_data: float = 0.5) -> dict[str, Tensor]:
    """c_skip, c_out and c_in of EDM at alpha = 1 (book Sec. D.6.2), as the library reads its network."""
    skip, out = coefficients(EDM(), sigma, edm_reading(sigma_data), READINGS["x0"])
    return {"skip": skip, "out": out, "in": 1.0 / sigma.hypot(torch.tensor(sigma_data).to(sigma))}


class Curve(NamedTuple):
    """Log-densities along x (M,): exact, by the flow ending in the exact p_T, and ending in N(0, I)."""

    x: Tensor
    exact: Tensor
    flow: Tensor
    prior: Tensor


def flow_likelihood(points: int = 61, span: float = 3.2, steps: int = 50) -> Curve:
    """LINE on VP from t_min, RK4 on equal steps of flow time (`fokker.log_prob`); one run gives both ends."""
    x, last = torch.linspace(-span, span, points, dtype=F64)[:, None], LINE.at(VP(), 1.0)
    found = log_prob(LINE.denoiser(VP()), x, solver=RK4(), grid="flow", steps=steps, prior=last.log_prob)
    swapped = normal_log_prob(found.latent) - last.log_prob(found.latent)
    return Curve(x[:, 0], LINE.at(VP(), VP().t_min).log_prob(x), found.value, found.value + swapped)


def normal_log_prob(x: Tensor) -> Tensor:
    """log N(x; 0, I), (B,)."""
    return -0.5 * (x.square() + math.log(2.0 * math.pi)).sum(1)


def ring(dim: int = 8, seed_angle: float = 0.7) -> GaussianMixture:
    """A mixture of three in `dim` dimensions whose flow's Jacobian is far from diagonal."""
    numbers = torch.arange(dim, dtype=F64)
    means = torch.stack([1.5 * (seed_angle * (k + 1) * (numbers + 1.0)).sin() for k in range(3)])
    return GaussianMixture([0.3, 0.3, 0.4], means, torch.full((3,), 0.3, dtype=F64))  # type: ignore[arg-type]


class Probing(NamedTuple):
    """Hutchinson's estimate of log p: probes (K,), the root mean square error, and the mean of what was stated."""

    probes: Tensor
    error: Tensor
    stated: Tensor


def probing(counts: Sequence[int] = (2, 4, 8, 16, 32, 64), n: int = 64, steps: int = 16) -> Probing:
    """log p of `n` samples of an eight-dimensional mixture, against the same flow with the exact divergence."""
    law, process = ring(), VP()
    x, denoiser = law.sample(n, dtype=F64), law.denoiser(VP())
    keys = {"solver": RK4(), "grid": "flow", "steps": steps, "prior": law.at(process, 1.0).log_prob}
    exact = log_prob(denoiser, x, **keys).value  # type: ignore[arg-type]
    error, stated = [], []
    for k in counts:
        found = log_prob(denoiser, x, probes=Hutchinson(k, seed=k), **keys)  # type: ignore[arg-type]
        error.append((found.value - exact).square().mean().sqrt())
        stated.append(found.stderr.square().mean().sqrt())
    return Probing(torch.tensor(list(counts)), torch.stack(error), torch.stack(stated))


class Scaled:
    """A denoiser whose score is (1 + c) times another's.

    Args:
        truth: the other one.
        c: what it is wrong by.
    """

    def __init__(self, truth: Denoiser, c: float) -> None:
        self.truth, self.c, self.reading = truth, c, READINGS["noise"]
        self.process, self.shape, self.lam_range = truth.process, truth.shape, truth.lam_range

    def __call__(self, x: Tensor, s: float | Tensor, cond: Any = None) -> Prediction:
        """The prediction, whose noise is (1 + c) the other's."""
        return Prediction(self.process, x, s, noise=(1.0 + self.c) * self.truth(x, s, cond).noise)


class Bounds(NamedTuple):
    """log p_0 along x (M,); the bounds of the exact and a wrong score by quadrature; estimates at `places` (P,)."""

    x: Tensor
    exact: Tensor
    tight: Tensor
    loose: Tensor
    places: Tensor
    estimate: Tensor
    stderr: Tensor


def bound(denoiser: Denoiser, x: Tensor) -> Tensor:
    """The bound that `fokker.elbo` estimates, in one dimension by Gauss' rules in lam and in the noise, (M,)."""
    process = denoiser.process
    low, high = float(process.lam(process.T)), float(process.lam(process.t_min))
    nodes, weights = leggauss(64)
    lam = 0.5 * (high + low) + 0.5 * (high - low) * torch.from_numpy(nodes)
    eps, mass = (torch.from_numpy(a) for a in hermegauss(48))
    t = process.time(lam)
    shape = (len(x), len(lam), len(eps))
    noises = eps.expand(shape).reshape(-1, 1)
    moments = t[None, :, None].expand(shape).reshape(-1)
    states = process.perturb(x[:, None, None].expand(shape).reshape(-1, 1), moments, noises)
    missed = (noises - denoiser(states, moments).noise).square().reshape(shape)
    inside = missed @ (mass / mass.sum())
    diffusion = 0.5 * (high - low) * inside @ torch.from_numpy(weights)
    rho = math.exp(-high)
    prior = process.kl_to_prior(x, 0.0, process.T)
    return -(prior + diffusion + 0.5 * math.log(2.0 * math.pi * math.e) + math.log(rho))


def bounds(c: float = 0.2, points: int = 41, span: float = 3.2, copies: int = 64) -> Bounds:
    """LINE on VP: the bound is tight for the exact score (its prior nearly p_T), and loses for (1 + c) times it."""
    x, truth = torch.linspace(-span, span, points, dtype=F64), LINE.denoiser(VP())
    wrong = Scaled(truth, c)
    places = torch.linspace(-2.8, 2.8, 9, dtype=F64)
    found = elbo(wrong, places.repeat(copies)[:, None], draws=64)
    value = found.value.reshape(copies, -1)
    stderr = value.std(0) / math.sqrt(copies)
    return Bounds(x, LINE.log_prob(x[:, None]), bound(truth, x), bound(wrong, x), places, value.mean(0), stderr)


class Budget(NamedTuple):
    """KL between the paths of the data and of the sampler, in nats: what each cause adds, and the marginal KL at 0."""

    prior: float
    score: float
    discretisation: float
    marginal: float


def normal_kl(m: float, v: float, n: float, w: float) -> float:
    """KL(N(m, v) || N(n, w)) in nats."""
    return 0.5 * (v / w + (m - n) ** 2 / w - 1.0 - math.log(v / w))


def error_budget(c: float, steps: int, v0: float = 0.3, process: Process = SLOW) -> Budget:
    """The reverse SDE by Euler-Maruyama from N(0, 1), with (1 + c) times the score of N(0, v0): all in closed form.

    The noising is the Euler chain x' = (1 + f h) x + g sqrt(h) eps as well; its law against the sampler's is a sum of
    Gaussian divergences, one for each step. What prior and score, 1/2 int g^2 E|c s|^2 dt = 1/2 int g^2 c^2 / V dt, do
    not explain is discretisation.
    """
    times = torch.linspace(0.0, process.T, steps + 1, dtype=F64)
    fine = torch.linspace(0.0, process.T, 20_001, dtype=F64)
    V = process.alpha(fine) ** 2 * v0 + process.sigma(fine) ** 2
    score = float(torch.trapezoid(0.5 * c**2 * process.g2(fine) / V, fine))
    f, g2, h = process.f(times).tolist(), process.g2(times).tolist(), process.T / steps
    true = (process.alpha(times) ** 2 * v0 + process.sigma(times) ** 2).tolist()
    chain = [v0]
    for k in range(steps):
        chain.append((1.0 + f[k] * h) ** 2 * chain[-1] + g2[k] * h)
    prior = normal_kl(0.0, true[-1], 0.0, 1.0)
    total, reached = normal_kl(0.0, chain[-1], 0.0, 1.0), 1.0
    for k in range(steps, 0, -1):
        a = 1.0 + f[k - 1] * h
        back = a * chain[k - 1] / chain[k]
        spread = chain[k - 1] - back**2 * chain[k]
        slope = 1.0 - h * (f[k] + (1.0 + c) * g2[k] / true[k])
        noise = g2[k] * h
        total += 0.5 * (spread / noise - 1.0 - math.log(spread / noise) + (back - slope) ** 2 * chain[k] / noise)
        reached = slope**2 * reached + noise
    return Budget(prior, score, total - prior - score, normal_kl(0.0, v0, 0.0, reached))
