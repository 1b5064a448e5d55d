"""Langevin steps: the corrector by its formula, sample by sample, and annealed Langevin by its affine recursion."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fokker.errors import ConfigError
from fokker.exact import GaussianMixture
from fokker.process import EDM, VP, Flow, Process, Trig
from fokker.sampling import sample, trajectory
from fokker.solvers import (
    DDIM,
    DPM,
    Adaptive,
    Ancestral,
    AnnealedLangevin,
    EulerMaruyama,
    Heun,
    Picard,
    Plan,
    PredictorCorrector,
    Restart,
    Solver,
    Step,
    Taylor,
    UniformLam,
)
from fokker.solvers.norms import squares
from fokker.solvers.plan import evaluate

from .oracle import F64, Oracle, execute, gaussian, mixture


def draws(shape: tuple[int, ...], seed: int = 0) -> Callable[[int, int], Tensor]:
    """A table of standard normals, one per (step, k)."""

    def draw(step: int, k: int) -> Tensor:
        g = torch.Generator().manual_seed(1000 * seed + 10 * step + k)
        return torch.randn(shape, dtype=F64, generator=g)

    return draw


def affine(plan: Plan, oracle: Oracle, mean: float, var: float) -> tuple[float, float]:
    """The law that Langevin steps make of N(mean, var) for Gaussian data: a recursion of two numbers."""
    v0, m0 = oracle.variances[0], oracle.means[0]
    for step in plan.steps:
        (stage,) = step.stages
        assert stage.time is not None and stage.reading == "noise"
        a, s = float(oracle.process.alpha(stage.time)), float(oracle.process.sigma(stage.time))
        on, pull = dict(step.out), s / (a * a * v0 + s * s)
        scale = dict(stage.terms)["x", 0]
        grow = on["y", 0] + on["m", 0] * pull
        mean = grow * scale * mean - on["m", 0] * pull * a * m0
        var = (grow * scale) ** 2 * var + on["z", 0] ** 2
    return mean, var


@pytest.mark.parametrize("shape", [(5, 3), (4, 2, 3), (6, 1)])
@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: type(p).__name__)
def test_the_corrector_by_its_formula(process: Process, shape: tuple[int, ...]) -> None:
    """x + eta score + sqrt(2 eta) z with eta = 2 (snr |z| / |score|)^2 of each sample, at most sigma^2."""
    oracle, s, t = mixture(process), 0.6 * process.T, 0.4 * process.T
    x, draw = torch.linspace(-2, 2, math.prod(shape), dtype=F64).reshape(shape) * process.T**0.5, draws(shape)
    plan = PredictorCorrector("ddim", corrections=2, snr=0.2).plan(process, torch.tensor([s, t], dtype=F64))
    got = execute(plan, oracle, x, draw=draw)
    want = execute(DDIM().plan(process, torch.tensor([s, t], dtype=F64)), oracle, x)
    sigma, most = float(process.sigma(t)), 0
    for step in (1, 2):
        score, z = oracle(want, t).score, draw(step, 0)
        for i in range(shape[0]):
            eta = 2 * (0.2 * float(z[i].norm() / score[i].norm())) ** 2
            most += eta > sigma**2
            eta = min(eta, sigma**2)
            want[i] += eta * score[i] + math.sqrt(2 * eta) * z[i]
    assert float((got - want).abs().max()) < 1e-12 * process.T
    if shape == (6, 1):
        assert most > 0  # the bound was met


def test_expected_norms_by_the_variance_recursion() -> None:
    """V <- (1 - eta / V_t)^2 V + 2 eta with eta = 2 snr^2 sigma^2, and the mean moves by 1 - eta / V_t."""
    process, t = VP(), 0.3
    oracle = gaussian(process, 0.7, 0.25)
    plan = PredictorCorrector("ddim", snr=0.3, norms="expected").plan(process, torch.tensor([0.5, t], dtype=F64))
    (m,), (v,) = oracle.moments(t)
    eta = 2 * 0.09 * float(process.sigma(t)) ** 2
    got = affine(Plan(plan.steps[1:], 1), oracle, m + 0.5, 2.0 * v)
    assert got[0] == pytest.approx(m + 0.5 * (1 - eta / v), abs=1e-13)
    assert got[1] == pytest.approx((1 - eta / v) ** 2 * 2.0 * v + 2 * eta, abs=1e-13)


def test_both_norms_agree_in_many_dimensions() -> None:
    """Where x is all noise |z| / |noise| = 1 + O(d^{-1/2}): the steps differ by .32 d^{-1/2} for snr = .16."""
    process, d = VP(), 1024
    oracle, x, draw = gaussian(process, 0.0, 1.0, shape=(1024,)), draws((64, d), 1)(0, 0), draws((64, d))
    solvers = [PredictorCorrector("ddim", norms=norms) for norms in ("sample", "expected")]
    steps = [s.plan(process, torch.tensor([1.0, 0.9], dtype=F64)).steps[1:] for s in solvers]
    one, two = (execute(Plan(corrector, 1), oracle, x, draw=draw) for corrector in steps)
    assert float((one - two).square().mean().sqrt()) == pytest.approx(0.32 / math.sqrt(d), rel=0.05)


def test_the_law_of_per_sample_norms_in_64_dimensions() -> None:
    """Data N(.5, .25): mean and variance, and correlations of neighbours, by Monte Carlo; the corrector leaves p_t."""
    n, d = 600, 64
    oracle = gaussian(VP(), 0.5, 0.25, shape=(d,))
    x = sample(oracle, n=n, solver=PredictorCorrector(snr=0.1), steps=100, seed=2, dtype=F64, final="t_min")
    ((m,), (v,)) = oracle.moments(VP().t_min)
    assert abs(float(x.mean()) - m) < 4 * math.sqrt(v / (n * d))
    bias = 0.03 * v  # of 100 steps: what Ancestral alone has is larger
    assert abs(float(x.var()) - v) < bias + 4 * v * math.sqrt(2 / (n * d))
    lag = (x[:, 1:] - m) * (x[:, :-1] - m)
    assert abs(float(lag.mean())) < 4 * v / math.sqrt(lag.numel())
    alone = sample(oracle, n=n, solver=Ancestral(), steps=100, seed=2, dtype=F64, final="t_min")
    assert abs(float(alone.var()) - v) > abs(float(x.var()) - v)


def test_a_sample_does_not_depend_on_the_others() -> None:
    """Bit for bit, also where a reduction would sum an odd number of coordinates in another order."""
    for shape in ((37,), (2, 301)):
        oracle = gaussian(VP(), 0.5, 0.25, shape=shape)
        solver = PredictorCorrector(corrections=2)
        whole = sample(oracle, n=9, solver=solver, steps=5, seed=4)
        for i in (0, 8):
            assert torch.equal(sample(oracle, indices=[i], solver=solver, steps=5, seed=4)[0], whole[i])


def test_squares() -> None:
    for n in (1, 2, 3, 7, 8, 100, 1023):
        x = torch.linspace(-1, 2, 3 * n, dtype=F64).reshape(3, n)
        assert float((squares(x) - (x * x).sum(1)).abs().max()) < 1e-12
    assert squares(torch.tensor([2.0, -3.0])).tolist() == [4.0, 9.0]


def test_evaluations_and_steps() -> None:
    process = VP()
    for final, corrected in ((True, 4), (False, 5)):  # nothing is corrected at time 0
        times = UniformLam().times(process, 5, 1.0, 1e-3, final)
        plan = PredictorCorrector("ddim", corrections=3).plan(process, times)
        oracle = gaussian(process)
        execute(plan, oracle, torch.ones(2, 1, dtype=F64), draw=draws((2, 1)))
        assert plan.nfe == len(oracle.calls) == 5 + 3 * corrected
        plan = AnnealedLangevin(repeats=7).plan(process, times)  # every level, the last included; then one x0 step
        assert plan.nfe == (5 * 7 + 1 if final else 6 * 7)
    two = PredictorCorrector("heun").plan(process, times)
    assert two.nfe == 5 * 2 + 5


def test_states_of_a_trajectory_have_their_times() -> None:
    oracle = gaussian(VP())
    times, states = trajectory(oracle, n=2, solver=PredictorCorrector("ddim"), steps=3)
    assert len(times) == len(states) == 6
    assert times[1] == times[2] and times[3] == times[4] and float(times[-1]) == 0.0 and float(times[0]) == 1.0
    assert not torch.equal(states[1], states[2])


def test_annealed_langevin_of_the_book() -> None:
    """N(0, .25), sigma = 5, 1, .1, eta = 1e-3 at the last: .260501; without the last level 1.3021."""
    oracle = gaussian(EDM(), 0.0, 0.25)
    times = torch.tensor([5.0, 1.0, 0.1], dtype=F64)
    plan = AnnealedLangevin(repeats=2000, step=0.1).plan(EDM(), times)
    assert affine(plan, oracle, 0.0, 25.0)[1] == pytest.approx(0.260501, abs=5e-7)
    assert affine(plan, oracle, 0.0, 25.0)[1] == pytest.approx(0.26 / (1 - 0.001 / 0.52), rel=1e-6)
    early = Plan(plan.steps[:-2000], 1)
    assert affine(early, oracle, 0.0, 25.0)[1] == pytest.approx(1.25 / (1 - 0.1 / 2.5), rel=1e-9)


def test_annealed_langevin_by_monte_carlo() -> None:
    """sample() follows the recursion within 4 standard errors, and that law is wider than the data's (short runs)."""
    n, oracle = 20_000, gaussian(VP(), 0.7, 0.25)
    solver, levels = AnnealedLangevin(repeats=10, step=0.2), VP().time(torch.tensor([-3.0, -1.0, 0.5, 1.5], dtype=F64))
    mean, var = affine(solver.plan(VP(), levels), oracle, 0.0, 1.0)
    x = sample(oracle, n=n, solver=solver, grid=levels, seed=3, dtype=F64)
    assert abs(float(x.mean()) - mean) < 4 * math.sqrt(var / n)
    assert abs(float(x.var()) - var) < 4 * var * math.sqrt(2 / n)
    (right,) = oracle.moments(float(levels[-1]))[1]
    assert var - right > 8 * var * math.sqrt(2 / n)


