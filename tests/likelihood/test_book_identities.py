"""Identities, measured numbers and errata of the book's Chapter 4: reverse SDEs, kernels and bounds."""

from __future__ import annotations

import math

import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from scipy.special import ndtri
from torch import Tensor

import fokker as fk
from fokker.calculus import wiener
from fokker.solvers import RK4, Euler, EulerMaruyama

from .book import MIXTURE, integral, slope

F64 = torch.float64
NODES, MASS = (torch.from_numpy(a) for a in hermegauss(40))
MASS = MASS / MASS.sum()


# ---------------------------------------------------------------------------------------- Chapter 4: reverse SDEs


def test_the_time_reversed_noise_is_no_legal_driver() -> None:
    """Line 2025: dx = -x dt + sqrt(2) dw, stationary, run back with dw reversed: Var = 1 - 4 T e^{-2T}, not 1."""
    n, steps, T = 6000, 150, 1.5
    times = torch.linspace(0.0, T, steps + 1, dtype=F64)
    moved, fresh = (wiener(seed, torch.arange(n), times, ()) for seed in (0, 1))
    h = T / steps
    x = fk.noise.normal(2, torch.arange(n), (), domain="training", dtype=F64)
    for dw in moved:
        x = (1.0 - h) * x + math.sqrt(2.0) * dw
    ends = []
    for increments in (-moved.flip(0), fresh):  # w(T - t) - w(T), and another Brownian motion
        y = x
        for dw in increments:
            y = y + (y - 2.0 * y) * h + math.sqrt(2.0) * dw  # -f + g^2 score
        ends.append(float(y.var()))
    reversed_noise = 1.0 - 4.0 * T * math.exp(-2.0 * T)
    assert ends[0] == pytest.approx(reversed_noise, abs=4.0 * 0.7 * math.sqrt(2.0 / n) + 0.01)
    assert ends[1] == pytest.approx(1.0, abs=4.0 * math.sqrt(2.0 / n) + 0.02)
    assert reversed_noise < 0.71


def test_the_gaussian_reverse_step_expands_to_the_reversed_clock() -> None:
    """Sec. 4.1.6: Bayes' mean and variance are x + dt (-f x + g^2 s) and g^2 dt up to O(dt^2), slope 2.

    Lines 2239-2249 label the clocks the wrong way round: f x - g^2 s added for dt > 0 misses by O(dt).
    """
    f, g2, m, v, x = -0.8, 1.6, 0.5, 0.3, 1.1
    score = -(x - m) / v
    means, variances, printed = [], [], []
    for dt in (1e-2, 1e-3, 1e-4):
        a, r2 = 1.0 + f * dt, g2 * dt
        # (m, v) at t + dt is where x is; at t they are what the step makes them of
        before_m, before_v = m / a, (v - r2) / a**2
        var = 1.0 / (1.0 / before_v + a**2 / r2)
        mean = var * (before_m / before_v + a * x / r2)
        means.append(abs(mean - x - dt * (-f * x + g2 * score)))
        variances.append(abs(var - r2))
        printed.append(abs(mean - x - dt * (f * x - g2 * score)))
    for errors, order in ((means, 2.0), (variances, 2.0), (printed, 1.0)):
        assert [s / math.log2(10.0) for s in slope(errors)] == pytest.approx([order] * 2, abs=0.05)


def test_a_quadratic_velocity_bends_the_law() -> None:
    """Sec. 4.1.6: v = c (x - m)^2 / 2 gives N(m, s^2) the third central moment 3 dt c s^4."""
    s, c, ratios = 0.7, 1.3, []
    for dt in (1e-2, 1e-3):
        moved = s * NODES + dt * 0.5 * c * (s * NODES) ** 2
        third = (MASS * (moved - (MASS * moved).sum()) ** 3).sum()
        ratios.append(float(third) / (3.0 * dt * c * s**4) - 1.0)
    assert abs(ratios[1]) < 1e-4 and ratios[0] / ratios[1] == pytest.approx(100.0, rel=0.01)


