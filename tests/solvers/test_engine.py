"""The plan and its executor: every register, every kind of coefficient, folding, pruning, gradients, aliasing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fokker.component import Array
from fokker.errors import ConfigError
from fokker.prediction import READINGS, Prediction
from fokker.process import EDM, VP, Flow, Process, Trig
from fokker.solvers import (
    DDIM,
    DEIS,
    DPM,
    RK4,
    Ancestral,
    DPMpp,
    EDMStochastic,
    Euler,
    EulerMaruyama,
    ExpEuler,
    ExpHeun,
    Heun,
    Karras,
    Plan,
    Solver,
    Stage,
    Step,
    UniformLam,
    UniformT,
    UniPC,
    bind,
    run,
)
from fokker.solvers.plan import evaluate, to_data

from .oracle import (
    F64,
    READING_NAMES,
    Oracle,
    execute,
    flow_map,
    gaussian,
    gaussian_map,
    mixture,
    quantile_starts,
    reference,
    slopes,
)

X, ONE = ("x", 0), ("one", 0)
SOLVERS: list[Solver] = [
    DDIM(),
    DDIM(eta=0.5),
    *[solver(space=space) for solver in (Euler, Heun, RK4) for space in ("t", "lam", "rho")],
    Ancestral(),
    Ancestral("forward"),
    EulerMaruyama(),
    EulerMaruyama(eta=0.0),
    EDMStochastic(),
    EDMStochastic(S_churn=0.0),
]


def draws(shape: tuple[int, ...], seed: int = 0) -> Callable[[int, int], Tensor]:
    """Noise by (step, k), the same whenever it is asked."""

    g = torch.Generator().manual_seed(seed)
    table = torch.randn((64, 2, *shape), dtype=F64, generator=g)
    return lambda step, k: table[step, k]


def functional(plan: Plan, denoiser: Any, x: Tensor, **kwargs: Any) -> Tensor:
    with torch.enable_grad():
        return run(bind(plan, denoiser, x.device, x.dtype), denoiser, x, **kwargs)


def gap(a: Tensor, b: Tensor) -> float:
    return float(((a - b).abs() / (1.0 + b.abs())).max())


# ------------------------------------------------------------------------------------------------- evaluations


def test_what_solvers_say_of_themselves() -> None:
    """order, stochastic, open_start, slots: facts that other tests measure, stated once."""
    facts = {
        DDIM(): (1, False, False, 1),
        DDIM(eta=0.5): (1, True, False, 1),
        Euler(): (1, False, False, 1),
        Euler("lam"): (1, False, True, 1),
        Heun(): (2, False, False, 2),
        Heun("rho"): (2, False, True, 2),
        RK4(): (4, False, False, 4),
        RK4("rho"): (4, False, True, 4),
        Ancestral(): (1, True, False, 1),
        EulerMaruyama(): (1, True, True, 1),
        EulerMaruyama(eta=0.0): (1, False, False, 1),
        EDMStochastic(): (1, True, True, 2),
        EDMStochastic(S_churn=0.0): (2, False, True, 2),
        DPM(): (2, False, True, 2),
        DPM(3, "M", start="single"): (3, False, True, 4),
        DPMpp(): (2, False, False, 2),
        DPMpp(3, "S"): (3, False, False, 3),
        DPMpp(3, start="single"): (3, False, False, 4),
        DEIS(): (3, False, True, 3),
        DEIS(3, start="single"): (4, False, True, 6),
        UniPC(): (3, False, False, 4),
        UniPC(3, start="single"): (3, False, False, 6),
        UniPC(2, side="noise"): (2, False, True, 3),
        ExpEuler(): (1, False, True, 1),
        ExpEuler("x0"): (1, False, False, 1),
        ExpHeun(): (2, False, True, 2),
    }
    for solver, want in facts.items():
        assert (solver.order, solver.stochastic, solver.open_start, solver.slots) == want, solver
        plan = solver.plan(VP(), torch.tensor([0.5, 0.4], dtype=F64))
        assert plan.slots == want[3] and plan.steps[0].draws == (1 if want[1] else 0)
    assert Ancestral().variance == "posterior" and EulerMaruyama().eta == 1.0 and Heun().space == "t"
    assert DPM().variant == "S" and DPMpp().variant == "M" and UniPC().side == "data" and UniPC().corrector
    assert DEIS().space == "t" and {solver.start for solver in (DPM(), DPMpp(), DEIS(), UniPC())} == {"ramp"}
    churn = EDMStochastic()
    assert (churn.S_churn, churn.S_tmin, churn.S_tmax, churn.S_noise) == (40.0, 0.05, 50.0, 1.003)


@pytest.mark.parametrize("to_zero", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_nfe_is_what_is_evaluated(solver: Solver, steps: int, to_zero: bool) -> None:
    """N, 2 N and 4 N; ending with an x0 step: N, 2 N - 1, 4 N - 3."""
    each = {Heun: 2, RK4: 4, EDMStochastic: 2}.get(type(solver), 1)
    oracle = gaussian(VP(), 0.3, 0.25)
    plan = solver.plan(VP(), UniformLam().times(VP(), steps, 0.9, 1e-3, to_zero))
    x = quantile_starts(oracle, 0.9)
    execute(plan, oracle, x, draw=draws(x.shape))
    assert len(oracle.calls) == plan.nfe == (each * (steps - 1) + 1 if to_zero else each * steps)
    for step in plan.steps:  # the ends of a step are its times themselves, not what their lam gives back
        asked = [stage.time for stage in step.stages]
        if not (isinstance(solver, EDMStochastic) and solver.stochastic):
            assert asked[0] == step.start
        if len(asked) > 1:
            assert asked[-1] == step.end
    assert len(plan.steps) == steps and plan.times[0] == 0.9 and plan.times[-1] == (0.0 if to_zero else 1e-3)


def test_one_stage() -> None:
    times = UniformLam().times(VP(), 4, 0.9, 1e-3, True)
    for solver in SOLVERS:
        wants = type(solver) in (DDIM, Euler, Ancestral, EulerMaruyama)
        assert solver.plan(VP(), times).one_stage is wants, solver
    there = Stage(((X, 2.0),), 0.5, "x0", (0.0, 1.0), 0)
    assert not Plan((Step(0.9, 0.5, (there,), ((("m", 0), 1.0),)),), 1).one_stage
    idle = Stage(((X, 1.0),), None)
    assert not Plan((Step(0.9, 0.5, (idle,), ((("y", 0), 1.0),)),), 1).one_stage


def test_pruning_drops_what_nothing_reads_and_nothing_else() -> None:
    """A PECE-like plan: the last evaluation is dead, so is a state of its own, and a draw nobody uses."""
    oracle = gaussian(VP(), 0.3, 0.25)

    def step(s: float, t: float) -> Step:
        stages = (
            evaluate(s, "x0", 0),  # overwrites what the step before kept: that one is dead
            Stage(((X, 0.4), (("m", 0), 0.6))),  # y1: a state nothing reads
            Stage(((X, 0.7), (("m", 0), 0.3))),  # y2
            Stage(((("y", 2), 1.0),), t, "x0", (0.0, 1.0), 1),
            Stage(((("y", 2), 0.5), (("m", 1), 0.5)), t, "noise", (0.0, 1.0), 0),  # dead
        )
        return Step(s, t, stages, ((("y", 2), 0.5), (("m", 1), 0.5)), draws=2)

    plan = Plan((step(0.9, 0.6), step(0.6, 0.3), step(0.3, 0.1)), 2)
    lean = plan.pruned()
    x = quantile_starts(oracle, 0.9)
    want, _ = reference(plan, oracle, x, draws(x.shape))
    assert plan.nfe == 9 and lean.nfe == 6
    assert all(s.draws == 0 for s in lean.steps)
    assert [len(s.stages) for s in lean.steps] == [4, 4, 4]
    assert all(s.stages[1] == Stage((), None) for s in lean.steps)
    assert gap(execute(lean, oracle, x), want) < 1e-14
    assert gap(reference(lean, oracle, x)[0], want) == 0.0
    assert lean.pruned() == lean


def test_pruning_keeps_what_a_later_step_or_a_rule_reads() -> None:
    oracle = gaussian(VP(), 0.3, 0.25)
    norm = PerSample(("m", 0), lambda m: 1.0 / (1.0 + m))
    plan = Plan(
        (
            Step(0.9, 0.6, (evaluate(0.9, "x0", 0), evaluate(0.9, "noise", 1)), ((X, 0.5),)),
            Step(0.6, 0.3, (Stage(((X, norm),)),), ((("y", 0), 1.0), (("m", 1), 0.25))),
        ),
        2,
    )
    assert plan.pruned().nfe == 2
    x = quantile_starts(oracle, 0.9)
    assert gap(execute(plan.pruned(), oracle, x), reference(plan, oracle, x)[0]) < 1e-14


# ------------------------------------------------------------------------------------------------- all registers


class PerSample:
    """A rule: a function of the per-sample root mean square of one register."""

    def __init__(self, register: Any, function: Callable[[Tensor], Tensor]) -> None:
        self.reads, self.function = (register,), function

    def __call__(self, registers: Any) -> Tensor:
        return self.function(registers[self.reads[0]].flatten(1).square().mean(1).sqrt())


EVENT = (2, 3)


def random_plan(rng: np.random.Generator, kinds: tuple[str, ...], steps: int = 4) -> Plan:
    """A plan of random stages over every register; coefficients of the given kinds."""
    times = np.sort(rng.uniform(0.2, 0.9, steps + 1))[::-1]
    filled: set[int] = set()
    made = []
    for n in range(steps):
        registers: list[Any] = [X, ONE, ("z", 0), ("z", 1)]

        def coefficient(registers: list[Any] = registers) -> Any:
            kind = kinds[rng.integers(len(kinds))]
            number = float(rng.uniform(-0.8, 0.8))
            if kind == "array":
                shape = [EVENT, (3,), (2, 1)][rng.integers(3)]
                return Array(rng.uniform(-0.8, 0.8, shape))
            if kind == "rule":
                at = [*registers, *[("m", i) for i in filled]]
                at.remove(ONE)
                return PerSample(at[rng.integers(len(at))], lambda m, number=number: number / (1.0 + m))
            return number

        def terms(registers: list[Any] = registers, coefficient: Any = coefficient) -> Any:
            pool = [*registers, *[("m", i) for i in sorted(filled)]]
            chosen = rng.permutation(len(pool))[: rng.integers(1, min(5, len(pool)) + 1)]
            return tuple((pool[i], coefficient()) for i in chosen)

        stages = []
        for j in range(rng.integers(1, 4)):
            kind = rng.integers(4)
            body = ((X, 1.0),) if kind == 0 else terms()
            if kind == 1:
                stages.append(Stage(body))
            else:
                affine = (0.0, 1.0) if rng.integers(2) else (coefficient(), coefficient())
                keep = int(rng.integers(3))
                reading = READING_NAMES[rng.integers(5)]
                stages.append(Stage(body, float(rng.uniform(0.2, 0.9)), reading, affine, keep))
                filled.add(keep)
            registers.append(("y", j))
        made.append(Step(float(times[n]), float(times[n + 1]), tuple(stages), terms(), draws=2))
    return Plan(tuple(made), 3)


@pytest.mark.parametrize("kinds", [("number",), ("number", "array"), ("number", "rule")], ids="+".join)
def test_random_plans_against_their_definition(kinds: tuple[str, ...]) -> None:
    """What bind and run make of a plan, folded, merged, in place or not, pruned or not, is its definition."""
    rng = np.random.default_rng(5)
    x = torch.randn(4, *EVENT, dtype=F64, generator=torch.Generator().manual_seed(1))
    draw = draws(x.shape)
    for trial in range(25):
        plan = random_plan(rng, kinds)
        lean = plan.pruned()
        assert lean.nfe <= plan.nfe
        for name in (None, "noise", "v"):
            oracle = gaussian(VP(), 0.3, 0.25, reading=name, shape=EVENT)
            want, states = reference(plan, oracle, x, draw)
            assert gap(reference(lean, oracle, x, draw)[0], want) == 0.0, trial
            got: list[Tensor] = []
            with torch.no_grad():
                kept = run(bind(lean, oracle, x.device, x.dtype), oracle, x, draw=draw, states=got)
            assert gap(kept, want) < 1e-11, (trial, name, "in place")
            assert all(gap(a, b) < 1e-11 for a, b in zip(got, states, strict=True)), (trial, name)
            assert gap(functional(lean, oracle, x, draw=draw), want) < 1e-11, (trial, name, "functional")


def test_the_constant_register_alone_and_first() -> None:
    """y = c 1 + m and x <- c 1 + m: the bias must not change the shape of what it is written into."""
    oracle = gaussian(VP(), 0.3, 0.25)
    x = quantile_starts(oracle, 0.9)
    for out in (((ONE, 0.5), (("m", 0), 1.0)), ((ONE, 0.5),), ((("m", 0), 1.0), (ONE, 0.5))):
        step = Step(0.9, 0.9, (Stage(((ONE, 0.1), (X, 0.5)), 0.9, "x0", (0.0, 1.0), 0),), out)
        plan = Plan((step, step, step), 1)
        want, _ = reference(plan, oracle, x)
        assert gap(functional(plan, oracle, x), want) < 1e-14
        got = execute(plan, oracle, x)
        assert got.shape == x.shape and gap(got, want) < 1e-14


def test_an_array_or_a_rule_on_the_state_is_not_overwritten() -> None:
    """x <- A x + b m and x <- c x + A x + b m: the state is read before it is written."""
    oracle = gaussian(VP(), 0.3, 0.25, shape=EVENT)
    x = torch.randn(4, *EVENT, dtype=F64, generator=torch.Generator().manual_seed(2))
    table = Array(np.linspace(0.5, 1.5, 6).reshape(EVENT))
    norm = PerSample(X, lambda m: 1.0 / (1.0 + m))
    for c in (table, norm):
        for out in (((X, c), (("m", 0), 0.5)), ((X, 0.5), (X, c), (("m", 0), 0.5)), ((("m", 0), 1.0), (X, c))):
            plan = Plan((Step(0.9, 0.6, (evaluate(0.9, "x0"),), out),) * 2, 1)
            want, _ = reference(plan, oracle, x)
            assert gap(functional(plan, oracle, x), want) < 1e-14
            assert gap(execute(plan, oracle, x), want) < 1e-14
    # DPM-Solver-v3's form: m = p y + q reading with arrays, x as a number
    stage = Stage(((X, 1.0),), 0.9, "noise", (table, table), 0)
    plan = Plan((Step(0.9, 0.6, (stage,), ((X, 0.5), (("m", 0), 0.5))),) * 2, 1)
    for name in (None, "x0", "noise"):
        oracle = gaussian(VP(), 0.3, 0.25, shape=EVENT, reading=name)
        assert gap(execute(plan, oracle, x), reference(plan, oracle, x)[0]) < 1e-13, name


def test_a_rule_reads_history_and_this_steps_evaluation() -> None:
    """Slots that only a rule reads are kept: from the step before, and by a later stage of the same step."""
    oracle = gaussian(VP(), 0.3, 0.25, shape=EVENT)
    x = torch.randn(4, *EVENT, dtype=F64, generator=torch.Generator().manual_seed(3))
    norm = PerSample(("m", 0), lambda m: 1.0 / (1.0 + m))
    before = Step(0.9, 0.7, (evaluate(0.9, "x0", 0),), ((X, 0.9), (("m", 0), 0.1)))
    history = Plan((before, Step(0.7, 0.5, (evaluate(0.7, "noise", 1),), ((X, 0.9), (("m", 1), norm)))), 2)
    inside = Plan(
        (Step(0.9, 0.7, (evaluate(0.9, "x0", 0), Stage(((X, norm), (("m", 0), 0.2)))), ((("y", 1), 1.0),)),), 1
    )
    for plan in (history, inside):
        for name in (None, "noise"):
            oracle = gaussian(VP(), 0.3, 0.25, shape=EVENT, reading=name)
            want, _ = reference(plan, oracle, x)
            assert gap(execute(plan.pruned(), oracle, x), want) < 1e-13
            assert gap(functional(plan.pruned(), oracle, x), want) < 1e-13


def test_a_rule_times_an_array_broadcasts_by_sample() -> None:
    """An affine form with an array, read with a per-sample factor: (B,) and the event's shape never meet directly."""
    oracle = gaussian(VP(), 0.3, 0.25, shape=(3,), reading="noise")
    x = torch.randn(3, 3, dtype=F64, generator=torch.Generator().manual_seed(4))
    table = Array([0.5, 1.0, 1.5])
    norm = PerSample(X, lambda m: 1.0 / (1.0 + m))
    for affine in ((table, norm), (norm, table), (0.0, norm)):
        stage = Stage(((X, 1.0),), 0.9, "x0", affine, 0)
        for c in (0.5, table, norm):
            plan = Plan((Step(0.9, 0.6, (stage,), ((X, 0.5), (("m", 0), c))),), 1)
            want, _ = reference(plan, oracle, x)
            assert gap(execute(plan, oracle, x), want) < 1e-13
            assert gap(functional(plan, oracle, x), want) < 1e-13


