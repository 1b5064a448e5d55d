"""Ito calculus: sums, isometry, product rule, Ito's formula, brackets, martingales and Stein's identity."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from fokker import exact, noise
from fokker.calculus import (
    bracket,
    divergence,
    euler_maruyama,
    generator,
    gradient,
    ito_sum,
    stratonovich_sum,
    wiener,
)
from fokker.errors import ConfigError
from fokker.process import VP, Flow

F64 = torch.float64
P = VP(beta_min=1.0, beta_max=4.0)


def path(increments: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(increments[:1]), increments.cumsum(0)])


def within(sample: Tensor, truth: float | Tensor) -> None:
    """The mean over rows within 4 standard errors."""
    assert ((sample.mean(0) - truth).abs() < 4 * sample.std(0) / math.sqrt(len(sample))).all()


def test_wiener_increments() -> None:
    times = torch.tensor([0.0, 0.1, 0.4, 1.0], dtype=F64)
    steps = wiener(5, torch.arange(20_000), times, (2,))
    w = path(steps)[1:]
    covariance = torch.einsum("ibd,jbd->ij", w, w) / 40_000
    assert (covariance - torch.minimum(times[1:, None], times[1:])).abs().max() < 4 * math.sqrt(2 / 40_000)
    assert abs((steps[..., 0] * steps[..., 1]).mean()) < 4 * 0.3 / math.sqrt(60_000)
    drawn = noise.normal(5, torch.arange(3), (2,), draw=2 << 8, dtype=F64)
    torch.testing.assert_close(steps[2, :3], math.sqrt(0.6) * drawn)
    assert torch.equal(wiener(5, torch.tensor([7]), times, (2,))[:, 0], steps[:, 7])
    torch.testing.assert_close(wiener(5, torch.arange(3), -times, (2,)), steps[:, :3])


def test_left_point_against_midpoint() -> None:
    """sum w dw = (w_T^2 - sum dw^2) / 2 exactly, -> (w_T^2 - T) / 2 with rms T sqrt(2 / N) / 2; midpoint: w_T^2 / 2."""
    n, N = 2000, 256
    w = path(wiener(0, torch.arange(n), torch.linspace(0, 1, N + 1, dtype=F64), ()))
    left, half, end = ito_sum(w, w), stratonovich_sum(w, w), w[-1].square()
    torch.testing.assert_close(left, 0.5 * (end - bracket(w, w)), rtol=0.0, atol=1e-12)
    torch.testing.assert_close(half, 0.5 * end, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(half, left + 0.5 * bracket(w, w))
    rms = (left - 0.5 * (end - 1)).square().mean().sqrt()
    assert abs(rms / (math.sqrt(2 / N) / 2) - 1) < 4 / math.sqrt(2 * n)
    within(left, 0.0)
    within(half, 0.5)


def test_quadratic_variation() -> None:
    n, N, T, d = 2000, 64, 2.0, 3
    times = torch.linspace(0, T, N + 1, dtype=F64)
    w = path(wiener(1, torch.arange(n), times, (d,)))
    variation = bracket(w, w)
    within(variation, d * T)
    assert abs(variation.var() / (2 * d * T**2 / N) - 1) < 5 * math.sqrt(2 / n)
    fine = torch.linspace(0, 1, 401, dtype=F64)  # of an SDE: int g^2 dt, whatever its drift
    x = euler_maruyama(
        lambda x, t: P.f(t) * x,
        lambda x, t: P.g2(t).sqrt(),
        w[-1, :500],
        fine,
        wiener(2, torch.arange(500), fine, (d,)),
    )
    assert abs(bracket(x, x).mean() / (d * 2.5) - 1) < 0.01


def test_isometry() -> None:
    n, N = 10_000, 48
    times = torch.linspace(0, 1, N + 1, dtype=F64)
    w = path(wiener(3, torch.arange(n), times, (2,)))
    for y in (torch.stack([times.sin() + 1, times**2], 1)[:, None].expand_as(w), w.sin(), w * times[:, None, None]):
        integral = ito_sum(y, w)
        within(integral, 0.0)
        within(integral.square() - y[:-1].square().sum((0, 2)) / N, 0.0)
    ahead = torch.cat([w[1:], w[-1:]])  # a right-point integrand looks ahead: the mean is d T, not 0
    within(ito_sum(ahead, w), 2.0)
    assert ito_sum(ahead, w).mean() > 1.5


def test_product_rule() -> None:
    """d(x . y) = dx . y + x . dy + D b d dt, for the same Brownian motion; without the bracket it fails."""
    n, N, D = 10_000, 40, 3
    times = torch.linspace(0, 1, N + 1, dtype=F64)
    steps, other = (wiener(s, torch.arange(n), times, (D,)) for s in (4, 5))
    b, d = (1 + times[:-1])[:, None, None], (times[:-1] ** 2)[:, None, None]
    x, y, apart = path(b * steps), path(d * steps), path(d * other)
    product = (x * y).sum(-1)
    torch.testing.assert_close(product[-1] - product[0], ito_sum(x, y) + ito_sum(y, x) + bracket(x, y))
    correction = D * float((b * d).mean())
    within(product[-1], correction)
    within(bracket(x, y), correction)
    within((x * apart).sum(-1)[-1], 0.0)
    within(ito_sum(x, y) + ito_sum(y, x), 0.0)
    assert correction > 1


def test_ito_formula_pathwise_with_slope_one_half() -> None:
    """h(x_T) - h(x_0) - sum (L h dt + g grad h . dw) has rms O(sqrt dt); without 1/2 g^2 Lap h it does not vanish."""
    h = lambda x, t: (1 + t) * (x.square().sum(1) + x[:, 0].cos())  # noqa: E731
    drift, amount = (lambda x, t: P.f(t) * x), (lambda x, t: P.g2(t).sqrt())
    start, misses = torch.full((400, 2), 0.7, dtype=F64), []
    for N in (64, 256, 1024):
        times = torch.linspace(0, 1, N + 1, dtype=F64)
        steps = wiener(6, torch.arange(400), times, (2,))
        x = euler_maruyama(drift, amount, start, times, steps)
        flat, clock = x[:-1].flatten(0, 1), times[:-1].repeat_interleave(400)
        rate = generator(h, lambda x, t: P.f(t)[:, None] * x, amount, flat, clock).value.reshape(N, 400)
        slope = amount(x, times[:-1])[:, None, None] * gradient(h, flat, clock).reshape(N, 400, 2)
        change = h(x[-1], times[-1]) - h(x[0], times[0])
        miss = change - rate.sum(0) / N - (slope * steps).sum((0, 2))
        misses.append(miss.square().mean().sqrt().item())
    slopes = [math.log(a / b, 4) for a, b in pairwise(misses)]
    assert all(0.42 < slope < 0.58 for slope in slopes)
    plain = generator(h, lambda x, t: P.f(t)[:, None] * x, 0.0, flat, clock).value.reshape(N, 400)
    assert (change - plain.sum(0) / N - (slope * steps).sum((0, 2))).mean().abs() > 1


def test_worked_example_of_itos_formula() -> None:
    """dx = sigma dw: E[x_t^2] = E[x_0^2] + sigma^2 t; the book's sigma^2 t supposes x_0 = 0."""
    times = torch.linspace(0, 0.5, 3, dtype=F64)
    steps = wiener(7, torch.arange(20_000), times, (1,))
    start = torch.full((20_000, 1), 1.5, dtype=F64)
    x = euler_maruyama(lambda x, t: torch.zeros_like(x), 0.8, start, times, steps)
    within(x[-1].square(), 1.5**2 + 0.64 * 0.5)


