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

The same table solves dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw, which has the same marginals at every eta:

noise side   dz = (z - (1 + eta^2) noise) dlam + sqrt(2) eta dw,              kappa = 1
data side    dy = (1 + eta^2) (x0 - y) dlam + sqrt(2) eta (sigma/alpha) dw,   kappa = -(1 + eta^2)

gain times 1 + eta^2, carry on the data side times e^{-eta^2 h}, and noise of standard deviation

    eta sigma_t sqrt(e^{2h} - 1) (noise),     sigma_t sqrt(1 - e^{-2 eta^2 h}) (data)

eta = 1 is SEEDS (Gonzalez et al. 2023) on the noise side and SDE-DPM-Solver++ (Lu et al. 2022c) on the data side, where
any eta is SA-Solver (Xue et al. 2023, whose tau it is; k-diffusion's eta is eta^2).
"""

from __future__ import annotations

import math
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from ..process import Process
from .plan import Step, Term, X, evaluate

__all__ = ["Side", "carry_of", "gain_of", "interpolation", "kappa_of", "phi", "single_step", "spread_of"]

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


def kappa_of(side: Side, eta: float = 0.0) -> float:
    """The rate of the linear part in lam."""
    return KAPPA[side] * (1.0 + eta**2) if side == "data" else KAPPA[side]


def carry_of(process: Process, side: Side, s: Tensor, t: Tensor, eta: float = 0.0) -> Tensor:
    """What multiplies x_s in a step from s to t."""
    c = process.alpha if side == "noise" else process.sigma
    carry = c(t) / c(s)
    return carry * (eta**2 * (process.lam(s) - process.lam(t))).exp() if eta and side == "data" else carry


def gain_of(process: Process, side: Side, s: Tensor, t: Tensor, h: Tensor, eta: float = 0.0) -> tuple[Tensor, Tensor]:
    """(gain, gain phi_1) of a step of h from s to t; gain is 0 where h is infinite, the second is finite there."""
    a, factor = (process.alpha, 1.0) if side == "data" else (process.sigma, 1.0 + eta**2)
    c = (1.0 + eta**2) * (a(t) if side == "data" else -a(t))
    finite = torch.isfinite(h)
    step = torch.where(finite, h, 1.0)
    whole = factor * (a(t) - a(s) * carry_of(process, side, s, t, eta))  # DDIM's, without a difference of infinities
    kappa = kappa_of(side, eta)
    return torch.where(finite, c * h, 0.0), torch.where(finite, c * torch.expm1(kappa * step) / kappa, whole)


def spread_of(process: Process, side: Side, s: Tensor, t: Tensor, eta: float) -> Tensor:
    """The standard deviation of the noise of a step from s to t < s; 0 at eta = 0."""
    if eta == 0.0:
        return torch.zeros_like(s)
    h = process.lam(t) - process.lam(s)
    unit = eta * torch.expm1(2.0 * h).sqrt() if side == "noise" else (-torch.expm1(-2.0 * eta**2 * h)).sqrt()
    return process.sigma(t) * unit


def _path(process: Process, side: Side, s: Tensor, nodes: list[tuple[float, Tensor]], eta: float) -> list[Tensor]:
    """What multiplies the draws z_0, z_1, ... at each node (r, time), the last of which ends the step: (N, len(nodes)).

    The noises are those of one path: z_0 makes the whole step's, and every earlier node's is drawn given the next one's
    (a Gauss-Markov bridge), so that an evaluation within the step is correlated with the step's noise as it must be.
    """
    rows: dict[int, Tensor] = {}
    after: tuple[Tensor, Tensor, Tensor] | None = None  # time, variance and row of the next node
    for draw, j in enumerate(sorted(range(len(nodes)), key=lambda j: (-nodes[j][0], -j))):
        at = nodes[j][1]
        variance = own = spread_of(process, side, s, at, eta) ** 2
        row = torch.zeros(len(s), len(nodes), dtype=s.dtype)
        if after is not None:
            pull = carry_of(process, side, at, after[0], eta) * variance / after[1]
            row, own = pull[:, None] * after[2], (variance - pull**2 * after[1]).clamp(min=0.0)
        row[:, draw] = own.sqrt()
        rows[j], after = row, (at, variance, row)
    return [rows[j] for j in range(len(nodes))]


def single_step(
    process: Process,
    side: Side,
    order: int,
    s: Tensor,
    t: Tensor,
    nodes: tuple[float, float] | None = None,
    published: bool = False,
    slots: tuple[int, int, int] = (0, 1, 2),
    eta: float = 0.0,
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
        eta: amount of noise, >= 0.
    """
    h = process.lam(t) - process.lam(s)
    if order > 1 and not bool(torch.isfinite(h).all()):
        steps: list[Step] = []
        for finite, group in groupby(range(len(s)), key=torch.isfinite(h).tolist().__getitem__):
            part = list(group)
            steps += single_step(process, side, order if finite else 1, s[part], t[part], nodes, published, slots, eta)
        return steps
    kappa, reading = kappa_of(side, eta), READING[side]
    carry, (gain, first) = carry_of(process, side, s, t, eta), gain_of(process, side, s, t, h, eta)
    if order == 1:
        drawn = spread_of(process, side, s, t, eta)
        table = zip(s.tolist(), t.tolist(), torch.stack([carry, first], -1).tolist(), drawn.tolist(), strict=True)
        return [
            Step(a, b, (evaluate(a, reading, slots[0]),), _terms(on, slots, [z]), int(z != 0.0))
            for a, b, on, z in table
        ]
    r1, r2 = nodes or ((0.5, 1.0) if order == 2 else (1 / 3, 2 / 3))
    inner = [(r, t if r == 1.0 else process.time(process.lam(s) + r * h)) for r in (r1, r2)[: order - 1]]
    noises = _path(process, side, s, [*inner, (2.0, t)], eta) if eta else [s.new_zeros(len(s), 0)] * order
    stages = [[carry_of(process, side, s, at, eta), gain_of(process, side, s, at, r * h, eta)[1]] for r, at in inner]
    second = gain * phi(2, kappa * h)
    if order == 2:
        weights = [first / (2.0 * r1) if published else second / r1]
    else:
        tilt = r2 * (2.0 - 3.0 * r2) / (r1 * (3.0 * r1 - 2.0))  # Hochbruck & Ostermann's gamma; 0 at r2 = 2/3
        bend = tilt * r1 * phi(2, kappa * r1 * h) + r2**2 / r1 * phi(2, kappa * r2 * h)
        bend = bend * gain_of(process, side, s, inner[1][1], h, eta)[0]
        stages[1] = [stages[1][0], stages[1][1] - bend, bend]
        weights = [tilt * second / (tilt * r1 + r2), second / (tilt * r1 + r2)]
    # per evaluation after the first, and at the end: what multiplies x, m_0, m_1, m_2
    combinations = [torch.stack(rows, -1).tolist() for rows in (*stages, [carry, first - sum(weights), *weights])]
    drawn = torch.stack(noises, 1)  # (N, order, draws); a node at the step's end needs no draw of its own
    drawn = drawn[..., (drawn != 0.0).flatten(0, 1).any(0)]
    times = torch.stack([s, t, *(at for _, at in inner)], -1).tolist()
    steps = []
    for (start, end, *later), on_z, *rows in zip(times, drawn.tolist(), *combinations, strict=True):
        terms = [_terms(row, slots, z) for row, z in zip(rows, on_z, strict=True)]
        found = [evaluate(at, reading, slots[j + 1], terms[j]) for j, at in enumerate(later)]
        steps.append(Step(start, end, (evaluate(start, reading, slots[0]), *found), terms[-1], len(on_z[0])))
    return steps


def _terms(numbers: list[float], slots: tuple[int, int, int], on_z: list[float]) -> tuple[Term, ...]:
    on_x, *on_m = numbers
    noise: list[Term] = [(("z", k), c) for k, c in enumerate(on_z) if c != 0.0]
    return ((X, on_x), *((("m", slot), c) for slot, c in zip(slots, on_m, strict=False) if c != 0.0), *noise)
