r"""Adaptive integration of the probability-flow ODE to a tolerance, every sample with times and steps of its own.

    r = sqrt(mean_i (err_i / max(atol, rtol max(|x_i / R_s|, |x'_i / R_t|)))^2),    R = sqrt(alpha^2 + sigma^2)

accepts a step from x at s to x' at t where r <= 1. With q the order of x' the next step is h clip(c, 0.2, 10),

    c = 0.9 r^{-0.7/q} r_before^{0.4/q} after an accepted step,    c = 0.9 r^{-1/q} after a refused one

(the second alone, as DPM-Solver has it, is refused five times as often and errs three times as much at equal cost).
The mean is over one sample's event: over the batch, as general ODE packages take it, it would make a sample depend on
its neighbours. R makes tolerances mean the same at every noise level and in every process; it is 1 if
variance-preserving. In a step the state and the predictions m_j at (y_j, t_j) combine as in every plan,

    y_j = a_j x + sum_{i<j} b_ji m_i,    err = sum_i e_i m_i

1. Embedded Runge-Kutta pairs run in the angle u = arctan(sigma / alpha), which no process makes singular at either end:

    d(x / R)/du = v / R,    y_j = R_j (x / R_s + h sum a_ji v_i / R_i),    err = h sum e_i v_i / R_i

   Their last evaluation is the next step's first. So every process is seen as `Trig`, and costs the same; at equal
   tolerances steps in t or lam take up to three times as many evaluations, in rho up to five. Bogacki & Shampine 1989;
   Dormand & Prince 1980; control of the step: Gustafsson 1991 (Hairer & Wanner, Sec. IV.2).

2. DPM-Solver-12 and -23 (Lu et al. 2022b, App. C) run in lam on the noise side: two DPM-Solvers of neighbouring order
   on the same evaluations, err their difference over R_t.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, NoReturn

import torch
from pydantic import Field
from torch import Tensor

from ..component import component
from ..denoiser import repeat_cond, take_cond
from ..errors import ConfigError
from ..prediction import Denoiser
from ..process import Process, expand
from .base import Solver, unmapped
from .exponential import carry_of, gain_of, phi
from .norms import squares

__all__ = ["Adaptive", "Solution"]

Row = list[Tensor | None]  # coefficients per sample, (N,): of x, then of m_0, m_1, ...; None is 0
SMALLEST = 1e-12  # of the way; a step as short as this that is refused will never be accepted


@dataclass(frozen=True)
class _Table:
    """Steps in numbers: `times` of the evaluations after the first, `rows` of y_1, ... up to x', `error` without x."""

    times: list[Tensor]
    rows: list[Row]
    error: Row


@dataclass(frozen=True)
class _Method:
    """What a method is: what it asks for, the coordinate it steps in (there and back), and its coefficients.

    `table(process, s, t, u, h)`: from times s at coordinates u to times t at u + h, all (N,) float64. `first_last`: x'
    itself is evaluated, and that evaluation is the next step's first.
    """

    order: int
    reading: str
    first_last: bool
    to: Callable[[Process, Tensor], Tensor]
    back: Callable[[Process, Tensor], Tensor]
    table: Callable[[Process, Tensor, Tensor, Tensor, Tensor], _Table]


def _size(process: Process, t: Tensor) -> Tensor:
    return (process.alpha(t) ** 2 + process.sigma(t) ** 2).sqrt()


def _angle(process: Process, t: Tensor) -> Tensor:
    return (-process.lam(t)).exp().atan()


def _angle_time(process: Process, u: Tensor) -> Tensor:
    return process.time(-u.tan().log()).clamp(max=process.T)


def _runge_kutta(rows: Sequence[Sequence[float]], error: Sequence[float], order: int) -> _Method:
    """An embedded pair: rows a_j, the last of which are the weights b, and b - b* per evaluation."""
    nodes = [sum(row) for row in rows]

    def table(process: Process, s: Tensor, t: Tensor, u: Tensor, h: Tensor) -> _Table:
        times = [t if abs(c - 1.0) < 1e-9 else _angle_time(process, u + c * h) for c in nodes]
        sizes = [_size(process, at) for at in (s, *times)]
        gains = [h / size for size in sizes]
        states: list[Row] = [
            [size / sizes[0], *(None if a == 0.0 else size * a * gain for a, gain in zip(row, gains, strict=False))]
            for row, size in zip(rows, sizes[1:], strict=True)
        ]
        wrong: Row = [None if e == 0.0 else e * gain for e, gain in zip(error, gains, strict=True)]
        return _Table(times, states, wrong)

    return _Method(order, "v", True, _angle, _angle_time, table)


