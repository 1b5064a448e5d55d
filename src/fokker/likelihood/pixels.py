r"""Pictures have probabilities, densities have not: dequantisation and bits per dimension.

A byte v is the number c = 2 v / (levels - 1) - 1; its cell is c + h [-1/2, 1/2] with h = 2 / (levels - 1), as rounding
to bytes has it (the outermost cells reach to infinity). For the model "draw from p and round", by Jensen,

    log P(c) = log int_cell p >= E_u[log p(c + h u)] + d log h,       u uniform on [-1/2, 1/2]^d

and bits per dimension are -log P / (d log 2). Source: Theis et al. 2016, Sec. 3.1; Song et al. 2021, App. D.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import noise
from ..errors import ConfigError

__all__ = ["bits_per_dim", "dequantise", "on_levels", "rounded_log_prob", "width"]


def width(levels: int) -> float:
    """h, the width of a cell in [-1, 1]. Raises ConfigError for fewer than 2 levels."""
    if levels < 2:
        raise ConfigError(f"levels: given {levels}, must be at least 2 (256 for bytes)")
    return 2.0 / (levels - 1)


def on_levels(x: Tensor, levels: int) -> None:
    """Refuse values that are no levels: c = 2 v / (levels - 1) - 1 with v = 0 to levels - 1."""
    v = (x + 1.0) / width(levels)
    # ~(<=), not >: NaN is no level.
    if bool((~((v - v.round()).abs() <= 1e-3)).any() | (v < -0.5).any() | (v > levels - 0.5).any()):
        raise ConfigError(f"x: has values that are not one of {levels} levels of [-1, 1], which levels={levels} says")


def dequantise(x: Tensor, *, levels: int = 256, seed: int = 0, index: Tensor | None = None) -> Tensor:
    """x + h u, u uniform on [-1/2, 1/2], keyed by (seed, index): pictures spread over the cells of their levels.

    Args:
        x: (B, *event) on the levels 2 v / (levels - 1) - 1, as `Samples.take` gives pictures.
        levels: how many; 256 for bytes, 2^k for k bits.
        seed, index: key of u; index (B,), default 0..B-1.

    Raises:
        ConfigError: fewer than 2 levels, or values that are none of them.
    """
    on_levels(x, levels)
    index = torch.arange(len(x), device=x.device) if index is None else index.to(x.device)
    return x + width(levels) * (noise.uniform(seed, index, x.shape[1:], domain="augmentation", dtype=x.dtype) - 0.5)


def rounded_log_prob(x: Tensor, mean: Tensor, std: Tensor | float, levels: int) -> Tensor:
    """log P(x) of N(mean, std^2) rounded to levels, the outermost cells reaching to infinity; of the broadcast shape.

    Ho et al. 2020, Eq. 13. Finite also far out in the tails.

    Args:
        x: on the levels; mean, std > 0: ready to broadcast with it, float64.
        levels: how many.
    """
    w, e = 0.5 * width(levels) / std, (mean - x) / std
    log_ndtr, tail = torch.special.log_ndtr, -e.abs()  # on the left, where differences keep their digits
    above, below = log_ndtr(tail + w), log_ndtr(tail - w)
    inside = above + torch.log(-torch.expm1(below - above))
    edge = x.abs() > 1.0 - 0.5 * width(levels)
    return torch.where(edge, log_ndtr(w + e * x.sign()), inside)


def bits_per_dim(nats: Tensor, event: Sequence[int], *, levels: int | None = None) -> Tensor:
    """-nats / (d log 2), of the shape of `nats`.

    Args:
        nats: a log-probability; with `levels` the log-density of dequantised data, to which d log h is added.
        event: the shape of one sample; d is its product.
        levels: of the dequantisation.
    """
    d = math.prod(event)
    mass = nats if levels is None else nats + d * math.log(width(levels))
    return -mass / (d * math.log(2.0))
