"""A diffusion transformer for images, signals and latents (DiT; Peebles and Xie 2023)."""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from ..component import recorded
from ..errors import ConfigError, closest
from .attention import CrossAttention, Pair, SelfAttention
from .features import Embedding, at_least, zeroed

__all__ = ["DiT"]

PRESETS = {  # Peebles and Xie 2023, table 1
    "s": {"width": 384, "depth": 12, "heads": 6},
    "b": {"width": 768, "depth": 12, "heads": 12},
    "l": {"width": 1024, "depth": 24, "heads": 16},
    "xl": {"width": 1152, "depth": 28, "heads": 16},
}


def turns(axes: int, grid: int, dim: int) -> Tensor:
    """Angles (grid^axes, dim/2) of rotary positions: dim/2/axes frequencies w_k base^(-k/K), k < K, for each axis.

    A query and a key turned by the angles of their positions have a product that depends on the difference alone.
    The base is 100 on images, whose axes are short (Heo et al. 2024, RoPE-ViT), and 10000 on signals (Su et al. 2021).
    """
    count = dim // (2 * axes)
    frequency = (100.0 if axes == 2 else 10000.0) ** (-torch.arange(count, dtype=torch.float32) / count)
    place = torch.cartesian_prod(*[torch.arange(grid, dtype=torch.float32)] * axes).reshape(-1, axes)
    return (place[:, :, None] * frequency).flatten(1)


class Block(nn.Module):
    """h + g1 attention(m1(norm(h))), then h + cross-attention, then h + g2 perceptron(m2(norm(h))).

    m(h) = (1 + scale) h + shift; the shifts, scales and gates g are linear in the embedding and start at 0, so that a
    new block is the identity (adaLN-zero).
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, context: bool) -> None:
        super().__init__()
        self.modulation = zeroed(nn.Linear(width, 6 * width))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mix = SelfAttention(width, heads)
        self.cross = CrossAttention(width, heads, width) if context else None
        self.inner, self.outer = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, embedding: Tensor, context: Pair | None, turn: Pair | None) -> Tensor:
        """h (B, N, width), embedding (B, width), context as in `Context`, turn as in `SelfAttention` -> like h."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(embedding)[:, None].chunk(6, dim=2)
        y = self.mix(torch.addcmul(shift1, self.norm(h), 1 + scale1), turn)
        h = torch.addcmul(h, gate1, self.dropout(y))
        if self.cross is not None:
            h = h + self.cross(self.norm(h), context)
        y = gelu(self.inner(torch.addcmul(shift2, self.norm(h), 1 + scale2)), approximate="tanh")
        return torch.addcmul(h, gate2, self.dropout(self.outer(y)))


