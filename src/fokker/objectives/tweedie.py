r"""What a density knows of what was noised: Tweedie's formula to third order, and Stein's estimate of the risk.

For an exponential family q(x | eta) = exp(eta . x - psi(eta)) q_0(x) with any prior on eta, lam = log p - log q_0:

    (1)  grad lam = E[eta | x],    Hess lam = Cov[eta | x],    grad^3 lam = third cumulant of eta given x

Gaussian noise x = alpha x_0 + sigma eps has eta = alpha x_0 / sigma^2 and q_0 = N(0, sigma^2 I), so that

    (2)  alpha E[x_0 | x] = x + sigma^2 s,    s = grad log p
         Cov[x_0 | x]     = (sigma^2 / alpha^2) (I + sigma^2 Hess log p)
         kappa_3[x_0 | x] = (sigma^6 / alpha^3) grad^3 log p

A step of sigma^2 along the score is the denoiser for alpha = 1 only. For x = x_0 + sigma eps and any denoiser D,

    (3)  SURE = |D(x) - x|^2 + 2 sigma^2 div D(x) - dim sigma^2,    E[SURE | x_0] = E[|D(x) - x_0|^2 | x_0]
    (4)  SURE / (2 sigma^4) = div s + 1/2 |s|^2 + dim / (2 sigma^2)    for D = x + sigma^2 s

Sources: Efron 2011; Stein 1981; Meng et al. 2021; book Lemma 3.3.2, Sec. 3.3.4-3.3.5, D.2.3-D.2.4.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

from ..calculus import Field, Probes, gradient, jacobian, value_and_divergence
from ..calculus.operators import dot
from ..errors import ConfigError
from ..process import as_time, expand
from ..process.base import Time

__all__ = ["Cumulants", "cumulants", "sure", "tweedie"]


class Cumulants(NamedTuple):
    """Posterior mean (B, *event), covariance (B, d, d) and third cumulant (B, d, d, d); None above the order asked."""

    mean: Tensor
    cov: Tensor | None
    third: Tensor | None


def cumulants(log_ratio: Field, x: Tensor, *, order: Literal[1, 2, 3] = 2) -> Cumulants:
    """The cumulants of the natural parameter eta given x, Eq. (1).

    Args:
        log_ratio: log p - log q_0, (B, *event) -> (B,).
        x: states.
        order: how many; the third costs d^2 backward passes.
    """
    if order not in (1, 2, 3):
        raise ConfigError(f"order: given {order!r}, must be 1, 2 or 3")

    def slope(x: Tensor) -> Tensor:
        return gradient(log_ratio, x)

    d = x[0].numel()
    cov = jacobian(slope, x) if order > 1 else None
    third = jacobian(lambda x: jacobian(slope, x), x).reshape(-1, d, d, d) if order > 2 else None
    return Cumulants(slope(x), cov, third)


def tweedie(log_prob: Field, x: Tensor, sigma: Time, alpha: Time = 1.0, *, order: Literal[1, 2, 3] = 2) -> Cumulants:
    """The cumulants of x_0 given x = alpha x_0 + sigma eps, Eq. (2), from the density of x alone.

    Args:
        log_prob: log p of x, (B, *event) -> (B,), up to a constant.
        x: states.
        sigma, alpha: numbers or (B,), above 0.
        order: as in `cumulants`.
    """
    noise, gain = as_time(sigma) ** 2, as_time(sigma) ** 2 / as_time(alpha)

    def log_ratio(x: Tensor) -> Tensor:
        return log_prob(x) + 0.5 * dot(x, x / expand(noise, x))

    found = cumulants(log_ratio, x, order=order)
    scaled = [None if k is None else expand(gain**n, k) * k for n, k in enumerate(found, 1)]
    assert scaled[0] is not None
    return Cumulants(scaled[0], scaled[1], scaled[2])


def sure(
    denoise: Field,
    x: Tensor,
    sigma: Time,
    *,
    probes: Probes = None,
    index: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Stein's unbiased estimate of |D(x) - x_0|^2 from x = x_0 + sigma eps alone, Eq. (3), (B,); it can be negative.

    Its mean trains a denoiser from noisy data without a clean sample.

    Args:
        denoise: D, (B, *event) -> (B, *event), differentiable.
        x: noisy data.
        sigma: of its noise, a number or (B,).
        probes, index, chunk: as in `calculus.divergence`.
    """
    value, spread = value_and_divergence(denoise, x, probes=probes, index=index, chunk=chunk)
    moved, noise = value - x, as_time(sigma).to(x.device, x.dtype) ** 2
    return dot(moved, moved) + noise * (2.0 * spread.value - x[0].numel())
