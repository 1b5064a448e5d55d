"""The exact denoiser: both readings at both ends, conditions, bits that do not depend on the batch."""

import math

import pytest
import torch

from fokker import exact
from fokker.errors import ConfigError
from fokker.prediction import Denoiser
from fokker.process import EDM, VE, VP, Flow, Trig, clocks

F64 = torch.float64


def states(n, d):
    return 1.5 * torch.randn(n, d, dtype=F64, generator=torch.Generator().manual_seed(8))


def test_readings_agree_with_the_marginal(process, law):
    t, x = float(process.time(0.4)), states(6, 3)
    p, at = law.denoiser(process)(x, t), law.at(process, t)
    torch.testing.assert_close(p.x0, at.posterior(x).mean, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(p.score, at.score(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(p.noise, -process.sigma(t) * at.score(x), rtol=1e-12, atol=1e-12)
    f, g2 = process.f(t), process.g2(t)
    torch.testing.assert_close(p.velocity, f * x - 0.5 * g2 * at.score(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("lam", [-7.0, -3.0, 0.0, 3.0, 7.0, 12.0])
def test_the_pair_explains_the_state_at_every_level(law, lam):
    process = EDM(sigma_max=1e4)
    s = float(process.time(lam))
    alpha, sigma = process.alpha(s), process.sigma(s)
    x = law.at(process, s).sample(8, dtype=F64)
    p = law.denoiser(process)(x, s)
    torch.testing.assert_close(alpha * p.x0 + sigma * p.noise, x, rtol=1e-13, atol=1e-13 * float(1 + sigma))


def test_one_gaussian_keeps_twelve_digits_towards_both_ends():
    law, process = exact.Gaussian([0.7], 0.36), Flow()
    for s in (1e-12, 1e-8, 1e-3, 0.5, 1 - 1e-3, 1 - 1e-8, 1 - 1e-12):
        alpha, sigma = float(process.alpha(s)), float(process.sigma(s))
        x = torch.tensor([[alpha * 1.1 + 0.3 * sigma]], dtype=F64)
        v = alpha**2 * 0.36 + sigma**2
        y = float(x) - alpha * 0.7
        p = law.denoiser(process)(x, s)
        assert float(p.noise) == pytest.approx(sigma * y / v, rel=1e-12)
        assert float(p.x0) == pytest.approx(0.7 + alpha * 0.36 * y / v, rel=1e-12)


def test_ends_by_value(law):
    x = states(5, 3)
    for process in (VP(), VE(), EDM(), Flow(), Trig()):
        clean = law.denoiser(process)(x, 0.0)
        torch.testing.assert_close(clean.x0, x, rtol=1e-12, atol=1e-12)
        assert torch.equal(clean.noise, torch.zeros_like(x))
    noisy = law.denoiser(Flow())(x, 1.0)
    torch.testing.assert_close(noisy.x0, law.mean.expand(5, 3), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(noisy.noise, x, rtol=1e-13, atol=0)
    torch.testing.assert_close(noisy.velocity, x - law.mean, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_singular_covariances_stay_finite_at_the_clean_end(dtype):
    flat = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=F64)
    law = exact.GaussianMixture([0.5, 0.5], [[0.0, 0, 0], [8, 0, 0]], (flat[:1].T @ flat[:1]).expand(2, 3, 3))
    atoms = exact.GaussianMixture([0.5, 0.5], [[0.0, 0, 0], [8, 0, 0]], [0.0, 0.0])
    on = torch.tensor([[0.5, 0.5, 0.0], [8.3, 0.3, 0.0]], dtype=dtype)
    tol = 1e-5 if dtype == torch.float32 else 1e-12
    p = law.denoiser(Flow())(on, 0.0)
    torch.testing.assert_close(p.x0, on, rtol=tol, atol=tol)
    assert torch.equal(p.noise, torch.zeros_like(on))
    p = atoms.denoiser(Flow())(torch.tensor([[0.0, 0, 0], [8, 0, 0], [5, 1, 1]], dtype=dtype), 0.0)
    assert torch.equal(p.x0, torch.tensor([[0.0, 0, 0], [8, 0, 0], [8, 0, 0]], dtype=dtype))
    assert torch.equal(p.noise, torch.zeros_like(p.noise))


def test_protocol_and_lam_range(process, law):
    denoiser = law.denoiser(process)
    assert isinstance(denoiser, Denoiser)
    assert denoiser.shape == (3,)
    assert denoiser.reading is None
    assert denoiser.lam_range == clocks.lam_range(process)


def test_conditions_are_classes_per_sample(make_law):
    law = make_law("diagonal", labelled=True)
    denoiser, x, s = law.denoiser(VP()), states(5, 3), 0.4
    p = denoiser(x, s, torch.tensor([0, 1, -1, 1, 0]))
    for row, label in enumerate([0, 1, -1, 1, 0]):
        alone = (law.given(label) if label >= 0 else law).denoiser(VP())(x[row : row + 1], s)
        torch.testing.assert_close(p.x0[row], alone.x0[0], rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(p.noise[row], alone.noise[0], rtol=1e-13, atol=1e-13)
    assert torch.equal(denoiser(x, s, 1).x0[3], p.x0[3])
    assert torch.equal(denoiser(x, s, -1).x0, denoiser(x, s).x0)
    mixed = law.at(VP(), s).classify(x)  # Bayes: the whole is the classes' average
    parts = torch.stack([denoiser(x, s, c).score for c in (0, 1)], 1)
    torch.testing.assert_close((mixed[..., None] * parts).sum(1), denoiser(x, s).score, rtol=1e-12, atol=1e-12)


def test_bad_conditions_and_times(line, make_law):
    x = states(3, 1)
    with pytest.raises(ConfigError, match="allowed: 0 to 1"):
        line.denoiser(VP())(x, 0.5, 2)
    with pytest.raises(ConfigError, match="one per sample"):
        line.denoiser(VP())(x, 0.5, torch.tensor([0, 1]))
    with pytest.raises(ConfigError, match="no labels"):
        make_law("full").denoiser(VP())(states(3, 3), 0.5, 0)
    with pytest.raises(ConfigError, match="must be a number or"):
        line.denoiser(VP())(x, torch.tensor([0.5, 0.6]))


BIG = [("isotropic", 8, 2, 1), ("diagonal", 5, 17, 1), ("full", 5, 3, 1), ("full", 3, 33, 1), ("low rank", 10, 64, 4)]
BIG += [("low rank", 3, 80, 7), ("low rank + diagonal", 3, 80, 7), ("low rank", 2, 784, 10), ("empirical", 60, 784, 0)]
BIG += [("empirical", 500, 2, 0), ("woodbury + diagonal", 3, 5, 2)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize(("kind", "k", "d", "rank"), BIG)
def test_bits_do_not_depend_on_the_batch(make_law, kind, k, d, rank, dtype, threads):
    g = torch.Generator().manual_seed(2)
    if kind == "empirical":
        law = exact.Empirical(torch.randn(k * 20, d, generator=g), labels=torch.arange(k * 20) % 2)
    else:
        law = make_law(kind, k, d, rank, labelled=True)
    x = torch.randn(64, d, generator=g, dtype=F64).to(dtype)
    times, cond = torch.rand(64, generator=g, dtype=F64), torch.randint(-1, 2, (64,), generator=g)
    denoiser = law.denoiser(VP())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for s in (0.03, times):
            whole = denoiser(x, s, cond)
            density = law.at(VP(), s).log_prob(x)
            for start, stop in ((0, 1), (5, 6), (33, 34), (63, 64), (0, 7), (30, 37), (57, 64)):
                part = slice(start, stop)
                at = s if isinstance(s, float) else s[part]
                some = denoiser(x[part], at, cond[part])
                assert torch.equal(some.x0, whole.x0[part])
                assert torch.equal(some.noise, whole.noise[part])
                assert torch.equal(law.at(VP(), at).log_prob(x[part]), density[part])
    finally:
        torch.set_num_threads(before)


def test_a_large_batch_is_cut_without_a_trace(make_law):
    law = make_law("low rank", 4, 784, 5)
    x = torch.randn(1500, 784)
    whole = law.denoiser(VP())(x, 0.3)
    assert law._core.rows(x) < 1500
    assert torch.equal(law.denoiser(VP())(x[1320:1360], 0.3).noise, whole.noise[1320:1360])


def test_differentiable_through_both_readings(law):
    process, s = VP(), 0.3
    x = states(4, 3)
    at = law.at(process, s)
    _, tangent = torch.func.jvp(lambda y: law.denoiser(process)(y, s).noise, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, -process.sigma(s) * at.hessian(x).sum(-1), rtol=1e-10, atol=1e-10)


def test_gaussian_is_a_mixture_of_one():
    cov = [[1.0, 0.3], [0.3, 0.5]]
    one, mixture = exact.Gaussian([1.0, -1.0], cov), exact.GaussianMixture([1.0], [[1.0, -1.0]], [cov])
    x = states(4, 2)
    assert torch.equal(one.denoiser(VP())(x, 0.3).x0, mixture.denoiser(VP())(x, 0.3).x0)
    plain = torch.distributions.MultivariateNormal(one.mean.value, one.cov.value)
    torch.testing.assert_close(one.log_prob(x), plain.log_prob(x), rtol=1e-13, atol=1e-13)
    assert torch.equal(one.moments().mean, one.mean.value)
    torch.testing.assert_close(one.moments().cov, one.cov.value, rtol=1e-14, atol=1e-14)
    for other, var in ((2.0, 2.0), ([2.0, 2.0], 2.0)):
        log_p = -0.25 * ((x - one.mean.value) ** 2).sum(1) - math.log(2 * math.pi * var)
        torch.testing.assert_close(exact.Gaussian([1.0, -1.0], other).log_prob(x), log_p, rtol=1e-13, atol=1e-13)
