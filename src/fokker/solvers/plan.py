"""The plan: a sampler as a table of coefficients, computed once in float64 from a process and a grid.

A step holds registers and fills them in order:

    x      the state at the step's start                      ("x", 0)
    y_j    the state of stage j, a combination of registers   ("y", j)
    m_j    stored evaluations, kept from step to step         ("m", slot)
    z_k    standard normal draws of this step                 ("z", k)
    1      the constant one                                   ("one", 0)

    stage j:  y_j = sum c r,   then, if it has a time,   m[keep] = p y_j + q reading(y_j, time)
    out:      x  <- sum c r

A coefficient c is a number, an `Array` that broadcasts over the event, or a `Rule` of the registers that gives one
number per sample (its attribute `reads` names the registers it looks at). Every fixed-grid sampler of the field is
such a table; the executor is in `run`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from torch import Tensor

from ..component import Array

__all__ = ["Coef", "Plan", "Reg", "Registers", "Rule", "Stage", "Step", "Term", "evaluate", "reads", "to_data"]

Reg = tuple[Literal["x", "y", "m", "z", "one"], int]


class Registers(Protocol):
    """What a rule may look at: the registers filled so far, and what the network said of its variance."""

    def __getitem__(self, register: Reg) -> Tensor: ...

    def variance(self, slot: int) -> Tensor: ...


Rule = Callable[[Registers], Tensor]
Coef = float | Array | Rule
Term = tuple[Reg, Coef]

X: Reg = ("x", 0)


@dataclass(frozen=True)
class Stage:
    """A state and, if `time` is given, one evaluation there.

    Args:
        terms: y = sum of coefficient times register.
        time: where the denoiser is asked; None for a state alone.
        reading: what it is asked for, a named reading.
        affine: (p, q) of m = p y + q reading.
        keep: the history slot that m is written to.
    """

    terms: tuple[Term, ...] = ((X, 1.0),)
    time: float | None = None
    reading: str = "x0"
    affine: tuple[Coef, Coef] = (0.0, 1.0)
    keep: int | None = None


@dataclass(frozen=True)
class Step:
    """From time `start` to time `end` (which may be equal or later): stages, then the new state."""

    start: float
    end: float
    stages: tuple[Stage, ...]
    out: tuple[Term, ...]
    draws: int = 0


def evaluate(time: float, reading: str, keep: int = 0, terms: tuple[Term, ...] = ((X, 1.0),)) -> Stage:
    """A stage that stores `reading` at (y, time) in slot `keep`; by default y is the step's start."""
    return Stage(terms, time, reading, (0.0, 1.0), keep)


def to_data(start: float) -> Step:
    """The last step to t = 0 by every solver: x <- x0(x, start), which is DDIM's and never divides by sigma(0)."""
    return Step(start, 0.0, (evaluate(start, "x0"),), ((("m", 0), 1.0),))


@dataclass(frozen=True)
class Plan:
    """A compiled sampler: its steps, and how many history slots they use."""

    steps: tuple[Step, ...]
    slots: int

    @property
    def nfe(self) -> int:
        """The number of denoiser evaluations the plan makes."""
        return sum(stage.time is not None for step in self.steps for stage in step.stages)

    @property
    def times(self) -> tuple[float, ...]:
        """The times of the states between steps."""
        return (self.steps[0].start, *(step.end for step in self.steps))

    @property
    def one_stage(self) -> bool:
        """Whether every step evaluates once, at its own start (what parallel execution needs)."""
        return all(
            len(step.stages) == 1 and step.stages[0].terms == ((X, 1.0),) and step.stages[0].time is not None
            for step in self.steps
        )

    def pruned(self) -> Plan:
        """The same plan without evaluations that nothing reads, and without states that nothing needs."""
        live: set[int] = set()
        steps: list[Step] = []
        for step in reversed(self.steps):
            wanted = set(reads(step.out))
            stages: list[Stage] = []
            for j, stage in reversed(list(enumerate(step.stages))):
                live |= {register[1] for register in wanted if register[0] == "m"}
                wanted = {register for register in wanted if register[0] != "m"}
                if stage.time is not None and stage.keep not in live:
                    stage = replace(stage, time=None, keep=None)
                if stage.keep is not None:
                    live.discard(stage.keep)
                    wanted |= {("y", j), *reads((), stage.affine)}
                if ("y", j) in wanted:
                    wanted |= set(reads(stage.terms))
                else:
                    stage = replace(stage, terms=())
                stages.append(stage)
            live |= {register[1] for register in wanted if register[0] == "m"}
            while stages and not stages[0].terms:
                stages.pop(0)
            drawn = any(register[0] == "z" for register in wanted) or has_rule(step)
            steps.append(replace(step, stages=tuple(reversed(stages)), draws=step.draws if drawn else 0))
        return Plan(tuple(reversed(steps)), self.slots)


def reads(terms: tuple[Term, ...], alone: tuple[Coef, ...] = ()) -> Iterator[Reg]:
    """The registers that terms read, and those that their rules, or coefficients standing alone, name in `reads`."""
    yield from (register for register, _ in terms)
    for c in (*(c for _, c in terms), *alone):
        if callable(c):
            yield from getattr(c, "reads", ())


def has_rule(step: Step) -> bool:
    """Whether any coefficient of the step is a rule."""
    return any(callable(c) for c in _coefficients(step))


def _coefficients(step: Step) -> Iterator[Any]:
    yield from (c for _, c in step.out)
    for stage in step.stages:
        yield from (c for _, c in stage.terms)
        yield from stage.affine
