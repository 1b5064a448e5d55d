"""The error budget: against Gaussian chains in closed form, quadrature, and Girsanov's limit."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import fokker as fk
from fokker import exact, noise
from fokker.denoiser import NetDenoiser
from fokker.errors import ConfigError
from fokker.likelihood import Budget, error_budget, path_kl
from fokker.nets import MLP
from fokker.process import EDM, VP, Flow, Process
from fokker.solvers import DDIM, Ancestral, EulerMaruyama, Heun, UniformLam

F64 = torch.float64
MEAN, VAR = 0.4, 0.3
LAW = exact.Gaussian([MEAN], [VAR])
MIXTURE = exact.GaussianMixture([0.4, 0.6], [[-1.0], [1.2]], [0.05, 0.2])


class Louder:
    """A score too large by a factor."""

    reading = None

    def __init__(self, inner: Any, factor: float) -> None:
        self.inner, self.factor, self.process, self.shape = inner, factor, inner.process, inner.shape
        self.lam_range = inner.lam_range

    def __call__(self, x: Tensor, s: Any, cond: Any = None) -> fk.Prediction:
        return fk.Prediction(self.process, x, s, noise=self.factor * self.inner(x, s, cond).noise)


def kl(mean_p: float, var_p: float, mean_q: float, var_q: float) -> float:
    return 0.5 * (var_p / var_q - 1.0 - math.log(var_p / var_q) + (mean_p - mean_q) ** 2 / var_q)


def steps_of(solver: Any, process: Process, s: float, t: float) -> tuple[float, float, float]:
    """x_t = A x + B x0_hat + c z by hand."""
    a, b, c = (float(v) for v in process.bridge(s, t))
    if isinstance(solver, Ancestral):
        return a, b, c if solver.variance == "posterior" else float(process.transition(t, s).std)
    f, g2 = float(process.f(s)), float(process.g2(s))
    alpha, sigma, h = float(process.alpha(s)), float(process.sigma(s)), t - s
    return 1 + h * (f + g2 / sigma**2), -h * g2 * alpha / sigma**2, math.sqrt(-h * g2)


def by_hand(solver: Any, process: Process, times: list[float], k: float) -> tuple[float, float, float, float]:
    """(prior, score, discretisation, KL of what is drawn) for LAW and a score k times too large."""

    def noised(t: float) -> tuple[float, float]:
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        return alpha * MEAN, alpha**2 * VAR + sigma**2

    mean, var = 0.0, float(process.prior_std(times[0])) ** 2
    prior, score, rest = kl(*noised(times[0]), mean, var), 0.0, 0.0
    for s, t in pairwise(times):
        alpha, sigma, (m, V) = float(process.alpha(s)), float(process.sigma(s)), noised(s)
        m_t, V_t = noised(t)
        forward = alpha / float(process.alpha(t))
        back = forward * V_t / V  # E[x_t | x_s] = m_t + back (x_s - m)
        width = V_t - back**2 * V
        A, B, c = steps_of(solver, process, s, t)
        # x0_hat = (x - sigma n) / alpha with n = k sigma (x - m) / V
        slopes = [A + B * (1.0 - factor * sigma**2 / V) / alpha for factor in (k, 1.0)]
        at_mean = A * m + B * m / alpha  # every score is 0 at the mean
        missed = [(back - slope) ** 2 * V + (m_t - at_mean) ** 2 for slope in slopes]
        total = 0.5 * (width / c**2 - 1.0 - math.log(width / c**2)) + 0.5 * missed[0] / c**2
        error = 0.5 * (slopes[0] - slopes[1]) ** 2 * V / c**2
        score, rest = score + error, rest + total - error
        mean, var = at_mean + slopes[0] * (mean - m), slopes[0] ** 2 * var + c * c
    return prior, score, rest, kl(*noised(times[-1]), mean, var)


@pytest.mark.parametrize("solver", [Ancestral(), Ancestral(variance="forward"), EulerMaruyama()], ids=str)
@pytest.mark.parametrize("process", [VP(), EDM(sigma_max=20.0), Flow()], ids=lambda p: type(p).__name__)
def test_gaussian_chains_in_closed_form(process: Process, solver: Any) -> None:
    times = UniformLam().times(process, 25, process.t_max, 10.0 * process.t_min, False).tolist()
    for factor in (1.0, 1.2):
        denoiser = Louder(LAW.denoiser(process), factor)
        found = error_budget(LAW, denoiser, solver=solver, grid=times, n=2000)
        *parts, drawn = by_hand(solver, process, times, factor)
        for part, wanted in zip((*found_parts(found), found.total), (*parts, sum(parts)), strict=True):
            assert abs(float(part.value) - wanted) <= 4.0 * float(part.stderr) + 1e-9 * abs(sum(parts))
            assert float(part.stderr) < 0.03 * sum(parts)
        assert sum(parts) >= drawn - 1e-12
        assert (factor == 1.0) == (float(found.score.value) < 1e-20)
        assert abs(float(sum(p.value for p in found_parts(found)) - found.total.value)) < 1e-12


def found_parts(budget: Budget) -> tuple[Any, Any, Any]:
    return budget.prior, budget.score, budget.discretisation


def test_many_steps_are_girsanov() -> None:
    """Spec 07: 0.0739553 + 0.0007752 = 0.0747305 for N(0, 0.3), VP beta 0.1..5, 1.2 times the score."""
    process, law = VP(beta_max=5.0), exact.Gaussian([0.0], [0.3])
    denoiser = Louder(law.denoiser(process), 1.2)
    grids = [UniformLam().times(process, n, 1.0, 1e-5, False) for n in (25, 50, 100)]
    found = [error_budget(law, denoiser, grid=times, n=300) for times in grids]
    rest = [float(budget.discretisation.value) for budget in found]
    assert 2.0 < rest[1] / rest[2] < 2.15 < rest[0] / rest[1] < 2.4
    assert abs(float(found[0].prior.value) - 0.0007752) < 1e-7 and float(found[0].prior.stderr) < 1e-12
    hands = [by_hand(Ancestral(), process, times.tolist(), 1.2)[1] for times in grids]  # the mean plays no part
    gaps = [hand - 0.0739553 for hand in hands]
    assert 2.0 < gaps[1] / gaps[2] < gaps[0] / gaps[1] < 2.4 and gaps[2] < 0.012
    for hand, budget in zip(hands, found, strict=True):
        assert abs(float(budget.score.value) - hand) < 4.0 * float(budget.score.stderr)
    girsanov = path_kl(law.denoiser(process), denoiser, law.sample(500, dtype=F64), draws=64)
    both = math.hypot(float(girsanov.stderr), float(found[2].score.stderr))
    assert abs(float(girsanov.value - found[2].score.value)) < 4.0 * both + gaps[2]


def test_each_part_is_zero_where_it_should_be() -> None:
    flow = Flow()
    start = [1.0, 0.7, 0.4, 0.1]
    whole = error_budget(MIXTURE, MIXTURE.denoiser(flow), grid=start)  # alpha(1) = 0: nothing is left at T
    assert abs(float(whole.prior.value)) < 1e-12 and float(whole.score.value) == 0.0
    assert float(whole.discretisation.value) > 0.1
    later = error_budget(MIXTURE, MIXTURE.denoiser(flow), grid=start[1:])
    assert float(later.prior.value) > 0.01
    point = exact.Gaussian([0.7], [0.0])  # of a point DDPM's small variance is the reversal's own, in any steps
    assert abs(float(error_budget(point, point.denoiser(flow), grid=start).discretisation.value)) < 1e-10
    large = error_budget(point, point.denoiser(flow), solver=Ancestral(variance="forward"), grid=start)
    assert float(large.discretisation.value) > 0.1


def test_from_pure_noise_by_information() -> None:
    """Eq. (5) on a normal law from alpha = 0: mmse = v / (1 + snr v), I = 1/2 log(1 + snr v), nothing random."""
    flow = Flow()
    times = torch.linspace(flow.T, flow.t_min, 7, dtype=F64)
    found = error_budget(LAW, LAW.denoiser(flow), solver=Ancestral(), grid=times, n=5)
    snr = [float(flow.alpha(t) / flow.sigma(t)) ** 2 for t in times.tolist()]
    assert snr[0] == 0.0
    wanted = sum(0.5 * (b - a) * VAR / (1.0 + a * VAR) for a, b in pairwise(snr)) - 0.5 * math.log(1.0 + snr[-1] * VAR)
    assert float(found.total.value) == pytest.approx(wanted, rel=1e-9)
    assert float(found.total.stderr) < 1e-9 * wanted


def test_every_time_has_noise_of_its_own() -> None:
    """Row by row: the score's part is 1/2 ((slope - slope*) (x_s - m_s) / c)^2 at states of draws 0, 1, 2, ..."""
    process, n, times = VP(), 6, [0.9, 0.6, 0.3, 0.1]
    x0, total = LAW.sample(n, 5, dtype=F64), torch.zeros(n, dtype=F64)
    for k, (s, t) in enumerate(pairwise(times)):
        alpha, sigma = float(process.alpha(s)), float(process.sigma(s))
        x = alpha * x0 + sigma * noise.normal(5, torch.arange(n), (1,), draw=k, domain="probe", dtype=F64)
        _, B, c = steps_of(Ancestral(), process, s, t)
        missed = B * 0.2 * sigma**2 / (alpha**2 * VAR + sigma**2) / alpha * (x - alpha * MEAN)
        total += 0.5 * (missed[:, 0] / c) ** 2
    found = error_budget(LAW, Louder(LAW.denoiser(process), 1.2), grid=times, n=n, seed=5).score
    assert float(found.value) == pytest.approx(float(total.mean()), rel=1e-10)
    assert float(found.stderr) == pytest.approx(float(total.std()) / math.sqrt(n), rel=1e-10)


