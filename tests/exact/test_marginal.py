"""Densities, scores, Hessians and Laplacians against dense matrices and autograd; the evolution equations on a grid."""

import pytest
import torch

from fokker import exact
from fokker.errors import ConfigError
from fokker.process import VP, DiscreteVP, Flow

F64 = torch.float64


def states(n, d):
    return 2.0 * torch.randn(n, d, dtype=F64, generator=torch.Generator().manual_seed(5))


def test_density_score_hessian_laplacian_against_dense_autograd(process, law, reference):
    t = float(process.time(0.3))
    log_p = reference(law, process.alpha(t), process.sigma(t))
    x, at = states(5, 3), law.at(process, t)
    torch.testing.assert_close(at.log_prob(x), torch.stack([log_p(row) for row in x]), rtol=1e-12, atol=1e-12)
    score = torch.stack([torch.func.grad(log_p)(row) for row in x])
    torch.testing.assert_close(at.score(x), score, rtol=1e-10, atol=1e-10)
    hessian = torch.stack([torch.func.hessian(log_p)(row) for row in x])
    torch.testing.assert_close(at.hessian(x), hessian, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(at.laplacian(x), hessian.diagonal(dim1=1, dim2=2).sum(-1), rtol=1e-10, atol=1e-10)


def test_own_autograd_agrees(law):
    at = law.at(VP(), 0.2)
    x = states(4, 3).requires_grad_()
    (score,) = torch.autograd.grad(at.log_prob(x).sum(), x)
    torch.testing.assert_close(at.score(x), score, rtol=1e-10, atol=1e-10)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: at.score(row[None])[0]))(x.detach())
    torch.testing.assert_close(at.hessian(x.detach()), jacobian, rtol=1e-10, atol=1e-10)
    forward = torch.func.jvp(at.score, (x.detach(),), (torch.ones_like(x),))[1]
    torch.testing.assert_close(forward, jacobian.sum(-1), rtol=1e-10, atol=1e-10)


def test_the_data_itself(law, reference):
    one, zero = torch.ones((), dtype=F64), torch.zeros((), dtype=F64)
    x, log_p = states(4, 3), reference(law, one, zero)
    torch.testing.assert_close(law.log_prob(x), torch.stack([log_p(row) for row in x]), rtol=1e-12, atol=1e-12)
    assert torch.equal(law.log_prob(x), law.at(Flow(), 0.0).log_prob(x))


def test_times_may_differ_by_row(process, law):
    x, lam = states(5, 3), torch.linspace(-1.5, 2.5, 5, dtype=F64)
    times = process.time(lam)
    at = law.at(process, times)
    for name in ("log_prob", "score", "hessian", "laplacian"):
        rows = [getattr(law.at(process, float(t)), name)(row[None])[0] for t, row in zip(times, x, strict=True)]
        torch.testing.assert_close(getattr(at, name)(x), torch.stack(rows), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(at.mean[3], law.at(process, times[3]).mean)
    torch.testing.assert_close(at.posterior(x).mean[2], law.at(process, times[2]).posterior(x[2:3]).mean[0])


def test_float32_follows_float64(process, law):
    t, x = float(process.time(1.0)), states(6, 3).float()
    low, high = law.at(process, t), law.at(process, t)
    for name in ("log_prob", "score", "laplacian"):
        value = getattr(low, name)(x)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), getattr(high, name)(x.double()), rtol=2e-5, atol=2e-5)


def test_sample_has_the_moments_of_the_law(process, law):
    t, n = float(process.time(0.3)), 20000
    at = law.at(process, t)
    x = at.sample(n, seed=3, dtype=F64)
    cov, away = at.cov, x - at.mean
    assert ((away.mean(0)).abs() < 4 * (cov.diagonal() / n).sqrt()).all()
    products = away[:, :, None] * away[:, None, :]
    assert ((products.mean(0) - cov).abs() < 4 * products.std(0) / n**0.5).all()
    data = law.sample(n, seed=3, dtype=F64)
    rest = (x - process.alpha(t) * data) / process.sigma(t)
    assert (rest.mean(0).abs() < 4 / n**0.5).all()
    assert ((rest.var(0) - 1).abs() < 4 * (2 / n) ** 0.5).all()
    assert ((rest.T @ (data - data.mean(0)) / n).abs() < 4 * data.std(0) / n**0.5 * 1.1).all()


