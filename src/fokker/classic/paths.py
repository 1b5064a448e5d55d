r"""Paths between two laws made by hand, the velocities that carry them, and uniform numbers without a generator.

    (1)  all normal:   p_t = N(m(t), s(t)^2 I),            v = m' + (s'/s) (x - m)             mass moves sideways
    (2)  a mixture:    p_t = (1 - t) p_0 + t p_1 in 1-D,   v = (F_0 - F_1) / p_t               mass is teleported
    (3)  u ~ U(0, 1)   =>   F^{-1}(u) ~ p,                 F_q^{-1}(F_p(x)) carries p to q     inverse distribution

(2) is what d_t p + (p v)' = 0 leaves in one dimension: its speed grows like 1 / min p between the modes. Paths go from
p_0 at t = 0 to p_1 at t = 1. `fokker.calculus.continuity_residual(path.log_prob, path.velocity, x, t)` is 0 for each.
(3) with p a standard normal is the one-dimensional probability-flow ODE from noise to q (Monge's monotone map).
Source: Wojtowytsch, "Diffusion models: a high level mathematical overview", Sec. 2 and 4, Fig. 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..exact import Gaussian, GaussianMixture
from ..exact.channel import Mixture
from ..process import as_time

__all__ = ["MixturePath", "NormalPath", "inverse_cdf", "kronecker"]

Curve = Callable[[Tensor], Tensor]


def _rows(t: float | Tensor) -> Tensor:
    """A time as () or (B, 1), ready to meet x (B, d)."""
    time = as_time(t)
    return time[:, None] if time.ndim else time


def _with_slope(curve: Curve, t: Tensor) -> tuple[Tensor, Tensor]:
    pair: Any = torch.func.jvp(curve, (t,), (torch.ones_like(t),))
    return pair[0], pair[1]


@dataclass(frozen=True)
class NormalPath:
    """Eq. (1): normal at every time.

    Args:
        mean: t -> the mean, of t's shape or with (d,) as its last dimension.
        std: t -> the standard deviation > 0, of t's shape; both differentiable by torch.func.
    """

    mean: Curve
    std: Curve

    @classmethod
    def between(cls, first: tuple[float, float], last: tuple[float, float], swell: float = 0.0) -> NormalPath:
        """From N(m_0, s_0^2) to N(m_1, s_1^2), given as (m, s): mean and std are linear in t, std + 4 swell t (1 - t).

        swell = 0 is McCann's path, the geodesic of W_2.

        Raises:
            ConfigError: a std that is not positive throughout.
        """
        (m0, s0), (m1, s1) = first, last

        def std(t: Tensor) -> Tensor:
            return (1 - t) * s0 + t * s1 + 4 * swell * t * (1 - t)

        least = float(std(torch.linspace(0, 1, 1025, dtype=torch.float64)).min())
        if not least > 0.0:
            raise ConfigError(f"NormalPath: given {s0:g}, {s1:g} and swell={swell:g}, whose std falls to {least:g}")
        return cls(lambda t: (1 - t) * m0 + t * m1, std)

    def log_prob(self, x: Tensor, t: float | Tensor) -> Tensor:
        """log p_t(x) of x (B, d), (B,); t is a number or (B,)."""
        time = _rows(t)
        z = (x - self.mean(time)) / self.std(time)
        return (-0.5 * z.square() - self.std(time).log() - 0.5 * math.log(2 * math.pi)).sum(-1)

    def velocity(self, x: Tensor, t: float | Tensor) -> Tensor:
        """m' + (s'/s) (x - m), (B, d)."""
        time = _rows(t)
        (m, dm), (s, ds) = _with_slope(self.mean, time), _with_slope(self.std, time)
        return dm + ds / s * (x - m)

    def flow_map(self, x: Tensor, s: float | Tensor, t: float | Tensor) -> Tensor:
        """Where the velocity carries x from time s to time t: m_t + s_t / s_s (x - m_s)."""
        here, there = _rows(s), _rows(t)
        return self.mean(there) + self.std(there) / self.std(here) * (x - self.mean(here))


@dataclass(frozen=True)
class MixturePath:
    """Eq. (2): the weights of two laws on the line change, nothing else.

    Args:
        first, last: p_0 and p_1, Gaussian or GaussianMixture in one dimension, of positive variances.
    """

    first: Gaussian | GaussianMixture
    last: Gaussian | GaussianMixture

    def __post_init__(self) -> None:
        if self.first.shape != (1,) or self.last.shape != (1,):
            given = f"{self.first.shape} and {self.last.shape}"
            raise ConfigError(
                f"MixturePath: given events {given}, must be (1,): in more dimensions v has no closed form"
            )

    def log_prob(self, x: Tensor, t: float | Tensor) -> Tensor:
        """log p_t(x) of x (B, 1), (B,); t is a number or (B,)."""
        time = as_time(t).to(x)
        parts = torch.stack([torch.log1p(-time) + self.first.log_prob(x), time.log() + self.last.log_prob(x)])
        return parts.logsumexp(0)

    def cdf(self, x: Tensor, t: float | Tensor) -> Tensor:
        """F_t(x), of the shape of x (B, 1)."""
        time = _rows(t).to(x)
        return (1 - time) * _log_cdf(self.first, x).exp().to(x) + time * _log_cdf(self.last, x).exp().to(x)

    def velocity(self, x: Tensor, t: float | Tensor) -> Tensor:
        """(F_0 - F_1) / p_t, (B, 1)."""
        low = _log_cdf(self.first, x), _log_cdf(self.last, x)
        high = _log_cdf(self.first, x, -1.0), _log_cdf(self.last, x, -1.0)
        # Each tail by its own side: a difference of two numbers near 1 has no digits left.
        left = low[0].exp() + low[1].exp() < 1.0
        more, less = torch.where(left, low[0], high[1]), torch.where(left, low[1], high[0])
        log_p = self.log_prob(x.double(), t)[:, None]  # in logarithms: in the tails all three are 0
        return ((more - log_p).exp() - (less - log_p).exp()).to(x)

    def flow_map(self, x: Tensor, s: float | Tensor, t: float | Tensor) -> Tensor:
        """Where the velocity carries x from time s to time t: F_t(y) = F_s(x), to about 1e-15 in F."""
        _, means, stds = zip(*(_parts(law, x) for law in (self.first, self.last)), strict=True)
        reach = 40.0 * float(torch.cat(stds).max())
        low, high = float(torch.cat(means).min()) - reach, float(torch.cat(means).max()) + reach
        return inverse_cdf(lambda y: self.cdf(y, t), self.cdf(x, s), low, high)


def _parts(law: Gaussian | GaussianMixture, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The components' weights, means and standard deviations, (K,)."""
    core = law._core.to(x.device, x.dtype)
    assert isinstance(core, Mixture)
    return core.weights, core.family.means[:, 0], core.family.covs()[:, 0, 0].sqrt()