@recorded
class DiT(nn.Module):
    """Transformer over patches of square images or of signals; a new one returns exactly 0 (adaLN-zero).

    Presets, by `DiT.preset("s", channels=4, size=32)` or in a recipe `net: {kind: dit, preset: s}`; parameters and
    floating-point operations of one forward pass (see `count`) on latents of 4 x 32 x 32 in patches of 2, with 1000
    classes and twice the channels out:

    | preset | width | depth | heads | parameters | GFLOP |
    |---|---|---|---|---|---|
    | s | 384 | 12 | 6 | 32.9 M | 12.1 |
    | b | 768 | 12 | 12 | 130 M | 46.0 |
    | l | 1024 | 24 | 16 | 458 M | 161 |
    | xl | 1152 | 28 | 16 | 675 M | 237 |

    Args:
        channels: channels of x, >= 1.
        size: height and width of x, or its length; a multiple of `patch`.
        patch: height and width of a patch, or its length: a token is a patch.
        width: size of a token, a multiple of `heads`.
        depth: number of blocks, >= 1.
        heads: number of attention heads; width / heads must be a multiple of 2 axes for rotary positions.
        mlp_ratio: hidden size of the perceptrons in units of `width`, > 0.
        positions: "rotary" turns queries and keys by their places (no parameters); "learned" adds a vector per place.
        classes: number of labels, 0 for none (`Condition`).
        cond_dim: size of condition vectors, 0 for none.
        dropout: probability in [0, 1) at the end of attention and perceptron, in training mode.
        out_channels: channels of the output; `channels` where None; 2 * channels for a learned variance.
        tokens: size of the vocabulary of token sequences, 0 for none (`Context`).
        cond_length: longest sequence, of tokens or of vectors; 0: the condition is no sequence.
        axes: 2 for images (B, channels, size, size), 1 for signals (B, channels, size).

    Called as net(x, time, cond=None): x (B, channels, size[, size]), time (B,) or 0-dim of order one; returns
    (B, out_channels, size[, size]).

    Raises:
        ConfigError: an argument is out of range or divides badly, or x, time or cond has a shape the net was not built
            for.
    """

    config: dict[str, object]

    def __init__(
        self,
        channels: int = 1,
        size: int = 28,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        positions: Literal["rotary", "learned"] = "rotary",
        classes: int = 0,
        cond_dim: int = 0,
        dropout: float = 0.0,
        out_channels: int | None = None,
        tokens: int = 0,
        cond_length: int = 0,
        axes: int = 2,
    ) -> None:
        super().__init__()
        self.out_channels = channels if out_channels is None else out_channels
        at_least(1, "DiT", channels=channels, size=size, patch=patch, depth=depth, out_channels=self.out_channels)
        at_least(1, "DiT", width=width, heads=heads)
        if axes not in (1, 2):
            raise ConfigError(f"DiT.axes: given {axes!r}, must be 1 (signals) or 2 (images)")
        if size % patch:
            near = [p for p in range(1, size + 1) if size % p == 0]
            raise ConfigError(f"DiT.patch: given {patch}, must divide size={size}: {', '.join(map(str, near))}")
        if not 0 <= dropout < 1:
            raise ConfigError(f"DiT.dropout: given {dropout!r}, must be in [0, 1)")
        if round(mlp_ratio * width) < 1:
            raise ConfigError(f"DiT.mlp_ratio: given {mlp_ratio!r}, must be greater than 0")
        if width % heads or (positions == "rotary" and width // heads % (2 * axes)):
            unit = heads * (2 * axes if positions == "rotary" else 1)
            raise ConfigError(
                f"DiT.width: given {width}, must be a multiple of {unit} with heads={heads} and {positions} positions"
            )
        self.shape, self.axes, self.grid, self.patch = (channels, *[size] * axes), axes, size // patch, patch
        self.embedding = Embedding(256, width, classes, cond_dim, tokens, cond_length)
        self.first = nn.Linear(channels * patch**axes, width)
        self.blocks = nn.ModuleList(
            Block(width, heads, round(mlp_ratio * width), dropout, cond_length > 0) for _ in range(depth)
        )
        self.position = nn.Parameter(0.02 * torch.randn(self.grid**axes, width)) if positions == "learned" else None
        self.turn: Tensor | None
        angle = turns(axes, self.grid, width // heads)
        # A table, for torch.compile would compute the cosines anew for every query; of bits, for net.to(bfloat16)
        # would round numbers.
        table = torch.stack([angle.cos(), angle.sin()]).view(torch.int32)
        self.register_buffer("turn", table if positions == "rotary" else None, persistent=False)
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.last = zeroed(nn.Linear(width, self.out_channels * patch**axes))
        for block in self.blocks:
            for layer in (block.mix.qkv, block.mix.out, block.inner, block.outer):  # type: ignore[union-attr]
                nn.init.xavier_uniform_(layer.weight)  # type: ignore[union-attr, arg-type]
                nn.init.zeros_(layer.bias)  # type: ignore[union-attr, arg-type]

    @classmethod
    def preset(cls, name: str, **fields: Any) -> Self:
        """A net of a preset's width, depth and heads; `fields` are the rest, or replace them.

        Raises:
            ConfigError: an unknown preset.
        """
        if name not in PRESETS:
            raise ConfigError(f"DiT: unknown preset {name!r}: {closest(name, PRESETS)}")
        return cls(**PRESETS[name] | fields)

    def forward(self, x: Tensor, time: Tensor, cond: Tensor | None = None) -> Tensor:
        """x (B, C, *size), time (B,) or 0-dim, cond as in `Condition` or `Context` -> (B, out_channels, *size)."""
        if x.ndim != len(self.shape) + 1 or x.shape[1:] != self.shape:
            raise ConfigError(f"DiT: given x of shape {tuple(x.shape)}, must be (B, {', '.join(map(str, self.shape))})")
        embedding, context = self.embedding(time, cond, len(x))
        axes, cells = self.axes, [self.grid, self.patch] * self.axes
        # (B, C, rows, patch, columns, patch) -> (B, rows, columns, C, patch, patch), and back below.
        order = [0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2)]
        h = self.first(x.reshape(len(x), -1, *cells).permute(order).reshape(len(x), self.grid**axes, -1))
        h = h if self.position is None else h + self.position
        turn = None
        if self.turn is not None:
            cos, sin = self.turn.view(torch.float32)
            turn = cos, sin
        for block in self.blocks:
            h = block(h, embedding, context, turn)
        shift, scale = self.modulation(embedding)[:, None].chunk(2, dim=2)
        y: Tensor = self.last(torch.addcmul(shift, self.norm(h), 1 + scale))
        y = y.reshape(len(x), *cells[::2], -1, *cells[1::2]).permute([order.index(i) for i in range(2 + 2 * axes)])
        return y.reshape(len(x), self.out_channels, *self.shape[1:]).to(x.dtype)
