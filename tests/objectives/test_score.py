"""Score matching by quadrature: minimisers, constants and variances in closed form; misprinted forms fail."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from fokker import exact
from fokker.calculus import Hutchinson, divergence, gradient, jacobian, laplacian
from fokker.errors import ConfigError
from fokker.objectives import (
    Curvature,
    FirstOrder,
    denoising_matching,
    explicit_matching,
    generalised_matching,
    implicit_matching,
    second_order_matching,
    sliced_matching,
    sure,
)
from fokker.process import EDM

F64 = torch.float64
MEAN, COV = torch.tensor([0.4, -0.7], dtype=F64), torch.tensor([[0.9, 0.3], [0.3, 0.5]], dtype=F64)
LAW = exact.Gaussian(MEAN.tolist(), COV.tolist())
MIXTURE = exact.GaussianMixture([0.4, 0.6], [[-1.0], [1.2]], [0.3, 0.5])
SIGNS = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=F64)
EYE = torch.eye(2, dtype=F64)


def hermite(dim: int, n: int) -> tuple[Tensor, Tensor]:
    """Nodes (n^dim, dim) and weights of a standard normal expectation, exact for polynomials up to degree 2n - 1."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    z = torch.cartesian_prod(*[torch.tensor(nodes)] * dim).reshape(-1, dim)
    w = torch.cartesian_prod(*[torch.tensor(weights / weights.sum())] * dim).reshape(-1, dim).prod(1)
    return z, w


def gaussian(n: int = 12, mean: Tensor = MEAN, cov: Tensor = COV) -> tuple[Tensor, Tensor]:
    z, w = hermite(len(mean), n)
    return mean + z @ torch.linalg.cholesky(cov).mT, w


def mixture(n: int = 400) -> tuple[Tensor, Tensor]:
    """Cells of the line under the mixture: their error falls faster than any power of n."""
    x = torch.linspace(-6.0, 7.0, n, dtype=F64)[:, None]
    return x, MIXTURE.log_prob(x).exp() * 13.0 / (n - 1)


def signs(x: Tensor) -> Tensor:
    """Every sign vector at every row: the mean over these probes is the expectation."""
    return SIGNS[:, None].expand(-1, len(x), -1)


def bent(x: Tensor) -> Tensor:
    """A field that is neither linear nor a gradient."""
    return torch.stack([0.3 - x[:, 0] + 0.2 * x[:, 1] ** 2, 0.5 * x[:, 0] * x[:, 1] - 0.8 * x[:, 1]], 1)


FORMS: dict[str, Callable[..., Tensor]] = {
    "implicit": implicit_matching,
    "sliced": lambda s, x: sliced_matching(s, x, probes=signs(x)),
    "reduced": lambda s, x: sliced_matching(s, x, probes=signs(x), reduced=True),
    "generalised": lambda s, x: generalised_matching(s, x, FirstOrder()),
}


@pytest.mark.parametrize("form", FORMS)
def test_explicit_matching_less_half_the_fisher_information(form: str) -> None:
    """Book Prop. 3.2.1: L_SM = L + C with C = 1/2 E|s|^2, here 1/2 tr cov^-1, for any field."""
    x, w = gaussian()
    precision = torch.linalg.inv(COV)
    truth = lambda x: -(x - MEAN) @ precision  # noqa: E731
    torch.testing.assert_close(truth(x), LAW._clean().score(x))
    for field in (bent, truth):
        gap = explicit_matching(field, x, truth(x)) - FORMS[form](field, x)
        assert abs(float((w * gap).sum()) - 0.5 * float(precision.trace())) < 1e-11
    assert abs(float((w * FORMS[form](truth, x)).sum()) + 0.5 * float(precision.trace())) < 1e-11


