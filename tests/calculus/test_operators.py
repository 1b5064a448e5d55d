"""Operators against closed forms: exact and estimated divergences, Laplacians, products, Lipschitz constants."""

import math

import pytest
import torch
from torch import Tensor, nn

from fokker import exact, noise
from fokker.calculus import (
    Hutchinson,
    divergence,
    gradient,
    jacobian,
    jvp,
    laplacian,
    lipschitz,
    lipschitz_along,
    value_and_divergence,
    vjp,
)
from fokker.errors import ConfigError
from fokker.process import EDM, VP

F64 = torch.float64
P = VP()
LAW = exact.GaussianMixture(
    [0.4, 0.6],
    [[-1.0, 0.5, 0.2], [1.0, -0.3, 0.6]],
    [[[0.5, 0.2, 0.1], [0.2, 0.4, 0.0], [0.1, 0.0, 0.7]], [[0.3, -0.1, 0.0], [-0.1, 0.6, 0.2], [0.0, 0.2, 0.5]]],
)
A = torch.tensor([[0.6, -1.2, 0.4], [0.9, -0.5, 0.8], [-0.3, 1.5, 1.1]], dtype=F64)
SYM = 0.5 * (A + A.mT)
VARIANCE = {"rademacher": 2 * (SYM.square().sum() - SYM.diagonal().square().sum()), "gaussian": 2 * SYM.square().sum()}


def score(x: Tensor, t: float | Tensor) -> Tensor:
    return LAW.at(P, t).score(x)


def log_prob(x: Tensor, t: float | Tensor) -> Tensor:
    return LAW.at(P, t).log_prob(x)


def linear(x: Tensor) -> Tensor:
    return x @ A.to(x).mT


