"""Stochastic solvers on Gaussian data: the law of every plan is propagated exactly, and once drawn by Monte Carlo."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fokker.errors import ConfigError
from fokker.prediction import Prediction
from fokker.process import EDM, VP, DiscreteVP, Flow, Linear, Process, Trig
from fokker.sampling import sample
from fokker.solvers import (
    DDIM,
    Ancestral,
    EDMStochastic,
    EulerMaruyama,
    Heun,
    Karras,
    Plan,
    PredictorCorrector,
    Restart,
    Solver,
    UniformLam,
    UniformT,
    as_grid,
)

from .oracle import F64, execute, gaussian, law, quantile_starts, slopes


def ou3() -> Process:
    """VP with beta = 1 on [0, 3], the testbed of the published numbers."""
    return Linear(lambda t: -0.5 + 0.0 * t, lambda t: 1.0 + 0.0 * t, 3.0)


def moments(solver: Solver, process: Process, mean: float, var: float, times: Tensor) -> tuple[float, float]:
    """What the plan makes of the exact law at its start, for data N(mean, var)."""
    oracle = gaussian(process, mean, var)
    m, v = oracle.moments(float(times[0]))
    return law(solver.plan(process, times), oracle, float(m[0]), float(v[0]))


@pytest.mark.parametrize(
    ("eta", "mean", "var"),
    [(0.0, -0.00232, 0.00254), (0.5, -0.00185, 0.00289), (1.0, -0.00106, 0.00446), (2.0, -0.00032, 0.01168)],
)
def test_euler_maruyama_has_weak_order_1_for_every_eta(eta: float, mean: float, var: float) -> None:
    """N(2, .25), uniform t from 3 to 0 (1e-9): N = 320 gives .00106 and .0045 at eta = 1 (inventory)."""
    process, gaps = ou3(), []
    for n in (160, 320):
        times = UniformT().times(process, n, 3.0, 1e-9, False)
        m, v = moments(EulerMaruyama(eta=eta), process, 2.0, 0.25, times)
        gaps.append((m - 2.0, v - 0.25))
    assert gaps[-1] == pytest.approx((mean, var), abs=6e-6)
    for k in range(2):
        assert slopes([abs(g[k]) for g in gaps]) == pytest.approx([1.0], abs=0.15)


def test_eta_may_be_any_function_of_time() -> None:
    """Every eta(t) >= 0 keeps the marginals: the limit is the data's law, the errors of first order; a step by hand."""
    process, times = ou3(), torch.linspace(3.0, 1e-9, 41, dtype=F64)
    for eta in (lambda t: (t / 3.0).sqrt(), lambda t: 2.0 * (t > 1.0), lambda t: 1.0 + (5.0 * t).sin()):
        gaps = []
        for n in (320, 640):
            grid = UniformT().times(process, n, 3.0, 1e-9, False)
            m, v = moments(EulerMaruyama(eta=eta), process, 2.0, 0.25, grid)
            gaps.append((abs(m - 2.0), abs(v - 0.25)))
        assert max(gaps[-1]) < 0.01
        for k in range(2):
            assert slopes([g[k] for g in gaps]) == pytest.approx([1.0], abs=0.2)
        solver = EulerMaruyama(eta=eta)
        assert solver.stochastic and solver.open_start
        steps = solver.plan(process, times).steps
        for n in (0, 7, 33):  # each step is that of its own constant
            alone = EulerMaruyama(eta=float(eta(times[n]))).plan(process, times[n : n + 2]).steps[0]
            assert steps[n].out == alone.out and steps[n].draws == alone.draws
    assert EulerMaruyama(eta=lambda t: 0.5).plan(process, times) == EulerMaruyama(eta=0.5).plan(process, times)
    for wrong in (lambda t: t - 2.0, lambda t: t * math.inf, lambda t: t * math.nan):
        with pytest.raises(ConfigError, match=r"EulerMaruyama\.eta: gives .* must be 0 or above"):
            EulerMaruyama(eta=wrong).plan(process, times)


