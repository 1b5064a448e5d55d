r"""The variational bound of a diffusion model in continuous time (VDM), term by term.

    (1)  log p(x) >= -(prior + diffusion + reconstruction)
    (2)  prior          = KL(p(x_T | x) || N(0, prior_std^2 I))
    (3)  diffusion      = 1/2 int E|x - x0_hat|^2 d SNR = int E|eps - eps_hat|^2 d lam,     SNR = e^{2 lam}
    (4)  reconstruction = E[-log p(x | x_s)],     p(x | x_s) = N(x_s / alpha, rho^2 I),     rho = sigma / alpha at s

over lam from T, the noisiest time supported (t_max where alpha(T) = 0), to s, the cleanest one (t_min). It bounds the
density of the reverse SDE, drawn from the prior at T, of which x | x_s is the last step. With the exact denoiser the
gap is the prior's mismatch and KL(p(x | x_s) || decoder), which vanishes with rho. (4) is known:
d (log(2 pi e) / 2 + log rho). For pictures the decoder is rounded to the levels (Ho et al. 2020), and the bound is one
on log-probabilities: with w = h / (2 rho) and h the levels' distance, per pixel

    (5)  E_e[-log(Phi(w - e) - Phi(-w - e))],     at the lowest and the highest level E_e[-log Phi(w - e)],

where s is the time of rho = 3/4 h if that is later than the cleanest one: at less noise a network that takes its data
for continuous would lose what it says of the rest of a level's cell, 0.7 nats per dimension at rho = h / 8; at 3/4 h
that is below 0.005.

(3) is estimated at two points in each of M equal pieces of lam, less a variate of known mean: the same error of the
denoiser of N(0, v I), v = |x|^2 / d,

    (6)  c = |eps - sigma x_t / (alpha^2 v + sigma^2)|^2,     int E c d lam = d/2 log(1 + v SNR)

times a factor in [0, 1] regressed on all other pieces, which keeps the estimate unbiased. It saves most of the noise
where the data is of full dimension.

Sources: Kingma et al. 2021 (VDM), Eq. 11-18; book Thm 2.2.3, Eq. 4.4.7, C.2.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import noise
from ..denoiser import repeat_cond, take_cond
from ..errors import ConfigError
from ..prediction import Denoiser, check_denoiser
from ..process import expand
from ..sampling import device_of
from .flow import parts
from .pixels import bits_per_dim, on_levels, rounded_log_prob, width

__all__ = ["Bound", "differences", "elbo"]


@dataclass(frozen=True)
class Bound:
    """What `elbo` gives, in nats, float64; all (B,).

    Attributes:
        value: the estimate of the bound, -(prior + diffusion + reconstruction); unbiased.
        stderr: its standard error, all of it the diffusion term's; rough for few draws.
        prior, diffusion, reconstruction: the costs, Eq. (2) to (5).
    """

    value: Tensor
    stderr: Tensor
    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor

    def bits(self, event: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(bits per dimension, their standard errors) for samples of shape `event`, of the bound in nats."""
        return bits_per_dim(self.value, event), -bits_per_dim(self.stderr, event)


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

    The standard error is that of the stratified estimate, from the differences of the pieces' two values.

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
    check_denoiser(denoiser)
    if draws < 2 or draws % 2:
        raise ConfigError(f"draws: given {draws}, must be even, 2 or more (two for each piece of lam's range)")
    process, (noisy, clean) = denoiser.process, denoiser.lam_range
    rho = math.exp(-min(clean, float(process.lam(process.t_min))))
    rho = rho if levels is None else max(rho, 0.75 * width(levels))
    ends = (max(noisy, float(process.lam(process.t_max))), -math.log(rho))
    T = process.T if ends[0] <= float(process.lam(process.T)) else float(process.time(ends[0]))
    index = torch.arange(len(x)) if index is None else index.cpu()
    cond, pieces = repeat_cond(cond, len(x)), []
    for rows in parts(len(x), batch_size):
        part = x[rows].to(device_of(denoiser), torch.promote_types(x.dtype, torch.float32))
        keys = (take_cond(cond, rows), seed, index[rows].to(part.device))
        pieces.append(_diffusion(denoiser, part, ends, draws, *keys))
        if progress is not None:
            progress(len(rows))
    diffusion, stderr = (torch.cat(column).to(x.device) for column in zip(*pieces, strict=True))
    prior = process.kl_to_prior(x.double().flatten(1), 0.0, T).sum(1)
    reconstruction = _reconstruction(x, rho, levels)
    return Bound(-(prior + diffusion + reconstruction), stderr, prior, diffusion, reconstruction)