def test_euler_maruyama_orders() -> None:
    """Additive noise: strong order 1. Matrix noise: the covariance G G^T t. Times, drift and noise at the left end."""
    exact_steps = wiener(8, torch.arange(300), torch.linspace(0, 1, 1025, dtype=F64), (1,))
    start, misses = torch.full((300, 1), 0.5, dtype=F64), []
    drift = lambda x, t: -x - x**3 + t  # noqa: E731
    fine = euler_maruyama(drift, 0.7, start, torch.linspace(0, 1, 1025, dtype=F64), exact_steps)[-1]
    for N in (32, 64, 128):
        steps = exact_steps.reshape(N, -1, 300, 1).sum(1)
        end = euler_maruyama(drift, 0.7, start, torch.linspace(0, 1, N + 1, dtype=F64), steps)[-1]
        misses.append((end - fine).square().mean().sqrt().item())
    assert all(0.9 < math.log2(a / b) < 1.25 for a, b in pairwise(misses))
    G = torch.tensor([[1.0, 0.5, 0.2], [0.3, -0.4, 0.7]], dtype=F64)
    times = torch.tensor([0.0, 0.3], dtype=F64)
    steps = wiener(9, torch.arange(4), times, (3,))
    x = torch.ones(4, 2, dtype=F64)
    moved = euler_maruyama(lambda x, t: 2 * x + t, G, x, times, steps)
    torch.testing.assert_close(moved, torch.stack([x, x + 0.3 * 2 * x + steps[0] @ G.mT]))
    with pytest.raises(ConfigError, match="increments: given 2 for 2 times, must be one fewer"):
        euler_maruyama(drift, G, x, times, torch.cat([steps, steps]))


