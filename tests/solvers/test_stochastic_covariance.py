"""Mean and covariance of a correlated Gaussian in two dimensions, by every stochastic solver and at every eta.

For Gaussian data every plan is affine in (start, draws). The plan is run once on the unit vectors of all of them, so
that its law is known exactly, with nothing drawn and through the executor itself:

    x = c + A x_start + sum_k B_k z_k,     mean = c + A mean_start,     cov = A cov_start A' + sum_k B_k B_k'
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fokker.prediction import Prediction
from fokker.process import EDM, VP, Flow, Process
from fokker.solvers import (
    DDIM,
    DPM,
    SA,
    Ancestral,
    AnnealedLangevin,
    DPMpp,
    EDMStochastic,
    EulerMaruyama,
    Karras,
    PredictorCorrector,
    Restart,
    Solver,
    UniformLam,
)

from .oracle import F64, execute, slopes

MEAN = torch.tensor([0.5, -1.0], dtype=F64)
COV = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=F64)
LINES = {"vp": (VP(), 1.0, 1e-3), "edm": (EDM(), 80.0, 0.002), "flow": (Flow(), 0.98, 1e-3)}


class Plane:
    """The exact denoiser of N(MEAN, COV)."""

    def __init__(self, process: Process) -> None:
        self.process, self.shape, self.lam_range, self.reading = process, (2,), (-math.inf, math.inf), None

    def moments(self, t: float) -> tuple[Tensor, Tensor]:
        a, sig = self.process.alpha(t), self.process.sigma(t)
        return a * MEAN, a**2 * COV + sig**2 * torch.eye(2, dtype=F64)

    def __call__(self, x: Tensor, s: float | Tensor, cond: Any = None) -> Prediction:
        a, sig = self.process.alpha(s), self.process.sigma(s)
        mean, total = self.moments(float(s))
        gap = torch.linalg.solve(total, (x - mean).T).T
        return Prediction(self.process, x, s, x0=MEAN + a * gap @ COV, noise=sig * gap)


def law_of(solver: Solver, process: Process, times: Tensor, start: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The exact mean and covariance that the plan makes of N(*start)."""
    plan = solver.plan(process, times)
    first = {}  # number of the first unit vector of draw (n, k)
    for n, step in enumerate(plan.steps):
        for k in range(step.draws):
            first[n, k] = 3 + 2 * len(first)
    batch = 3 + 2 * len(first)
    x = torch.zeros(batch, 2, dtype=F64)
    x[1:3] = torch.eye(2, dtype=F64)

    def draw(n: int, k: int) -> Tensor:
        z = torch.zeros(batch, 2, dtype=F64)
        z[first[n, k] : first[n, k] + 2] = torch.eye(2, dtype=F64)
        return z

    y = execute(plan, Plane(process), x, draw=draw)
    columns = (y[1:] - y[0]).T  # 2 x (2 + draws)
    a, b = columns[:, :2], columns[:, 2:]
    return y[0] + a @ start[0], a @ start[1] @ a.T + b @ b.T


def gaps(solver: Solver, line: str, steps: int) -> tuple[float, float]:
    """The largest errors of mean and covariance, relative to the data's scale at the end; uniform lam, exact start."""
    process, begin, end = LINES[line]
    plane, times = Plane(process), UniformLam().times(process, steps, begin, end, False)
    mean, cov = law_of(solver, process, times, plane.moments(begin))
    want = plane.moments(end)
    return float((mean - want[0]).abs().max()), float((cov - want[1]).abs().max())