def test_langevin_by_hand() -> None:
    """Steps that stay at one time, their size set per sample by the norms of noise and score (predictor-corrector).

    step = 2 (r |z| / |score|)^2, x <- x + step score + sqrt(2 step) z; by hand with plain tensors.
    """
    process, r = VP(), 0.16
    oracle = mixture(process, shape=EVENT)
    x = torch.randn(5, *EVENT, dtype=F64, generator=torch.Generator().manual_seed(6))
    draw = draws(x.shape)

    class Size:
        reads = (("m", 0), ("z", 0))

        def __init__(self, root: bool) -> None:
            self.root = root

        def __call__(self, registers: Any) -> Tensor:
            norms = [registers[name].flatten(1).norm(dim=1) for name in (("z", 0), ("m", 0))]
            size = 2.0 * (r * norms[0] / norms[1]) ** 2
            return (2.0 * size).sqrt() if self.root else size

    out = ((X, 1.0), (("m", 0), Size(False)), (("z", 0), Size(True)))
    plan = Plan((Step(0.3, 0.3, (evaluate(0.3, "score"),), out, draws=1),) * 5, 1).pruned()
    assert plan.nfe == 5 and plan.steps[0].draws == 1
    want = x
    for n in range(5):
        score, z = -oracle.pair(want, 0.3)[1] / process.sigma(0.3), draw(n, 0)
        size = 2.0 * (r * z.flatten(1).norm(dim=1) / score.flatten(1).norm(dim=1)) ** 2
        size = size[:, None, None]
        want = want + size * score + (2.0 * size).sqrt() * z
    for name in (None, "noise", "x0"):
        oracle = mixture(process, shape=EVENT, reading=name)
        assert gap(execute(plan, oracle, x, draw=draw), want) < 1e-12
        assert gap(functional(plan, oracle, x, draw=draw), want) < 1e-12
        alone = execute(plan, oracle, x[2:3], draw=lambda n, k: draw(n, k)[2:3])
        assert gap(alone, want[2:3]) < 1e-12  # samples do not see each other


