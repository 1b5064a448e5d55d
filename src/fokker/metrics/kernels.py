"""Distances that are averages over pairs: energy distance, maximum mean discrepancy and KID.

    D^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),  k = -|x - y| for the energy distance, a kernel for the MMD.

The U-statistic leaves out the pairs (i, i): it is unbiased, and so negative about half of the time when the laws are
equal. The V-statistic keeps them: never negative, and above its limit by a term of order 1/n.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import noise as philox
from ..errors import ConfigError
from .pairs import blocks, clouds, squared_distances

__all__ = ["Kernel", "energy_distance", "gaussian_kernel", "kid", "median_bandwidth", "mmd2", "polynomial_kernel"]

Kernel = Callable[[Tensor, Tensor], Tensor]


def gaussian_kernel(*bandwidths: float) -> Kernel:
    """k(x, y) = mean over h of exp(-|x - y|^2 / (2 h^2)).

    Args:
        bandwidths: one or several h > 0.

    Raises:
        ConfigError: none is given, or one is not positive.
    """
    if not bandwidths or not all(h > 0 for h in bandwidths):
        raise ConfigError(f"gaussian_kernel: given bandwidths {bandwidths}, must be one or several numbers > 0")

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        square = squared_distances(x, y)
        total = torch.zeros_like(square)
        for h in bandwidths:
            total += (square * (-0.5 / h**2)).exp_()
        return total / len(bandwidths)

    return kernel


def polynomial_kernel(degree: int = 3, shift: float = 1.0) -> Kernel:
    """k(x, y) = (<x, y> / D + shift)^degree, D the dimension of the points."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + shift).pow_(degree)

    return kernel


def median_bandwidth(x: Tensor, limit: int = 1000) -> float:
    """The median of the distances between points of a cloud (N, *event) that are not 0, or 1 if all are equal.

    Of `limit` points, evenly spread over the cloud.
    """
    a, _ = clouds(x, x, "median_bandwidth", 2)
    a = a[torch.linspace(0, len(a) - 1, min(limit, len(a))).long()]
    n = len(a)
    upper = torch.triu_indices(n, n, 1)
    square = squared_distances(a, a)[upper[0], upper[1]]
    apart = square[square > 1e-12 * square.max()]
    return float(apart.median().sqrt()) if len(apart) else 1.0


def _mean(kernel: Kernel, x: Tensor, y: Tensor, skip: bool = False) -> Tensor:
    """The mean of a kernel over all pairs; `skip` leaves out the pairs (i, i)."""
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for rows, columns in blocks(x, y):
        value = kernel(x[rows], y[columns])
        total += value.sum()
        if skip and rows == columns:
            total -= value.diagonal().sum()
    return total / (len(x) * (len(y) - skip))


def _discrepancy(kernel: Kernel, x: Tensor, y: Tensor, unbiased: bool) -> Tensor:
    return _mean(kernel, x, x, unbiased) + _mean(kernel, y, y, unbiased) - 2 * _mean(kernel, x, y)


def _negative_distance(x: Tensor, y: Tensor) -> Tensor:
    return squared_distances(x, y).sqrt_().neg_()


def energy_distance(x: Tensor, y: Tensor, *, unbiased: bool = True) -> Tensor:
    """The energy distance 2 E|x - y| - E|x - x'| - E|y - y'|: 0 if and only if the laws are equal.

    Args:
        x, y: clouds (N, *event) and (M, *event), two points or more.
        unbiased: U-statistic; else V-statistic.

    Returns:
        A float64 number, in units of length (some authors take its square root).

    Raises:
        ConfigError: clouds of different events or of one point.
    Source: Szekely and Rizzo 2013.
    """
    a, b = clouds(x, y, "energy_distance", 2)
    return _discrepancy(_negative_distance, a, b, unbiased)


def mmd2(x: Tensor, y: Tensor, kernel: Kernel | None = None, *, unbiased: bool = True) -> Tensor:
    """The squared maximum mean discrepancy E k(x, x') + E k(y, y') - 2 E k(x, y).

    Args:
        x, y: clouds (N, *event) and (M, *event), two points or more.
        kernel: (n, D) and (m, D) to (n, m); default Gaussian with 1/2, 1 and 2 times the median distance within y.
        unbiased: U-statistic; else V-statistic.

    Returns:
        A float64 number.

    Raises:
        ConfigError: clouds of different events or of one point.
    Source: Gretton et al. 2012 (Eqs. 3 and 5).
    """
    a, b = clouds(x, y, "mmd2", 2)
    if kernel is None:
        h = median_bandwidth(b)
        kernel = gaussian_kernel(h / 2, h, 2 * h)
    return _discrepancy(kernel, a, b, unbiased)


def kid(x: Tensor, y: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 0) -> Tensor:
    """KID of two clouds of features: the unbiased MMD^2 with the kernel (<x, y> / D + 1)^3, a mean over random subsets.

    The mean over all subsets is `mmd2(x, y, polynomial_kernel())`, which is what a report gives.

    Args:
        x, y: features (N, D) and (M, D).
        subsets, size: how many, and of how many points (at most the smaller cloud's).
        seed: draws the subsets, without replacement.

    Returns:
        A float64 number.

    Raises:
        ConfigError: clouds of different features or of one point, or no subsets.
    Source: Binkowski et al. 2018.
    """
    a, b = clouds(x, y, "kid", 2)
    size = min(size, len(a), len(b))
    if subsets < 1 or size < 2:
        raise ConfigError(f"kid: given subsets={subsets} of size {size}, must be at least 1 of at least 2 points")
    kernel, values = polynomial_kernel(), []
    for k in range(subsets):
        rows, columns = (philox.permutation(seed, len(z), 2 * k + i)[:size] for i, z in enumerate((a, b)))
        values.append(_discrepancy(kernel, a[rows], b[columns], True))
    return torch.stack(values).mean()