def test_a_mixture_by_quadrature() -> None:
    """Eq. (5): the Riemann sum of the I-MMSE relation less its integral; the prior's divergence on a grid."""
    process = VP(beta_max=8.0)
    times = [1.0, 0.6, 0.3, 0.15, 0.05]
    x = torch.linspace(-9.0, 9.0, 6001, dtype=F64)[:, None]
    cell = 18.0 / 6000

    def at(t: float) -> tuple[float, float, float]:
        """(entropy, mmse, E|noise error|^2 of the louder denoiser) at t."""
        law, alpha, sigma = MIXTURE.at(process, t), float(process.alpha(t)), float(process.sigma(t))
        log_p = law.log_prob(x)
        p = log_p.exp() * cell
        s2 = float((p * law.score(x)[:, 0] ** 2).sum())
        return -float((p * log_p).sum()), (sigma / alpha) ** 2 * (1.0 - sigma**2 * s2), 0.04 * sigma**2 * s2

    snr = [math.exp(2.0 * float(process.lam(t))) for t in times]
    rows = [at(t) for t in times]
    gains = [b - a for a, b in pairwise(snr)]
    normal = 0.5 * math.log(2.0 * math.pi * math.e)
    first, last = (h - normal - math.log(float(process.sigma(t))) for h, t in ((rows[0][0], 1.0), (rows[-1][0], 0.05)))
    rest = sum(0.5 * g * mmse for g, (_, mmse, _) in zip(gains, rows, strict=False)) - (last - first)
    score = sum(0.5 * g * error / r for g, (_, _, error), r in zip(gains, rows, snr, strict=False))
    p = MIXTURE.at(process, 1.0).log_prob(x)
    prior = float((p.exp() * (p + 0.5 * x[:, 0] ** 2 + 0.5 * math.log(2.0 * math.pi))).sum()) * cell
    found = error_budget(MIXTURE, Louder(MIXTURE.denoiser(process), 1.2), grid=times, n=20_000, seed=3)
    for part, wanted in zip(found_parts(found), (prior, score, rest), strict=True):
        assert abs(float(part.value) - wanted) < 4.0 * float(part.stderr), (part, wanted)
        assert float(part.stderr) < 0.1 * wanted
    again = error_budget(MIXTURE, Louder(MIXTURE.denoiser(process), 1.2), grid=times, n=20_000, seed=3)
    assert torch.equal(again.total.value, found.total.value)
    # A standard error is the spread of repetitions.
    few = [error_budget(MIXTURE, Louder(MIXTURE.denoiser(process), 1.2), grid=times, n=200, seed=k) for k in range(40)]
    totals = torch.stack([budget.total.value for budget in few])
    ratio = float(totals.std()) / float(torch.stack([budget.total.stderr for budget in few]).square().mean().sqrt())
    assert 0.7 < ratio < 1.4


