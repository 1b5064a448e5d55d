"""The grid solver: order, mass, positivity, stationary laws and fluxes against closed forms."""

import math
from itertools import pairwise

import pytest
import torch
from scipy.sparse import linalg
from torch import Tensor

from fokker import exact
from fokker.calculus import FokkerPlanck, Grid, heat_kernel
from fokker.errors import ConfigError
from fokker.process import OU, VE, VP

F64 = torch.float64
LINE = exact.GaussianMixture([0.3, 0.7], [[-2.0], [1.5]], [0.16, 0.36])
P = VP()


def forward(process: object, grid: Grid) -> FokkerPlanck:
    return FokkerPlanck(grid, lambda x, t: process.f(t) * x, lambda x, t: process.g2(t).sqrt())


def orders(misses: list[float]) -> list[float]:
    return [math.log2(a / b) for a, b in pairwise(misses)]


def test_second_order_in_space_mass_exact_and_positive() -> None:
    misses = []
    for cells in (100, 200, 400):
        grid = Grid((-6.0,), (6.0,), (cells,))
        start = grid.tabulate(LINE.at(P, 0.1).log_prob)
        found = forward(P, grid).solve(start, [0.1, 0.2, 0.4], substeps=100)
        truth = torch.stack([grid.tabulate(LINE.at(P, t).log_prob) for t in (0.1, 0.2, 0.4)])
        assert found.shape == (3, cells) and torch.equal(found[0], start)
        assert (grid.mass(found) - grid.mass(start)).abs().max() < 1e-12
        assert found.min() > -1e-15
        misses.append((found - truth)[1:].abs().max().item())
    assert misses[-1] < 2e-4
    assert all(1.9 < order < 2.1 for order in orders(misses))


def test_second_order_in_time_and_first_for_the_implicit_step() -> None:
    grid = Grid((-6.0,), (6.0,), (120,))
    start = grid.tabulate(LINE.at(P, 0.2).log_prob)
    equation = forward(P, grid)
    best = equation.solve(start, [0.2, 0.5], substeps=240)[-1]
    for theta, low, high in ((0.5, 1.9, 2.15), (1.0, 0.9, 1.1)):
        runs = [equation.solve(start, [0.2, 0.5], substeps=n, theta=theta)[-1] for n in (10, 20, 40)]
        assert all(low < order < high for order in orders([(run - best).abs().max().item() for run in runs]))


def test_variance_exploding_bimodal() -> None:
    process = VE()
    law, grid = exact.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.05, 0.05]), Grid((-5.0,), (5.0,), (400,))
    a, b = (float(process.time(-math.log(s))) for s in (0.1, 0.5))
    found = forward(process, grid).solve(grid.tabulate(law.at(process, a).log_prob), [a, b], substeps=100)[-1]
    assert (found - grid.tabulate(law.at(process, b).log_prob)).abs().max() < 5e-4


def test_a_point_spreads_as_the_heat_kernel_and_not_to_a_standard_normal() -> None:
    """Seed 004, S-E2 (line 124): pure heat flow has variance 2t for ever, the drift -x is what stops it."""
    grid = Grid((-20.0,), (20.0,), (801,))
    start = torch.zeros(801, dtype=F64)
    start[400] = 1 / grid.volume
    x, still = grid.centres(), lambda x, t: torch.zeros_like(x)
    found = FokkerPlanck(grid, still, math.sqrt(2.0)).solve(start, [0.0, 1.0, 4.0], substeps=300, theta=1.0)
    variance = (found * x[:, 0] ** 2).sum(1) * grid.volume
    assert (variance[1:] - torch.tensor([2.0, 8.0], dtype=F64)).abs().max() < 1e-2
    assert (found[2] - heat_kernel(x, 4.0)).abs().max() < 1e-3
    held = FokkerPlanck(grid, lambda x, t: -x, math.sqrt(2.0)).solve(start, [0.0, 8.0], substeps=100, theta=1.0)[-1]
    assert (held - grid.tabulate(exact.Gaussian([0.0], 1.0).log_prob)).abs().max() < 1e-3