@torch.no_grad()
def _diffusion(
    denoiser: Denoiser, x: Tensor, ends: tuple[float, float], draws: int, cond: Any, seed: int, index: Tensor
) -> tuple[Tensor, Tensor]:
    """Eq. (3) with its standard error, by (6)."""
    process, pieces = denoiser.process, draws // 2
    v = x.double().flatten(1).square().mean(1)
    errors, known = [], []
    for k in range(draws):
        eps = noise.normal(seed, index, x.shape[1:], draw=2 * k, domain="probe", dtype=x.dtype)
        u = noise.uniform(seed, index, (), draw=2 * k + 1, domain="probe", dtype=torch.float64)
        t = process.time(ends[0] + (ends[1] - ends[0]) * (k // 2 + u) / pieces)
        x_t, alpha, sigma = process.perturb(x, t, eps), process.alpha(t), process.sigma(t)
        missed = eps - denoiser(x_t, t, cond).noise
        errors.append(missed.double().flatten(1).square().sum(1))
        missed = eps - expand(sigma / (alpha**2 * v + sigma**2), x) * x_t
        known.append(missed.double().flatten(1).square().sum(1))
    e, c = (torch.stack(found).reshape(pieces, 2, -1) for found in (errors, known))
    edges = torch.linspace(*ends, pieces + 1, dtype=torch.float64, device=x.device)[:, None]
    share = (ends[1] - ends[0]) / pieces
    mean = 0.5 * x[0].numel() * torch.nn.functional.softplus(2.0 * edges + v.log()).diff(dim=0) / share
    estimate, error = differences(e, c, mean)
    return share * estimate.sum(0), share * error.norm(dim=0)


def differences(e: Tensor, c: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Means of two values each, less a variate of known mean times a factor of all other pieces; standard errors.

    Args:
        e, c: values and variates, (M, 2, B); mean: of c, (M, B).
    """
    de, dc = e.diff(dim=1)[:, 0], c.diff(dim=1)[:, 0]
    both, square = de * dc, dc.square()
    factor = ((both.sum(0) - both) / (square.sum(0) - square)).clamp(0.0, 1.0).nan_to_num(0.0)
    return e.mean(1) - factor * (c.mean(1) - mean), 0.5 * (de - factor * dc).abs()


def _reconstruction(x: Tensor, rho: float, levels: int | None) -> Tensor:
    """Eq. (4), or (5) by the trapezoidal rule, which is spectrally exact here; (B,)."""
    d = math.prod(x.shape[1:])
    if levels is None:
        nats = d * (0.5 * math.log(2.0 * math.pi * math.e) + math.log(rho))
        return torch.full((len(x),), nats, dtype=torch.float64, device=x.device)
    on_levels(x, levels)
    e = torch.linspace(-9.0, 9.0, 4001, dtype=torch.float64)
    weights = (-0.5 * e**2).exp()
    cells = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    logs = rounded_log_prob(cells, cells + rho * e, rho, levels)
    inside, outside = (-(weights * logs).sum(1) / weights.sum()).unbind()
    edges = (x.flatten(1).abs() > 1.0 - 0.5 * width(levels)).sum(1).double()
    return edges * float(outside) + (d - edges) * float(inside)
