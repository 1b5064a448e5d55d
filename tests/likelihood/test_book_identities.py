"""Identities, measured numbers and errata of the book's Chapter 4, Section 5.1 and Appendices A to D."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from numpy.polynomial.legendre import leggauss
from scipy.special import ndtri
from torch import Tensor

import fokker as fk
from fokker.calculus import divergence, jacobian, value_and_divergence, wiener
from fokker.likelihood import log_prob, weighted_log_prob
from fokker.solvers import RK4, Euler, EulerMaruyama

F64 = torch.float64
# The mixture that the numbers of Chapter 4 were measured on: VP from .1 to 20.
MIXTURE = fk.exact.GaussianMixture([0.3, 0.7], [[-2.0], [1.5]], [0.16, 0.36])
NODES, MASS = (torch.from_numpy(a) for a in hermegauss(40))
MASS = MASS / MASS.sum()


def slope(errors: list[float]) -> list[float]:
    """Powers of two by which each error exceeds the next."""
    return [math.log2(a / b) for a, b in pairwise(errors)]


def integral(function: object, low: float, high: float, n: int = 200) -> float:
    """By Gauss and Legendre's rule."""
    nodes, weights = (torch.from_numpy(a) for a in leggauss(n))
    t = 0.5 * (high + low) + 0.5 * (high - low) * nodes
    return float(0.5 * (high - low) * (weights * function(t)).sum())  # type: ignore[operator]


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


# ----------------------------------------------------------------------------- flows, their maps and their densities


def test_the_maps_jacobian_is_the_exponential_of_the_divergence() -> None:
    """Sec. 4.1.5, B.1.1: det dPsi_{s->t} = exp int div v = p_s(x) / p_t(Psi(x)); p_1 of a linear map is N(0, A A^T)."""
    process, s, t = fk.VP(), 0.1, 0.6
    x = torch.tensor([[-1.9], [-0.2], [1.1]], dtype=F64)
    e = 1e-5
    ahead, behind = (MIXTURE.flow_map(process, x + d, s, t) for d in (e, -e))
    found = ((ahead - behind) / (2.0 * e))[:, 0].log()
    image = MIXTURE.flow_map(process, x, s, t)
    ratio = MIXTURE.at(process, s).log_prob(x) - MIXTURE.at(process, t).log_prob(image)
    torch.testing.assert_close(found, ratio, rtol=0, atol=1e-8)
    denoiser = MIXTURE.denoiser(process)
    nodes, weights = (torch.from_numpy(a) for a in leggauss(60))
    total = torch.zeros(3, dtype=F64)
    for u, w in zip(0.5 * (s + t) + 0.5 * (t - s) * nodes, 0.5 * (t - s) * weights, strict=True):
        along = MIXTURE.flow_map(process, x, s, float(u))
        total += w * divergence(lambda x, t: denoiser(x, t).velocity, along, float(u)).value
    torch.testing.assert_close(total, ratio, rtol=0, atol=1e-10)
    A = torch.tensor([[1.2, 0.4], [-0.3, 0.7]], dtype=F64)
    y = torch.tensor([[0.3, -1.1]], dtype=F64)
    start = fk.exact.Gaussian([0.0, 0.0], 1.0)
    by_map = start.log_prob(y @ A.inverse().T) - torch.linalg.slogdet(A).logabsdet
    torch.testing.assert_close(by_map, fk.exact.Gaussian([0.0, 0.0], A @ A.T).log_prob(y))


def test_the_trace_is_the_first_order_of_the_determinant() -> None:
    """Eq. B.1.5: det(I + h A) = 1 + h tr A + h^2 ((tr A)^2 - tr A^2) / 2 + ..."""
    A = torch.tensor([[0.5, -1.0, 0.3], [0.7, 1.4, -0.2], [1.1, 0.6, -0.8]], dtype=F64)
    second = float(0.5 * (A.trace() ** 2 - (A @ A).trace()))
    for h in (1e-2, 1e-3):
        rest = (torch.eye(3, dtype=F64) + h * A).det() - 1.0 - h * A.trace()
        assert float(rest) / h**2 == pytest.approx(second, abs=3.0 * h) and abs(second) > 0.1


def test_mixtures_move_by_the_mean_of_their_parts() -> None:
    """Sec. B.1.2, conditioning: v(x) = E[v(x | z) | x], z the component."""
    law = fk.exact.GaussianMixture([0.3, 0.7], [[-2.0], [1.5]], [0.16, 0.36], labels=[0, 1])
    x, t = torch.linspace(-2.0, 2.0, 5, dtype=F64)[:, None], 0.3
    for process in (fk.VP(), fk.Flow(), fk.EDM()):
        whole = law.denoiser(process)(x, t).velocity
        each = [fk.exact.Gaussian([m], [v]).denoiser(process)(x, t).velocity for m, v in ((-2.0, 0.16), (1.5, 0.36))]
        weights = law.at(process, t).classify(x)
        mean = weights[:, :1] * each[0] + weights[:, 1:] * each[1]
        torch.testing.assert_close(whole, mean, rtol=1e-10, atol=1e-12)
        assert float((whole - 0.3 * each[0] - 0.7 * each[1]).abs().max()) > 0.05  # the prior's weights are not it


