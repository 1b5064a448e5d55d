"""The table of solvers: every kind is in it, and its numbers are those of the solvers."""

from fractions import Fraction

import pytest

import fokker as fk
from fokker.errors import ConfigError
from fokker.registry import KINDS
from fokker.solvers import DDIM, DEIS, DPM, RK4, DPMpp, Heun, Restart, UniPC
from fokker.solvers.catalogue import CATALOGUE, cost, entries

from .oracle import gaussian


def test_every_kind_of_solver_has_a_row_and_no_two_rows_are_one() -> None:
    assert {entry.kind for entry in CATALOGUE} == set(KINDS["solver"])
    assert len({str(entry.solver) for entry in CATALOGUE}) == len(CATALOGUE)
    for entry in CATALOGUE:
        assert entry in entries(entry.kind)
        assert entry.when and entry.family and entry.side in ("", "both", "noise", "x0", "velocity", "v", "fitted")


@pytest.mark.parametrize(
    ("solver", "slope", "more"),
    [
        (DDIM(), 1, 0),
        (Heun(), 2, 0),
        (RK4(), 4, 0),
        (DPM(order=3), 3, 0),
        (DPMpp(order=3), 1, 0),
        (DPMpp(order=2, variant="S"), 2, 0),
        (DPMpp(order=3, start="single"), 1, 2),  # its first two steps are of two evaluations
        (UniPC(), 1, 0),
        (Restart(), 2, 8),  # two turns of two steps of Heun
        (Restart(solver=DDIM(), intervals=((0.1, 0.3, 3, 4),)), 1, 12),
        (fk.solvers.PredictorCorrector(corrections=3), 4, 0),
        (fk.solvers.AnnealedLangevin(repeats=7), 7, 7),  # N + 1 levels
    ],
    ids=str,
)
def test_costs_are_counted(solver: fk.solvers.Solver, slope: int, more: int) -> None:
    assert cost(solver) == (Fraction(slope), more)
    law = gaussian(fk.VP())
    fk.sample(law, n=1, solver=solver, steps=30, final="t_min")
    assert len(law.calls) == 30 * slope + more


def test_orders_are_the_solvers() -> None:
    known = {"euler": 1, "ddim": 1, "rk4": 4, "pndm": 2, "unipc": 4, "ancestral": 1, "lms": 2, "dpmv3": 3}
    for kind, order in known.items():
        assert entries(kind)[0].order == order
    assert {str(entry.solver): entry.order for entry in entries("deis")} == {
        str(DEIS(degree=3, space="lam")): 4,
        str(DEIS(space="lam")): 3,
        str(DEIS(degree=3)): 4,
    }


def test_what_steps_by_itself_has_no_cost() -> None:
    class Own(DDIM):
        def plan(self, process, times):  # type: ignore[no-untyped-def]
            raise ConfigError("no plan")

    assert cost(Own()) is None
