"""Restart sampling: its grid and cost as published, its contraction in closed form, its pieces put together by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fokker.errors import ConfigError
from fokker.process import EDM, VP, Flow, Process, Trig
from fokker.sampling import sample
from fokker.solvers import DDIM, FlowTime, Heun, Karras, Plan, Restart, Solver, UniformLam, UniformT, steps_for_nfe

from .oracle import F64, execute, gaussian, law, mixture, quantile_starts


def test_the_cifar_setting_costs_43_evaluations() -> None:
    """18 Karras steps (35 evaluations) and 2 x 2 Heun steps from .3 to the grid's time next to .06 (Xu et al. 2023)."""
    times = Karras().times(EDM(), 18, 80.0, 0.002, True)
    plan = Restart().plan(EDM(), times)
    assert plan.nfe == 43
    low = float(times[14])
    assert low == pytest.approx(0.0599, abs=1e-3)
    middle = ((0.3 ** (1 / 7) + low ** (1 / 7)) / 2) ** 7
    want = [*times[:15].tolist(), 0.3, middle, low, 0.3, middle, low, *times[15:].tolist()]
    assert list(plan.times) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("process", [EDM(), VP(), Flow(), Trig()], ids=lambda p: type(p).__name__)
def test_each_turn_contracts_the_error_of_the_law(process: Process) -> None:
    """By (v + low^2) / (v + high^2) for the variance and its root for the mean: two laws come together that fast."""
    v0, low, high = 0.04, 0.2, 0.8
    oracle = gaussian(process, 0.5, v0)
    first, middle, last = process.time(-torch.tensor([1.5, low, 0.1], dtype=F64).log()).tolist()
    down = Karras().times(process, 60, first, middle, False)
    times = torch.cat([down, Karras().times(process, 60, middle, last, False)[1:]])
    (m,), (v,) = oracle.moments(first)

    def apart(solver: Solver) -> tuple[float, float]:
        one, two = (law(solver.plan(process, times), oracle, m * c, v * c) for c in (1.0, 1.5))
        return two[0] - one[0], two[1] - one[1]

    none, shrink = apart(Heun("rho")), (v0 + low**2) / (v0 + high**2)
    for repeats in (1, 3):
        got = apart(Restart(Heun("rho"), ((low, high, repeats, 60),)))
        assert got[0] / none[0] == pytest.approx(shrink ** (repeats / 2), rel=5e-3)
        assert got[1] / none[1] == pytest.approx(shrink**repeats, rel=5e-3)