def test_short_runs_of_annealed_langevin_mix_too_little() -> None:
    """10 levels 1 .. .01, 100 steps, eta = 1e-5 at the last, N(.7, .25): variance .2654 where .2501 is right."""
    oracle = gaussian(EDM(), 0.7, 0.25)
    times = torch.logspace(0, -2, 10, dtype=F64)
    got = affine(AnnealedLangevin().plan(EDM(), times), oracle, 0.0, 1.0)
    assert got[1] == pytest.approx(0.2654, abs=6e-4)


def test_annealed_langevin_is_the_same_in_every_process() -> None:
    """Levels of equal sigma / alpha, states of equal x / alpha, the same draws: the same x / alpha."""
    rho = torch.logspace(0.5, -1.5, 4, dtype=F64)
    start, results = torch.linspace(-3, 3, 6, dtype=F64).reshape(3, 2), []
    for process in (EDM(), VP(), Flow(), Trig()):
        times = process.time(-rho.log())
        plan = AnnealedLangevin(repeats=3, step=0.3).plan(process, times)
        x = execute(plan, mixture(process), start * process.alpha(times[0]), draw=draws((3, 2)))
        results.append(x / process.alpha(times[-1]))
    for other in results[1:]:
        assert float((other - results[0]).abs().max()) < 1e-11


