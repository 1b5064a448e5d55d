r"""DPM-Solver and DPM-Solver++ (Lu et al. 2022b, 2022c; book Sec. 9.4, 9.5): exponential integrators in lam.

DPM interpolates the noise, DPMpp the data prediction x0; both single-step ("S") or multistep ("M"). Order 1 is DDIM.
With `sde` they solve the reverse SDE instead of the probability-flow ODE: SEEDS and SDE-DPM-Solver++, with the noise
of `exponential`. Their weak order is at most 2, whatever is interpolated: one draw a step says no more of the path.
"""

from __future__ import annotations

from itertools import groupby
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from ..component import component
from ..errors import ConfigError
from ..process import Process
from .base import MOST_STEPS, Solver
from .exponential import Side, single_step
from .multistep import Start, last_order, multistep, slots_of
from .plan import Step

__all__ = ["DPM", "DPMpp"]

Variant = Literal["S", "M"]
Order = Annotated[int, Field(ge=1, le=3)]
Node = Annotated[float, Field(gt=0.0, le=1.0)]


class _DPM(Solver):
    order: int
    variant: Variant
    start: Start
    published: bool
    r1: float | None
    r2: float | None
    sde: bool
    lower_order_final: bool
    side: ClassVar[Side]

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.r1 is not None and (self.variant == "M" or self.order == 1):
            raise ConfigError(f"{name}.r1: given {self.r1:g}, but only variant='S' of order 2 or 3 has inner nodes")
        if self.r2 is not None and (self.variant == "M" or self.order < 3):
            raise ConfigError(f"{name}.r2: given {self.r2:g}, but only variant='S' of order 3 has a second inner node")
        if self.lower_order_final and self.variant == "S":
            raise ConfigError(f"{name}.lower_order_final: given True, but only variant='M' has it")
        if self.order == 3 and self.variant == "S":
            r1, r2 = self._nodes
            if r1 == r2 or abs(r1 - 2.0 / 3.0) < 1e-9:
                raise ConfigError(f"{name}: given r1={r1:g}, r2={r2:g}; they must differ and r1 must not be 2/3")

    @property
    def _nodes(self) -> tuple[float, float]:
        default = (1.0 / 3.0, 2.0 / 3.0) if self.order == 3 else (0.5, 1.0)
        return (default[0] if self.r1 is None else self.r1, default[1] if self.r2 is None else self.r2)

    @property
    def _eta(self) -> float:
        return 1.0 if self.sde else 0.0

    @property
    def slots(self) -> int:  # type: ignore[override]
        return self.order if self.variant == "S" else slots_of(self.order, self.start)

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.sde

    @property
    def open_start(self) -> bool:  # type: ignore[override]
        return self.side == "noise"

    @property
    def open_data(self) -> bool:  # type: ignore[override]
        return self.side == "data"

    def inner_steps(self, process: Process, s: Tensor, t: Tensor, to_zero: bool) -> list[Step]:
        if self.variant == "S":
            return single_step(process, self.side, self.order, s, t, self._nodes, self.published, eta=self._eta)
        published = (2, 3) if self.published else ()
        last = last_order(self.lower_order_final, to_zero)
        return multistep(process, self.side, s, t, self.order, "lam", self.start, published, eta=self._eta, last=last)


