r"""Residuals in weak form: from samples alone, the only ones that need no density and no score.

For any smooth test function phi and dx = f dt + G dw, D = G G^T,

    (1)  E[phi(x_b)] - E[phi(x_a)] = int_a^b E[grad phi . f + 1/2 tr(D Hess phi)] dt
    (2)  Fourier:  phi = cos(k . x + c),                grad phi . f = -sin(k . x + c) k . f,
                   tr(D Hess phi) = -|G^T k|^2 phi
    (3)  bumps:    phi = exp(-|y|^2 / 2 w^2), y = x - c, grad phi . f = -phi y . f / w^2,
                   tr(D Hess phi) = phi (|G^T y|^2 / w^4 - |G|^2 / w^2)

Source: book Sec. C.1.4 (with the sign of its step 4 corrected: + int phi Lap p), D.3.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
from pydantic import Field as Limit
from torch import Tensor

from .. import noise as philox
from ..component import Array, component
from ..errors import ConfigError
from .operators import Estimate, Field, curvature, trace
from .residuals import Noise, amount, spread, width

__all__ = ["Bumps", "Fourier", "lobatto", "weak_residual"]

FAR = 2**31
"""Draws that Hutchinson's probes of the same seed do not reach."""
Parts = tuple[Tensor, Tensor]
Tests = Callable[[Tensor], Tensor]


def _stretch(G: Tensor, y: Tensor) -> Tensor:
    """|G^T y|^2 for y (M, d) or (n, M, d): (M,) or (n, M)."""
    if G.ndim < 2:
        return (G[:, None] if G.ndim else G) ** 2 * y.square().sum(-1)
    return (y @ G).square().sum(-1)


def _size(G: Tensor, d: int) -> Tensor:
    """|G|^2 (Frobenius), () or (n, 1)."""
    squares = G**2 * d if G.ndim < 2 else G.square().sum((-2, -1))
    return squares[:, None] if squares.ndim else squares


@component
class Fourier:
    """Waves cos(k_m . x + c_m) as test functions, Eq. (2): bounded, and they see all of space.

    Args:
        frequencies: k, (M, d). phases: c, (M,).
    """

    frequencies: Array
    phases: Array

    @classmethod
    def random(cls, dim: int, n: int = 64, *, scale: float = 1.0, seed: int = 0) -> Fourier:
        """n waves with k ~ N(0, I / scale^2) and uniform phases; `scale` is the length they resolve."""
        rows = torch.arange(n)
        k = philox.normal(seed, rows, (dim,), draw=FAR, domain="probe", dtype=torch.float64)
        c = philox.uniform(seed, rows, (), draw=FAR + 1, domain="probe", dtype=torch.float64)
        return cls(Array(k / scale), Array(2.0 * math.pi * c))

    def __call__(self, x: Tensor) -> Tensor:
        """phi_m of every row, (n, M)."""
        return self._angle(x).cos()

    def _angle(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.frequencies.like(x).mT + self.phases.like(x)

    def parts(self, x: Tensor, drift: Tensor, G: Tensor) -> Parts:
        """grad phi . f and 1/2 tr(D Hess phi), (n, M) each."""
        k, angle = self.frequencies.like(x), self._angle(x)
        return -angle.sin() * (drift.flatten(1) @ k.mT), -0.5 * _stretch(G, k) * angle.cos()


@component
class Bumps:
    """Gaussian bumps exp(-|x - c_m|^2 / 2 w^2) as test functions, Eq. (3): local, they say where it is wrong.

    Args:
        centres: c, (M, d). width: w > 0.
    """

    centres: Array
    width: Annotated[float, Limit(gt=0)] = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """phi_m of every row, (n, M)."""
        return (self._away(x).square().sum(-1) / (-2.0 * self.width**2)).exp()

    def _away(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, None, :] - self.centres.like(x)

    def parts(self, x: Tensor, drift: Tensor, G: Tensor) -> Parts:
        """grad phi . f and 1/2 tr(D Hess phi), (n, M) each."""
        phi, y, w2 = self(x), self._away(x), self.width**2
        along = (y @ drift.flatten(1)[..., None])[..., 0]
        return -phi * along / w2, 0.5 * phi * (_stretch(G, y) / w2**2 - _size(G, y.shape[-1]) / w2)


def _parts(tests: Fourier | Bumps | Tests, x: Tensor, drift: Tensor, G: Tensor) -> Parts:
    if isinstance(tests, (Fourier, Bumps)):
        return tests.parts(x, drift, G)
    along = torch.func.jvp(tests, (x,), (drift,))[1]
    second = trace(lambda u: curvature(tests, x, spread(G, x, u)), x, width(G, x), None, None, None)
    return along, 0.5 * second.value


def lobatto(a: float, b: float, n: int = 8) -> tuple[Tensor, Tensor]:
    """Times from a to b, both included, and weights (n,) of Gauss-Lobatto quadrature, exact to degree 2 n - 3."""
    if n < 2:
        raise ConfigError(f"n: given {n}, must be 2 or more")
    last = np.polynomial.legendre.Legendre.basis(n - 1)
    nodes = np.concatenate([[-1.0], np.sort(last.deriv().roots().real), [1.0]])
    weights = (b - a) / (n * (n - 1) * last(nodes) ** 2)
    times = 0.5 * (a + b) + 0.5 * (b - a) * nodes
    times[0], times[-1] = a, b  # to the last bit
    return torch.from_numpy(times), torch.from_numpy(weights)


def weak_residual(
    tests: Fourier | Bumps | Tests,
    times: Tensor,
    states: Tensor,
    drift: Field,
    noise: Noise = 0.0,
    *,
    weights: Tensor | None = None,
) -> Estimate:
    """E[phi(x_b)] - E[phi(x_a)] - int_a^b E[L phi(x_t)] dt for every test function, Eq. (1), with standard errors.

    0 within its standard error where the law of the states solves the Fokker-Planck equation of (f, G), or for G = 0
    the continuity equation. Works on samples of any origin: rows may be paths, coupled through common numbers (least
    noise), or independent from time to time; only row i must be independent of row j.

    Args:
        tests: `Fourier`, `Bumps`, or any smooth function (n, *event) -> (n, M).
        times: (K,), from a to b. Decreasing times are a reverse SDE: the drift counts with dt < 0, the noise with |dt|.
        states: samples at those times, (K, n, *event).
        drift, noise: f and G of (x, t), as in `generator`.
        weights: (K,) of the quadrature in time, signed like dt (`lobatto`); default the trapezoid.

    Returns:
        Estimate, (M,): the residuals and their standard errors over the n rows (quadrature error not included).
    """
    if len(times) != len(states) or len(times) < 2:
        raise ConfigError(f"states: given {len(states)} for {len(times)} times, must be as many and 2 or more")
    if weights is None:
        half = 0.5 * times.diff()
        weights = torch.cat([half, half[:1] * 0]) + torch.cat([half[:1] * 0, half])
    sense = 1.0 if float(times[-1]) >= float(times[0]) else -1.0
    rows = tests(states[-1]) - tests(states[0])
    for x, t, weight in zip(states, times, weights.to(states), strict=True):
        first, second = _parts(tests, x, drift(x, t), amount(noise, x, t))
        rows = rows - weight * (first + sense * second)
    return Estimate(rows.mean(0), rows.std(0) / math.sqrt(len(rows)))
