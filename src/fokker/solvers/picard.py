r"""Picard iteration: a solver's steps taken together, a window of them in one call (Shih et al. 2023; book Sec. 9.8).

With Phi_n the solver's step from node n (its history and noise given) and c_n = 1, alpha_n or sigma_n ("form"), a round
computes every Phi in the window from the old nodes, in one call of the denoiser, and adds up from its left end l:

    (1)  x_{n+1} / c_{n+1}  <-  x_n / c_n + [Phi_n(x_n) / c_{n+1} - x_n / c_n]_old,         x_l / c_l kept

"x" adds up increments; "rho" and "omega" are the prefix sums of d(x/alpha) = noise drho and d(x/sigma) = x0 domega. All
have the solver's own sequential result as their fixed point, and node l + j is exact after j rounds. Then the window
slides: the first node that moved by more than `tol` is the new left end, with its new value (all before it had
settled, so it is exact); nodes that enter take the value of the right edge. At worst this is the solver itself. (The
book's Algorithm 8, line 9, prints x_{l+j} where its Eq. 9.8.4 has the left end x_l; the equation is right.)

    (2)  x_{n+1} / c_{n+1} = x_n / c_n + w_n (m_n + m_{n+1}) / 2,         w_n = dt, drho, domega of the step

is the trapezoid, m = velocity, noise or x0: implicit, of order 2, solved by the same rounds; there a node counts when
it and all before it have settled. (The book's sum stops one interval short, and that converges to nothing.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..component import Array, component
from ..denoiser import repeat_cond, take_cond
from ..errors import ConfigError
from ..prediction import Denoiser, Prediction, coefficients, reading
from ..process import Process
from ..registry import resolves
from .base import Solver, plain, unmapped
from .ddim import DDIM
from .norms import squares
from .plan import Coef, Plan, Reg, Stage, X, evaluate
from .run import Draw

__all__ = ["Picard", "PicardSolution"]

Form = Literal["x", "rho", "omega"]
READ: dict[Form, str] = {"x": "velocity", "rho": "noise", "omega": "x0"}
PATIENCE = 100  # rounds in which the trapezoid may settle no node


@dataclass(frozen=True)
class PicardSolution:
    """What `Picard.solve` found.

    Attributes:
        x: the states at the last time, (B, *event).
        rounds: calls of the denoiser one after another that each sample needed, (B,) int64 on the CPU.
        nfe: evaluations of each sample in all of them, (B,) int64 on the CPU.
    """

    x: Tensor
    rounds: Tensor
    nfe: Tensor


@component
class Picard(Solver):
    """ParaDiGMS: a solver's steps in parallel, fewer rounds for more evaluations; every sample has a window of its own.

    Worth it where a call takes about as long for a window of states as for one: few samples, or a model far away.
    `sample(nfe=...)` counts the evaluations of the solver alone; what is made in truth `solve` tells. Memory: all nodes
    and evaluations of a batch are kept, and the noise of a stochastic solver. One host synchronisation a round.

    Args:
        solver: one of a single evaluation a step (DDIM, Euler, DEIS, multistep DPM and DPMpp, UniPC, Ancestral, ...),
            its name or recipe; default DDIM(). Noise is drawn as `sample` would for the solver alone.
        window: nodes evaluated together for each sample, >= 1; 1 is the solver alone.
        tol: how far a settled node may move in a round, per entry (RMS), in units of sqrt(alpha^2 + sigma^2), the
            deviation of a state whose data have deviation 1. Keep it below the solver's own error; 0 is the
            sequential result, to rounding.
        form: what is added up: "x", "rho" (x / alpha) or "omega" (x / sigma).
        trapezoid: the implicit trapezoid (2) in place of a solver, order 2; tol must be greater than 0. Measured on
            mixtures its rounds settle at any number of steps with form "omega" towards the data and "rho" from them;
            otherwise from 15 to 50 steps on grid "lam", and on the default grid often not at all.
        pad: call the denoiser with window rows per sample of the batch always, so that a network sees one shape only
            (its bits depend on it, see `sample`).
    """

    solver: Annotated[Solver | None, resolves("solver")] = None
    window: Annotated[int, Field(ge=1)] = 16
    tol: Annotated[float, Field(ge=0.0)] = 1e-3
    form: Form = "x"
    trapezoid: bool = False
    pad: bool = False
    plain = False

    def __post_init__(self) -> None:
        if self.trapezoid and self.solver is not None:
            raise ConfigError(
                f"Picard.solver: given {self.solver}, but trapezoid=True is the rule itself; leave it out"
            )
        if self.trapezoid and self.tol == 0.0:
            raise ConfigError("Picard.tol: given 0, but the trapezoid is implicit: tol must be greater than 0")
        plain(self._inner, "Picard.solver")

    @property
    def _inner(self) -> Solver:
        return DDIM() if self.solver is None else self.solver

    @property
    def order(self) -> int:
        return 2 if self.trapezoid else self._inner.order

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return not self.trapezoid and self._inner.stochastic

    @property
    def open_start(self) -> bool:  # type: ignore[override]
        return self.form == "rho" if self.trapezoid else self._inner.open_start

    @property
    def open_data(self) -> bool:  # type: ignore[override]
        return self.form == "omega" if self.trapezoid else self._inner.open_data

    def fixed_steps(self, to_zero: bool) -> int | None:
        return None if self.trapezoid else self._inner.fixed_steps(to_zero)

    def plan(self, process: Process, times: Tensor) -> Plan:
        """The plan of the solver, whose result this is. Raises ConfigError where it cannot be run in parallel."""
        if self.trapezoid:
            raise ConfigError("Picard: the trapezoid is implicit, so it has no plan: give steps, not nfe")
        plan = self._inner.plan(process, times)
        if not plan.one_stage:
            raise ConfigError(
                f"Picard.solver: given {self._inner}, which does not evaluate once a step at its start; "
                "give DDIM, Euler, DEIS, DPMpp(variant='M'), UniPC, Ancestral or another that does"
            )
        return plan

    def prepare(
        self, denoiser: Denoiser, times: Tensor, device: torch.device, dtype: torch.dtype
    ) -> tuple[tuple[float, ...], Callable[..., Tensor]]:
        table = self._table(denoiser, times)

        def carry(
            x: Tensor,
            *,
            cond: Any = None,
            draw: Draw | None = None,
            callback: Any = None,
            after_step: Any = None,
            states: list[Tensor] | None = None,
        ) -> Tensor:
            for name, given in (("callback", callback), ("after_step", after_step)):
                if given is not None:
                    raise ConfigError(f"{name}: Picard takes its steps together; give the solver alone for {name}")
            return self._run(table, denoiser, x, cond, draw, states).x

        return table.times, carry

    def solve(
        self,
        denoiser: Denoiser,
        x: Tensor,
        times: Tensor,
        *,
        cond: Any = None,
        draw: Draw | None = None,
        states: list[Tensor] | None = None,
    ) -> PicardSolution:
        """From states `x` (B, *event) at times[0] to times[-1], with what it took.

        Args:
            denoiser, cond: as in `sample`.
            times: (N + 1,), as in `plan`.
            draw: (step, k) -> standard normal of x's shape; needed by stochastic solvers.
            states: receives the state at every time, the start included.
        """
        with torch.set_grad_enabled(x.requires_grad and torch.is_grad_enabled()):
            return self._run(self._table(denoiser, times), denoiser, x, cond, draw, states)

    def _table(self, denoiser: Denoiser, times: Tensor) -> _Table:
        if self.trapezoid:
            return _Table(denoiser, self.form, *self._trapezoid(denoiser.process, times))
        return _Table(denoiser, self.form, _rows(self._inner, self.plan(denoiser.process, times)))

    def _trapezoid(self, process: Process, times: Tensor) -> tuple[list[_Row], Stage | None]:
        """The rows of (2), and the evaluation at their end; a last time of 0 is reached by x0, as always."""
        times = self.checked(process, times)
        zero = bool(times[-1] == 0.0)
        inner = times[:-1] if zero else times
        lam = process.lam(inner)
        u = {"x": inner, "rho": (-lam).exp(), "omega": lam.exp()}[self.form]
        c = _divisor(process, inner, self.form)
        table = [a.tolist() for a in (inner[:-1], inner[1:], c[1:] / c[:-1], 0.5 * c[1:] * (u[1:] - u[:-1]))]
        rows = [
            _Row(s, t, evaluate(s, READ[self.form]), on_x, {0: w, 1: w}) for s, t, on_x, w in zip(*table, strict=True)
        ]
        end = float(inner[-1])
        if not zero:
            return rows, evaluate(end, READ[self.form])
        on_x, on_m = (float(c) for c in coefficients(process, end, reading(READ[self.form]), reading("x0")))
        return [*rows, _Row(end, 0.0, evaluate(end, READ[self.form]), on_x, {0: on_m})], None

    def _run(
        self, table: _Table, denoiser: Denoiser, x: Tensor, cond: Any, draw: Draw | None, states: list[Tensor] | None
    ) -> PicardSolution:
        """All rounds. Windows are kept on the CPU: how far the nodes moved is all that comes back from the device."""
        unmapped(x, "Picard")
        batch, count, last, ahead = len(x), len(table.times) - 1, len(table.asked) - 1, int(self.trapezoid)
        cond, noise, asked = repeat_cond(cond, batch), table.noise(x, draw), table.asked.to(x.device)
        width = min(self.window, count)
        nodes = x[:, None].repeat(1, count + 1, *[1] * (x.ndim - 1))  # right of `reach` never read
        m = torch.zeros_like(nodes[:, : last + 1])
        limit = (self.tol * table.deviation).square() * x[0].numel()
        left, reach, stuck, rounds, nfe = torch.zeros(5, batch, dtype=torch.int64)
        while len(own := (left < count).nonzero()[:, 0]):
            # evaluate the windows' nodes; those that enter have the value of the right edge
            span = left[own, None] + torch.arange(width + ahead)
            k, j = (span <= last).nonzero(as_tuple=True)
            b, n = own[k], span[k, j]
            nfe += torch.bincount(b, minlength=batch)
            asking = torch.stack([b, n, torch.minimum(n, reach[b])])
            missing = batch * min(width + ahead, last + 1) - len(b) if self.pad else 0
            b, n, seen = torch.cat([asking, asking[:, -1:].expand(3, missing)], 1).to(x.device)
            at = nodes[b, seen]
            found = table.evaluation(denoiser, at, asked[n], n, take_cond(cond, b))
            kept = asking.shape[1]
            m[b[:kept], n[:kept]] = found[:kept].to(m.dtype)

            # step from the left ends: x_{n+1} = carry x_n + (Phi - carry x_n)_old
            span = left[own, None] + torch.arange(width)
            inside, span = span < count, span.clamp(max=count - 1)
            edge = reach[own, None]
            places = torch.stack([own[:, None].expand_as(span), span, span.minimum(edge), (span + 1).minimum(edge)])
            b, n, seen, ends = places.to(x.device)
            old = nodes[b, seen]
            carry = table.gather(table.carry, n, old)
            rest = table.step(b, n, old, m, noise) - carry * old
            total, totals = nodes[b[:, 0], n[:, 0]], []
            for j in range(width):
                total = torch.addcmul(rest[:, j], carry[:, j], total)
                totals.append(total)
            new = torch.stack(totals, 1)

            # slide: the first node that moved too far has been computed from settled ones
            moved = squares((new - nodes[b, ends]).detach().flatten(0, 1)).reshape(span.shape).cpu()
            settled = (moved <= limit[span + 1]) | ~inside
            whole = inside.sum(1)
            slide = (settled.cumprod(1).sum(1) + 1 - ahead).minimum(whole)
            k, j = inside.nonzero(as_tuple=True)
            b, n, k, j = torch.stack([own[k], span[k, j] + 1, k, j]).to(x.device)
            nodes[b, n] = new[k, j]
            stuck[own] = torch.where(slide > 0, 0, stuck[own] + 1)
            if int(stuck.max()) >= PATIENCE:
                where = table.times[int(left[stuck.argmax()]) + 1]
                raise ConfigError(
                    f"Picard.tol: given {self.tol:g}, but the state at time {where:g} still moves by more after "
                    f"{PATIENCE} rounds: take more steps there, or form='omega' towards the data and 'rho' from them"
                )
            reach[own] = left[own] + whole
            left[own] += slide
            rounds[own] += 1
        if states is not None:
            states += nodes.unbind(1)
        return PicardSolution(nodes[:, -1].clone(), rounds, nfe)


@dataclass(frozen=True)
class _Row:
    """A step: evaluation `stage` at its start, and x at its end = on_x x + sum_o on_m[o] m_{n+o} + bias + draws."""

    start: float
    end: float
    stage: Stage
    on_x: Coef
    on_m: dict[int, Coef]
    bias: Coef = 0.0
    draws: tuple[tuple[int, Coef], ...] = ()


def _rows(solver: Solver, plan: Plan) -> list[_Row]:
    """A plan of one stage a step, its history slots resolved to the steps that filled them."""
    written: dict[int, int] = {}
    rows: list[_Row] = []
    for n, step in enumerate(plan.steps):
        stage = step.stages[0]
        if any(callable(c) for c in (*stage.affine, *(c for _, c in step.out))):
            raise ConfigError(f"Picard.solver: given {solver}, whose coefficients depend on the state: run it alone")
        assert stage.keep is not None
        written[stage.keep] = n
        sums: dict[Reg, Coef] = {}
        for register, c in step.out:  # y_0 is x itself
            place: Reg = X if register[0] == "y" else register
            if register[0] == "m":
                place = ("m", written[register[1]] - n)
            sums[place] = _sum(sums.get(place, 0.0), c)
        on_m = {place[1]: c for place, c in sums.items() if place[0] == "m"}
        draws = tuple((place[1], c) for place, c in sums.items() if place[0] == "z")
        rows.append(_Row(step.start, step.end, stage, sums.get(X, 0.0), on_m, sums.get(("one", 0), 0.0), draws))
    return rows


def _sum(a: Coef, b: Coef) -> Coef:
    return a + b if isinstance(a, float) and isinstance(b, float) else Array(_value(a) + _value(b))


def _value(c: Coef) -> Tensor:
    assert isinstance(c, (float, Array))
    return c.value if isinstance(c, Array) else torch.tensor(c, dtype=torch.float64)


def _stack(values: list[Tensor]) -> Array:
    """One number, or one array over the event, a node: (N,) or (N, *event)."""
    return Array(torch.stack(torch.broadcast_tensors(*values)))  # type: ignore[no-untyped-call]


def _divisor(process: Process, times: Tensor, form: Form) -> Tensor:
    """c of (1) at the nodes."""
    if form == "x":
        return torch.ones_like(times)
    return process.alpha(times) if form == "rho" else process.sigma(times)


class _Table:
    """All steps in numbers for one denoiser: coefficients that every (sample, node) looks up."""

    def __init__(self, denoiser: Denoiser, form: Form, rows: list[_Row], closing: Stage | None = None) -> None:
        process = denoiser.process
        self.times = (rows[0].start, *(row.end for row in rows))
        self.rows = rows
        at = torch.tensor(self.times, dtype=torch.float64)
        c = _divisor(process, at, form)
        self.carry = Array((c[1:] / c[:-1]).nan_to_num(nan=1.0, posinf=1.0))  # any finite number has the fixed point
        self.deviation = torch.hypot(process.alpha(at), process.sigma(at))
        stages = [row.stage for row in rows] + ([] if closing is None else [closing])
        self.asked = torch.tensor([stage.time for stage in stages], dtype=torch.float64)
        self.reading = [Array(weight) for weight in _weights(denoiser, stages, self.asked)]
        self.on_x = _stack([_value(row.on_x) for row in rows])
        self.bias = _stack([_value(row.bias) for row in rows]) if any(row.bias != 0.0 for row in rows) else None
        offsets = sorted({o for row in rows for o in row.on_m})
        self.on_m = {o: _stack([_value(row.on_m.get(o, 0.0)) for row in rows]) for o in offsets}

    @staticmethod
    def gather(table: Array, n: Tensor, like: Tensor) -> Tensor:
        """The entries of nodes `n`, ready to multiply `like` (*n.shape, *event)."""
        found = table.like(like)[n]
        own = found.shape[n.ndim :]
        return found.reshape(*n.shape, *[1] * (like.ndim - n.ndim - len(own)), *own)

    def noise(self, x: Tensor, draw: Draw | None) -> Tensor | None:
        """What every step adds of its draws, (B, N, *event); None for a deterministic solver."""
        if not any(row.draws for row in self.rows):
            return None
        if draw is None:
            raise ConfigError("draw: this solver is stochastic; give a source of noise, (step, k) -> normal")
        noise = torch.zeros_like(x)[:, None].repeat(1, len(self.rows), *[1] * (x.ndim - 1))
        for n, row in enumerate(self.rows):
            for k, c in row.draws:
                noise[:, n] += draw(n, k) * _value(c).to(x)
        return noise

    def evaluation(self, denoiser: Denoiser, x: Tensor, times: Tensor, n: Tensor, cond: Any) -> Tensor:
        """m at states x (R, *event) of nodes n (R,): the stage's combination of x and what the denoiser says."""
        p = denoiser(x, times, cond)
        said = (p.read("x0"), p.read("noise")) if denoiser.reading is None else (p.value,)
        first, *rest = (self.gather(weight, n, x) for weight in self.reading)
        return first * x + sum(weight * value for weight, value in zip(rest, said, strict=True))

    def step(self, b: Tensor, n: Tensor, old: Tensor, m: Tensor, noise: Tensor | None) -> Tensor:
        """Phi of nodes n (A, W) of samples b, from the states `old` there and the evaluations kept."""
        out = self.gather(self.on_x, n, old) * old
        for offset, weight in self.on_m.items():
            out = out + self.gather(weight, n, old) * m[b, (n + offset).clamp(0, m.shape[1] - 1)]
        if self.bias is not None:
            out = out + self.gather(self.bias, n, old)
        return out if noise is None else out + noise[b, n]


def _weights(denoiser: Denoiser, stages: list[Stage], at: Tensor) -> list[Tensor]:
    """What multiplies the state and each of the denoiser's own readings in m = p y + q reading: (K,) or (K, *event)."""
    parts = 2 if denoiser.reading is not None else 3
    found = torch.zeros(parts, len(stages), dtype=torch.float64)
    for name in {stage.reading for stage in stages}:
        rows = torch.tensor([n for n, stage in enumerate(stages) if stage.reading == name])
        for i, (state, *said) in enumerate(torch.eye(parts, dtype=torch.float64)[:, :, None].expand(-1, -1, len(rows))):
            own = {"other": (denoiser.reading, *said)} if parts == 2 else {"x0": said[0], "noise": said[1]}
            found[i, rows] = Prediction(denoiser.process, state, at[rows], **own).read(name)
    p, q = (_stack([_value(stage.affine[i]) for stage in stages]).value for i in (0, 1))
    on_x, *rest = (q * w.reshape(-1, *[1] * (q.ndim - 1)) for w in found)
    return [p.reshape(-1, *[1] * (on_x.ndim - p.ndim), *p.shape[1:]) + on_x, *rest]