def test_the_unflipped_drift_fails() -> None:
    """Anderson's drift with its sign not turned gives (-16.3, 528) where (2, .25) is right."""
    process = ou3()
    oracle = gaussian(process, 2.0, 0.25)
    plan = EulerMaruyama().plan(process, UniformT().times(process, 250, 3.0, 1e-9, False))
    m, v = (float(c[0]) for c in oracle.moments(3.0))
    assert _affine(plan, oracle, m, v) == pytest.approx((2.0, 0.25), abs=8e-3)
    wrong = Plan(tuple(replace(s, out=_flipped(s.out)) for s in plan.steps), plan.slots)
    assert _affine(wrong, oracle, m, v) == pytest.approx((-16.3, 528.0), rel=0.08)


def _flipped(out: Any) -> Any:
    return tuple((r, 2.0 - c if r[0] == "x" else -c if r[0] == "m" else c) for r, c in out)


def _affine(plan: Plan, oracle: Any, mean: float, var: float) -> tuple[float, float]:
    """`law` for one-stage plans that ask for x0: a recursion of two numbers."""
    v0, m0 = oracle.variances[0], oracle.means[0]
    for step in plan.steps:
        on = dict(step.out)
        a, s = float(oracle.process.alpha(step.start)), float(oracle.process.sigma(step.start))
        gain = a * v0 / (a * a * v0 + s * s)
        scale = on.get(("x", 0), 0.0) + on["m", 0] * gain
        mean = scale * mean + on["m", 0] * (m0 - gain * a * m0)
        var = scale**2 * var + on.get(("z", 0), 0.0) ** 2
    return mean, var


