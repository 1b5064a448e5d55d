"""DPM-Solver-fast, and lower-order last steps of multistep solvers: which orders, N evaluations, the faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fokker as fk
from fokker import registry
from fokker.errors import ConfigError
from fokker.exact import Gaussian
from fokker.process import VP
from fokker.shards import sample_to
from fokker.solvers import DEIS, DPM, DPMpp, Plan, Solver, Step, UniformLam, UniformT, UniPC, steps_for_nfe
from fokker.tuning import Trial, named_grids

from .oracle import F64, execute, gaussian, mixture, quantile_starts, reference, slopes
from .test_exponential import bent
from .test_exponential_orders import exact, setting
from .test_solver_orders import error

ORDERS = {1: [1], 2: [2], 3: [2, 1], 4: [3, 1], 5: [3, 2], 6: [3, 2, 1], 10: [3, 3, 3, 1], 12: [3, 3, 3, 2, 1]}


def made(plan: Plan) -> list[int]:
    return [len(step.stages) for step in plan.steps]


def grid(solver: Solver, to_zero: bool) -> Tensor:
    steps = solver.fixed_steps(to_zero)
    assert steps is not None
    return UniformLam().times(VP(), steps, 1.0, 1e-3, to_zero)


@pytest.mark.parametrize("n", ORDERS)
def test_the_orders_of_its_steps(n: int) -> None:
    """nfe // 3 + 1 steps by the paper's table; with a step to 0, those of nfe - 1 and that one."""
    solver = DPM(nfe=n)
    assert solver.order == 3 and DPM().order == 2
    assert made(solver.plan(VP(), grid(solver, False))) == ORDERS[n]
    assert len(ORDERS[n]) == n // 3 + 1
    assert made(DPM(nfe=n + 1).plan(VP(), grid(DPM(nfe=n + 1), True))) == [*ORDERS[n], 1]
    assert made(DPM(nfe=1).plan(VP(), grid(DPM(nfe=1), True))) == [1]


def test_each_step_is_the_single_step_of_its_order() -> None:
    vp = VP()
    for solver in (DPM(nfe=9), DPM(nfe=9, published=True, r1=0.4, r2=0.9)):
        times = grid(solver, False)
        for i, (order, step) in enumerate(zip([3, 3, 2, 1], solver.plan(vp, times).steps, strict=True)):
            own = {"r1": solver.r1, "r2": solver.r2} if order == 3 else {}
            alone = DPM(order, published=solver.published, **own).plan(vp, times[i : i + 2]).steps[0]
            assert step == alone
    assert made(DPM(2, nfe=7).plan(vp, grid(DPM(2, nfe=7), False))) == [2, 2, 2, 1]
    assert made(DPM(2, nfe=6).plan(vp, grid(DPM(2, nfe=6), False))) == [2, 2, 2]
    assert made(DPM(1, nfe=3).plan(vp, grid(DPM(1, nfe=3), False))) == [1, 1, 1]


@pytest.mark.parametrize("final", ["x0", "t_min"])
def test_sample_needs_no_steps_and_makes_n_evaluations(final: Any) -> None:
    oracle = mixture(VP())
    x = quantile_starts(oracle, 1.0)
    for n in (3, 10, 20):
        solver = DPM(nfe=n)
        oracle.calls.clear()
        got = fk.sample(oracle, x=x, solver=solver, grid="lam", final=final)
        plan = solver.plan(VP(), grid(solver, final == "x0"))
        assert len(oracle.calls) == plan.nfe == n
        assert float((got - reference(plan, oracle, x)[0]).abs().max()) < 1e-12
        assert plan.slots == solver.slots == 3
        assert torch.equal(
            got, fk.sample(oracle, x=x, solver={"kind": "dpm", "nfe": n}, grid="lam", final=final, nfe=n)
        )
    oracle.calls.clear()
    fk.encode(oracle, torch.zeros(2, 1, dtype=F64), solver=DPM(nfe=10))
    assert len(oracle.calls) == 10


