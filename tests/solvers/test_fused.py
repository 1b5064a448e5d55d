"""Steps in one pass over memory: their values, their rounding, how many operations they take and what they allocate."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fokker import noise
from fokker.denoiser import NetDenoiser
from fokker.prediction import READINGS, Prediction
from fokker.process import EDM, OU, VP, Flow, Process, Trig
from fokker.registry import KINDS, build
from fokker.solvers import (
    DDIM,
    DEIS,
    DPM,
    Ancestral,
    DPMpp,
    Euler,
    Heun,
    Plan,
    Solver,
    Step,
    UniformLam,
    UniPC,
    bind,
    fused,
    run,
)
from fokker.solvers.plan import evaluate

from .oracle import F64, Oracle, execute, gaussian, reference

X = ("x", 0)
FIXED = [
    DDIM(),
    DPMpp(2),
    DPM(2, "M"),
    DEIS(1),
    DEIS(2),
    UniPC(2),
    UniPC(3),
    DPMpp(3),
    Euler(),
    Euler("rho"),
]


def gap(a: Tensor, b: Tensor) -> float:
    return float(((a - b).abs() / (1.0 + b.abs())).max())


def times_of(process: Process, steps: int, to_zero: bool = True) -> Tensor:
    return UniformLam().times(process, steps, 0.9 * process.t_max, process.t_min, to_zero)


def random_plan(rng: np.random.Generator, steps: int = 7) -> Plan:
    """Steps of one evaluation that read any of three slots, new or kept for long, with numbers of every size."""
    times = np.sort(rng.uniform(0.2, 0.9, steps + 1))[::-1]
    filled: set[int] = set()
    made = []
    for s, t in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        keep = int(rng.integers(3))
        filled.add(keep)
        slots = [i for i in sorted(filled) if rng.integers(3)]
        state = [(X, float(rng.choice([1.0, -0.7, 0.3, rng.uniform(0.5, 1.5)])))] if rng.integers(4) else []
        slots = sorted({*slots, keep})
        on_m = [(("m", i), float(rng.uniform(-0.8, 0.8))) for i in slots]
        made.append(Step(s, t, (evaluate(s, ["x0", "noise", "v"][rng.integers(3)], keep),), (*state, *on_m)))
    return Plan(tuple(made), 3)


@pytest.mark.parametrize("name", [None, "x0", "noise", "v"])
def test_random_plans_of_one_evaluation(name: str | None) -> None:
    """Whatever is kept, for however long, and whichever tensors change places: the plan's definition."""
    rng = np.random.default_rng(3)
    x = torch.randn(5, 8, dtype=F64, generator=torch.Generator().manual_seed(1))
    seen: dict[str, int] = {"fused": 0, "descent": 0, "ratio": 0, "alone": 0, "more": 0, "place": 0}
    for trial in range(60):
        oracle = gaussian(VP(), 0.3, 0.25, shape=(8,), reading=name)
        plan = random_plan(rng).pruned()
        want, states = reference(plan, oracle, x)
        got: list[Tensor] = []
        assert gap(execute(plan, oracle, x, states=got), want) < 1e-11, trial
        assert all(gap(a, b) < 1e-11 for a, b in zip(got, states, strict=True)), trial
        for update in bind(plan, oracle, x.device, F64).updates or ():
            seen["fused"] += 1
            seen["descent"] += update.rate != 0.0
            seen["ratio"] += update.ratio != 0.0 and math.isfinite(update.ratio)
            seen["alone"] += math.isinf(update.ratio)
            seen["more"] += bool(update.more)
            seen["place"] += update.h is None and update.keep is None
    assert seen["fused"] > 250
    assert all(count > 5 for case, count in seen.items() if (name, case) != (None, "ratio")), seen


