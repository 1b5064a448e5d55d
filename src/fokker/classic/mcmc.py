r"""Markov chains towards p = exp(-U) / Z, whose Z nobody needs to know; one chain for each row of a batch.

    (1)  ula        x <- x + eta score(x) + c sqrt(2 eta) z              p^(1/c^2) in the limit eta -> 0
    (2)  leapfrog   p <- p - h/2 grad U(x);   x <- x + h p;   p <- p - h/2 grad U(x)
    (3)  hmc        p ~ N(0, I), L leaps (2), accepted with probability min(1, e^(H - H')),   H = U + |p|^2 / 2
    (4)  mala       (3) with L = 1 and h^2 = 2 eta: x' = x - eta grad U + sqrt(2 eta) z, a Metropolis-corrected (1)
    (5)  tempering  replicas of U_b = U_0 + b (U - U_0), moved by (4); neighbours i, j change places with probability
                    min(1, e^((b_i - b_j) (W_i - W_j))),   W = U - U_0

Acceptance is per row, and what a row draws depends on (seed, its index, the step) alone: sample i is the same whichever
others are drawn. On N(m, v) the mean's error in (1) falls by 1 - eta / v a step, its law settles at the variance
v / (1 - eta / (2 v)), and it is stable for eta < 2 v; (3) to (5) keep p whatever the step.
Sources: book Eqs. 3.1.4 to 3.1.6; Duane et al. 1987 and Neal 2011 (HMC); Roberts & Tweedie 1996 (MALA); Swendsen & Wang
1986, Geyer 1991 (tempering).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .. import noise
from ..calculus.operators import dot
from ..errors import ConfigError

__all__ = ["Chains", "hmc", "leapfrog", "mala", "parallel_tempering", "ula"]

Function = Callable[[Tensor], Tensor]
AT_ONCE = 2**18
"""Random numbers made together: small events draw many steps in one call."""


class Chains(NamedTuple):
    """Where chains have come to.

    x: (B, *event).
    accepted: each row's share of accepted moves (B,); of `parallel_tempering` those of the target itself.
    swapped: each row's share of accepted exchanges of neighbours (B, K - 1), of `parallel_tempering` alone.
    """

    x: Tensor
    accepted: Tensor
    swapped: Tensor | None = None


def _slope(potential: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """U (B,) and its gradient (B, *event)."""
    with torch.enable_grad():
        y = x.detach().requires_grad_()
        value = potential(y)
        (slope,) = torch.autograd.grad(value.sum(), y)  # of y alone: parameters get none
    return value.detach(), slope


def _draws(
    x: Tensor, shape: Sequence[int], steps: int, seed: int, indices: Tensor | None, start: int, domain: str
) -> Iterator[Tensor]:
    """Standard normals (B, *shape) for every step."""
    if steps < 1:
        raise ConfigError(f"steps: given {steps}, must be at least 1")
    indices = torch.arange(len(x), device=x.device) if indices is None else indices.to(x.device)
    many = max(1, AT_ONCE // max(1, len(x) * math.prod(shape)))
    for first in range(0, steps, many):
        numbers = torch.arange(start + first, start + min(first + many, steps), device=x.device)
        yield from noise.normal(seed, indices, shape, draw=numbers, domain=domain, dtype=x.dtype)


def _log_uniform(pair: Tensor) -> Tensor:
    """log u of a uniform u, from two normals (..., 2): half their squared length is exponential."""
    return -0.5 * pair.square().sum(-1)


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ConfigError(f"{name}: given {value}, must be more than 0, and finite")


def _spread(c: Tensor, x: Tensor) -> Tensor:
    """c, of the leading dimensions of x, ready to multiply it."""
    return c.reshape(c.shape + (1,) * (x.ndim - c.ndim))


@torch.no_grad()
def ula(
    score: Function,
    x: Tensor,
    *,
    steps: int,
    eta: float,
    noise_scale: float = 1.0,
    seed: int = 0,
    indices: Tensor | None = None,
    start: int = 0,
    domain: str = "langevin",
) -> Chains:
    """Unadjusted Langevin steps, Eq. (1); every one is accepted, and the law they settle at is off by O(eta).

    Args:
        score: x (B, *event) -> grad log p, of the same shape.
        x: where the chains start.
        steps: how many.
        eta: step size, > 0; below 2 / (largest curvature of -log p) for stability.
        noise_scale: c; 0 climbs to the modes.
        seed, indices, domain: keys of the randomness; indices (B,) default to range(B).
        start: the number of the first step's draw; to go on with chains, give the number of steps already made.

    Raises:
        ConfigError: steps < 1 or eta <= 0.
    """
    _positive(eta=eta)
    for z in _draws(x, x.shape[1:], steps, seed, indices, start, domain):
        x = x + eta * score(x) + noise_scale * math.sqrt(2.0 * eta) * z
    return Chains(x, x.new_ones(len(x)))


def _leapfrog(
    potential: Function, x: Tensor, p: Tensor, slope: Tensor, size: float, leaps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x, p, U, grad U) after `leaps` steps of Eq. (2); `slope` is grad U at the start."""
    value = slope
    for _ in range(leaps):
        p = p - 0.5 * size * slope
        x = x + size * p
        value, slope = _slope(potential, x)
        p = p - 0.5 * size * slope
    return x, p, value, slope


