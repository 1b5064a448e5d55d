"""Residual flows: the log-determinant as a power series, truncated with its bound and unbiased by roulette."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fokker import noise
from fokker.calculus import jacobian, lipschitz
from fokker.classic import Residual, log_det_series, roulette
from fokker.classic.residual import Contraction


def normals(n: int, *shape: int, seed: int = 0) -> Tensor:
    return noise.normal(seed, torch.arange(n), shape, dtype=torch.float64)


def contraction(c: float, d: int = 5, seed: int = 0) -> Tensor:
    """A matrix of 2-norm c."""
    W = normals(d, d, seed=seed)
    return c * W / torch.linalg.matrix_norm(W, ord=2)


def within(values: Tensor, want: float | Tensor, errors: float = 4.0) -> bool:
    return abs(float(values.mean() - want)) < errors * float(values.std()) / math.sqrt(len(values))


def test_the_truncated_series_is_what_it_says_and_errs_no_more_than_its_bound() -> None:
    W, x, d, c = contraction(0.5), normals(3, 5), 5, 0.5
    exact = torch.linalg.slogdet(torch.eye(d) + W)[1]
    for n in (1, 2, 5, 10, 20):
        found = log_det_series(lambda x: x @ W.T, x, torch.ones(n))
        powers = [torch.linalg.matrix_power(W, k).trace() * (-1) ** (k + 1) / k for k in range(1, n + 1)]
        assert (found - sum(powers)).abs().max() < 1e-12
        assert (found - exact).abs().max() < d * c ** (n + 1) / ((n + 1) * (1 - c)) + 1e-14
    assert (found - exact).abs().max() < 1e-8  # at n = 20
    # The bound is attained but for a factor 1 / (1 - c) by -c I, whose terms have one sign.
    found = log_det_series(lambda x: -c * x, x, torch.ones(10))
    gap = float(found[0] - d * math.log1p(-c))
    assert d * c**11 / 11 < gap < d * c**11 / (11 * (1 - c))


def test_probes_give_their_own_quadratic_forms_row_by_row() -> None:
    x, u = 0.5 * normals(4, 3), normals(4, 3, seed=2)
    W = contraction(0.8, 3)
    weights = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]).double()
    found = log_det_series(lambda x: torch.tanh(x @ W.T), x, weights, u[None])
    J = jacobian(lambda x: torch.tanh(x @ W.T), x)
    forms = [torch.einsum("bi,bij,bj->b", u, torch.linalg.matrix_power(J, k), u) for k in (1, 2, 3)]
    want = sum(weights[:, k] * (-1) ** k / (k + 1) * forms[k] for k in range(3))
    assert (found - want).abs().max() < 1e-13


def test_roulette_weights_have_the_mean_one() -> None:
    n = 20000
    weights = roulette(3, 0.6, seed=1, index=torch.arange(n))
    assert (weights[:, :3] == 1).all()
    for k in range(4, 9):
        column = weights[:, k - 1]
        assert set(column.unique().tolist()) == {0.0, 0.6 ** (3 - k)}
        assert within(column, 1.0) and within((column > 0).double(), 0.6 ** (k - 3))
    assert ((weights > 0).long().diff(dim=1) <= 0).all()  # N terms and no more
    # A sample's N is its own: whichever others are drawn.
    few = roulette(3, 0.6, seed=1, index=torch.tensor([17, 4]))
    assert torch.equal(few, weights[[17, 4], : few.shape[1]]) and not weights[[17, 4], few.shape[1] :].any()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_roulette_is_unbiased_in_value_and_gradient_where_the_series_is_not(sign: float) -> None:
    # v = theta W x with theta of its own in every row: d/dtheta log det(1 + theta W) = tr (1 + theta W)^{-1} W.
    n, c, terms = 20000, 0.8, 2
    W = contraction(c, 3, seed=1)
    W = sign * (W @ W.T) / c  # one sign of eigenvalues, up to c: the worst case of variance
    theta = torch.ones(n, 1, dtype=torch.float64, requires_grad=True)
    u = noise.rademacher(3, torch.arange(n), (3,), dtype=torch.float64)[None]
    chance = roulette(terms, c**2, seed=4, index=torch.arange(n))

    def v(x: Tensor) -> Tensor:
        return theta * (x @ W.T)

    x = torch.zeros(n, 3, dtype=torch.float64)
    one = torch.eye(3, dtype=torch.float64)
    value, slope = torch.linalg.slogdet(one + W)[1], (torch.linalg.inv(one + W) @ W).trace()
    fair = log_det_series(v, x, chance, u)
    assert within(fair.detach(), value)
    assert within(torch.autograd.grad(fair.sum(), theta)[0][:, 0], slope)
    cut = log_det_series(v, x, torch.ones(terms), u)
    bias = W.trace() - 0.5 * (W @ W).trace() - value
    assert abs(float(bias)) > 0.05 and within(cut.detach() - bias, value) and not within(cut.detach(), value, 20.0)
    assert not within(torch.autograd.grad(cut.sum(), theta)[0][:, 0], slope, 20.0)
    # Without the weights of survival chance alone would bias it.
    assert not within(log_det_series(v, x, (chance > 0).double(), u).detach(), value)


def flow(dim: int, **fields: object) -> Residual:
    torch.manual_seed(0)
    made = Residual((dim,), layers=2, width=10, lipschitz=0.7, **fields).double()
    with torch.no_grad():
        for key, parameter in made.named_parameters():
            parameter.mul_(4.0).add_(1.0 if key.endswith("bias") else 0.2)
    return made


def test_training_estimates_the_log_determinant_and_evaluation_takes_it() -> None:
    point, n = normals(1, 3), 4000
    x = point.expand(n, 3)
    still = flow(3).eval()
    exact = still.inverse(point)[1].detach()
    whole = jacobian(lambda x: still.inverse(x)[0], point)
    assert (exact - torch.linalg.slogdet(whole)[1]).abs().max() < 1e-12 and exact.abs() > 0.01
    with torch.no_grad():
        fair = flow(3, log_det="roulette", terms=1).inverse(x, seed=5)[1]
        assert within(fair, exact) and fair.std() > 1e-3
        cut = flow(3, log_det="series", terms=1).inverse(x, seed=5)[1]
        states = [point, point + still.layers[0](point)]
        traces = [jacobian(v, z).diagonal(dim1=1, dim2=2).sum() for v, z in zip(still.layers, states, strict=True)]
        assert within(cut, sum(traces)) and abs(sum(traces) - exact) > 1e-4
        assert (flow(3, log_det="exact").inverse(x[:2])[1] - exact).abs().max() < 1e-12
        assert (flow(3).inverse(x[:2])[1] - exact).abs().max() < 1e-12
        assert (flow(3, log_det="series", terms=1).eval().inverse(x[:2])[1] - exact).abs().max() < 1e-12


def test_above_sixteen_dimensions_the_density_is_right_on_average() -> None:
    point, n = normals(1, 17), 1500
    x = point.expand(n, 17)
    with torch.no_grad():
        exact = -flow(17, log_det="exact").losses(point)[0]
        found = flow(17).eval().log_prob(x, seed=1)
        assert within(found, exact) and found.std() > 1e-3
        # Keyed by seed, step and position: not by the batch.
        model, rows = flow(17), torch.tensor([5, 2])
        losses = model.losses(x[:8], seed=3, step=7)
        assert (model.losses(x[:2], seed=3, step=7, positions=rows) - losses[rows]).abs().max() < 1e-12
        assert (model.losses(x[:8], seed=3, step=8) - losses).abs().min() > 1e-6
        assert (model.losses(x[:8], seed=4, step=7) - losses).abs().min() > 1e-6


def test_layers_are_contractions_whatever_their_weights() -> None:
    torch.manual_seed(1)
    layer = Contraction(4, 32, 0.6).double()
    small = layer.layers[0].weight.detach().clone() * 0.1
    with torch.no_grad():
        layer.layers[0].weight.copy_(small)
        layer.layers[1].weight.mul_(50.0)
    (first, _), (second, _), _ = layer.weights()
    assert torch.equal(first, small)  # below the bound nothing is scaled
    assert abs(float(torch.linalg.matrix_norm(second.detach(), ord=2)) - 0.6 ** (1 / 3)) < 1e-12
    with torch.no_grad():
        layer.layers[0].weight.mul_(100.0)
    assert lipschitz(layer, 3.0 * normals(50, 4)).max() < 0.6
    # Rank-one weights along one direction, where silu is steepest (at 2.3994), come within the tangent's reach of it.
    steep = Contraction(1, 1, 0.6).double()
    with torch.no_grad():
        for part in steep.layers:
            part.weight.fill_(9.0)
        steep.layers[0].bias.fill_(2.39936)
        inner = torch.nn.functional.silu(steep.layers[0].bias) / 1.1
        steep.layers[1].bias.copy_(2.39936 - 0.6 ** (1 / 3) * inner)
    slope = float(lipschitz(steep, torch.zeros(1, 1, dtype=torch.float64)).detach())
    assert 0.6 * (1.0998 / 1.1) ** 2 < slope < 0.6


def test_the_fixed_point_is_reached_in_the_steps_that_the_bound_asks_for() -> None:
    # v = c x but for silu: the slowest there is. The same iteration, counted: an error shrinks by Lip(v) each time.
    model = Residual((1,), layers=1, width=1, lipschitz=0.95).double()
    with torch.no_grad():
        for part in model.layers[0].layers:
            part.weight.fill_(5.0)
            part.bias.fill_(2.4)
    z = torch.linspace(-4.0, 4.0, 9, dtype=torch.float64)[:, None]
    x, log_det = model(z)
    assert (model.inverse(x)[0] - z).abs().max() < 1e-14
    v = model.layers[0]
    assert (log_det + torch.log1p(jacobian(v, x)[:, 0, 0])).abs().max() < 1e-12
    guess, errors = z.clone(), []
    for _ in range(12):
        guess = z - v(guess)
        errors.append((guess - x).abs())
    assert all((later <= 0.95 * sooner + 1e-15).all() for sooner, later in pairwise(errors))