def test_reverse_sde_has_the_data_s_law_and_the_printed_sign_explodes() -> None:
    """Book line 10376, seed 003 line 291: from p_T back to N(0.5, 0.04); with the sign lost the variance explodes."""
    law, times = exact.Gaussian([0.5], 0.04), torch.linspace(1.0, 0.0, 301, dtype=F64)
    process, n = VP(), 3000
    start, steps = law.at(process, 1.0).sample(n, dtype=F64), wiener(10, torch.arange(n), times, (1,))
    amount = lambda x, t: process.g2(t).sqrt()  # noqa: E731
    for sign in (1.0, -1.0):
        reverse = lambda x, t, s=sign: s * (process.f(t) * x - process.g2(t) * law.at(process, t).score(x))  # noqa: E731
        end = euler_maruyama(reverse, amount, start, times, steps)[-1]
        if sign > 0:
            assert abs(end.mean() - 0.5) < 4 * 0.2 / math.sqrt(n) + 5e-3
            assert abs(end.var() / 0.04 - 1) < 4 * math.sqrt(2 / n) + 0.05
        else:
            assert end.var() > 100


@pytest.mark.parametrize(
    ("eta2", "without"),
    [
        (lambda t: 0.0, 0.0),
        (lambda t: 1.0 - t, 0.15),
        (lambda t: 2.0 * (1.0 - t), 0.25),
        (lambda t: 2.0 * (1.0 - t) / t, 1.0),
    ],
    ids=["ode", "1 - t", "2 (1 - t)", "memoryless"],
)
def test_any_noise_leads_from_normal_to_data(eta2: Callable[[float], float], without: float) -> None:
    """Seed 003 sec. 2.4, its t from noise to data: dX = (v + eta^2 / 2 s) dt + eta dW, W_1 to a mixture.

    Left without the score W_1 exceeds `without`, and for eta^2 = 2 (1 - t) / t the whole drift is 2 v - x / t.
    """
    law, flow, n = exact.GaussianMixture([0.35, 0.65], [[-1.2], [1.0]], [0.09, 0.16]), Flow(), 4000
    denoiser, x = law.denoiser(flow), torch.linspace(-5.0, 5.0, 2001, dtype=F64)
    start = torch.special.ndtri((torch.arange(n, dtype=F64) + 0.5) / n)[:, None]
    target = 0.35 * torch.special.ndtr((x + 1.2) / 0.3) + 0.65 * torch.special.ndtr((x - 1.0) / 0.4)

    def ends(share: float, steps: int) -> Tensor:
        def drift(x: Tensor, t: Tensor) -> Tensor:
            said = denoiser(x, 1.0 - float(t))
            whole = -said.velocity + share * eta2(float(t)) * said.score
            if share == 0.5 and eta2(0.5) == 2.0:
                memoryless = -2.0 * said.velocity - x / float(t)
                assert ((whole - memoryless).abs() < 1e-12 * (1.0 + x.abs()) / float(t)).all()
            return whole

        times = torch.linspace(1e-3, 1.0 - 1e-3, steps + 1, dtype=F64)
        amount = lambda x, t: torch.tensor(math.sqrt(eta2(float(t))), dtype=F64)  # noqa: E731
        return euler_maruyama(drift, amount, start, times, wiener(3, torch.arange(n), times, (1,)))[-1][:, 0]

    def away(end: Tensor) -> float:
        below = torch.searchsorted(end.sort().values, x).to(F64) / n
        return float((below - target).abs().sum() * (x[1] - x[0]))

    end = ends(0.5, 400)
    assert away(end) < 0.02  # 4000 rows of the mixture itself: .017 on average
    assert abs(float(end.mean()) - 0.23) < 0.02 and abs(float(end.var()) - 1.2366) < 0.02
    if without:
        assert away(ends(0.0, 150)) > without