def test_positive_up_to_the_stated_step_and_not_far_beyond() -> None:
    grid = Grid((-4.0,), (4.0,), (80,))
    equation = FokkerPlanck(grid, lambda x, t: -x, 1.0)
    start = torch.zeros(80, dtype=F64)
    start[55] = 1 / grid.volume
    bound = equation.positive_step()
    assert abs(bound / (2 * grid.volume**2) - 1) < 0.05  # 1 / ((1 - theta) g^2 / h^2) and a little drift
    assert equation.positive_step(theta=1.0) == math.inf
    assert equation.solve(start, [0.0, 20 * bound], substeps=20).min() >= 0.0
    assert equation.solve(start, [0.0, 8 * bound]).min() < -1e-2
    assert equation.solve(start, [0.0, 1e4 * bound], theta=1.0).min() >= 0.0


def test_stationary_laws() -> None:
    grid = Grid((-6.0,), (6.0,), (300,))
    mixture = exact.GaussianMixture([0.4, 0.6], [[-1.0], [1.0]], [0.5, 0.5])
    langevin = FokkerPlanck(grid, lambda x, t: mixture._clean().score(x), math.sqrt(2.0))
    p = grid.tabulate(mixture.log_prob)
    rate = torch.from_numpy(langevin.operator(0.0) @ p.numpy())
    assert rate.abs().max() < 2e-3
    louder = FokkerPlanck(grid, lambda x, t: mixture._clean().score(x), 1.0)
    assert torch.from_numpy(louder.operator(0.0) @ p.numpy()).abs().max() > 0.1  # footnote 1: sigma must be sqrt(2)
    # Ito's noise g(x) without drift rests at p ~ 1 / g^2, between walls.
    box = Grid((0.0,), (1.0,), (50,))
    amount = lambda x, t: 0.5 + x[:, 0]  # noqa: E731
    walls = FokkerPlanck(box, lambda x, t: torch.zeros_like(x), amount)
    found = walls.solve(torch.ones(50, dtype=F64), [0.0, 20.0], substeps=40, theta=1.0)[-1]
    wanted = (0.5 + box.axis(0)) ** -2
    torch.testing.assert_close(found, wanted / wanted.mean(), rtol=2e-3, atol=0.0)


def test_what_leaves_a_box_is_what_the_faces_carry() -> None:
    """Book line 9546 calls -div j dV the net outflux: it is the inflow, d/dt mass = j(left) - j(right)."""
    grid, t = Grid((-6.0,), (6.0,), (1200,)), 0.2
    p = grid.tabulate(LINE.at(P, t).log_prob)
    inside = slice(500, 700)  # from -1 to 1
    rate = torch.from_numpy(forward(P, grid).operator(t) @ p.numpy())
    edges = torch.tensor([[-1.0], [1.0]], dtype=F64)
    velocity = LINE.denoiser(P)(edges, t).velocity[:, 0]
    flux = velocity * LINE.at(P, t).log_prob(edges).exp()
    change = rate[inside].sum() * grid.volume
    assert abs(change - (flux[0] - flux[1])) < 1e-4 * abs(change)
    assert abs(change + (flux[0] - flux[1])) > abs(change)
    columns = forward(P, grid).operator(t).sum(0)
    assert abs(columns).max() < 1e-9


def test_two_dimensions_turn_the_right_way() -> None:
    """dx = M x dt + g dw with M a rotation and a contraction: N(e^{Mt} m, v_t I), slope 2."""
    rate, turn, g, m, v, t = 0.5, 1.5, 0.8, torch.tensor([1.2, 0.4], dtype=F64), 0.3, 0.4
    M = torch.tensor([[-rate, -turn], [turn, -rate]], dtype=F64)
    mean = torch.linalg.matrix_exp(M * t) @ m
    var = v * math.exp(-2 * rate * t) + g**2 * (1 - math.exp(-2 * rate * t)) / (2 * rate)
    misses = []
    for cells in ((30, 36), (60, 72)):
        grid = Grid((-3.6, -3.2), (3.6, 4.2), cells)
        equation = FokkerPlanck(grid, lambda x, t: x @ M.mT, g)
        start = grid.tabulate(exact.Gaussian(m, v).log_prob)
        found = equation.solve(start, [0.0, t], substeps=40)[-1]
        assert abs(grid.mass(found) - grid.mass(start)) < 1e-12 and found.min() > -1e-12
        misses.append((found - grid.tabulate(exact.Gaussian(mean, var).log_prob)).abs().max().item())
    assert misses[1] < 5e-3 and 1.8 < orders(misses)[0] < 2.3


