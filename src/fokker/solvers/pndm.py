r"""PNDM's linear multistep method, PLMS (Liu et al. 2022): Adams-Bashforth weights in the step's number.

    x_t = (alpha_t / alpha_s) x_s + alpha_t (rho_t - rho_s) (55 m_i - 59 m_{i-1} + 37 m_{i-2} - 9 m_{i-3}) / 24

m the noise prediction, rho = sigma / alpha: DDIM's step with an extrapolated noise. The weights know neither the steps'
ratio nor how fast rho moves within a step, so the order is 2 however many predictions are used, and that only on grids
whose times are a smooth function of the step's number; `DEIS` has the weights for any grid.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from ..component import component
from ..process import Process
from .base import Solver
from .multistep import multistep
from .plan import Step

__all__ = ["PNDM"]


@component
class PNDM(Solver):
    """PLMS from a first step of DDIM (no Runge-Kutta start), order 2, one evaluation a step.

    Args:
        history: predictions used, 1 (DDIM) to 4.
    """

    history: Annotated[int, Field(ge=1, le=4)] = 4
    open_start = True

    @property
    def order(self) -> int:
        return min(self.history, 2)

    @property
    def slots(self) -> int:  # type: ignore[override]
        return self.history

    def steps(self, process: Process, s: Tensor, t: Tensor) -> list[Step]:
        return multistep(process, "noise", s, t, self.history, "index")
