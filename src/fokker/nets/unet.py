"""A U-Net for images and signals, after ADM (Dhariwal and Nichol 2021): small, and quick on a CPU.

One skip per residual block joins the two halves; there are as many blocks going up as going down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ..component import recorded
from ..errors import ConfigError, closest
from .attention import CrossAttention, Pair, SelfAttention
from .features import Embedding, at_least, zeroed

__all__ = ["UNet"]

CONV: dict[int, type[nn.Conv1d] | type[nn.Conv2d]] = {1: nn.Conv1d, 2: nn.Conv2d}
Form = tuple[int, int, int, float]  # axes, size of the embedding, size of a context's token or 0, dropout

# width, multipliers, blocks, levels that attend
PRESETS: dict[str, tuple[int, tuple[int, ...], int, tuple[int, ...]]] = {
    "xs": (32, (1, 2), 1, (1,)),
    "s": (32, (1, 2, 2), 2, (2,)),
    "m": (64, (1, 2, 4), 2, (2,)),
    "l": (128, (1, 2, 2, 2), 2, (1,)),
    "xl": (128, (1, 2, 3, 4), 2, (1, 2)),
}


def _norm(channels: int) -> nn.GroupNorm:
    """At most 32 groups, of at least 4 channels where the number of channels allows it."""
    groups = math.gcd(channels, 32)
    while groups > 1 and channels // groups < 4:
        groups //= 2
    return nn.GroupNorm(groups, channels)


class Block(nn.Module):
    """skip(h) + C2 silu((1 + scale) norm(C1 silu(norm(h))) + shift), (scale, shift) linear in the embedding."""

    def __init__(self, inputs: int, outputs: int, form: Form, attention: bool) -> None:
        super().__init__()
        axes, embedding, context, dropout = form
        conv = CONV[axes]
        self.norm1, self.conv1 = _norm(inputs), conv(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.norm2, self.conv2 = _norm(outputs), zeroed(conv(outputs, outputs, 3, padding=1))
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Identity() if inputs == outputs else conv(inputs, outputs, 1)
        self.attention = Attention(outputs, context) if attention else None

    def forward(self, h: Tensor, embedding: Tensor, context: Pair | None) -> Tensor:
        """h (B, inputs, *size), embedding (B, E), context as in `Context` -> (B, outputs, *size)."""
        scale, shift = self.modulation(embedding).reshape(len(h), -1, *[1] * (h.ndim - 2)).chunk(2, dim=1)
        y = torch.addcmul(shift, self.norm2(self.conv1(silu(self.norm1(h)))), 1 + scale)
        y = self.skip(h) + self.conv2(self.dropout(silu(y)))
        return y if self.attention is None else self.attention(y, context)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """h + self-attention(norm(h)) over the pixels, then h + cross-attention(norm(h), context), heads of about 64."""

    def __init__(self, channels: int, context: int) -> None:
        super().__init__()
        heads = math.gcd(channels, max(1, channels // 64))
        self.norm, self.mix = _norm(channels), SelfAttention(channels, heads)
        zeroed(self.mix.out)
        self.cross = CrossAttention(channels, heads, context) if context else None
        self.cross_norm = _norm(channels) if context else None

    def forward(self, h: Tensor, context: Pair | None) -> Tensor:
        """h (B, C, *size) -> the same shape."""
        h = h + self.mix(self.norm(h).flatten(2).transpose(1, 2)).transpose(1, 2).reshape(h.shape)
        if self.cross is None or self.cross_norm is None:
            return h
        tokens = self.cross_norm(h).flatten(2).transpose(1, 2)
        return h + self.cross(tokens, context).transpose(1, 2).reshape(h.shape)  # type: ignore[no-any-return]


@recorded
class UNet(nn.Module):
    """U-Net on square images or signals; time and condition modulate every block; a new one returns exactly 0.

    Presets, by `UNet.preset("m", channels=3, size=32)` or in a recipe `net: {kind: unet, preset: m}`; parameters and
    floating-point operations of one forward pass (see `count`) on images of 3 x 32 x 32:

    | preset | width | multipliers | blocks | attention | parameters | GFLOP |
    |---|---|---|---|---|---|---|
    | xs | 32 | 1, 2 | 1 | 16 | 0.45 M | 0.32 |
    | s | 32 | 1, 2, 2 | 2 | 8 | 1.30 M | 0.53 |
    | m | 64 | 1, 2, 4 | 2 | 8 | 11.7 M | 2.95 |
    | l | 128 | 1, 2, 2, 2 | 2 | 16 | 29.1 M | 9.18 |
    | xl | 128 | 1, 2, 3, 4 | 2 | 16, 8 | 64.5 M | 11.5 |

    l has the widths of DDPM's net for CIFAR-10 (35.7 M: that one has a block more per level on the way up).

    Args:
        channels: channels of x, >= 1.
        width: channels at full resolution, >= 2.
        multipliers: channels of each level in units of `width`; each level after the first halves the height
            (rounding up; the way back crops, so every size works).
        blocks: residual blocks per level, each way, >= 1.
        attention: heights of the feature maps that get self-attention (and cross-attention); () for none.
        size: height and width of x, or its length.
        classes: number of labels, 0 for none (`Condition`).
        cond_dim: size of condition vectors, 0 for none.
        dropout: probability in [0, 1) within each block, in training mode.
        out_channels: channels of the output; `channels` where None; 2 * channels for a learned variance.
        tokens: size of the vocabulary of token sequences, 0 for none (`Context`).
        cond_length: longest sequence, of tokens or of vectors; 0: the condition is no sequence.
        axes: 2 for images (B, channels, size, size), 1 for signals (B, channels, size).

    Called as net(x, time, cond=None): x (B, channels, size[, size]), time (B,) or 0-dim of order one; returns
    (B, out_channels, size[, size]).

    Raises:
        ConfigError: an argument is out of range, `attention` names a height that does not occur or none for a sequence
            to be read by, or x, time or cond has a shape the net was not built for.
    """

    config: dict[str, object]

    def __init__(
        self,
        channels: int = 1,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 1,
        attention: Sequence[int] = (7,),
        size: int = 28,
        classes: int = 0,
        cond_dim: int = 0,
        dropout: float = 0.0,
        out_channels: int | None = None,
        tokens: int = 0,
        cond_length: int = 0,
        axes: int = 2,
    ) -> None:
        super().__init__()
        out_channels = channels if out_channels is None else out_channels
        at_least(1, "UNet", channels=channels, blocks=blocks, size=size, out_channels=out_channels)
        at_least(2, "UNet", width=width)
        at_least(1, "UNet", multipliers=len(multipliers), **{f"multipliers[{i}]": m for i, m in enumerate(multipliers)})
        if not 0 <= dropout < 1:
            raise ConfigError(f"UNet.dropout: given {dropout!r}, must be in [0, 1)")
        if axes not in CONV:
            raise ConfigError(f"UNet.axes: given {axes!r}, must be 1 (signals) or 2 (images)")
        heights = _heights(size, len(multipliers))
        if not set(attention) <= set(heights):
            raise ConfigError(
                f"UNet.attention: given {tuple(attention)}, but with size={size} and {len(multipliers)} levels the "
                f"feature maps have heights {', '.join(map(str, heights))}: name some of these, or give ()"
            )
        if cond_length and not attention:
            raise ConfigError(f"UNet.attention: given (), but cond_length={cond_length} is read there: name a height")
        self.shape, code = (channels, *[size] * axes), 4 * width
        self.embedding = Embedding(width + width % 2, code, classes, cond_dim, tokens, cond_length)
        conv, form = CONV[axes], (axes, code, code if cond_length else 0, dropout)
        self.first = conv(channels, width, 3, padding=1)
        self.down, self.up, self.shrink, self.grow = (nn.ModuleList() for _ in range(4))
        current, skips = width, []
        for level, (height, multiplier) in enumerate(zip(heights, multipliers, strict=True)):
            if level:
                self.shrink.append(conv(current, current, 3, stride=2, padding=1))
            row = nn.ModuleList()
            for _ in range(blocks):
                row.append(Block(current, width * multiplier, form, height in attention))
                current = width * multiplier
                skips.append(current)
            self.down.append(row)
        self.middle = Block(current, current, form, False)
        for level, (height, multiplier) in reversed([*enumerate(zip(heights, multipliers, strict=True))]):
            row = nn.ModuleList()
            for _ in range(blocks):
                row.append(Block(current + skips.pop(), width * multiplier, form, height in attention))
                current = width * multiplier
            self.up.append(row)
            if level:
                self.grow.append(conv(current, width * multipliers[level - 1], 3, padding=1))
                current = width * multipliers[level - 1]
        self.norm, self.last = _norm(current), zeroed(conv(current, out_channels, 3, padding=1))

    @classmethod
    def preset(cls, name: str, *, size: int = 28, **fields: Any) -> Self:
        """A net of a preset's width, multipliers, blocks and attention; `fields` are the rest, or replace them.

        Raises:
            ConfigError: an unknown preset.
        """
        if name not in PRESETS:
            raise ConfigError(f"UNet: unknown preset {name!r}: {closest(name, PRESETS)}")
        width, multipliers, blocks, levels = PRESETS[name]
        heights = _heights(size, len(multipliers))
        values: dict[str, Any] = {"width": width, "multipliers": multipliers, "blocks": blocks}
        return cls(size=size, **values | {"attention": tuple(heights[level] for level in levels)} | fields)

    def forward(self, x: Tensor, time: Tensor, cond: Tensor | None = None) -> Tensor:
        """x (B, C, *size), time (B,) or 0-dim, cond as in `Condition` or `Context` -> (B, out_channels, *size)."""
        if x.ndim != len(self.shape) + 1 or x.shape[1:] != self.shape:
            raise ConfigError(
                f"UNet: given x of shape {tuple(x.shape)}, must be (B, {', '.join(map(str, self.shape))})"
            )
        embedding, context = self.embedding(time, cond, len(x))
        h, skips = self.first(x), []
        for level, row in enumerate(self.down):
            h = self.shrink[level - 1](h) if level else h
            for block in row:  # type: ignore[attr-defined]
                h = block(h, embedding, context)
                skips.append(h)
        h = self.middle(h, embedding, context)
        for level, row in enumerate(self.up):
            if level:
                h = nn.functional.interpolate(h, scale_factor=2.0, mode="nearest")
                crop: tuple[Any, ...] = (..., *[slice(n) for n in skips[-1].shape[2:]])
                h = self.grow[level - 1](h[crop])
            for block in row:  # type: ignore[attr-defined]
                h = block(torch.cat([h, skips.pop()], dim=1), embedding, context)
        y: Tensor = self.last(silu(self.norm(h)))
        return y.to(x.dtype)


def _heights(size: int, levels: int) -> list[int]:
    """Height of every level's feature maps."""
    return [math.ceil(size / 2**level) for level in range(levels)]