def test_ddpms_step_is_not_euler_maruyamas() -> None:
    """Line 2374 calls it a special case: 1 / sqrt(1 - b) exceeds 1 + b / 2 by .375 b^2, b / sqrt(1 - b) b by .5 b^2."""
    process, s = fk.VP(), 0.5
    for gap in (2e-3, 1e-3):
        t = s - gap
        on_x, on_x0, std = (float(a) for a in process.bridge(s, t))
        alpha, sigma = float(process.alpha(s)), float(process.sigma(s))
        b = 1.0 - (alpha / float(process.alpha(t))) ** 2
        # x0 = (x + sigma^2 score) / alpha
        assert (on_x + on_x0 / alpha - 1.0 - 0.5 * b) / b**2 == pytest.approx(0.375, abs=0.02)
        assert (on_x0 * sigma**2 / alpha - b) / b**2 == pytest.approx(0.5, abs=0.02)
        assert 0.0 < (b - std**2) / b**2 < 1.0 / sigma**2  # and its noise is the posterior's


def test_the_flow_is_not_the_mean_of_the_paths() -> None:
    """Fig. 4.2's caption: E[x_t | x_0] = alpha x_0, where the flow keeps the quantile."""
    x0 = torch.tensor([[-2.0], [1.5]], dtype=F64)
    image = MIXTURE.flow_map(fk.VP(), x0, 0.0, 0.5)
    mean = fk.VP().alpha(0.5) * x0
    assert float((image - mean).abs().min()) > 0.1


def test_the_joint_law_of_the_ends_tells_sde_from_ode() -> None:
    """Sec. C.2.1: one marginal law at every t; cov(x_0, x_T) is alpha_T v_0 by SDEs and sqrt(v_0 V_T) by the ODE."""
    process, law, v0 = fk.VP(), fk.exact.Gaussian([0.0], [0.3]), 0.3
    V = float(process.alpha(1.0)) ** 2 * v0 + float(process.sigma(1.0)) ** 2
    starts = torch.tensor([[0.5], [-0.5]], dtype=F64)

    def covariance(solver: fk.solvers.Solver, steps: int) -> float:
        times = torch.linspace(1.0, 1e-3, steps + 1, dtype=F64)
        # both runs meet the same noise, so that their difference is the slope in the start
        ends = [fk.sample(law.denoiser(process), x=x[None], solver=solver, grid=times, dtype=F64) for x in starts]
        return float(ends[0] - ends[1]) * V

    alpha, sigma = float(process.alpha(1e-3)), float(process.sigma(1e-3))
    early = alpha**2 * v0 + sigma**2
    want = float(process.alpha(1.0)) / alpha * early
    errors = [covariance(EulerMaruyama(), n) - want for n in (100, 200)]
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.3) and abs(errors[1]) < 0.15 * want
    assert covariance(RK4(), 100) == pytest.approx(math.sqrt(early * V), abs=1e-5)
    assert want < 0.01 * math.sqrt(early * V)
    assert float(process.alpha(1.0)) == pytest.approx(0.00657, abs=5e-6)


def cdf(x: Tensor, alpha: float, sigma: float) -> Tensor:
    """The distribution function of the mixture's alpha x_0 + sigma eps."""
    parts = ((0.3, -2.0, 0.16), (0.7, 1.5, 0.36))
    return sum(w * torch.special.ndtr((x - alpha * m) / math.sqrt(alpha**2 * v + sigma**2)) for w, m, v in parts)


def test_three_conditionals_have_one_marginal() -> None:
    """Sec. 4.1.5: the Gaussian kernel, the flow's image, and either by the toss of a coin; corr(x_0, x_t) differs.

    The kernel's is alpha s_0 / sqrt(alpha^2 s_0^2 + sigma^2) = .8715, whatever the data.
    """
    process, t, n = fk.VP(), 0.25, 20_000
    index = torch.arange(n)
    x0 = MIXTURE.sample(n, dtype=F64)
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    kernel = process.perturb(x0, t, fk.noise.normal(1, index, (1,), domain="training", dtype=F64))
    image = MIXTURE.flow_map(process, x0, 0.0, t)
    coin = fk.noise.uniform(2, index, (1,), domain="training", dtype=F64) < 0.5
    found = []
    for x in (kernel, image, torch.where(coin, kernel, image)):
        below = cdf(x[:, 0].sort().values, alpha, sigma)
        away = (below - (torch.arange(n, dtype=F64) + 0.5) / n).abs().max()
        assert float(away) < 2.0 / math.sqrt(n)  # Kolmogorov: passed with probability .9993
        found.append(float(torch.corrcoef(torch.stack([x0[:, 0], x[:, 0]]))[0, 1]))
    s0 = float(MIXTURE.moments().cov.sqrt())
    want = alpha * s0 / math.hypot(alpha * s0, sigma)
    assert want == pytest.approx(0.8715, abs=5e-5) and found[0] == pytest.approx(want, abs=4.0 * (1.0 - want**2) / 141)
    assert found[1] > 0.97 and found[2] == pytest.approx(0.5 * (found[0] + found[1]), abs=0.01)
    # line 2157 prints Psi_{t->0}(x_0): its law is another
    printed = MIXTURE.flow_map(process, x0, t, 0.0)
    below = cdf(printed[:, 0].sort().values, alpha, sigma)
    assert float((below - (torch.arange(n, dtype=F64) + 0.5) / n).abs().max()) > 20.0 / math.sqrt(n)