@pytest.mark.parametrize("form", FORMS)
def test_the_linear_minimiser_is_the_inverse_covariance(form: str) -> None:
    x, w = gaussian(6)
    precision = torch.linalg.inv(COV)

    def slopes(A: Tensor, b: Tensor) -> tuple[float, Tensor]:
        A, b = A.clone().requires_grad_(), b.clone().requires_grad_()
        loss = (w * FORMS[form](lambda x: -(x - b) @ A.mT, x)).sum()
        return float(loss.detach()), torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, (A, b))])

    best, flat = slopes(precision, MEAN)
    assert flat.abs().max() < 1e-12
    for A, b in ((1.1 * precision, MEAN), (precision, MEAN + 0.1), (precision + 0.1 * EYE.flip(0), MEAN)):
        loss, slope = slopes(A, b)
        drift = (A - precision) @ COV @ (A - precision).mT  # L - L* = 1/2 E|s - s*|^2
        wanted = 0.5 * float(drift.trace() + (A @ (b - MEAN)).square().sum())
        assert abs(loss - best - wanted) < 1e-11 and slope.abs().max() > 1e-2


def test_on_a_finite_sample_the_minimiser_is_its_own_moments() -> None:
    x = LAW.sample(50, 3, dtype=F64)
    A, b = torch.linalg.inv(torch.cov(x.mT, correction=0)), x.mean(0)
    A.requires_grad_()
    b.requires_grad_()
    loss = implicit_matching(lambda x: -(x - b) @ A.mT, x).mean()
    assert all(g.abs().max() < 1e-12 for g in torch.autograd.grad(loss, (A, b)))


def test_variances_of_the_sliced_losses() -> None:
    """One probe: 2 (|S|^2 - sum S_ii^2) with signs, 2 |S|^2 with normals; K probes: a K-th."""
    at = torch.tensor([[-3.0, 1.1]], dtype=F64)
    J, s = jacobian(bent, at)[0], bent(at)[0]
    n, draws = 10_000, torch.arange(10_000)
    x = at.expand(n, 2)
    for law in ("rademacher", "gaussian"):
        variance = []
        for reduced in (False, True):
            S = 0.5 * (J + J.mT) + (0.0 if reduced else 0.5) * torch.outer(s, s)
            wanted = 2.0 * float(S.square().sum() - (S.diagonal().square().sum() if law == "rademacher" else 0.0))
            for K in (1, 4):
                loss = sliced_matching(bent, x, probes=Hutchinson(K, law, seed=2), index=draws, reduced=reduced)
                spread = float((loss - loss.mean()).square().std()) / math.sqrt(n)
                assert abs(float(loss.var()) - wanted / K) < 4.0 * spread + 16.0 * wanted / n + 1e-9
                mean = float(implicit_matching(bent, at)) - float(loss.mean())
                assert abs(mean) < 4.0 * math.sqrt(wanted / K / n)
            variance.append(wanted)
        assert variance[0] > 5.0 * variance[1] > 0.1


def test_keys_of_the_probes() -> None:
    x = LAW.sample(4, dtype=F64)
    rows = torch.tensor([7, 8, 9, 10])
    whole = sliced_matching(bent, x, probes=Hutchinson(3, seed=5), index=rows)
    part = sliced_matching(bent, x[2:], probes=Hutchinson(3, seed=5), index=rows[2:])
    assert torch.equal(whole[2:], part)
    held = Hutchinson(3, seed=5).draw(rows, (2,), F64)
    assert torch.equal(whole, sliced_matching(bent, x, probes=held))
    assert torch.equal(sliced_matching(bent, x), sliced_matching(bent, x, index=torch.arange(4)))