def test_the_latent_is_the_quantile() -> None:
    """Sec. 4.2.2: the code of x is Phi^{-1}(F_0(x)), but for the prior's mismatch."""
    x = torch.linspace(-2.6, 2.4, 9, dtype=F64)[:, None]
    below = sum(w * torch.special.ndtr((x - m) / s) for w, m, s in ((0.3, -2.0, 0.4), (0.7, 1.5, 0.6)))
    want = torch.from_numpy(ndtri(below.numpy()))
    found = fk.encode(MIXTURE.denoiser(fk.VP()), x, solver=RK4("lam"), steps=60)
    assert float((found - want).abs().max()) < 0.02  # of t_min and the mixture's part in p_T
    closer = MIXTURE.flow_map(fk.VP(beta_max=60.0), x, 0.0, 1.0)
    assert float((closer - want).abs().max()) < 1e-6


def _geometric(low: float, high: float, n: int) -> list[float]:
    return [float(t) for t in np.geomspace(low, high, n)]


def test_a_neural_odes_density_counts_its_trace_down() -> None:
    """Sec. 5.1.2 (its clock: prior at 0): v = A x gives log p(x) = log N(e^{-AT} x) - T tr A, the start at x(0)."""
    A = torch.tensor([[0.4, -0.8], [0.5, 0.1]], dtype=F64)
    T, steps, x = 1.5, 60, torch.tensor([[0.7, -0.4], [1.3, 0.2]], dtype=F64)
    prior = fk.exact.Gaussian([0.0, 0.0], 1.0)

    def rate(z: Tensor) -> tuple[Tensor, Tensor]:
        value, found = value_and_divergence(lambda x: x @ A.T, z)
        return value, found.value

    z, gained, h = x, torch.zeros(2, dtype=F64), -T / steps
    for _ in range(steps):  # back from T, dl/dt = div v
        stages = [rate(z)]
        for c in (0.5, 0.5, 1.0):
            stages.append(rate(z + c * h * stages[-1][0]))
        z, gained = (
            a + h / 6.0 * (k[0] + 2.0 * k[1] + 2.0 * k[2] + k[3])
            for a, k in zip((z, gained), zip(*stages, strict=True), strict=True)
        )
    want = prior.log_prob(x @ torch.linalg.matrix_exp(-A * T).T) - T * A.trace()
    torch.testing.assert_close(prior.log_prob(z) + gained, want, rtol=0, atol=1e-8)
    cov = torch.linalg.matrix_exp(A * T) @ torch.linalg.matrix_exp(A * T).T
    torch.testing.assert_close(want, fk.exact.Gaussian([0.0, 0.0], cov).log_prob(x))
    assert float((prior.log_prob(x) + gained - want).abs().min()) > 0.1  # line 3023: p_prior(x(T))
    assert float((prior.log_prob(z) - gained - want).abs().min()) > 1.0  # the other sign


def test_residual_layers_become_the_instantaneous_change_of_variables() -> None:
    """Sec. D.3.1: sum log|det(I + h J)| is exactly the density of Euler's map; -h tr J only to first order."""
    process, start = fk.Flow(), 0.9
    denoiser = MIXTURE.denoiser(process)
    grid = torch.linspace(-6.0, 6.0, 6401, dtype=F64)[:, None]
    first = MIXTURE.at(process, start)
    errors: list[float] = []
    for steps in (20, 40, 80):
        x, exact, trace = grid, torch.zeros(len(grid), dtype=F64), torch.zeros(len(grid), dtype=F64)
        times = torch.linspace(start, 0.3, steps + 1, dtype=F64)
        for s, h in zip(times[:-1].tolist(), times.diff().tolist(), strict=True):
            value, slope_of = value_and_divergence(lambda x, s=s: denoiser(x, s).velocity, x)
            exact, trace = exact + (1.0 + h * slope_of.value).log(), trace + h * slope_of.value
            x = x + h * value
        density = (first.log_prob(grid) - exact).exp()
        assert float(torch.trapezoid(density, x[:, 0])) == pytest.approx(1.0, abs=2e-5)
        counted = (first.log_prob(grid) - trace).exp()
        errors.append(abs(float(torch.trapezoid(counted, x[:, 0])) - 1.0))
    assert errors[0] > 1e-3 and slope(errors) == pytest.approx([1.0, 1.0], abs=0.12)