def _dpm(order: int) -> _Method:
    """DPM-Solver of `order` 2 (node 1/2) or 3 (1/3, 2/3), and the one below it on the same evaluations."""

    def table(process: Process, s: Tensor, t: Tensor, u: Tensor, h: Tensor) -> _Table:
        def part(at: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
            return carry_of(process, "noise", s, at), gain_of(process, "noise", s, at, width)[1]

        inner = [(r, process.time(u + r * h)) for r in ((0.5,) if order == 2 else (1 / 3, 2 / 3))]
        (r1, t1), (carry, first) = inner[0], part(t, h)
        second = gain_of(process, "noise", s, t, h)[0] * phi(2, h)
        low, high, size = second / r1, second / inner[-1][0], _size(process, t)
        states: list[Row] = [list(part(t1, r1 * h))]
        if order == 2:
            wrong: Row = [-high / size, high / size]
            states.append([carry, first - high, high])
        else:
            r2, t2 = inner[1]
            carried, gained = part(t2, r2 * h)
            bend = r2**2 / r1 * gain_of(process, "noise", s, t2, h)[0] * phi(2, r2 * h)
            wrong = [(low - high) / size, -low / size, high / size]
            states += [[carried, gained - bend, bend], [carry, first - high, None, high]]
        return _Table([at for _, at in inner], states, wrong)

    return _Method(order, "noise", False, lambda process, t: process.lam(t), lambda process, u: process.time(u), table)


METHODS = {
    "bogacki-shampine": _runge_kutta(
        rows=((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
        error=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
        order=3,
    ),
    "dormand-prince": _runge_kutta(
        rows=(
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        error=(
            35 / 384 - 5179 / 57600,
            0.0,
            500 / 1113 - 7571 / 16695,
            125 / 192 - 393 / 640,
            -2187 / 6784 + 92097 / 339200,
            11 / 84 - 187 / 2100,
            -1 / 40,
        ),
        order=5,
    ),
    "dpm-12": _dpm(2),
    "dpm-23": _dpm(3),
}


@dataclass(frozen=True)
class Solution:
    """What `Adaptive.solve` gives.

    Attributes:
        x: the states at the last time, (B, *event).
        nfe: evaluations that each sample needed, (B,).
        rejected: steps of each sample that were tried again, (B,).
    """

    x: Tensor
    nfe: Tensor
    rejected: Tensor


@component
class Adaptive(Solver):
    """The probability-flow ODE to a tolerance, at a cost that each sample sets for itself (see the module).

    It chooses its own steps: in `sample` a grid, or `steps`, are only times to stop at; by default those are the first
    and the cleanest. A last time of 0 is reached from the one before by x0, as everywhere. Samples that have arrived
    are taken out of the batch, except under `pad=True`, where a network sees one shape only and they wait. Gradients
    flow through the states, with the steps as they were chosen. `solve` tells what each sample cost.

    Args:
        method: "dormand-prince", 5(4), 6 evaluations a step; "bogacki-shampine", 3(2), 3 evaluations, the better one
            for tolerances above 1e-4; "dpm-12" and "dpm-23", 2 and 3 evaluations, which need finite lam at both ends.
        rtol, atol: tolerances of one step, relative and absolute; as a rule the result is about as exact as that, in
            float32 to about 1e-6.
        max_steps: steps, rejected ones included, that a sample may take between two stops.
    """

    method: Literal["dormand-prince", "bogacki-shampine", "dpm-12", "dpm-23"] = "dormand-prince"
    rtol: Annotated[float, Field(ge=0.0)] = 1e-4
    atol: Annotated[float, Field(gt=0.0)] = 1e-4
    max_steps: Annotated[int, Field(ge=1)] = 10_000
    own_steps = True
    plain = False

    @property
    def order(self) -> int:
        return METHODS[self.method].order

    @property
    def open_start(self) -> bool:  # type: ignore[override]
        return self.method.startswith("dpm")

    @property
    def open_data(self) -> bool:  # type: ignore[override]
        return self.method.startswith("dpm")

    def plan(self, process: Process, times: Tensor) -> NoReturn:
        raise ConfigError(f"{self} has no plan: its steps depend on the samples; give a solver of fixed steps")

    def prepare(
        self, denoiser: Denoiser, times: Tensor, device: torch.device, dtype: torch.dtype
    ) -> tuple[tuple[float, ...], Callable[..., Tensor]]:
        times = self.checked(denoiser.process, times)

        def carry(x: Tensor, *, draw: Any = None, callback: Any = None, after_step: Any = None, **rest: Any) -> Tensor:
            for name, given in (("callback", callback), ("after_step", after_step)):
                if given is not None:
                    raise ConfigError(f"{name}: Adaptive has no steps common to all samples; leave it out")
            return self.solve(denoiser, x, times, **rest).x

        return tuple(times.tolist()), carry

    def solve(
        self,
        denoiser: Denoiser,
        x: Tensor,
        times: Tensor | Sequence[float],
        cond: Any = None,
        *,
        states: list[Tensor] | None = None,
        keep_shape: bool = False,
    ) -> Solution:
        """Carry states through `times`, either way, and tell what it took.

        Args:
            denoiser: as in `sample`.
            x: states at times[0], (B, *event), float32 or float64.
            times: (K + 1,), decreasing towards data or increasing; a last 0 is one x0 step.
            cond: a condition for all, or B rows; any nesting of dict, list and tuple.
            states: receives the states at every time, the first included.
            keep_shape: leave samples that have arrived in the batch, so that a network sees one shape only.

        Raises:
            ConfigError: times that cannot be used; a sample that needs more than `max_steps`, or whose steps vanish.
        """
        times = self.checked(denoiser.process, torch.as_tensor(times, dtype=torch.float64))
        unmapped(x, "Adaptive")
        zero = bool(times[-1] == 0.0)
        inner = (times[:-1] if zero else times).tolist()
        flow = _Flow(self, denoiser, x, repeat_cond(cond, len(x)), keep_shape)
        kept = [] if states is None else states
        kept.append(x)
        for s, t in pairwise(inner):
            flow.advance(s, t)
            kept.append(flow.x)
        if zero:
            flow.x, flow.nfe = denoiser(flow.x, inner[-1], flow.cond).x0.clone(), flow.nfe + 1
            kept.append(flow.x)
        return Solution(flow.x, flow.nfe, flow.rejected)


class _Flow:
    """The samples under way: states, predictions there, widths of their next steps, and what they cost so far."""

    def __init__(self, control: Adaptive, denoiser: Denoiser, x: Tensor, cond: Any, keep_shape: bool) -> None:
        self.control, self.method, self.denoiser = control, METHODS[control.method], denoiser
        self.x, self.cond, self.keep_shape = x, cond, keep_shape
        self.m: Tensor | None = None
        width = 0.5 * max(control.rtol, control.atol) ** (1.0 / self.method.order)
        self.h = torch.full((len(x),), width, dtype=torch.float64, device=x.device)
        self.before = torch.zeros_like(self.h)  # log r of the step before
        self.nfe = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.rejected = torch.zeros_like(self.nfe)

    def ask(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        prediction = self.denoiser(x, t[: len(x)], cond)
        got = prediction.read(self.method.reading)
        return got.clone() if got is prediction.value else got  # a compiled network reuses its output

    def advance(self, s: float, t: float) -> None:
        """All samples from time s to time t."""
        method, process, device = self.method, self.denoiser.process, self.x.device
        ends = torch.tensor([s, t], dtype=torch.float64)
        u, end = method.to(process, ends).tolist()
        way, sign = abs(end - u), 1.0 if end > u else -1.0
        time = torch.full_like(self.h, s)
        place = torch.full_like(self.h, u)
        rows, cond = torch.arange(len(self.x), device=device), self.cond
        if self.m is None and method.first_last:
            self.m, self.nfe = self.ask(self.x, time, cond), self.nfe + 1
        for _ in range(self.control.max_steps):
            x, h, start, u_start = self.x[rows], self.h[rows], time[rows], place[rows]
            left = (end - u_start).abs()
            under_way, last = left > 0.0, h >= left * (1.0 - 1e-12)
            step = torch.where(last, left, h)
            u_next = torch.where(last, end, u_start + sign * step)
            s_, u_, next_ = _lanes(start), _lanes(u_start), _lanes(u_next)
            goal = torch.where(next_ == end, t, method.back(process, next_))
            table = method.table(process, s_, goal, u_, sign * _lanes(step))
            m = [self.ask(x, start, cond) if self.m is None else self.m[rows]]
            new = x
            for j, row in enumerate(table.rows):
                new = _combine(row, [x, *m])
                if j < len(table.times):
                    m.append(self.ask(new, table.times[j], cond))
            ratio = self.ratio(_combine(table.error, m), (x, _size(process, s_)), (new, _size(process, goal)))
            good = ratio <= 1.0  # False where the error is not a number; a step of nothing changes nothing
            now, before = ratio.clamp(min=1e-4).log(), self.before[rows]
            power = torch.where(good, 0.7 * now - 0.4 * before, now) / -method.order
            factor = (0.9 * power.exp()).nan_to_num(nan=0.2).clamp(0.2, 10.0)
            wider = torch.where(good & last, torch.maximum(h, step * factor), step * factor)
            keep = good.reshape(-1, *[1] * (x.ndim - 1))
            self.x = self.x.index_copy(0, rows, torch.where(keep, new, x))
            if self.m is not None:
                self.m = self.m.index_copy(0, rows, torch.where(keep, m[-1], m[0]))
            self.h[rows] = torch.where(under_way, wider, h)
            self.before[rows] = torch.where(good & ~last, now, before)
            time[rows] = torch.where(good, goal[: len(x)], start)
            place[rows] = torch.where(good, u_next, u_start)
            self.nfe[rows] += under_way * (len(table.times) + (self.m is None))
            self.rejected[rows] += under_way & ~good
            go_on = place[rows] != end
            stuck = go_on & ~good & (step < SMALLEST * way)
            count, lost = torch.stack([go_on.sum(), stuck.sum()]).tolist()  # the one look at the device per step
            if not count:
                return
            if lost:
                raise self.failure(rows[stuck], time, s, t, "its steps vanish: is its prediction finite there?")
            if count < len(rows) and not self.keep_shape:
                rows = rows[go_on.long().argsort(descending=True, stable=True)[:count]]
                cond = take_cond(self.cond, rows)
        why = f"max_steps={self.control.max_steps} are not enough; raise it, or loosen rtol and atol"
        raise self.failure((place != end).nonzero()[:, 0], time, s, t, why)

    def failure(self, rows: Tensor, time: Tensor, s: float, t: float, why: str) -> ConfigError:
        at = f"sample {int(rows[0])} of the batch, on its way from {s:g} to {t:g}, is at time {float(time[rows[0]]):g}"
        return ConfigError(f"{self.control}: {at}: {why}")

    def ratio(self, error: Tensor, *states: tuple[Tensor, Tensor]) -> Tensor:
        """r of the module, (B,) float64, for states with their sizes R."""
        before, after = (x.detach().abs() / expand(size[: len(x)], x) for x, size in states)
        allowed = (self.control.rtol * torch.maximum(before, after)).clamp(min=self.control.atol)
        relative = error.detach() / allowed
        return (squares(relative).double() / max(relative[0].numel(), 1)).sqrt()


def _combine(row: Row, values: list[Tensor]) -> Tensor:
    """The sum of coefficient times value, one coefficient per sample."""
    total: Tensor | None = None
    for c, value in zip(row, values, strict=True):
        if c is not None:
            term = expand(c[: len(value)], value) * value
            total = term if total is None else total + term
    assert total is not None
    return total


def _lanes(value: Tensor) -> Tensor:
    """(B,) filled up to a multiple of 64 by its last entry.

    A processor treats the last few numbers of a row apart and rounds some functions otherwise there: filled up, a
    sample's bits do not depend on where it stands.
    """
    return torch.cat([value, value[-1:].expand(-len(value) % 64)])
