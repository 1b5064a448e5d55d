"""The Frechet distance between Gaussians fitted to two clouds of features."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError
from .pairs import clouds

__all__ = ["frechet_distance", "frechet_gaussians"]


def frechet_gaussians(mean_x: Tensor, cov_x: Tensor, mean_y: Tensor, cov_y: Tensor) -> Tensor:
    """|mean_x - mean_y|^2 + tr(A + B - 2 (A^(1/2) B A^(1/2))^(1/2)): W2^2 of two Gaussians, without a square root.

    Both roots come from symmetric eigenvalues, so covariances may be singular; what rounding leaves of a zero
    eigenvalue is taken for zero.

    Args:
        mean_x, mean_y: (D,).
        cov_x, cov_y: A and B (D, D), symmetric, positive semi-definite.

    Returns:
        A float64 number.

    Raises:
        ConfigError: shapes do not fit together.
    Source: Dowson and Landau 1982; Heusel et al. 2017 (Eq. 6) for features of a network.
    """
    d = len(mean_x)
    if mean_y.shape != (d,) or cov_x.shape != (d, d) or cov_y.shape != (d, d):
        given = ", ".join(str(tuple(part.shape)) for part in (mean_x, cov_x, mean_y, cov_y))
        raise ConfigError(f"frechet_gaussians: given shapes {given}, must be (D,), (D, D), (D,), (D, D)")
    a, b = cov_x.double(), cov_y.double()
    values, vectors = torch.linalg.eigh((a + a.T) / 2)
    root = vectors * _positive(values).sqrt()
    middle = root.T @ b @ root  # similar to A^(1/2) B A^(1/2)
    cross = _positive(torch.linalg.eigvalsh((middle + middle.T) / 2)).sqrt().sum()
    gap = (mean_x.double() - mean_y.double()).square().sum()
    return gap + a.trace() + b.trace() - 2 * cross


def _positive(values: Tensor) -> Tensor:
    floor = len(values) * torch.finfo(values.dtype).eps * values.abs().max()
    return torch.where(values > floor, values, 0.0)


def frechet_distance(x: Tensor, y: Tensor) -> Tensor:
    """The Frechet distance between Gaussians fitted to two clouds of features: means and unbiased covariances.

    Biased upwards by about D^2/n-like terms: read it beside its floor. It is called FID only over Inception-v3.

    Args:
        x, y: features (N, *event) and (M, *event), two or more.

    Returns:
        A float64 number (a squared distance, as the field reports it).

    Raises:
        ConfigError: clouds of different features or of one point.
    """
    a, b = clouds(x, y, "frechet_distance", 2)
    mean_x, mean_y = a.mean(0), b.mean(0)
    # With A = X' X and B = Y' Y, tr (A^(1/2) B A^(1/2))^(1/2) is the sum of the singular values of X Y'.
    x, y = (a - mean_x) / (len(a) - 1) ** 0.5, (b - mean_y) / (len(b) - 1) ** 0.5
    if max(len(a), len(b)) > a.shape[1]:
        return frechet_gaussians(mean_x, x.T @ x, mean_y, y.T @ y)
    cross: Tensor = torch.linalg.svdvals(x @ y.T).sum()
    return (mean_x - mean_y).square().sum() + x.square().sum() + y.square().sum() - 2 * cross