@pytest.mark.parametrize("process", [VP(), EDM(), Flow(), Trig()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(
    "solver", [EulerMaruyama(), EulerMaruyama(eta=0.5), DDIM(eta=0.5), Ancestral(), Ancestral("forward")]
)
def test_weak_order_1_in_any_process(process: Process, solver: Solver) -> None:
    """Uniform lam from .98 T (alpha > 0 everywhere) to 1e-3 T, data N(.7, .25)."""
    start, stop, gaps = 0.98 * process.T, 1e-3 * process.T, []
    m, v = (float(c[0]) for c in gaussian(process, 0.7, 0.25).moments(stop))
    for n in (96, 192):
        got = moments(solver, process, 0.7, 0.25, UniformLam().times(process, n, start, stop, False))
        gaps.append((abs(got[0] - m), abs(got[1] - v)))
    assert slopes([g[1] for g in gaps]) == pytest.approx([1.0], abs=0.15), gaps
    assert gaps[-1][1] < 0.1 * v
    assert gaps[-1][0] < 0.02 * m


def test_euler_maruyama_against_its_own_formula() -> None:
    """x + h (velocity - eta^2/2 g^2 score) + eta g sqrt(-h) z, on states and draws of our own."""
    for process in (VP(), EDM(), Flow(), Trig()):
        oracle, T = gaussian(process, 0.7, 0.25), process.T
        s, t = 0.6 * T, 0.55 * T
        x, z = quantile_starts(oracle, s), torch.linspace(1, -1, 13, dtype=F64)[:, None]
        p = oracle(x, s)
        for eta in (0.0, 0.5, 1.0, 2.0):
            plan = EulerMaruyama(eta=eta).plan(process, torch.tensor([s, t], dtype=F64))
            got = execute(plan, oracle, x, draw=lambda n, k, z=z: z)
            g2 = process.g2(s)
            want = x + (t - s) * (p.velocity - 0.5 * eta**2 * g2 * p.score) + eta * (g2 * (s - t)).sqrt() * z
            assert float((got - want).abs().max()) < 1e-13 * T
            assert plan.steps[0].draws == (1 if eta else 0)


def test_ancestral_on_the_ddpm_chain() -> None:
    """Ho's schedule, 1000 levels, N(.7, .25) from N(0, 1): .246125 (posterior) and .250752 (forward)."""
    process = DiscreteVP()
    oracle = gaussian(process, 0.7, 0.25)
    for variance, want in (("posterior", 0.246125), ("forward", 0.250752)):
        times = UniformT().times(process, 1000, 1.0, process.t_min, True)
        plan = Ancestral(variance=variance).plan(process, times)
        assert plan.nfe == 1000
        assert _affine(plan, oracle, 0.0, 1.0) == pytest.approx((0.699993, want), abs=6e-7)


def test_ancestral_has_weak_order_1_in_the_number_of_levels() -> None:
    """Variance error, N(.7, .25), betas scaled by 1000 / L: the forward variance's slope is soon 1, and the
    posterior's creeps up to it, .72 from 25 to 50 levels and .96 from 1600 to 3200."""
    for pair, posterior, forward in (((25, 50), 0.722, 1.131), ((1600, 3200), 0.959, 1.001)):
        for variance, want in (("posterior", posterior), ("forward", forward)):
            gaps = []
            for levels in pair:
                process = DiscreteVP(steps=levels)
                times = UniformT().times(process, levels, 1.0, process.t_min, True)
                plan = Ancestral(variance=variance).plan(process, times)
                gaps.append(_affine(plan, gaussian(process, 0.7, 0.25), 0.0, 1.0)[1] - 0.25)
            assert gaps[1] < 0 if variance == "posterior" else gaps[1] > 0
            assert slopes([abs(gap) for gap in gaps]) == pytest.approx([want], abs=2e-3)


def test_ancestral_against_the_chains_own_formula() -> None:
    """mu = (x - beta / sqrt(1 - abar) eps) / sqrt(1 - beta); variances beta-tilde and beta (Ho et al. 2020)."""
    process = DiscreteVP(steps=1000)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=F64)
    abar = (1 - betas).cumprod(0)
    oracle = gaussian(process, 0.7, 0.25)
    x, z = quantile_starts(oracle, 0.5), torch.linspace(1, -1, 13, dtype=F64)[:, None]
    for n in (1000, 500, 2):  # the level, 1-based
        beta, now, before = betas[n - 1], abar[n - 1], abar[n - 2]
        eps = oracle(x, n / 1000).noise
        mu = (x - beta / (1 - now).sqrt() * eps) / (1 - beta).sqrt()
        for variance, var in (("posterior", beta * (1 - before) / (1 - now)), ("forward", beta)):
            plan = Ancestral(variance=variance).plan(process, torch.tensor([n, n - 1], dtype=F64) / 1000)
            got = execute(plan, oracle, x, draw=lambda n, k: z)
            assert float((got - mu - var.sqrt() * z).abs().max()) < 2e-13


def test_ancestral_under_disperses_and_the_mean_is_exact() -> None:
    """N(1, .5), VP, exact start, uniform t to 0: -.143, -.086, -.048, -.026, -.014 at N = 25 .. 400."""
    process, got = VP(), []
    for n in (25, 50, 100, 200, 400):
        m, v = moments(Ancestral(), process, 1.0, 0.5, UniformT().times(process, n, 1.0, 1e-3, True))
        assert m == pytest.approx(1.0, abs=1e-13)
        got.append(v - 0.5)
    assert got == pytest.approx([-0.143, -0.086, -0.048, -0.026, -0.014], abs=2e-3)


class Spread:
    """An exact denoiser that also says a variance, as a network with a learned variance does."""

    def __init__(self, process: Process, said: float, dtype: torch.dtype = F64) -> None:
        self.inner, self.said = gaussian(process, 0.7, 0.25), said
        self.process, self.shape, self.lam_range, self.reading = process, (1,), self.inner.lam_range, None

    def __call__(self, x: Tensor, s: float | Tensor, cond: Any = None) -> Prediction:
        x0, noise = self.inner.pair(x, s)
        return Prediction(self.process, x, s, x0=x0, noise=noise, variance=torch.full_like(x, self.said))


@pytest.mark.parametrize("said", [-1.0, -0.2, 0.0, 0.6, 1.0])
def test_learned_variance_is_log_linear(said: float) -> None:
    """log c^2 = w log beta + (1 - w) log beta-tilde with w = (v + 1) / 2 (Nichol & Dhariwal 2021, Eq. 15)."""
    process, st = VP(), torch.tensor([0.5, 0.4], dtype=F64)
    x, z = torch.linspace(-1, 1, 5, dtype=F64)[:, None], torch.ones(5, 1, dtype=F64)
    denoiser = Spread(process, said)
    plans = [Ancestral(v).plan(process, st) for v in ("posterior", "learned")]
    means = [execute(plan, denoiser, x, draw=lambda n, k: 0 * z) for plan in plans]
    assert float((means[0] - means[1]).abs().max()) == 0.0
    got = execute(Ancestral("learned").plan(process, st), denoiser, x, draw=lambda n, k: z) - means[1]
    low, high = (Ancestral(v).plan(process, st).steps[0].out[-1][1] for v in ("posterior", "forward"))
    w = (said + 1) / 2
    want = math.exp(w * math.log(high) + (1 - w) * math.log(low))
    assert got.tolist() == [[pytest.approx(want, abs=1e-14)]] * 5


def test_learned_variance_needs_a_network_that_says_one() -> None:
    plan = Ancestral("learned").plan(VP(), torch.tensor([0.5, 0.4], dtype=F64))
    x = torch.ones(2, 1, dtype=F64)
    with pytest.raises(ConfigError, match="learned_variance"):
        execute(plan, gaussian(VP()), x, draw=lambda n, k: x)


def churned_law(process: Process, v0: float, times: list[float], var: float, churn: EDMStochastic) -> float:
    """Karras' Algorithm 2 on N(0, v0) by hand in y = x / alpha, noise level rho = sigma / alpha."""

    def rho(t: float) -> float:
        return float(process.sigma(t) / process.alpha(t))

    steps = len(times) - 1
    var = var / float(process.alpha(times[0])) ** 2
    for s, t in itertools.pairwise(times):
        level = rho(s)
        inside = churn.S_tmin <= level <= churn.S_tmax
        hat = level * (1.0 + (min(churn.S_churn / steps, math.sqrt(2.0) - 1.0) if inside else 0.0))
        var += churn.S_noise**2 * (hat**2 - level**2)
        if t == 0.0:
            return var * (v0 / (v0 + hat**2)) ** 2
        h, d1 = rho(t) - hat, hat / (v0 + hat**2)  # d = noise(y) / y
        d2 = rho(t) / (v0 + rho(t) ** 2) * (1.0 + h * d1)
        var *= (1.0 + 0.5 * h * (d1 + d2)) ** 2
    return var * float(process.alpha(times[-1])) ** 2


@pytest.mark.parametrize("to_zero", [True, False])
@pytest.mark.parametrize("process", [EDM(), VP(), Trig()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(
    "churn",
    [
        EDMStochastic(),
        EDMStochastic(S_churn=4.0, S_tmin=0.0, S_noise=1.0),
        EDMStochastic(S_churn=200.0, S_tmin=0.3, S_tmax=2.0, S_noise=1.1),
    ],
    ids=["default", "little", "capped"],
)
def test_churn_against_the_variance_recursion_by_hand(process: Process, churn: EDMStochastic, to_zero: bool) -> None:
    start = 0.9 * process.T
    times = Karras().times(process, 16, start, process.t_min, to_zero)
    got = moments(churn, process, 0.0, 0.25, times)
    v = float(gaussian(process, 0.0, 0.25).moments(start)[1][0])
    assert got[1] == pytest.approx(churned_law(process, 0.25, times.tolist(), v, churn), rel=1e-11)
    assert got[0] == 0.0


def test_churn_tends_to_the_data() -> None:
    """With S_noise = 1 and S_churn growing with N (gamma fixed at .1 N / N): weak convergence of the variance."""
    gaps = []
    for n in (64, 128, 256):
        times = Karras().times(EDM(), n, 80.0, 0.002, True)
        churn = EDMStochastic(S_churn=20.0, S_tmin=0.0, S_tmax=1e3, S_noise=1.0)
        gaps.append(abs(churned_law(EDM(), 0.25, times.tolist(), 80.0**2 + 0.25, churn) - 0.25))
    assert gaps[-1] < 2e-3 and min(slopes(gaps)) > 0.8, gaps


def test_no_churn_is_heun_in_rho() -> None:
    for process in (EDM(), VP(), Flow()):
        oracle = gaussian(process, 0.3, 0.25)
        start = 0.9 * process.T
        for to_zero in (True, False):
            times = Karras().times(process, 9, start, process.t_min, to_zero)
            x = quantile_starts(oracle, start)
            one, two = (execute(s.plan(process, times), oracle, x) for s in (EDMStochastic(S_churn=0.0), Heun("rho")))
            assert float((one - two).abs().max()) < 1e-14 * process.T
    assert EDMStochastic(S_churn=0.0).order == 2 and not EDMStochastic(S_churn=0.0).stochastic
    assert EDMStochastic().order == 1 and EDMStochastic().stochastic


@pytest.mark.parametrize(
    "process", [EDM(), VP(), DiscreteVP(steps=50), Flow(), DiscreteVP(steps=50, zero_terminal_snr=True)], ids=str
)
def test_churn_stops_at_the_end_of_the_process(process: Process) -> None:
    """Where the process ends before rho_hat, rho_hat is its end: no evaluation beyond T."""
    churn = EDMStochastic(S_churn=100.0, S_tmin=0.0, S_tmax=1e9, S_noise=1.0)
    times = Karras().times(process, 8, process.t_max, process.t_min, True)
    plan = churn.plan(process, times)
    asked = [stage.time for step in plan.steps for stage in step.stages if stage.time is not None]
    assert max(asked) <= process.T * (1 + 1e-12)
    assert all(math.isfinite(c) for step in plan.steps for stage in step.stages for _, c in stage.terms)
    if process.t_max < process.T:  # alpha(T) = 0: there is always room above t_max
        return
    # the first step starts at the end, where nothing can be added
    assert dict(plan.steps[0].stages[0].terms).get(("z", 0), 0.0) == pytest.approx(0.0, abs=1e-5 * process.T)


class Plane:
    """The exact denoiser of N(mean, cov) in two dimensions."""

    def __init__(self, process: Process, mean: Tensor, cov: Tensor) -> None:
        self.process, self.mean, self.cov = process, mean, cov
        self.shape, self.lam_range, self.reading = (2,), (-math.inf, math.inf), None

    def __call__(self, x: Tensor, s: float | Tensor, cond: Any = None) -> Prediction:
        a, sig = self.process.alpha(s), self.process.sigma(s)
        gap = torch.linalg.solve(a**2 * self.cov + sig**2 * torch.eye(2, dtype=F64), (x - a * self.mean).T).T
        return Prediction(self.process, x, s, x0=self.mean + a * gap @ self.cov, noise=sig * gap)


MEAN = torch.tensor([0.5, -1.0], dtype=F64)
COV = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=F64)


@pytest.mark.parametrize(
    ("process", "solver", "steps", "grid"),
    [
        (VP(), DDIM(eta=0.0), 12, "lam"),
        (VP(), DDIM(eta=0.5), 12, "lam"),
        (VP(), Ancestral(), 20, "t"),
        (Flow(), Ancestral("forward"), 20, "t"),
        (VP(), EulerMaruyama(), 60, "lam"),
        (Trig(), EulerMaruyama(eta=0.5), 60, "lam"),
        (EDM(), EDMStochastic(), 32, "karras"),
        (VP(), EDMStochastic(S_churn=6.0, S_tmin=0.0), 12, "lam"),
        (VP(), PredictorCorrector(norms="expected", corrections=2), 12, "lam"),
        (Flow(), PredictorCorrector("ddim", norms="expected", snr=0.3), 12, "lam"),
        (EDM(), Restart(), 18, "karras"),
        (VP(), Restart("ddim", ((0.1, 0.5, 2, 4), (1.0, 3.0, 1, 3))), 16, "lam"),
    ],
    ids=str,
)
def test_the_law_by_monte_carlo(process: Process, solver: Solver, steps: int, grid: str) -> None:
    """sample() in two dimensions: mean and covariance within 4 standard errors of the exact law of that very plan."""
    n = 20_000
    denoiser = Plane(process, MEAN, COV)
    x = sample(denoiser, n=n, solver=solver, steps=steps, grid=grid, seed=3, dtype=F64)
    values, turn = torch.linalg.eigh(COV)
    start = process.T if not (solver.open_start and float(process.alpha(process.T)) == 0.0) else process.t_max
    times = as_grid(grid).times(process, steps, start, process.t_min, True)
    prior = float(process.prior_std(float(times[0]))) ** 2
    laws = [
        law(solver.plan(process, times), gaussian(process, float(m), float(v)), 0.0, prior)
        for m, v in zip(MEAN @ turn, values, strict=True)
    ]
    mean = turn @ torch.tensor([m for m, _ in laws], dtype=F64)
    cov = turn @ torch.diag(torch.tensor([v for _, v in laws], dtype=F64)) @ turn.T
    got = torch.cov(x.T)
    assert ((x.mean(0) - mean).abs() < 4 * (cov.diagonal() / n).sqrt()).all()
    for i in range(2):
        for j in range(2):
            se = math.sqrt(float(cov[i, i] * cov[j, j] + cov[i, j] ** 2) / n)
            assert abs(float(got[i, j] - cov[i, j])) < 4 * se
    assert ((mean - MEAN).abs() < 0.05).all() and ((cov - COV).abs() < 0.25).all()  # and it is near the data


def test_fields_out_of_range_are_refused() -> None:
    for kind, wrong in (
        (EulerMaruyama, {"eta": -0.05}),
        (EDMStochastic, {"S_churn": -0.05}),
        (EDMStochastic, {"S_tmin": -0.05}),
        (EDMStochastic, {"S_tmax": 0.0}),
        (EDMStochastic, {"S_noise": 0.0}),
        (Ancestral, {"variance": "middle"}),
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            kind(**wrong)
    assert EulerMaruyama(eta=0.05).stochastic and EDMStochastic(S_churn=0.05, S_tmin=0.0, S_noise=0.05).stochastic


def test_stochastic_solvers_refuse_to_encode_and_to_start_at_alpha_0() -> None:
    up = torch.tensor([0.1, 0.5], dtype=F64)
    for solver in (Ancestral(), EulerMaruyama(), EDMStochastic(), DDIM(eta=1.0)):
        with pytest.raises(ConfigError, match="towards the data only"):
            solver.plan(Flow(), up)
    for solver in (EulerMaruyama(), EDMStochastic(), Heun("rho"), Heun("lam")):
        with pytest.raises(ConfigError, match="start at"):
            solver.plan(Flow(), torch.tensor([1.0, 0.5], dtype=F64))
    EulerMaruyama(eta=0.0).plan(Flow(), torch.tensor([1.0, 0.5], dtype=F64))
    EulerMaruyama(eta=0.0).plan(Flow(), up)
