r"""The variational bound of a DDPM chain in discrete time, and the reverse variances that make it best.

With levels n = 1..L, q(x_{n-1} | x_n, x_0) = N(a x_n + b x_0, c^2 I) and the chain p(x_{n-1} | x_n) = N(a x_n +
b x0_hat, r^2 I), which is what `Ancestral(variance)` draws from,

    (1)  log p(x_0) >= -(prior + reconstruction + diffusion)
    (2)  prior          = KL(q(x_L | x_0) || N(0, I))
    (3)  reconstruction = E[-log p(x_0 | x_1)],   p(x_0 | x_1) = N(x0_hat, r_1^2 I), rounded for pictures
    (4)  diffusion      = sum_{n=2}^L E KL_n
    (5)  KL_n           = b^2 |x_0 - x0_hat|^2 / (2 r^2) + d/2 (c^2/r^2 - 1 - log c^2/r^2)

The sum starts at 2: at n = 1 c is 0 and KL_n infinite, and (3) has that step already (book erratum E7). For r = c
("posterior") b^2 / c^2 = SNR_{n-1} - SNR_n, and (4) is an upper sum of the integral in `elbo`, near it where levels are
near in lam. Ho's are not at the data: 1/2 gamma = 0.29 nats per dimension stay for any L. There r_1 is c of level 2.

Per level, the best r^2 that is the same for every x_n is

    (6)  r^2 = c^2 + b^2 v,    v = E|x_0 - x0_hat|^2 / d = sigma^2/alpha^2 (1 - E|eps_hat|^2 / d),

the second form (Bao et al. 2022, Analytic-DPM) for an exact denoiser only; the first for any mean (Bao et al. 2022b).

(4) is, over lam, the integral of a step function KL_n / (lam_{n-1} - lam_n), which hardly varies: it is
estimated as in `elbo`, at two points in each of M equal pieces (or twice at every level), less KL_n of the denoiser of
N(0, |x|^2/d I), of known mean.

Sources: book Thm 2.2.3, Eq. 2.2.13 with errata E6-E8; Ho et al. 2020, Eq. 5 and 13; Nichol & Dhariwal 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .. import noise
from ..component import Array
from ..denoiser import repeat_cond, take_cond, to_process
from ..errors import ConfigError
from ..prediction import Denoiser, Prediction, learned_std
from ..process import DiscreteVP, expand
from ..sampling import device_of
from ..solvers.ancestral import optimal_std, reverse_variance
from .bound import Bound, differences
from .flow import parts
from .pixels import on_levels, rounded_log_prob

__all__ = ["Chain", "ChainBound", "ddpm_bound", "optimal_variance"]

LOG_2PI = math.log(2.0 * math.pi)


@dataclass(frozen=True)
class ChainBound(Bound):
    """What `ddpm_bound` gives, in nats, float64: a `Bound` whose standard error is of diffusion and reconstruction.

    Attributes:
        per_level: KL_n of Eq. (5), (L - 1, B), n = 2..L, where every level was asked (draws=None); else None.
    """

    per_level: Tensor | None


class Chain:
    """The model chain of a denoiser on the levels it supports: `first` is decoded, from `last` on is the prior.

    Args:
        denoiser: of a DiscreteVP.
        variance: of its reverse steps, as in `Ancestral`.

    Attributes:
        n: the levels first..last; on_x0, low, std: b, c and r of Eq. (5) there, for "learned" r where v = 0.
    """

    def __init__(self, denoiser: Denoiser, variance: str | Array | Tensor = "posterior") -> None:
        process = denoiser.process
        if not isinstance(process, DiscreteVP):
            raise ConfigError(
                f"process: given a denoiser of {process}, must be a chain: pass process=DiscreteVP(steps=1000), "
                "in which it is seen"
            )
        self.denoiser, self.process, self.variance = denoiser, process, reverse_variance(variance)
        n = torch.arange(1, process.steps + 1, dtype=torch.float64)
        lam, (noisy, clean) = process.lam(n / process.steps), denoiser.lam_range
        slack = torch.where(lam.isinf(), 0.0, 1e-9 * (1.0 + lam.abs()))
        self.n = n[(lam >= noisy - slack) & (lam <= clean + slack)]
        if len(self.n) < 2:
            raise ConfigError(
                f"process: {process} has {len(self.n)} levels in the denoiser's range of lam, must be >= 2"
            )
        self.first, self.last = int(self.n[0]), int(self.n[-1])
        self.n = self.n.to(device_of(denoiser))
        self.lam = process.lam(self.n / process.steps)
        self.on_x0, self.low, self.high = process.reverse(self.n, self.first)
        if isinstance(self.variance, Array):
            c = torch.where(self.n == self.first, 0.0, self.low)
            self.std = optimal_std(self.variance, self.lam, self.on_x0, c)
        else:
            fixed = {"posterior": self.low, "forward": self.high}
            self.std = fixed.get(self.variance, (self.low * self.high).sqrt())

    def predict(self, x: Tensor, k: Tensor, eps: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        """(x_0 - x0_hat, r) at levels n[k], k (B,), of clean x (B, *event) and noise; r ready to broadcast; float64."""
        s = self.n[k] / self.process.steps
        p = self.denoiser(self.process.perturb(x, s, eps), s, cond)
        return (x - p.x0).double(), self._std(p, k, x)

    def _std(self, p: Prediction, k: Tensor, x: Tensor) -> Tensor:
        def at(table: Tensor) -> Tensor:
            return expand(table[k], x.double())

        if self.variance != "learned":
            return at(self.std)
        if p.variance is None:
            raise ConfigError("variance='learned' needs a denoiser with learned_variance=True")
        return learned_std(p.variance.double(), at(self.low), at(self.high))

    def kl(self, k: Tensor, missed: Tensor, std: Tensor) -> Tensor:
        """KL_n of Eq. (5), (B,), from what `predict` gives; k > 0."""
        b, c = (expand(table[k], missed) for table in (self.on_x0, self.low))
        ratio = (c / std) ** 2
        return 0.5 * ((b * missed / std) ** 2 + ratio - 1.0 - ratio.log()).flatten(1).sum(1)

    def decode(self, x: Tensor, missed: Tensor, std: Tensor, levels: int | None) -> Tensor:
        """-log p(x_0 | x_first) of Eq. (3), (B,)."""
        if levels is None:
            nats = 0.5 * ((missed / std) ** 2 + LOG_2PI + 2.0 * std.log())
        else:
            nats = -rounded_log_prob(x.double(), x - missed, std, levels)
        return nats.flatten(1).sum(1)

    def clock(self) -> Tensor:
        """-lam at the levels, increasing and finite (a level without any signal is as far off as the one before)."""
        y = -self.lam
        return torch.where(torch.isinf(y), 2.0 * y.roll(1) - y.roll(2), y)


@torch.no_grad()
def ddpm_bound(
    denoiser: Denoiser,
    x: Tensor,
    *,
    process: DiscreteVP | None = None,
    variance: str | Array | Tensor = "posterior",
    levels: int | None = None,
    draws: int | None = 64,
    cond: Any = None,
    seed: int = 0,
    index: Tensor | None = None,
    batch_size: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> ChainBound:
    """The bound of a DDPM chain on log p(x), Eq. (1), unbiased.

    Args:
        denoiser: learned or exact; of any process, if `process` says in which chain to see it.
        x: data (B, *event), float32 or float64.
        process: the chain; default the denoiser's own. Levels the denoiser does not support are left out at both ends.
        variance: r^2: "posterior" (beta-tilde), "forward" (beta), "learned", or a table by `optimal_variance`.
        levels: of pictures, on 2 v / (levels - 1) - 1: the decoder is then rounded, and the bound on log P.
        draws: evaluations of the diffusion term per sample, even, 2 or more; None: every level twice. Two more are for
            the reconstruction.
        cond: as in `sample`.
        seed, index: key of the draws; index (B,), default 0..B-1.
        batch_size: samples at once; default all.
        progress: called with the number of samples done after each batch.

    Raises:
        ConfigError: no chain, an odd number of draws, a variance that is none, or values that are not on the levels.
    """
    if draws is not None and (draws < 2 or draws % 2):
        raise ConfigError(f"draws: given {draws}, must be even, 2 or more, or None for every level twice")
    if levels is not None:
        on_levels(x, levels)
    chain = Chain(denoiser if process is None else to_process(denoiser, process), variance)
    index = torch.arange(len(x)) if index is None else index.cpu()
    cond, pieces, each = repeat_cond(cond, len(x)), [], []
    for rows in parts(len(x), batch_size):
        part = x[rows].to(device_of(denoiser), torch.promote_types(x.dtype, torch.float32))
        keys = (take_cond(cond, rows), seed, index[rows].to(part.device))
        kl, error = _diffusion(chain, part, draws, *keys)
        costs = _reconstruction(chain, part, levels, *keys)
        pieces.append((kl.sum(0), costs.mean(0), error.square().sum(0).add(costs.diff(dim=0)[0].square() / 4.0).sqrt()))
        each.append(kl)
        if progress is not None:
            progress(len(rows))
    diffusion, reconstruction, stderr = (torch.cat(column).to(x.device) for column in zip(*pieces, strict=True))
    prior = chain.process.kl_to_prior(x.double().flatten(1), 0.0, chain.last / chain.process.steps).sum(1)
    value = -(prior + diffusion + reconstruction)
    per_level = torch.cat(each, dim=1).to(x.device) if draws is None else None
    return ChainBound(value, stderr, prior, diffusion, reconstruction, per_level)


def _diffusion(
    chain: Chain, x: Tensor, draws: int | None, cond: Any, seed: int, index: Tensor
) -> tuple[Tensor, Tensor]:
    """Estimates (M, B) of the parts of Eq. (4), and their standard errors."""
    edges = y = chain.clock()
    if draws is not None:
        edges = torch.linspace(float(y[0]), float(y[-1]), draws // 2 + 1, dtype=y.dtype, device=y.device)
    width, events = edges.diff(), math.prod(x.shape[1:])
    v = x.double().flatten(1).square().mean(1)
    t = chain.n / chain.process.steps
    alpha, sigma = chain.process.alpha(t), chain.process.sigma(t)
    on_x0, low, std = chain.on_x0, chain.low, chain.std
    # The mean over the noise of KL_n of the denoiser of N(0, v I), where E|x_0 - x0_hat|^2 = d spread.
    ratio = ((low / std) ** 2)[:, None]
    spread = v * sigma[:, None] ** 2 / (alpha[:, None] ** 2 * v + sigma[:, None] ** 2)
    mean = 0.5 * events * ((on_x0 / std)[:, None] ** 2 * spread + ratio - 1.0 - ratio.log())
    mean = mean[1:] if draws is None else _between(y, mean, edges)
    values, variates = [], []
    for piece in range(len(width)):
        for half in range(2):
            draw = 2 * (2 * piece + half + 1)
            eps = noise.normal(seed, index, x.shape[1:], draw=draw, domain="probe", dtype=x.dtype)
            if draws is None:
                k = torch.full((len(x),), piece + 1, device=x.device)
            else:
                u = noise.uniform(seed, index, (), draw=draw + 1, domain="probe", dtype=torch.float64)
                k = torch.searchsorted(y[1:-1], edges[piece] + width[piece] * u, right=True) + 1
            share = width[piece] / (y[k] - y[k - 1])
            values.append(share * chain.kl(k, *chain.predict(x, k, eps, cond)))
            pull, a, s = ((alpha * sigma)[k] * v, alpha[k], sigma[k])
            missed = (expand(s**2, x) * x - expand(pull, x) * eps) / expand(a**2 * v + s**2, x)
            variates.append(share * chain.kl(k, missed.double(), expand(std[k], x.double())))
    e, c = (torch.stack(found).reshape(len(width), 2, -1) for found in (values, variates))
    return differences(e, c, mean)


def _between(y: Tensor, costs: Tensor, edges: Tensor) -> Tensor:
    """What the step function with integral costs[k] (L, B) over (y[k-1], y[k]) has between the edges: (M, B)."""
    total = torch.cat([torch.zeros_like(costs[:1]), costs[1:].cumsum(0)])
    k = torch.searchsorted(y[1:-1], edges) + 1
    share = ((edges - y[k - 1]) / (y[k] - y[k - 1]))[:, None]
    return torch.lerp(total[k - 1], total[k], share).diff(dim=0)


def _reconstruction(chain: Chain, x: Tensor, levels: int | None, cond: Any, seed: int, index: Tensor) -> Tensor:
    """Two estimates of Eq. (3), (2, B)."""
    k, found = torch.zeros(len(x), dtype=torch.int64, device=x.device), []
    for draw in range(2):
        eps = noise.normal(seed, index, x.shape[1:], draw=draw, domain="probe", dtype=x.dtype)
        found.append(chain.decode(x, *chain.predict(x, k, eps, cond), levels))
    return torch.stack(found)


@torch.no_grad()
def optimal_variance(
    denoiser: Denoiser,
    x: Tensor,
    *,
    times: Tensor | None = None,
    by: Literal["error", "score"] = "error",
    cond: Any = None,
    seed: int = 0,
    index: Tensor | None = None,
    batch_size: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Array:
    """The table of v, Eq. (6), for `ddpm_bound` and `Ancestral(variance=...)`: rows lam, increasing, and v.

    A table holds for every process and grid. Give data the network was trained on, not those it is judged by.

    Args:
        denoiser: learned or exact.
        x: data (B, *event); all are noised anew at every time.
        times: of the table, (K,), 2 or more; default 128 evenly spaced in lam over what the denoiser supports.
        by: "error", from |x_0 - x0_hat|^2, best for the denoiser as it is; "score", from |eps|^2 - |eps_hat|^2,
            Analytic-DPM, at most the data's own variance.
        cond, seed, index, batch_size, progress: as in `ddpm_bound`; progress counts samples.

    Raises:
        ConfigError: fewer than 2 times, or `by` is neither.
    """
    if by not in ("error", "score"):
        raise ConfigError(f"by: given {by!r}, must be 'error' or 'score'")
    process, (noisy, clean) = denoiser.process, denoiser.lam_range
    if times is None:
        low, high = max(noisy, float(process.lam(process.t_max))), min(clean, float(process.lam(process.t_min)))
        times = process.time(torch.linspace(high, low, 128, dtype=torch.float64))
    if times.ndim != 1 or len(times) < 2:
        raise ConfigError(f"times: given shape {tuple(times.shape)}, must be (K,) with 2 or more")
    times = times.double().sort(descending=True).values.cpu()
    index = torch.arange(len(x)) if index is None else index.cpu()
    cond, total = repeat_cond(cond, len(x)), torch.zeros(len(times), dtype=torch.float64)
    for rows in parts(len(x), batch_size):
        part = x[rows].to(device_of(denoiser), torch.promote_types(x.dtype, torch.float32))
        given, own = take_cond(cond, rows), index[rows].to(part.device)
        found = []
        for draw, t in enumerate(times.tolist()):
            eps = noise.normal(seed, own, x.shape[1:], draw=draw, domain="probe", dtype=part.dtype)
            p = denoiser(process.perturb(part, t, eps), t, given)
            if by == "error":
                found.append((part - p.x0).double().square().sum())
            else:
                found.append((eps.double().square() - p.noise.double().square()).sum())
        total += torch.stack(found).cpu()
        if progress is not None:
            progress(len(rows))
    v, lam = total / x.numel(), process.lam(times)
    if by == "score":
        most = float((x.double() - x.double().mean(0)).square().mean())
        v = ((-2.0 * lam).exp() * v.clamp(min=1e-9)).clamp(max=most)
    return Array(torch.stack([lam, v]))
