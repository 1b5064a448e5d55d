"""Matrix products whose rows do not depend on the batch, to the last bit.

A BLAS chooses its kernel by the shape of the whole product, so a row's sum may be ordered differently in another batch.
Here rows go through in blocks of a constant shape, and columns are padded to whole vector registers, because the ragged
edge of a product is computed by another kernel; small products are plain sums.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["ROWS", "Rows", "product", "total"]

ROWS = 32
COLUMNS = 16
SMALL = 256
SHORT = 8


def total(x: Tensor, dim: int) -> Tensor:
    """x.sum(dim); short sums go term by term, which is several times faster than a reduction of a few numbers."""
    if x.shape[dim] > SHORT:
        return x.sum(dim)
    first, *rest = x.unbind(dim)
    for term in rest:
        first = first + term
    return first


def product(x: Tensor, w: Tensor) -> Tensor:
    """x @ w for rows x (B, n) and w (n, m), with bits of each row that depend on that row and w alone."""
    return Rows(w)(x)


class Rows:
    """The map x -> x @ w, prepared once.

    Args:
        w: (n, m), on the device and in the dtype of the rows it will meet.
    """

    def __init__(self, w: Tensor) -> None:
        self.n, self.m = w.shape
        self.small = self.n * self.m <= SMALL
        ragged = -self.m % COLUMNS
        self.w = w.mT.contiguous() if self.small else functional.pad(w, (0, ragged)) if ragged else w

    def __call__(self, x: Tensor) -> Tensor:
        if self.small:
            return total(x[:, None, :] * self.w, -1)
        blocks = -(-len(x) // ROWS)
        padded = functional.pad(x, (0, 0, 0, blocks * ROWS - len(x))).reshape(blocks, ROWS, self.n)
        return torch.bmm(padded, self.w.expand(blocks, -1, -1)).flatten(0, 1)[: len(x), : self.m]