@pytest.mark.parametrize("reading", ["velocity", None, "noise"])
def test_adams_bashforth_2_by_hand_has_order_2(reading: str | None) -> None:
    """x <- x + h (3/2 v_n - 1/2 v_{n-1}), an Euler start: two slots written in turn; then the slots crossed."""
    process = Flow()
    oracle = mixture(process, reading=reading)
    start, stop = 0.95, 0.05
    x = quantile_starts(oracle, start)
    crossed, errors = [], []
    exact = flow_map(oracle, x, start, stop)
    for n in (64, 128):
        times, h = UniformT().times(process, n, start, stop, False).tolist(), (stop - start) / n
        for wrong in (False, True):
            steps = []
            for i in range(n):
                new, old = ("m", i % 2), ("m", (i + 1) % 2)
                out = ((X, 1.0), (new, h)) if i == 0 else ((X, 1.0), (new, 1.5 * h), (old, -0.5 * h))
                if wrong and i:
                    out = ((X, 1.0), (new, -0.5 * h), (old, 1.5 * h))
                steps.append(Step(times[i], times[i + 1], (evaluate(times[i], "velocity", i % 2),), out))
            got = execute(Plan(tuple(steps), 2).pruned(), oracle, x)
            (crossed if wrong else errors).append(float((got - exact).square().mean().sqrt()))
    assert slopes(errors) == pytest.approx([2.0], abs=0.15)
    assert slopes(crossed) == pytest.approx([1.0], abs=0.2)