def _log_cdf(law: Gaussian | GaussianMixture, x: Tensor, side: float = 1.0) -> Tensor:
    """log F(x), or log(1 - F(x)) for side -1, of the shape of x (B, 1), float64: float32 has no digits for z^2 / 2."""
    x = x.double()
    weights, means, stds = _parts(law, x)
    z = side * (x - means) / stds
    total: Tensor = (weights.log() + torch.special.log_ndtr(z)).logsumexp(-1, keepdim=True)
    return total


def inverse_cdf(cdf: Callable[[Tensor], Tensor], u: Tensor, low: float, high: float) -> Tensor:
    """F^{-1}(u) by bisection, Eq. (3): samples of the law with distribution function F where u is uniform.

    Args:
        cdf: F, elementwise and non-decreasing.
        u: in (0, 1), of any shape; the result has its shape and dtype.
        low, high: between which all of the answers lie; they are right to (high - low) 2^-64, or their last bit.

    Raises:
        ConfigError: some u is not between F(low) and F(high).
    """
    below, above = torch.full_like(u, low), torch.full_like(u, high)
    if bool((cdf(below) > u).any() | (cdf(above) < u).any()):
        raise ConfigError(f"u: not all of it lies between F({low:g}) and F({high:g}): widen low and high")
    for _ in range(64):
        middle = 0.5 * (below + above)
        under = cdf(middle) < u
        below, above = torch.where(under, middle, below), torch.where(under, above, middle)
    return above


def kronecker(n: int, ratio: float | None = None, start: int = 0) -> Tensor:
    """{k ratio}, the fractional parts for k = start + 1 .. start + n: (n,) float64 in [0, 1).

    Equidistributed for irrational ratios, with an error O(log n / n) in every interval for the golden ratio; but not
    independent (two heads in a row, u < 1/2, have frequency .118 for it and not 1/4): for quadrature and pictures,
    never in the place of random numbers. Computed in 64-bit integers, so that k may be large.

    Args:
        ratio: in (0, 1) modulo 1; default the golden ratio's (sqrt(5) - 1) / 2 to 64 bits.
        start: any integer.
    """
    if n < 1:
        raise ConfigError(f"n: given {n}, must be at least 1")
    # float64 ratios are multiples of 2^-1074, of which those above 2^-64 are kept.
    step = (math.isqrt(5 << 128) - (1 << 64)) // 2 if ratio is None else int((ratio % 1.0) * 2.0**64)
    if step % (1 << 64) == 0:
        raise ConfigError(f"ratio: given {ratio}, whose multiples are all integers; give an irrational number")
    k = torch.arange(1, n + 1, dtype=torch.int64) + _wrapped(start)
    words = k * _wrapped(step)  # modulo 2^64
    return ((words >> 11) & (2**53 - 1)).double() * 2.0**-53


def _wrapped(value: int) -> int:
    """Modulo 2^64, as a signed integer."""
    return (value + 2**63) % 2**64 - 2**63
