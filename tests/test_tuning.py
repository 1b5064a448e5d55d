"""Grids found by trying: the error that is minimised in closed form, the optimum where it is known, fresh noises."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

import fokker as fk
from fokker.errors import ConfigError
from fokker.guidance import CFG
from fokker.process import EDM, VP, Flow, Process
from fokker.registry import build, spec
from fokker.solvers import DDIM, Heun, Solver, Times, as_grid
from fokker.solvers.grid import check_times
from fokker.tuning import NAMED, Trial, named_grids, optimise_grid, refine, search

F64 = torch.float64
VAR = 0.09


def ring(process: Process) -> fk.Denoiser:
    angle = torch.arange(8) * math.pi / 4
    means, cov = torch.stack([angle.cos(), angle.sin()], 1), 0.01 * torch.eye(2).expand(8, 2, 2)
    return fk.exact.GaussianMixture(torch.ones(8) / 8, means, cov).denoiser(process)


def gaussian(process: Process) -> fk.Denoiser:
    return fk.exact.Gaussian(torch.zeros(3), VAR * torch.eye(3)).denoiser(process)


def ddim_factor(process: Process, s: float, t: float) -> float:
    """What DDIM's step from s to t does to a state of N(0, VAR I) data."""
    a, b = float(process.alpha(s)), float(process.sigma(s))
    return (float(process.alpha(t)) * a * VAR + float(process.sigma(t)) * b) / (a * a * VAR + b * b)


def exact_factor(process: Process, s: float, t: float) -> float:
    total = [VAR * float(process.alpha(u)) ** 2 + float(process.sigma(u)) ** 2 for u in (s, t)]
    return math.sqrt(total[1] / total[0])


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("final", ["x0", "t_min"])
def test_the_error_is_the_distance_from_the_exact_end(process: Process, final: str) -> None:
    error = Trial(gaussian(process), DDIM(), indices=range(5, 25), seed=3, final=final, dtype=F64)
    end = 0.0 if final == "x0" else process.t_min
    assert (error.start, error.stop) == (process.T, process.t_min)
    want = process.prior((3,), seed=3, indices=torch.arange(5, 25), t=process.T, dtype=F64)
    assert torch.equal(error.x, want)
    exact = exact_factor(process, process.T, process.t_min)
    if final == "x0":
        exact *= ddim_factor(process, process.t_min, 0.0)
    torch.testing.assert_close(error.target, exact * want, rtol=1e-5, atol=0)
    middle = 0.3 * process.T
    scale = ddim_factor(process, process.T, middle) * ddim_factor(process, middle, end)
    value = error(torch.tensor([process.T, middle, end], dtype=F64))
    assert value == pytest.approx(abs(scale - exact) * float(want.square().mean().sqrt()), rel=2e-3)


def test_one_free_time_is_found_where_it_is() -> None:
    """Two steps of DDIM on a Gaussian: the least of the closed-form error, found independently."""
    process = VP()
    exact = exact_factor(process, 1.0, 0.0)
    best = minimize_scalar(
        lambda t: abs(ddim_factor(process, 1.0, t) * ddim_factor(process, t, 0.0) - exact), bounds=(1e-3, 0.999)
    )
    found = optimise_grid(gaussian(process), DDIM(), 2, n=8, dtype=F64)
    times = found.values.value
    assert times[0] == 1.0 and times[2] == 0.0
    assert float(process.lam(times[1])) == pytest.approx(float(process.lam(best.x)), abs=0.02)
    # and a start far from it comes there too
    error = Trial(gaussian(process), DDIM(), indices=range(8), dtype=F64)
    again = refine(error, torch.tensor([1.0, 0.9, 0.0], dtype=F64)).values.value
    assert float(process.lam(again[1])) == pytest.approx(float(process.lam(best.x)), abs=0.02)


@pytest.mark.parametrize(
    ("process", "solver", "nfe", "factor"),
    [
        (VP(), Heun(), 7, 3.0),
        (EDM(), DDIM(), 6, 1.4),
        (Flow(), DDIM(), 6, 1.4),
    ],
    ids=lambda v: type(v).__name__ if not isinstance(v, (int, float)) else str(v),
)
def test_better_than_every_named_grid_on_fresh_noises(
    process: Process, solver: Solver, nfe: int, factor: float
) -> None:
    """Eight modes on a ring: the found grid's error on other noises is this many times less than the best name's."""
    denoiser = ring(process)
    found = optimise_grid(denoiser, solver, nfe=nfe, n=80, trials=180)
    times = found.values.value
    assert check_times(times, process) is False and times[0] == process.T and times[-1] == 0.0
    assert times[-2] >= process.t_min * (1 - 1e-9)
    assert solver.plan(process, times).nfe <= nfe
    fresh = Trial(denoiser, solver, indices=range(5000, 5300))
    named = {name: fresh(times) for name, times in named_grids(fresh, nfe=nfe).items()}
    assert set(named) == set(NAMED)
    assert fresh(times) < min(named.values()) / factor


