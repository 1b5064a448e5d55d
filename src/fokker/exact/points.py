r"""A data set as a mixture of N equal point masses, in memory that does not grow with N times B.

The logits -|x - alpha x_n|^2 / (2 sigma^2) = -(alpha / sigma)^2 / 2 |y - x_n|^2, y = x / alpha, go through a streaming
log-sum-exp over blocks of data, always in float64. A float32 state has |y - x_n|^2 from a float64 matrix product (its
cancellation stays below what float32 can say of x); a float64 state has it summed over differences, ten times slower.

    (1)  score = -(x - alpha m) / sigma^2,   m = E[x_0 | x] = sum_n r_n x_n,   E[eps | x] = (x - alpha m) / sigma
    (2)  Hess log p = (alpha / sigma^2)^2 Cov[x_0 | x] - I / sigma^2

At sigma = 0 the weight is on the nearest point and the noise is 0; at alpha = 0 the weights are equal.
Source: book Sec. 4.1.6 with vanishing component variances (the empirical score).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .. import noise
from ..component import untransformed
from ..errors import ConfigError
from ..noise import Seed
from .families import lift
from .rows import product

__all__ = ["Points", "PointsChannel"]

BLOCK = 2**20
Values = Callable[[int, Tensor, Tensor, Tensor | None], Tensor]


def _tracked(x: Tensor) -> bool:
    return (x.requires_grad and torch.is_grad_enabled()) or torch._C._functorch.is_functorch_wrapped_tensor(x)


class Points:
    """The data (N, d) as it is stored, on one device; blocks are cast to the dtype of x as they are met."""

    def __init__(self, data: Tensor, labels: Tensor | None, dtype: torch.dtype) -> None:
        self.data, self.labels, self.dtype = data, labels, dtype
        self.dim: int = data.shape[1]
        self.n_classes = 0 if labels is None else int(labels.max()) + 1
        self.block = max(64, min(4096, 2 ** int(math.log2(max(1, BLOCK // self.dim)))))
        if labels is not None:
            self.log_counts = torch.cat([labels.bincount(), labels.new_tensor([len(data)])]).to(dtype).log()
        parts = [data[start : start + self.block].double() for start in range(0, len(data), self.block)]
        self.centre = torch.stack([part.sum(0) for part in parts]).sum(0) / len(data)
        self.sizes = torch.cat([(part - self.centre).square().sum(-1) for part in parts])
        self._casts: dict[tuple[torch.device, torch.dtype], Points] = {}

    def to(self, device: torch.device, dtype: torch.dtype) -> Points:
        key = (device, dtype)
        if key == (self.data.device, self.dtype):
            return self
        if key not in self._casts:
            with untransformed():
                labels = None if self.labels is None else self.labels.to(device)
                self._casts[key] = Points(self.data.to(device), labels, dtype)
        return self._casts[key]

    def channel(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Tensor | None = None) -> PointsChannel:
        return PointsChannel(self, x, alpha, sigma, cond)

    def rows(self, x: Tensor) -> int:
        return 32 if _tracked(x) else 1024

    def blocks(self) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        for number, start in enumerate(range(0, len(self.data), self.block)):
            part = slice(start, start + self.block)
            yield number, self.data[part].to(self.dtype), None if self.labels is None else self.labels[part]

    def squares(self, y: Tensor, number: int, block: Tensor) -> Tensor:
        """|y_b - x_n|^2 for float64 y (B, d) and block `number`, (B, n)."""
        if self.dtype != torch.float64:
            y = y - self.centre
            sizes = self.sizes[number * self.block :][: len(block)]
            dots = product(y, (block.double() - self.centre).mT)
            return (y.square().sum(-1, keepdim=True) + sizes - 2.0 * dots).clamp(min=0.0)
        if _tracked(y):
            return (y[:, None, :] - block).square().sum(-1)
        # cdist sums each pair by itself and without (B, n, d) in memory, but it cannot be differentiated twice.
        return torch.cdist(y, block, compute_mode="donot_use_mm_for_euclid_dist").square()

    def _choice(self, seed: Seed, index: Tensor) -> Tensor:
        u = noise.uniform(seed, index, (1,), draw=0, domain="data", dtype=torch.float64)[:, 0]
        return (u * len(self.data)).long().clamp(max=len(self.data) - 1)

    def draw(self, seed: Seed, index: Tensor) -> Tensor:
        return self.data[self._choice(seed, index)].to(self.dtype)

    def draw_class(self, seed: Seed, index: Tensor) -> Tensor:
        assert self.labels is not None
        return self.labels[self._choice(seed, index)]

    def moments(self) -> tuple[Tensor, Tensor]:
        exact = self.to(torch.device("cpu"), torch.float64)
        n = len(self.data)
        mean = exact.centre
        cov = torch.zeros(self.dim, self.dim, dtype=torch.float64)
        for _, block, _ in exact.blocks():
            away = block - mean
            cov += away.mT @ away
        return mean, cov / n


class PointsChannel:
    """Eqs. (1) and (2) for a batch x (B, d): one pass over the data, made when first needed."""

    def __init__(self, core: Points, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Tensor | None = None) -> None:
        self.core, self.x, self.cond = core, x, cond
        tiny, least = (1e-200, 1e-100) if x.dtype == torch.float64 else (1e-26, 1e-15)
        # x / alpha at the least alpha is so far away that all points are alike, which is the limit alpha = 0.
        safe = alpha.clamp(min=least)
        self.alpha, self.sigma = lift(alpha, x, 1), lift(sigma, x, 1)
        variance = sigma**2
        self.c = lift(variance.clamp(min=tiny), x, 1)
        self.noise_gain = lift(sigma / variance.clamp(min=tiny), x, 1)
        self.y = x.double() / lift(safe, x, 1, torch.float64)
        self.rate = lift(-0.5 * safe**2 / variance.clamp(min=tiny), x, 1, torch.float64)
        self.far = torch.finfo(torch.float64).min
        self._pass: tuple[Tensor, Tensor] | None = None

    def _logits(self) -> Iterator[tuple[int, Tensor, Tensor, Tensor | None]]:
        for number, block, labels in self.core.blocks():
            logits = (self.rate * self.core.squares(self.y, number, block)).clamp(min=0.5 * self.far)
            if self.cond is not None and labels is not None:
                out = (self.cond[:, None] >= 0) & (labels != self.cond[:, None])
                logits = logits.masked_fill(out, -math.inf)
            yield number, logits, block, labels

    def _sweep(self, values: Values) -> tuple[Tensor, Tensor]:
        """log sum of e^logit, and the weighted mean of values; values(number, e, block, labels) sums over a block."""
        top = self.y.new_full((len(self.x), 1), self.far)
        total = torch.zeros_like(top)
        sums = self.x.new_zeros(len(self.x), 1)
        for number, logits, block, labels in self._logits():
            higher = torch.maximum(top, logits.amax(-1, keepdim=True))
            e, fade = (logits - higher).exp(), (top - higher).exp()
            total, top = total * fade + e.sum(-1, keepdim=True), higher
            sums = sums * fade.to(sums.dtype) + values(number, e.to(sums.dtype), block, labels)
        return top + total.log(), sums / total.to(sums.dtype)

    def _once(self) -> tuple[Tensor, Tensor]:
        if self._pass is None:
            self._pass = self._sweep(lambda number, e, block, labels: product(e, block))
        return self._pass

    def log_prob(self) -> Tensor:
        log_total, _ = self._once()
        count: Tensor | float = math.log(len(self.core.data))
        if self.cond is not None:
            count = self.core.log_counts[torch.where(self.cond < 0, self.core.n_classes, self.cond)]
        constant = 0.5 * self.core.dim * (2.0 * math.pi * self.c).log()
        return (log_total - constant).flatten().to(self.x.dtype) - count

    def x0(self) -> Tensor:
        return self._once()[1]

    def _rest(self) -> Tensor:
        return self.x - self.alpha * self.x0()

    def score(self) -> Tensor:
        return -self._rest() / self.c

    def noise(self) -> Tensor:
        return self.noise_gain * self._rest()

    def _spread(self) -> Tensor:
        """E |x_0 - m|^2 given x, (B, 1): a second pass, because a difference of moments would cancel."""
        mean = self.x0().double()

        def values(number: int, e: Tensor, block: Tensor, _: Tensor | None) -> Tensor:
            return (e * self.core.squares(mean, number, block).to(e.dtype)).sum(-1, keepdim=True)

        return self._sweep(values)[1]

    def laplacian(self) -> Tensor:
        return ((self.alpha / self.c) ** 2 * self._spread() - self.core.dim / self.c).flatten()

    def x0_cov(self) -> Tensor:
        mean, d = self.x0(), self.core.dim

        def values(_: int, e: Tensor, block: Tensor, labels: Tensor | None) -> Tensor:
            away = [block - m for m in mean]
            return torch.stack([(weight[:, None] * a).mT @ a for weight, a in zip(e, away, strict=True)]).flatten(1)

        return self._sweep(values)[1].reshape(-1, d, d)

    def hessian(self) -> Tensor:
        eye = torch.eye(self.core.dim, dtype=self.x.dtype, device=self.x.device)
        alpha, c = (a if a.ndim == 0 else a[..., None] for a in (self.alpha, self.c))
        return (alpha / c) ** 2 * self.x0_cov() - eye / c

    def classes(self) -> Tensor:
        if not self.core.n_classes:
            raise ConfigError("classify: this data set has no labels: give `labels`, one class per point")
        numbers = torch.arange(self.core.n_classes, device=self.x.device)

        def values(_: int, e: Tensor, block: Tensor, labels: Tensor | None) -> Tensor:
            return torch.stack([(e * (labels == c)).sum(-1) for c in numbers], dim=1)

        return self._sweep(values)[1]

    def pick(self, seed: Seed, index: Tensor, draw: int) -> Tensor:
        """A point drawn by its weight: the largest of logit + Gumbel noise, block by block."""
        best = self.x.new_full((len(self.x), 1), self.far, dtype=torch.float64)
        found = torch.zeros_like(self.x)
        for number, logits, block, _ in self._logits():
            at = (draw << 12 | number & 0xFFF) & 0xFFFFFFFF
            u = noise.uniform(seed, index, (len(block),), draw=at, domain="posterior", dtype=torch.float64)
            value, where = (logits - (-u.log()).log()).max(-1, keepdim=True)
            better = value > best
            best, found = torch.where(better, value, best), torch.where(better, block[where[:, 0]], found)
        return found