def leapfrog(potential: Function, x: Tensor, p: Tensor, *, size: float, leaps: int = 1) -> tuple[Tensor, Tensor]:
    """(x, p) after `leaps` steps of Eq. (2): keeps volume, is undone by p -> -p, and changes H by O(size^2).

    Args:
        potential: U, x (B, *event) -> (B,).
        x, p: position and momentum (B, *event).
        size: h, > 0.
        leaps: how many, >= 1.
    """
    _positive(size=size, leaps=leaps)
    y, q, _, _ = _leapfrog(potential, x, p, _slope(potential, x)[1], size, leaps)
    return y, q


@torch.no_grad()
def hmc(
    potential: Function,
    x: Tensor,
    *,
    steps: int,
    size: float,
    leaps: int = 10,
    seed: int = 0,
    indices: Tensor | None = None,
    start: int = 0,
    domain: str = "langevin",
) -> Chains:
    """Hamiltonian Monte Carlo, Eq. (3): p itself is kept, whatever the step; a small one is accepted more often.

    Args:
        potential: U = -log p up to a constant, x (B, *event) -> (B,).
        x: where the chains start.
        steps: moves, each of `leaps` evaluations with gradient.
        size: h, > 0.
        leaps: L, >= 1.
        seed, indices, start, domain: as in `ula`.

    Raises:
        ConfigError: steps, leaps < 1 or size <= 0.
    """
    _positive(size=size, leaps=leaps)
    value, slope = _slope(potential, x)
    d, count = x[0].numel(), x.new_zeros(len(x))
    for z in _draws(x, (d + 2,), steps, seed, indices, start, domain):
        p = z[:, :d].reshape(x.shape)
        y, q, new, steep = _leapfrog(potential, x, p, slope, size, leaps)
        # A proposal that is not finite compares as false: it is refused.
        yes = _log_uniform(z[:, d:]) < value - new + 0.5 * (dot(p, p) - dot(q, q))
        x, slope = torch.where(_spread(yes, x), y, x), torch.where(_spread(yes, x), steep, slope)
        value, count = torch.where(yes, new, value), count + yes
    return Chains(x, count / steps)


def mala(
    potential: Function,
    x: Tensor,
    *,
    steps: int,
    eta: float,
    seed: int = 0,
    indices: Tensor | None = None,
    start: int = 0,
    domain: str = "langevin",
) -> Chains:
    """Metropolis-adjusted Langevin, Eq. (4): `ula`'s step, accepted so that p itself is kept.

    Args:
        potential: U = -log p up to a constant, x (B, *event) -> (B,).
        x, steps, eta, seed, indices, start, domain: as in `ula`.

    Raises:
        ConfigError: steps < 1 or eta <= 0.
    """
    _positive(eta=eta)
    keys = {"seed": seed, "indices": indices, "start": start, "domain": domain}
    return hmc(potential, x, steps=steps, size=math.sqrt(2.0 * eta), leaps=1, **keys)  # type: ignore[arg-type]


