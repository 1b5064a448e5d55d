"""What a network is told besides x: the time, as sinusoids, and the condition, with a learned null.

A condition is a label or a vector, which modulates every block, or a sequence, which cross-attention reads.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..process import readable

__all__ = ["Condition", "Context", "Embedding", "TimeFeatures", "at_least", "zeroed"]

M = TypeVar("M", bound=nn.Linear | nn.Conv1d | nn.Conv2d)


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
        _one_kind(classes=classes, cond_dim=cond_dim)
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
            _check_range(cond, self.classes, "label", "null")
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


class Context(nn.Module):
    """A sequence as cross-attention reads it: a learned start, then norm(E c_i + position_i) for i < L.

    Sequences are token numbers (`tokens`), int64 (B, L) in 0..tokens-1, where a negative number is padding; or vectors
    (`cond_dim`), float (B, L, cond_dim), where a vector that contains NaN is padding. L <= length. Padding is not
    seen; the start always is, so a row of nothing but padding, or `cond=None`, is the learned null.

    Args:
        dim: size of an embedded token.
        length: largest L, >= 1.
        tokens: size of the vocabulary, or 0.
        cond_dim: size of the vectors, or 0; just one of the two.

    Raises:
        ConfigError: both or neither were given, or a condition came that the net was not built for.
    """

    def __init__(self, dim: int, length: int, tokens: int = 0, cond_dim: int = 0) -> None:
        super().__init__()
        at_least(1, "net", cond_length=length)
        _one_kind(tokens=tokens, cond_dim=cond_dim)
        if not tokens and not cond_dim:
            raise ConfigError(f"cond_length: given {length} without tokens=V or cond_dim=d, what it is made of")
        self.length, self.tokens, self.cond_dim = length, tokens, cond_dim
        self.embed = nn.Embedding(tokens, dim) if tokens else nn.Linear(cond_dim, dim)
        self.position = nn.Parameter(0.02 * torch.randn(length, dim))
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)  # a linear layer follows
        self.null = nn.Parameter(torch.randn(dim))

    def forward(self, cond: Tensor | None, batch: int) -> tuple[Tensor, Tensor]:
        """cond (B, L) or (B, L, cond_dim) or None -> tokens (B, 1 + L, dim), and where they are, bool (B, 1 + L)."""
        null = self.null.expand(batch, 1, -1)
        here = torch.ones(batch, 1, dtype=torch.bool, device=null.device)
        if cond is None:
            return null, here
        shape = (batch, cond.shape[1] if cond.ndim > 1 else 0, *[self.cond_dim] * bool(self.cond_dim))
        fits = cond.dtype == torch.int64 if self.tokens else cond.is_floating_point()
        if cond.shape != shape or shape[1] > self.length or not fits:
            wanted = ("int64", "") if self.tokens else ("float", f", {self.cond_dim}")
            raise ConfigError(
                f"cond: given {cond.dtype} of shape {tuple(cond.shape)}, must be {wanted[0]} of "
                f"({batch}, L{wanted[1]}), L <= cond_length = {self.length}"
            )
        if self.tokens:
            _check_range(cond, self.tokens, "token", "padding")
            shown, known = cond >= 0, cond.clamp(min=0)
        else:
            shown = ~cond.isnan().any(dim=2)
            known = torch.where(shown[:, :, None], cond, 0.0).to(self.null.dtype)  # before the layer, as above
        sequence = self.norm(self.embed(known) + self.position[: shape[1]])
        return torch.cat([null.to(sequence.dtype), sequence], 1), torch.cat([here, shown], 1)


class Embedding(nn.Module):
    """What a net is told, as its blocks take it.

    Every block is modulated by silu(W2 silu(W1 features(time) + b1) + b2 + condition); a sequence becomes a context.

    Args:
        features: number of sinusoidal features, even.
        dim: size of the embedding and of a context's tokens.
        classes, cond_dim: see `Condition`.
        tokens, cond_length: see `Context`; cond_length > 0 makes the condition a sequence, of tokens or vectors.

    Raises:
        ConfigError: see `TimeFeatures`, `Condition` and `Context`; time is neither 0-dim nor (B,).
    """

    def __init__(
        self, features: int, dim: int, classes: int = 0, cond_dim: int = 0, tokens: int = 0, cond_length: int = 0
    ) -> None:
        super().__init__()
        at_least(0, "net", cond_length=cond_length)
        _one_kind(classes=classes, cond_dim=cond_dim, tokens=tokens)
        if cond_length and classes:
            raise ConfigError(f"cond_length: given {cond_length} with classes={classes}: a label is no sequence")
        if tokens and not cond_length:
            raise ConfigError(f"given tokens={tokens} without cond_length: set it to the longest sequence, >= 1")
        self.features = TimeFeatures(features)
        self.inner, self.outer = nn.Linear(features, dim), nn.Linear(dim, dim)
        self.condition = Condition(dim, classes, 0 if cond_length else cond_dim)
        self.context = Context(dim, cond_length, tokens, cond_dim) if cond_length else None

    def forward(self, time: Tensor, cond: Tensor | None, batch: int) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """time (B,) or 0-dim, cond as in `Condition` or `Context` -> (B, dim), and the context if the net reads one."""
        if time.shape not in ((), (batch,)):
            raise ConfigError(f"time: given shape {tuple(time.shape)}, must be 0-dim or ({batch},)")
        features = self.features(time.expand(batch)).to(self.inner.weight.dtype)
        embedding: Tensor = self.outer(nn.functional.silu(self.inner(features)))
        if self.context is not None:
            return nn.functional.silu(embedding), self.context(cond, batch)
        condition = self.condition(cond, batch)
        return nn.functional.silu(embedding if condition is None else embedding + condition), None


def _one_kind(**kinds: int) -> None:
    at_least(0, "net", **kinds)
    given = [f"{name}={value}" for name, value in kinds.items() if value]
    if len(given) > 1:
        raise ConfigError(f"given {' and '.join(given)}: a net takes tokens, labels or vectors, not both")


def _check_range(cond: Tensor, count: int, name: str, negative: str) -> None:
    if readable(cond) and bool((cond >= count).any()):
        raise ConfigError(f"cond: given the {name} {int(cond.max())}; allowed: -1 ({negative}) to {count - 1}")