def test_moments_by_hand(line, law):
    torch.testing.assert_close(line.mean, torch.tensor([0.45], dtype=F64))
    torch.testing.assert_close(line.cov, torch.tensor([[0.3 * 0.16 + 0.7 * 0.36 + 0.3 * 0.7 * 3.5**2]], dtype=F64))
    data = law.sample(200000, seed=1, dtype=F64)
    assert ((data.T.cov() - law.cov).abs() < 0.05 * law.cov.diagonal().max()).all()


def test_a_sample_depends_on_its_number_only(law):
    for dtype in (torch.float32, F64):
        many = law.at(VP(), 0.4).sample(40, seed=7, dtype=dtype)
        some = law.at(VP(), 0.4).sample(3, seed=7, index=torch.tensor([17, 3, 39]), dtype=dtype)
        assert torch.equal(some, many[[17, 3, 39]])
        assert not torch.equal(many, law.at(VP(), 0.4).sample(40, seed=8, dtype=dtype))


def test_labels_belong_to_samples(line):
    x, labels = line.sample(500, seed=2), line.sample_labels(500, seed=2)
    assert (x[labels == 0] < 0.3).all()
    assert (x[labels == 1] > -1.5).all()
    assert 0.2 < (labels == 0).float().mean() < 0.4


def test_classify_is_bayes(process, line):
    t = float(process.time(-0.2))
    alpha, sigma = process.alpha(t), process.sigma(t)
    x = states(6, 1)
    joint = torch.stack(
        [
            w * torch.distributions.Normal(alpha * m, (alpha**2 * v + sigma**2).sqrt()).log_prob(x[:, 0]).exp()
            for w, m, v in ((0.3, -2.0, 0.16), (0.7, 1.5, 0.36))
        ],
        dim=1,
    )
    torch.testing.assert_close(line.at(process, t).classify(x), joint / joint.sum(1, keepdim=True), rtol=1e-11, atol=0)


def test_classes_of_several_components(make_law):
    law = make_law("full", labelled=True)
    x, at = states(5, 3), law.at(VP(), 0.3)
    inside = [law.given(c).at(VP(), 0.3).log_prob(x).exp() for c in (0, 1)]
    mass = [law.weights.value[[0, 2]].sum(), law.weights.value[1]]
    torch.testing.assert_close(mass[0] * inside[0] + mass[1] * inside[1], at.log_prob(x).exp(), rtol=1e-11, atol=0)
    torch.testing.assert_close(at.classify(x)[:, 0], mass[0] * inside[0] / at.log_prob(x).exp(), rtol=1e-11, atol=0)


def _residuals(law, process, t, h):
    """Largest residual of the continuity and of the Fokker-Planck equation, by central differences of step h."""
    x = torch.linspace(-4, 4, 33, dtype=F64)[:, None]
    # DDPM's chain has a kink at every level: stay between two of them.
    scale = 10.0 / process.steps if isinstance(process, DiscreteVP) else 0.05 * min(1.0, t)

    def density(u, y):
        return law.at(process, u).log_prob(y).exp()[:, None]

    rate = (density(t + h * scale, x) - density(t - h * scale, x)) / (2 * h * scale)

    def flux(y):
        return law.denoiser(process)(y, t).velocity * density(t, y)

    continuity = rate + (flux(x + h) - flux(x - h)) / (2 * h)

    def drift(y):
        return process.f(t) * y * density(t, y)

    diffusion = 0.5 * process.g2(t) * (density(t, x + h) - 2 * density(t, x) + density(t, x - h)) / h**2
    fokker_planck = rate + (drift(x + h) - drift(x - h)) / (2 * h) - diffusion
    return torch.stack([continuity.abs().max(), fokker_planck.abs().max()]), rate.abs().max()


