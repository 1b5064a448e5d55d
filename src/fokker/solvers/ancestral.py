r"""Ancestral sampling: draw from p(x_t | x_s, x0) with the predicted x0 (book Eq. 2.2.14, 4.4.8; Ho et al. 2020)."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from ..component import component
from ..process import Process
from .base import Solver
from .plan import Coef, Registers, Step, Term, X, evaluate

__all__ = ["Ancestral"]


@component
class Ancestral(Solver):
    """x_t = a x_s + b x0 + c z with the posterior's a, b; weak order 1, one evaluation a step.

    For data that are not a point c is too small ("posterior") or too large ("forward") by O(step).

    Args:
        variance: "posterior", c = sigma_{s|t} sigma_t / sigma_s (DDPM's beta-tilde); "forward", c = sigma_{s|t}
            (DDPM's beta); "learned", log-linear between the two by the network's variance output v in [-1, 1]
            (Nichol & Dhariwal 2021).
    """

    variance: Literal["posterior", "forward", "learned"] = "posterior"
    stochastic = True

    @property
    def order(self) -> int:
        return 1

    def steps(self, process: Process, s: Tensor, t: Tensor) -> list[Step]:
        on_x, on_x0, small = process.bridge(s, t)
        large = process.transition(t, s).std
        table = [a.tolist() for a in (s, t, on_x, on_x0, small, large)]
        steps = []
        for start, end, a, b, low, high in zip(*table, strict=True):
            c: Coef = {"posterior": low, "forward": high}.get(self.variance, 0.0)
            if self.variance == "learned":
                c = _learned_std(low, high)
            out: tuple[Term, ...] = ((X, a), (("m", 0), b), (("z", 0), c))
            steps.append(Step(start, end, (evaluate(start, "x0"),), out, draws=1))
        return steps


def _learned_std(low: float, high: float) -> Coef:
    def std(registers: Registers) -> Tensor:
        weight = 0.5 * (registers.variance(0) + 1.0)
        return (math.log(low) * (1.0 - weight) + math.log(high) * weight).exp()

    return std
