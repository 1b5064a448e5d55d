"""The executor: one loop that runs every plan.

`bind` turns a plan into numbers for one denoiser: the denoiser's own reading is folded into the coefficients, so that
a step that evaluates once costs one or two passes over memory beyond the network (see `fused`). In place by default;
functional when gradients are recorded or under torch.func, so that a sampler can be differentiated.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..component import Array
from ..errors import ConfigError
from ..prediction import Denoiser, Prediction, coefficients, reading
from ..process import expand
from .fused import RAW, Update, fits, fuse, scalar
from .plan import Coef, Plan, Reg, Rule, Stage, Step, Term, X, has_rule, reads

__all__ = ["Bound", "bind", "run"]

Draw = Callable[[int, int], Tensor]
Callback = Callable[[int, float, Tensor, Prediction | None], bool | None]
AfterStep = Callable[[int, Tensor], Tensor | None]
ONE: Reg = ("one", 0)


@dataclass(frozen=True)
class BoundStage:
    """A stage in numbers: m = p y + q raw is `scaled` (p, q), and `formed` as terms; `folded` if it is never formed."""

    terms: tuple[tuple[Any, Coef], ...]
    time: float | None
    reading: str
    scaled: tuple[Coef, Coef]
    formed: tuple[tuple[Any, Coef], ...]
    keep: int | None
    folded: bool
    alias: bool  # y is the step's start itself


@dataclass(frozen=True)
class BoundStep:
    """A step in numbers."""

    start: float
    end: float
    stages: tuple[BoundStage, ...]
    out: tuple[tuple[Any, Coef], ...]
    draws: int


@dataclass(frozen=True)
class Bound:
    """A plan bound to a denoiser: what `run` executes; by `updates`, one a step, where it can."""

    steps: tuple[BoundStep, ...]
    slots: int
    updates: tuple[Update, ...] | None = None


def _product(a: Coef, b: Coef, device: torch.device, dtype: torch.dtype) -> Coef:
    if isinstance(a, float) and isinstance(b, float):
        return a * b
    if isinstance(a, Array) and isinstance(b, (float, Array)):
        return Array(a.value * (b.value if isinstance(b, Array) else b))
    if isinstance(a, float) and isinstance(b, Array):
        return Array(a * b.value)
    return lambda registers: _value(a, registers, device, dtype) * _value(b, registers, device, dtype)


def _value(c: Coef, registers: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(c, float):
        return c
    return c.to(device, dtype) if isinstance(c, Array) else per_sample(c(registers), registers[("x", 0)])


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """What a rule gives, one number per sample or a tensor of the state's shape, ready to multiply the state."""
    return expand(value, like) if value.ndim <= 1 else value


def _merged(terms: list[tuple[Any, Coef]]) -> tuple[tuple[Any, Coef], ...]:
    """Numbers that multiply the same register are added; the state comes first, so that it can be scaled in place."""
    numbers: dict[Any, float] = defaultdict(float)
    rest: list[tuple[Any, Coef]] = []
    for register, c in terms:
        if isinstance(c, float):
            numbers[register] += c
        else:
            rest.append((register, c))
    merged: list[tuple[Any, Coef]] = [(register, c) for register, c in numbers.items() if c != 0.0]
    return tuple(sorted(merged, key=lambda term: term[0] != ("x", 0)) + rest)


def _later_reads(step: Step, j: int, slot: int) -> bool:
    """Whether stage j's evaluation is read after another one has been made in the same step."""
    nxt = next((i for i in range(j + 1, len(step.stages)) if step.stages[i].time is not None), None)
    if nxt is None:
        return False
    after: list[Term] = [*step.out, *(t for stage in step.stages[nxt + 1 :] for t in stage.terms)]
    return ("m", slot) in reads(tuple(after))


def _survivors(plan: Plan) -> list[set[int]]:
    """For every step, the slots whose contents a later step reads."""
    live: set[int] = set()
    result: list[set[int]] = []
    for step in reversed(plan.steps):
        result.append(set(live))
        live |= {register[1] for register in reads(step.out) if register[0] == "m"}
        for stage in reversed(step.stages):
            if stage.keep is not None:
                live.discard(stage.keep)
            live |= {register[1] for register in reads(stage.terms, stage.affine) if register[0] == "m"}
    return result[::-1]


