r"""Score matching: losses of a score field s(x), row by row, whose minimiser is grad log p.

    (1)  explicit     1/2 |s - grad log p|^2                       needs the answer; the measure of every model
    (2)  implicit     div s + 1/2 |s|^2                            (1) - C,  C = 1/2 E|grad log p|^2     (Hyvarinen)
    (3)  sliced       u^T J u + 1/2 (u . s)^2,  E[u u^T] = I       (2) in the mean over probes u
         reduced      u^T J u + 1/2 |s|^2                          the same with less variance (SSM-VR)
    (4)  denoising    1/2 |s(x_t) + eps / sigma|^2                 of x_t = alpha x_0 + sigma eps: (1) on p_t, and
                                                                   C = 1/2 (D / sigma^2 - E|grad log p_t|^2) more
    (5)  generalised  1/2 |g|^2 - L^+ g                            1/2 |g - L p / p|^2 less a constant, L linear with
                                                                   the adjoint L^+: int (L f) . g = int f (L^+ g)
    (6)  second order |sigma^2 S + I - l l^T|^2,  l = sigma s + eps     S -> Hess log p_t, with s known

In (5) L = grad, L^+ = -div is (2); L f = x f + sigma^2 grad f, L^+ g = x . g - sigma^2 div g has L p / p = x + sigma^2
grad log p, the denoiser of x = x_0 + sigma eps (alpha E[x_0 | x] where x_0 is scaled), and the loss is SURE / 2 less
(|x|^2 - D sigma^2) / 2. An energy E has s = -grad E: (2) is -Lap E + 1/2 |grad E|^2. Where s is wrong by d in (6), S
tends to Hess log p_t + d d^T.

(1) to (3) need data that has a density: on data of lower dimension (1) says nothing of s beside the data, and (2) and
(3) have no minimum; (4) is at home there. A field is a callable of x that treats every row alone, e.g.
`lambda x: denoiser(x, t).score`. Sources: Hyvarinen 2005; Vincent 2011; Song et al. 2020 (sliced); Lu et al. 2022
(second order); book Sec. 3.1.3, 3.2.1, 3.3.1-3.3.6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..calculus import Field, Hutchinson, Probes, divergence, gradient, jacobian, value_and_divergence
from ..calculus.operators import dot
from ..errors import ConfigError
from ..process import as_time, expand
from ..process.base import Time

__all__ = [
    "Curvature",
    "FirstOrder",
    "Operator",
    "denoising_matching",
    "explicit_matching",
    "generalised_matching",
    "implicit_matching",
    "second_order_matching",
    "sliced_matching",
]


ONE = Hutchinson()


def explicit_matching(score: Field, x: Tensor, target: Tensor) -> Tensor:
    """1/2 |s(x) - target|^2, Eq. (1), (B,).

    Args:
        score: (B, *event) -> (B, *event).
        x: states.
        target: grad log p(x), of the shape of x; or any grad log p(x | z), which has the same minimiser.
    """
    missed = score(x) - target
    return 0.5 * dot(missed, missed)


def implicit_matching(
    score: Field, x: Tensor, *, probes: Probes = None, index: Tensor | None = None, chunk: int | None = None
) -> Tensor:
    """div s + 1/2 |s|^2, Eq. (2), (B,): the divergence exact (D products with J), or by `probes` (then it is SSM-VR).

    Args:
        score: (B, *event) -> (B, *event), twice differentiable where it is trained (no ReLU).
        x: data.
        probes, index, chunk: as in `calculus.divergence`.
    """
    s, spread = value_and_divergence(score, x, probes=probes, index=index, chunk=chunk)
    return spread.value + 0.5 * dot(s, s)


def sliced_matching(
    score: Field,
    x: Tensor,
    *,
    probes: Hutchinson | Tensor = ONE,
    reduced: bool = False,
    index: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """The mean over probes of u^T J u + 1/2 (u . s)^2, or with 1/2 |s|^2 if `reduced`, Eq. (3), (B,).

    Its reduced form varies less except where J and s s^T happen to cancel.
    One probe's variance is 2 (|S|^2 - sum S_ii^2) with signs, 2 |S|^2 with normals, S = (J + J^T + s s^T) / 2 or, if
    `reduced`, without s s^T.

    Args:
        score, x: as in `implicit_matching`.
        probes: `Hutchinson(...)`, keyed by its seed and index, or the probes themselves (K, B, *event).
        reduced: the second term exact.
        index, chunk: as in `calculus.divergence`.
    """
    if isinstance(probes, Hutchinson):
        numbers = torch.arange(len(x), device=x.device) if index is None else index
        probes = probes.draw(numbers, x.shape[1:], x.dtype)
    s, spread = value_and_divergence(score, x, probes=probes, chunk=chunk)
    square = dot(s, s) if reduced else (probes.to(s) * s).flatten(2).sum(2).square().mean(0)
    return spread.value + 0.5 * square


def noised(x0: Tensor, noise: Tensor, sigma: Time, alpha: Time) -> Tensor:
    """alpha x0 + sigma noise; numbers or (B,)."""
    return expand(as_time(alpha), x0) * x0 + expand(as_time(sigma), x0) * noise


def denoising_matching(score: Field, x0: Tensor, noise: Tensor, sigma: Time, alpha: Time = 1.0) -> Tensor:
    """1/2 |s(alpha x0 + sigma noise) + noise / sigma|^2, Eq. (4), (B,). (`Denoising` trains it at all times.)

    Args:
        score: (B, *event) -> (B, *event).
        x0: data. noise: standard normal, of its shape.
        sigma, alpha: numbers or (B,); sigma > 0.
    """
    x = noised(x0, noise, sigma, alpha)
    return explicit_matching(score, x, -noise / expand(as_time(sigma), noise))


class Operator(Protocol):
    """A linear operator L on functions and its adjoint on fields: int (L f) . g = int f (L^+ g)."""

    def __call__(self, f: Field, x: Tensor) -> Tensor:
        """(L f)(x) of f: (B, *event) -> (B,)."""

    def adjoint(self, g: Field, x: Tensor) -> Tensor:
        """(L^+ g)(x) of a field g of the shape of L f, (B,)."""

    def score(self, log_prob: Field, x: Tensor) -> Tensor:
        """L p / p at x: what `generalised_matching` finds."""


@dataclass(frozen=True)
class FirstOrder:
    """L f = position x f + slope grad f, with L^+ g = position x . g - slope div g and L p / p = position x + slope s.

    (0, 1), the default, is Hyvarinen's; (1, sigma^2) the denoiser's (the book's Eq. has f' for f in its first term).

    Args:
        position, slope: numbers.
        probes: of the adjoint's divergence, as in `calculus.divergence`.
    """

    position: float = 0.0
    slope: float = 1.0
    probes: Probes = None

    def __call__(self, f: Field, x: Tensor) -> Tensor:
        """(L f)(x), of the shape of x."""
        value = f(x)
        return self.position * x * value.reshape(-1, *(1,) * (x.ndim - 1)) + self.slope * gradient(f, x)

    def adjoint(self, g: Field, x: Tensor) -> Tensor:
        """(L^+ g)(x) of g: (B, *event) -> (B, *event)."""
        value, spread = value_and_divergence(g, x, probes=self.probes)
        return self.position * dot(x, value) - self.slope * spread.value

    def score(self, log_prob: Field, x: Tensor) -> Tensor:
        """position x + slope grad log p."""
        return self.position * x + self.slope * gradient(log_prob, x)


@dataclass(frozen=True)
class Curvature:
    """L f = Hess f, with L^+ g = sum_ij d_i d_j g_ij and L p / p = Hess log p + s s^T, (B, d, d) of the flat event."""

    def __call__(self, f: Field, x: Tensor) -> Tensor:
        """(Hess f)(x), (B, d, d)."""
        return jacobian(lambda x: gradient(f, x), x)

    def adjoint(self, g: Field, x: Tensor) -> Tensor:
        """(L^+ g)(x) of g: (B, *event) -> (B, d, d)."""

        def rows(x: Tensor) -> Tensor:
            d = x[0].numel()
            return jacobian(g, x).reshape(-1, d, d, d).diagonal(dim1=2, dim2=3).sum(-1).reshape(x.shape)

        return divergence(rows, x).value

    def score(self, log_prob: Field, x: Tensor) -> Tensor:
        """Hess log p + s s^T."""
        s = gradient(log_prob, x).flatten(1)
        return self(log_prob, x) + s[:, :, None] * s[:, None, :]


def generalised_matching(field: Field, x: Tensor, operator: Operator) -> Tensor:
    """1/2 |g(x)|^2 - (L^+ g)(x), Eq. (5), (B,): least at g = L p / p.

    Args:
        field: g, (B, *event) to the shape of L f.
        x: samples of p.
        operator: L.
    """
    value = field(x)
    return 0.5 * dot(value, value) - operator.adjoint(field, x)


def second_order_matching(
    second: Field, score: Field, x0: Tensor, noise: Tensor, sigma: Time, alpha: Time = 1.0
) -> Tensor:
    """|sigma^2 S + I - l l^T|^2 or, for a trace, (sigma^2 tr S + D - |l|^2)^2, Eq. (6), (B,); l = sigma s + noise.

    No gradient goes through the score. Of a score network: `lambda x: calculus.jacobian(net, x)` for S, or
    `lambda x: calculus.divergence(net, x).value` for its trace.

    Args:
        second: what is trained, (B, *event) -> (B, d, d), or (B,) for the trace alone.
        score: the first order, known, (B, *event) -> (B, *event).
        x0, noise, sigma, alpha: as in `denoising_matching`.

    Raises:
        ConfigError: `second` gives another shape.
    """
    x = noised(x0, noise, sigma, alpha)
    S, d = second(x), x[0].numel()
    with torch.no_grad():
        known = score(x)
    l = (expand(as_time(sigma), x) * known + noise).flatten(1)
    sigma2: Any = expand(as_time(sigma) ** 2, S)
    if S.shape == (len(x),):
        miss: Tensor = sigma2 * S + d - dot(l, l)
        return miss.square()
    if S.shape != (len(x), d, d):
        raise ConfigError(f"second: gives shape {tuple(S.shape)}, must be ({len(x)}, {d}, {d}), or ({len(x)},) traces")
    missed: Tensor = sigma2 * S + torch.eye(d, dtype=x.dtype, device=x.device) - l[:, :, None] * l[:, None, :]
    return dot(missed, missed)
