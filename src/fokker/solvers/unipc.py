r"""UniPC: a multistep predictor whose last step is corrected by the next evaluation (Zhao et al. 2023).

    predict   x_i = carry x_{i-1} + sum_j p_j m_{i-1-j}               the polynomial through `order` predictions
    evaluate  m_i at x_i
    correct   x_i <- carry x_{i-1} + sum_j c_j m_{i-j}                the polynomial through those and m_i

Both have the same carry, so the correction is x_i + sum (c - p) m: it joins the next step's update, every step
evaluates once at its own start, and the last step, whose end is not evaluated, stays a prediction.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from ..component import component
from ..process import Process
from .base import Solver
from .exponential import single_step
from .multistep import Start, corrected, last_order, multistep, ring, slots_of
from .plan import Step

__all__ = ["UniPC"]


@component
class UniPC(Solver):
    """Order + 1 with the corrector, one evaluation a step. Without it, multistep DPMpp (or DPM).

    The literature's B(h) cancels from all weights but those of two nodes; there `published` takes B = e^h - 1 ("bh2").
    States between the steps are the predicted ones.

    Args:
        order: of the predictor, 1 to 3; with the corrector the observed order is one more.
        corrector: whether to correct.
        side: interpolate "data" (x0) or "noise".
        start: "ramp" grows the order with the history; "single" begins order 3 by single steps, which keeps the order.
        published: weights of two nodes as the literature has them.
        lower_order_final: limit the order of a step to the number of steps left (see `multistep`).
    """

    order: Annotated[int, Field(ge=1, le=3)] = 3
    corrector: bool = True
    side: Literal["data", "noise"] = "data"
    start: Start = "ramp"
    published: bool = False
    lower_order_final: bool = False

    @property
    def slots(self) -> int:  # type: ignore[override]
        if not self.corrector:
            return slots_of(self.order, self.start)
        return self.order + 1 + (2 if self._singles else 0)

    @property
    def open_start(self) -> bool:  # type: ignore[override]
        return self.side == "noise"

    @property
    def open_data(self) -> bool:  # type: ignore[override]
        return self.side == "data"

    @property
    def _singles(self) -> int:
        """First steps by a single-step method: with k nodes the corrected error of a step is O(h^{k+2})."""
        return 1 if self.start == "single" and self.order == 3 else 0

    def inner_steps(self, process: Process, s: Tensor, t: Tensor, to_zero: bool) -> list[Step]:
        published = (2,) if self.published else ()
        last = last_order(self.lower_order_final, to_zero)
        if not self.corrector:
            return multistep(process, self.side, s, t, self.order, "lam", self.start, published, last=last)
        slots = self.order + 1
        carry, now = corrected(process, self.side, s, t, self.order, published, last=last, skip=self._singles)
        steps: list[Step] = []
        if self._singles:
            steps += single_step(process, self.side, self.order, s[:1], t[:1], slots=(0, slots, slots + 1))
        return steps + ring(self.side, s, t, carry, now, slots)[self._singles :]