def bind(plan: Plan, denoiser: Denoiser, device: torch.device, dtype: torch.dtype) -> Bound:
    """The plan in numbers for this denoiser: its reading folded in, terms merged.

    Args:
        plan: what to run; evaluations nothing reads should have been pruned.
        denoiser: whose `reading` is folded in (None: it is asked for the plan's readings one by one).
        device, dtype: of the state.
    """
    survivors = _survivors(plan)
    steps: list[BoundStep] = []
    for n, step in enumerate(plan.steps):
        folded: dict[int, tuple[Reg, Coef, Coef]] = {}  # slot -> (y, p, q): m stands for p y + q raw
        alias: dict[Reg, Reg] = {}
        stages: list[BoundStage] = []

        def resolve(
            terms: tuple[Term, ...],
            folded: dict[int, tuple[Reg, Coef, Coef]] = folded,
            alias: dict[Reg, Reg] = alias,
        ) -> tuple[tuple[Any, Coef], ...]:
            flat: list[tuple[Any, Coef]] = []
            for register, c in terms:
                if register[0] == "m" and register[1] in folded:
                    y, p, q = folded[register[1]]
                    flat += [(y, _product(c, p, device, dtype)), (RAW, _product(c, q, device, dtype))]
                else:
                    flat.append((alias.get(register, register), c))
            return _merged(flat)

        for j, stage in enumerate(step.stages):
            terms = resolve(stage.terms)
            same = terms == ((("x", 0), 1.0),)
            if same:
                alias[("y", j)] = ("x", 0)
            scaled: tuple[Coef, Coef] = stage.affine
            fold = False
            if stage.time is not None:
                scaled = _folded_reading(stage, stage.time, denoiser, device, dtype)
                assert stage.keep is not None
                later = stage.keep in survivors[n] or _later_reads(step, j, stage.keep)
                fold = not later and not has_rule(step)  # a rule may look at m itself
                folded.pop(stage.keep, None)
                if fold:
                    folded[stage.keep] = (alias.get(("y", j), ("y", j)), *scaled)
            formed = _merged([(alias.get(("y", j), ("y", j)), scaled[0]), (RAW, scaled[1])])
            stages.append(BoundStage(terms, stage.time, stage.reading, scaled, formed, stage.keep, fold, same))
        steps.append(BoundStep(step.start, step.end, tuple(stages), resolve(step.out), step.draws))
    return Bound(tuple(steps), plan.slots, fuse(steps, survivors, dtype))


def _folded_reading(
    stage: Stage, time: float, denoiser: Denoiser, device: torch.device, dtype: torch.dtype
) -> tuple[Coef, Coef]:
    """(p, q) of m = p y + q raw: the stage's affine form of the denoiser's own reading."""
    if denoiser.reading is None:
        return stage.affine
    to_p, to_q = coefficients(denoiser.process, time, denoiser.reading, reading(stage.reading))
    on_y = _product(stage.affine[1], float(to_p), device, dtype)
    p = stage.affine[0]
    if isinstance(p, float) and isinstance(on_y, float):
        total: Coef = p + on_y
    elif isinstance(p, (float, Array)) and isinstance(on_y, (float, Array)):
        total = Array((p.value if isinstance(p, Array) else p) + (on_y.value if isinstance(on_y, Array) else on_y))
    else:
        total = lambda registers: _value(p, registers, device, dtype) + _value(on_y, registers, device, dtype)  # noqa: E731
    return total, _product(stage.affine[1], float(to_q), device, dtype)


