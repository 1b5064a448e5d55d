r"""The numbers of the figures of chapters 1 and 2: fits, divergences, averages, chains, all on laws that are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.optimize import minimize
from torch import Tensor

from ..calculus import DIVERGENCES
from ..data import Fashion, Moons
from ..exact import Empirical, GaussianMixture
from ..forward import diffuse
from ..process import DiscreteVP, Process
from ..sampling import trajectory
from ..solvers import Ancestral

__all__ = ["BUMPS", "TWO"]

F64 = torch.float64
BUMPS = GaussianMixture([0.3, 0.45, 0.25], [[-2.0], [0.3], [2.2]], [0.16, 0.36, 0.09])  # type: ignore[arg-type]
TWO = GaussianMixture([0.35, 0.65], [[-2.0], [1.5]], [0.25, 0.49])  # type: ignore[arg-type]


def mixture(weights: Tensor, means: Tensor, variances: Tensor) -> GaussianMixture:
    """sum_k w_k N(m_k, v_k), from (K,) each."""
    return GaussianMixture(weights, means[:, None], variances)  # type: ignore[arg-type]


class Line(NamedTuple):
    """A mixture on the line as (K,) weights, means and variances: for what is asked often."""

    weights: Tensor
    means: Tensor
    variances: Tensor

    def parts(self, x: Tensor) -> Tensor:
        """log w_k N(x; m_k, v_k), (*x, K)."""
        away = (x[..., None] - self.means) ** 2 / self.variances
        return self.weights.log() - 0.5 * (away + (2.0 * math.pi * self.variances).log())

    def log_prob(self, x: Tensor) -> Tensor:
        """log p, elementwise."""
        return self.parts(x).logsumexp(-1)

    def score(self, x: Tensor) -> Tensor:
        """d log p / dx, elementwise."""
        return (self.parts(x).softmax(-1) * (self.means - x[..., None]) / self.variances).sum(-1)


def on_line(law: GaussianMixture) -> Line:
    """The numbers of a one-dimensional mixture."""
    return Line(law.weights.value, law.means.value[:, 0], law.covs.value.reshape(-1))


def between(p: GaussianMixture, q: GaussianMixture, points: int = 4001) -> dict[str, float]:
    """KL, Jensen-Shannon, total variation and Fisher divergence of mixtures on the line, by quadrature."""
    a, b = on_line(p), on_line(q)
    far = float(max((one.means.abs() + 12.0 * one.variances.sqrt()).max() for one in (a, b)))
    x = torch.linspace(-far, far, points, dtype=F64)
    log_p, log_q = a.log_prob(x), b.log_prob(x)
    values = {name: f(log_p, log_q) for name, f in DIVERGENCES.items() if name != "reverse_kl"}
    values["fisher"] = log_p.exp() * (a.score(x) - b.score(x)) ** 2
    return {name: float(torch.trapezoid(value, x)) for name, value in values.items()}


class Fit(NamedTuple):
    """Fig. 1.1: a model along its training, its likelihood loss on the samples, and divergences from the data's law."""

    models: list[GaussianMixture]
    loss: list[float]
    divergences: dict[str, list[float]]


def em_step(model: GaussianMixture, x: Tensor) -> GaussianMixture:
    """One step of expectation-maximisation on samples (n,): it never raises -1/n sum log p (Dempster et al. 1977)."""
    share = on_line(model).parts(x).softmax(1)
    total = share.sum(0)
    centre = (share * x[:, None]).sum(0) / total
    spread = (share * (x[:, None] - centre) ** 2).sum(0) / total
    return mixture(total / total.sum(), centre, spread)


def model_fit(law: GaussianMixture, start: GaussianMixture, x: Tensor, steps: int) -> Fit:
    """Maximum likelihood on samples x (n,) of `law`, by `steps` steps of expectation-maximisation."""
    models = [start]
    for _ in range(steps):
        models.append(em_step(models[-1], x))
    found = [between(law, one) for one in models]
    loss = [-float(on_line(one).log_prob(x).mean()) for one in models]
    return Fit(models, loss, {name: [one[name] for one in found] for name in ("kl", "js", "tv")})