@component
class DPM(_DPM):
    """DPM-Solver: noise side; `order` evaluations a step ("S") or one ("M").

    With `nfe` it is DPM-Solver-fast: nfe // 3 + 1 steps of orders 3, ..., 3 and then 2, 1 or 1 or 2, which make nfe
    evaluations exactly (with order 2: 2, ..., 2, and 1 if nfe is odd). A step to 0 takes one of them: the others are
    those of nfe - 1. It has the number of its steps: give no steps. Its fault: a last step of order 1, at every nfe
    but 3 n + 2, leaves the order at 2 (ending at lam = 1 with 384 evaluations, 280 times the error of order 3 alone,
    at 386 6 times). Towards the data the last step matters little, and at 12 to 30 evaluations its shorter steps err
    .4 to .8 of order 3 alone.

    Single-step order 2 is book Eq. 9.4.11; `published` makes it the paper's (r1 = 1/2: Algorithm 5, r1 = 1: Heun in
    rho). Under strong guidance use DPMpp: the noise side diverges at large steps (book Sec. 9.5.1).

    Args:
        order: 1 to 3; default 2, or 3 with `nfe`.
        variant: "S" single-step, "M" multistep.
        start: of a multistep method, "ramp" or "single" (see `multistep`); orders above 2 are reached by "single".
        published: coefficients as the literature has them (at order 3 "M" they are of second order only).
        r1, r2: inner nodes of "S" in fractions of the step, in (0, 1]; default 1/2, and 1/3, 2/3 at order 3.
        sde: solve the reverse SDE: SEEDS (Gonzalez et al. 2023: "S", order 2 `published`). Weak order min(order, 2),
            strong order 1. Below some 40 evaluations higher orders explode, as the noise side does; use DPMpp there.
        lower_order_final: limit the order of a step of "M" to the number of steps left (see `multistep`).
        nfe: of "S", the number of evaluations (at least 1) in place of a number of steps.
    """

    order: Order = 0  # not given: 2, or 3 with nfe
    variant: Variant = "S"
    start: Start = "ramp"
    published: bool = False
    r1: Node | None = None
    r2: Node | None = None
    sde: bool = False
    lower_order_final: bool = False
    nfe: Annotated[int, Field(ge=1, le=MOST_STEPS)] | None = None
    side: ClassVar[Side] = "noise"

    def __post_init__(self) -> None:
        if self.order == 0:
            object.__setattr__(self, "order", 2 if self.nfe is None else 3)
        if self.nfe is not None and self.variant == "M":
            raise ConfigError(f"DPM.nfe: given {self.nfe}, but variant='M' makes one evaluation a step: give steps")
        super().__post_init__()

    def orders(self, to_zero: bool) -> list[int]:
        """The orders of the steps that make `nfe` evaluations, without the one to 0."""
        assert self.nfe is not None
        left = self.nfe - to_zero
        orders = [self.order] * (left // self.order) + [left % self.order]
        if self.order == 3 and left % 3 == 0:
            orders[-2:] = [2, 1]  # the paper's: a step more, and all are shorter
        return [order for order in orders if order] if left else []

    def fixed_steps(self, to_zero: bool) -> int | None:
        return None if self.nfe is None else len(self.orders(to_zero)) + to_zero

    def inner_steps(self, process: Process, s: Tensor, t: Tensor, to_zero: bool) -> list[Step]:
        if self.nfe is None:
            return super().inner_steps(process, s, t, to_zero)
        steps: list[Step] = []
        for order, group in groupby(range(len(s)), key=self.orders(to_zero).__getitem__):
            part = list(group)
            nodes = self._nodes if order == self.order else None
            steps += single_step(process, self.side, order, s[part], t[part], nodes, self.published, eta=self._eta)
        return steps


@component
class DPMpp(_DPM):
    """DPM-Solver++: data side; one evaluation a step ("M") or `order` ("S").

    Published 2M has weights (1 + r/2, -r/2) instead of the exact ones (of the same order), published 3M lacks a factor
    2 in its second derivative and is of second order only, published 2S is the book's Algorithm 6 at r1 = 1/2.

    Args:
        order: 1 to 3.
        variant: "M" multistep, "S" single-step.
        start: of a multistep method, "ramp" or "single" (see `multistep`); orders above 2 are reached by "single".
        published: coefficients as the literature has them.
        r1, r2: inner nodes of "S" in fractions of the step, in (0, 1]; default 1/2, and 1/3, 2/3 at order 3.
        sde: solve the reverse SDE: order 1 is ancestral sampling, 2M `published` is Lu et al.'s. Weak order
            min(order, 2), strong order 1. `published` halves the error of 2M here (measured on Gaussians, mixtures).
        lower_order_final: limit the order of a step of "M" to the number of steps left (see `multistep`).
    """

    order: Order = 2
    variant: Variant = "M"
    start: Start = "ramp"
    published: bool = False
    r1: Node | None = None
    r2: Node | None = None
    sde: bool = False
    lower_order_final: bool = False
    side: ClassVar[Side] = "data"
