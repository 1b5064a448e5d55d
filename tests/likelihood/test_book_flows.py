"""Identities, measured numbers and errata of the book's Section 5.1 and Appendices A to C: flows, paths, measures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.polynomial.legendre import leggauss
from scipy.special import ndtri
from torch import Tensor

import fokker as fk
from fokker.calculus import divergence, jacobian, value_and_divergence, wiener
from fokker.likelihood import log_prob, weighted_log_prob
from fokker.solvers import RK4, Euler

from .book import MIXTURE, integral, slope

F64 = torch.float64


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
