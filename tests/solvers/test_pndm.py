"""PNDM: Adams-Bashforth's weights in DDIM's step, of second order however many."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fokker.errors import ConfigError
from fokker.process import EDM, VP, Process, Trig
from fokker.solvers import DDIM, DEIS, PNDM, UniformT

from .oracle import F64, Oracle, execute, flow_map, mixture, quantile_starts, slopes
from .test_exponential import bent
from .test_exponential_orders import observed

ADAMS = [[1.0], [1.5, -0.5], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]


def test_weights_are_adams_bashforths_whatever_the_grid() -> None:
    for process in (VP(), EDM()):
        grid = bent(process)
        rho = (-process.lam(grid)).exp()
        for history in (1, 2, 3, 4):
            for i, step in enumerate(PNDM(history).plan(process, grid).steps):
                newest = [("m", (i - j) % history) for j in range(min(history, i + 1))]
                assert [register for register, _ in step.out] == [("x", 0), *newest]
                whole = float(process.alpha(grid[i + 1]) * (rho[i + 1] - rho[i]))
                want = [whole * c for c in ADAMS[len(newest) - 1]]
                assert [c for _, c in step.out[1:]] == pytest.approx(want, rel=1e-12)
                assert step.out[0][1] == pytest.approx(float(process.alpha(grid[i + 1]) / process.alpha(grid[i])))


def test_what_it_equals() -> None:
    """DDIM with one prediction; DEIS in t where rho = t and the steps are equal."""
    vp, edm = VP(), EDM()
    oracle, grid = mixture(vp), bent(vp)
    x = quantile_starts(oracle, float(grid[0]))
    want = execute(DDIM().plan(vp, grid), oracle, x)
    assert float((execute(PNDM(1).plan(vp, grid), oracle, x) - want).abs().max()) < 1e-13
    even = UniformT().times(edm, 9, 80.0, 1.0, False)
    for one, two in zip(PNDM(4).plan(edm, even).steps, DEIS(3, "t").plan(edm, even).steps, strict=True):
        assert [c for _, c in one.out] == pytest.approx([c for _, c in two.out], rel=1e-9)


def prk(oracle: Oracle, x: Tensor, s: float, t: float) -> tuple[Tensor, Tensor]:
    """One pseudo Runge-Kutta step by the paper's transfer, and its first noise."""
    process = oracle.process

    def to(noise: Tensor, time: float) -> Tensor:
        scale = process.alpha(time) / process.alpha(s)
        return scale * x + (process.sigma(time) - scale * process.sigma(s)) * noise

    middle = (s + t) / 2
    e1 = oracle.pair(x, s)[1]
    e2 = oracle.pair(to(e1, middle), middle)[1]
    e3 = oracle.pair(to(e2, middle), middle)[1]
    e4 = oracle.pair(to(e3, t), t)[1]
    return to((e1 + 2 * e2 + 2 * e3 + e4) / 6, t), e1


@pytest.mark.parametrize("process", [VP(), EDM(), Trig()], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("history", [1, 2, 3, 4])
def test_the_papers_start(process: Process, history: int) -> None:
    """PRK step by step, then Adams-Bashforth on the noises of its steps' starts; it costs 3 evaluations a step more."""
    oracle, grid = mixture(process), bent(process)
    x = quantile_starts(oracle, float(grid[0]))
    solver = PNDM(history, "rk")
    plan = solver.plan(process, grid)
    oracle.calls.clear()
    got = execute(plan, oracle, x)
    assert len(oracle.calls) == plan.nfe == 7 + 3 * (history - 1)
    assert solver.slots == plan.slots == 1 + max(stage.keep for step in plan.steps for stage in step.stages)
    rho, noises = (-process.lam(grid)).exp(), []
    times = grid.tolist()
    for i in range(7):
        if i < history - 1:
            x, first = prk(oracle, x, times[i], times[i + 1])
            noises.insert(0, first)
            continue
        noises.insert(0, oracle.pair(x, times[i])[1])
        mean = sum(c * m for c, m in zip(ADAMS[history - 1], noises, strict=False))
        x = process.alpha(times[i + 1]) * (x / process.alpha(times[i]) + (rho[i + 1] - rho[i]) * mean)
    assert float(((got - x).abs() / (1.0 + x.abs())).max()) < 1e-12


@pytest.mark.parametrize(("line", "history"), [("vp", 4), ("flow-inner", 4), ("edm", 2)])
def test_the_papers_start_is_of_order_2_and_saves_nothing(line: str, history: int) -> None:
    slope, last = observed(line, PNDM(history, "rk"), 160)
    assert slope == pytest.approx(2.0, abs=0.15)
    assert last == pytest.approx(observed(line, PNDM(history), 160)[1], rel=0.02)


@pytest.mark.parametrize("process", [VP(), EDM()], ids=lambda c: type(c).__name__)
def test_a_step_of_prk_is_of_second_order(process: Process) -> None:
    """Local errors of the third power: the middle of the time is not the middle of rho, except on EDM."""
    oracle, errors = mixture(process), []
    middle = process.time(0.3)
    for h in (0.04, 0.02):
        x = quantile_starts(oracle, float(middle) * (1 + h))
        ends = torch.tensor([float(middle) * (1 + h), float(middle) * (1 - h)], dtype=F64)
        got = execute(PNDM(2, "rk").plan(process, ends), oracle, x)
        errors.append(float((got - flow_map(oracle, x, *ends.tolist())).abs().max()))
    assert slopes(errors)[-1] == pytest.approx(3.0 if process == VP() else 5.0, abs=0.2), errors


@pytest.mark.parametrize(("line", "history"), [("vp", 4), ("edm", 2), ("flow-inner", 4)])
def test_order_is_2(line: str, history: int) -> None:
    slope, last = observed(line, PNDM(history), 160)
    assert slope == pytest.approx(2.0, abs=0.15), last
    assert PNDM(history).order == 2 and PNDM(1).order == 1 and PNDM(3).slots == 3


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="PNDM.history"):
        PNDM(history=5)
    with pytest.raises(ConfigError, match="PNDM.start"):
        PNDM(start="single")