def test_mode_weights_need_annealing() -> None:
    """1/5 at (-5, -5), 4/5 at (5, 5), start uniform on [-8, 8]^2: annealed near 78 per cent, one level near 51."""
    data = GaussianMixture([0.2, 0.8], [[-5.0, -5.0], [5.0, 5.0]], [[1.0, 1.0], [1.0, 1.0]])
    denoiser = data.denoiser(EDM())
    start = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)) * 16 - 8
    levels = torch.logspace(math.log10(20), -1, 10, dtype=F64)
    annealed = sample(denoiser, x=start, solver=AnnealedLangevin(), grid=levels)
    one = sample(denoiser, x=start, solver=AnnealedLangevin(repeats=300), grid=torch.tensor([1.0, 0.0]))
    assert float((annealed.sum(1) > 0).float().mean()) == pytest.approx(0.782, abs=0.05)
    assert float((one.sum(1) > 0).float().mean()) == pytest.approx(0.508, abs=0.05)


class Remembering(Solver):
    """A two-step method: the second step reads what the first evaluated."""

    slots = 2

    def plan(self, process: Process, times: Tensor) -> Plan:
        a, b, c = times.tolist()
        first = Step(a, b, (evaluate(a, "noise", keep=0),), ((("x", 0), 1.0), (("m", 0), 0.1)))
        second = Step(b, c, (evaluate(b, "noise", keep=1),), ((("x", 0), 1.0), (("m", 0), 0.1), (("m", 1), 0.1)))
        return Plan((first, second), 2)


