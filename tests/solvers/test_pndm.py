"""PNDM: Adams-Bashforth's weights in DDIM's step, of second order however many."""

from __future__ import annotations

import pytest

from fokker.errors import ConfigError
from fokker.process import EDM, VP
from fokker.solvers import DDIM, DEIS, PNDM, UniformT

from .oracle import execute, mixture, quantile_starts
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


@pytest.mark.parametrize(("line", "history"), [("vp", 4), ("edm", 2), ("flow-inner", 4)])
def test_order_is_2(line: str, history: int) -> None:
    slope, last = observed(line, PNDM(history), 160)
    assert slope == pytest.approx(2.0, abs=0.15), last
    assert PNDM(history).order == 2 and PNDM(1).order == 1 and PNDM(3).slots == 3


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="PNDM.history"):
        PNDM(history=5)
