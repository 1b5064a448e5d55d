"""Weak residuals: test functions against derivatives, samples of the right and of the wrong equation."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fokker import exact, noise
from fokker.calculus import Bumps, Fourier, euler_maruyama, generator, lobatto, weak_residual, wiener
from fokker.errors import ConfigError
from fokker.process import VP

F64 = torch.float64
LAW = exact.GaussianMixture(
    [0.4, 0.6], [[-1.0, 0.5], [1.0, -0.3]], [[[0.5, 0.2], [0.2, 0.4]], [[0.3, -0.1], [-0.1, 0.6]]]
)
P = VP()
WAVES = Fourier.random(2, 12, scale=1.5, seed=1)
BUMPS = Bumps([[0.0, 0.0], [1.0, -0.3], [-1.0, 0.8]], 0.8)
DENOISER = LAW.denoiser(P)


def velocity(x: Tensor, t: Tensor) -> Tensor:
    return DENOISER(x, t).velocity


def drift(x: Tensor, t: Tensor) -> Tensor:
    return P.f(t) * x


def amount(x: Tensor, t: Tensor) -> Tensor:
    return P.g2(t).sqrt()


def score(x: Tensor, t: Tensor) -> Tensor:
    return LAW.at(P, t).score(x)


def coupled(times: Tensor, n: int, seed: int = 0) -> Tensor:
    x0, eps = LAW.sample(n, seed, dtype=F64), noise.normal(seed + 100, torch.arange(n), (2,), dtype=F64)
    return torch.stack([P.perturb(x0, t, eps) for t in times])


def agrees(estimate: tuple[Tensor, Tensor], tolerance: float = 0.0) -> bool:
    value, stderr = estimate
    assert (stderr > 0).all()
    return bool((value.abs() < 4 * stderr + tolerance).all())


@pytest.mark.parametrize("tests", [WAVES, BUMPS], ids=["waves", "bumps"])
@pytest.mark.parametrize("kind", ["number", "a number a row", "matrix", "a matrix a row"])
def test_closed_forms_are_the_generator(tests: Fourier | Bumps, kind: str) -> None:
    x = LAW.sample(6, dtype=F64)
    G = torch.tensor([[1.0, 0.4, -0.2], [0.8, 0.3, 0.5]], dtype=F64)
    rows = torch.linspace(0.5, 2.0, 6, dtype=F64)
    given = {"number": 0.7, "a number a row": rows, "matrix": G, "a matrix a row": rows[:, None, None] * G}[kind]
    push = lambda x: x.flip(1).sin()  # noqa: E731
    noisy = given if isinstance(given, float) else lambda x: given
    first, second = tests.parts(x, push(x), torch.as_tensor(given))
    torch.testing.assert_close(first, generator(tests, push, 0.0, x).value)
    torch.testing.assert_close(first + second, generator(tests, push, noisy, x).value)
    picture = lambda x: tests(x.flatten(1))  # noqa: E731
    torch.testing.assert_close(tests(x[:, None]), picture(x))


def test_fourier_formula_and_randomness() -> None:
    x = LAW.sample(5, dtype=F64)
    k, c = WAVES.frequencies.value, WAVES.phases.value
    torch.testing.assert_close(WAVES(x), torch.cos(x @ k.mT + c))
    torch.testing.assert_close(BUMPS(x)[:, 1], torch.exp(-(x - torch.tensor([1, -0.3])).square().sum(1) / 1.28))
    assert WAVES == Fourier.random(2, 12, scale=1.5, seed=1) != Fourier.random(2, 12, scale=1.5, seed=2)
    many = Fourier.random(3, 4000, scale=2.0)
    assert abs(many.frequencies.value.std() - 0.5) < 0.01
    assert abs(many.phases.value.mean() - math.pi) < 0.15 and many.phases.value.max() > 6.2


def test_lobatto_is_exact_to_its_degree() -> None:
    for n in (2, 3, 5, 8):
        t, w = lobatto(0.2, 1.5, n)
        assert t[0] == 0.2 and t[-1] == 1.5 and len(t) == n
        for degree in (0, 2 * n - 3):
            wanted = (1.5 ** (degree + 1) - 0.2 ** (degree + 1)) / (degree + 1)
            assert abs((w * t**degree).sum() - wanted) < 1e-13 * max(1.0, wanted)
        assert abs((w * t ** (2 * n - 2)).sum() - (1.5 ** (2 * n - 1) - 0.2 ** (2 * n - 1)) / (2 * n - 1)) > 1e-9
    back, signed = lobatto(1.0, 0.0, 4)
    assert back[0] == 1.0 and abs(signed.sum() + 1) < 1e-14


@pytest.mark.parametrize("tests", [WAVES, BUMPS], ids=["waves", "bumps"])
def test_samples_of_the_right_equation(tests: Fourier | Bumps) -> None:
    times, weights = lobatto(0.2, 0.6, 7)
    states = coupled(times, 4000)
    assert agrees(weak_residual(tests, times, states, velocity, weights=weights))
    assert agrees(weak_residual(tests, times, states, drift, amount, weights=weights))
    # negative controls: f - g^2 s in the place of the velocity, the noise forgotten
    wrong = lambda x, t: drift(x, t) - P.g2(t) * score(x, t)  # noqa: E731
    for field in (wrong, drift):
        value, stderr = weak_residual(tests, times, states, field, weights=weights)
        assert (value.abs() / stderr).max() > 20
    own = weak_residual(lambda x: tests(x), times, states, drift, amount, weights=weights)
    torch.testing.assert_close(own, weak_residual(tests, times, states, drift, amount, weights=weights))
    apart = torch.stack([LAW.at(P, t).sample(4000, seed=i, dtype=F64) for i, t in enumerate(times)])
    independent = weak_residual(tests, times, apart, velocity, weights=weights)
    assert agrees(independent)
    assert (independent.stderr > weak_residual(tests, times, states, velocity, weights=weights).stderr).all()


def test_decreasing_times_are_a_reverse_sde() -> None:
    times, weights = lobatto(0.6, 0.2, 7)
    states = coupled(times, 4000)
    reverse = lambda x, t: drift(x, t) - P.g2(t) * score(x, t)  # noqa: E731
    assert agrees(weak_residual(WAVES, times, states, reverse, amount, weights=weights))
    assert agrees(weak_residual(WAVES, times, states, velocity, weights=weights))
    value, stderr = weak_residual(WAVES, times, states, drift, amount, weights=weights)
    assert (value.abs() / stderr).max() > 20
    fine = torch.linspace(0.6, 0.2, 101, dtype=F64)
    start, steps = LAW.at(P, 0.6).sample(2000, dtype=F64), wiener(3, torch.arange(2000), fine, (2,))
    path = euler_maruyama(reverse, amount, start, fine, steps)
    assert agrees(weak_residual(WAVES, fine, path, reverse, amount), 2e-3)


def test_correlated_noise_needs_its_matrix() -> None:
    """Seed 003, Thm 2.1: with (1/2)|G|^2 Lap in the place of the matrix the samples disagree."""
    G = torch.tensor([[1.0, 0.0], [0.8, 0.3]], dtype=F64)
    times, weights = lobatto(0.0, 0.5, 5)
    z = noise.normal(1, torch.arange(8000), (2,), dtype=F64)
    states = torch.stack([LAW.sample(8000, dtype=F64) + t.sqrt() * z @ G.mT for t in times])
    still = lambda x, t: torch.zeros_like(x)  # noqa: E731
    assert agrees(weak_residual(WAVES, times, states, still, G, weights=weights), 1e-4)
    value, stderr = weak_residual(WAVES, times, states, still, float(G.norm()), weights=weights)
    assert (value.abs() / stderr).max() > 20


def test_standard_errors_are_calibrated() -> None:
    times, weights = lobatto(0.2, 0.6, 5)
    results = [weak_residual(WAVES, times, coupled(times, 100, s), drift, amount, weights=weights) for s in range(150)]
    values, errors = torch.stack([r.value for r in results]), torch.stack([r.stderr for r in results])
    assert (values.mean(0).abs() < 4 * values.std(0) / math.sqrt(150)).all()
    ratio = values.var(0) / errors.square().mean(0)
    assert abs(ratio.mean() - 1) < 0.15 and (ratio > 0.6).all() and (ratio < 1.6).all()


def test_a_dirac_delta_is_no_test_function() -> None:
    """Seed 003, line 105: at mass 1 and width w the error grows like w^-5/2 while the residual stays 0."""
    n, dt, centre = 20_000, 0.1, 0.6
    x = math.sqrt(2.0) * torch.special.erfinv((2.0 * torch.arange(n, dtype=F64) + 1.0) / n - 1.0)[:, None]
    errors = []
    for w in (0.2, 0.1, 0.05, 0.025):  # dx = -x dt + sqrt(2) dw leaves N(0, 1) as it is
        found = weak_residual(
            Bumps([[centre]], w), torch.tensor([0.0, dt]), torch.stack([x, x]), lambda x, t: -x, math.sqrt(2.0)
        )
        mass = math.sqrt(2.0 * math.pi) * w
        assert abs(float(found.value)) < 1e-4 * dt / w
        errors.append(float(found.stderr) / mass)
        # int (phi'')^2 = 3/4 sqrt(pi) / w^3
        density = math.exp(-0.5 * centre**2) / math.sqrt(2.0 * math.pi)
        limit = dt * math.sqrt(0.75 * math.sqrt(math.pi) * density / (n * w**3)) / mass
    assert errors[-1] == pytest.approx(limit, rel=5e-3)
    slopes = [math.log2(b / a) for a, b in pairwise(errors)]
    assert slopes == pytest.approx([2.5] * 3, abs=0.1) and errors[-1] > 100.0 * errors[0]
    # The delta's own limit of the plain part, E[phi], is finite: it is the derivatives that are not.
    assert float(Bumps([[centre]], 0.025)(x).mean()) / mass == pytest.approx(density, rel=1e-3)


def test_single_precision_and_trapezoid() -> None:
    times = torch.linspace(0.2, 0.6, 33, dtype=F64)
    states = coupled(times, 3000)
    double = weak_residual(WAVES, times, states, velocity)
    single = weak_residual(WAVES, times, states.float(), velocity)
    assert single.value.dtype == torch.float32
    torch.testing.assert_close(single.value.double(), double.value, rtol=0.0, atol=1e-5)
    sharp, weights = lobatto(0.2, 0.6, 9)
    best = weak_residual(WAVES, sharp, coupled(sharp, 3000), velocity, weights=weights)
    torch.testing.assert_close(double.value, best.value, rtol=0.0, atol=2e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lobatto(0.0, 1.0, 1), "n: given 1, must be 2 or more"),
        (lambda: weak_residual(WAVES, torch.ones(3), torch.ones(2, 4, 2), velocity), "states: given 2 for 3 times"),
        (lambda: Bumps([[0.0]], width=0.0), "Bumps.width: given 0.0, must be greater than 0"),
    ],
)
def test_refusals(call, message) -> None:
    with pytest.raises(ConfigError, match=message):
        call()
