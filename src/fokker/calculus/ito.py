r"""Paths and their sums: what stochastic integrals are the limits of.

    (1)  int y . dw   = lim sum y_i . (w_{i+1} - w_i)                       left point (Ito): a martingale
    (2)  int y o dw   = lim sum (y_i + y_{i+1}) / 2 . (w_{i+1} - w_i)       midpoint (Stratonovich) = (1) + [y, w] / 2
    (3)  [y, w]       = lim sum (y_{i+1} - y_i) . (w_{i+1} - w_i)           bracket; [w, w] = d T for a Wiener process
    (4)  x_{i+1} = x_i + f(x_i, t_i) dt_i + G(x_i, t_i) dw_i                Euler-Maruyama

Paths are (N+1, B, *event), increments (N, B, *event). Source: book Sec. A.2, C.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import noise as philox
from ..errors import ConfigError
from ..process import as_time
from .operators import Field, dot
from .residuals import Noise, amount, spread

__all__ = ["bracket", "euler_maruyama", "heat_kernel", "ito_sum", "stratonovich_sum", "wiener"]


def wiener(
    seed: int, index: Tensor, times: Tensor, shape: Sequence[int], *, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Increments of a Wiener process over `times` (N+1,), N(0, |dt| I), as (N, B, *shape).

    Increment i of a sample depends on (seed, index, i) and |dt_i| only, by the numbers that a sampler draws at step i.
    For one path read on many grids take `fokker.noise.brownian`.
    """
    steps = times.to(index.device, dtype).diff().abs().sqrt()
    numbers = torch.arange(len(steps), device=index.device) << 8
    draws = philox.normal(seed, index, shape, draw=numbers, domain="sampler", dtype=dtype)
    return steps.reshape(-1, *(1,) * (draws.ndim - 1)) * draws


def euler_maruyama(drift: Field, noise: Noise, x: Tensor, times: Tensor, increments: Tensor) -> Tensor:
    """The path (N+1, B, *event) of Eq. (4) from x at times[0].

    Strong order 1 where the noise does not depend on x, else 1/2; weak order 1. Decreasing times run a reverse SDE:
    its drift meets dt < 0 (book Eq. 4.1.6).

    Args:
        drift, noise: f and G of (x, t), as in `generator`.
        x: the start, (B, *event).
        times: (N+1,).
        increments: (N, B, *event), or (N, B, m) for a matrix G; as `wiener` gives them.
    """
    if len(increments) != len(times) - 1:
        raise ConfigError(f"increments: given {len(increments)} for {len(times)} times, must be one fewer")
    path = [x]
    for t, dt, dw in zip(times[:-1], times.diff(), increments, strict=True):
        x = x + dt.to(x) * drift(x, t) + spread(amount(noise, x, t), x, dw)
        path.append(x)
    return torch.stack(path)


def _sum(y: Tensor, steps: Tensor) -> Tensor:
    return dot(y.flatten(0, 1), steps.flatten(0, 1)).reshape(y.shape[:2]).sum(0)


def ito_sum(y: Tensor, w: Tensor) -> Tensor:
    """Eq. (1) of the paths y and w (N+1, B, *event), the integrand at the left end of each step: (B,)."""
    return _sum(y[:-1], w.diff(dim=0))


def stratonovich_sum(y: Tensor, w: Tensor) -> Tensor:
    """Eq. (2) of the paths y and w (N+1, B, *event), the mean of both ends as integrand: (B,)."""
    return _sum(0.5 * (y[:-1] + y[1:]), w.diff(dim=0))


def bracket(y: Tensor, w: Tensor) -> Tensor:
    """Eq. (3), the quadratic covariation of the paths y and w (N+1, B, *event): (B,)."""
    return _sum(y.diff(dim=0), w.diff(dim=0))


def heat_kernel(x: Tensor, t: float | Tensor, *, log: bool = False) -> Tensor:
    """(4 pi t)^{-d/2} exp(-|x|^2 / 4t), (B,): the solution of d_t u = Lap u from a point, of variance 2t a coordinate.

    For d_t u = g^2 / 2 Lap u take t g^2 / 2. Source: seed "heat kernel", whose printed variance t belongs to Lap / 2.

    Args:
        x: (B, *event). t: a number or (B,), greater than 0. log: the logarithm instead.
    """
    time = as_time(t)
    value = -0.25 * dot(x, x) / time - 0.5 * math.prod(x.shape[1:]) * (4.0 * math.pi * time).log()
    return value if log else value.exp()
