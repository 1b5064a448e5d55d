r"""Exponential multistep methods: the polynomial through stored predictions, integrated exactly (book Sec. 9.3, 9.5.4).

    x_t = carry x_s + sum_j c_j m_{i-j},     c_j = integral of the Lagrange polynomial l_j      (see `exponential`)

Starts: "ramp" grows the order with the history (first step DDIM), which limits the asymptotic order to 2 but measures
better at few steps; "single" takes the first steps by a single-step method of one order less, which keeps the order.

Ends: with `lower_order_final` step i of N has an order of at most N - i, a step to 0 being one of the N. What it does
to the error (rings and mixtures, VP and Flow, 5 to 15 evaluations): ending at t_min after a long last step in lam, as
uniform t has, mostly 3 to 50 times less on the data side; on uniform lam .3 to .9 of it there below 8 evaluations (up
to 1.4 at order 3 in 8 dimensions), but up to 3 times as much above; on the noise side between .2 (uniform t) and 3.
Ending by the step to 0 it changes nothing at order 2, whose last step is of order 1 as it is, and mostly costs at
order 3 (.6 to 1.7). The order becomes 2 at most.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..process import Process
from .exponential import READING, Side, carry_of, gain_of, interpolation, kappa_of, phi, single_step, spread_of
from .plan import Stage, Step, Term, X

__all__ = ["Space", "Start", "corrected", "gauss_legendre", "last_order", "multistep", "ring", "slots_of", "tables"]

Space = Literal["t", "rho", "lam"]
Start = Literal["ramp", "single"]
Variable = Literal["t", "rho", "lam", "index"]  # "index": the step's number, with DDIM's coefficient for the step


def tables(
    process: Process,
    side: Side,
    times: Tensor,
    order: int,
    space: Variable = "lam",
    published: tuple[int, ...] = (),
    ahead: int = 0,
    eta: float = 0.0,
    last: int | None = None,
) -> tuple[Tensor, Tensor]:
    """(carry (N,), coefficients (N, order + ahead)) of the steps between N + 1 times, newest node first.

    Step i uses the k = min(order, i + 1) newest nodes i, i - 1, ... (those with a finite coordinate), and with
    `ahead=1` the end of the step before them; the other coefficients are 0.

    Args:
        process: whose clock it is.
        side: what is predicted.
        times: (N + 1,), float64.
        order: the number of past nodes.
        space: the variable of the polynomial.
        published: numbers of nodes (2, 3) at which the literature's weights are taken instead of the exact ones: at 2
            (1 + r/2, -r/2) phi_1, r = h / h_before; at 3 the second derivative without its factor 2.
        ahead: 1 for a corrector.
        eta: amount of noise, with space "lam" (see `exponential`).
        last: the most nodes on the last step, one more on each before; None: no limit.
    """
    s, t, lam = times[:-1], times[1:], process.lam(times)
    h = lam[1:] - lam[:-1]
    carry, (gain, first) = carry_of(process, side, s, t, eta), gain_of(process, side, s, t, h, eta)
    u = {"t": times, "lam": lam, "rho": (-lam).exp(), "index": torch.arange(len(times)).to(times)}[space]
    count = torch.arange(1, len(times)).clamp(max=order)
    if last is not None:
        count = torch.minimum(count, last + torch.arange(len(s) - 1, -1, -1))
    finite = torch.isfinite(u) & torch.isfinite(lam)
    count = torch.where(finite[:-1] & finite[1:], torch.minimum(count, finite[:-1].cumsum(0)), 0)
    out = torch.zeros(len(s), order + ahead, dtype=torch.float64)
    out[:, ahead] = torch.where(count == 0, first, 0.0)
    for k in sorted(set(count.tolist())):
        if k == 0:
            continue
        rows = (count == k).nonzero()[:, 0]
        nodes = torch.stack([u[rows + 1 - j] for j in range(1 - ahead, k + 1)], -1)
        begin, width = u[rows][:, None], (u[rows + 1] - u[rows])[:, None]
        moments = _moments(process, side, times, lam, rows, k + ahead, space, published, eta)
        scale = gain[rows][:, None]
        if space == "rho":  # d(x / alpha) = noise drho: no exponential is left
            scale = process.alpha(times[rows + 1])[:, None] * width
        elif space == "index":
            scale = first[rows][:, None]
        weights = interpolation((nodes - begin) / width, moments) * scale
        out[rows[:, None], torch.arange(k + ahead)] = weights
    return carry, out


def _moments(
    process: Process,
    side: Side,
    times: Tensor,
    lam: Tensor,
    rows: Tensor,
    k: int,
    space: Variable,
    published: tuple[int, ...],
    eta: float = 0.0,
) -> Tensor:
    """The integrals of u^p, p < k, over the step, u = 0 at its start and 1 at its end."""
    powers = torch.arange(k, dtype=torch.float64)
    h = (lam[rows + 1] - lam[rows])[:, None]
    z = kappa_of(side, eta) * h
    if space in ("rho", "index"):
        return (1.0 / (powers + 1.0)).expand(len(rows), k)
    if space == "lam":
        factorial = (torch.lgamma(powers + 1.0)).exp().round()
        exact = torch.cat([phi(p + 1, z) for p in range(k)], -1) * factorial
        if k in published:
            exact[:, -1] = (exact[:, 0] if k == 2 else exact[:, -1]) / 2.0
        return exact
    x, w = gauss_legendre()
    inside = process.time(lam[rows][:, None] + h * x)
    u = (inside - times[rows][:, None]) / (times[rows + 1] - times[rows])[:, None]
    density = w * ((1.0 - x) * z).exp()
    return torch.stack([(density * u**p).sum(-1) for p in range(k)], -1)


@cache
def gauss_legendre(points: int = 32) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(points)
    return torch.from_numpy(0.5 * (x + 1.0)), torch.from_numpy(0.5 * w)


def corrected(
    process: Process,
    side: Side,
    s: Tensor,
    t: Tensor,
    order: int,
    published: tuple[int, ...] = (),
    eta: float = 0.0,
    last: int | None = None,
    skip: int = 0,
) -> tuple[Tensor, Tensor]:
    """(carry (N,), coefficients (N, order + 1)) of predictor and corrector in one table, newest prediction first.

    Both have the same carry (and noise), so the correction of a step's end, x + sum (c - p) m, joins the next step.
    The first `skip` steps, taken by another method, are not corrected. Other arguments as in `tables`.
    """
    times = torch.cat([s, t[-1:]])
    carry, predictor = tables(process, side, times, order, "lam", published, eta=eta, last=last)
    _, corrector = tables(process, side, times, order, "lam", published, ahead=1, eta=eta, last=last)
    corrector[:, 1:] -= predictor
    corrector[:skip] = 0.0
    now = torch.nn.functional.pad(predictor, (0, 1))  # step i: what multiplies m_i, m_{i-1}, ..., m_{i-order}
    now[1:] += carry[1:, None] * corrector[:-1]
    return carry, now


def multistep(
    process: Process,
    side: Side,
    s: Tensor,
    t: Tensor,
    order: int,
    space: Variable = "lam",
    start: Start = "ramp",
    published: tuple[int, ...] = (),
    eta: float = 0.0,
    last: int | None = None,
) -> list[Step]:
    """The steps from times s to t (N,) of the method that integrates the polynomial through `order` predictions.

    Prediction i is kept in slot i mod order; single-step starts use order - 2 slots more (`slots_of`).
    """
    carry, table = tables(process, side, torch.cat([s, t[-1:]]), order, space, published, eta=eta, last=last)
    singles = order - 1 if start == "single" and order > 2 else 0
    steps: list[Step] = []
    for i in range(min(singles, len(s))):
        steps += single_step(process, side, order - 1, s[i : i + 1], t[i : i + 1], slots=(i, order, order + 1), eta=eta)
    return steps + ring(side, s, t, carry, table, order, spread_of(process, side, s, t, eta))[singles:]


def ring(
    side: Side,
    s: Tensor,
    t: Tensor,
    carry: Tensor,
    table: Tensor,
    slots: int,
    spread: Tensor | None = None,
    affine: Tensor | None = None,
) -> list[Step]:
    """The steps of a table, newest prediction first: prediction i is kept in slot i mod `slots`.

    Args:
        side: what is predicted.
        s, t, carry: starts, ends and what multiplies x, (N,).
        table: what multiplies the predictions, (N, up to `slots`).
        slots: in the ring.
        spread: standard deviation of the noise, (N,); None: none.
        affine: (p, q) of what is kept, p x + q prediction, (at least N, 2); None: the prediction.
    """
    kept = [(0.0, 1.0)] * len(s) if affine is None else [(p, q) for p, q in affine.tolist()]
    steps: list[Step] = []
    numbers = [c.tolist() for c in (s, t, carry, table, torch.zeros_like(s) if spread is None else spread)]
    for i, (a, b, on_x, row, c) in enumerate(zip(*numbers, strict=True)):
        on_m: list[Term] = [(("m", (i - j) % slots), w) for j, w in enumerate(row) if w != 0.0]
        on_z: list[Term] = [(("z", 0), c)] if c else []
        stage = Stage(((X, 1.0),), a, READING[side], kept[i], i % slots)
        steps.append(Step(a, b, (stage,), ((X, on_x), *on_m, *on_z), len(on_z)))
    return steps


def last_order(lower_order_final: bool, to_zero: bool) -> int | None:
    """`last` of `tables`: with N steps in all, step i has an order of at most N - i; a step to 0 is one of the N."""
    return 1 + to_zero if lower_order_final else None


def slots_of(order: int, start: Start) -> int:
    """History slots that `multistep` uses."""
    return order + (order - 2 if start == "single" and order > 2 else 0)