@pytest.mark.parametrize("process", [VP(), EDM(), Flow(), Trig(), OU()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("solver", FIXED, ids=str)
def test_values_and_rounding_of_every_solver(solver: Solver, process: Process) -> None:
    """The same to rounding as the plan step by step, in float32 as well, from states of size 80 down to data."""
    for name in ("noise", "x0", "v"):
        for steps in (2, 5, 20):
            oracle = gaussian(process, 0.3, 0.25, shape=(16,), reading=name)
            plan = solver.plan(process, times_of(process, steps))
            x = torch.linspace(-2.0, 2.0, 32).reshape(2, 16) * float(process.sigma(plan.times[0]))
            bound, low = (bind(plan, oracle, x.device, dtype) for dtype in (F64, torch.float32))
            assert bound.updates is not None and low.updates is not None
            with torch.no_grad():
                want = run(replace(bound, updates=None), oracle, x.double())
                rounded = gap(run(replace(low, updates=None), oracle, x).double(), want)
                assert gap(run(bound, oracle, x.double()), want) < 1e-8 * rounded + 1e-13, (name, steps)
                assert gap(run(low, oracle, x).double(), want) < 5.0 * rounded + 2e-6, (name, steps)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_bits_do_not_depend_on_what_stands_beside(dtype: torch.dtype) -> None:
    """A sample has the same bits alone, in any batch and at any place in it."""
    for event in (7, 16, 24):
        oracle = gaussian(VP(), 0.3, 0.25, shape=(event,), reading="noise")
        x = torch.randn(23, event, dtype=dtype, generator=torch.Generator().manual_seed(2))
        assert fused.fits(x) is (event * x.element_size() % 64 == 0)
        for solver in (DDIM(), DPMpp(2), UniPC(3), Heun("rho")):
            plan = solver.plan(VP(), times_of(VP(), 6))
            together = execute(plan, oracle, x)
            for rows in (slice(0, 1), slice(22, 23), slice(3, 8), slice(1, 23)):
                assert torch.equal(execute(plan, oracle, x[rows].clone()), together[rows]), (solver, rows)


class Net:
    """A denoiser whose output is laid out or typed as networks do it."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        self.inner, self.change = gaussian(VP(), 0.3, 0.25, shape=(2, 4, 4), reading="noise"), change
        self.process, self.shape, self.lam_range = self.inner.process, self.inner.shape, (-9.0, 9.0)
        self.reading = READINGS["noise"]

    def __call__(self, x: Tensor, s: float | Tensor, cond: Any = None) -> Prediction:
        assert x.is_contiguous()
        return Prediction(self.process, x, s, noise=self.change(self.inner(x, s).value))


def test_outputs_of_another_layout_or_type() -> None:
    """Channels last, strided, read-only, of lower precision or made for inference: values count, not memory."""
    x = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(3))

    def inference(value: Tensor) -> Tensor:
        with torch.inference_mode():
            return value + 0.0

    layouts: dict[str, Callable[[Tensor], Tensor]] = {
        "channels last": lambda v: v.contiguous(memory_format=torch.channels_last),
        "strided": lambda v: torch.stack([v, -v], -1)[..., 0],
        "bfloat16": lambda v: v.bfloat16(),
        "float64": lambda v: v.double(),
        "inference": inference,
    }
    for solver in (DDIM(), DPMpp(2), DEIS(2)):
        plan = solver.plan(VP(), times_of(VP(), 5))
        want = execute(plan, Net(lambda v: v), x)
        for name, change in layouts.items():
            got = execute(plan, Net(change), x.to(memory_format=torch.channels_last))
            if name == "bfloat16":
                want_low = execute(plan, Net(lambda v: v.bfloat16().float()), x)
                assert torch.equal(got, want_low), (solver, name)
            else:
                assert torch.equal(got, want), (solver, name)


def test_after_step_may_change_the_state() -> None:
    """What a slot holds would be wrong for another state: then evaluations are formed as the plan says."""
    oracle = gaussian(VP(), 0.3, 0.25, shape=(8,), reading="noise")
    x = torch.linspace(-1.0, 1.0, 40, dtype=F64).reshape(5, 8)
    for solver in (DPMpp(2), DEIS(2)):
        plan = solver.plan(VP(), times_of(VP(), 6, False))
        bound = bind(plan, oracle, x.device, F64)
        with torch.no_grad():
            got = run(bound, oracle, x, after_step=lambda n, u: u * 1.5)
            inside = run(bound, oracle, x, after_step=lambda n, u: u.mul_(1.5))
            want = run(replace(bound, updates=None), oracle, x, after_step=lambda n, u: u * 1.5)
        assert torch.equal(got, want) and torch.equal(inside, want)


def test_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = gaussian(VP(), 0.3, 0.25, shape=(8,), reading="noise")
    x = torch.linspace(-1.0, 1.0, 40, dtype=F64).reshape(5, 8)
    plan = DPMpp(2).plan(VP(), times_of(VP(), 6))
    want = execute(plan, oracle, x)
    monkeypatch.delattr(torch, "_fused_sgd_")
    assert not fused.fits(x)
    assert gap(execute(plan, oracle, x), want) < 1e-13
    monkeypatch.undo()
    assert fused.fits(x) and not fused.fits(x.to("meta"))


# ------------------------------------------------------------------------------------------------- what it costs


class Ready(Oracle):
    """A denoiser that allocates nothing: its answer was there before."""

    def __init__(self, x: Tensor, name: str, process: Process) -> None:
        super().__init__(process, shape=tuple(x.shape[1:]), reading=name)
        self.answer = torch.ones_like(x)

    def __call__(self, x: Tensor, s: float | Tensor, cond: Any = None) -> Prediction:
        return Prediction(self.process, x, s, other=(READINGS[str(self.name)], self.answer))


class Watch(TorchDispatchMode):
    """Counts operations, and the tensors of `numel` elements that are alive at once; refuses to wait for a device."""

    WAITS = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "unique", "allclose")

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel, self.calls, self.peak = numel, [], 0
        self.made: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = op.overloadpacket.__name__
        assert name not in self.WAITS, f"{name} waits for the device"
        out = op(*args, **(kwargs or {}))
        self.calls.append(name)
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor) and tensor.numel() >= self.numel:
                self.made.append(weakref.ref(tensor))
        alive = [ref() for ref in self.made]
        self.peak = max(self.peak, len({t.untyped_storage()._cdata for t in alive if t is not None}))
        return out


def watched(solver: Solver, name: str = "noise", steps: int = 8, process: Process | None = None) -> Watch:
    process = process or VP()
    x = torch.linspace(-1.0, 1.0, 64).reshape(4, 16)
    denoiser = Ready(x, name, process)
    bound = bind(solver.plan(process, times_of(process, steps, False)), denoiser, x.device, x.dtype)
    still = torch.zeros_like(x)
    with torch.no_grad(), Watch(x.numel()) as watch:
        run(bound, denoiser, x, draw=lambda n, k: still)
    return watch


@pytest.mark.parametrize("name", ["noise", "v"])
def test_one_operation_a_step(name: str) -> None:
    """One-step methods: the start's copy, then a kernel a step; two-step methods: a first history of zeros besides."""
    for solver, first in ((DDIM(), 0), (Euler("rho"), 0), (DPMpp(2), 1), (DPM(2, "M"), 1), (DEIS(1), 1)):
        want = ["clone", *["zeros_like"] * first, *["_fused_sgd_"] * 20]
        assert watched(solver, name, 20).calls == want, solver
    assert watched(DDIM(), "noise", 20, EDM()).calls == ["clone", *["add_"] * 20]  # alpha = 1: an addition is all


@pytest.mark.parametrize(
    ("solver", "history"),
    [(DDIM(), 0), (DPMpp(2), 1), (DEIS(1), 1), (UniPC(2), 2), (DPMpp(3), 2), (DEIS(3), 3), (UniPC(3), 3)],
    ids=str,
)
def test_nothing_is_allocated_beyond_the_history(solver: Solver, history: int) -> None:
    """The state, and what the method remembers: an evaluation of the step is not held beside those before."""
    assert watched(solver, steps=12).peak == 1 + history


def test_steps_of_several_stages_hold_their_registers() -> None:
    """State, states of stages and slots; nothing in between."""
    for solver, states in ((Heun("rho"), 1), (DPMpp(2, "S"), 1), (DPMpp(3, "S"), 2), (Ancestral(), 0)):
        assert watched(solver).peak <= 1 + states + solver.slots, solver


def solvers() -> Iterator[Solver]:
    """Every kind of solver that this executor runs, as it comes, and some in another form."""
    for kind in KINDS["solver"]:
        if kind != "dpmv3":  # which comes with statistics only
            solver = build("solver", {"kind": kind, "repeats": 2} if kind == "annealed-langevin" else kind)
            if solver.plain:
                yield solver
    yield from (*FIXED, DPMpp(3, "S"), DDIM(eta=1.0))


class Small(torch.nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return 0.5 * x * t[:, None]


def test_no_plan_waits_for_a_device() -> None:
    """No number is read back from a tensor while a plan runs: on a GPU steps are launched ahead of their results."""
    process, x = VP(), torch.linspace(-1.0, 1.0, 64).reshape(4, 16)
    denoiser = NetDenoiser(Small(), process, predict="v", precondition="edm", shape=(16,))
    index = torch.arange(4)

    def draw(n: int, k: int) -> Tensor:
        return noise.normal(7, index, (16,), draw=n << 8 | k)

    for solver in solvers():
        bound = bind(solver.plan(process, times_of(process, 4)), denoiser, x.device, x.dtype)
        for updates in {bound.updates, None}:
            chosen = replace(bound, updates=updates)
            with torch.no_grad():
                once = run(chosen, denoiser, x, draw=draw)  # keeps what the denoiser computes from a time
                with Watch(x.numel()):
                    again = run(chosen, denoiser, x, draw=draw)
            assert torch.equal(again, once), solver


def test_a_network_that_hands_its_input_back_in_one_pass() -> None:
    """Raw is the state's own memory: every kind of step reads it before it is written."""
    x = torch.linspace(-1.0, 1.0, 64, dtype=F64).reshape(4, 16)

    class Echo(Oracle):
        def __call__(self, x: Tensor, s: float | Tensor, cond: Any = None) -> Prediction:
            return Prediction(self.process, x, s, other=(READINGS[str(self.name)], x.view_as(x)))

    for name in ("x0", "noise", "velocity"):
        for process in (VP(), EDM()):
            for solver in FIXED:
                echo = Echo(process, shape=(16,), reading=name)
                plan = solver.plan(process, times_of(process, 7))
                assert bind(plan, echo, x.device, F64).updates is not None
                assert gap(execute(plan, echo, x), reference(plan, echo, x)[0]) < 1e-10, (name, solver)


@pytest.mark.parametrize("width", [16, 15])  # in one pass, and term by term
@pytest.mark.parametrize("solver", [DDIM(), DPMpp(2), UniPC(2), Heun("rho")], ids=str)
def test_one_answer_for_the_whole_batch(solver: Solver, width: int) -> None:
    """A denoiser may give what broadcasts to the state; the kernel reads as many numbers as the state has."""
    answer = torch.linspace(-1.0, 1.0, width)[None]

    class Constant:
        process, shape, lam_range, reading = VP(), (width,), (-math.inf, math.inf), READINGS["x0"]
        whole = False

        def __call__(self, x: Tensor, s: float | Tensor, cond: Any = None) -> Prediction:
            x0 = answer.expand_as(x).clone() if self.whole else answer
            return Prediction(self.process, x, s, x0=x0)

    class Whole(Constant):
        whole = True

    x = noise.normal(0, torch.arange(33), (width,), dtype=torch.float32)
    plan = solver.plan(VP(), times_of(VP(), 5, False))
    assert torch.equal(execute(plan, Constant(), x), execute(plan, Whole(), x))
