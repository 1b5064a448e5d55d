r"""Exact flow maps of the probability-flow ODE.

    (1)  one Gaussian:    x_t = m_t + V_t^{1/2} V_s^{-1/2} (x - m_s),   V = alpha^2 Sigma + sigma^2 I
    (2)  one dimension:   F_t(x_t) = F_s(x_s),                          F = sum_k w_k Phi((x - alpha mu_k) / sd_k)

(2) is solved in log F, or in log (1 - F) by reflection, whichever is the shorter tail.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import ConfigError
from ..process import Process, as_time
from .channel import Core, Mixture
from .families import LowRank, Spectral, lift
from .marginal import flat

__all__ = ["normal_map", "quantile_map"]


def _mixture(core: Core, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Spectral | LowRank]:
    at = core.to(x.device, dtype)
    assert isinstance(at, Mixture)
    assert isinstance(at.family, (Spectral, LowRank))
    return at.weights, at.family


def _ends(process: Process, *times: float | Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(process.alpha(u), process.sigma(u)) for u in (as_time(time).double() for time in times)]


def normal_map(core: Core, process: Process, x: Tensor, s: float | Tensor, t: float | Tensor) -> Tensor:
    """Eq. (1) for a mixture of one component."""
    rows = flat(x, (core.dim,))
    _, family = _mixture(core, rows, rows.dtype)
    ends = _ends(process, s, t)
    (alpha_s, _), (alpha_t, _) = ends
    at_s, at_t = ((lift(a, rows, 1, torch.float64), lift(b, rows, 1, torch.float64)) for a, b in ends)

    def stretch(values: Tensor) -> Tensor:
        """sqrt(V_t / V_s) along directions of data variance `values`; 1 where both are 0."""
        c_s, c_t = (a**2 * values + b**2 for a, b in (at_s, at_t))
        return torch.where(c_s == c_t, 1.0, c_t / c_s.clamp(min=1e-300)).sqrt().to(rows.dtype)

    mean = family.means[0]
    y = rows - lift(alpha_s, rows, 1) * mean
    if isinstance(family, LowRank):
        if not family.isotropic:
            raise ConfigError("flow_map: factors plus a diagonal share no eigenbasis here: give `covs` as a matrix")
        size = family.sizes[0].clamp(min=1e-300)
        outer = stretch(family.diagonal[0])
        along = family.down[0](y) * ((stretch(family.diagonal[0] + size) - outer) / size).to(rows.dtype)
        y = outer * y + family.up[0](along)
    elif family.basis is None:
        y = stretch(family.values[0]) * y
    else:
        y = family.synthesise(stretch(family.values[0]) * family.analyse(y))
    return lift(alpha_t, rows, 1) * mean + y


def _log_cdf(x: Tensor, log_w: Tensor, means: Tensor, sds: Tensor) -> tuple[Tensor, Tensor]:
    """log F and its derivative, for x (B, 1)."""
    z = (x - means) / sds
    log_cdf = (log_w + torch.special.log_ndtr(z)).logsumexp(-1, keepdim=True)
    log_pdf = (log_w - 0.5 * z**2 - sds.log() - 0.5 * math.log(2.0 * math.pi)).logsumexp(-1, keepdim=True)
    return log_cdf, (log_pdf - log_cdf).exp()


def quantile_map(core: Core, process: Process, x: Tensor, s: float | Tensor, t: float | Tensor) -> Tensor:
    """Eq. (2) by Newton's method inside a bracket that bisection keeps shrinking, for a mixture in one dimension."""
    rows = flat(x, (1,)).detach().double()
    weights, family = _mixture(core, rows, torch.float64)
    assert isinstance(family, Spectral)
    log_w, mu = weights.log(), family.means[:, 0]
    variance = family.covs()[:, 0, 0]
    laws = []
    for alpha, sigma in _ends(process, s, t):
        a, b = lift(alpha, rows, 1), lift(sigma, rows, 1)
        sds = (a**2 * variance + b**2).sqrt()
        if bool((sds == 0).any()):
            raise ConfigError("flow_map: a component is a point mass at this time: stop before sigma = 0")
        laws.append((a * mu, sds))
    (mean_s, sd_s), (mean_t, sd_t) = laws
    lower, upper = _log_cdf(rows, log_w, mean_s, sd_s)[0], _log_cdf(-rows, log_w, -mean_s, sd_s)[0]
    side = torch.where(lower <= upper, 1.0, -1.0).to(rows)  # +1: the lower tail is the shorter one
    level = torch.minimum(lower, upper)
    mean_s, mean_t = side * mean_s, side * mean_t
    z = (side * rows - mean_s) / sd_s
    # F_s = sum w Phi(z_k), so the common level lies between the least and the largest z_k, and so does x_t.
    low = (mean_t + sd_t * z.amin(-1, keepdim=True)).amin(-1, keepdim=True)
    high = (mean_t + sd_t * z.amax(-1, keepdim=True)).amax(-1, keepdim=True)
    # Rounding may put the answer an ulp outside a bracket of no width.
    slack = 1e-14 * (low.abs() + high.abs()) + 1e-300
    low, high = low - slack, high + slack
    y = 0.5 * (low + high)
    finished = torch.zeros_like(y, dtype=torch.bool)
    for _ in range(200):
        value, slope = _log_cdf(y, log_w, mean_t, sd_t)
        miss = value - level
        low, high = torch.where(miss < 0, y, low), torch.where(miss > 0, y, high)
        newton = y - miss / slope
        inside = (newton >= low) & (newton <= high)
        step = torch.where(inside, newton, 0.5 * (low + high))
        step = torch.where(miss == 0, y, step)
        done = (step - y).abs() <= 2e-16 * (y.abs() + sd_t.amin(-1, keepdim=True))
        y = torch.where(finished, y, step)  # a row that is done must not depend on how long others take
        finished = finished | done
        if bool(finished.all()):
            break
    return (side * y).to(x.dtype).reshape(x.shape)
