r"""PNDM, or PLMS, a linear multistep method (Liu et al. 2022): Adams-Bashforth weights in the step's number.

    x_t = (alpha_t / alpha_s) x_s + alpha_t (rho_t - rho_s) (55 m_i - 59 m_{i-1} + 37 m_{i-2} - 9 m_{i-3}) / 24

m the noise prediction, rho = sigma / alpha: DDIM's step with an extrapolated noise. The weights know neither the steps'
ratio nor how fast rho moves within a step, so the order is 2 however many predictions are used, and that only on grids
whose times are a smooth function of the step's number; `DEIS` has the weights for any grid.

The paper's start, PRK, takes each of the first steps by the classical Runge-Kutta weights of four noises,

    e_1 at (x_s, s),   e_2 at DDIM(x_s, e_1) to u,   e_3 at DDIM(x_s, e_2) to u,   e_4 at DDIM(x_s, e_3) to t
    x_t = DDIM(x_s, (e_1 + 2 e_2 + 2 e_3 + e_4) / 6) to t,      u = (s + t) / 2

and keeps e_1 in the history. It is of second order as well: its middle lies in the middle of the time, not of rho.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..component import component
from ..process import Process
from .base import Solver
from .exponential import carry_of, gain_of
from .multistep import multistep
from .plan import Step, Term, X, evaluate

__all__ = ["PNDM"]


@component
class PNDM(Solver):
    """PLMS, order 2, one evaluation a step.

    Args:
        history: predictions used, 1 (DDIM) to 4.
        start: "ramp" grows the history from a first step of DDIM; "rk" is the paper's: history - 1 first steps by
            PRK, of four evaluations each.
    """

    history: Annotated[int, Field(ge=1, le=4)] = 4
    start: Literal["ramp", "rk"] = "ramp"
    open_start = True

    @property
    def order(self) -> int:
        return min(self.history, 2)

    @property
    def slots(self) -> int:  # type: ignore[override]
        return self.history + (3 if self.start == "rk" and self.history > 1 else 0)

    def steps(self, process: Process, s: Tensor, t: Tensor) -> list[Step]:
        steps = multistep(process, "noise", s, t, self.history, "index")
        if self.start == "rk":
            first = self.history - 1
            steps[:first] = pseudo_runge_kutta(process, s[:first], t[:first], self.history)
        return steps


def pseudo_runge_kutta(process: Process, s: Tensor, t: Tensor, history: int) -> list[Step]:
    """PRK's steps from times s to t (N,): e_1 of step i in slot i, the others in the three slots after `history`."""
    middle = (s + t) / 2.0
    table = [
        torch.stack([carry_of(process, "noise", s, to), gain_of(process, "noise", s, to, h)[1]], -1).tolist()
        for to in (middle, t)
        for h in [process.lam(to) - process.lam(s)]
    ]
    steps = []
    for i, (a, u, b, (half, on_half), (whole, on_whole)) in enumerate(
        zip(s.tolist(), middle.tolist(), t.tolist(), *table, strict=True)
    ):
        slots = (i, history, history + 1, history + 2)
        stages = (
            evaluate(a, "noise", i),
            evaluate(u, "noise", slots[1], ((X, half), (("m", slots[0]), on_half))),
            evaluate(u, "noise", slots[2], ((X, half), (("m", slots[1]), on_half))),
            evaluate(b, "noise", slots[3], ((X, whole), (("m", slots[2]), on_whole))),
        )
        mean: list[Term] = [(("m", m), on_whole * w / 6.0) for m, w in zip(slots, (1.0, 2.0, 2.0, 1.0), strict=True)]
        steps.append(Step(a, b, stages, ((X, whole), *mean)))
    return steps
