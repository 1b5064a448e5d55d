"""The figures of likelihoods, maps and flows: the numbers that are drawn, by value."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from fokker.calculus import jacobian
from fokker.figures import calculus_numbers, draw, figures_of
from fokker.figures import likelihood_numbers as numbers
from fokker.figures import transport_numbers as moved
from fokker.figures.score_numbers import LINE, PLANE
from fokker.likelihood import elbo
from fokker.process import VP, Flow

F64 = torch.float64


def test_couplings_are_bijections_with_their_determinants() -> None:
    z = moved.normals(6, 2)
    states = moved.push(z)
    x, total = z, torch.zeros(6, dtype=F64)
    for layer, image in zip(moved.STACK, states[1:], strict=True):
        x, gained = layer.forward(x)
        total = total + gained
        torch.testing.assert_close(x, image)
        back, lost = layer.inverse(x)
        torch.testing.assert_close(lost, -gained, rtol=0, atol=1e-12)
        torch.testing.assert_close(layer.forward(back)[0], x, rtol=0, atol=1e-12)
    whole = jacobian(lambda z: moved.push(z)[-1], z)
    torch.testing.assert_close(torch.linalg.slogdet(whole).logabsdet, total, rtol=0, atol=1e-12)
    torch.testing.assert_close(moved.pull(states[-1]), moved.normal_log_prob(z) - total, rtol=0, atol=1e-12)
    axis = torch.linspace(-12.0, 12.0, 241, dtype=F64)
    density = moved.pull(torch.cartesian_prod(axis, axis)).exp()
    assert float(density.sum()) * 0.1**2 == pytest.approx(1.0, abs=2e-4)


def test_layers_are_eulers_steps_of_the_flow() -> None:
    found = moved.layers(count=400, n=4)
    torch.testing.assert_close(found.layers[-1], found.flow[-1], rtol=0, atol=8e-3)
    coarse = moved.layers(count=200, n=4)
    ratio = (coarse.layers[-1] - coarse.flow[-1]) / (found.layers[-1] - found.flow[-1])
    torch.testing.assert_close(ratio, torch.full((4,), 2.0, dtype=F64), rtol=0, atol=0.1)
    t, i = 1.0 - float(found.columns[3]), 5  # towards the data
    want = -LINE.denoiser(Flow())(found.x[i : i + 1, None], t).velocity
    assert float(found.field[i, 3]) == pytest.approx(float(want))


def test_eulers_steps() -> None:
    times = torch.linspace(0.0, 6.0, 9, dtype=F64)
    found = moved.euler(lambda x, t: x * math.cos(t), torch.tensor([0.7], dtype=F64), times)
    want = 0.7 * math.prod(1.0 + 0.75 * math.cos(0.75 * k) for k in range(8))
    assert float(found[-1]) == pytest.approx(want)


def test_every_rung_of_the_ladder_moves_samples_and_density_alike() -> None:
    rows = moved.ladder(n=2000)
    for row, times in zip(rows, (None, None, (1.0, 0.5, 0.25, 0.05), (0.0, 0.1, 0.25, 0.6)), strict=True):
        for k, level in enumerate(row):
            assert float(torch.trapezoid(level.density, level.x)) == pytest.approx(1.0, abs=2e-3)
            below = torch.cumulative_trapezoid(level.density, level.x)
            x = level.samples.sort().values
            share = below[(torch.searchsorted(level.x, x) - 1).clamp(0, len(below) - 1)]
            empirical = (torch.arange(len(x), dtype=F64) + 0.5) / len(x)
            assert float((share - empirical).abs().max()) < 0.07  # Kolmogorov: .04, and a cell of the grid
            if times is not None:
                want = LINE.at(VP(), times[k]).log_prob(level.x[:, None]).exp()
                torch.testing.assert_close(level.density, want, rtol=0, atol=2e-4)


def test_deforming() -> None:
    found = moved.deforming((0.98, 0.5), n=20, cells=9)
    last = found.snapshots[-1]
    mesh = torch.cartesian_prod(found.axis, found.axis)
    torch.testing.assert_close(last.log_prob, PLANE.at(Flow(), 0.5).log_prob(mesh), rtol=0, atol=1e-4)
    velocity = PLANE.denoiser(Flow())(found.arrows, 0.5).velocity
    torch.testing.assert_close(last.field, -velocity)
    first = found.snapshots[0]
    assert first.lines.shape == (22, 41, 2)
    # the grid is moved by the map whose Jacobian gives the density: area elements at the lines' crossings
    spacing, density = 0.5, PLANE.at(Flow(), 0.98)
    tight = moved.deforming((0.98, 0.9), n=1, cells=3).snapshots
    before, after = (shot.lines[:11, ::4] for shot in tight)
    assert float((before[1:, :-1, 0] - before[:-1, :-1, 0]).mean()) == pytest.approx(spacing)
    i, j = 5, 5
    edges = torch.stack([after[i + 1, j] - after[i - 1, j], after[i, j + 1] - after[i, j - 1]]) / (2.0 * spacing)
    there = density.log_prob(before[i, j][None]) - edges.det().abs().log()
    assert float(there) == pytest.approx(float(PLANE.at(Flow(), 0.9).log_prob(after[i, j][None])), abs=5e-3)


def test_picard_by_its_measured_errors() -> None:
    found = numbers.picard()
    measured = {1: 0.80, 2: 0.41, 5: 0.018, 8: 1e-4, 10: 1e-6, 15: 4e-13}
    for k, wrong in measured.items():
        assert float(found.errors[k]) == pytest.approx(wrong, rel=0.25)
    for j in range(21):
        assert float((found.iterates[j:, j] - found.euler[j]).abs().max()) < 1e-14
    assert float(found.euler[1]) == pytest.approx(0.9)  # 1 + h (-1 + sin 0)


def test_stiff_errors_are_those_of_the_inventory() -> None:
    found = calculus_numbers.stiff_errors((10, 160, 320))
    for name, coarse, order in (
        ("Euler", 5e4, 1),
        ("Heun", 9e6, 2),
        ("exponential Euler", 1.6e-2, 1),
        ("exponential Heun", 1.6e-3, 2),
    ):
        errors = found[name]
        assert errors[0] == pytest.approx(coarse, rel=0.35), name
        assert math.log2(errors[1] / errors[2]) == pytest.approx(order, abs=0.12), name
    assert math.log2(found["RK4"][1] / found["RK4"][2]) == pytest.approx(4.0, abs=0.35)


def test_euler_maruyama_is_of_weak_order_1() -> None:
    steps = (1, 160, 320)
    for errors, finest in zip(calculus_numbers.reverse_errors(steps), (1.0601e-3, 4.4574e-3), strict=True):
        assert errors[2] == pytest.approx(finest, rel=1e-3)
        assert math.log2(errors[1] / errors[2]) == pytest.approx(1.0, abs=0.02)
    m, v = 2.0 * math.exp(-1.5), 1.0 - 0.75 * math.exp(-3.0)  # one step from its own law: no pull to the mean
    mean, var = (errors[0] for errors in calculus_numbers.reverse_errors(steps))
    assert mean == pytest.approx(abs(2.5 * m - 2.0)) and var == pytest.approx((2.5 - 3.0 / v) ** 2 * v + 3.0 - 0.25)


def test_girsanov_weights_have_their_normal_law() -> None:
    found = numbers.girsanov(delta=0.8, n=4000, horizon=1.5, steps=50)
    assert found.kl == pytest.approx(0.5 * 0.64 * 1.5)
    error = 4.0 * math.sqrt(2.0 * found.kl / 4000)
    assert float(found.denominator.mean()) == pytest.approx(-found.kl, abs=error)
    assert float(found.numerator.mean()) == pytest.approx(found.kl, abs=error)
    for drawn in (found.denominator, found.numerator):
        assert float(drawn.var()) == pytest.approx(2.0 * found.kl, rel=4.0 * math.sqrt(2.0 / 4000))
    assert float(found.denominator.exp().mean()) == pytest.approx(1.0, abs=4.0 * math.sqrt(math.expm1(0.96) / 4000))
    torch.testing.assert_close(found.exact, (-0.64 * found.horizons).exp())
    assert float((found.ess / found.exact - 1.0).abs().max()) < 0.15 and float(found.horizons[0]) == 0.15


def test_trajectories_of_two_points_merge() -> None:
    found = numbers.merging(n=6, steps=200)
    last = found.states[-1]
    assert bool((last.sign() == found.states[0].sign()).all()) and float((last.abs() - 1.0).abs().max()) < 0.04
    assert bool((found.ends.diff(dim=1) > 0).all())  # never crossed above 0
    steep = [float(end.diff().max()) for end in found.ends]
    assert steep == sorted(steep) and steep[-1] > 0.8
    k = 100  # dx/dt = (x - tanh(x / t^2)) / t
    t, x = found.times, found.states[:, 4]
    rate = (x[k + 1] - x[k - 1]) / (t[k + 1] - t[k - 1])
    assert float(rate) == pytest.approx(float((x[k] - (x[k] / t[k] ** 2).tanh()) / t[k]), rel=2e-3)


def test_preconditioning_has_the_published_values() -> None:
    sigma = torch.tensor([0.002, 0.5, 80.0], dtype=F64)
    found = numbers.preconditioning(sigma)
    assert found["skip"].tolist() == pytest.approx([0.999984, 0.5, 3.906e-5], rel=1e-4)
    assert found["out"].tolist() == pytest.approx([0.0019999840, 0.353553, 0.49999023], rel=2e-6)
    assert found["in"].tolist() == pytest.approx([1.999984, 1.414214, 0.01249976], rel=1e-6)


def test_flow_likelihood() -> None:
    found = numbers.flow_likelihood(points=9)
    torch.testing.assert_close(found.flow, found.exact, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.exact, LINE.at(VP(), 1e-3).log_prob(found.x[:, None]))
    wrong = (found.prior - found.exact).abs()
    assert 5e-3 < float(wrong.max()) < 1.5e-2


def test_probes_fall_by_their_root() -> None:
    found = numbers.probing((16, 64), n=96, steps=12)
    assert float(found.stated[0] / found.stated[1]) == pytest.approx(2.0, abs=0.3)
    assert float((found.error / found.stated - 1.0).abs().max()) < 0.3


def test_the_bound_by_quadrature_is_what_elbo_estimates() -> None:
    truth = LINE.denoiser(VP())
    wrong = numbers.Scaled(truth, 0.2)
    x = torch.tensor([[-1.6], [0.0], [1.3], [2.5]], dtype=F64)
    exact = numbers.bound(wrong, x[:, 0])
    found = elbo(wrong, x.repeat(100, 1), draws=64).value.reshape(100, 4)
    assert bool(((found.mean(0) - exact).abs() < 4.0 * found.std(0) / 10.0).all())
    tight = numbers.bound(truth, x[:, 0])
    torch.testing.assert_close(tight, LINE.log_prob(x), rtol=0, atol=0.01)
    assert bool((exact[[0, 1, 3]] < tight[[0, 1, 3]] - 0.05).all())
    high = torch.tensor([0.9, 1.05, 1.2, 1.35, 1.5], dtype=F64)  # as the caption says: above, from 1 to 1.4
    above = numbers.bound(wrong, high) > LINE.log_prob(high[:, None])
    assert above.tolist() == [False, True, True, True, False]


def test_the_budget_is_the_divergence_of_the_paths() -> None:
    found = numbers.error_budget(0.2, 1000)
    assert found.prior == pytest.approx(0.0007752, abs=1e-7) and found.score == pytest.approx(0.0739553, abs=1e-7)
    finer = numbers.error_budget(0.2, 2000)
    assert finer.discretisation / found.discretisation == pytest.approx(0.5, abs=0.01)  # first order
    assert found.marginal < found.prior + found.score + found.discretisation
    assert finer.marginal == pytest.approx(0.0312, abs=2e-4)
    # the joint law of a short chain, whole
    steps, c, v0, process = 4, 0.3, 0.3, VP(0.1, 1.0)
    h, times = 0.25, torch.linspace(0.0, 1.0, 5, dtype=F64)
    f, g2 = process.f(times), process.g2(times)
    V = process.alpha(times) ** 2 * v0 + process.sigma(times) ** 2
    ahead, behind = torch.eye(5, dtype=F64), torch.eye(5, dtype=F64)
    for k in range(4):
        ahead[k + 1, k] = -(1.0 + f[k] * h)
        behind[k, k + 1] = -(1.0 - h * (f[k + 1] + (1.0 + c) * g2[k + 1] / V[k + 1]))
    law = ahead.inverse() @ torch.diag(torch.cat([V[:1], g2[:-1] * h])) @ ahead.inverse().T
    model = behind.inverse() @ torch.diag(torch.cat([g2[1:] * h, torch.ones(1, dtype=F64)])) @ behind.inverse().T
    p, q = (torch.distributions.MultivariateNormal(torch.zeros(5, dtype=F64), cov) for cov in (law, model))
    want = float(torch.distributions.kl_divergence(p, q))
    short = numbers.error_budget(c, steps, v0, process)
    assert short.prior + short.score + short.discretisation == pytest.approx(want)
    assert short.marginal == pytest.approx(numbers.normal_kl(0.0, v0, 0.0, float(model[0, 0])))


def test_the_set_is_whole() -> None:
    figures = figures_of("likelihood")
    captions = " ".join(figure.caption for figure in figures)
    for number in ("5.1", "5.2", "5.3", "A.1", "B.1", "B.2"):
        assert f"Book Fig. {number}:" in captions
    assert len({figure.name for figure in figures}) == len(figures) == 15


def test_pictures_are_the_same_again(tmp_path: Path) -> None:
    made = [draw("likelihood", tmp_path / folder, only=["picard"]) for folder in ("a", "b")]
    for one, two in zip(*made, strict=True):
        assert one.read_bytes() == two.read_bytes() and one.stat().st_size < 90_000


@pytest.mark.slow
def test_every_figure_is_drawn(tmp_path: Path) -> None:
    made = draw("likelihood", tmp_path)
    assert len(made) == 15 and all(path.stat().st_size < 250_000 for path in made)
