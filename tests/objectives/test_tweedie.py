"""Posterior cumulants from derivatives of log p, and Stein's risk, against closed forms and quadrature."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fokker import exact, noise
from fokker.calculus import Hutchinson
from fokker.errors import ConfigError
from fokker.objectives import cumulants, implicit_matching, sure, tweedie
from fokker.process import VP

F64 = torch.float64
P = VP()
LAW = exact.GaussianMixture(
    [0.4, 0.6], [[-1.0, 0.5], [1.0, -0.3]], [[[0.5, 0.2], [0.2, 0.4]], [[0.3, -0.1], [-0.1, 0.6]]]
)
X = torch.tensor([[0.3, -0.4], [-1.1, 0.8], [1.7, 0.2]], dtype=F64)


def central(log_weights: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, covariance and third central moment of values (N, d) under weights (B, N)."""
    w = (log_weights - log_weights.logsumexp(1, keepdim=True)).exp()
    mean = w @ values
    away = values - mean[:, None]
    second = torch.einsum("bn,bni,bnj->bij", w, away, away)
    return mean, second, torch.einsum("bn,bni,bnj,bnk->bijk", w, away, away, away)


def test_three_cumulants_of_a_mixture() -> None:
    """Against the posterior itself, on a grid of x_0; the exact marginal's own posterior agrees."""
    alpha, sigma = 0.8, 0.6
    axis = torch.linspace(-6.0, 6.0, 241, dtype=F64)
    x0 = torch.cartesian_prod(axis, axis)
    wanted = central(LAW.log_prob(x0) - 0.5 * (X[:, None] - alpha * x0).square().sum(2) / sigma**2, x0)
    covs = [alpha**2 * c + sigma**2 * torch.eye(2, dtype=F64) for c in _covs()]
    means = [[-alpha, 0.5 * alpha], [alpha, -0.3 * alpha]]
    noised = exact.GaussianMixture([0.4, 0.6], means, torch.stack(covs).tolist())
    found = tweedie(noised.log_prob, X, sigma, alpha, order=3)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert found.third is not None and found.third.abs().max() > 0.02
    # E11: without alpha the step of sigma^2 gives alpha E[x_0 | x].
    step = X + sigma**2 * noised._clean().score(X)
    torch.testing.assert_close(step, alpha * found.mean)
    assert (step - found.mean).abs().max() > 0.1


def _covs() -> list[Tensor]:
    return [torch.tensor(c, dtype=F64) for c in ([[0.5, 0.2], [0.2, 0.4]], [[0.3, -0.1], [-0.1, 0.6]])]


def test_along_a_process_a_time_a_row() -> None:
    t = torch.tensor([0.2, 0.5, 0.8], dtype=F64)
    found = tweedie(lambda x: LAW.at(P, t).log_prob(x), X, P.sigma(t), P.alpha(t))
    torch.testing.assert_close(found.mean, LAW.denoiser(P)(X, t).x0)
    torch.testing.assert_close(found.cov, LAW.at(P, t).posterior(X).cov)
    assert found.third is None
    only = tweedie(lambda x: LAW.at(P, t).log_prob(x), X, P.sigma(t), P.alpha(t), order=1)
    assert torch.equal(only.mean, found.mean) and only.cov is None
    # Two points at alpha = 1 give tanh.
    log_prob = lambda x: torch.logaddexp(-0.5 * (x - 1) ** 2 / 0.49, -0.5 * (x + 1) ** 2 / 0.49)[:, 0]  # noqa: E731
    x = X[:, :1]
    points = tweedie(log_prob, x, 0.7, order=3)
    y = torch.tanh(x / 0.49)
    assert points.cov is not None and points.third is not None
    torch.testing.assert_close(points.mean, y)
    torch.testing.assert_close(points.cov[:, 0], 1 - y**2)
    torch.testing.assert_close(points.third[:, 0, 0], -2 * y * (1 - y**2))
    with pytest.raises(ConfigError, match="order: given 4, must be 1, 2 or 3"):
        cumulants(log_prob, x, order=4)  # type: ignore[arg-type]


def test_a_family_that_is_not_gaussian() -> None:
    """x | r exponential of rate r ~ Gamma(a, b): eta = -r, q_0 = 1, log p = -(a + 1) log(b + x) up to a constant."""
    a, b, x = 2.5, 0.7, torch.tensor([[0.1], [2.0]], dtype=F64)
    found = cumulants(lambda x: -(a + 1) * (b + x[:, 0]).log(), x, order=3)
    shape, rate = a + 1, b + x  # of the posterior of r, whose cumulants are shape (k - 1)! / rate^k
    assert found.cov is not None and found.third is not None
    torch.testing.assert_close(found.mean, -shape / rate)
    torch.testing.assert_close(found.cov[:, 0], shape / rate**2)
    torch.testing.assert_close(found.third[:, 0, 0], -2 * shape / rate**3)


