"""Observed orders against the exact flow map, and the published numbers of Euler and Heun on a Gaussian."""

from __future__ import annotations

import math

import pytest
import torch

from fokker.process import EDM, VP, Flow, Process, Trig
from fokker.solvers import DDIM, RK4, Euler, Grid, Heun, Karras, Solver, UniformLam, UniformT

from .oracle import execute, flow_map, gaussian, gaussian_map, mixture, quantile_starts, slopes

# process, grid, first time, last time: where every space can start
LINES = {
    "vp": (VP(), UniformLam(), 1.0, 1e-3),
    "edm": (EDM(), Karras(), 80.0, 0.002),
    "flow": (Flow(), UniformT(), 1.0, 1e-3),
    "trig": (Trig(), UniformT(), 1.0, 1e-3),
    # rho and lam are infinite at alpha = 0: these two start at .98 (uniform lam), inside the asymptotic regime
    "flow-inner": (Flow(), UniformLam(), 0.98, 1e-3),
    "trig-inner": (Trig(), UniformLam(), 0.98, 1e-3),
}
ROWS: list[tuple[str, Solver, int]] = [  # line, solver, N of the slope from N to 2 N
    *[(name, DDIM(), 64) for name in ("vp", "edm", "flow", "trig")],
    *[(name, Euler(), 96) for name in ("vp", "edm", "flow", "trig")],
    *[(name, Heun(), 64) for name in ("edm", "flow", "trig")],
    ("vp", Heun(), 112),
    *[(name, RK4(), 64) for name in ("vp", "edm")],
    *[(name, RK4(), 32) for name in ("flow", "trig")],
    *[(name, Euler(space="lam"), 64) for name in ("vp", "flow-inner", "trig-inner")],
    ("edm", Euler(space="lam"), 96),
    *[(name, Heun(space="lam"), 80) for name in ("vp", "edm", "flow-inner", "trig-inner")],
    *[(name, RK4(space="lam"), 56) for name in ("vp", "edm", "flow-inner", "trig-inner")],
    *[(name, Euler(space="rho"), 48) for name in ("vp", "edm", "flow-inner", "trig-inner")],
    *[(name, Heun(space="rho"), 64) for name in ("vp", "edm", "flow-inner", "trig-inner")],
    *[(name, RK4(space="rho"), 48) for name in ("vp", "edm", "flow-inner", "trig-inner")],
]


def error(oracle, solver: Solver, grid: Grid, steps: int, start: float, stop: float, exact) -> float:
    process: Process = oracle.process
    x = quantile_starts(oracle, start)
    got = execute(solver.plan(process, grid.times(process, steps, start, stop, False)), oracle, x)
    return float((got - exact).square().mean().sqrt())


@pytest.mark.parametrize(("line", "solver", "steps"), ROWS, ids=lambda value: str(value).replace("space=", ""))
def test_order_on_a_mixture(line: str, solver: Solver, steps: int) -> None:
    process, grid, start, stop = LINES[line]
    oracle = mixture(process)
    exact = flow_map(oracle, quantile_starts(oracle, start), start, stop)
    errors = [error(oracle, solver, grid, n, start, stop, exact) for n in (steps, 2 * steps)]
    assert slopes(errors)[-1] == pytest.approx(solver.order, abs=0.15), errors
    assert errors[-1] < 0.1, errors


@pytest.mark.parametrize("line", ["vp", "edm", "flow-inner", "trig-inner"])
@pytest.mark.parametrize("solver", [DDIM(), Heun("rho"), RK4("rho")], ids=str)
def test_order_on_a_gaussian(line: str, solver: Solver) -> None:
    process, grid, start, stop = LINES[line]
    oracle = gaussian(process, 0.3, 0.25)
    exact = gaussian_map(oracle, quantile_starts(oracle, start), start, stop)
    errors = [error(oracle, solver, grid, n, start, stop, exact) for n in (48, 96)]
    assert slopes(errors)[-1] == pytest.approx(solver.order, abs=0.15), errors


def test_the_mixture_map_is_the_gaussian_map_for_one_component() -> None:
    oracle = gaussian(VP(), 0.3, 0.25)
    x = quantile_starts(oracle, 1.0)
    assert flow_map(oracle, x, 1.0, 1e-3) == pytest.approx(gaussian_map(oracle, x, 1.0, 1e-3), abs=1e-12)


@pytest.mark.parametrize(
    ("solver", "printed"),
    [
        (Euler(), [0.150, 0.0770, 0.0390, 0.0196, 0.0098, 0.0049]),
        (Heun(), [0.139, 0.0276, 0.0061, 0.00144, 3.5e-4, 8.2e-5]),
    ],
    ids=["euler", "heun"],
)
@pytest.mark.parametrize("space", ["t", "rho"])  # the same coordinate on this process
def test_edm_numbers_on_a_gaussian(solver: Solver, printed: list[float], space: str) -> None:
    """N(0, .25), x = 80 at sigma = 80, rho = 7 down to .002 and then 0; the answer is 80 sqrt(.25 / (.25 + 80^2))."""
    oracle, process = gaussian(EDM(), 0.0, 0.25), EDM()
    solver = type(solver)(space=space)
    errors = []
    for n in (9, 18, 36, 72, 144, 288):
        times = Karras().times(process, n, 80.0, 0.002, True)
        got = execute(solver.plan(process, times), oracle, torch.tensor([[80.0]], dtype=torch.float64))
        errors.append(abs(float(got) - 80.0 * math.sqrt(0.25 / (0.25 + 6400.0))))
    assert errors == pytest.approx(printed, rel=0.03)
