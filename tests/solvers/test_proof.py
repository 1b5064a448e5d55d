"""Every deterministic solver on laws of more than one dimension, down and up, against exact flows.

Laws: a mixture of three correlated Gaussians in the plane (reference: RK4 in lam, 400 steps, error below 1e-9) and
a correlated Gaussian in 64 dimensions (closed form). Processes: VP, EDM, Flow, Trig on uniform lam, starting where
alpha > 0. Where a row ends at lam = 1 or -1, its asymptotic regime is reached with fewer steps there.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fokker.exact import Gaussian, GaussianMixture
from fokker.prediction import Denoiser
from fokker.process import EDM, VP, Flow, Process, Trig
from fokker.solvers import (
    DDIM,
    DEIS,
    DPM,
    PNDM,
    RK4,
    DPMpp,
    Euler,
    ExpEuler,
    ExpHeun,
    Heun,
    Solver,
    UniformLam,
    UniPC,
)

from .oracle import F64, execute, slopes

LINES: dict[str, tuple[Process, float, float]] = {  # process, first and last time
    "vp": (VP(), 1.0, 1e-3),
    "edm": (EDM(), 80.0, 0.02),
    "flow": (Flow(), 0.98, 1e-3),
    "trig": (Trig(), 0.98, 1e-3),
}
CLEAN, MIDDLE, EARLY = math.inf, 1.0, -1.0  # lam at the end


def _laws() -> dict[str, GaussianMixture | Gaussian]:
    covs = [[[0.16, 0.06], [0.06, 0.09]], [[0.06, -0.03], [-0.03, 0.12]], [[0.1, 0.02], [0.02, 0.05]]]
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(64, 64, generator=g, dtype=F64))[0]
    cov = basis @ torch.logspace(-1.5, 0.5, 64, dtype=F64).diag() @ basis.T
    return {
        "plane": GaussianMixture([0.3, 0.45, 0.25], [[-1.0, 0.4], [0.8, 0.6], [0.1, -1.1]], covs),
        "64": Gaussian(torch.linspace(-1, 1, 64, dtype=F64), cov),
    }


LAWS = _laws()


class Setting(NamedTuple):
    denoiser: Denoiser
    start: float
    stop: float
    x: Tensor  # at start
    exact: Tensor  # at stop


@cache
def setting(line: str, law: str, end: float) -> Setting:
    process, start, stop = LINES[line]
    if math.isfinite(end):
        stop = float(process.time(end))
    given = LAWS[law]
    denoiser = given.denoiser(process)
    x = process.prior(given.shape, seed=1, t=start, dtype=F64, indices=torch.arange(6))
    if isinstance(given, Gaussian):
        return Setting(denoiser, start, stop, x, given.flow_map(process, x, start, stop))
    fine = UniformLam().times(process, 400, start, stop, False)
    return Setting(denoiser, start, stop, x, execute(RK4("lam").plan(process, fine), denoiser, x))


def errors(solver: Solver, at: Setting, steps: int, up: bool = False) -> list[float]:
    """RMS at the end for `steps` and twice as many; `up` from the exact end back to the start."""
    process, found = at.denoiser.process, []
    for n in (steps, 2 * steps):
        times = UniformLam().times(process, n, at.start, at.stop, False)
        x, want = (at.exact, at.x) if up else (at.x, at.exact)
        got = execute(solver.plan(process, times.flip(0) if up else times), at.denoiser, x)
        found.append(float((got - want).square().mean().sqrt()))
    return found


# solver, (end, N) in the plane, (end, N) in 64 dimensions
ROWS: list[tuple[Solver, tuple[float, int], tuple[float, int]]] = [
    (Euler(), (CLEAN, 32), (CLEAN, 32)),
    (Euler("lam"), (MIDDLE, 32), (MIDDLE, 32)),
    (Euler("rho"), (CLEAN, 32), (CLEAN, 32)),
    (Heun(), (MIDDLE, 32), (CLEAN, 32)),
    (Heun("lam"), (MIDDLE, 32), (MIDDLE, 32)),
    (Heun("rho"), (MIDDLE, 32), (CLEAN, 32)),
    (RK4(), (MIDDLE, 32), (CLEAN, 32)),
    (RK4("lam"), (MIDDLE, 32), (MIDDLE, 32)),
    (RK4("rho"), (MIDDLE, 32), (CLEAN, 32)),
    (DDIM(), (CLEAN, 32), (CLEAN, 32)),
    (DEIS(1), (EARLY, 48), (MIDDLE, 32)),
    (DEIS(2, start="single"), (MIDDLE, 96), (MIDDLE, 96)),
    (DEIS(3, start="single"), (EARLY, 128), (MIDDLE, 128)),
    (DEIS(1, "rho"), (EARLY, 48), (MIDDLE, 32)),
    (DEIS(2, "rho", start="single"), (MIDDLE, 96), (MIDDLE, 96)),
    (DEIS(3, "rho", start="single"), (EARLY, 192), (MIDDLE, 128)),
    (DEIS(3, "lam", start="single"), (EARLY, 96), (MIDDLE, 32)),
    (DPM(2), (MIDDLE, 32), (CLEAN, 32)),
    (DPM(3), (MIDDLE, 32), (MIDDLE, 32)),
    (DPM(2, "M"), (EARLY, 48), (CLEAN, 32)),
    (DPM(3, "M", start="single"), (MIDDLE, 48), (MIDDLE, 32)),
    (DPMpp(2), (CLEAN, 32), (CLEAN, 32)),
    (DPMpp(2, published=True), (EARLY, 32), (CLEAN, 32)),
    (DPMpp(3, start="single"), (EARLY, 32), (EARLY, 32)),
    (DPMpp(2, "S"), (EARLY, 32), (CLEAN, 32)),
    (DPMpp(3, "S"), (EARLY, 32), (EARLY, 32)),
    (ExpEuler(), (MIDDLE, 32), (MIDDLE, 32)),
    (ExpEuler("x0"), (CLEAN, 32), (MIDDLE, 32)),
    (ExpHeun(), (MIDDLE, 32), (MIDDLE, 32)),
    (ExpHeun("x0"), (EARLY, 32), (CLEAN, 32)),
    (UniPC(1), (EARLY, 32), (CLEAN, 32)),
    (UniPC(2), (EARLY, 32), (CLEAN, 32)),
    (UniPC(3), (EARLY, 32), (MIDDLE, 32)),
    (PNDM(), (MIDDLE, 64), (CLEAN, 32)),
]
CASES = [(solver, law, *place) for solver, *places in ROWS for law, place in zip(LAWS, places, strict=True)]


def nominal(solver: Solver) -> int:
    """The order claimed: UniPC's corrector adds one."""
    return solver.order + (isinstance(solver, UniPC) and solver.corrector)


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize(("solver", "law", "end", "steps"), CASES, ids=str)
def test_order(solver: Solver, law: str, end: float, steps: int, line: str) -> None:
    found = errors(solver, setting(line, law, end), steps)
    assert slopes(found)[0] == pytest.approx(nominal(solver), abs=0.15), found
    assert found[-1] < 0.2


ENCODERS = [
    DDIM(),
    Heun(),
    RK4("lam"),
    DEIS(1),
    DEIS(2, "lam", start="single"),
    DPM(3),
    DPM(2, "M"),
    DPMpp(2),
    UniPC(2),
    PNDM(),
]


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("solver", ENCODERS, ids=str)
def test_order_upwards(solver: Solver, line: str) -> None:
    """From data to noise the same tables, with h < 0, have the same order."""
    found = errors(solver, setting(line, "64", MIDDLE), 48, up=True)
    assert slopes(found)[0] == pytest.approx(nominal(solver), abs=0.15), found
