"""Attention, once for every network: written out where derivatives or speed ask for it, fused where that pays."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual
from torch.nn.functional import scaled_dot_product_attention

from ..errors import ConfigError
from .features import at_least, zeroed

__all__ = ["CrossAttention", "SelfAttention", "attend", "fuses"]

Pair = tuple[Tensor, Tensor]

# Pairs (query, key) from which the fused CPU kernel's training step is the quicker one, measured with one thread at
# 64 channels a head. In bf16 its backward pass never is (2.4 times slower at 49 tokens, even at 4096): there the limit
# is where the N x M weights would fill the memory.
FEW = {torch.float32: 128**2, torch.float64: 128**2}
FEW_HALF = 1024**2


def fuses(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether `attend` takes the fused kernel: never where a tangent is carried, for it has no forward derivative."""
    if any(unpack_dual(x).tangent is not None for x in (q, k, v)):  # type: ignore[no-untyped-call]
        return False
    return q.is_cuda or q.shape[-2] * k.shape[-2] > FEW.get(q.dtype, FEW_HALF)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v; the softmax runs over the keys that the mask shows.

    Has every derivative under `torch.func.jvp` and one in reverse mode; for a second one through the fused kernel
    (on a GPU, or above some 128 tokens), call the net within `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.

    Args:
        q: (B, heads, N, d).
        k, v: (B, heads, M, d).
        mask: bool (B, M), True where a key is there, in at least one place of every row; None: everywhere.

    Returns (B, heads, N, d).
    """
    shown = None if mask is None else mask[:, None, None, :]
    if fuses(q, k, v):
        return scaled_dot_product_attention(q, k, v, attn_mask=shown)
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if shown is not None:
        logits = logits.masked_fill(~shown, -torch.inf)
    y: Tensor = logits.softmax(dim=-1) @ v
    return y


def rotate(x: Tensor, turn: Pair) -> Tensor:
    """x (B, N, ..., d) with every pair (x_2i, x_2i+1) turned by its token's angle; turn: cosine and sine (N, d/2)."""
    # The angles are kept in float32: the product is rounded once, to the dtype of x.
    dtype = torch.promote_types(x.dtype, turn[0].dtype)
    cos, sin = (part.to(dtype).reshape(len(part), *[1] * (x.ndim - 3), -1) for part in turn)
    pairs = x.to(dtype).reshape(*x.shape[:-1], -1, 2)
    if torch.compiler.is_compiling():  # fuses this, and knows no complex numbers
        a, b = pairs.unbind(-1)
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1)
    else:  # one pass each way in place of four and seven
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    return turned.flatten(-2).to(x.dtype)


class SelfAttention(nn.Module):
    """P attend(q, k, v), (q, k, v) = W h + b, in heads.

    Args:
        width: size of a token.
        heads: number of heads, a divisor of `width`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        _divides(width, heads)
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, h: Tensor, turn: Pair | None = None) -> Tensor:
        """h (B, N, width), turn: cosine and sine (N, width/heads/2) of rotary positions -> (B, N, width)."""
        qk, v = self.qkv(h).reshape(*h.shape[:2], 3, self.heads, -1).split([2, 1], dim=2)
        q, k = (qk if turn is None else rotate(qk, turn)).permute(2, 0, 3, 1, 4)
        y: Tensor = self.out(attend(q, k, v[:, :, 0].transpose(1, 2)).transpose(1, 2).flatten(2))
        return y


class CrossAttention(nn.Module):
    """P attend(q, k, v), q = W h + b, (k, v) = U context + c; P starts at 0.

    Args:
        width: size of a token.
        heads: number of heads, a divisor of `width`.
        context: size of a context's token.
    """

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        _divides(width, heads)
        self.heads, self.q, self.kv = heads, nn.Linear(width, width), nn.Linear(context, 2 * width)
        self.out = zeroed(nn.Linear(width, width))

    def forward(self, h: Tensor, context: Pair) -> Tensor:
        """h (B, N, width), context: tokens (B, M, context) and mask (B, M), see `Context` -> (B, N, width)."""
        tokens, mask = context
        q = self.q(h).reshape(*h.shape[:2], self.heads, -1).transpose(1, 2)
        k, v = self.kv(tokens).reshape(*tokens.shape[:2], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        y: Tensor = self.out(attend(q, k, v, mask).transpose(1, 2).flatten(2))
        return y


def _divides(width: int, heads: int) -> None:
    at_least(1, "net", width=width, heads=heads)
    if width % heads:
        raise ConfigError(f"heads: given {heads}, must divide the width {width}")