def test_tuning_and_shards_take_its_number_of_steps(tmp_path: Path) -> None:
    law = Gaussian([0.3], [0.25]).denoiser(VP())
    grids = named_grids(Trial(law, DPM(nfe=8), indices=range(4), fine=8))
    assert {len(times) for times in grids.values()} == {5}  # orders 3, 3, 1 of 7 evaluations, and the step to 0
    sample_to(tmp_path / "set", law, n=4, batch_size=4, solver=DPM(nfe=8))
    assert json.loads((tmp_path / "set" / "manifest.json").read_text())["request"]["steps"] == 4


def test_refusals() -> None:
    oracle = gaussian(VP())
    with pytest.raises(ConfigError, match=r"steps: given 20, but DPM\(.* makes 8 \(with the one to 0\)"):
        fk.sample(oracle, n=1, solver=DPM(nfe=20), steps=20)
    with pytest.raises(ConfigError, match=r"steps: given 3, .* makes 7 \(to a last time above 0\)"):
        fk.sample(oracle, n=1, solver=DPM(nfe=20), grid=[1.0, 0.5, 0.2, 0.1])
    with pytest.raises(ConfigError, match=r"nfe: given 30, but .* makes 20 evaluations"):
        fk.sample(oracle, n=1, solver=DPM(nfe=20), nfe=30)
    assert steps_for_nfe(DPM(nfe=20), UniformLam(), VP(), 20, 1.0, 1e-3, False) == 7
    with pytest.raises(ConfigError, match=r"DPM.nfe: given 8, but variant='M'"):
        DPM(nfe=8, variant="M")
    with pytest.raises(ConfigError, match=r"DPM\.nfe: given 0"):
        DPM(nfe=0)
    with pytest.raises(ConfigError, match=r"DPMpp.lower_order_final: given True, but only variant='M'"):
        DPMpp(2, "S", lower_order_final=True)
    assert registry.build("solver", registry.spec(DPM(nfe=20))) == DPM(3, nfe=20)


def test_the_fault_of_the_last_step() -> None:
    """A last step of order 1 leaves second order; of order 2, third. Seen where the prediction moves to the end."""
    oracle, _, start, stop = setting("vp", "part")

    def gap(solver: Solver, steps: int | None = None) -> float:
        count = solver.fixed_steps(False) or steps
        assert count is not None
        return error(oracle, solver, UniformLam(), count, start, stop, exact("vp", "part"))

    for residue, order in ((0, 2.0), (1, 2.0), (2, 3.0)):
        errors = [gap(DPM(nfe=n + residue)) for n in (192, 384)]
        assert slopes(errors)[-1] == pytest.approx(order, abs=0.15), residue
    third = gap(DPM(3), 128)
    assert gap(DPM(nfe=384)) / third == pytest.approx(283, rel=0.02)
    assert gap(DPM(nfe=386)) / third == pytest.approx(5.6, rel=0.02)


