"""A residual perceptron for vectors: toy data, tables, latent codes."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.functional import silu

from ..component import recorded
from ..errors import ConfigError
from .features import Embedding, at_least, zeroed

__all__ = ["MLP"]


class Block(nn.Module):
    """h + W2 silu((1 + scale) (W1 silu(h)) + shift), (scale, shift) linear in the embedding (FiLM)."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        self.modulation = nn.Linear(embedding, 2 * width)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """h (B, width), embedding (B, E) -> (B, width)."""
        scale, shift = self.modulation(embedding).chunk(2, dim=1)
        y: Tensor = self.outer(silu(self.inner(silu(h)) * (1 + scale) + shift))
        return h + y


@recorded
class MLP(nn.Module):
    """Residual perceptron R^dim -> R^dim; time and condition modulate every block; a new one returns exactly 0.

    Args:
        dim: numbers in one x, >= 1; an event of several axes, such as a signal (C, L), is flattened.
        width: hidden size, >= 2.
        depth: number of residual blocks, >= 1.
        classes: number of labels, 0 for none (`Condition`).
        cond_dim: size of condition vectors, 0 for none.

    Called as net(x, time, cond=None): x (B, dim) or (B, *event) of dim numbers each, time (B,) or 0-dim of order one;
    returns x's shape.

    Raises:
        ConfigError: an argument is out of range, or x, time or cond has a shape the net was not built for.
    """

    config: dict[str, object]

    def __init__(self, dim: int, width: int = 256, depth: int = 4, classes: int = 0, cond_dim: int = 0) -> None:
        super().__init__()
        at_least(1, "MLP", dim=dim, depth=depth)
        at_least(2, "MLP", width=width)
        self.dim = dim
        self.embedding = Embedding(width + width % 2, width, classes, cond_dim)
        self.first = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(Block(width, width) for _ in range(depth))
        self.last = zeroed(nn.Linear(width, dim))

    def forward(self, x: Tensor, time: Tensor, cond: Tensor | None = None) -> Tensor:
        """x (B, *event), time (B,) or 0-dim, cond (B,) or (B, cond_dim) or None -> x's shape and dtype."""
        if x.ndim < 2 or math.prod(x.shape[1:]) != self.dim:
            raise ConfigError(f"MLP: given x of shape {tuple(x.shape)}, must be (B, {self.dim})")
        embedding, _ = self.embedding(time, cond, len(x))
        h = self.first(x.flatten(1))
        for block in self.blocks:
            h = block(h, embedding)
        y: Tensor = self.last(silu(h))
        return y.to(x.dtype).view(x.shape)
