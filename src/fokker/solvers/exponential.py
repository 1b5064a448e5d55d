r"""What the exponential integrators share: two coordinates in which the flow is semilinear with rate +-1.

noise side   z = x / sigma,  dz/dlam = z - noise,     kappa = +1
data side    y = x / alpha,  dy/dlam = x0 - y,        kappa = -1

A step of h = lam_t - lam_s with the stored predictions m_j (noise or x0) and weights of the unit interval is

    x_t = carry x_s + gain sum_j w_j m_j
    carry = alpha_t / alpha_s (noise), sigma_t / sigma_s (data);     gain = -sigma_t h (noise), alpha_t h (data)
    sum_j w_j m_j ~ int_0^1 e^{(1 - u) kappa h} m(lam_s + u h) du,   whose moments of u^k / k! are phi_{k+1}(kappa h)

(book Eq. 9.4.9; its Eq. at l.6923 prints phi(h) for the data side, where phi(-h) is right.) An infinite h, at an end
where alpha or sigma is 0, leaves DDIM's step. Single-step methods: Hochbruck & Ostermann 2005, with one free node at
order 2 and two at order 3; DPM-Solver (Lu et al. 2022b) and DPM-Solver++ (2022c) are among them.
"""

from __future__ import annotations

import math
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from ..process import Process
from .plan import Step, Term, X, evaluate

__all__ = ["Side", "carry_of", "gain_of", "interpolation", "phi", "single_step"]

Side = Literal["data", "noise"]
READING = {"data": "x0", "noise": "noise"}
KAPPA = {"data": -1.0, "noise": 1.0}


def phi(k: int, z: Tensor) -> Tensor:
    """phi_k(z) = int_0^1 e^{(1-u) z} u^{k-1} / (k-1)! du, k >= 1; by its series sum_j z^j / (j+k)! where |z| < 1."""
    near = z.clamp(-1.0, 1.0)
    series = torch.zeros_like(z)
    for j in range(18, -1, -1):
        series = series * near + 1.0 / math.factorial(j + k)
    value = torch.expm1(z)
    for j in range(1, k + 1):
        value = (value if j == 1 else value - 1.0 / math.factorial(j - 1)) / z
    return torch.where(z.abs() < 1.0, series, value)


def interpolation(nodes: Tensor, moments: Tensor) -> Tensor:
    """Weights w (N, k) with sum_j w_j nodes_j^p = moments_p for p < k: what integrates the polynomial through nodes.

    Args:
        nodes: (N, k), distinct in a row.
        moments: (N, k), the integrals of u^p.
    """
    powers = nodes[:, None, :] ** torch.arange(nodes.shape[1], dtype=nodes.dtype)[:, None]
    weights: Tensor = torch.linalg.solve(powers, moments)
    return weights


def carry_of(process: Process, side: Side, s: Tensor, t: Tensor) -> Tensor:
    """What multiplies x_s in a step from s to t."""
    c = process.alpha if side == "noise" else process.sigma
    return c(t) / c(s)


def gain_of(process: Process, side: Side, s: Tensor, t: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """(gain, gain phi_1) of a step of h from s to t; gain is 0 where h is infinite, the second is finite there."""
    a, b = (process.alpha, process.sigma) if side == "data" else (process.sigma, process.alpha)
    c = a(t) if side == "data" else -a(t)
    finite = torch.isfinite(h)
    step = torch.where(finite, h, 1.0)
    whole = a(t) - a(s) * b(t) / b(s)  # DDIM's coefficient, without a difference of infinities
    kappa = KAPPA[side]
    return torch.where(finite, c * h, 0.0), torch.where(finite, c * torch.expm1(kappa * step) * kappa, whole)


def single_step(
    process: Process,
    side: Side,
    order: int,
    s: Tensor,
    t: Tensor,
    nodes: tuple[float, float] | None = None,
    published: bool = False,
    slots: tuple[int, int, int] = (0, 1, 2),
) -> list[Step]:
    """Single steps of `order` from times s to t (N,): evaluations at lam_s, lam_s + r1 h (and lam_s + r2 h).

    Args:
        process: whose clock it is.
        side: what is predicted.
        order: 1, 2 or 3; where lam is infinite at an end, 1.
        s, t: starts and ends, float64.
        nodes: (r1, r2); default (1/2, -) at order 2 and (1/3, 2/3) at order 3.
        published: order 2 with Lu et al.'s weights phi_1 / (2 r1), not phi_2 / r1, for the second evaluation.
        slots: where the evaluations are kept.
    """
    h = process.lam(t) - process.lam(s)
    if order > 1 and not bool(torch.isfinite(h).all()):
        steps: list[Step] = []
        for finite, group in groupby(range(len(s)), key=torch.isfinite(h).tolist().__getitem__):
            part = list(group)
            steps += single_step(process, side, order if finite else 1, s[part], t[part], nodes, published, slots)
        return steps
    kappa, reading = KAPPA[side], READING[side]
    carry, (gain, first) = carry_of(process, side, s, t), gain_of(process, side, s, t, h)
    if order == 1:
        table = zip(*(c.tolist() for c in (s, t, carry, first)), strict=True)
        slot = slots[0]
        return [Step(a, b, (evaluate(a, reading, slot),), ((X, on_x), (("m", slot), c))) for a, b, on_x, c in table]
    r1, r2 = nodes or ((0.5, 1.0) if order == 2 else (1 / 3, 2 / 3))
    inner = [(r, t if r == 1.0 else process.time(process.lam(s) + r * h)) for r in (r1, r2)[: order - 1]]
    stages = [[carry_of(process, side, s, at), gain_of(process, side, s, at, r * h)[1]] for r, at in inner]
    second = gain * phi(2, kappa * h)
    if order == 2:
        weights = [first / (2.0 * r1) if published else second / r1]
    else:
        tilt = r2 * (2.0 - 3.0 * r2) / (r1 * (3.0 * r1 - 2.0))  # Hochbruck & Ostermann's gamma; 0 at r2 = 2/3
        bend = tilt * r1 * phi(2, kappa * r1 * h) + r2**2 / r1 * phi(2, kappa * r2 * h)
        bend = bend * gain_of(process, side, s, inner[1][1], h)[0]
        stages[1] = [stages[1][0], stages[1][1] - bend, bend]
        weights = [tilt * second / (tilt * r1 + r2), second / (tilt * r1 + r2)]
    # per evaluation after the first, and at the end: what multiplies x, m_0, m_1, m_2
    combinations = [torch.stack(rows, -1).tolist() for rows in (*stages, [carry, first - sum(weights), *weights])]
    times = torch.stack([s, t, *(at for _, at in inner)], -1).tolist()
    steps = []
    for (start, end, *later), *rows in zip(times, *combinations, strict=True):
        terms = [_terms(row, slots) for row in rows]
        found = [evaluate(at, reading, slots[j + 1], terms[j]) for j, at in enumerate(later)]
        steps.append(Step(start, end, (evaluate(start, reading, slots[0]), *found), terms[-1]))
    return steps


def _terms(numbers: list[float], slots: tuple[int, int, int]) -> tuple[Term, ...]:
    on_x, *on_m = numbers
    return ((X, on_x), *((("m", slot), c) for slot, c in zip(slots, on_m, strict=False) if c != 0.0))