class Cover(NamedTuple):
    """One Gaussian N(mean, std^2) for a law, and the divergence it has."""

    mean: float
    std: float
    value: float


def forward_cover(law: GaussianMixture) -> Cover:
    """The Gaussian of least KL(law, .): that of the law's own moments."""
    mean, var = float(law.mean), float(law.cov)
    return Cover(mean, math.sqrt(var), between(law, gaussian(mean, var))["kl"])


def gaussian(mean: float, var: float) -> GaussianMixture:
    """N(mean, var) on the line."""
    return mixture(torch.ones(1, dtype=F64), torch.tensor([mean], dtype=F64), torch.tensor([var], dtype=F64))


_NODES = torch.linspace(-8.0, 8.0, 641, dtype=F64)
_MASS = torch.softmax(-0.5 * _NODES**2, 0)  # of N(0, 1), by quadrature


def reverse_values(law: GaussianMixture, mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(mean, std^2), law), elementwise."""
    x = mean[..., None] + std[..., None] * _NODES
    cross = on_line(law).log_prob(x) @ _MASS
    return -0.5 * (1.0 + math.log(2.0 * math.pi)) - std.log() - cross


def forward_values(law: GaussianMixture, mean: Tensor, std: Tensor) -> Tensor:
    """KL(law, N(mean, std^2)), elementwise: that of the best Gaussian plus the best one's from N(mean, std^2)."""
    best = forward_cover(law)
    ratio = (best.std / std) ** 2
    return best.value + 0.5 * (ratio - 1.0 - ratio.log() + ((best.mean - mean) / std) ** 2)


def reverse_cover(law: GaussianMixture, mean: float, std: float) -> Cover:
    """The Gaussian of least KL(., law) near N(mean, std^2)."""
    line = on_line(law)

    def slope(at: tuple[float, float]) -> tuple[float, list[float]]:
        m, s = torch.tensor(at[0], dtype=F64), torch.tensor(at[1], dtype=F64).exp()
        score = line.score(m + s * _NODES)
        found = [-float(score @ _MASS), -1.0 - float(s * (_NODES * score) @ _MASS)]  # d/dm and d/d log s
        return float(reverse_values(law, m, s)), found

    best = minimize(slope, (mean, math.log(std)), jac=True, method="BFGS", options={"gtol": 1e-9})
    return Cover(float(best.x[0]), math.exp(float(best.x[1])), float(best.fun))


def lopsided(separation: float, sigma: float = 0.0, weight: float = 0.2) -> tuple[GaussianMixture, GaussianMixture]:
    """w N(-a, 1) + (1 - w) N(a, 1) and the same with its weights swapped, after noise of std sigma."""
    means = torch.tensor([-separation, separation], dtype=F64)
    variances = torch.full((2,), 1.0 + sigma**2, dtype=F64)
    weights = torch.tensor([weight, 1.0 - weight], dtype=F64)
    return mixture(weights, means, variances), mixture(weights.flip(0), means, variances)


def blindness(separation: float, sigma: float = 0.0) -> tuple[float, float]:
    """(KL, Fisher divergence) between the two laws of `lopsided`."""
    found = between(*lopsided(separation, sigma))
    return found["kl"], found["fisher"]


class Decoded(NamedTuple):
    """The best decoder at codes z (M,): each point's weight (M, N), the averages (M, *event), and the printed total.

    `printed`: what the weights would sum to with the prior in the denominator, (M,); the true ones sum to 1.
    """

    weights: Tensor
    mean: Tensor
    printed: Tensor


def best_decoder(codes: Tensor, data: Tensor, std: float, z: Tensor) -> Decoded:
    """mu*(z) = sum_n q(z | x_n) x_n / sum_n q(z | x_n) with q(z | x_n) = N(codes_n, std^2) (book Sec. 2.1.4)."""
    logs = -0.5 * ((z[:, None] - codes) / std) ** 2
    weights = logs.softmax(1)
    evidence = logs.exp().mean(1) / (std * math.sqrt(2.0 * math.pi))
    prior = (-0.5 * z**2).exp() / math.sqrt(2.0 * math.pi)
    return Decoded(weights, torch.einsum("mn,n...->m...", weights, data), evidence / prior)