def test_towards_the_data_it_is_ahead_of_order_3_alone() -> None:
    """The numbers of the docstring, at equal evaluations."""
    oracle, _, start, stop = setting("vp", "mixture")
    for n in (12, 21, 30):
        one, two = (
            error(oracle, solver, UniformLam(), steps, start, stop, exact("vp", "mixture"))
            for solver, steps in ((DPM(nfe=n), n // 3 + 1), (DPM(3), n // 3))
        )
        assert 0.3 < one / two < 0.95, (n, one / two)


def without_slots(step: Step) -> list[float]:
    return [c for _, c in step.out]


LOW: list[tuple[Solver, Any]] = [
    (DPM(3, "M", lower_order_final=True), lambda k: DPM(k, "M")),
    (DPMpp(3, lower_order_final=True), lambda k: DPMpp(k)),
    (DPMpp(3, lower_order_final=True, published=True), lambda k: DPMpp(k, published=True)),
    (DEIS(2, "t", lower_order_final=True), lambda k: DEIS(k - 1, "t")),
    (UniPC(3, False, lower_order_final=True), lambda k: UniPC(k, False)),
]


@pytest.mark.parametrize(("solver", "of_order"), LOW, ids=[str(solver) for solver, _ in LOW])
def test_step_i_of_n_has_an_order_of_at_most_n_minus_i(solver: Solver, of_order: Any) -> None:
    """On N = 7 steps: 1, 2, 3, 3, 3, 2, 1 above 0; to 0, the last of the 7 is the step there."""
    times = bent(VP())
    zero = torch.cat([times[:-1], torch.zeros(1, dtype=F64)])
    plans = {k: of_order(k).plan(VP(), times).steps for k in (1, 2, 3)}
    for grid_, orders in ((times, [1, 2, 3, 3, 3, 2, 1]), (zero, [1, 2, 3, 3, 3, 2])):
        steps = solver.plan(VP(), grid_).steps
        for i, k in enumerate(orders):
            assert without_slots(steps[i]) == without_slots(plans[k][i]), i
    assert len(solver.plan(VP(), zero).steps) == 7


def test_unipc_lowers_the_corrector_too() -> None:
    """By its definition: predictors and correctors of step i through min(3, i + 1, N - i) past predictions."""
    from .test_unipc import weights

    vp, oracle, times = VP(), mixture(VP()), bent(VP(), 5)
    x = quantile_starts(oracle, float(times[0]))
    got = execute(UniPC(3, lower_order_final=True).plan(vp, times), oracle, x)
    lam, m = vp.lam(times).tolist(), [oracle.pair(x, float(times[0]))[0]]
    for i, k in enumerate([1, 2, 3, 2, 1]):
        base, gain = vp.sigma(times[i + 1]) / vp.sigma(times[i]) * x, vp.alpha(times[i + 1])
        past = list(range(i, i - k, -1))
        p = weights([lam[j] for j in past], lam[i], lam[i + 1], "data")
        x = base + gain * sum(w * m[j] for w, j in zip(p, past, strict=True))
        if i < 4:
            m.append(oracle.pair(x, float(times[i + 1]))[0])
            past.insert(0, i + 1)
            c = weights([lam[j] for j in past], lam[i], lam[i + 1], "data")
            x = base + gain * sum(w * m[j] for w, j in zip(c, past, strict=True))
    assert float((got - x).abs().max()) < 1e-11


def test_lower_last_steps_limit_the_order_to_2() -> None:
    oracle, _, start, stop = setting("vp", "part")
    for solver in (DPMpp(3, start="single", lower_order_final=True), DEIS(3, "lam", "single", True)):
        errors = [error(oracle, solver, UniformLam(), n, start, stop, exact("vp", "part")) for n in (128, 256)]
        assert slopes(errors)[-1] == pytest.approx(2.0, abs=0.15)


def test_when_lower_last_steps_pay() -> None:
    """With uniform t and no step to 0, whose last step is long in lam: many times; with one to 0 nothing at order 2."""
    oracle, _, start, stop = setting("vp", "mixture")

    def gap(solver: Solver, times: UniformT | UniformLam, n: int) -> float:
        return error(oracle, solver, times, n, start, stop, exact("vp", "mixture"))

    for order, factor in ((2, 0.25), (3, 0.1)):
        assert gap(DPMpp(order, lower_order_final=True), UniformT(), 8) < factor * gap(DPMpp(order), UniformT(), 8)
    assert gap(DPMpp(3, lower_order_final=True), UniformLam(), 10) > 1.5 * gap(DPMpp(3), UniformLam(), 10)
    zero = UniformLam().times(VP(), 8, 1.0, 1e-3, True)
    assert DPMpp(2, lower_order_final=True).plan(VP(), zero) == DPMpp(2).plan(VP(), zero)