def test_how_far_few_steps_of_the_reverse_sde_are_from_the_mixture() -> None:
    """Sec. 4.2.2: W_1 of Euler-Maruyama's law, carried on cells, is .0316, .0152 and .0075 at 25, 50 and 100 steps.

    The text's .031, .017 and .011 are of 1e5 samples, whose own floor is .005.
    """
    process, denoiser = fk.VP(), MIXTURE.denoiser(fk.VP())
    x = torch.linspace(-7.0, 7.0, 601, dtype=F64)
    h, target = float(x[1] - x[0]), cdf(x, 1.0, 0.0)
    for steps, want in ((25, 0.0316), (50, 0.0152), (100, 0.0075)):
        p = (-0.5 * x**2).exp() / math.sqrt(2.0 * math.pi)
        for step in EulerMaruyama().plan(process, torch.linspace(1.0, 1e-3, steps + 1, dtype=F64)).steps:
            (_, on_x), (_, on_x0), (_, std) = step.out
            mean = on_x * x + on_x0 * denoiser(x[:, None], step.start).x0[:, 0]
            p = (-0.5 * ((x[:, None] - mean) / std) ** 2).exp() @ p * (h / (std * math.sqrt(2.0 * math.pi)))
        assert float(p.sum() * h) == pytest.approx(1.0, abs=1e-7)
        found = (p.cumsum(0) - 0.5 * p) * h
        assert float((found - target).abs().sum() * h) == pytest.approx(want, abs=1e-4)


def test_how_far_few_euler_steps_of_the_flow_are_from_the_mixture() -> None:
    """Sec. 4.2.2: W_1 of quantiles is .0132, .0067 and .0045 at 25, 50 and 100 steps: less than the SDE's at each."""
    process, n = fk.VP(), 4000
    levels = (torch.arange(n, dtype=F64) + 0.5) / n
    starts = torch.from_numpy(ndtri(levels.numpy()))[:, None]
    low, high = torch.full((n,), -8.0, dtype=F64), torch.full((n,), 8.0, dtype=F64)
    for _ in range(50):  # the mixture's quantiles by bisection
        middle = 0.5 * (low + high)
        below = cdf(middle, 1.0, 0.0) < levels
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    for steps, want in ((25, 0.01316), (50, 0.00669), (100, 0.00445)):
        times = torch.linspace(1.0, 1e-3, steps + 1, dtype=F64)
        for solver in (Euler(), EulerMaruyama(eta=0.0)):
            ends = fk.sample(MIXTURE.denoiser(process), x=starts, solver=solver, grid=times, dtype=F64)
            assert float((ends[:, 0].sort().values - low).abs().mean()) == pytest.approx(want, abs=2e-5)


def test_a_standard_normal_stands_still_under_vp() -> None:
    law, x = fk.exact.Gaussian([0.0, 0.0], 1.0), torch.tensor([[0.7, -1.9]], dtype=F64)
    for t in (0.01, 0.2, 1.0):
        said = law.denoiser(fk.VP())(x, t)
        assert float(said.velocity.abs().max()) < 1e-12
        torch.testing.assert_close(law.at(fk.VP(), t).score(x), -x)


# ------------------------------------------------------------------------------------ Chapter 4: kernels and bounds