class Same:
    """x0_hat = x."""

    reading, shape, lam_range = None, (1,), (-math.inf, math.inf)

    def __init__(self, process: Process) -> None:
        self.process = process

    def __call__(self, x: Tensor, s: Any, cond: Any = None) -> fk.Prediction:
        return fk.Prediction(self.process, x, s, x0=x)


def test_networks_and_what_has_no_budget() -> None:
    process = Flow()
    denoiser = NetDenoiser(MLP(1, width=8, depth=1), process, shape=(1,))  # the velocity 0: x0_hat = x
    found = error_budget(LAW, denoiser, steps=8, grid="t", n=64)
    by_eye = error_budget(LAW, Same(process), steps=8, grid="t", n=64)
    for part, wanted in zip(found_parts(found), found_parts(by_eye), strict=True):
        torch.testing.assert_close(part.value, wanted.value, rtol=1e-5, atol=1e-9)
    assert float(found.score.value) > 0.01
    for solver in (DDIM(), Heun(), "dpm++"):
        with pytest.raises(ConfigError, match=r"solver: the step of .* is no Gaussian with one evaluation"):
            error_budget(LAW, denoiser, solver=solver, steps=4)
    with pytest.raises(ConfigError, match=r"from 0\.5 to 0 is no Gaussian"):
        error_budget(LAW, denoiser, grid=[0.9, 0.5, 0.0])
    with pytest.raises(ConfigError, match="n: given 1, must be 2 or more"):
        error_budget(LAW, denoiser, steps=4, n=1)
    with pytest.raises(ConfigError, match=r"denoiser: of events \(1,\), must be those of the law, \(2,\)"):
        error_budget(exact.Gaussian([0.0, 0.0], [1.0, 1.0]), denoiser, steps=4)