def test_what_is_refused() -> None:
    up, down = torch.tensor([0.1, 0.5], dtype=F64), torch.tensor([1.0, 0.5], dtype=F64)
    for solver in (PredictorCorrector("ddim"), AnnealedLangevin()):
        with pytest.raises(ConfigError, match="towards the data only"):
            solver.plan(VP(), up)
    for solver in (PredictorCorrector("heun"), AnnealedLangevin()):
        where: Any = Trig() if isinstance(solver, AnnealedLangevin) else Flow()
        if isinstance(solver, AnnealedLangevin):
            with pytest.raises(ConfigError, match="start at"):
                solver.plan(where, down * where.T)
        else:
            solver.plan(where, down)  # Heun in t starts anywhere
    with pytest.raises(ConfigError, match="start at"):
        PredictorCorrector(EulerMaruyama()).plan(Flow(), down)
    with pytest.raises(ConfigError, match="earlier steps"):
        PredictorCorrector(Remembering()).plan(VP(), torch.tensor([1.0, 0.5, 0.1], dtype=F64))
    PredictorCorrector(Heun("rho")).plan(VP(), down)
    for bad in ({"snr": 0.0}, {"corrections": 0}, {"norms": "batch"}, {"predictor": "vp"}):
        with pytest.raises(ConfigError):
            PredictorCorrector(**bad)
    for bad in ({"step": 2.0}, {"step": 0.0}, {"repeats": 0}):
        with pytest.raises(ConfigError):
            AnnealedLangevin(**bad)


def test_solvers_within_solvers() -> None:
    """Only plain plans can be taken apart; a number of steps of the solver's own is passed on, or refused."""
    for inner in (Taylor(2), Adaptive(), Picard(), Picard(trapezoid=True)):
        for make, field in ((PredictorCorrector, "predictor"), (Restart, "solver"), (Picard, "solver")):
            with pytest.raises(
                ConfigError, match=rf"{make.__name__}.{field}: given {type(inner).__name__}.*plain plans"
            ):
                make(**{field: inner})
    oracle, one = mixture(VP()), DPM(order=1, nfe=8)
    for solver, inner in ((PredictorCorrector(DPM(nfe=8)), DPM(nfe=8)), (Picard(one), one)):
        assert all(solver.fixed_steps(zero) == inner.fixed_steps(zero) for zero in (True, False))
        assert torch.isfinite(sample(oracle, n=2, solver=solver)).all()
        with pytest.raises(ConfigError, match="leave steps out"):
            sample(oracle, n=2, solver=solver, steps=11)
    assert Picard().fixed_steps(True) is None and PredictorCorrector().fixed_steps(True) is None
    with pytest.raises(ConfigError, match="Restart.solver: .*steps is its own"):
        Restart(DPM(nfe=8))