class _File:
    """The registers of one run; `at` holds their tensors."""

    def __init__(self, x: Tensor, functional: bool) -> None:
        self.at: dict[Any, Tensor] = {X: x}
        self.functional = functional
        self.owned: dict[Reg, Tensor] = {}  # what states of stages are written to, and no register x
        self.variances: dict[int | None, Tensor | None] = {}

    def __getitem__(self, register: Any) -> Tensor:
        if register == ONE:
            x = self.at[X]
            return x.new_ones(()).expand_as(x)
        return self.at[register]

    def variance(self, slot: int) -> Tensor:
        value = self.variances.get(slot)
        if value is None:
            raise ConfigError("variance='learned' needs a denoiser with learned_variance=True")
        return value

    def stages(
        self, step: BoundStep, n: int, denoiser: Denoiser, cond: Any, draw: Draw | None, callback: Callback | None
    ) -> bool:
        """Fill the registers of a step; whether the callback asked to stop."""
        at, told = self.at, callback is None
        for k in range(step.draws):
            assert draw is not None
            at["z", k] = draw(n, k)
        for j, stage in enumerate(step.stages):
            y: Reg = ("y", j)
            if stage.alias:
                at[y] = at[X]
            elif stage.terms:
                at[y] = self.owned[y] = self.combine(stage.terms, self.owned.get(y))
            if stage.time is None:
                continue
            prediction = denoiser(at[y], stage.time, cond)
            raw = prediction.value if denoiser.reading is not None else prediction.read(stage.reading)
            if raw.shape != at[y].shape:  # one answer for all
                raw = raw.expand_as(at[y])
            if not self.functional and raw.data_ptr() == at[y].data_ptr():
                raw = raw.clone()  # a network that hands its input back must not alias the state
            at[RAW], slot = raw, ("m", stage.keep)
            if not stage.folded:
                at[slot] = self.combine(stage.formed, at.get(slot))
            self.variances[stage.keep] = prediction.variance
            if not told and callback is not None and callback(n, step.start, at[X].clone(), prediction):
                return True
            told = True
        return False

    def combine(self, terms: tuple[tuple[Any, Coef], ...], into: Tensor | None) -> Tensor:
        """sum c r, written into `into` where that is allowed."""
        like = self.at[X]
        values = [(self[register], c if isinstance(c, float) else self._coefficient(c, like)) for register, c in terms]
        if not values:
            return torch.zeros_like(like) if into is None or self.functional else into.zero_()
        (first, c), *rest = values
        total: Tensor
        if self.functional or into is None or any(value is into for value, _ in rest):
            total = (first * c).to(like.dtype)
        elif first is into:
            total = into if _is_one(c) else into.mul_(scalar(c, into.dtype) if isinstance(c, float) else c)
        elif first.dtype == into.dtype:
            total = torch.mul(first, scalar(c, into.dtype) if isinstance(c, float) else c, out=into)
        else:
            total = into.copy_(first).mul_(c)
        for value, c in rest:
            if self.functional:
                total = total + value * c
            elif isinstance(c, float):
                total = total.add_(value, alpha=c)
            else:
                total = total.addcmul_(value, c)
        return total

    def _coefficient(self, c: Array | Rule, like: Tensor) -> Tensor:
        return c.like(like) if isinstance(c, Array) else per_sample(c(self), like)


def _is_one(c: Any) -> bool:
    return isinstance(c, float) and c == 1.0


def run(
    bound: Bound,
    denoiser: Denoiser,
    x: Tensor,
    *,
    cond: Any = None,
    draw: Draw | None = None,
    callback: Callback | None = None,
    after_step: AfterStep | None = None,
    states: list[Tensor] | None = None,
) -> Tensor:
    """Run a bound plan from state `x` (B, *event) at its first time; `x` itself is not changed.

    Args:
        bound: from `bind`.
        denoiser: the one it was bound to.
        x: the start, at least float32.
        cond: passed to the denoiser.
        draw: (step, k) -> standard normal of x's shape; needed by stochastic plans.
        callback: (step, time, state, prediction) after the first evaluation of a step; True stops there.
        after_step: (step, state) -> a new state, or None to leave it.
        states: receives a copy of every state, the start included.
    """
    if draw is None and any(step.draws for step in bound.steps):
        raise ConfigError("this plan is stochastic: give draw, a source of noise")
    functional = torch.is_grad_enabled() or torch._C._functorch.peek_interpreter_stack() is not None
    # an update leaves in a slot what only the state it has just made can tell
    updates = bound.updates if not functional and after_step is None and fits(x) else None
    registers = _File(x if functional else x.clone(memory_format=torch.contiguous_format), functional)
    at = registers.at
    if states is not None:
        states.append(x.clone())
    own = denoiser.reading is not None
    for n, step in enumerate(bound.steps):
        if updates is not None:
            prediction = denoiser(at[X], step.start, cond)
            if callback is not None and callback(n, step.start, at[X].clone(), prediction):
                return at[X]
            updates[n].apply(at, prediction.value if own else prediction.read(step.stages[0].reading))
        elif registers.stages(step, n, denoiser, cond, draw, callback):
            return at[X]
        else:
            at[X] = registers.combine(step.out, at[X])
        if after_step is not None:
            changed = after_step(n, at[X])
            if changed is not None and changed is not at[X]:
                at[X] = changed if functional else changed.clone()
        if states is not None:
            states.append(at[X].clone())
    return at[X]
