r"""SA-Solver: stochastic Adams predictor and corrector on the data side, at any amount of noise (Xue et al. 2023).

    predict   x_i = carry x_{i-1} + sum_j p_j m_{i-1-j} + c z         the polynomial through `order` predictions
    evaluate  m_i at x_i
    correct   x_i <- carry x_{i-1} + sum_j c_j m_{i-j} + c z          the polynomial through those and m_i, the same z

As in `unipc`, carry and noise are the same in both, so that the correction joins the next step's update: every step
evaluates once at its own start, and the last one stays a prediction. The coefficients are in `exponential`.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..component import component
from ..process import Process
from .base import Solver
from .exponential import spread_of
from .multistep import corrected, ring, tables
from .plan import Step

__all__ = ["SA"]


@component
class SA(Solver):
    """Solver of dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw; one evaluation a step.

    Weak order 2 (1 at order 1 without corrector), strong order 1. Without corrector it is DPMpp at eta = 0 and
    DPMpp(sde=True) at eta = 1; with it, at eta = 0, UniPC. Little noise suits few steps: measured with exact denoisers,
    eta = 0.5 comes near the solvers of the flow from 20 evaluations on, eta = 1 from about 40 on.

    Args:
        order: predictions that are interpolated, 1 to 3; the order grows with the history.
        eta: amount of noise, >= 0: 0 the probability-flow ODE, 1 Anderson's reverse SDE. The paper's tau.
        corrector: whether to correct.
    """

    order: Annotated[int, Field(ge=1, le=3)] = 3
    eta: Annotated[float, Field(ge=0.0)] = 0.5
    corrector: bool = True
    open_data = True

    @property
    def slots(self) -> int:  # type: ignore[override]
        return self.order + self.corrector

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.eta > 0.0

    def steps(self, process: Process, s: Tensor, t: Tensor) -> list[Step]:
        if self.corrector:
            carry, now = corrected(process, "data", s, t, self.order, eta=self.eta)
        else:
            carry, now = tables(process, "data", torch.cat([s, t[-1:]]), self.order, eta=self.eta)
        return ring("data", s, t, carry, now, self.slots, spread_of(process, "data", s, t, self.eta))