def test_denoising_is_explicit_matching_of_the_noised_law() -> None:
    """Book Thm 3.3.1, L_SM = L_DSM + C, C = 1/2 tr V^-1 - D / (2 sigma^2) < 0; -4.7081 in the spec's numbers."""
    alpha, sigma = 0.8, 0.6
    z, w = hermite(4, 6)
    x0 = MEAN + z[:, :2] @ torch.linalg.cholesky(COV).mT
    V = alpha**2 * COV + sigma**2 * EYE
    precision = torch.linalg.inv(V)
    y, v = gaussian(6, alpha * MEAN, V)
    truth = lambda x: -(x - alpha * MEAN) @ precision  # noqa: E731
    C = 0.5 * float(precision.trace()) - 1.0 / sigma**2
    for field in (bent, truth):
        matched = (v * explicit_matching(field, y, truth(y))).sum()
        assert abs(float(matched - (w * denoising_matching(field, x0, z[:, 2:], sigma, alpha)).sum()) - C) < 1e-11
    assert abs(0.5 / (0.5 + 0.09) - 0.5 / 0.09 + 4.7081) < 1e-4
    # A time a row, and any other differentiable kernel through its own conditional score.
    both = torch.tensor([alpha, 0.3], dtype=F64), torch.tensor([sigma, 2.0], dtype=F64)
    rows = denoising_matching(bent, x0[:2], z[:2, 2:], both[1], both[0])
    alone = denoising_matching(bent, x0[1:2], z[1:2, 2:], 2.0, 0.3)
    x = both[0][:, None] * x0[:2] + both[1][:, None] * z[:2, 2:]
    kernel = (both[0][:, None] * x0[:2] - x) / both[1][:, None] ** 2
    torch.testing.assert_close(rows, explicit_matching(bent, x, kernel))
    torch.testing.assert_close(rows[1:], alone)
    # The minimiser of a linear field is the noised law's precision.
    A, b = precision.clone().requires_grad_(), (alpha * MEAN).requires_grad_()
    loss = (w * denoising_matching(lambda x: -(x - b) @ A.mT, x0, z[:, 2:], sigma, alpha)).sum()
    assert all(g.abs().max() < 1e-12 for g in torch.autograd.grad(loss, (A, b)))


def test_the_printed_minus_learns_minus_the_score() -> None:
    """S-E4 (seed 004, lines 322 and 326): f - z / sigma in place of f + z / sigma; .201 and 5.714 at t = 1/2."""
    alpha, sigma = math.exp(-0.5), math.sqrt(-math.expm1(-1.0))
    z, w = hermite(2, 6)
    x0, eps = 0.5 * z[:, :1], z[:, 1:]  # variance 1/4
    V = 0.25 * alpha**2 + sigma**2
    plus = lambda f: 2.0 * float((w * denoising_matching(f, x0, eps, sigma, alpha)).sum())  # noqa: E731
    score = lambda x: -x / V  # noqa: E731
    assert abs(plus(score) - (1.0 / sigma**2 - 1.0 / V)) < 1e-12
    printed = lambda f: 2.0 * float((w * explicit_matching(f, alpha * x0 + sigma * eps, eps / sigma)).sum())  # noqa: E731
    assert plus(score) < 0.3 < 5.0 < printed(score)
    assert abs(printed(lambda x: -score(x)) - plus(score)) < 1e-12


def test_the_noised_score_is_off_by_sigma_squared() -> None:
    """Sec. 3.4.2: grad log p_sigma = s + sigma^2 / 2 grad(Lap log p + |s|^2) + O(sigma^4), from the heat equation."""
    x, clean = torch.linspace(-2.0, 3.0, 101, dtype=F64)[:, None], MIXTURE._clean()
    bend = gradient(lambda x: clean.laplacian(x) + clean.score(x).square().sum(1), x)
    errors, rest = [], []
    for sigma in (0.1, 0.05, 0.025):
        off = MIXTURE.at(EDM(), sigma).score(x) - clean.score(x)
        errors.append(float(off.abs().max()))
        rest.append(float((off - 0.5 * sigma**2 * bend).abs().max()))
    assert errors == pytest.approx([0.10742, 0.02752, 0.00692], abs=5e-6)
    assert [math.log2(a / b) for a, b in pairwise(errors)] == pytest.approx([1.96, 1.99], abs=0.01)
    assert [math.log2(a / b) for a, b in pairwise(rest)] == pytest.approx([4.0, 4.0], abs=0.05)