def test_affine_forms_and_states_only() -> None:
    """DDIM's step said in other ways: m = p x + q x0 holds the noise; y holds the scaled state."""
    process, st = VP(), torch.tensor([0.7, 0.4], dtype=F64)
    a, sig = process.alpha(st).tolist(), process.sigma(st).tolist()
    for name in (None, *READING_NAMES):
        oracle = mixture(process, reading=name)
        x = quantile_starts(oracle, 0.7)
        want = execute(DDIM().plan(process, st), oracle, x)
        noise = Stage(((X, 1.0),), 0.7, "x0", (1.0 / sig[0], -a[0] / sig[0]), 0)
        out = ((X, a[1] / a[0]), (("m", 0), sig[1] - sig[0] * a[1] / a[0]))
        assert gap(execute(Plan((Step(0.7, 0.4, (noise,), out),), 1), oracle, x), want) < 1e-13
        scaled = Stage(((X, 1.0 / a[0]),))
        lift = Stage(((("y", 0), a[0]),), 0.7, "noise", (0.0, 1.0), 0)
        out = ((("y", 0), a[1]), (("m", 0), sig[1] - sig[0] * a[1] / a[0]))
        assert gap(execute(Plan((Step(0.7, 0.4, (scaled, lift), out),), 1), oracle, x), want) < 1e-13


