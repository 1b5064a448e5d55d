r"""The variational bound of a diffusion model in continuous time (VDM), term by term.

    (1)  log p(x) >= -(prior + diffusion + reconstruction)
    (2)  prior          = KL(p(x_T | x) || N(0, prior_std^2 I))
    (3)  diffusion      = 1/2 int E|x - x0_hat|^2 d SNR = int E|eps - eps_hat|^2 d lam,     SNR = e^{2 lam}
    (4)  reconstruction = E[-log p(x | x_s)],     p(x | x_s) = N(x_s / alpha, rho^2 I),     rho = sigma / alpha at s

over lam from T, the noisiest time supported (t_max where alpha(T) = 0), to s, the cleanest one (t_min). The bound is on
the reverse SDE's density, drawn from the prior at T, of which x | x_s is the last step. With the exact denoiser its gap
is the prior's mismatch and what the decoder is blind to, KL(p(x | x_s) || decoder), which vanishes with rho.
(4) is known: d (log(2 pi e) / 2 - lam_s). For pictures the decoder is rounded to the levels (Ho et al. 2020), and the
bound is one on log-probabilities: with x = c on a level and w = h / (2 rho), per pixel,

    (5)  E_e[-log(Phi(w - e) - Phi(-w - e))],     at the lowest and the highest level E_e[-log Phi(w - e)].

Sources: Kingma et al. 2021 (VDM), Eq. 11-18; book Thm 2.2.3, Eq. 4.4.7, C.2.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import noise
from ..denoiser import repeat_cond, take_cond
from ..errors import ConfigError
from ..prediction import Denoiser
from ..sampling import device_of
from .flow import parts
from .pixels import on_levels, width

__all__ = ["Bound", "elbo"]


@dataclass(frozen=True)
class Bound:
    """What `elbo` gives, in nats, float64; all (B,).

    Attributes:
        value: the estimate of the bound, -(prior + diffusion + reconstruction); unbiased.
        stderr: its standard error, all of it the diffusion term's.
        prior, diffusion, reconstruction: the costs, Eq. (2) to (5).
    """

    value: Tensor
    stderr: Tensor
    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor


def elbo(
    denoiser: Denoiser,
    x: Tensor,
    *,
    draws: int = 64,
    levels: int | None = None,
    cond: Any = None,
    seed: int = 0,
    index: Tensor | None = None,
    batch_size: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Bound:
    """The variational lower bound on log p(x), Eq. (1), estimated with `draws` evaluations per sample.

    lam is drawn twice from each of draws / 2 equal pieces of its range, so that the standard error, from the pairs'
    differences, is that of the stratified estimate.

    Args:
        denoiser: learned or exact.
        x: data (B, *event), float32 or float64.
        draws: even, 2 or more.
        levels: of pictures, on 2 v / (levels - 1) - 1: the bound is then on log P, and needs no dequantisation.
        cond: as in `sample`.
        seed, index: key of the draws; index (B,), default 0..B-1.
        batch_size: samples at once; default all.
        progress: called with the number of samples done after each batch.

    Raises:
        ConfigError: an odd number of draws, or values that are not on the levels.
    """
    if draws < 2 or draws % 2:
        raise ConfigError(f"draws: given {draws}, must be even, 2 or more (two for each piece of lam's range)")
    process, (noisy, clean) = denoiser.process, denoiser.lam_range
    ends = (max(noisy, float(process.lam(process.t_max))), min(clean, float(process.lam(process.t_min))))
    T = process.T if ends[0] <= float(process.lam(process.T)) else float(process.time(ends[0]))
    index = torch.arange(len(x)) if index is None else index.cpu()
    cond, diffusions, spreads = repeat_cond(cond, len(x)), [], []
    for rows in parts(len(x), batch_size):
        part = x[rows].to(device_of(denoiser), torch.promote_types(x.dtype, torch.float32))
        errors = _errors(denoiser, part, ends, draws, take_cond(cond, rows), seed, index[rows].to(part.device))
        diffusions.append((ends[1] - ends[0]) * errors.mean((0, 1)))
        spreads.append((ends[1] - ends[0]) * errors.diff(dim=1).norm(dim=(0, 1)) / draws)
        if progress is not None:
            progress(len(rows))
    diffusion = torch.cat(diffusions).to(x.device)
    prior = process.kl_to_prior(x.double().flatten(1), 0.0, T).sum(1)
    reconstruction = _reconstruction(x, math.exp(-ends[1]), levels)
    return Bound(-(prior + diffusion + reconstruction), torch.cat(spreads).to(x.device), prior, diffusion, reconstruction)


@torch.no_grad()
def _errors(
    denoiser: Denoiser, x: Tensor, ends: tuple[float, float], draws: int, cond: Any, seed: int, index: Tensor
) -> Tensor:
    """|eps - eps_hat|^2 of two draws in each piece, (draws / 2, 2, B)."""
    found = []
    for k in range(draws):
        eps = noise.normal(seed, index, x.shape[1:], draw=2 * k, domain="probe", dtype=x.dtype)
        u = noise.uniform(seed, index, (), draw=2 * k + 1, domain="probe", dtype=torch.float64)
        lam = ends[0] + (ends[1] - ends[0]) * (k // 2 + u) / (draws // 2)
        t = denoiser.process.time(lam)
        error = eps - denoiser(denoiser.process.perturb(x, t, eps), t, cond).noise
        found.append(error.double().flatten(1).square().sum(1))
    return torch.stack(found).unflatten(0, (-1, 2))


def _reconstruction(x: Tensor, rho: float, levels: int | None) -> Tensor:
    """Eq. (4), or (5) by the trapezoidal rule, which is spectrally exact here; (B,)."""
    d = math.prod(x.shape[1:])
    if levels is None:
        return torch.full((len(x),), d * (0.5 * math.log(2.0 * math.pi * math.e) + math.log(rho))).double().to(x.device)
    on_levels(x, levels)
    w = 0.5 * width(levels) / rho
    e = torch.linspace(-9.0, 9.0, 4001, dtype=torch.float64)
    weights = (-0.5 * e**2).exp()
    weights = weights / weights.sum()
    ndtr, tail = torch.special.ndtr, -e.abs()  # on the left, where differences keep their digits
    inside = -(weights * (ndtr(tail + w) - ndtr(tail - w)).log()).sum()
    outside = -(weights * torch.special.log_ndtr(w - e)).sum()
    edges = (x.flatten(1).abs() > 1.0 - 0.5 * width(levels)).sum(1).double()
    return edges * outside.to(x.device) + (d - edges) * inside.to(x.device)
