"""Transport distances between two clouds of points."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import noise as philox
from ..errors import ConfigError

__all__ = ["sliced_w2"]


def sliced_w2(x: Tensor, y: Tensor, *, projections: int = 256, seed: int = 0) -> Tensor:
    """The sliced 2-Wasserstein distance sqrt(E_u W2^2(<u, x>, <u, y>)), u uniform on the sphere.

    In one dimension W2 is the distance between sorted values (book Sec. 7.2.1).

    Args:
        x, y: clouds (N, *event) of equal size and shape.
        projections: directions, drawn by `seed`; the standard error falls like its inverse square root.
    """
    if x.shape != y.shape:
        raise ConfigError(f"sliced_w2: given shapes {tuple(x.shape)} and {tuple(y.shape)}, must be equal")
    a, b = x.flatten(1), y.flatten(1)
    rows = torch.arange(projections, device=x.device)
    u = philox.normal(seed, rows, (a.shape[1],), domain="probe", dtype=a.dtype)
    u = u / u.norm(dim=1, keepdim=True)
    gap = (a @ u.T).sort(dim=0).values - (b @ u.T).sort(dim=0).values
    distance: Tensor = gap.square().mean().sqrt()
    return distance
