r"""Langevin steps at a fixed noise level, and the two samplers made of them (book Eq. 3.1.5, Algorithm 1).

    x <- x + eta score(x, t) + sqrt(2 eta) z,      score = -noise / sigma

leaves p_t invariant as eta -> 0 and is stable for eta < 2 sigma^2. (Song & Ermon write eta = epsilon / 2.)
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from ..component import component
from ..errors import ConfigError
from ..process import Process
from ..registry import resolves
from .ancestral import Ancestral
from .base import Solver, plain
from .norms import squares
from .plan import Coef, Plan, Reg, Registers, Rule, Step, Term, X, evaluate, reads

__all__ = ["AnnealedLangevin", "PredictorCorrector"]

M: Reg = ("m", 0)
Z: Reg = ("z", 0)


@component
class PredictorCorrector(Solver):
    """Every step of a solver is followed by Langevin steps at the new time (Song et al. 2020c, Algorithms 2 and 3).

    eta = 2 (snr |z| / |score|)^2, at most sigma^2; with norms "expected" |z| / |score| is sigma, as at pure noise.

    Args:
        predictor: a solver whose steps use no evaluation of earlier ones, its name or recipe.
        corrections: Langevin steps after each of its steps, one evaluation each; none after a step to time 0.
        snr: size of the steps, > 0.
        norms: "sample" takes them over each sample's event; "expected" suits events of a few numbers, whose norms
            scatter too much to say anything.
    """

    predictor: Annotated[Solver, resolves("solver")] = Field(default_factory=Ancestral)
    corrections: Annotated[int, Field(ge=1)] = 1
    snr: Annotated[float, Field(gt=0.0, lt=0.7)] = 0.16
    norms: Literal["sample", "expected"] = "sample"
    stochastic = True

    def __post_init__(self) -> None:
        plain(self.predictor, "PredictorCorrector.predictor")

    @property
    def order(self) -> int:
        return 1

    @property
    def open_start(self) -> bool:  # type: ignore[override]
        return self.predictor.open_start

    def fixed_steps(self, to_zero: bool) -> int | None:
        return self.predictor.fixed_steps(to_zero)

    def plan(self, process: Process, times: Tensor) -> Plan:
        times = self.checked(process, times)
        plan = self.predictor.plan(process, times)
        if _carries(plan):
            raise ConfigError(f"predictor: {self.predictor} uses evaluations of earlier steps; give a one-step solver")
        steps: list[Step] = []
        for step in plan.steps:
            steps.append(step)
            if step.end > 0.0:
                steps += [self._correct(step.end, float(process.sigma(step.end)))] * self.corrections
        return Plan(tuple(steps), plan.slots)

    def _correct(self, t: float, sigma: float) -> Step:
        gain = math.sqrt(2.0) * self.snr  # sqrt(eta) / sigma where |z| = |noise|
        on_noise: Coef = -sigma * gain**2
        on_z: Coef = math.sqrt(2.0) * sigma * gain
        if self.norms == "sample":
            on_noise, on_z = _scaled(-sigma, gain, 2), _scaled(math.sqrt(2.0) * sigma, gain, 1)
        return _langevin(t, t, 1.0, on_noise, on_z)


@component
class AnnealedLangevin(Solver):
    """Langevin dynamics level by level, from the first time of the grid to the last (Song & Ermon 2019).

    eta = step sigma^2 at every level, the last one included (the book's Algorithm 1 leaves it out, and returns the law
    of the level before); between levels x / alpha is kept. Cost: `repeats` evaluations a level, so that the grid wants
    few, geometric levels ("lam"). It is exact as step -> 0 and repeats -> infinity, not as the grid is refined.

    Args:
        repeats: Langevin steps at each level.
        step: eta / sigma^2, in (0, 2); the law is off by O(step).
    """

    repeats: Annotated[int, Field(ge=1)] = 100
    step: Annotated[float, Field(gt=0.0, lt=2.0)] = 0.1
    stochastic = True
    open_start = True

    @property
    def order(self) -> int:
        return 1

    def plan(self, process: Process, times: Tensor) -> Plan:
        plan = super().plan(process, times)
        first = plan.times[0]
        return Plan((*self._level(first, first, 1.0, float(process.sigma(first))), *plan.steps), plan.slots)

    def steps(self, process: Process, s: Tensor, t: Tensor) -> list[Step]:
        table = [a.tolist() for a in (s, t, process.alpha(t) / process.alpha(s), process.sigma(t))]
        return [step for row in zip(*table, strict=True) for step in self._level(*row)]

    def _level(self, s: float, t: float, scale: float, sigma: float) -> list[Step]:
        on_noise, on_z = -self.step * sigma, math.sqrt(2.0 * self.step) * sigma
        again = _langevin(t, t, 1.0, on_noise, on_z)
        return [_langevin(s, t, scale, on_noise, on_z)] + [again] * (self.repeats - 1)


def _langevin(s: float, t: float, scale: float, on_noise: Coef, on_z: Coef) -> Step:
    """From time s, where x is scaled, one Langevin step at level t."""
    out: tuple[Term, ...] = ((("y", 0), 1.0), (M, on_noise), (Z, on_z))
    return Step(s, t, (evaluate(t, "noise", terms=((X, scale),)),), out, draws=1)


def _scaled(c: float, gain: float, power: int) -> Rule:
    """c (sqrt(eta) / sigma)^power with each sample's own norms of the noise drawn and the noise predicted."""

    def rule(registers: Registers) -> Tensor:
        ratio = (squares(registers[Z]) / squares(registers[M])).sqrt()
        return c * (gain * ratio).clamp(max=1.0) ** power

    rule.reads = (M, Z)  # type: ignore[attr-defined]
    return rule


def _carries(plan: Plan) -> bool:
    """Whether a step reads an evaluation that an earlier step made."""
    for step in plan.steps:
        made: set[Reg] = set()
        for stage in step.stages:
            if any(register[0] == "m" and register not in made for register in reads(stage.terms, stage.affine)):
                return True
            made.add(("m", -1 if stage.keep is None else stage.keep))
        if any(register[0] == "m" and register not in made for register in reads(step.out)):
            return True
    return False