class Counting(Trial):
    calls: list[Tensor]

    def __call__(self, times: Tensor) -> float:
        self.calls.append(times)
        return super().__call__(times)


def test_the_search_keeps_its_budget_ends_and_order() -> None:
    error = Counting(ring(Flow()), DDIM(), indices=range(16))
    error.calls = []
    told: list[tuple[int, float]] = []
    first = named_grids(error, 8)["cosine"]
    found = refine(error, first, 30, lambda tried, least: told.append((tried, least))).values.value
    assert len(error.calls) == 30 and [tried for tried, _ in told] == list(range(2, 31))
    assert all(b <= a for (_, a), (_, b) in pairwise(told))
    assert told[-1][1] == error(found) < error(first)
    for times in error.calls:
        assert times[0] == first[0] and times[-1] == first[-1] and len(times) == 9
        check_times(times, Flow())
        assert float(Flow().lam(times[1:-1]).diff().min()) > 0.9e-4
        assert times[-2] >= Flow().t_min
    error.calls = []
    search(error, named_grids(error, 8), trials=30)
    assert len(error.calls) <= 30 + 2 * len(NAMED) + 3
    # nothing to move in one step
    assert refine(error, torch.tensor([1.0, 0.0], dtype=F64)).values.tolist() == [1.0, 0.0]


def test_the_same_arguments_find_the_same_grid() -> None:
    made = []
    for state in (1, 2):
        torch.manual_seed(state)
        made.append(optimise_grid(ring(VP()), steps=4, n=16, trials=30, seed=7))
    assert made[0] == made[1]


def test_a_guided_denoiser_with_its_conditions() -> None:
    """Two classes, guided: rows of conditions follow the noises, and batches change nothing."""
    means, cov = torch.tensor([[-1.0, 0.0], [0.8, 0.3]]), 0.04 * torch.eye(2).expand(2, 2, 2)
    law = fk.exact.GaussianMixture(torch.tensor([0.3, 0.7]), means, cov, labels=torch.tensor([0, 1]))
    guided, cond = CFG(law.denoiser(VP()), 3.0), torch.arange(40) % 2
    error = Trial(guided, indices=range(40), cond=cond, dtype=F64, fine=12)
    parts = Trial(guided, indices=range(40), cond=cond, dtype=F64, batch_size=27, fine=12)
    assert float(error.target[0::2, 0].max()) < -0.5 < 0.5 < float(error.target[1::2, 0].min())
    times = named_grids(error, 5)["lam"]
    assert parts(times) == pytest.approx(error(times), rel=1e-9)
    assert error(refine(error, times, 40).values.value) < 0.8 * error(times)


def test_long_grids_are_stored_and_read() -> None:
    times = Times(torch.linspace(1, 0, 201, dtype=F64))
    stored = spec(times, inline=2**20)
    assert stored["kind"] == "times" and len(stored["values"]) == 201
    assert build("grid", stored) == times == as_grid(stored)


def test_mistakes_are_named() -> None:
    denoiser = gaussian(VP())
    with pytest.raises(ConfigError, match="which draws noise"):
        Trial(denoiser, "ancestral")
    with pytest.raises(ConfigError, match="fine: given 1"):
        Trial(denoiser, fine=1)
    error = Trial(denoiser, indices=range(2))
    with pytest.raises(ConfigError, match="not both"):
        named_grids(error, 3, 3)
    for keys in ({"steps": 0}, {"nfe": 0}):
        with pytest.raises(ConfigError, match="given 0, must be at least 1"):
            named_grids(error, **keys)
    with pytest.raises(ConfigError, match="trials: given 0"):
        search(error, named_grids(error, 3), trials=0)


def test_a_solver_that_leaves_the_numbers_is_never_best() -> None:
    class Broken(Trial):
        def _end(self, solver: Solver, times: Tensor) -> Tensor:
            return torch.full_like(self.x, math.nan)

    assert Broken(gaussian(VP()), indices=range(2))(torch.tensor([1.0, 0.0])) == math.inf