def test_two_dimensions_with_a_noise_for_each_axis() -> None:
    G = torch.tensor([[0.3, 0.0], [0.0, 0.9]], dtype=F64)
    grid = Grid((-4.0, -5.0), (4.0, 5.0), (64, 60))
    start = grid.tabulate(exact.Gaussian([0.5, -0.5], [0.4, 0.5]).log_prob)
    truth = grid.tabulate(exact.Gaussian([0.5, -0.5], [0.4 + 0.045, 0.5 + 0.405]).log_prob)
    still = lambda x, t: torch.zeros_like(x)  # noqa: E731
    for noise in (G, lambda x, t: G.expand(len(x), 2, 2)):
        found = FokkerPlanck(grid, still, noise).solve(start, [0.0, 0.5], substeps=20)[-1]
        assert (found - truth).abs().max() < 1e-3
    assert (found.T.reshape(64, 60) - truth).abs().max() > 1e-2


def test_without_noise_mass_moves_upwind() -> None:
    grid = Grid((-3.0,), (3.0,), (300,))
    start = grid.tabulate(exact.Gaussian([-1.0], 0.05).log_prob)
    found = FokkerPlanck(grid, lambda x, t: torch.ones_like(x)).solve(start, [0.0, 1.5], substeps=200)[-1]
    mean = (found * grid.axis(0)).sum() * grid.volume
    assert abs(mean - 0.5) < 1e-6 and found.min() > -1e-12 and abs(grid.mass(found) - 1) < 1e-6


def test_an_equation_that_does_not_change_is_factorised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    inner = linalg.splu
    monkeypatch.setattr(linalg, "splu", lambda A: made.append(1) or inner(A))
    box = Grid((-4.0,), (4.0,), (40,))
    start = box.tabulate(exact.Gaussian([0.0], 0.5).log_prob)
    forward(OU(), box).solve(start, [0.0, 1.0], substeps=10)
    assert len(made) == 1
    forward(P, box).solve(start, [0.0, 1.0], substeps=10)
    assert len(made) == 11


def test_grid_numbers() -> None:
    grid = Grid((0.0, -1.0), (1.0, 1.0), (2, 4))
    assert grid.widths == (0.5, 0.5) and grid.volume == 0.25
    assert grid.centres().tolist()[:5] == [[0.25, -0.75], [0.25, -0.25], [0.25, 0.25], [0.25, 0.75], [0.75, -0.75]]
    assert grid.mass(torch.ones(3, 2, 4)).tolist() == [2.0, 2.0, 2.0]
    assert grid.tabulate(lambda x: x[:, 1]).shape == (2, 4)


def solving(**given: object) -> Tensor:
    grid = Grid((-1.0,), (1.0,), (10,))
    arguments = {"density": torch.ones(10), "times": [0.0, 1.0]} | given
    return FokkerPlanck(grid, lambda x, t: -x, 1.0).solve(**arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Grid((0.0,) * 3, (1.0,) * 3, (4,) * 3),
            "given 3, 3 and 3 numbers for low, high and cells, must be 1 or",
        ),
        (lambda: Grid((0.0,), (1.0, 2.0), (4,)), "given 1, 2 and 1"),
        (lambda: Grid((1.0,), (0.0,), (4,)), "must have low < high and 2 cells or more"),
        (lambda: Grid((0.0,), (1.0,), (1,)), "must have low < high and 2 cells or more"),
        (lambda: solving(density=torch.ones(9)), r"density: given shape \(9,\), must be \(10,\)"),
        (lambda: solving(times=[1.0, 0.0]), "times: must increase"),
        (lambda: solving(theta=0.4), r"theta must lie in \[0.5, 1\]"),
        (lambda: solving(substeps=0), "substeps be 1 or more"),
        (
            lambda: FokkerPlanck(Grid((0.0, 0.0), (1.0, 1.0), (4, 4)), lambda x, t: x, torch.ones(2, 2)).operator(0.0),
            "off its diagonal",
        ),
    ],
)
def test_refusals(call, message) -> None:
    with pytest.raises(ConfigError, match=message):
        call()
