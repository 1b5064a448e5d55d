"""Noise from one Brownian path: increments by hand, the law unchanged, samples that are refined at strong order 1."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from fokker import noise
from fokker.errors import ConfigError
from fokker.process import EDM, VP, Flow, Process
from fokker.sampling import sample, trajectory
from fokker.solvers import (
    DDIM,
    Ancestral,
    AnnealedLangevin,
    EDMStochastic,
    EulerMaruyama,
    PredictorCorrector,
    Restart,
    Solver,
    UniformLam,
)
from fokker.solvers.path import clock, increments

from .oracle import F64, gaussian, law, slopes


def never(step: int, k: int) -> Tensor:
    raise AssertionError("the first draw of a step is the path's")


def path_draws(process: Process, times: Tensor, seed: int = 3) -> Tensor:
    """The draws that a plan on these times is given, (N, 5, 2)."""
    plan = EulerMaruyama().plan(process, times)
    draw = increments(plan, process, seed, torch.arange(5), (2,), F64, never)
    return torch.stack([draw(n, 0) for n in range(len(plan.steps))])


def test_draws_are_increments_by_hand() -> None:
    """u = 1/2 + arctan(lam / 4) / pi, towards the data; z = (W(v) - W(u)) / sqrt(v - u)."""
    process = VP()
    times = UniformLam().times(process, 6, 1.0, 1e-3, False)
    u = clock(process, times)
    assert float((u - 0.5 - (process.lam(times) / 4).atan() / math.pi).abs().max()) < 2.0**-24
    assert bool((u[1:] > u[:-1]).all())
    w = noise.brownian(3, torch.arange(5), u, (2,))
    want = (w[1:] - w[:-1]) / (u[1:] - u[:-1]).sqrt()[:, None, None]
    assert float((path_draws(process, times) - want).abs().max()) < 1e-12


def test_half_steps_add_up_to_the_step_in_any_process() -> None:
    for process in (VP(), EDM(), Flow()):
        fine = process.time(torch.linspace(-3.0, 4.0, 17, dtype=F64))
        weight = [(clock(process, t).diff()).sqrt()[:, None, None] for t in (fine[::2], fine)]
        coarse = weight[0] * path_draws(process, fine[::2])
        halves = (weight[1] * path_draws(process, fine)).reshape(8, 2, 5, 2).sum(1)
        assert float((coarse - halves).abs().max()) < 1e-12
    other = VP().time(torch.linspace(-3.0, 4.0, 17, dtype=F64))
    assert float((path_draws(process, fine) - path_draws(VP(), other)).abs().max()) < 1e-4  # 2^-24 of the clock


@pytest.mark.parametrize(
    "solver", [EulerMaruyama(), EulerMaruyama(eta=0.5), DDIM(eta=1.0), Ancestral("forward")], ids=str
)
def test_samples_are_refined_at_strong_order_1(solver: Solver) -> None:
    """Additive noise: twice the steps move a sample half as far each time; independent noise never comes nearer."""
    oracle = gaussian(VP(), 0.7, 0.25)

    def end(steps: int, brownian: bool = True) -> Tensor:
        grid = UniformLam().times(VP(), steps, 0.9, 0.05, False)
        x = torch.linspace(-2, 2, 200, dtype=F64)[:, None]
        return sample(oracle, x=x, solver=solver, grid=grid, seed=5, brownian=brownian)

    ends = [end(n) for n in (40, 80, 160, 320)]
    errors = [float((a - b).square().mean().sqrt()) for a, b in itertools.pairwise(ends)]
    assert errors[-1] < 0.03 and slopes(errors)[-1] == pytest.approx(1.0, abs=0.15), errors
    apart = float((end(160, False) - end(80, False)).square().mean().sqrt())
    assert apart > 10 * errors[-1]


@pytest.mark.parametrize("process", [VP(), Flow()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("solver", [Ancestral(), EDMStochastic(S_churn=6.0, S_tmin=0.0)], ids=str)
def test_the_law_is_the_plans(process: Process, solver: Solver) -> None:
    """Mean and variance within 4 standard errors of the exact law, from alpha = 0 (Flow) to time 0."""
    n, oracle = 8_000, gaussian(process, 0.7, 0.25)
    start = process.t_max if solver.open_start else process.T
    times = UniformLam().times(process, 12, start, process.t_min, True)
    mean, var = law(solver.plan(process, times), oracle, 0.0, float(process.prior_std(start)) ** 2)
    x = sample(oracle, n=n, solver=solver, steps=12, grid="lam", seed=1, dtype=F64, brownian=True)
    assert abs(float(x.mean()) - mean) < 4 * math.sqrt(var / n)
    assert abs(float(x.var()) - var) < 4 * var * math.sqrt(2 / n)


def test_a_path_belongs_to_its_sample() -> None:
    oracle = gaussian(VP(), 0.5, 0.25, shape=(3,))
    whole = sample(oracle, n=6, solver="ancestral", steps=5, seed=4, brownian=True)
    part = sample(oracle, indices=[4, 1], solver="ancestral", steps=5, seed=4, brownian=True)
    assert torch.equal(part, whole[[4, 1]])
    assert torch.equal(sample(oracle, n=6, solver="ancestral", steps=5, seed=4, brownian=True, batch_size=4), whole)
    assert torch.equal(sample(oracle, seed=[4] * 2, indices=[4, 1], solver="ancestral", steps=5, brownian=True), part)
    assert torch.equal(trajectory(oracle, n=6, solver="ancestral", steps=5, seed=4, brownian=True)[1][-1], whole)
    for other in ({"brownian": False, "seed": 4}, {"brownian": True, "seed": 5}):
        assert not torch.equal(sample(oracle, n=6, solver="ancestral", steps=5, **other), whole)
    one, two = (sample(oracle, n=6, solver="ddim", steps=5, seed=4, brownian=b) for b in (True, False))
    assert torch.equal(one, two)  # nothing is drawn


def test_further_draws_of_a_step_are_fresh() -> None:
    plan = EulerMaruyama().plan(VP(), torch.tensor([0.9, 0.5], dtype=F64))
    seen: list[tuple[int, int]] = []

    def fresh(step: int, k: int) -> Tensor:
        seen.append((step, k))
        return torch.full((5, 2), 7.0, dtype=F64)

    draw = increments(plan, VP(), 0, torch.arange(5), (2,), F64, fresh)
    assert float(draw(0, 1).mean()) == 7.0 and seen == [(0, 1)]


def test_what_is_refused() -> None:
    oracle = gaussian(VP())
    for solver in (PredictorCorrector("ddim"), AnnealedLangevin(), Restart()):
        with pytest.raises(ConfigError, match="brownian"):
            sample(oracle, n=1, solver=solver, steps=30, brownian=True)
    with pytest.raises(ConfigError, match="resolution"):
        sample(oracle, n=1, solver="ancestral", grid=[0.5, 0.5 - 1e-9], brownian=True)
