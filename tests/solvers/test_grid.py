"""Grids: their ends, their monotony, and that they are uniform in what they say."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fokker.errors import ConfigError
from fokker.process import EDM, OU, VE, VP, Cosine, DiscreteVP, Flow, Process, SubVP, Trig
from fokker.solvers import (
    DDIM,
    RK4,
    Ancestral,
    EDMStochastic,
    Euler,
    EulerMaruyama,
    Grid,
    Heun,
    Karras,
    Plan,
    Quadratic,
    Solver,
    Times,
    UniformLam,
    UniformT,
    as_grid,
    steps_for_nfe,
)
from fokker.solvers.grid import check_times

F64 = torch.float64
PROCESSES = [
    VP(),
    SubVP(),
    VE(),
    EDM(),
    Flow(),
    Trig(),
    Cosine(),
    OU(),
    DiscreteVP(),
    DiscreteVP(steps=50, zero_terminal_snr=True),
]
CLAIMS: list[tuple[Grid, Callable[[Process, Tensor], Tensor]]] = [
    (UniformT(), lambda p, t: t),
    (UniformLam(), lambda p, t: p.lam(t)),
    (Karras(), lambda p, t: (p.sigma(t) / p.alpha(t)) ** (1 / 7)),
    (Karras(rho=3.0), lambda p, t: (p.sigma(t) / p.alpha(t)) ** (1 / 3)),
    (Quadratic(), lambda p, t: t.sqrt()),
]
IDS = ["t", "lam", "karras7", "karras3", "sqrt"]


def name(process: Process) -> str:
    return type(process).__name__ + ("0" if getattr(process, "zero_terminal_snr", False) else "")


@pytest.mark.parametrize("process", PROCESSES, ids=name)
@pytest.mark.parametrize(("grid", "coordinate"), CLAIMS, ids=IDS)
def test_uniform_in_what_it_claims(
    process: Process, grid: Grid, coordinate: Callable[[Process, Tensor], Tensor]
) -> None:
    start, stop = process.t_max, max(process.t_min, 1e-3 * process.T)
    for steps in (1, 2, 7, 40):
        times = grid.times(process, steps, start, stop, False)
        assert times.dtype == F64 and times.shape == (steps + 1,)
        assert times[0] == start and times[-1] == stop
        assert (times[1:] < times[:-1]).all()
        u = coordinate(process, times)
        line = torch.linspace(0, 1, steps + 1, dtype=F64) * (u[-1] - u[0]) + u[0]
        # a time near T determines its lam only to the last bit of 1 - t: the condition of the map, not of the grid
        loose = 3e-11 if float(process.alpha(process.T)) == 0.0 else 1e-12
        assert float(((u - line).abs() / u.abs().max()).max()) < loose


@pytest.mark.parametrize("process", PROCESSES, ids=name)
@pytest.mark.parametrize(("grid", "coordinate"), CLAIMS, ids=IDS)
def test_to_zero(process: Process, grid: Grid, coordinate: Callable[[Process, Tensor], Tensor]) -> None:
    """N steps in all: N - 1 down to `stop`, then 0; uniform t goes straight to 0 while it stays above `stop`."""
    start, stop = process.t_max, process.t_min
    assert grid.times(process, 1, start, stop, True).tolist() == [start, 0.0]
    for steps in (2, 9):
        times = grid.times(process, steps, start, stop, True)
        assert times.shape == (steps + 1,) and times[0] == start and times[-1] == 0.0
        assert (times[1:] < times[:-1]).all()
        if isinstance(grid, UniformT):
            assert float((times - start * (1 - torch.arange(steps + 1, dtype=F64) / steps)).abs().max()) < 1e-12 * start
        else:
            assert times[-2] == stop
            assert torch.equal(times[:-1], grid.times(process, steps - 1, start, stop, False))


def test_uniform_t_does_not_ask_below_stop() -> None:
    """1 / 40 < stop: then the last evaluation is at `stop` itself, as by the other grids."""
    times = UniformT().times(Flow(), 40, 1.0, 0.05, True)
    assert times[-2] == 0.05 and times[-1] == 0.0 and len(times) == 41
    assert float((times[:-1] - torch.linspace(1, 0.05, 40, dtype=F64)).abs().max()) < 1e-14
    assert UniformT().times(Flow(), 20, 1.0, 0.05, True)[-2] == pytest.approx(0.05, abs=1e-15)
    assert UniformT().times(Flow(), 19, 1.0, 0.05, True)[-2] == pytest.approx(1 / 19, abs=1e-15)


@pytest.mark.parametrize("process", [Flow(), Trig(), Cosine(), DiscreteVP(steps=50, zero_terminal_snr=True)], ids=name)
@pytest.mark.parametrize("grid", [g for g, _ in CLAIMS], ids=IDS)
def test_from_alpha_0(process: Process, grid: Grid) -> None:
    """lam(T) = -inf: the grid of t_max with its first time moved to T."""
    times = grid.times(process, 10, process.T, process.t_min, False)
    assert times[0] == process.T and times[-1] == process.t_min
    assert torch.isfinite(times).all() and (times[1:] < times[:-1]).all()
    if isinstance(grid, (UniformLam, Karras)):
        assert torch.equal(times[1:], grid.times(process, 10, process.t_max, process.t_min, False)[1:])


def test_ddpm_visits_exactly_its_integers() -> None:
    process = DiscreteVP()
    times = UniformT().times(process, 1000, 1.0, process.t_min, True)
    assert float((times * 1000 - torch.arange(1000, -1, -1, dtype=F64)).abs().max()) < 1e-10
    # and the chain's own alphas are met there
    abar = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    assert float((process.alpha(times[:-1]).flip(0) ** 2 / abar - 1).abs().max()) < 1e-12
    fewer = UniformT().times(process, 50, 1.0, process.t_min, True) * 1000
    assert float((fewer - 20 * torch.arange(50, -1, -1, dtype=F64)).abs().max()) < 1e-10


def test_edm_numbers() -> None:
    """Karras et al. 2022, Eq. 5: sigma_i = (80^{1/7} + i / (N - 1) (.002^{1/7} - 80^{1/7}))^7, sigma_N = 0."""
    i = torch.arange(18, dtype=F64)
    want = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    got = Karras().times(EDM(), 18, 80.0, 0.002, True)
    assert got[-1] == 0.0
    assert float((got[:-1] / want - 1).abs().max()) < 1e-13


def test_as_grid() -> None:
    assert as_grid("t") == UniformT() and as_grid("lam") == UniformLam() and as_grid("quadratic") == Quadratic()
    assert as_grid("karras") == Karras(rho=7.0) and as_grid({"kind": "karras", "rho": 5.0}) == Karras(rho=5.0)
    for given in (
        [0.9, 0.5, 0.0],
        (0.9, 0.5, 0.0),
        np.array([0.9, 0.5, 0.0]),
        torch.tensor([0.9, 0.5, 0.0], dtype=F64),
    ):
        grid = as_grid(given)
        assert isinstance(grid, Times)
        times = grid.times(VP(), 99, 1.0, 0.5, True)
        assert times.tolist() == [0.9, 0.5, 0.0]
        times[0] = 7.0  # the grid's own numbers are not handed out
        assert grid.times(VP(), 1, 1.0, 0.1, False)[0] == 0.9
    for bad in ("unifrom", {"kind": "karras", "ro": 5.0}):
        with pytest.raises(ConfigError):
            as_grid(bad)
    with pytest.raises(ConfigError):
        Karras(rho=0.0)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ([0.9, 0.9, 0.1], "entries 0 and 1 are 0.9 and 0.9"),
        ([0.9, 0.5, 0.6], "entries 1 and 2 are 0.5 and 0.6"),
        ([1.1, 0.5], r"\[0, 1\]"),
        ([0.9, -0.1], r"\[0, 1\]"),
        ([0.9], "N \\+ 1"),
        ([], "N \\+ 1"),
        ([[0.9, 0.1]], "N \\+ 1"),
        (0.9, "N \\+ 1"),
        ([math.nan, 0.1], "finite"),
        ([math.inf, 0.1], "finite"),
    ],
)
def test_bad_times_are_refused(bad: list[float], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        check_times(torch.tensor(bad, dtype=F64), VP())


def test_the_direction_of_times_is_told() -> None:
    assert check_times(torch.tensor([0.1, 0.5], dtype=F64), VP()) is True
    assert check_times(torch.tensor([0.5, 0.1], dtype=F64), VP()) is False
    assert check_times(torch.tensor([1.0, 0.5, 0.0], dtype=F64), VP()) is False
    with pytest.raises(ConfigError, match="increase: entries 1 and 2"):
        check_times(torch.tensor([0.1, 0.5, 0.5, 0.7], dtype=F64), VP())


@pytest.mark.parametrize(
    ("solver", "each"),
    [
        (DDIM(), 1),
        (Euler(), 1),
        (Ancestral(), 1),
        (EulerMaruyama(), 1),
        (Heun(), 2),
        (EDMStochastic(), 2),
        (RK4("rho"), 4),
    ],
    ids=str,
)
@pytest.mark.parametrize("to_zero", [True, False])
def test_steps_for_nfe(solver: Solver, each: int, to_zero: bool) -> None:
    """The most steps that cost no more: each (N - 1) + 1 or each N evaluations."""
    for nfe in (1, 2, 3, 4, 5, 8, 9, 13):
        want = (nfe - 1) // each + 1 if to_zero else nfe // each
        if want == 0:
            with pytest.raises(ConfigError, match=f"given {nfe}"):
                steps_for_nfe(solver, UniformLam(), VP(), nfe, 0.9, 1e-3, to_zero)
            continue
        got = steps_for_nfe(solver, UniformLam(), VP(), nfe, 0.9, 1e-3, to_zero)
        assert got == want
        assert solver.plan(VP(), UniformLam().times(VP(), got, 0.9, 1e-3, to_zero)).nfe <= nfe


def test_steps_for_nfe_is_found_without_trying_every_number() -> None:
    """1000 evaluations of a four-stage method: a handful of plans are compiled, not 750."""
    compiled: list[int] = []

    class Counting(RK4):
        def plan(self, process: Process, times: Tensor) -> Plan:
            compiled.append(len(times) - 1)
            assert len(compiled) <= 20
            return super().plan(process, times)

    assert steps_for_nfe(Counting(), UniformLam(), VP(), 400, 0.9, 1e-3, True) == 100