def test_the_pieces_by_hand() -> None:
    """Down to 1, up to 3 and down, on to .1, twice up to .5 and down, on to 0; intervals in any order."""
    process, oracle = VP(), mixture(VP())
    times = UniformLam().times(process, 12, 1.0, 1e-3, True)
    noises = torch.randn(3, 5, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    used: list[int] = []

    def draw(step: int, k: int) -> Tensor:
        used.append(step)
        return noises[len(used) - 1]

    intervals = ((0.1, 0.5, 2, 4), (1.0, 3.0, 1, 3))
    x = quantile_starts(oracle, 1.0, 5)
    got = execute(Restart(DDIM(), intervals).plan(process, times), oracle, x, draw=draw)
    rho = (process.sigma(times) / process.alpha(times)).log()
    one, two = (int((rho[:-1] - math.log(low)).abs().argmin()) for low in (1.0, 0.1))

    def solve(x: Tensor, visited: Tensor) -> Tensor:
        return execute(DDIM().plan(process, visited), oracle, x)

    x = solve(x, times[: one + 1])
    for node, z, high, steps, after in ((one, 0, 3.0, 3, two), (two, 1, 0.5, 4, two), (two, 2, 0.5, 4, 12)):
        low, top = float(times[node]), float(process.time(-math.log(high)))
        scale = process.alpha(top) / process.alpha(low)
        std = (process.sigma(top) ** 2 - scale**2 * process.sigma(low) ** 2).sqrt()
        x = solve(scale * x + std * noises[z], Karras().times(process, steps, top, low, False))
        if after != node:
            x = solve(x, times[node : after + 1])
    assert len(used) == 3
    assert float((got - x).abs().max()) < 1e-12


def test_restart_at_the_last_time_and_no_interval() -> None:
    process, times = EDM(), torch.tensor([5.0, 1.0, 0.2], dtype=F64)
    assert Restart(DDIM(), ((0.2, 1.0, 1, 2),)).plan(process, times).times[-4:-2] == (0.2, 1.0)
    assert Restart(DDIM(), ()).plan(process, times) == DDIM().plan(process, times)
    assert Restart().order == 2 and Restart("ddim").order == 1 and Restart().stochastic
    low = Restart(DDIM(), ((0.2, 1e9, 1, 2),)).plan(VP(), UniformLam().times(VP(), 9, 1.0, 1e-3, True))
    assert max(low.times) == 1.0  # no higher than the process goes


def test_low_joins_a_grid_that_has_no_time_near_it() -> None:
    """From .06 to .3 half of the way is .134: a node above stands for another level, one at .13 or .03 for low."""
    restart = Restart(DDIM(), ((0.06, 0.3, 1, 1),))
    for given, want in (
        ([80.0, 0.31, 0.002], [80.0, 0.31, 0.06, 0.3, 0.06, 0.002]),
        ([80.0, 0.14, 0.0], [80.0, 0.14, 0.06, 0.3, 0.06, 0.0]),
        ([80.0, 0.13, 0.0], [80.0, 0.13, 0.3, 0.13, 0.0]),
        ([80.0, 0.03, 0.0], [80.0, 0.03, 0.3, 0.03, 0.0]),
        ([80.0, 0.0], [80.0, 0.06, 0.3, 0.06, 0.0]),
    ):
        assert restart.plan(EDM(), torch.tensor(given, dtype=F64)).times == pytest.approx(want, rel=1e-12)
    twice = Restart(DDIM(), ((0.06, 0.3, 1, 1), (0.06, 0.2, 1, 1))).plan(EDM(), torch.tensor([80.0, 0.0], dtype=F64))
    assert twice.times == pytest.approx([80.0, 0.06, 0.2, 0.06, 0.3, 0.06, 0.0], rel=1e-12)


@pytest.mark.parametrize("process", [EDM(), VP(), Flow(), Trig()], ids=lambda p: type(p).__name__)
def test_any_number_of_evaluations_it_has(process: Process) -> None:
    """As many steps as nfe allows; on every grid one step is enough to restart from."""
    for grid in (FlowTime(), UniformLam(), UniformT()):
        start = process.t_max if process.alpha(process.T) == 0.0 else process.T
        args = (start, process.t_min, True)
        costs = [Restart().plan(process, grid.times(process, steps, *args)).nfe for steps in range(1, 20)]
        assert costs[0] <= 13
        for nfe in range(costs[0], 40, 3):
            want = max(steps for steps, cost in enumerate(costs, 1) if cost <= nfe)
            assert steps_for_nfe(Restart(), grid, process, nfe, *args) == want
    assert torch.isfinite(sample(mixture(process), n=2, solver=Restart(), nfe=12)).all()


class Fussy(DDIM):
    """Refuses fewer than 7 steps."""

    def plan(self, process: Process, times: Tensor) -> Plan:
        if len(times) <= 7:
            raise ConfigError("too few")
        return super().plan(process, times)


def test_the_search_for_steps_passes_by_what_is_refused() -> None:
    for nfe in range(7, 30):
        assert steps_for_nfe(Fussy(), UniformT(), VP(), nfe, 1.0, 1e-3, True) == nfe
    with pytest.raises(ConfigError, match="too few"):
        steps_for_nfe(Fussy(), UniformT(), VP(), 6, 1.0, 1e-3, True)


def test_what_is_refused() -> None:
    for bad in ((0.3, 0.06, 2, 2), (0.0, 0.3, 2, 2), (0.06, 0.3, 0, 2), (0.06, 0.3, 2, 0)):
        with pytest.raises(ConfigError, match="intervals"):
            Restart(intervals=(bad,))
    for given in ([80.0, 1.0, 0.1], [0.05, 0.01, 0.0]):
        with pytest.raises(ConfigError, match="the grid spans .* give one within it"):
            Restart().plan(EDM(), torch.tensor(given, dtype=F64))
    with pytest.raises(ConfigError, match="the grid spans 0.002 to"):
        Restart(intervals=((0.001, 0.3, 1, 1),)).plan(EDM(), torch.tensor([80.0, 1.0, 0.0], dtype=F64))
    with pytest.raises(ConfigError, match="towards the data only"):
        Restart().plan(EDM(), torch.tensor([0.01, 1.0], dtype=F64))
    with pytest.raises(ConfigError, match="start at"):
        Restart().plan(Flow(), UniformT().times(Flow(), 20, 1.0, 1e-3, False))
