"""A U-Net for images, after ADM (Dhariwal and Nichol 2021): small, and quick on a CPU.

One skip per residual block joins the two halves; there are as many blocks going up as going down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ..component import recorded
from ..errors import ConfigError
from .features import Embedding, at_least, zeroed

__all__ = ["UNet"]


def _norm(channels: int) -> nn.GroupNorm:
    """At most 32 groups, of at least 4 channels where the number of channels allows it."""
    groups = math.gcd(channels, 32)
    while groups > 1 and channels // groups < 4:
        groups //= 2
    return nn.GroupNorm(groups, channels)


class Block(nn.Module):
    """skip(h) + C2 silu((1 + scale) norm(C1 silu(norm(h))) + shift), (scale, shift) linear in the embedding."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float, attention: bool) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.norm2, self.conv2 = _norm(outputs), zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.attention = Attention(outputs) if attention else nn.Identity()

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """h (B, inputs, H, W), embedding (B, E) -> (B, outputs, H, W)."""
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        y = self.norm2(self.conv1(silu(self.norm1(h)))) * (1 + scale) + shift
        y = self.skip(h) + self.conv2(self.dropout(silu(y)))
        z: Tensor = self.attention(y)
        return z


class Attention(nn.Module):
    """h + P softmax(q k^T / sqrt(d)) v over the pixels, in heads of about 64 channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = math.gcd(channels, max(1, channels // 64))
        self.norm, self.qkv = _norm(channels), nn.Linear(channels, 3 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, h: Tensor) -> Tensor:
        """h (B, C, H, W) -> the same shape."""
        tokens = self.norm(h).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).reshape(*tokens.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        # Written out: the fused scaled_dot_product_attention has no forward-mode derivative (torch.func.jvp).
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1)
        y: Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
        return h + y.transpose(1, 2).reshape(h.shape)


@recorded
class UNet(nn.Module):
    """U-Net on square images; time and condition scale and shift every block; a new one returns exactly 0.

    Args:
        channels: channels of x, >= 1.
        width: channels at full resolution, >= 2.
        multipliers: channels of each level in units of `width`; each level after the first halves the height
            (rounding up; the way back crops, so every size works).
        blocks: residual blocks per level, each way, >= 1.
        attention: heights of the feature maps that get self-attention; () for none.
        size: height and width of x.
        classes: number of labels, 0 for none (`Condition`).
        cond_dim: size of condition vectors, 0 for none.
        dropout: probability in [0, 1) within each block, in training mode.
        out_channels: channels of the output; `channels` where None; 2 * channels for a learned variance.

    Called as net(x, time, cond=None): x (B, channels, size, size), time (B,) or 0-dim of order one; returns
    (B, out_channels, size, size).

    Raises:
        ConfigError: an argument is out of range, `attention` names a height that does not occur, or x, time or cond
            has a shape the net was not built for.
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
    ) -> None:
        super().__init__()
        out_channels = channels if out_channels is None else out_channels
        at_least(1, "UNet", channels=channels, blocks=blocks, size=size, out_channels=out_channels)
        at_least(2, "UNet", width=width)
        at_least(1, "UNet", multipliers=len(multipliers), **{f"multipliers[{i}]": m for i, m in enumerate(multipliers)})
        if not 0 <= dropout < 1:
            raise ConfigError(f"UNet.dropout: given {dropout!r}, must be in [0, 1)")
        heights = [math.ceil(size / 2**level) for level in range(len(multipliers))]
        if not set(attention) <= set(heights):
            raise ConfigError(
                f"UNet.attention: given {tuple(attention)}, but with size={size} and {len(multipliers)} levels the "
                f"feature maps have heights {', '.join(map(str, heights))}: name some of these, or give ()"
            )
        self.shape, code = (channels, size, size), 4 * width
        self.embedding = Embedding(width + width % 2, code, classes, cond_dim)
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.down, self.up, self.shrink, self.grow = (nn.ModuleList() for _ in range(4))
        current, skips = width, []
        for level, (height, multiplier) in enumerate(zip(heights, multipliers, strict=True)):
            if level:
                self.shrink.append(nn.Conv2d(current, current, 3, stride=2, padding=1))
            row = nn.ModuleList()
            for _ in range(blocks):
                row.append(Block(current, width * multiplier, code, dropout, height in attention))
                current = width * multiplier
                skips.append(current)
            self.down.append(row)
        self.middle = Block(current, current, code, dropout, False)
        for level, (height, multiplier) in reversed([*enumerate(zip(heights, multipliers, strict=True))]):
            row = nn.ModuleList()
            for _ in range(blocks):
                row.append(Block(current + skips.pop(), width * multiplier, code, dropout, height in attention))
                current = width * multiplier
            self.up.append(row)
            if level:
                self.grow.append(nn.Conv2d(current, width * multipliers[level - 1], 3, padding=1))
                current = width * multipliers[level - 1]
        self.norm, self.last = _norm(current), zeroed(nn.Conv2d(current, out_channels, 3, padding=1))

    def forward(self, x: Tensor, time: Tensor, cond: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), time (B,) or 0-dim, cond (B,) or (B, cond_dim) or None -> (B, out_channels, H, W)."""
        if x.ndim != 4 or x.shape[1:] != self.shape:
            raise ConfigError(
                f"UNet: given x of shape {tuple(x.shape)}, must be (B, {', '.join(map(str, self.shape))})"
            )
        embedding = self.embedding(time, cond, len(x))
        h, skips = self.first(x), []
        for level, row in enumerate(self.down):
            h = self.shrink[level - 1](h) if level else h
            for block in row:  # type: ignore[attr-defined]
                h = block(h, embedding)
                skips.append(h)
        h = self.middle(h, embedding)
        for level, row in enumerate(self.up):
            if level:
                h = nn.functional.interpolate(h, scale_factor=2.0, mode="nearest")
                h = self.grow[level - 1](h[:, :, : skips[-1].shape[2], : skips[-1].shape[3]])
            for block in row:  # type: ignore[attr-defined]
                h = block(torch.cat([h, skips.pop()], dim=1), embedding)
        y: Tensor = self.last(silu(self.norm(h)))
        return y.to(x.dtype)
