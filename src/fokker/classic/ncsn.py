r"""Noise-conditional score networks: the score at geometric noise levels, and Langevin dynamics down through them.

    (1)  0 < sigma_1 < .. < sigma_L,    x_sigma = x + sigma eps,    sigma_{l+1} / sigma_l constant
    (2)  L_DSM(sigma) = 1/2 E|s(x_sigma, sigma) + eps / sigma|^2 >= 1/2 (D / sigma^2 - E|grad log p_sigma|^2)
    (3)  L_NCSN = sum_l sigma_l^2 L_DSM(sigma_l),    that is `Denoising.ncsn(L)` up to the factor 2 / (L D)
    (4)  x ~ N(0, sigma_L^2 I); for l = L, .., 1: N times x <- x + eta_l s(x, sigma_l) + sqrt(2 eta_l) z,
         eta_l = delta sigma_l^2 / sigma_1^2,    stable for delta < 2 sigma_1^2

The book's Algorithm 1 stops at l = 2, which returns p_{sigma_2}, and starts at N(0, I), which is not p_{sigma_L}; (4)
is its corrected form. An NCSN is a denoiser like any other: its levels are times of a process, s = -eps / sigma, and
with x = x_t / alpha, sigma = sigma(t) / alpha(t) all processes have the same: s_t(x_t) = s(x_t / alpha, sigma) / alpha.
Source: book Secs. 3.4 and 3.5, Algorithm 1; Song & Ermon 2019, whose step epsilon is 2 eta.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import noise
from ..calculus import Estimate
from ..errors import ConfigError
from ..exact import Law
from ..prediction import Denoiser
from ..process import EDM, Process
from ..solvers import AnnealedLangevin

__all__ = ["annealing", "level_floors", "level_losses", "sigmas"]


def sigmas(low: float, high: float, n: int) -> Tensor:
    """The levels (1) from sigma_1 = `low` to sigma_L = `high`, (n,) float64, increasing."""
    if not (0.0 < low < high and n >= 2):
        raise ConfigError(f"sigmas: given low={low}, high={high}, n={n}, must have 0 < low < high and n >= 2")
    levels = torch.linspace(math.log(low), math.log(high), n, dtype=torch.float64).exp()
    levels[0], levels[-1] = low, high
    return levels


def annealing(process: Process, levels: Tensor, *, delta: float, repeats: int = 100) -> dict[str, Any]:
    """Eq. (4) as arguments of `sample`: `sample(denoiser, n=64, **annealing(denoiser.process, levels, delta=1e-5))`.

    Args:
        process: the denoiser's.
        levels: sigma_1 < .. < sigma_L, noise levels sigma / alpha inside the process, (L,) with L >= 2.
        delta: eta_1, the step at the last level, in (0, 2 sigma_1^2); the law is off by O(delta / sigma_1^2).
        repeats: N, steps at each level, the last one included; the cost is N L evaluations.

    Returns:
        The solver and its grid of L times.

    Raises:
        ConfigError: levels that do not increase from above 0; delta out of its range.
    """
    levels = torch.as_tensor(levels, dtype=torch.float64)
    if levels.ndim != 1 or len(levels) < 2 or not bool((levels[0] > 0) & (levels.diff() > 0).all()):
        raise ConfigError(f"levels: given {levels.tolist()}, must be 2 or more that increase from above 0")
    most = 2.0 * float(levels[0]) ** 2
    if not 0.0 < delta < most:
        raise ConfigError(f"delta: given {delta}, must lie in (0, {most:g}), 2 sigma_1^2")
    return {"solver": AnnealedLangevin(repeats, 2.0 * delta / most), "grid": process.time(-levels.log()).flip(0)}


@torch.no_grad()
def level_losses(denoiser: Denoiser, x: Tensor, levels: Tensor, *, seed: int = 0) -> Estimate:
    """L_DSM of Eq. (2) at each level, from one draw of noise for every row: (L,) with standard errors.

    Args:
        denoiser: in any process; its score at level sigma is -E[eps | x] / sigma.
        x: data (B, *event), 2 rows or more.
        levels: noise levels sigma / alpha, (L,).
        seed: of the noise, which all levels share.
    """
    process, rows = denoiser.process, torch.arange(len(x), device=x.device)
    eps = noise.normal(seed, rows, x.shape[1:], domain="probe", dtype=x.dtype)
    found = []
    for sigma in levels.double():
        t = process.time(-sigma.log()).expand(len(x))
        gap = denoiser(process.perturb(x, t, eps), t).noise - eps
        found.append(0.5 * gap.double().flatten(1).square().sum(1) / sigma**2)
    return _estimate(torch.stack(found))


def level_floors(law: Law, levels: Tensor, *, n: int = 10_000, seed: int = 0) -> Estimate:
    """The least L_DSM at each level, the right side of Eq. (2), of a law that is known: (L,) with standard errors.

    Args:
        law: of the data.
        levels: noise levels, (L,).
        n: samples of x_sigma that estimate E|grad log p_sigma|^2.
        seed: of the samples.
    """
    levels, d = levels.double(), math.prod(law.shape)
    process = EDM(0.5 * float(levels.min()), 2.0 * float(levels.max()))
    found = []
    for sigma in levels:
        at = law.at(process, sigma)
        score = at.score(at.sample(n, seed, dtype=torch.float64))
        found.append(0.5 * (d / sigma**2 - score.flatten(1).square().sum(1)))
    return _estimate(torch.stack(found))


def _estimate(values: Tensor) -> Estimate:
    """Means of (L, n) over n, and their standard errors."""
    return Estimate(values.mean(1), values.std(1) / math.sqrt(values.shape[1]))