def test_energy_score_matching_has_a_minus() -> None:
    """E10 (line 1232): + tr Hess E is printed. E = x^2 / 2v on data of variance 1: v = 1, or v without bound."""
    x, w = gaussian(6, torch.zeros(1, dtype=F64), torch.ones(1, 1, dtype=F64))

    def loss(v: float, sign: float) -> float:
        energy = lambda x: 0.5 * x.square().sum(1) / v  # noqa: E731
        value = sign * laplacian(energy, x).value + 0.5 * gradient(energy, x).square().sum(1)
        if sign < 0:
            torch.testing.assert_close(value, implicit_matching(lambda x: -gradient(energy, x), x))
        return float((w * value).sum())

    right = {v: loss(v, -1.0) for v in (0.5, 0.9, 1.0, 1.1, 2.0, 100.0)}
    assert min(right, key=right.__getitem__) == 1.0 and abs(right[1.0] + 0.5) < 1e-12
    assert loss(1.0, 1.0) > loss(10.0, 1.0) > loss(1e4, 1.0) > loss(1e8, 1.0) > 0.0


def test_the_adjoints() -> None:
    """int (L f) . g = int f (L^+ g), by quadrature over functions that vanish far out."""
    axis = torch.linspace(-9.0, 9.0, 81, dtype=F64)
    x = torch.cartesian_prod(axis, axis)
    f = lambda x: (1.0 + x[:, 0] - 0.3 * x[:, 0] * x[:, 1]) * (-0.4 * x.square().sum(1)).exp()  # noqa: E731
    cell = float(axis[1] - axis[0]) ** 2
    for operator in (FirstOrder(), FirstOrder(1.0, 0.5), FirstOrder(0.7, -1.3)):
        left = (operator(f, x) * bent(x)).sum() * cell
        assert abs(float(left - (f(x) * operator.adjoint(bent, x)).sum() * cell)) < 1e-10 < abs(float(left))
    matrix = lambda x: torch.stack([bent(x), bent(x.flip(1)) * x[:, :1]], 1)  # noqa: E731
    left = (Curvature()(f, x) * matrix(x)).sum() * cell
    assert abs(float(left - (f(x) * Curvature().adjoint(matrix, x)).sum() * cell)) < 1e-9 < 0.1 < abs(float(left))


def test_generalised_matching_finds_its_generalised_score() -> None:
    """L_GSM - its minimum = 1/2 E|g - L p / p|^2, and L p / p is (L p)(x) / p(x)."""
    x, w = mixture()
    log_prob = MIXTURE.log_prob
    density = lambda x: log_prob(x).exp()  # noqa: E731
    wrong = {1: lambda x: 0.4 * x.cos() + 0.2 * x, 2: lambda x: (0.4 * x.cos() + 0.2 * x)[:, None]}
    for operator, rank in ((FirstOrder(), 1), (FirstOrder(1.0, 0.49), 1), (Curvature(), 2)):
        best = lambda x, operator=operator: operator.score(log_prob, x)  # noqa: E731
        ratio = operator(density, x) / density(x).reshape(-1, *(1,) * rank)
        torch.testing.assert_close(ratio, best(x), rtol=1e-8, atol=1e-8)
        off = wrong[rank]
        gap = generalised_matching(lambda x: best(x) + off(x), x, operator) - generalised_matching(best, x, operator)  # noqa: B023
        assert abs(float((w * gap).sum()) - 0.5 * float((w * off(x).flatten(1).square().sum(1)).sum())) < 1e-8