def test_the_kl_of_two_posteriors_is_a_difference_of_snr() -> None:
    """Eq. 4.4.7: |mu - mu_phi|^2 / (2 var) = (SNR(t) - SNR(s)) |x_0 - x_phi|^2 / 2; few steps cost more."""
    for process in (fk.VP(), fk.Flow(), fk.EDM()):
        s, t = 0.6, 0.35
        _, on_x0, std = (float(a) for a in process.bridge(s, t))
        snr = [math.exp(2.0 * float(process.lam(u))) for u in (t, s)]
        assert 0.5 * (on_x0 / std) ** 2 == pytest.approx(0.5 * (snr[0] - snr[1]), rel=1e-12)
    # Gaussian data of variance v: the limit depends on the end SNRs alone, whatever lies between
    v, gaps = 0.5, []
    for process in (fk.VP(), fk.Flow()):
        high, low = (float(process.lam(u)) for u in (1e-3, 0.99))
        want = 0.5 * math.log((1.0 + v * math.exp(2.0 * high)) / (1.0 + v * math.exp(2.0 * low)))
        # -1/2 SNR' dt = SNR d lam (downwards), E|x_0 - x_phi|^2 = v / (1 + v SNR)
        found = integral(lambda lam: (2.0 * lam).exp() * v / (1.0 + v * (2.0 * lam).exp()), low, high)
        assert found == pytest.approx(want, rel=1e-10)
    process = fk.VP()
    snr_ends = [math.exp(2.0 * float(process.lam(u))) for u in (1e-3, 1.0)]
    for n in (100, 200, 400, 800, 1600):  # from t = 1e-3: 9.15, 3.36, 1.34, .58, .26
        snr = (2.0 * process.lam(torch.linspace(1e-3, 1.0, n + 1, dtype=F64))).exp()
        total = 0.5 * float(((snr[:-1] - snr[1:]) * v / (1.0 + v * snr[1:])).sum())
        gaps.append(total - 0.5 * math.log((1.0 + v * snr_ends[0]) / (1.0 + v * snr_ends[1])))
    assert gaps == pytest.approx([9.15, 3.36, 1.34, 0.58, 0.26], abs=6e-3)


def test_gaussian_smoothing_leaves_the_fourth_power() -> None:
    """Sec. 4.5.1: int N(x; u, sigma^2) phi(u) du = phi + sigma^2 / 2 phi'' + O(sigma^4), not O(sigma^3)."""
    x, errors = 0.4, []
    for sigma in (0.2, 0.1, 0.05):
        smooth = float((MASS * torch.sin(2.0 * (x + sigma * NODES))).sum())
        errors.append(abs(smooth - math.sin(2.0 * x) * (1.0 - 2.0 * sigma**2)))
    assert slope(errors) == pytest.approx([4.0, 4.0], abs=0.06)


def test_completing_the_square_keeps_a_cross_term() -> None:
    """Sec. 4.5.2: |d - mu|^2 + 2 g^2 dt s.d with mu = f dt; line 2841 drops 2 g^2 dt mu.s, and line 2851's
    |g^2 dt s|^2 / (2 g^2 dt) is O(dt), not O(dt^2)."""
    f, s, d = (torch.tensor(v, dtype=F64) for v in ([0.5, -1.0], [1.2, 0.7], [0.3, 0.1]))
    g2, missing, last = 1.7, [], []
    for dt in (0.1, 0.05):
        mu = f * dt
        whole = (d - mu).square().sum() + 2.0 * g2 * dt * (s @ d)
        square = (d - mu + g2 * dt * s).square().sum() - (g2 * dt * s).square().sum()
        torch.testing.assert_close(whole, square + 2.0 * g2 * dt * (mu @ s), rtol=1e-13, atol=0)
        missing.append(abs(float(whole - square)))
        last.append(float((g2 * dt * s).square().sum()) / (2.0 * g2 * dt))
    assert slope(missing) == pytest.approx([2.0]) and missing[0] > 1e-3 and slope(last) == pytest.approx([1.0])


def test_the_first_order_remainder_of_the_reverse_kernel_is_of_order_dt() -> None:
    """Line 2829: log p(x + h) - log p(x) - s.h for h ~ N(0, g^2 dt) is 1/2 g^2 dt (log p)'' in mean, not O(dt^2)."""
    process, t, x = fk.VP(), 0.3, torch.tensor([[0.4]], dtype=F64)
    law, g2, kept = MIXTURE.at(process, t), float(process.g2(t)), []
    s = law.score(x)
    second = float(law.posterior(x).cov) * (float(process.alpha(t)) / float(process.sigma(t)) ** 2) ** 2
    second -= 1.0 / float(process.sigma(t)) ** 2  # Tweedie's second order
    for dt in (1e-3, 5e-4, 2.5e-4):
        h = math.sqrt(g2 * dt) * NODES[:, None]
        rest = law.log_prob(x + h) - law.log_prob(x) - (h * s)[:, 0]
        kept.append([float((MASS * size).sum()) for size in (rest.abs(), rest)])
    assert slope([size for size, _ in kept]) == pytest.approx([1.0, 1.0], abs=0.02)
    assert kept[-1][1] / 2.5e-4 == pytest.approx(0.5 * g2 * second, rel=0.01) and abs(g2 * second) > 1.0
