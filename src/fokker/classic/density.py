r"""Densities from what knows none: log Z of an energy on a grid, log p along a line from a score, and a score's curl.

    (1)  Z = int exp(-E) dx,      log p = -E - log Z                     unchanged by E -> E + c
    (2)  grad_phi E_data[-E - log Z] = -E_data[grad_phi E] + E_p[grad_phi E]
    (3)  log p(x) - log p(x_0) = int_0^1 s(x_0 + u (x - x_0)) . (x - x_0) du
    (4)  d_i s_j = d_j s_i                                               if and only if (3) does not depend on the path

E is an energy, of sign p = exp(-E) / Z (the book's Sec. 1.1.2 has exp(+E), its Ch. 3 exp(-E) as here). Likelihoods are
to be maximised: (2) climbs. A free network's score is in general no gradient: (4) fails.
Source: book Secs. 1.1.2, 3.1.1 and 3.1.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..calculus import Grid, jacobian
from ..calculus.operators import dot
from ..errors import ConfigError

__all__ = ["curl", "log_density_along", "log_partition"]

Function = Callable[[Tensor], Tensor]


def log_partition(energy: Function, grid: Grid, *, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    """log Z of Eq. (1) over the grid's box, (); differentiable in what the energy is made of, which gives Eq. (2).

    The sum over the cells' centres converges faster than any power of their length where exp(-E) is smooth and vanishes
    at the border: on a Gaussian of deviation s with cells of length s to 5e-9.

    Args:
        energy: E, x (N, d) -> (N,).
        grid: a box that holds all of p, in one or two dimensions.
        dtype, device: in which E is asked.
    """
    centres = grid.centres().to(device, dtype)
    return torch.logsumexp(-energy(centres), 0) + math.log(grid.volume)


def log_density_along(score: Function, x: Tensor, origin: Tensor, *, nodes: int = 64) -> Tensor:
    """log p(x) - log p(origin) by Eq. (3), Gauss-Legendre on the straight line, (B,).

    Args:
        score: x (N, *event) -> grad log p, of the same shape.
        x: (B, *event).
        origin: x_0, (*event) or (B, *event).
        nodes: evaluations on each line, >= 1.
    """
    if nodes < 1:
        raise ConfigError(f"nodes: given {nodes}, must be at least 1")
    at, weights = (torch.from_numpy(c).to(x) for c in np.polynomial.legendre.leggauss(nodes))
    way = x - origin
    places = x - 0.5 * (1.0 - at).reshape(-1, *[1] * x.ndim) * way
    pull = dot(score(places.flatten(0, 1)), way.repeat(nodes, *[1] * (x.ndim - 1)))
    return 0.5 * (weights[:, None] * pull.reshape(nodes, len(x))).sum(0)


def curl(score: Function, x: Tensor) -> Tensor:
    """d_j s_i - d_i s_j over the flattened event, (B, d, d): 0 where the score is a gradient, Eq. (4)."""
    whole = jacobian(score, x)
    return whole - whole.mT
