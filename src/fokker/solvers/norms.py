"""Norms per sample whose bits depend on that sample alone."""

from __future__ import annotations

from torch import Tensor

__all__ = ["squares"]


def squares(x: Tensor) -> Tensor:
    """The sum of squares of each sample's event, (B,), of x (B, *event).

    Halves are added to halves, number by number: a reduction may order its sum by the shape of the whole batch.
    """
    v = x.flatten(1).square() if x.ndim > 1 else x[:, None].square()
    while (n := v.shape[1]) > 1:
        half = n // 2
        folded = v[:, :half] + v[:, half : 2 * half]
        if n % 2:
            folded[:, 0] += v[:, -1]
        v = folded
    return v[:, 0]
