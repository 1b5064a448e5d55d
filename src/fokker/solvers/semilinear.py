r"""Exponential Runge-Kutta of the semilinear flow x' = L x + N for one prediction (book Eq. 9.1.7, 9.4.14).

reading      L            N, in time                                 L, N in lam
"noise"      alpha'/alpha  (sigma' - sigma alpha'/alpha) noise        both divided by lam': N = -sigma noise
"x0"         sigma'/sigma  (alpha' - alpha sigma'/sigma) x0           N = alpha x0
"velocity"   0             velocity                                   N = velocity / lam'

These freeze N with its coefficient, DDIM and DPM-Solver integrate that: the book's claims that 9.1.7 is DDIM and that
9.4.14 is DPM-Solver-2 hold up to the local error only.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..component import component
from ..process import Process
from .base import Solver
from .exponential import phi
from .plan import Step, X, evaluate

__all__ = ["ExpEuler", "ExpHeun"]

Reading = Literal["noise", "x0", "velocity"]


@component
class ExpEuler(Solver):
    """x_t = e^a x + (t - s) phi_1(a) N(x, s), a = L(s) (t - s): L frozen too. Order 1, one evaluation a step.

    Args:
        reading: whose N is frozen: "noise" (the book's), "x0", or "velocity" (Euler in t).
    """

    reading: Reading = "noise"
    open_data = True

    @property
    def order(self) -> int:
        return 1

    @property
    def open_start(self) -> bool:  # type: ignore[override]
        return self.reading == "noise"

    def steps(self, process: Process, s: Tensor, t: Tensor) -> list[Step]:
        h = t - s
        alpha, sigma, d_alpha, d_sigma = process.alpha(s), process.sigma(s), process.d_alpha(s), process.d_sigma(s)
        if self.reading == "noise":
            rate, on_n = d_alpha / alpha, d_sigma - sigma * d_alpha / alpha
        elif self.reading == "x0":
            rate, on_n = d_sigma / sigma, d_alpha - alpha * d_sigma / sigma
        else:
            rate, on_n = torch.zeros_like(h), torch.ones_like(h)
        table = [c.tolist() for c in (s, t, (rate * h).exp(), h * phi(1, rate * h) * on_n)]
        return [
            Step(start, end, (evaluate(start, self.reading),), ((X, a), (("m", 0), b)))
            for start, end, a, b in zip(*table, strict=True)
        ]


@component
class ExpHeun(Solver):
    """In lam: p = e^a x + h phi_1(a) N(x, s), x_t = p + h phi_2(a) (N(p, t) - N(x, s)), a = int L dlam. Order 2.

    On the EDM process "x0" has constant L and is exact for predictions affine in lam. Two evaluations a step.

    Args:
        reading: "noise", "x0", or "velocity" (Heun in lam).
    """

    reading: Reading = "noise"
    slots: ClassVar[int] = 2
    open_start = True
    open_data = True

    @property
    def order(self) -> int:
        return 2

    def steps(self, process: Process, s: Tensor, t: Tensor) -> list[Step]:
        h = process.lam(t) - process.lam(s)
        if self.reading == "velocity":
            ratio, on_s, on_t = torch.ones_like(h), 1.0 / process.d_lam(s), 1.0 / process.d_lam(t)
        elif self.reading == "x0":
            ratio, on_s, on_t = process.sigma(t) / process.sigma(s), process.alpha(s), process.alpha(t)
        else:
            ratio, on_s, on_t = process.alpha(t) / process.alpha(s), -process.sigma(s), -process.sigma(t)
        one, two = h * phi(1, ratio.log()), h * phi(2, ratio.log())
        table = [c.tolist() for c in (s, t, ratio, one * on_s, (one - two) * on_s, two * on_t)]
        return [
            Step(
                start,
                end,
                (evaluate(start, self.reading), evaluate(end, self.reading, 1, ((X, a), (("m", 0), p)))),
                ((X, a), (("m", 0), b), (("m", 1), c)),
            )
            for start, end, a, p, b, c in zip(*table, strict=True)
        ]