def test_the_numbers_of_the_total_derivative() -> None:
    """Eq. 5.1.9 at x = .3, t = .25: the partial derivative 3.9585, -div v = .7646, -div v - v.score = 3.9585."""
    process, t = fk.VP(), torch.tensor(0.25, dtype=F64)
    denoiser, x = MIXTURE.denoiser(process), torch.tensor([[0.3]], dtype=F64)
    spreading = divergence(lambda x, t: denoiser(x, t).velocity, x, t).value
    e = 1e-5
    ahead, behind = (MIXTURE.at(process, 0.25 + d).log_prob(x) for d in (e, -e))
    partial = float(ahead - behind) / (2.0 * e)
    assert partial == pytest.approx(3.9585, abs=5e-5)
    assert float(-spreading) == pytest.approx(0.7646, abs=5e-5)
    score = MIXTURE.at(process, 0.25).score(x)
    assert float(-spreading - (denoiser(x, t).velocity * score).sum()) == pytest.approx(partial, abs=1e-6)


def test_hutchinsons_likelihood_is_unbiased_in_log_p_only() -> None:
    """Line 3089 calls it exact. Both signs of one probe: the mean of log p is exact, that of p too large by a cosh."""
    cov = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=F64)
    law, process = fk.exact.Gaussian([0.2, -0.1], cov), fk.EDM()
    x = torch.tensor([[0.5, 0.4]], dtype=F64)
    steps = {"solver": RK4(), "steps": 60, "grid": "lam"}
    exact = log_prob(law.denoiser(process), x, **steps).value
    signs = torch.tensor([[[1.0, 1.0]], [[1.0, -1.0]]], dtype=F64)
    both = torch.stack([log_prob(law.denoiser(process), x, probes=u[None], **steps).value for u in signs])
    torch.testing.assert_close(both.mean(0), exact, rtol=0, atol=1e-8)
    spread = 0.5 * float(both[0] - both[1])
    ratio = float((both - exact).exp().mean())
    assert ratio == pytest.approx(math.cosh(spread)) and ratio > 1.1


# -------------------------------------------------------------------------------------------- Appendices A, C: paths


def test_discrete_data_ends_in_its_points() -> None:
    """Sec. A.1.1: data -1 and 1, 2000 steps of Euler from 80 to 1e-3 and one to 0: exactly 1 or -1, by the side."""
    points = fk.exact.Empirical([[-1.0], [1.0]])
    times = torch.tensor([*_geometric(80.0, 1e-3, 2000), 0.0], dtype=F64)
    x = torch.tensor([[-100.0], [-3.0], [-0.5], [0.5], [40.0], [160.0]], dtype=F64)
    ends = fk.sample(points.denoiser(fk.EDM()), x=x, solver=Euler(), grid=times, dtype=F64)
    torch.testing.assert_close(ends, x.sign(), rtol=0, atol=1e-12)
    # the field's slope (1 - sech^2(x / t^2) / t^2) / t is 1 / t at a point, and near -1 / t^3 half-way between
    t = 0.2
    rates = jacobian(lambda x: points.denoiser(fk.EDM())(x, t).velocity, torch.tensor([[1.0], [0.0]], dtype=F64))
    assert rates.flatten().tolist() == pytest.approx([1.0 / t, (1.0 - 1.0 / t**2) / t], rel=1e-9)


def test_girsanovs_noise_is_that_of_the_denominator() -> None:
    """Sec. C.2: the log-ratio of two Euler chains, exactly; the text's "shared" dw of the numerator needs + 1/2."""
    g, h, steps, n = 0.8, 0.02, 60, 2000

    def top(x: Tensor) -> Tensor:
        return -x + 0.6 * x.sin() + 0.4

    def bottom(x: Tensor) -> Tensor:
        return -x

    noises = wiener(0, torch.arange(n), h * torch.arange(steps + 1, dtype=F64), ())
    for model, sign in ((bottom, -1.0), (top, 1.0)):
        x = torch.full((n,), 0.3, dtype=F64)
        exact, formula, by_path, energy = (torch.zeros(n, dtype=F64) for _ in range(4))
        for dw in noises:
            moved = model(x) * h + g * dw
            delta = top(x) - bottom(x)
            exact += ((moved - bottom(x) * h) ** 2 - (moved - top(x) * h) ** 2) / (2.0 * g**2 * h)
            formula += delta / g * dw + sign * 0.5 * (delta / g) ** 2 * h
            energy += (delta / g) ** 2 * h
            by_path += delta * moved / g**2 - 0.5 * (top(x) ** 2 - bottom(x) ** 2) / g**2 * h
            x = x + moved
        torch.testing.assert_close(formula, exact, rtol=0, atol=1e-11)
        torch.testing.assert_close(by_path, exact, rtol=0, atol=1e-11)
        if model is bottom:
            weights = exact.exp()
            assert abs(float(weights.mean()) - 1.0) < 4.0 * float(weights.std()) / math.sqrt(n)
        else:  # the printed minus with the numerator's own noise is off by int |delta / g|^2
            assert float((formula - energy - exact).abs().min()) > 0.05
            assert float((formula - energy - exact).abs().max()) > 0.5


