"""A data set as a law: against the dense softmax, at both ends, in bounded memory."""

import math
import resource

import pytest
import torch

from fokker import exact
from fokker.process import EDM, VP, Flow, Trig

F64 = torch.float64


def points(n=700, d=3, seed=1):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def dense(data, alpha, sigma, x):
    """(log p, responsibilities) by the formula, in float64."""
    logits = -0.5 * ((x[:, None, :] - alpha * data.double()) ** 2).sum(-1) / sigma**2
    log_p = torch.logsumexp(logits, 1) - math.log(len(data)) - 0.5 * x.shape[1] * torch.log(2 * math.pi * sigma**2)
    return log_p, logits.softmax(1)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("fokker.exact.points.BLOCK", 200)  # several blocks, the last one ragged


@pytest.mark.parametrize("lam", [-2.0, 0.5, 2.0])
def test_against_the_dense_softmax(process, small_blocks, lam):
    t = float(process.time(lam))
    alpha, sigma = process.alpha(t), process.sigma(t)
    data = points()
    law = exact.Empirical(data)
    x = law.at(process, t).sample(6, seed=3, dtype=F64)
    log_p, r = dense(data, alpha, sigma, x)
    mean = r @ data.double()
    at = law.at(process, t)
    torch.testing.assert_close(at.log_prob(x), log_p, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(at.score(x), (alpha * mean - x) / sigma**2, rtol=1e-11, atol=1e-11)
    away = data.double() - mean[:, None, :]
    cov = (r[..., None, None] * away[..., :, None] * away[..., None, :]).sum(1)
    torch.testing.assert_close(at.posterior(x).mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(at.posterior(x).cov, cov, rtol=1e-11, atol=1e-11)
    hessian = (alpha / sigma**2) ** 2 * cov - torch.eye(3, dtype=F64) / sigma**2
    torch.testing.assert_close(at.hessian(x), hessian, rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(at.laplacian(x), hessian.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-10, atol=1e-9)
    p = law.denoiser(process)(x, t)
    torch.testing.assert_close(p.x0, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(p.noise, (x - alpha * mean) / sigma, rtol=1e-11, atol=1e-11)
    low = law.denoiser(process)(x.float(), t)
    torch.testing.assert_close(low.x0.double(), mean, rtol=1e-4, atol=1e-4)


def test_is_a_mixture_of_atoms(process):
    data, t = points(40), float(process.time(0.7))
    law = exact.Empirical(data, labels=torch.arange(40) % 3)
    atoms = exact.GaussianMixture([1 / 40] * 40, data, [0.0] * 40, labels=torch.arange(40) % 3)
    x = law.at(process, t).sample(5, dtype=F64)
    for name in ("log_prob", "score", "hessian", "laplacian", "classify"):
        mine, theirs = (getattr(one.at(process, t), name)(x) for one in (law, atoms))
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    cond = torch.tensor([0, 2, -1, 1, 1])
    mine, theirs = law.denoiser(process)(x, t, cond), atoms.denoiser(process)(x, t, cond)
    torch.testing.assert_close(mine.x0, theirs.x0, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(mine.noise, theirs.noise, rtol=1e-11, atol=1e-11)
    s = float(process.time(-0.2))
    x = law.at(process, s).sample(5, dtype=F64)
    mine, theirs = law.at(process, s).reverse(x, t), atoms.at(process, s).reverse(x, t)
    to = law.at(process, t).sample(5, seed=1, dtype=F64)
    torch.testing.assert_close(mine.mean, theirs.mean, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(mine.cov, theirs.cov, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(mine.log_prob(to), theirs.log_prob(to), rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_both_ends(dtype):
    data = points(50)
    law = exact.Empirical(data)
    for process in (VP(), EDM(), Flow(), Trig()):
        p = law.denoiser(process)(data[7:9].to(dtype), 0.0)
        assert torch.equal(p.x0, data[7:9].to(dtype))
        assert torch.equal(p.noise, torch.zeros(2, 3, dtype=dtype))
    off = law.denoiser(Flow())((data[7:8] + 1e-3).to(dtype), 0.0)
    assert torch.equal(off.x0, data[7:8].to(dtype))
    x = torch.randn(4, 3).to(dtype)
    p = law.denoiser(Flow())(x, 1.0)
    torch.testing.assert_close(p.x0, data.mean(0).to(dtype).expand(4, 3), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(p.noise, x, rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=0)
    assert torch.isfinite(law.at(Flow(), 1.0).log_prob(x)).all()


@pytest.mark.parametrize("sigma", [1e-2, 1e-5, 1e-9])
def test_small_noise_is_read_back(sigma):
    data, process = points(50), EDM()
    eps = torch.randn(50, 3, dtype=F64)
    p = exact.Empirical(data).denoiser(process)(data.double() + sigma * eps, sigma)
    torch.testing.assert_close(p.x0, data.double(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(p.noise, eps, rtol=1e-9, atol=1e-15 / sigma)


def test_samples_and_moments():
    data = points(6)
    law = exact.Empirical(data, labels=[0, 0, 1, 1, 1, 1])
    x, labels = law.sample(3000, seed=2), law.sample_labels(3000, seed=2)
    which = torch.cdist(x, data).argmin(1)
    assert torch.equal(x, data[which])
    assert torch.equal(labels, (which >= 2).long())
    assert ((which.bincount() - 500).abs() < 4 * (3000 * 5 / 36) ** 0.5).all()
    torch.testing.assert_close(law.mean, data.double().mean(0))
    torch.testing.assert_close(law.cov, data.double().T.cov(correction=0))


def test_posterior_draws_by_weight(small_blocks):
    data = points(400, 2)
    law = exact.Empirical(data)
    one = torch.tensor([[0.3, -0.2]], dtype=F64)
    t = 0.3
    _, r = dense(data, VP().alpha(t), VP().sigma(t), one)
    draws = law.at(VP(), t).posterior(one.expand(8000, 2)).sample(seed=5)
    mean = r @ data.double()
    std = (r @ (data.double() - mean) ** 2).sqrt()
    assert ((draws.mean(0) - mean[0]).abs() < 4 * std[0] / 8000**0.5).all()
    assert (torch.cdist(draws, data.double()).amin(1) == 0).all()
    assert ((draws.std(0) / std[0] - 1).abs() < 0.05).all()


def test_images_keep_their_shape():
    data = points(20, 12).reshape(20, 3, 2, 2)
    law = exact.Empirical(data)
    assert law.sample(4).shape == (4, 3, 2, 2)
    p = law.denoiser(VP())(data[:4], 0.3)
    assert p.x0.shape == p.noise.shape == (4, 3, 2, 2)
    flat = exact.Empirical(data.flatten(1)).denoiser(VP())(data[:4].flatten(1), 0.3)
    assert torch.equal(p.x0.flatten(1), flat.x0)
    assert law.at(VP(), 0.2).score(data[:2]).shape == (2, 3, 2, 2)
    assert law.at(VP(), 0.2).reverse(data[:2], 0.1).mean.shape == (2, 3, 2, 2)


def test_jvp_is_the_posterior_covariance():
    law, x, t = exact.Empirical(points(60)), points(4).double(), 0.3
    at = law.at(VP(), t)
    for dtype, tol in ((F64, 1e-10), (torch.float32, 1e-3)):
        _, tangent = torch.func.jvp(at.score, (x.to(dtype),), (torch.ones(4, 3, dtype=dtype),))
        torch.testing.assert_close(tangent.double(), at.hessian(x).sum(-1), rtol=tol, atol=tol)


@pytest.mark.slow
def test_fifty_thousand_images_in_bounded_memory():
    data = torch.rand(50000, 784, generator=torch.Generator().manual_seed(0))
    law = exact.Empirical(data)
    x = law.at(VP(), 0.02).sample(16, seed=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    p = law.denoiser(VP())(x, 0.02)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 200  # MB; all the differences at once would be 2500
    assert torch.equal(law.denoiser(VP())(x[5:6], 0.02).x0, p.x0[5:6])
    alpha, sigma = VP().alpha(0.02), VP().sigma(0.02)
    y = x[:2].double() / alpha
    squares = torch.stack([(data.double() - row).square().sum(1) for row in y])
    r = (-0.5 * (alpha / sigma) ** 2 * squares).softmax(1)
    torch.testing.assert_close(p.x0[:2].double(), r @ data.double(), rtol=1e-5, atol=1e-5)