def test_a_step_may_go_up() -> None:
    """RePaint's jump: DDIM down, forward noise up, DDIM down; the times may repeat and rise."""
    process = VP()
    oracle = gaussian(process, 0.3, 0.25)
    down = DDIM().plan(process, torch.tensor([0.6, 0.4], dtype=F64)).steps[0]
    scale, std = (float(c) for c in process.transition(0.4, 0.6))
    up = Step(0.4, 0.6, (), ((X, scale), (("z", 0), std)), draws=1)
    plan = Plan((down, up, down), 1).pruned()
    assert plan.times == (0.6, 0.4, 0.6, 0.4) and plan.nfe == 2
    x = quantile_starts(oracle, 0.6)
    z = draws(x.shape)
    first = execute(Plan((down,), 1), oracle, x)
    want = execute(Plan((down,), 1), oracle, scale * first + std * z(1, 0))
    assert gap(execute(plan, oracle, x, draw=z), want) < 1e-14


# ------------------------------------------------------------------------------------------------- folding


@pytest.mark.parametrize("name", READING_NAMES)
@pytest.mark.parametrize("process", [VP(), Flow()], ids=lambda p: type(p).__name__)
def test_folding_any_reading_changes_nothing(process: Process, name: str) -> None:
    start = 0.9 * process.T
    for solver in SOLVERS:
        plan = solver.plan(process, UniformLam().times(process, 4, start, 1e-2, True))
        pair, one = mixture(process), mixture(process, reading=name)
        x = quantile_starts(pair, start)
        want = execute(plan, pair, x, draw=draws(x.shape))
        assert gap(execute(plan, one, x, draw=draws(x.shape)), want) < 2e-12, solver
        assert gap(functional(plan, one, x, draw=draws(x.shape)), want) < 2e-12, solver


