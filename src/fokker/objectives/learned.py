r"""What an objective learns or accumulates: the modules that stand beside the frozen `Weight` and `TimeLaw`.

A learned weight is EDM2's uncertainty u(t): minimising w err / e^u + u over u gives e^u = E[w err | t].

A learned law of times bends a base law. With v uniform on (0, 1) and t = base.quantile(v), the loss is int f(v) dv for
f = w err (for density="replace": w err / p_base), whatever density q(v) it is drawn from, if it is estimated by f / q:

    (1)  E_q[f / q] = int E[f | v] dv                          the same for every q
    (2)  E_q[(f / q)^2] = int E[f^2 | v] / q dv                smallest for q proportional to sqrt(E[f^2 | v])

q is constant on equal bins of v. `AdaptiveLaw` sets it from running sums, `LearnedLaw` descends on (2). In time the law
is p(t) = p_base(t) q(v(t)); its distribution function is a noise schedule, and (1) is VDM's invariance: in continuous
time a schedule changes nothing but the variance (Kingma et al. 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import noise as philox
from ..process import Process

__all__ = ["AdaptiveLaw", "LearnedLaw", "LogVariance", "StepLaw", "surrogate"]


class LogVariance(nn.Module):
    """u(t) = a . sqrt(2) cos(2 pi (w c + phi)) + b with c = log(sigma / alpha) / 4: EDM2's one-layer network.

    a and b start at 0, so that a new one changes no loss. w is standard normal and phi uniform on (0, 1), always the
    same ones (Karras et al. 2024, EDM2's loss weighting; its layer of unit norm without b is here a plain one with b).

    Args:
        process: whose log(sigma / alpha) is read; infinite ends are clamped to those of [t_min, t_max].
        features: number of cosines.

    Called with t (B,); returns u (B,), float32 or the dtype of the weights if wider.
    """

    frequency: Tensor
    phase: Tensor

    def __init__(self, process: Process, features: int) -> None:
        super().__init__()
        self.process = process
        self.bounds = (float(process.lam(process.t_max)), float(process.lam(process.t_min)))
        one = torch.zeros(1, dtype=torch.int64)
        frequency = philox.normal(0, one, (features,), draw=0, domain="probe")[0]
        phase = philox.uniform(0, one, (features,), draw=1, domain="probe")[0]
        self.register_buffer("frequency", frequency, persistent=False)
        self.register_buffer("phase", phase, persistent=False)
        self.weight = nn.Parameter(torch.zeros(features))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, t: Tensor) -> Tensor:
        """t (B,) -> u (B,)."""
        c = (-0.25 * self.process.lam(t).clamp(*self.bounds)).to(self.weight.dtype)
        waves = (2.0 * math.pi * (c[:, None] * self.frequency + self.phase)).cos()
        # A sum of products, not a matrix product, which autocast would round to bfloat16.
        return math.sqrt(2.0) * (waves * self.weight).sum(1) + self.bias


class StepLaw(nn.Module):
    """A law of v on (0, 1) whose density is constant on equal bins: the base of the two laws that bend another.

    Args:
        bins: their number.
        share: of the base law (density 1) in the mixture, so that q >= share and no f / q exceeds f / share.
    """

    def __init__(self, bins: int, share: float) -> None:
        super().__init__()
        self.bins, self.share = bins, share

    def heights(self) -> Tensor:
        """q on every bin (bins,), of mean 1; float64."""
        raise NotImplementedError

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(v, q(v)) of uniform numbers u (B,): v is below its share u of the law. Only q has a gradient."""
        q = self.heights()
        mass = q.detach() / self.bins
        above = mass.cumsum(0)
        k = torch.searchsorted(above, u.double()).clamp(max=self.bins - 1)
        v = (k + 1 - (above[k] - u.double()) / mass[k]) / self.bins
        return v.clamp(0.0, 1.0), q[k]

    def bin(self, v: Tensor) -> Tensor:
        """The bin of v (B,)."""
        return (v * self.bins).long().clamp(max=self.bins - 1)


class AdaptiveLaw(StepLaw):
    """q = share + (1 - share) r / mean(r), r = sqrt of the running mean of f^2 in each bin, renewed now and then.

    All state is in buffers: the sums since they were last gathered (this process's own), the running sums over all
    processes, and q. What is gathered is multiplied by `memory` at every renewal, as the model changes.

    Args:
        bins, share: as in `StepLaw`; share > 0.
        refresh: steps between renewals.
        memory: what remains of the older sums, in [0, 1).
    """

    sums: Tensor
    running: Tensor
    q: Tensor

    def __init__(self, bins: int, share: float, refresh: int, memory: float) -> None:
        super().__init__(bins, share)
        self.every, self.memory = refresh, memory
        self.register_buffer("sums", torch.zeros(bins, 2, dtype=torch.float64))  # counts, and sums of f^2
        self.register_buffer("running", torch.zeros(bins, 2, dtype=torch.float64))
        self.register_buffer("q", torch.ones(bins, dtype=torch.float64))

    def heights(self) -> Tensor:
        return self.q

    @torch.no_grad()
    def observe(self, v: Tensor, f: Tensor) -> None:
        """Take in f (B,), the integrand of (1) at v (B,). Values that are not finite are left out."""
        f2 = f.double().square()
        inside = (self.bin(v) == torch.arange(self.bins, device=v.device)[:, None]) & f2.isfinite()
        # A matrix product, not a scatter: on a GPU scattered sums depend on the order of arrival.
        self.sums += inside.double() @ torch.stack([torch.ones_like(f2), f2.nan_to_num(0.0, 0.0, 0.0)], 1)

    @torch.no_grad()
    def gather(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Move the sums of all processes into the running ones, the same everywhere; `reduce` sums over processes."""
        self.running += reduce(self.sums.clone())
        self.sums.zero_()

    @torch.no_grad()
    def refresh(self, step: int, reduce: Callable[[Tensor], Tensor]) -> None:
        """Renew q after 0-based step `step`, if it is its turn; a bin never drawn takes the overall mean."""
        if (step + 1) % self.every:
            return
        self.gather(reduce)
        count, total = self.running.unbind(1)
        overall = total.sum() / count.sum().clamp(min=1.0)
        root = torch.where(count > 0, total / count.clamp(min=1e-300), overall).sqrt()
        mean = root.mean()
        self.q.copy_(self.share + (1.0 - self.share) * torch.where(mean > 0, root / mean, 1.0))
        self.running *= self.memory


class LearnedLaw(StepLaw):
    """q = share + (1 - share) bins softmax(logits): trained with the network, by the gradient of the variance (2).

    The gradient of (2) is E_q[-(f / q)^2 grad log q], which `surrogate` has.

    Args:
        bins, share: as in `StepLaw`.
    """

    def __init__(self, bins: int, share: float) -> None:
        super().__init__(bins, share)
        self.logits = nn.Parameter(torch.zeros(bins))

    def heights(self) -> Tensor:
        return self.share + (1.0 - self.share) * self.bins * torch.softmax(self.logits.double(), 0)


def surrogate(f: Tensor, q: Tensor) -> Tensor:
    """0 with the gradient of (f / q)^2's mean under q: -(f / q)^2 log q less its own value; f and q = q(v) are (B,)."""
    value = -(f.detach() / q.detach()).square() * q.log()
    return value - value.detach()
