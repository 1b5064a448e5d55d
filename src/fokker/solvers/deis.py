r"""DEIS: exponential Adams-Bashforth of the noise prediction (Zhang & Chen 2022; book Sec. 9.3).

    x_t = (alpha_t / alpha_s) x_s + sum_j C_j noise_{i-j},    C_j = alpha_t int_{rho_s}^{rho_t} l_j(u) drho

with l_j the Lagrange polynomials through the newest degree + 1 times, in the variable u. The global order is degree + 1
(the book's Sec. 9.3.2 gives that order to a single step, whose error is one order smaller).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from ..component import component
from ..process import Process
from .base import Solver
from .multistep import Space, Start, last_order, multistep, slots_of
from .plan import Step

__all__ = ["DEIS", "LMS"]


@component
class DEIS(Solver):
    """Order degree + 1, one evaluation a step; degree 0 is DDIM. Polynomials in t converge irregularly near t = 0.

    Args:
        degree: of the polynomial through the stored predictions, 0 to 3.
        space: its variable: "t" (tAB-DEIS, by quadrature), "rho" = sigma / alpha (rhoAB-DEIS; on the EDM process the
            linear multistep method LMS), or "lam" (multistep DPM-Solver).
        start: "ramp" or "single" (see `multistep`); "single" keeps orders above 2.
        lower_order_final: limit the order of a step to the number of steps left (see `multistep`).
    """

    degree: Annotated[int, Field(ge=0, le=3)] = 2
    space: Space = "t"
    start: Start = "ramp"
    lower_order_final: bool = False
    open_start = True

    @property
    def order(self) -> int:
        return self.degree + 1

    @property
    def slots(self) -> int:  # type: ignore[override]
        return slots_of(self.order, self.start)

    def inner_steps(self, process: Process, s: Tensor, t: Tensor, to_zero: bool) -> list[Step]:
        last = last_order(self.lower_order_final, to_zero)
        return multistep(process, "noise", s, t, self.order, self.space, self.start, last=last)


@component
class LMS(Solver):
    """The linear multistep method of k-diffusion (Katherine Crowson, after Karras et al. 2022): DEIS in rho.

    x_t / alpha_t = x_s / alpha_s + sum_j C_j noise_{i-j}, C_j the exact integrals of the Lagrange polynomials in
    rho = sigma / alpha (EDM's sigma). One evaluation a step; the first steps have the order of their history, which
    limits the asymptotic order to 2: `DEIS(order - 1, "rho", start="single")` keeps it.

    Args:
        order: predictions used, 1 (DDIM) to 4.
    """

    order: Annotated[int, Field(ge=1, le=4)] = 4
    open_start = True

    @property
    def slots(self) -> int:  # type: ignore[override]
        return self.order

    def steps(self, process: Process, s: Tensor, t: Tensor) -> list[Step]:
        return multistep(process, "noise", s, t, self.order, "rho")