def test_a_single_evaluation_is_never_formed() -> None:
    """A one-stage step of a network costs one scaling and one addition: its evaluation is folded into the step."""
    oracle = gaussian(VP(), 0.3, 0.25, reading="noise")
    plan = DDIM().plan(VP(), UniformLam().times(VP(), 4, 0.9, 1e-3, True))
    bound = bind(plan, oracle, torch.device("cpu"), F64)
    for step in bound.steps:
        assert step.stages[0].folded and step.stages[0].alias
        assert [register for register, _ in step.out] == [X, "raw"]


# ------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("solver", [DDIM(), Heun(), RK4("rho"), DDIM(eta=0.5), EDMStochastic()], ids=str)
def test_gradients_with_respect_to_the_start(solver: Solver) -> None:
    """On a Gaussian the sample is affine in its start: the gradient is the plan's multiplier."""
    process = VP()
    for name in (None, "v"):
        oracle = gaussian(process, 0.3, 0.25, reading=name)
        plan = solver.plan(process, UniformLam().times(process, 6, 0.9, 1e-3, True))
        x = quantile_starts(oracle, 0.9, 5)
        noise = draws(x.shape)
        apart = execute(plan, oracle, x + 1.0, draw=noise) - execute(plan, oracle, x, draw=noise)
        leaf = x.clone().requires_grad_()
        result = functional(plan, oracle, leaf, draw=noise)
        assert gap(result.detach(), execute(plan, oracle, x, draw=noise)) < 1e-13
        (grad,) = torch.autograd.grad(result.sum(), leaf)
        assert gap(grad, apart) < 1e-12

        def go(u: Tensor, oracle: Any = oracle, bound: Any = bind(plan, oracle, x.device, F64)) -> Tensor:  # noqa: B008
            return run(bound, oracle, u, draw=noise)  # noqa: B023

        with torch.no_grad():
            value, slope = torch.func.jvp(go, (x,), (2.0 * torch.ones_like(x),))
        assert gap(slope, 2.0 * apart) < 1e-12 and gap(value, result.detach()) < 1e-13
        many = torch.stack([x, x + 0.5])
        with torch.no_grad():
            mapped = torch.func.vmap(go)(many)
        assert gap(mapped, torch.stack([execute(plan, oracle, u, draw=noise) for u in many])) < 1e-13


def test_ddim_gradient_is_the_product_of_multipliers() -> None:
    process, v = VP(), 0.25
    times = UniformLam().times(process, 6, 0.9, 1e-3, False)
    a, s = process.alpha(times), process.sigma(times)
    product = ((a[1:] * a[:-1] * v + s[1:] * s[:-1]) / (a[:-1] ** 2 * v + s[:-1] ** 2)).prod()
    oracle = gaussian(process, 0.3, v)
    leaf = quantile_starts(oracle, 0.9).requires_grad_()
    (grad,) = torch.autograd.grad(functional(DDIM().plan(process, times), oracle, leaf).sum(), leaf)
    assert gap(grad, product.expand_as(grad)) < 1e-13


# ------------------------------------------------------------------------------------------------- aliasing


