r"""Equations of motion as residuals: the Ito generator, the continuity and the Fokker-Planck equation.

For dx = f dt + G dw with G the number g or a matrix, D = G G^T and s = grad log p:

    (1)  L h = d_t h + grad h . f + 1/2 tr(D Hess h)                     d h = L h dt + grad h . G dw
    (2)  d_t p = -div(f p) + 1/2 sum_ij d_i d_j (D_ij p) = -div(b p),    b = f - 1/2 (div D + D s)
    (3)  d_t log p = -(div b + b . s)                                    no density is divided by, so none underflows

With b in the place of the velocity the Fokker-Planck equation is a continuity equation: one operator serves both.
Noise is a number, a matrix (d, m) over the flattened event, or a function of (x, t) that returns (), (B,), (d, m) or
(B, d, m). Sources: book Sec. 4.1.5, B.1.2-B.1.3, C.1.1-C.1.4, D.2.5.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import ConfigError
from ..process import as_time, expand
from .operators import Estimate, Field, Probes, at, curvature, divergence, dot, gradient, trace

__all__ = [
    "Noise",
    "continuity_residual",
    "current_velocity",
    "density_rate",
    "fokker_planck_residual",
    "generator",
    "score_residual",
]

Noise = float | Tensor | Callable[..., Tensor]


def amount(noise: Noise, x: Tensor, t: float | Tensor | None) -> Tensor:
    """The noise at x as a tensor of 0 to 3 dimensions. Raises ConfigError for a shape that fits nothing."""
    function = callable(noise)
    G = at(noise, t)(x) if callable(noise) else as_time(noise)
    n, d = len(x), math.prod(x.shape[1:])
    fits = (G.ndim == 0, function and tuple(G.shape) == (n,), G.ndim == 2 and len(G) == d, G.shape[:-1] == (n, d))
    if not any(fits):
        allowed = f"a number, ({d}, m)" + (f", ({n},) or ({n}, {d}, m)" if function else "")
        raise ConfigError(f"noise: given shape {tuple(G.shape)}, must be {allowed}")
    return G.to(x.device, x.dtype) if G.ndim else G


def spread(G: Tensor, x: Tensor, u: Tensor) -> Tensor:
    """G u, of the shape of x, for u of that shape (numbers) or (B, m) (matrices)."""
    return expand(G, x) * u if G.ndim < 2 else (G @ u[..., None])[..., 0].reshape(x.shape)


def gather(G: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """G^T y for y of the shape of x: of that shape, or (B, m)."""
    return expand(G, x) * y if G.ndim < 2 else (G.mT @ y.flatten(1)[..., None])[..., 0]


def width(G: Tensor, x: Tensor) -> tuple[int, ...]:
    """The shape of what drives the noise: the event, or (m,)."""
    return tuple(x.shape[1:]) if G.ndim < 2 else (G.shape[-1],)


def _clock(h: Field, x: Tensor, t: Tensor) -> Tensor:
    """d h(x, t) / dt at fixed x."""
    slope: Tensor = torch.func.jvp(lambda t: h(x, t), (t,), (torch.ones_like(t),))[1]
    return slope


def generator(
    h: Field,
    drift: Field,
    noise: Noise,
    x: Tensor,
    t: float | Tensor | None = None,
    *,
    probes: Probes = None,
    index: Tensor | None = None,
    chunk: int | None = None,
) -> Estimate:
    """The Ito generator of dx = f dt + G dw on h, Eq. (1): the rate of E[h], 0 where h is a martingale.

    Args:
        h: (B, *event) -> (B, *out), component by component; of (x, t) where t is given, as drift and noise are.
        drift: f, (B, *event) -> (B, *event).
        noise: G; see the module.
        probes: None sums over the noise's directions; `Hutchinson(...)`, or (K, B, *event) and for matrices (K, B, m).
        index, chunk: as in `divergence`.

    Returns:
        Estimate, (B, *out).
    """
    here = at(h, t)
    first = torch.func.jvp(here, (x,), (at(drift, t)(x),))[1]
    if t is not None:
        first = first + _clock(h, x, as_time(t))
    G = amount(noise, x, t)
    second = trace(lambda u: curvature(here, x, spread(G, x, u)), x, width(G, x), probes, index, chunk)
    return Estimate(first + 0.5 * second.value, 0.5 * second.stderr)


def current_velocity(
    score: Field, drift: Field, noise: Noise, x: Tensor, t: float | Tensor | None = None, *, chunk: int | None = None
) -> Tensor:
    """b = f - 1/2 (div D + D s), Eq. (2): the deterministic velocity with the same marginals, of the shape of x.

    For a process's own drift and noise it is the probability-flow velocity f x - 1/2 g^2 s.
    """
    G, s = amount(noise, x, t), at(score, t)(x)
    pushed = spread(G, x, gather(G, x, s))
    if callable(noise):  # a noise that varies in x pushes as well
        if G.ndim == 1:
            pushed = pushed + gradient(lambda x: amount(noise, x, t).square(), x)
        elif G.ndim == 3:

            def form(u: Tensor) -> Tensor:
                def column(x: Tensor) -> Tensor:
                    local = amount(noise, x, t)
                    return spread(local, x, gather(local, x, u))

                slope: Tensor = torch.func.jvp(column, (x,), (u,))[1]
                return slope

            pushed = pushed + trace(form, x, x.shape[1:], None, None, chunk).value
    return at(drift, t)(x) - 0.5 * pushed


def density_rate(
    score: Field,
    drift: Field,
    noise: Noise,
    x: Tensor,
    t: float | Tensor | None = None,
    *,
    probes: Probes = None,
    index: Tensor | None = None,
    chunk: int | None = None,
) -> Estimate:
    """d_t log p as the Fokker-Planck equation has it, Eq. (3), (B,): the right side, from the score alone.

    `noise=0.0` is the continuity equation. Arguments as in `generator` and `divergence`.
    """

    def b(x: Tensor) -> Tensor:
        return current_velocity(score, drift, noise, x, t, chunk=chunk)

    spreading = divergence(b, x, probes=probes, index=index, chunk=chunk, mode="forward")
    return Estimate(-(spreading.value + dot(b(x), at(score, t)(x))), spreading.stderr)


def fokker_planck_residual(
    log_prob: Field,
    drift: Field,
    noise: Noise,
    x: Tensor,
    t: float | Tensor,
    *,
    probes: Probes = None,
    index: Tensor | None = None,
    chunk: int | None = None,
) -> Estimate:
    """d_t log p + div b + b . s, the Fokker-Planck equation over p, (B,): 0 where p_t is the law of dx = f dt + G dw.

    Args:
        log_prob: (x, t) -> log p_t(x), (B,); exact, e.g. `lambda x, t: law.at(process, t).log_prob(x)`.
        drift, noise: of (x, t); see the module.
        x: where, (B, *event). t: when, a number or (B,).
        probes, index, chunk: as in `divergence`.
    """

    def score(x: Tensor, t: float | Tensor) -> Tensor:
        return gradient(log_prob, x, t)

    rate = density_rate(score, drift, noise, x, t, probes=probes, index=index, chunk=chunk)
    return Estimate(_clock(log_prob, x, as_time(t)) - rate.value, rate.stderr)


def continuity_residual(
    log_prob: Field,
    velocity: Field,
    x: Tensor,
    t: float | Tensor,
    *,
    probes: Probes = None,
    index: Tensor | None = None,
    chunk: int | None = None,
) -> Estimate:
    """d_t log p + div v + v . grad log p, (B,): 0 where the flow of v carries p_t (book Eq. B.1.4, Thm 5.2.2).

    The acceptance test of a path made by hand; arguments as in `fokker_planck_residual`.
    """
    return fokker_planck_residual(log_prob, velocity, 0.0, x, t, probes=probes, index=index, chunk=chunk)


def score_residual(
    score: Field,
    drift: Field,
    noise: Noise,
    x: Tensor,
    t: float | Tensor,
    *,
    probes: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """d_t s - grad(d_t log p), of the shape of x: the Fokker-Planck equation of a score whose density is not known.

    0 for the score of the true marginals. Source: Lai et al. 2023 (score FPE).

    Args:
        score: (x, t) -> (B, *event).
        probes: None is exact; (K, B, *event) estimates the inner divergence, unbiased.
    """

    def rate(x: Tensor) -> Tensor:
        return density_rate(score, drift, noise, x, t, probes=probes, chunk=chunk).value

    return _clock(score, x, as_time(t)) - gradient(rate, x)