def test_the_gaussian_reverse_step_is_the_true_kernel_with_kl_of_slope_2() -> None:
    """p(x_t | x_s) against N(x - (f - g^2 s) h, g^2 h) at s = t + h (book Sec. 4.5.2); g^2 / 2 is no reverse step."""
    law, s = exact.GaussianMixture([0.3, 0.7], [[-2.0], [1.5]], [0.16, 0.36]), 0.4
    misses, wrong = [], []
    for h in (0.02, 0.01, 0.005, 0.0025):
        step = math.sqrt(float(P.g2(s)) * h)
        x = torch.tensor([[-0.3]], dtype=F64)
        y = x + step * torch.linspace(-9, 9, 1201, dtype=F64)[:, None]
        truth = law.at(P, s).reverse(x.expand(1201, 1), s - h).log_prob(y)
        for push, kept in ((1.0, misses), (0.5, wrong)):
            centre = x - (P.f(s) * x - push * P.g2(s) * law.at(P, s).score(x)) * h
            guess = -0.5 * ((y - centre) / step).square().sum(1) - math.log(step * math.sqrt(2 * math.pi))
            kept.append(float((truth.exp() * (truth - guess)).sum() * step * 18 / 1200))
    slopes = [math.log2(a / b) for a, b in pairwise(misses)]
    assert 1.92 < slopes[0] < slopes[1] < slopes[2] < 2.0
    assert math.log2(wrong[-2] / wrong[-1]) < 1.4 and wrong[-1] > 4 * misses[-1]


def test_the_denoiser_is_a_martingale_along_the_reverse_sde() -> None:
    """E[D(x_t, t) | x_s] = D(x_s, s) by the exact reverse kernel; alpha_t-blind guesses are not martingales."""
    law = exact.GaussianMixture([0.4, 0.6], [[-1.0, 0.5], [1.0, -0.3]], [0.1, 0.3])
    denoiser, s, n = law.denoiser(P), 0.7, 20_000
    x = torch.tensor([[0.4, -0.2]], dtype=F64).expand(n, 2)
    here = denoiser(x[:1], s).x0[0]
    for t in (0.5, 0.1):
        there = law.at(P, s).reverse(x, t).sample(seed=1)
        within(denoiser(there, t).x0, here)
        noisy = denoiser(there, t).noise  # E[eps | x_t] is not one
        assert (noisy.mean(0) - denoiser(x[:1], s).noise[0]).abs().max() > 10 * noisy.std() / math.sqrt(n)
    times = torch.linspace(s, 0.3, 201, dtype=F64)  # and along the SDE itself, step by step
    drift = lambda x, t: P.f(t) * x - P.g2(t) * law.at(P, t).score(x)  # noqa: E731
    steps = wiener(11, torch.arange(4000), times, (2,))
    end = euler_maruyama(drift, lambda x, t: P.g2(t).sqrt(), x[:4000], times, steps)[-1]
    guess = denoiser(end, 0.3).x0
    assert ((guess.mean(0) - here).abs() < 4 * guess.std(0) / math.sqrt(4000) + 5e-3).all()


def test_steins_identity() -> None:
    """E[f'(z)] = E[z f(z)] by quadrature, E[div u(z)] = E[z . u(z)] by sampling, and with its scale."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(60))
    weights = weights / weights.sum()
    z = nodes[:, None]
    for f in (lambda z: z[:, 0] ** 5 - z[:, 0], lambda z: (2 * z[:, 0]).sin(), lambda z: z[:, 0].exp()):
        left, right = (weights * gradient(f, z)[:, 0]).sum(), (weights * nodes * f(z)).sum()
        assert abs(left - right) < 1e-11 and abs(left) > 0.1
    # Line 10232 prints dv = phi'(z) dz (phi the density): by parts that integrates -z f, the other sign.
    f = lambda z: (2 * z[:, 0]).sin()  # noqa: E731
    printed = (weights * gradient(lambda z: -0.5 * z[:, 0].square(), z)[:, 0] * f(z)).sum()
    assert abs(printed - (weights * gradient(f, z)[:, 0]).sum()) > 0.1

    n, sigma = 40_000, 0.5
    z = noise.normal(12, torch.arange(n), (2,), dtype=F64)
    a = lambda x: torch.stack([(x[:, 0] * x[:, 1]).sin(), x[:, 1] ** 3 + x[:, 0]], 1)  # noqa: E731
    within(divergence(a, z).value - (z * a(z)).sum(1), 0.0)
    noisy = torch.tensor([0.8, -0.4], dtype=F64) + sigma * z
    spreading = divergence(a, noisy).value
    within((sigma * z * a(noisy)).sum(1) - sigma**2 * spreading, 0.0)
    # Line 10248: the divergence of u(z) = a(x + sigma z) is in z, sigma times that in x + sigma z.
    torch.testing.assert_close(divergence(lambda z: a(noisy + sigma * (z - z.detach())), z).value, sigma * spreading)
    within((z * a(noisy)).sum(1) - sigma * spreading, 0.0)
    assert ((z * a(noisy)).sum(1) - spreading).mean().abs() > 0.1