class Reused:
    """Gives back the same buffer at every call, as a compiled network does."""

    def __init__(self, inner: Oracle) -> None:
        self.inner, self.reading, self.process, self.shape = inner, inner.reading, inner.process, inner.shape
        self.lam_range, self.buffers = inner.lam_range, {}

    def __call__(self, x: Tensor, s: Any, cond: Any = None) -> Prediction:
        p = self.inner(x, s)
        parts = p.pair if p.pair is not None else (p.value,)
        out = []
        for i, part in enumerate(parts):
            self.buffers.setdefault(i, torch.empty_like(part)).copy_(part)
            out.append(self.buffers[i])
        if p.pair is not None:
            return Prediction(self.process, x, s, x0=out[0], noise=out[1])
        return Prediction(self.process, x, s, other=(p.reading, out[0]))


@pytest.mark.parametrize("name", [None, "x0", "noise", "velocity"])
def test_a_reused_output_buffer(name: str | None) -> None:
    process = VP()
    for solver in SOLVERS:
        inner = mixture(process, reading=name)
        plan = solver.plan(process, UniformLam().times(process, 5, 0.9, 1e-3, True))
        x = quantile_starts(inner, 0.9)
        want = execute(plan, inner, x, draw=draws(x.shape))
        assert gap(execute(plan, Reused(inner), x, draw=draws(x.shape)), want) == 0.0, solver
    rng = np.random.default_rng(9)
    x = torch.randn(4, *EVENT, dtype=F64, generator=torch.Generator().manual_seed(1))
    for _ in range(20):
        plan = random_plan(rng, ("number",)).pruned()
        inner = gaussian(process, 0.3, 0.25, reading=name, shape=EVENT)
        want = reference(plan, inner, x, draws(x.shape))[0]
        assert gap(execute(plan, Reused(inner), x, draw=draws(x.shape)), want) < 1e-11


class Echo:
    """Says that the state itself is the reading, by handing the very tensor back (or a view of it)."""

    def __init__(self, process: Process, name: str, view: bool) -> None:
        self.process, self.shape, self.lam_range, self.view = process, (1,), (-math.inf, math.inf), view
        self.name, self.reading = name, READINGS[name]

    def __call__(self, x: Tensor, s: Any, cond: Any = None) -> Prediction:
        return Prediction(self.process, x, s, **{self.name: x.view(x.shape) if self.view else x})


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("name", ["x0", "noise", "velocity"])
def test_a_network_that_hands_its_input_back(name: str, view: bool) -> None:
    for solver in SOLVERS:
        plan = solver.plan(VP(), UniformLam().times(VP(), 5, 0.9, 1e-3, True))
        x = torch.linspace(-1, 1, 5, dtype=F64)[:, None]
        echo = Echo(VP(), name, view)
        want = reference(plan, echo, x, draws(x.shape))[0]
        assert gap(execute(plan, echo, x, draw=draws(x.shape)), want) < 1e-12, solver
        assert gap(functional(plan, echo, x, draw=draws(x.shape)), want) < 1e-12, solver


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_the_start_and_the_noise_are_not_modified(solver: Solver) -> None:
    oracle = mixture(VP())
    plan = solver.plan(VP(), UniformLam().times(VP(), 5, 0.9, 1e-3, True))
    x = quantile_starts(oracle, 0.9)
    kept, noise = x.clone(), torch.ones_like(x)
    states: list[Tensor] = []
    got = execute(plan, oracle, x, draw=lambda n, k: noise, states=states)
    assert torch.equal(x, kept) and torch.equal(noise, torch.ones_like(x))
    assert len(states) == 6 and torch.equal(states[0], x) and torch.equal(states[-1], got)
    assert len({s.data_ptr() for s in states}) == 6
    # a start that repeats one row in memory
    rows = x[:1].expand(4, 1)
    together = execute(plan, oracle, rows, draw=lambda n, k: noise[:4])
    assert torch.equal(together, execute(plan, oracle, rows.clone(), draw=lambda n, k: noise[:4]))


def test_what_after_step_returns_is_not_modified() -> None:
    oracle = gaussian(VP(), 0.3, 0.25)
    plan = DDIM().plan(VP(), UniformLam().times(VP(), 4, 0.9, 1e-3, True))
    x = quantile_starts(oracle, 0.9)
    mine = torch.full_like(x, 0.25)
    got = execute(plan, oracle, x, after_step=lambda n, u: mine if n == 1 else None)
    assert torch.equal(mine, torch.full_like(x, 0.25))
    times = torch.tensor(plan.times[2:], dtype=F64)
    assert gap(got, execute(DDIM().plan(VP(), times), oracle, mine)) < 1e-15


