r"""The laws, and the problem: carry given noises to the data by the probability-flow ODE of an exact denoiser.

Mixtures of N(mu_k, delta I + F_k F_k^T) in the form that costs least, so that the samplers are what takes the time.
With F_k = U_k diag(sqrt l_k), a = alpha^2 delta + sigma^2, y = x - alpha mu_k and p = U_k^T y (Woodbury):

    V_k^{-1} y = y / a - U_k diag(1/a - 1/(a + alpha^2 l)) p
    noise = sigma sum_k w_k V_k^{-1} y,    x0 = sum_k w_k (mu_k + alpha Sigma_k V_k^{-1} y)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fokker import noise as philox
from fokker.exact import GaussianMixture
from fokker.prediction import Prediction
from fokker.process import Process

__all__ = ["Mixture", "Problem", "eight", "ten"]


class Mixture:
    """An equal mixture, centred. Means (K, d), one variance delta, factors (K, d, r) with r = 0 for none."""

    def __init__(self, name: str, means: Tensor, delta: float, factors: Tensor) -> None:
        self.name, self.delta, self.dim = name, delta, means.shape[1]
        self.means, self.factors = means - means.mean(0), factors
        left, lengths, _ = torch.linalg.svd(factors, full_matrices=False)
        self._wide: dict[torch.dtype, tuple[Tensor, ...]] = {}
        basis = left.permute(1, 0, 2).flatten(1)  # (d, K r)
        placed = torch.einsum("kd,kdr->kr", self.means, left)
        self._exact = (self.means, self.means.square().sum(1), basis, placed, lengths.square())

    def law(self) -> GaussianMixture:
        """The same law in the library, which the tests compare with."""
        k = len(self.means)
        weights, variances = torch.full((2, k), 1.0 / k, dtype=torch.float64)
        factors = self.factors if self.factors.shape[2] else None
        return GaussianMixture(weights, self.means, variances.fill_(self.delta), factors)

    def pair(self, x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        """(E[x0 | x], E[eps | x]) at x = alpha x0 + sigma eps, (n, d)."""
        if x.dtype not in self._wide:
            self._wide[x.dtype] = tuple(c.to(x.dtype) for c in self._exact)
        means, squares, basis, placed, lengths = self._wide[x.dtype]
        a = alpha**2 * self.delta + sigma**2
        whole = a + alpha**2 * lengths  # (K, r)
        p = (x @ basis).reshape(len(x), *lengths.shape) - alpha * placed
        less = 1.0 / a - 1.0 / whole
        gap = (alpha**2 * squares - 2.0 * alpha * (x @ means.T)) / a - (less * p.square()).sum(-1)
        w = torch.softmax(-0.5 * (gap + whole.log().sum(-1)), -1)  # |x|^2 / a is the same for every k
        middle, wp = w @ means, w[..., None] * p
        inverse = (x - alpha * middle) / a - (wp * less).flatten(1) @ basis.T
        x0 = middle + alpha * (self.delta * inverse + (wp * (lengths / whole)).flatten(1) @ basis.T)
        return x0, sigma * inverse


def eight() -> Mixture:
    """Eight modes on a ring in the plane, each of standard deviation 0.15; variance 1 per axis."""
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    delta = 0.15**2
    means = math.sqrt(2.0 - 2.0 * delta) * torch.stack([angle.cos(), angle.sin()], 1)
    return Mixture("ring, 2-d", means, delta, torch.zeros(8, 2, 0, dtype=torch.float64))


def ten() -> Mixture:
    """Ten modes in 64 dimensions, some 5 apart, each spread along four directions (std 2.4) and by 0.1 around."""
    generator = torch.Generator().manual_seed(0)
    means = 0.45 * torch.randn(10, 64, generator=generator, dtype=torch.float64)
    factors = 0.3 * torch.randn(10, 64, 4, generator=generator, dtype=torch.float64)
    return Mixture("low rank, 64-d", means, 0.01, factors)


@dataclass
class Problem:
    """A law in a process, and n noises of a seed; as a denoiser it is what our samplers are given.

    Attributes:
        noise: standard normal (n, d) float32: the prior's draws at any noise level, divided by its deviation.
        calls: evaluations made since it was last set to 0.
    """

    name: str
    law: Mixture
    process: Process
    n: int
    seed: int = 2026
    calls: int = 0
    reading: None = None
    lam_range: tuple[float, float] = (-math.inf, math.inf)
    _known: dict[float, tuple[float, float]] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.law.dim,)

    @cached_property
    def noise(self) -> Tensor:
        return philox.normal(self.seed, torch.arange(self.n), self.shape, domain="prior", dtype=torch.float32)

    @cached_property
    def sigmas(self) -> tuple[float, float]:
        """sigma / alpha at the cleanest and at the noisiest time where it is finite: where peers begin and end."""
        low, high = (math.exp(-float(self.process.lam(t))) for t in (self.process.t_min, self.process.t_max))
        return low, high

    def pair(self, x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        """(x0, noise) at any pair of coefficients; counted."""
        self.calls += 1
        return self.law.pair(x, alpha, sigma)

    def clean(self, y: Tensor, sigma: float) -> Tensor:
        """E[x0 | y = x0 + sigma eps]; counted."""
        return self.pair(y, 1.0, sigma)[0]

    def __call__(self, x: Tensor, s: float | Tensor, cond: Any = None) -> Prediction:
        s = float(s)
        if s not in self._known:
            self._known[s] = (float(self.process.alpha(s)), float(self.process.sigma(s)))
        x0, noise = self.pair(x, *self._known[s])
        return Prediction(self.process, x, s, x0=x0, noise=noise)

    @cached_property
    def truth(self) -> Tensor:
        """Where the exact ODE takes the noises, (n, d) float64."""
        return self.solve(500)

    def solve(self, steps: int) -> Tensor:
        """RK4 in float64 and equal steps of lam, to sigma / alpha = 1e-5 and x0 there (an error of 1e-8 of a mode).

        In u = (alpha x0 + sigma eps) / hypot(alpha, sigma):  du/dlam = alpha sigma (sigma x0 - alpha eps).
        """
        process = self.process
        first = process.T if bool(process.alpha(process.T) > 0) else process.T * (1.0 - 1e-9)
        scale = math.hypot(float(process.alpha(first)), float(process.sigma(first)))
        u = self.noise.double() * (float(process.prior_std(first)) / scale)
        start = float(process.lam(first))
        h = (math.log(1e5) - start) / steps

        def slope(u: Tensor, lam: float) -> Tensor:
            alpha, sigma = (1.0 / math.hypot(1.0, math.exp(sign * lam)) for sign in (-1, 1))
            x0, noise = self.law.pair(u, alpha, sigma)
            return alpha * sigma * (sigma * x0 - alpha * noise)

        for i in range(steps):
            lam = start + i * h
            k1 = slope(u, lam)
            k2 = slope(u + 0.5 * h * k1, lam + 0.5 * h)
            k3 = slope(u + 0.5 * h * k2, lam + 0.5 * h)
            k4 = slope(u + h * k3, lam + h)
            u = u + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
        return self.law.pair(u, 1.0, 1e-5)[0]

    def errors(self, x: Tensor) -> tuple[float, float]:
        """(RMS over all entries, median over samples of the RMS over a sample's entries); inf where not finite."""
        gap = (x.double() - self.truth).square().mean(1)
        rms, median = float(gap.mean().sqrt()), float(gap.sqrt().median())
        return (rms if math.isfinite(rms) else math.inf), (median if math.isfinite(median) else math.inf)