ROWS: list[tuple[Solver, int, float, float]] = [  # solver, N, weak order, bound on the covariance at 2 N
    (EulerMaruyama(eta=0.3), 256, 1.0, 0.005),
    *[(EulerMaruyama(eta=eta), 96, 1.0, 0.015) for eta in (1.0, 1.5, 2.0)],
    *[(DDIM(eta=eta), 96, 1.0, 0.03) for eta in (0.3, 1.0)],
    (Ancestral(), 96, 1.0, 0.03),
    (Ancestral("forward"), 96, 1.0, 0.03),
    *[(SA(2, eta, False), 48, 2.0, 0.022) for eta in (0.3, 1.0, 2.0)],
    *[(SA(3, eta), 64, 2.0, 0.006) for eta in (1.0, 2.0)],
    (DPMpp(sde=True), 48, 2.0, 0.005),
    (DPMpp(variant="S", sde=True), 48, 2.0, 0.0012),
    (DPM(order=2, variant="M", sde=True), 64, 2.0, 0.0008),
]


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize(("solver", "steps", "order", "bound"), ROWS, ids=str)
def test_covariance_converges_at_the_weak_order(
    solver: Solver, line: str, steps: int, order: float, bound: float
) -> None:
    (m1, c1), (m2, c2) = (gaps(solver, line, n) for n in (steps, 2 * steps))
    assert slopes([c1, c2])[0] == pytest.approx(order, abs=0.2), (c1, c2)
    assert c2 < bound and m2 < 0.02 and m2 <= m1 + 1e-12, (c2, m1, m2)


def test_at_eta_0_nothing_is_drawn() -> None:
    for pair in ((DDIM(eta=0.0), 0.03), (EulerMaruyama(eta=0.0), 0.05), (SA(3, 0.0), 1e-4), (DPMpp(), 2e-3)):
        solver, bound = pair
        plan = solver.plan(VP(), UniformLam().times(VP(), 96, 1.0, 1e-3, False))
        assert sum(step.draws for step in plan.steps) == 0
        assert gaps(solver, "vp", 96)[1] < bound, solver


@pytest.mark.parametrize("line", LINES)
def test_noise_heals_a_wrong_start(line: str) -> None:
    """Twice the covariance and a shifted mean at the start: the flow keeps both, noise forgets them, more with more.

    A difference of means shrinks as the SDE's own: by (sigma_t / sigma_s)^{eta^2} and more where data are narrow.
    """
    process = LINES[line][0]
    middle = float(process.time(-0.5))
    plane, times = Plane(process), UniformLam().times(process, 96, middle, float(process.time(3.0)), False)
    mean, cov = plane.moments(middle)
    left = []
    for eta in (0.0, 0.5, 1.0, 2.0):
        solver = SA(3, eta)
        right = law_of(solver, process, times, (mean, cov))
        wrong = law_of(solver, process, times, (mean + 0.1, 2.0 * cov))
        left.append((float((wrong[0] - right[0]).abs().max()), float((wrong[1] - right[1]).abs().max())))
    for one, two in itertools.pairwise(left):
        assert two[0] < one[0] and two[1] < one[1], left
    assert left[-1][1] < 0.02 * left[0][1]


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: type(p).__name__)
def test_solvers_that_keep_a_bias(process: Process) -> None:
    """Langevin steps, churn and restarts, whose parameters are not refined with the grid: how near they come."""
    plane, start = Plane(process), process.t_max
    fine = Karras().times(process, 64, start, process.t_min, True)
    levels = process.time(torch.linspace(-3.0, 1.0, 6, dtype=F64))
    rows: list[tuple[Solver, Tensor, float, float]] = [
        (EDMStochastic(S_churn=10.0, S_tmin=0.0, S_tmax=1e3, S_noise=1.0), fine, 0.02, 0.05),
        (PredictorCorrector("ddim", snr=0.1, norms="expected", corrections=2), fine, 0.02, 0.08),
        (Restart("heun", ((0.1, 0.5, 2, 6),)), fine, 0.02, 0.06),
        (AnnealedLangevin(repeats=200, step=0.1), levels, 0.05, 0.05),
    ]
    for solver, times, on_mean, on_cov in rows:
        mean, cov = law_of(solver, process, times, plane.moments(float(times[0])))
        want = plane.moments(float(times[-1]))
        assert float((mean - want[0]).abs().max()) < on_mean, (solver, mean)
        assert float((cov - want[1]).abs().max()) < on_cov, (solver, cov)