def test_float32_state_has_the_plans_accuracy() -> None:
    """Coefficients are float64: a float32 run stays within a few roundings of the float64 one."""
    for process, name in itertools.product((VP(), EDM()), (None, "x0", "velocity")):
        oracle = gaussian(process, 0.3, 0.25, reading=name)
        for solver in (DDIM(), Heun("rho"), RK4(), EDMStochastic(), EulerMaruyama()):
            start = 0.9 * process.T
            plan = solver.plan(process, Karras().times(process, 16, start, process.t_min, True))
            x = quantile_starts(oracle, start)
            noise = draws(x.shape)
            want = execute(plan, oracle, x, draw=noise)
            got = execute(plan, oracle, x.float(), draw=lambda n, k, noise=noise: noise(n, k).float())
            assert got.dtype == torch.float32
            assert gap(got.double(), want) < 1e-5, (process, name, solver)


# ------------------------------------------------------------------------------------------------- errors and ends


def test_noise_is_required_where_it_is_drawn() -> None:
    oracle = gaussian(VP())
    x = torch.ones(2, 1, dtype=F64)
    with pytest.raises(ConfigError, match="give draw"):
        execute(Ancestral().plan(VP(), torch.tensor([0.5, 0.4], dtype=F64)), oracle, x)
    execute(Ancestral().plan(VP(), torch.tensor([0.5, 0.0], dtype=F64)), oracle, x)  # the last step draws nothing


def test_the_last_step_is_x0_by_every_solver() -> None:
    for solver in SOLVERS:
        plan = solver.plan(VP(), torch.tensor([0.5, 0.2, 0.0], dtype=F64))
        last = plan.steps[-1]
        assert last.end == 0.0 and last.stages[-1].reading == "x0" and last.out == ((("m", 0), 1.0),), solver
        # one step is that step alone (churned only where rho >= S_tmin = .05)
        assert solver.plan(VP(), torch.tensor([0.01, 0.0], dtype=F64)).steps == (to_data(0.01),)


@pytest.mark.parametrize(
    "solver",
    [DDIM(), Euler(), Heun(), RK4(), Euler("rho"), Heun("lam"), Heun("rho"), EulerMaruyama(eta=0.0)],
    ids=str,
)
def test_no_coefficient_is_ever_nan(solver: Solver) -> None:
    """Encoding from t = 0 itself either works or is refused by name; it never returns NaN."""
    process = Trig()
    oracle = gaussian(process, 0.3, 0.25)
    x = torch.linspace(-1, 1, 5, dtype=F64)[:, None]
    times = torch.linspace(0.0, 0.9, 60, dtype=F64)
    try:
        plan = solver.plan(process, times)
    except ConfigError as error:
        assert "0" in str(error)  # noqa: PT017
        return
    got = execute(plan, oracle, x)
    assert torch.isfinite(got).all()
    assert gap(got, gaussian_map(oracle, x, 0.0, 0.9)) < 6e-2


def test_plan_refuses_bad_times() -> None:
    for bad in ([0.5], [0.5, 0.5], [0.5, 0.2, 0.3], [1.5, 0.5], [0.5, -0.1], [math.nan, 0.1], [[0.5, 0.1]]):
        with pytest.raises(ConfigError):
            DDIM().plan(VP(), torch.tensor(bad, dtype=F64))
    for bad in ([], 0.5):
        with pytest.raises(ConfigError):
            DDIM().plan(VP(), torch.tensor(bad, dtype=F64))


def test_callback_sees_the_start_of_every_step_and_may_stop() -> None:
    oracle = gaussian(VP(), 0.3, 0.25)
    times = UniformLam().times(VP(), 4, 0.9, 1e-3, True)
    plan = Heun("rho").plan(VP(), times)
    x = quantile_starts(oracle, 0.9)
    states: list[Tensor] = []
    execute(plan, oracle, x, states=states)
    seen: list[Any] = []
    execute(plan, oracle, x, callback=lambda *a: seen.append(a))
    assert [n for n, *_ in seen] == [0, 1, 2, 3]
    assert [t for _, t, *_ in seen] == list(plan.times[:-1])
    for (_, t, u, p), state in zip(seen, states[:-1], strict=True):
        assert torch.equal(u, state)
        assert p.s == t and torch.isfinite(p.pair[0]).all()
    before = len(oracle.calls)
    got = execute(plan, oracle, x, callback=lambda n, *_: n == 2)
    assert torch.equal(got, states[2]) and len(oracle.calls) - before == 5
