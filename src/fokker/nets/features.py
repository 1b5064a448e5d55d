"""What a network is told besides x: the time, as sinusoids, and the condition, as an embedding with a null class."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..process import readable

__all__ = ["Condition", "Embedding", "TimeFeatures", "at_least", "zeroed"]

M = TypeVar("M", nn.Linear, nn.Conv2d)


def at_least(minimum: int, owner: str, **values: object) -> None:
    """Refuse arguments that are not integers >= minimum. Raises ConfigError naming the first."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise ConfigError(f"{owner}.{name}: given {value!r}, must be an integer >= {minimum}")


def zeroed(layer: M) -> M:
    """The layer with weight and bias 0: what it feeds starts as the identity (or the net as 0)."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class TimeFeatures(nn.Module):
    """Sinusoidal features of the time: [cos(1000 w_k time), sin(1000 w_k time)], w_k = 10000^(-2k/dim), k < dim/2.

    Computed in float32, or float64 where time is: 1000 time in bf16 would be wrong by whole radians.

    Args:
        dim: number of features, even, >= 2.

    Called with time (B,), of order one; returns (B, dim).

    Raises:
        ConfigError: dim is odd or < 2.
    Source: Vaswani et al. 2017, section 3.5; the factor 1000 is DDPM's number of steps (Ho et al. 2020).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        at_least(2, "TimeFeatures", dim=dim)
        if dim % 2:
            raise ConfigError(f"TimeFeatures.dim: given {dim}, must be even")
        self.dim = dim

    def forward(self, time: Tensor) -> Tensor:
        """time (B,) -> (B, dim)."""
        # Made here and not kept as a buffer: net.to(bfloat16) would round a buffer.
        time = time.to(torch.promote_types(time.dtype, torch.float32))
        k = torch.arange(self.dim // 2, dtype=time.dtype, device=time.device)
        angle = (1000.0 * time)[:, None] * torch.exp(k * (-2 * math.log(10000.0) / self.dim))
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class Condition(nn.Module):
    """Embedding of a label or of a vector, with a learned null (no condition) for classifier-free guidance.

    Labels (`classes`): int64 (B,) in 0..classes-1; a negative label is null. Vectors (`cond_dim`): (B, cond_dim); a
    row that contains NaN is null. `cond=None` makes every row null. With neither, the embedding is 0.

    Args:
        dim: size of the embedding.
        classes: number of labels, or 0.
        cond_dim: size of the vectors, or 0; not together with `classes`.

    Raises:
        ConfigError: both were given, or a condition came that the net was not built for.
    """

    def __init__(self, dim: int, classes: int = 0, cond_dim: int = 0) -> None:
        super().__init__()
        at_least(0, "net", classes=classes, cond_dim=cond_dim)
        if classes and cond_dim:
            raise ConfigError(
                f"given classes={classes} and cond_dim={cond_dim}: a net takes labels or vectors, not both"
            )
        self.dim, self.classes, self.cond_dim = dim, classes, cond_dim
        if classes:
            self.table = nn.Embedding(classes + 1, dim)  # the last row is the null class
        if cond_dim:
            self.linear = nn.Linear(cond_dim, dim)
            # In the embedding's space: a null among the vectors could coincide with a real one.
            self.null = nn.Parameter(torch.randn(dim))

    def forward(self, cond: Tensor | None, batch: int) -> Tensor | None:
        """cond (B,) or (B, cond_dim) or None -> (B, dim), or None where the net takes no condition."""
        if not self.classes and not self.cond_dim:
            if cond is not None:
                raise ConfigError("cond was given to a net built without: set its field classes=K or cond_dim=d")
            return None
        if self.classes:
            if cond is None:
                cond = torch.full((batch,), -1, device=self.table.weight.device)
            if cond.shape != (batch,) or cond.dtype != torch.int64:
                raise ConfigError(
                    f"cond: given {cond.dtype} of shape {tuple(cond.shape)}, must be int64 labels of shape ({batch},)"
                )
            if readable(cond) and bool((cond >= self.classes).any()):
                raise ConfigError(f"cond: given the label {int(cond.max())}; allowed: -1 (null) to {self.classes - 1}")
            labels: Tensor = self.table(torch.where(cond < 0, self.classes, cond))
            return labels
        if cond is None:
            return self.null.expand(batch, self.dim)
        if cond.shape != (batch, self.cond_dim) or not cond.is_floating_point():
            raise ConfigError(
                f"cond: given {cond.dtype} of shape {tuple(cond.shape)}, must be float of ({batch}, {self.cond_dim})"
            )
        missing = cond.isnan().any(dim=1, keepdim=True)
        # NaN goes before the layer, not after: 0 * NaN in its backward pass would be NaN.
        return torch.where(missing, self.null, self.linear(torch.where(missing, 0.0, cond).to(self.null.dtype)))


class Embedding(nn.Module):
    """What every block of a net is modulated by: silu(W2 silu(W1 features(time) + b1) + b2 + condition).

    Args:
        features: number of sinusoidal features, even.
        dim: size of the embedding.
        classes, cond_dim: see `Condition`.

    Raises:
        ConfigError: see `TimeFeatures` and `Condition`; time is neither 0-dim nor (B,).
    """

    def __init__(self, features: int, dim: int, classes: int = 0, cond_dim: int = 0) -> None:
        super().__init__()
        self.features = TimeFeatures(features)
        self.inner, self.outer = nn.Linear(features, dim), nn.Linear(dim, dim)
        self.condition = Condition(dim, classes, cond_dim)

    def forward(self, time: Tensor, cond: Tensor | None, batch: int) -> Tensor:
        """time (B,) or 0-dim, cond as in `Condition` -> (B, dim)."""
        if time.shape not in ((), (batch,)):
            raise ConfigError(f"time: given shape {tuple(time.shape)}, must be 0-dim or ({batch},)")
        features = self.features(time.expand(batch)).to(self.inner.weight.dtype)
        embedding: Tensor = self.outer(nn.functional.silu(self.inner(features)))
        condition = self.condition(cond, batch)
        return nn.functional.silu(embedding if condition is None else embedding + condition)
