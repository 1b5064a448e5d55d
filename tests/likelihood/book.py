"""What the tests of the book's identities share: its mixture, orders of convergence, an integral."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

import fokker as fk

# The mixture that the numbers of Chapter 4 were measured on, under VP from .1 to 20.
MIXTURE = fk.exact.GaussianMixture([0.3, 0.7], [[-2.0], [1.5]], [0.16, 0.36])


def slope(errors: list[float]) -> list[float]:
    """Powers of two by which each error exceeds the next."""
    return [math.log2(a / b) for a, b in pairwise(errors)]


def integral(function: Callable[[Tensor], Tensor], low: float, high: float, n: int = 200) -> float:
    """By Gauss and Legendre's rule."""
    nodes, weights = (torch.from_numpy(a) for a in leggauss(n))
    t = 0.5 * (high + low) + 0.5 * (high - low) * nodes
    return float(0.5 * (high - low) * (weights * function(t)).sum())