def song_bound(x: float, c: float, prior: float, v0: float = 0.3) -> float:
    """-E log N(x_T; 0, prior) + 1/2 int E[2 g^2 div s + g^2 |s|^2 - 2 div f | x_0 = x] dt, s = -(1 + c) x / V."""
    process = fk.VP(0.1, 5.0)

    def rate(t: Tensor) -> Tensor:
        alpha, sigma, g2 = process.alpha(t), process.sigma(t), process.g2(t)
        gain = (1.0 + c) / (alpha**2 * v0 + sigma**2)
        return -2.0 * g2 * gain + g2 * gain**2 * (alpha**2 * x**2 + sigma**2) - 2.0 * process.f(t)

    alpha, sigma = float(process.alpha(1.0)), float(process.sigma(1.0))
    last = 0.5 * (alpha**2 * x**2 + sigma**2) / prior + 0.5 * math.log(2.0 * math.pi * prior)
    return last + 0.5 * integral(rate, 0.0, 1.0)


def test_the_continuous_bound_of_song_et_al() -> None:
    """Sec. C.2: tight with the exact score and prior p_T; with 1.2 times the score 1.34380 >= -log p = 1.29031.

    Its mean over the data exceeds the entropy by the divergence of the paths, .0739553 + .0007752.
    """
    process, v0 = fk.VP(0.1, 5.0), 0.3
    V = float(process.alpha(1.0)) ** 2 * v0 + float(process.sigma(1.0)) ** 2
    own = -float(fk.exact.Gaussian([0.0], [v0]).log_prob(torch.tensor([[0.7]], dtype=F64)))
    assert own == pytest.approx(1.1336187977, abs=1e-10)
    assert song_bound(0.7, 0.0, V) == pytest.approx(own, abs=1e-11)
    assert song_bound(0.7, 0.2, 1.0) == pytest.approx(1.34380, abs=5e-6)
    # the reverse SDE's own law at 0 is N(0, v): v' = -2 (a) v + g^2 on u = 1 - t
    u, v = torch.linspace(1.0, 0.0, 4001, dtype=F64), 1.0
    f, g2 = process.f(u).tolist(), process.g2(u).tolist()
    gain = (1.2 / (process.alpha(u) ** 2 * v0 + process.sigma(u) ** 2)).tolist()
    h = 1.0 / 4000
    for k in range(0, 4000, 2):  # RK4 over two of the grid's intervals

        def rate(v: float, i: int) -> float:
            return 2.0 * (-f[i] - g2[i] * gain[i]) * v + g2[i]

        k1 = rate(v, k)
        k2 = rate(v + h * k1, k + 1)
        k3 = rate(v + h * k2, k + 1)
        v += h / 3.0 * (k1 + 2.0 * k2 + 2.0 * k3 + rate(v + 2.0 * h * k3, k + 2))
    model = 0.5 * math.log(2.0 * math.pi * v) + 0.49 / (2.0 * v)
    assert model == pytest.approx(1.29031, abs=5e-6) and model < song_bound(0.7, 0.2, 1.0)
    mean = 0.5 * (song_bound(math.sqrt(v0), 0.2, 1.0) + song_bound(-math.sqrt(v0), 0.2, 1.0))  # quadratic in x
    assert mean - 0.5 * math.log(2.0 * math.pi * math.e * v0) == pytest.approx(0.0747305, abs=5e-8)


def test_the_printed_change_of_measure_does_not_know_x() -> None:
    """Line 9966: int p_T(x_T) p_model(x_{0:T}) dx_{0:T} has the prior twice and x_0 integrated out: a constant."""
    printed = -0.5 * math.log(4.0 * math.pi)  # log int N(x; 0, 1)^2 dx, whatever the model and whatever x
    law = fk.exact.Gaussian([0.4], [0.3])
    x = torch.tensor([[-0.6], [0.7]], dtype=F64)
    found = weighted_log_prob(law.denoiser(fk.VP()), x, paths=4000, steps=20)
    twice = torch.distributions.Normal(0.0, 1.0).log_prob(torch.linspace(-12.0, 12.0, 4801, dtype=F64)).exp().square()
    assert float((twice.sum() * 0.005).log()) == pytest.approx(printed, abs=1e-9)
    assert float(((found.value - printed).abs() / found.stderr).min()) > 4.0
    assert float(found.value[1] - found.value[0]) > 1.0