def test_the_denoising_operator() -> None:
    """E12 (line 1683): x f', printed for x f, gives no posterior mean. E13 (1687): alpha E[x_0 | x]."""
    sigma2, x = 0.5, torch.tensor([[0.3], [-1.2]], dtype=F64)
    noised = exact.Gaussian([0.0], [1.5])
    log_prob, density = noised.log_prob, lambda x: noised.log_prob(x).exp()
    operator = FirstOrder(1.0, sigma2)
    found = operator(density, x) / density(x)[:, None]
    torch.testing.assert_close(found, torch.tensor([[0.2], [-0.8]], dtype=F64))
    torch.testing.assert_close(operator.score(log_prob, x), found)
    printed = (x + sigma2) * gradient(density, x) / density(x)[:, None]
    torch.testing.assert_close(printed, torch.tensor([[-0.16], [-0.56]], dtype=F64))
    alpha, V = 0.6, 0.36 + sigma2  # x = alpha x_0 + eps sigma with x_0 ~ N(0, 1)
    scaled = operator.score(exact.Gaussian([0.0], [V]).log_prob, x)
    torch.testing.assert_close(scaled, alpha * (alpha / V * x))
    assert (scaled - alpha / V * x).abs().min() > 0.05
    # The loss is SURE / 2 less what no denoiser changes.
    z = LAW.sample(20, dtype=F64)
    loss = generalised_matching(bent, z, FirstOrder(1.0, 0.25))
    rest = 0.5 * z.square().sum(1) - 0.25
    torch.testing.assert_close(loss, 0.5 * sure(bent, z, 0.5) - rest, rtol=1e-12, atol=1e-12)
    probes = Hutchinson(2, seed=6)
    rough = generalised_matching(bent, z, FirstOrder(1.0, 0.25, probes))
    torch.testing.assert_close(rough, 0.5 * sure(bent, z, 0.5, probes=probes) - rest)
    assert (rough - loss).abs().max() > 1e-2


def test_second_order_matching() -> None:
    """Lu et al. 2022: the minimiser is Hess log p_t; with a score wrong by d it is Hess log p_t + d d^T."""
    alpha, sigma = 0.9, 0.7
    z, w = hermite(1, 60)
    x0, v = mixture(200)
    pairs = torch.cartesian_prod(torch.arange(len(x0)), torch.arange(len(z)))
    x0, eps, weight = x0[pairs[:, 0]], z[pairs[:, 1]], v[pairs[:, 0]] * w[pairs[:, 1]]
    law = exact.GaussianMixture(
        [0.4, 0.6], [[-alpha], [1.2 * alpha]], [alpha**2 * 0.3 + sigma**2, alpha**2 * 0.5 + sigma**2]
    )
    marginal = law._clean()
    x = alpha * x0 + sigma * eps
    for d in (0.0, 0.3):
        score = lambda x, d=d: marginal.score(x) + d  # noqa: E731
        hess = lambda x, d=d: marginal.hessian(x) + d * d  # noqa: E731
        off = lambda x: 0.3 * x.sin()[:, None]  # noqa: E731
        args = (score, x0, eps, sigma, alpha)
        best, worse = (second_order_matching(S, *args) for S in (hess, lambda x: hess(x) + off(x)))  # noqa: B023
        wanted = sigma**4 * (weight * off(x).flatten() ** 2).sum()
        assert abs(float((weight * (worse - best)).sum() - wanted)) < 1e-9
        traced = second_order_matching(lambda x: hess(x)[:, 0, 0], *args)  # noqa: B023
        torch.testing.assert_close(traced, best)
    # In two dimensions: the Jacobian of the score itself, its trace, and their gradients at the optimum.
    z, w = hermite(4, 6)
    V = alpha**2 * COV + sigma**2 * EYE
    x0, eps = MEAN + z[:, :2] @ torch.linalg.cholesky(COV).mT, z[:, 2:]
    A = torch.linalg.inv(V).requires_grad_()
    score = lambda x: -(x - alpha * MEAN) @ A.mT  # noqa: E731
    for second in (lambda x: jacobian(score, x), lambda x: divergence(score, x).value):
        loss = (w * second_order_matching(second, score, x0, eps, sigma, alpha)).sum()
        assert torch.autograd.grad(loss, A)[0].abs().max() < 1e-12
        off = (w * second_order_matching(lambda x: 1.2 * second(x), score, x0, eps, sigma, alpha)).sum()  # noqa: B023
        assert float((off - loss).detach()) > 1e-2
    outside = second_order_matching(lambda x: torch.zeros_like(x[:, 0]), score, x0, eps, sigma, alpha)
    assert not outside.requires_grad  # the first order is known, not trained
    A.requires_grad_(False)
    floor = (w * second_order_matching(lambda x: jacobian(score, x), score, x0, eps, sigma, alpha)).sum()
    C = EYE - sigma**2 * torch.linalg.inv(V)  # cov of eps given x: E|l l^T - C|^2 = |C|^2 + (tr C)^2 for normal l
    assert abs(float(floor - C.square().sum() - C.trace() ** 2)) < 1e-11
    with pytest.raises(ConfigError, match=r"second: gives shape \(1296, 2\), must be \(1296, 2, 2\)"):
        second_order_matching(score, score, x0, eps, sigma)