def points(n: int = 6, dtype: torch.dtype = F64) -> Tensor:
    return LAW.at(P, 0.3).sample(n, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("t", [0.3, torch.linspace(0.1, 0.8, 6, dtype=F64)], ids=["one time", "a time a row"])
def test_operators_are_the_exact_law_s_derivatives(t: float | Tensor, dtype: torch.dtype) -> None:
    x, at = points(dtype=dtype), LAW.at(P, t)
    near = {"rtol": 1e-11, "atol": 1e-12} if dtype == F64 else {"rtol": 2e-4, "atol": 2e-4}
    for keywords in ({}, {"mode": "forward"}, {"chunk": 1}, {"chunk": 2, "mode": "forward"}):
        value, stderr = divergence(score, x, t, **keywords)
        assert value.dtype == dtype and torch.equal(stderr, torch.zeros_like(value))
        torch.testing.assert_close(value, at.laplacian(x), **near)
    torch.testing.assert_close(laplacian(log_prob, x, t).value, at.laplacian(x), **near)
    torch.testing.assert_close(gradient(log_prob, x, t), at.score(x), **near)
    torch.testing.assert_close(jacobian(score, x, t, chunk=2), at.hessian(x), **near)


def test_empirical_laws_have_divergences_too() -> None:
    law = exact.Empirical(LAW.sample(20))
    x, at = points(), law.at(P, 0.4)
    field = lambda x, t: law.at(P, t).score(x)  # noqa: E731
    torch.testing.assert_close(divergence(field, x, 0.4).value, at.laplacian(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(divergence(field, x, 0.4, mode="forward").value, at.laplacian(x), rtol=1e-10, atol=1e-10)


def test_laws_first_met_within_a_transform() -> None:
    """A cast that a law keeps must not belong to the transform it was made in."""
    x = points(dtype=torch.float32)
    labelled = exact.GaussianMixture([0.5, 0.5], [[0.0, 0, 0], [1, 1, 1]], [1.0, 2.0], labels=[0, 1])
    for law in (labelled, exact.Empirical(LAW.sample(20))):
        field = lambda x, t, law=law: law.at(P, t).score(x)  # noqa: E731
        value = divergence(field, x, 0.4, mode="forward").value
        torch.testing.assert_close(value, law.at(P, 0.4).laplacian(x), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(divergence(field, x, 0.4).value, value, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mode", ["reverse", "forward"])
@pytest.mark.parametrize("chunk", [None, 1, 4])
def test_events_of_any_shape(mode: str, chunk: int | None) -> None:
    M = noise.normal(1, torch.arange(6), (6,), dtype=F64)
    x = noise.normal(2, torch.arange(5), (2, 3), dtype=F64)
    field = lambda x: (x.flatten(1) @ M.mT).tanh().reshape(x.shape)  # noqa: E731
    slope = 1 - field(x).flatten(1).square()
    value, result = value_and_divergence(field, x, mode=mode, chunk=chunk)
    torch.testing.assert_close(value, field(x))
    torch.testing.assert_close(result.value, (slope * M.diagonal()).sum(1))
    torch.testing.assert_close(jacobian(field, x, chunk=chunk), slope[:, :, None] * M)


def test_products_go_the_right_way_round() -> None:
    x, u = points(), noise.normal(5, torch.arange(6), (3,), dtype=F64)
    for (value, product), matrix in ((jvp(linear, x, u), A), (vjp(linear, x, u), A.mT)):
        torch.testing.assert_close(value, x @ A.mT)
        torch.testing.assert_close(product, u @ matrix.mT)
    narrow = lambda x, t: t * x[:, :2] ** 2  # noqa: E731
    torch.testing.assert_close(jvp(narrow, x, u, 3.0)[1], 6 * x[:, :2] * u[:, :2])
    torch.testing.assert_close(jacobian(narrow, x, 3.0)[:, 1], 6 * x * torch.tensor([0.0, 1, 0], dtype=F64))


def test_laplacian_of_densities_and_of_vectors() -> None:
    x, at = points(), LAW.at(P, 0.2)
    density = lambda x: at.log_prob(x).exp()  # noqa: E731
    flux = lambda x: density(x)[:, None] * at.score(x)  # noqa: E731
    lap = laplacian(density, x).value
    torch.testing.assert_close(lap, divergence(flux, x).value, rtol=1e-10, atol=1e-12)  # Lap p = + div(p s)
    torch.testing.assert_close(lap / density(x), at.laplacian(x) + at.score(x).square().sum(1))
    assert (lap + divergence(flux, x).value).abs().min() > 1e-3  # the minus of seed 004, line 160, is spurious
    assert (lap - gradient(density, x).sum(1)).abs().min() > 1e-3  # seed 003 prints a sum of first derivatives
    pair = lambda x: torch.stack([(x**3).sum(1), x[:, 0] * x[:, 1]], 1)  # noqa: E731
    torch.testing.assert_close(laplacian(pair, x).value, torch.stack([6 * x.sum(1), 0 * x[:, 0]], 1))


@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased_with_the_variance_of_the_formula(law: str) -> None:
    n = 40_000
    single = divergence(linear, torch.zeros(n, 3, dtype=F64), probes=Hutchinson(1, law, seed=3))
    assert single.stderr.isnan().all()
    assert abs(single.value.mean() - A.trace()) < 4 * (VARIANCE[law] / n).sqrt()
    assert abs(single.value.var() / VARIANCE[law] - 1) < 0.05
    assert single.value.std() > 1  # an estimate of the likelihood, not the "exact" one of line 3089
    many = divergence(linear, torch.zeros(1, 3, dtype=F64), probes=Hutchinson(n, law, seed=4), chunk=9000)
    assert abs(many.value - A.trace()) < 4 * many.stderr
    assert abs(many.stderr / (VARIANCE[law] / n).sqrt() - 1) < 0.05


def test_standard_errors_are_calibrated() -> None:
    x = points(2000)
    truth = divergence(score, x, 0.3).value
    for function, mode in ((divergence, "reverse"), (divergence, "forward"), (laplacian, None)):
        extra = {"mode": mode} if mode else {}
        value, stderr = function(
            score if mode else log_prob, x, 0.3, probes=Hutchinson(32, "gaussian", seed=9), **extra
        )
        miss = value - truth
        assert abs(miss.mean()) < 4 * miss.std() / math.sqrt(2000)
        assert abs(miss.square().mean() / stderr.square().mean() - 1) < 0.1


def test_signs_are_exact_for_diagonal_fields() -> None:
    x = points()
    value, _ = divergence(lambda x: x**3, x, probes=Hutchinson(1))
    torch.testing.assert_close(value, 3 * x.square().sum(1))
    assert (divergence(lambda x: x**3, x, probes=Hutchinson(1, "gaussian")).value - value).abs().min() > 1e-3


def test_probes_are_keyed_by_sample_and_may_be_held() -> None:
    x, probes = points(), Hutchinson(3, seed=11)
    whole = divergence(score, x, 0.3, probes=probes)
    index = torch.tensor([4, 1])
    part = divergence(score, x[index], 0.3, probes=probes, index=index)
    torch.testing.assert_close(part, type(part)(whole.value[index], whole.stderr[index]), rtol=1e-12, atol=1e-12)
    held = probes.draw(torch.arange(6), (3,), F64)
    assert held.shape == (3, 6, 3) and torch.equal(held.abs(), torch.ones_like(held))
    for chunk in (None, 1, 2):
        torch.testing.assert_close(divergence(score, x, 0.3, probes=held, chunk=chunk), whole)
    torch.testing.assert_close(divergence(score, x, 0.3, probes=probes, chunk=1), whole)
    by_hand = torch.stack([(u * jvp(score, x, u, 0.3)[1]).sum(1) for u in held])
    torch.testing.assert_close(whole.value, by_hand.mean(0))
    torch.testing.assert_close(whole.stderr, by_hand.std(0) / math.sqrt(3))
    assert (divergence(score, x, 0.3, probes=Hutchinson(3, seed=12)).value - whole.value).abs().max() > 1e-3


def test_rademacher_signs_are_fair_and_independent() -> None:
    signs = noise.rademacher(0, torch.arange(1000), (70,), dtype=F64)
    assert torch.equal(signs.square(), torch.ones_like(signs))
    assert abs(signs.mean()) < 4 / math.sqrt(70_000)
    assert (signs.mean(0).abs() < 5 / math.sqrt(1000)).all()
    covariance = signs.mT @ signs / 1000 - torch.eye(70, dtype=F64)
    assert covariance.abs().max() < 5.5 / math.sqrt(1000)
    draws = noise.rademacher(0, torch.arange(1000), (70,), draw=torch.arange(2), dtype=F64)
    assert torch.equal(draws[0], signs) and abs((draws[0] * draws[1]).mean()) < 4 / math.sqrt(70_000)
    assert torch.equal(noise.rademacher(0, torch.arange(1000), (7, 5), dtype=F64).flatten(1), signs[:, :35])


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_divergence_trains_and_needs_no_outer_gradient(mode: str) -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = points()
    (W, b), (V, _) = (list(layer.parameters()) for layer in (net[0], net[2]))
    with torch.no_grad():
        value = divergence(net, x, mode=mode).value
    assert not value.requires_grad
    formula = ((1 - (x @ W.mT + b).tanh().square()) * (V * W.mT).sum(0)).sum(1)
    torch.testing.assert_close(value, formula.detach())
    loss = divergence(net, x, mode=mode).value.square().mean()
    for got, wanted in zip(
        torch.autograd.grad(loss, [W, b, V]), torch.autograd.grad(formula.square().mean(), [W, b, V]), strict=True
    ):
        torch.testing.assert_close(got, wanted)
    through = torch.func.grad(lambda x: divergence(net, x, mode=mode).value.sum())(x)
    leaf = x.clone().requires_grad_()
    formula = ((1 - (leaf @ W.mT + b).tanh().square()) * (V * W.mT).sum(0)).sum()
    torch.testing.assert_close(through, torch.autograd.grad(formula, leaf)[0])
    each = torch.func.vmap(lambda row: divergence(net, row[None], mode=mode).value[0])(x)
    torch.testing.assert_close(each, value)


def test_lipschitz_is_the_spectral_norm() -> None:
    x = points(40)
    truth = torch.linalg.matrix_norm(LAW.at(P, 0.3).hessian(x), 2)
    few, many = lipschitz(score, x, 0.3, iterations=2), lipschitz(score, x, 0.3, iterations=80)
    torch.testing.assert_close(many, truth, rtol=1e-2, atol=0.0)
    assert ((many - truth).abs() / truth).median() < 1e-12
    assert (few <= truth * (1 + 1e-12)).all() and (few < many - 1e-4).any()
    torch.testing.assert_close(lipschitz(linear, x), torch.linalg.matrix_norm(A, 2).expand(40))
    torch.testing.assert_close(lipschitz(lambda x, t: -3.0 * t * x, x, 0.5), torch.full((40,), 1.5, dtype=F64))
    assert torch.equal(lipschitz(torch.zeros_like, x), torch.zeros(40, dtype=F64))


def test_lipschitz_of_two_points_and_along_a_path() -> None:
    two, process = exact.Empirical([[-1.0], [1.0]]), EDM()
    denoiser = two.denoiser(process)
    velocity = lambda x, t: denoiser(x, t).velocity  # noqa: E731
    x = torch.tensor([[0.0], [0.05], [0.9]], dtype=F64)
    for t in (0.2, 0.5):  # book Thm A.1.1: 1/t near a point, -1/t^3 between two
        formula = (1 - torch.cosh(x / t**2) ** -2 / t**2) / t
        torch.testing.assert_close(lipschitz(velocity, x, t), formula.abs()[:, 0], rtol=1e-9, atol=1e-12)
    times = torch.linspace(1.0, 0.0, 9, dtype=F64)
    field = lambda x, t: torch.stack([(1 + 2 * t) * x[:, 0], -0.5 * x[:, 1]], 1)  # noqa: E731
    rates, integral = lipschitz_along(field, times, torch.randn(9, 4, 2, dtype=F64), iterations=20)
    torch.testing.assert_close(rates, (1 + 2 * times)[:, None].expand(9, 4))
    torch.testing.assert_close(integral, torch.full((4,), 2.0, dtype=F64))  # the trapezoid is exact on lines


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: divergence(linear, x, mode="sideways"), "mode: given 'sideways', must be 'reverse' or 'forward'"),
        (lambda x: divergence(linear, x, chunk=0), "chunk: given 0, must be 1 or more"),
        (
            lambda x: divergence(linear, x, probes=torch.ones(2, 3)),
            r"probes: given shape \(2, 3\), must be \(K, 6, 3\)",
        ),
        (lambda x: divergence(linear, x, probes=torch.ones(0, 6, 3)), r"given shape \(0, 6, 3\).* with K >= 1"),
        (lambda x: divergence(linear, x, probes=torch.tensor(1.0)), r"given shape \(\)"),
        (lambda x: divergence(lambda x: x[:, :2], x), r"field: given \(6, 3\) it returns \(6, 2\)"),
        (lambda x: lipschitz(linear, x, iterations=0), "iterations: given 0"),
        (lambda x: lipschitz_along(score, torch.ones(2), x[None]), "states: given 1 for 2 times"),
        (lambda x: Hutchinson(probes=0), "Hutchinson.probes: given 0, must be greater than or equal to 1"),
        (lambda x: Hutchinson(law="cauchy"), "Hutchinson.law: given 'cauchy', must be 'rademacher' or 'gaussian'"),
    ],
)
def test_refusals(call, message) -> None:
    with pytest.raises(ConfigError, match=message):
        call(points())


def test_second_derivatives_with_autograd_off() -> None:
    h = lambda x: torch.nn.functional.silu(x).sum(1)  # noqa: E731
    x = points()
    sigmoid = x.sigmoid()
    slope = sigmoid * (1 - sigmoid)
    wanted = (slope * (2 + x * (1 - 2 * sigmoid))).sum(1)
    with torch.no_grad():
        torch.testing.assert_close(laplacian(h, x).value, wanted)