def test_continuity_and_fokker_planck_residuals_fall_with_slope_two(process, line):
    t = float(process.time(0.5))
    if isinstance(process, DiscreteVP):
        t = (int(t * process.steps) + 0.5) / process.steps
    coarse, scale = _residuals(line, process, t, 0.04)
    fine, _ = _residuals(line, process, t, 0.02)
    assert (fine < 0.02 * scale).all()
    torch.testing.assert_close((coarse / fine).log2(), torch.full((2,), 2.0, dtype=F64), rtol=0, atol=0.05)


def test_high_dimension_low_rank_against_a_rotated_diagonal():
    d, r, g = 4096, 4, torch.Generator().manual_seed(1)
    u = torch.randn(d, generator=g, dtype=F64)
    u /= u.norm()

    def turn(x):  # a Householder reflection: its own inverse
        return x - 2 * (x @ u)[..., None] * u

    means = torch.randn(2, d, generator=g, dtype=F64)
    along, rest = torch.rand(2, r, generator=g, dtype=F64) * 3 + 0.5, torch.tensor([0.2, 0.05], dtype=F64)
    axes = torch.zeros(2, r, d, dtype=F64)
    axes[:, range(r), range(r)] = along.sqrt()
    values = rest[:, None].repeat(1, d)
    values[:, :r] += along
    weights = [0.4, 0.6]
    low = exact.GaussianMixture(weights, turn(means), rest, factors=turn(axes).mT)
    plain = exact.GaussianMixture(weights, means, values)
    spread = exact.GaussianMixture(weights, turn(means), rest[:, None].expand(2, d), factors=turn(axes).mT)
    x = plain.at(VP(), 0.05).sample(3, seed=1, dtype=F64)
    for law in (low, spread):
        at, other = law.at(VP(), 0.05), plain.at(VP(), 0.05)
        torch.testing.assert_close(at.log_prob(turn(x)), other.log_prob(x), rtol=1e-11, atol=1e-8)
        torch.testing.assert_close(turn(at.score(turn(x))), other.score(x), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(at.laplacian(turn(x)), other.laplacian(x), rtol=1e-10, atol=1e-8)
        p, q = law.denoiser(VP())(turn(x), 0.05), plain.denoiser(VP())(x, 0.05)
        torch.testing.assert_close(turn(p.x0), q.x0, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(turn(p.noise), q.noise, rtol=1e-9, atol=1e-10)
        back = at.posterior(turn(x))
        drawn = torch.stack([turn(back.sample(seed=k)) - q.x0 for k in range(60)])
        # The components are far apart in this dimension: the nearest mean names the one that x came from.
        own = rest[torch.cdist(x, VP().alpha(0.05) * means).argmin(1)]
        variance = own / (VP().alpha(0.05) ** 2 * own / VP().sigma(0.05) ** 2 + 1)
        ratio = drawn[..., r:].square().mean((0, 2)) / variance
        assert ((ratio - 1).abs() < 0.02).all()


@pytest.mark.parametrize("kind", ["low rank", "low rank + diagonal"])
def test_low_rank_is_full_rank_by_another_way(make_law, kind):
    low = make_law(kind, components=3, d=80, rank=7)
    full = exact.GaussianMixture(low.weights, low.means, low._core.family.covs())
    assert type(low._core.family) is not type(full._core.family)
    for t in (0.01, 0.3, torch.tensor([0.9, 0.2, 0.05], dtype=F64)):
        x = full.at(VP(), t).sample(3, seed=2, dtype=F64)
        for name in ("log_prob", "score", "hessian", "laplacian"):
            mine, theirs = (getattr(law.at(VP(), t), name)(x) for law in (low, full))
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
        back, other = low.at(VP(), t).posterior(x), full.at(VP(), t).posterior(x)
        torch.testing.assert_close(back.mean, other.mean, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(back.cov, other.cov, rtol=1e-9, atol=1e-10)
        p, q = low.denoiser(VP())(x, t), full.denoiser(VP())(x, t)
        torch.testing.assert_close(p.noise, q.noise, rtol=1e-9, atol=1e-10)


def test_shapes_are_checked(line):
    with pytest.raises(ConfigError, match=r"given shape \(4,\), must be \(B, 1\)"):
        line.at(VP(), 0.5).score(torch.zeros(4))
    with pytest.raises(ConfigError, match=r"take law\.at"):
        line._clean().posterior(torch.zeros(4, 1))
