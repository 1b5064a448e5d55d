"""Laws of the training time against scipy's truncated normal, their own densities, and exact counts."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import kstest, truncnorm
from torch import Tensor

from fokker import noise
from fokker.errors import ConfigError
from fokker.objectives import Denoising, LogitNormal, LogNormal, TimeLaw, UniformTimes
from fokker.prediction import READINGS, Prediction
from fokker.process import EDM, OU, VP, DiscreteVP, Flow, Process, Trig

F64 = torch.float64
PROCESSES: dict[str, Process] = {"flow": Flow(), "vp": VP(), "edm": EDM(), "ou": OU(horizon=3.0), "trig": Trig()}
LAWS: dict[str, Any] = {
    "uniform": UniformTimes(),
    "logit-normal": LogitNormal(0.4, 0.8),
    "logit-wide": LogitNormal(-1.0, 2.5),
    "log-normal": LogNormal(),
    "log-shifted": LogNormal(0.6, 0.7),
}


class Gaussian:
    """The exact denoiser of N(0, var), read as velocity; remembers what it was asked."""

    shape = (1,)
    lam_range = (-math.inf, math.inf)
    reading = READINGS["velocity"]

    def __init__(self, process: Process, var: float = 1.0) -> None:
        self.process, self.var = process, var

    def __call__(self, x: Tensor, s: Any, cond: Any = None) -> Prediction:
        self.s = s
        p = self.process
        a, sig = p.alpha(s), p.sigma(s)
        slope = (p.d_alpha(s) * a * self.var + p.d_sigma(s) * sig) / (a**2 * self.var + sig**2)
        return Prediction(p, x, s, velocity=slope.reshape(-1, *[1] * (x.ndim - 1)) * x)


def cdf(law: TimeLaw, process: Process, t: Any) -> Any:
    """P(time <= t), from scipy alone."""
    t = torch.as_tensor(t, dtype=F64)
    if isinstance(law, UniformTimes):
        return ((t - process.t_min) / (process.T - process.t_min)).numpy()

    def score(t: Tensor) -> Any:
        if isinstance(law, LogitNormal):
            return (((t / process.T).log() - (1 - t / process.T).log() - law.mean) / law.std).numpy()
        assert isinstance(law, LogNormal)
        return (((process.sigma(t) / process.alpha(t)).log() - law.mean) / law.std).numpy()

    low, high = (float(score(torch.tensor(end, dtype=F64))) for end in (process.t_min, process.T))
    return truncnorm.cdf(score(t), low, high)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("law", LAWS)
def test_quantile_inverts_the_truncated_law(law: str, name: str) -> None:
    process, u = PROCESSES[name], torch.linspace(0.001, 0.999, 41, dtype=F64)
    t = LAWS[law].quantile(process, u)
    assert t.dtype == F64 and (t >= process.t_min).all() and (t <= process.T).all() and (t.diff() > 0).all()
    # Trig's alpha keeps 1e-17 at T, so the law ends there at a finite score: nothing of it is left beyond.
    assert torch.allclose(torch.as_tensor(cdf(LAWS[law], process, t)), u, rtol=1e-9, atol=1e-11)
    ends = LAWS[law].quantile(process, torch.tensor([0.0, 1.0], dtype=F64))
    assert torch.allclose(ends, torch.tensor([process.t_min, process.T], dtype=F64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("law", LAWS)
def test_density_is_the_derivative_of_the_distribution(law: str, name: str) -> None:
    process, chosen = PROCESSES[name], LAWS[law]
    u = torch.linspace(0.02, 0.98, 25, dtype=F64)
    density = chosen.density(process, chosen.quantile(process, u))
    h = 1e-4
    step = [chosen.quantile(process, u + j * h) for j in (-2, -1, 1, 2)]
    slope = (step[0] - 8 * step[1] + 8 * step[2] - step[3]) / (12 * h)
    assert torch.allclose(density * slope, torch.ones_like(u), rtol=1e-6, atol=0)
    # Its integral, by Gauss-Legendre on cells that hold even the tails' last millionth.
    tail = torch.tensor([1e-6, 1e-4, 1e-2], dtype=F64)
    cuts = chosen.quantile(process, torch.cat([tail, torch.linspace(0.05, 0.95, 19, dtype=F64), 1 - tail.flip(0)]))
    cuts = torch.cat([torch.tensor([process.t_min]), cuts, torch.tensor([process.T])]).double()
    nodes, weights = (torch.from_numpy(c) for c in np.polynomial.legendre.leggauss(40))
    half = cuts.diff()[:, None] / 2
    t = (cuts[:-1, None] + half * (1 + nodes)).flatten()
    total = (half * weights * chosen.density(process, t).reshape(len(half), -1)).sum()
    assert math.isclose(total, 1.0, abs_tol=2e-6)


def test_known_values() -> None:
    half = torch.tensor([0.5], dtype=F64)
    assert LogitNormal().quantile(Flow(t_min=1e-12), half).item() == pytest.approx(0.5, abs=1e-11)
    assert LogNormal().quantile(EDM(1e-12, 1e12), half).item() == pytest.approx(math.exp(-1.2), rel=1e-9)
    assert LogNormal().mean == -1.2 and LogNormal().std == 1.2 and LogitNormal() == LogitNormal(0.0, 1.0)
    # N(0, 1) at 0 is 1/sqrt(2 pi); d logit / dt at 1/2 is 4, d log t / dt at e^-1.2 is e^1.2
    assert LogitNormal().density(Flow(t_min=1e-12), half).item() == pytest.approx(4 / math.sqrt(2 * math.pi), rel=1e-9)
    at = torch.tensor([math.exp(-1.2)], dtype=F64)
    expected = math.exp(1.2) / (1.2 * math.sqrt(2 * math.pi))
    assert LogNormal().density(EDM(1e-12, 1e12), at).item() == pytest.approx(expected, rel=1e-9)
    assert UniformTimes().density(OU(horizon=3.0), half).item() == pytest.approx(1 / 2.999, rel=1e-14)
    for base in (TimeLaw().quantile, TimeLaw().density):
        with pytest.raises(NotImplementedError):
            base(Flow(), half)
    for cls in (LogitNormal, LogNormal):
        with pytest.raises(ConfigError, match="std"):
            cls(std=0.0)


def test_densities_are_finite_at_the_last_time_drawn() -> None:
    """logit(t / T) ~ N(1, .5^2) at t = T (1 - 2^-50), beyond which u -> 1 does not come."""
    law, u = LogitNormal(1.0, 0.5), torch.tensor([1.0 - 2.0**-53, 1.0], dtype=F64)
    for process in (Flow(t_min=1e-12), VP(t_min=1e-12)):
        t = law.quantile(process, u)
        found = law.density(process, t)
        assert bool(found.isfinite().all()) and float(t[1]) == process.T * (1.0 - 2.0**-50)
        z = (50.0 * math.log(2.0) - 1.0) / 0.5
        want = math.exp(50.0 * math.log(2.0) - 0.5 * z**2) / (0.5 * math.sqrt(2.0 * math.pi) * process.T)
        assert float(found[1]) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("name", ["flow", "edm"])
@pytest.mark.parametrize("law", LAWS)
def test_the_objective_draws_from_the_law(law: str, name: str) -> None:
    process, chosen, n = PROCESSES[name], LAWS[law], 4000
    oracle = Gaussian(process)
    t = Denoising(times=chosen).terms(oracle, torch.randn(n, 1, dtype=F64), seed=11).t
    assert t is oracle.s
    assert kstest(cdf(chosen, process, t), "uniform").pvalue > 1e-3
    u = torch.linspace(0, 1, 20002, dtype=F64)[1:-1]
    exact = chosen.quantile(process, u)
    assert abs(float(t.mean() - exact.mean())) < 4 * float(exact.std()) / math.sqrt(n)


@pytest.mark.parametrize("steps", [2, 7, 1000])
def test_levels_are_the_integers_each_as_likely(steps: int) -> None:
    process, law = DiscreteVP(steps=steps), UniformTimes(levels=True)
    fine = (torch.arange(7 * steps, dtype=F64) + 0.5) / (7 * steps)
    n = law.quantile(process, fine) * steps
    assert torch.equal(n.round().long().bincount(), torch.tensor([0] + [7] * steps))
    assert torch.equal(n.round() / steps, law.quantile(process, fine))
    ends = torch.tensor([0.0, 1.0 - 2.0**-33, 1.0], dtype=F64)
    assert law.quantile(process, ends).tolist() == [1 / steps, 1.0, 1.0]
    stratified = Denoising.ddpm(stratified=True).terms(Gaussian(process), torch.zeros(steps, 1, dtype=F64)).t
    assert torch.equal(stratified, torch.arange(1, steps + 1, dtype=F64) / steps)
    assert law.density(process, stratified).tolist() == [1.0 / process.T] * steps  # of cells (0, T], not (t_min, T]


def test_levels_mean_nothing_to_a_continuous_process_or_when_off() -> None:
    u = torch.linspace(0.01, 0.99, 9, dtype=F64)
    assert torch.equal(UniformTimes(levels=True).quantile(Flow(), u), UniformTimes().quantile(Flow(), u))
    process = DiscreteVP(steps=10)
    assert torch.allclose(UniformTimes().quantile(process, u), 0.1 + 0.9 * u, rtol=1e-14)


@pytest.mark.parametrize("law", LAWS)
def test_stratified_times_are_one_in_each_slice(law: str) -> None:
    process, n = PROCESSES["vp"], 64
    x0 = torch.zeros(n, 1, dtype=F64)
    t = Denoising(times=LAWS[law], stratified=True).terms(Gaussian(process), x0, seed=2).t
    edges = LAWS[law].quantile(process, torch.linspace(0, 1, n + 1, dtype=F64))
    assert (t > edges[:-1]).all() and (t < edges[1:]).all()
    u = noise.uniform(2, torch.arange(n), (), draw=1, domain="training", dtype=F64)
    assert torch.equal(t, LAWS[law].quantile(process, (torch.arange(n) + u) / n))
    again = Denoising(times=LAWS[law], stratified=True).terms(Gaussian(process), x0, seed=3).t
    assert not torch.equal(t, again)  # drawn inside the slices, not their middles
    part = Denoising(times=LAWS[law], stratified=True).terms(
        Gaussian(process), x0[:16], seed=2, positions=torch.arange(16, 32), total=n
    )
    assert torch.equal(part.t, t[16:32])


def test_replace_gives_the_same_integral_whatever_proposes() -> None:
    # int_{t_min}^1 Var(eps - x0 | x_t) dt, N(0, s^2) data: s (atan(..) - ..), by quadrature of s^2/((1-t)^2 s^2 + t^2)
    s2, n, dim = 0.49, 4000, 8
    process = Flow()
    truth = quad(lambda t: s2 / ((1 - t) ** 2 * s2 + t**2), process.t_min, 1)[0]
    x0 = math.sqrt(s2) * noise.normal(4, torch.arange(n), (dim,), dtype=F64)
    spreads = []
    for law in (UniformTimes(), LogitNormal(0.0, 1.2), LogNormal(-0.5, 2.0), LogitNormal(0.8, 2.0)):
        loss = Denoising(times=law, density="replace").terms(Gaussian(process, s2), x0, seed=6).loss
        se = float(loss.std()) / math.sqrt(n)
        assert abs(float(loss.mean()) - truth) < 4 * se, law
        spreads.append(se)
        multiplied = Denoising(times=law, density="multiply").terms(Gaussian(process, s2), x0, seed=6)
        assert torch.allclose(multiplied.loss, loss * law.density(process, multiplied.t), rtol=1e-12, atol=0)
    assert all(abs(a / b - 1) > 0.1 for i, a in enumerate(spreads) for b in spreads[:i])
    # stratified: the same mean, and much nearer to it
    errors = []
    for stratified in (False, True):
        objective = Denoising(times=LogitNormal(), density="multiply", stratified=stratified)
        means = [float(objective(Gaussian(process, s2), x0[:100], seed=k)) for k in range(60)]
        errors.append(torch.tensor(means).std())
    assert errors[1] < errors[0]


def test_a_law_far_below_the_process_is_refused_or_truncated_to_its_clean_end() -> None:
    law, u = LogNormal(-20.0, 0.5), torch.tensor([0.1, 0.5, 0.9], dtype=F64)
    try:
        t = law.quantile(Flow(), u)
    except ConfigError:
        return
    assert (t < 0.0015).all() and torch.isfinite(law.density(Flow(), t)).all()