class Collapse(NamedTuple):
    """The best linear VAE's dimensions: KL of each from the prior in nats (..., d), and E log p(x) = ELBO (...)."""

    kl: Tensor
    elbo: Tensor


def collapse(eigenvalues: Tensor, noise: Tensor) -> Collapse:
    """x = W z + s eps with the best W for data of these eigenvalues (d,), at decoder variances s^2 (...).

    W W^T keeps the eigenvectors with lam > s^2, with lam - s^2 on them, and the encoder is the posterior, so that
    E KL_j = 1/2 log(lam_j / s^2) there and 0 elsewhere: the dimension has collapsed. Sources: Tipping & Bishop 1999;
    Lucas et al. 2019.
    """
    s2 = noise[..., None]
    model = torch.maximum(eigenvalues, s2)
    elbo = -0.5 * (math.log(2.0 * math.pi) + model.log() + eigenvalues / model).sum(-1)
    return Collapse(0.5 * (model / s2).log(), elbo)


class Split(NamedTuple):
    """E KL(q(z|x) | p(z)) of an encoder, the information I(x; z) and KL(q(z) | p(z)), its two parts."""

    rate: Tensor
    information: Tensor
    mismatch: Tensor


def rate_split(gain: Tensor, std: Tensor) -> Split:
    """Of z = gain x + std eps with x ~ N(0, 1) and the prior N(0, 1) (book Sec. 2.1.5)."""
    total = gain**2 + std**2
    rate = 0.5 * (total - 1.0) - std.log()
    return Split(rate, 0.5 * (total / std**2).log(), 0.5 * (total - 1.0 - total.log()))


LEVELS = 1000


def ddpm() -> DiscreteVP:
    """The chain of Ho et al.: 1000 levels, beta^2 from 1e-4 to .02 in the book's letters."""
    return DiscreteVP(steps=LEVELS)


def noised_pictures(levels: Sequence[int], n: int, seed: int = 0) -> Tensor:
    """The first n pictures of Fashion at levels of a DDPM, (K, n, 1, 28, 28), one path each."""
    x, _ = Fashion().load("train").take(torch.arange(n))
    return diffuse(ddpm(), x, [level / LEVELS for level in levels], seed=seed)


class Chain(NamedTuple):
    """Levels of DDPM's reverse chain: the states (K, n, *event), the predictions of x_0 there, and of how many points.

    `choices`: how many data points a prediction averages, e^entropy of their weights, (K, n).
    """

    states: Tensor
    clean: Tensor
    choices: Tensor


