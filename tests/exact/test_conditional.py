"""The posterior of x_0 and the reverse kernel: Tweedie, brute-force Bayes on a grid, Chapman-Kolmogorov, samples."""

import math

import pytest
import torch

from fokker.errors import ConfigError, UndeterminedError
from fokker.process import VE, VP, Flow

F64 = torch.float64
GRID = torch.linspace(-9, 9, 36001, dtype=F64)
STEP = float(GRID[1] - GRID[0])


def states(n, d):
    return 1.5 * torch.randn(n, d, dtype=F64, generator=torch.Generator().manual_seed(6))


def mixture_density(weights, means, covs, x):
    """sum_k w_k N(x; m_k, C_k) for rows of one dimension: (B, K), (B, K, 1), (B, K, 1, 1), x (B, N) -> (B, N)."""
    var = covs[..., 0, 0][:, :, None]
    normal = (-0.5 * (x[:, None, :] - means) ** 2 / var).exp() / (2 * math.pi * var).sqrt()
    return (weights[..., None] * normal).sum(1)


def test_tweedie_and_the_second_order_identity(process, law):
    t = float(process.time(0.2))
    alpha, sigma = process.alpha(t), process.sigma(t)
    x, at = states(5, 3), law.at(process, t)
    back = at.posterior(x)
    torch.testing.assert_close(back.mean, (x + sigma**2 * at.score(x)) / alpha, rtol=1e-11, atol=1e-11)
    eye = torch.eye(3, dtype=F64)
    cov = (sigma / alpha) ** 2 * (eye + sigma**2 * at.hessian(x))
    torch.testing.assert_close(back.cov, cov, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(back.cov, back.cov.mT, rtol=0, atol=1e-14)


@pytest.mark.parametrize("lam", [-1.0, 0.5, 2.0])
def test_posterior_against_quadrature(process, line, lam):
    t = float(process.time(lam))
    x = states(5, 1)
    prior = line.log_prob(GRID[:, None])
    joint = (prior - 0.5 * ((x - process.alpha(t) * GRID) / process.sigma(t)) ** 2).exp()
    density = joint / (joint.sum(1, keepdim=True) * STEP)
    mean = (density * GRID).sum(1) * STEP
    var = (density * (GRID - mean[:, None]) ** 2).sum(1) * STEP
    back = line.at(process, t).posterior(x)
    torch.testing.assert_close(back.mean[:, 0], mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(back.cov[:, 0, 0], var, rtol=1e-9, atol=1e-10)
    part = GRID[::3000, None]
    for row in range(5):
        here = line.at(process, t).posterior(x[row : row + 1].expand(len(part), 1))
        torch.testing.assert_close(here.log_prob(part).exp(), density[row, ::3000], rtol=1e-9, atol=1e-12)
    parts = mixture_density(back.weights, back.means, back.covs, GRID[::3000].expand(5, -1))
    torch.testing.assert_close(parts, density[:, ::3000], rtol=1e-9, atol=1e-12)


def test_reverse_kernel_against_bayes_on_a_grid(process, line):
    s, t = float(process.time(-0.4)), float(process.time(0.6))
    x = states(4, 1) * float(process.alpha(s) + process.sigma(s))
    a, b = process.transition(t, s)
    joint = (line.at(process, t).log_prob(GRID[:, None]) - 0.5 * ((x - a * GRID) / b) ** 2).exp()
    density = joint / (joint.sum(1, keepdim=True) * STEP)
    kernel = line.at(process, s).reverse(x, t)
    mean = (density * GRID).sum(1) * STEP
    torch.testing.assert_close(kernel.mean[:, 0], mean, rtol=1e-9, atol=1e-9)
    var = (density * (GRID - mean[:, None]) ** 2).sum(1) * STEP
    torch.testing.assert_close(kernel.cov[:, 0, 0], var, rtol=1e-8, atol=1e-9)
    parts = mixture_density(kernel.weights, kernel.means, kernel.covs, GRID[::500].expand(4, -1))
    torch.testing.assert_close(parts, density[:, ::500], rtol=1e-8, atol=1e-11)
    at = torch.tensor([[-1.0], [0.2], [0.7], [1.1]], dtype=F64)
    own = mixture_density(kernel.weights, kernel.means, kernel.covs, at).log()[:, 0]
    torch.testing.assert_close(kernel.log_prob(at), own, rtol=1e-10, atol=1e-10)


def test_chapman_kolmogorov(process, line):
    s, t = float(process.time(-0.3)), float(process.time(0.8))
    wide = GRID[::20, None] * float(process.alpha(s) + 1.2 * process.sigma(s))
    kernel = line.at(process, s).reverse(wide, t)
    p_s = line.at(process, s).log_prob(wide).exp()
    targets = torch.linspace(-3, 3, 9, dtype=F64) * float(process.alpha(t))
    density = mixture_density(kernel.weights, kernel.means, kernel.covs, targets.expand(len(wide), -1))
    together = (density * p_s[:, None]).sum(0) * float(wide[1, 0] - wide[0, 0])
    torch.testing.assert_close(together, line.at(process, t).log_prob(targets[:, None]).exp(), rtol=1e-9, atol=1e-10)


def test_components_make_up_the_kernel_in_any_dimension(law):
    x, to = states(4, 3), states(4, 3) * 0.5
    kernel = law.at(VP(), 0.6).reverse(x, 0.3)
    normals = torch.distributions.MultivariateNormal(kernel.means, kernel.covs)
    log_p = torch.logsumexp(kernel.weights.log() + normals.log_prob(to[:, None, :]), 1)
    torch.testing.assert_close(kernel.log_prob(to), log_p, rtol=1e-9, atol=1e-9)
    mean = (kernel.weights[..., None] * kernel.means).sum(1)
    torch.testing.assert_close(kernel.mean, mean, rtol=1e-11, atol=1e-11)
    away = kernel.means - mean[:, None]
    parts = kernel.covs + away[..., :, None] * away[..., None, :]
    torch.testing.assert_close(kernel.cov, (kernel.weights[..., None, None] * parts).sum(1), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("to", [None, 0.25, 0.0])
def test_samples_have_the_moments_of_the_kernel(law, to):
    n, at = 20000, law.at(VP(), 0.35)
    one = torch.tensor([[0.4, -0.3, 0.2]], dtype=F64)
    x = one.expand(n, 3)
    kernel = at.posterior(x) if to is None else at.reverse(x, to)
    draws = kernel.sample(seed=11)
    first = at.posterior(one) if to is None else at.reverse(one, to)
    mean, cov = first.mean[0], first.cov[0]
    away = draws - mean
    assert (away.mean(0).abs() < 4 * (cov.diagonal() / n).sqrt()).all()
    products = away[:, :, None] * away[:, None, :]
    assert ((products.mean(0) - cov).abs() < 4 * products.std(0) / n**0.5).all()


def test_a_chain_of_reverse_kernels_gives_the_data_back(line):
    process, n = VP(), 4000
    x = line.at(process, 1.0).sample(n, seed=4, dtype=F64)
    for step, (s, t) in enumerate(((1.0, 0.5), (0.5, 0.2), (0.2, 0.0))):
        x = line.at(process, s).reverse(x, t).sample(seed=4, draw=step)
    ordered = x[:, 0].sort().values
    weights = line.weights.value
    sds = line.covs.value.sqrt()
    cdf = (weights * torch.special.ndtr((ordered[:, None] - line.means.value[:, 0]) / sds)).sum(1)
    place = torch.arange(1, n + 1, dtype=F64) / n
    assert (cdf - place).abs().max() < 1.63 / n**0.5  # Kolmogorov-Smirnov at 1 percent


def test_a_row_has_its_own_draw(law):
    x = states(8, 3)
    kernel = law.at(VP(), 0.5).reverse(x, 0.2)
    again = law.at(VP(), 0.5).reverse(x[3:4], 0.2)
    assert torch.equal(again.sample(seed=2, index=torch.tensor([3])), kernel.sample(seed=2)[3:4])
    assert not torch.equal(kernel.sample(seed=2, draw=1), kernel.sample(seed=2))


def test_ends(line):
    x = states(4, 1)
    back = line.at(Flow(), 1.0).posterior(x)  # alpha = 0: nothing is known of x_0
    torch.testing.assert_close(back.mean, line.mean.expand(4, 1), rtol=1e-13, atol=0)
    torch.testing.assert_close(back.cov[:, 0], line.cov.expand(4, 1), rtol=1e-13, atol=0)
    kernel = line.at(Flow(), 1.0).reverse(x, 0.4)
    torch.testing.assert_close(kernel.mean, (0.6 * line.mean).expand(4, 1), rtol=1e-13, atol=0)
    same = line.at(VE(), 0.5).reverse(x, 0.5)
    torch.testing.assert_close(same.mean, x, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(same.cov, torch.zeros(4, 1, 1, dtype=F64), rtol=0, atol=1e-13)
    with pytest.raises(UndeterminedError, match="no density"):
        same.log_prob(x)
    clean = line.at(Flow(), 0.0).posterior(x)
    torch.testing.assert_close(clean.mean, x, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(clean.sample(), x, rtol=1e-12, atol=1e-12)
    with pytest.raises(ConfigError, match="must not exceed"):
        line.at(VP(), 0.2).reverse(x, 0.4)