def test_on_a_circle_denoising_alone_knows_the_field_beside_the_data() -> None:
    """Fields -k (r - 1) r_hat: on the circle they are all 0, their divergence is -k; DSM has a minimum in k."""
    angle = torch.linspace(0.0, 2.0 * math.pi, 65, dtype=F64)[:-1]
    circle = torch.stack([angle.cos(), angle.sin()], 1)

    def field(k: float) -> Callable[[Tensor], Tensor]:
        return lambda x: -k * (1.0 - 1.0 / x.norm(dim=1, keepdim=True)) * x

    sigma = 0.2
    z, w = hermite(2, 24)
    x0 = torch.tensor([[1.0, 0.0]], dtype=F64).expand(len(z), 2)  # by symmetry one point is all of the circle
    radius = (x0 + sigma * z).norm(dim=1)
    pull = lambda r: (-r + torch.special.i1e(r / sigma**2) / torch.special.i0e(r / sigma**2)) / sigma**2  # noqa: E731
    target = pull(torch.ones((), dtype=F64)) * circle  # of the law smoothed by sigma, exact
    spread = Hutchinson(400).draw(torch.arange(64), (2,), F64)
    ks, implicit, denoising = (1.0, 5.0, 25.0, 125.0, 625.0), [], []
    for k in ks:
        explicit = explicit_matching(field(k), circle, target)
        assert (explicit - 0.5 * target.square().sum(1)).abs().max() < 1e-12  # whatever k
        loss = implicit_matching(field(k), circle)
        assert (loss + k).abs().max() < 1e-10 * k  # without bound, and no reason to stop
        sliced = sliced_matching(field(k), circle, probes=spread)
        assert abs(float(sliced.mean()) + k) < 4.0 * k / math.sqrt(2.0 * 64 * 400)
        implicit.append(float(loss.mean()))
        denoising.append(float((w * denoising_matching(field(k), x0, z, sigma)).sum()))
    assert implicit == sorted(implicit, reverse=True)
    best = float((w * (radius - 1.0) * -pull(radius)).sum() / (w * (radius - 1.0) ** 2).sum())
    assert denoising.index(min(denoising)) == 2 and abs(best * sigma**2 - 1.0) < 0.1
    least = float((w * denoising_matching(field(best), x0, z, sigma)).sum())
    for k, found in zip(ks, denoising, strict=True):
        assert abs(found - least - 0.5 * (k - best) ** 2 * float((w * (radius - 1.0) ** 2).sum())) < 1e-4 * found
    exactly = lambda x: pull(x.norm(dim=1, keepdim=True)) * x / x.norm(dim=1, keepdim=True)  # noqa: E731
    assert float((w * denoising_matching(exactly, x0, z, sigma)).sum()) < least