def picture_chain(levels: Sequence[int], n: int, size: int = 200, stride: int = 10, seed: int = 0) -> Chain:
    """Pictures by the exact denoiser of the first `size` of Fashion, by DDPM's chain in steps of `stride` levels.

    Args:
        levels: increasing multiples of `stride` from 0 to `LEVELS`.
    """
    x, _ = Fashion().load("train").take(torch.arange(size))
    process = ddpm()
    denoiser = Empirical(x).denoiser(process)  # type: ignore[arg-type]
    grid = torch.arange(LEVELS, -1, -stride, dtype=F64) / LEVELS
    _, found = trajectory(denoiser, n=n, solver=Ancestral(), grid=grid, seed=seed)
    states = torch.stack([found[(LEVELS - level) // stride] for level in levels])
    clean, choices = [states[0]], [torch.ones(n)]
    for level, state in zip(levels[1:], states[1:], strict=True):
        weights = chosen(process, x, state, level / LEVELS)
        clean.append(torch.einsum("bn,n...->b...", weights, x))
        choices.append(torch.special.entr(weights).sum(1).exp())
    return Chain(states, torch.stack(clean), torch.stack(choices))


def chosen(process: Process, data: Tensor, state: Tensor, t: float) -> Tensor:
    """The posterior weights of data points (N, *event) given states (B, *event) at time t: (B, N)."""
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    away = torch.cdist(state.flatten(1).double(), alpha * data.flatten(1).double())
    return (-0.5 * (away / sigma) ** 2).softmax(1).to(data.dtype)


def moons_law(pieces: int = 32) -> GaussianMixture:
    """The two moons as a mixture of Gaussians along them: `pieces` on each arc."""
    moons = Moons()
    angle = math.pi * (torch.arange(pieces, dtype=F64) + 0.5) / pieces
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    points = torch.cat([upper, torch.tensor([1.0, 0.5], dtype=F64) - upper])
    # Each stands for a piece of arc: its variance along the tangent is the piece's, pi^2 / (12 pieces^2).
    tangent = torch.stack([-upper[:, 1], upper[:, 0]], 1).repeat(2, 1)
    along = (math.pi / pieces) ** 2 / 12.0
    covs = moons.noise**2 * torch.eye(2, dtype=F64) + along * tangent[:, :, None] * tangent[:, None]
    means = (points - torch.tensor(moons.centre, dtype=F64)) / moons.scale
    weights = torch.full((2 * pieces,), 0.5 / pieces, dtype=F64)
    return GaussianMixture(weights, means, covs / moons.scale**2)  # type: ignore[arg-type]


def cloud_chain(levels: Sequence[int], n: int = 600, stride: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points of the moons at levels of a DDPM, (K, n, 2): forward from data; reverse, from noise at the last level."""
    process, law = ddpm(), moons_law()
    forward = diffuse(process, law.sample(n, seed), [level / LEVELS for level in levels], seed=seed)
    grid = torch.arange(LEVELS, -1, -stride, dtype=F64) / LEVELS
    _, states = trajectory(law.denoiser(process), n=n, solver=Ancestral(), grid=grid, seed=seed + 1)
    return forward, torch.stack([states[(LEVELS - level) // stride] for level in levels])


class Kernel(NamedTuple):
    """p(x_{i-1} | x_i) along x, its Gaussians of the same moments and of DDPM's variance, and KL from it to either."""

    x: Tensor
    true: Tensor
    matched: Tensor
    fixed: Tensor
    kl_matched: float
    kl_fixed: float


def reverse_kernel(law: GaussianMixture, process: Process, state: float, s: float, t: float) -> Kernel:
    """The reverse kernel from x_s = state to time t, by quadrature over 12 standard deviations of it."""
    kernel = law.at(process, s).reverse(torch.tensor([[state]], dtype=F64), t)
    mean, var = float(kernel.mean), float(kernel.cov)
    narrow = float(process.bridge(s, t).std) ** 2
    far = 12.0 * math.sqrt(var)
    x = torch.linspace(mean - far, mean + far, 6001, dtype=F64)
    weights, means, variances = kernel.weights[0], kernel.means[0, :, 0], kernel.covs[0, :, 0, 0]
    log_p = Line(weights, means, variances).log_prob(x)

    def normal(variance: float) -> Tensor:
        return -0.5 * ((x - mean) ** 2 / variance + math.log(2.0 * math.pi * variance))

    def kl(log_q: Tensor) -> float:
        return float(torch.trapezoid(log_p.exp() * (log_p - log_q), x))

    found: list[Tensor] = [normal(var), normal(narrow)]
    return Kernel(x, log_p.exp(), found[0].exp(), found[1].exp(), kl(found[0]), kl(found[1]))


def step_of(process: Process, s: float, beta2: float) -> float:
    """The time t before s from which one step adds noise of variance beta^2: (alpha_s / alpha_t)^2 = 1 - beta^2."""
    alpha = process.alpha(torch.tensor(s, dtype=F64)) / math.sqrt(1.0 - beta2)
    # VP: lam = log(alpha / sqrt(1 - alpha^2)); log1p keeps the digits of small steps
    return float(process.time(alpha.log() - 0.5 * torch.log1p(-(alpha**2))))


def kernel_gaps(
    law: GaussianMixture, process: Process, state: float, s: float, betas2: Sequence[float]
) -> list[tuple[float, float]]:
    """KL from the true reverse kernel to its Gaussians of equal moments and of DDPM's variance, at each beta^2."""
    kernels = [reverse_kernel(law, process, state, s, step_of(process, s, b)) for b in betas2]
    return [(one.kl_matched, one.kl_fixed) for one in kernels]