@torch.no_grad()
def parallel_tempering(
    potential: Function,
    x: Tensor,
    *,
    betas: Sequence[float],
    steps: int,
    eta: float | Sequence[float],
    base: Function | None = None,
    seed: int = 0,
    indices: Tensor | None = None,
    start: int = 0,
    domain: str = "langevin",
) -> Chains:
    """Replica exchange, Eq. (5): flat levels cross between modes, exchanges bring what they find to the target.

    Args:
        potential: U = -log p up to a constant, x (B, *event) -> (B,).
        x: where all replicas of a row start.
        betas: decreasing, from 1 (the target) to 0 or more.
        steps: moves of every level, each followed by exchanges: of pairs (0, 1), (2, 3), .. and (1, 2), .. in turn.
        eta: step size of every level, or one for each.
        base: U_0, of the law at b = 0; without one p^b, which at b = 0 is no law.
        seed, indices, start, domain: as in `ula`.

    Raises:
        ConfigError: betas that do not decrease from 1 to at least 0, another number of etas, steps < 1, eta <= 0.
    """
    k, (n, *event) = len(betas), x.shape
    etas = [float(eta)] * k if isinstance(eta, (int, float)) else [float(e) for e in eta]
    if not betas or betas[0] != 1.0 or betas[-1] < 0.0 or any(b <= c for b, c in pairwise(betas)):
        raise ConfigError(f"betas: given {tuple(betas)}, must decrease from 1 to at least 0")
    if len(etas) != k:
        raise ConfigError(f"eta: given {len(etas)} numbers for {k} betas, must be one, or one for each")
    for size in etas:
        _positive(eta=size)
    beta, sizes = (torch.tensor(c, dtype=torch.float64).to(x) for c in (list(betas), [math.sqrt(2 * e) for e in etas]))
    b, h = _spread(beta[None], x[:, None]), _spread(sizes[None], x[:, None])

    def terms(y: Tensor) -> list[Tensor]:
        """U_0 and W (B, K) and their gradients at y (B, K, *event)."""
        flat = y.flatten(0, 1)
        value, slope = _slope(potential, flat)
        low, flatter = (torch.zeros_like(value), torch.zeros_like(flat)) if base is None else _slope(base, flat)
        split = (low, value - low, flatter, slope - flatter)
        return [a.reshape(n, k, *a.shape[1:]) for a in split]

    d, number = math.prod(event), torch.arange(k, device=x.device)
    rows = torch.arange(n, device=x.device)[:, None]
    state = [x[:, None].expand(n, k, *event)]
    state += terms(state[0])
    count, exchanged = x.new_zeros(n), x.new_zeros(n, max(k - 1, 0))
    for step, z in enumerate(_draws(x, (k, d + 4), steps, seed, indices, start, domain)):
        y, low, gap, flatter, slope = state
        p = z[..., :d].reshape(y.shape)
        q = p - 0.5 * h * (flatter + b * slope)
        moved = y + h * q
        proposal = [moved, *terms(moved)]
        q = q - 0.5 * h * (proposal[3] + b * proposal[4])
        kinetic = 0.5 * (p.square() - q.square()).flatten(2).sum(2)
        yes = _log_uniform(z[..., d : d + 2]) < low - proposal[1] + beta * (gap - proposal[2]) + kinetic
        state = [torch.where(_spread(yes, a), a, old) for a, old in zip(proposal, state, strict=True)]
        count = count + yes[:, 0]
        left = number[step % 2 : k - 1 : 2]
        gap = state[2]
        swap = _log_uniform(z[:, left, d + 2 :]) < (beta[left] - beta[left + 1]) * (gap[:, left] - gap[:, left + 1])
        source = number.repeat(n, 1)
        source[:, left] += swap.long()
        source[:, left + 1] -= swap.long()
        state = [a[rows, source] for a in state]
        exchanged[:, left] += swap.to(x.dtype)
    tries = torch.tensor([len(range(i % 2, steps, 2)) for i in range(k - 1)]).to(x).clamp(min=1)
    return Chains(state[0][:, 0], count / steps, exchanged / tries)