class Bend(nn.Module):
    """A field with a dense Jacobian."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([[0.6, -0.3], [0.4, 0.2]], dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.a.mT).tanh() + 0.2 * x


def test_stein_estimates_the_risk() -> None:
    """Spec 07: D(z) = 0.6 z + 0.1 sin 3z, sigma = 0.5, x = 0.8: 0.1618; and any field, by quadrature over the noise."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    z, w = torch.tensor(nodes)[:, None], torch.tensor(weights / weights.sum())
    denoise = lambda x: 0.6 * x + 0.1 * (3 * x).sin()  # noqa: E731
    noisy = 0.8 + 0.5 * z
    risk = float(w @ (denoise(noisy) - 0.8).square()[:, 0])
    assert abs(float(w @ sure(denoise, noisy, 0.5)) - risk) < 1e-10 and abs(risk - 0.1618) < 1e-4
    net, sigma = Bend(), 0.4
    pairs = torch.cartesian_prod(z[:, 0], z[:, 0])
    weight = torch.cartesian_prod(w, w).prod(1)
    noisy = X[0] + sigma * pairs
    estimate, error = weight @ sure(net, noisy, sigma), weight @ (net(noisy) - X[0]).square().sum(1)
    assert abs(float((estimate - error).detach())) < 1e-8
    one, other = (torch.autograd.grad(v, net.a)[0] for v in (estimate, error))
    torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)
    # Linear D = c x on N(0, v): the best c is v / (v + sigma^2).
    for c, slope in ((0.5 / 0.75, 0.0), (0.8, 2.0 * (0.8 * 0.75 - 0.5))):
        gain = torch.tensor(c, dtype=F64, requires_grad=True)
        loss = w @ sure(lambda x: gain * x, math.sqrt(0.75) * z, 0.5)  # noqa: B023
        assert abs(float(torch.autograd.grad(loss, gain)[0]) - slope) < 1e-12


def test_training_by_stein_without_a_clean_row() -> None:
    """D = A x + b on noisy rows alone ends at A = (V - sigma^2 I) V^{-1}, b = (I - A) mean, V their covariance."""
    n, sigma = 2000, 0.6
    clean = LAW.sample(n, seed=3, dtype=F64)
    noisy = clean + sigma * noise.normal(4, torch.arange(n), (2,), dtype=F64)
    net, eye = nn.Linear(2, 2, dtype=F64), torch.eye(2, dtype=F64)
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    optimiser = torch.optim.LBFGS(net.parameters(), max_iter=100, tolerance_grad=1e-12, tolerance_change=0.0)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = sure(net, noisy, sigma).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    mean, V = noisy.mean(0), noisy.T.cov(correction=0)
    A = (V - sigma**2 * eye) @ V.inverse()
    torch.testing.assert_close(net.weight.detach(), A, rtol=0, atol=1e-8)
    torch.testing.assert_close(net.bias.detach(), (eye - A) @ mean, rtol=0, atol=1e-8)
    # Of the best affine denoiser of the clean rows it is 1/sqrt(n) away, and as good: no clean row was seen.
    design = torch.cat([noisy, torch.ones(n, 1, dtype=F64)], 1)
    best = torch.linalg.lstsq(design, clean).solution
    assert (net.weight.detach() - best[:2].T).abs().max() < 4.0 / math.sqrt(n)
    found, least = ((guess - clean).square().sum(1).mean() for guess in (net(noisy).detach(), design @ best))
    assert least <= found < 1.005 * least and found < 0.75 * 2 * sigma**2


def test_stein_is_hyvarinen_is_tweedie() -> None:
    """Book Eq. 3.3.8, row by row: SURE / (2 sigma^4) = div s + 1/2 |s|^2 + D / (2 sigma^2) for D = x + sigma^2 s."""
    net, sigma = Bend(), torch.tensor([0.3, 0.5, 1.2], dtype=F64)
    square = sigma[:, None] ** 2
    left = sure(lambda x: x + square * net(x), X, sigma) / (2.0 * sigma**4)
    torch.testing.assert_close(left, implicit_matching(net, X) + 1.0 / sigma**2, rtol=1e-12, atol=1e-12)
    probes = Hutchinson(3, seed=4)
    rough = sure(lambda x: x + square * net(x), X, sigma, probes=probes) / (2.0 * sigma**4)
    torch.testing.assert_close(rough, implicit_matching(net, X, probes=probes) + 1.0 / sigma**2)
    assert (rough - left).abs().max() > 1e-3
    other = torch.autograd.grad(implicit_matching(net, X).sum(), net.a)[0]
    torch.testing.assert_close(torch.autograd.grad(left.sum(), net.a)[0], other)
    # At the true score D is the posterior mean: SURE's mean is the least risk, tr Cov[x_0 | x].
    s = 0.6
    V = 0.5 + s**2
    score: Callable[[Tensor], Tensor] = lambda x: -x / V  # noqa: E731
    value = sure(lambda x: x + s**2 * score(x), X, s)
    flat = s**4 * X.square().sum(1) / V**2 + 2 * s**2 - 4 * s**4 / V
    torch.testing.assert_close(value, flat)
    assert abs(float(s**4 * 2 / V + 2 * s**2 - 4 * s**4 / V) - 2 * 0.5 * s**2 / V) < 1e-12
