"""The figures of score matching and score SDEs: the numbers that are drawn, by value."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from matplotlib.axes import Axes

from fokker.calculus import gradient
from fokker.exact import Empirical, GaussianMixture
from fokker.figures import draw, figures_of
from fokker.figures import score_book as book
from fokker.figures import score_numbers as numbers
from fokker.figures import sde_numbers as sde
from fokker.process import EDM, VP

F64 = torch.float64
NORMAL = GaussianMixture([1.0], [[0.7]], [0.25])  # type: ignore[arg-type]


def test_the_energy_falls_on_data_by_the_gradient_of_the_likelihood() -> None:
    found = numbers.train_energy((0, 1, 2000), rate=2.0)
    x, h = found.x, float(found.x[1] - found.x[0])
    for energy in found.energies:
        assert h * float((-energy).exp().sum()) == pytest.approx(1.0, abs=1e-12)
    before = torch.zeros(21, dtype=F64, requires_grad=True)
    energy = x**2 / 18.0 + numbers.bumps(x) @ before
    loss = h * (found.data @ energy) + (-energy).logsumexp(0) + math.log(h)
    loss.backward()
    torch.testing.assert_close(found.weights[1], -2.0 * before.grad, rtol=0, atol=1e-12)  # the mass of data is 1
    assert float(found.nll[0]) == pytest.approx(float(loss.detach()), abs=1e-9)
    assert bool((found.nll.diff() < 1e-12).all())
    assert found.entropy < float(found.nll[-1]) < found.entropy + 2e-3
    for at, falls in ((-1.6, True), (1.3, True), (0.0, False), (2.5, False), (-3.1, False)):
        i = int((x - at).abs().argmin())
        assert (float(found.energies[-1, i]) < float(found.energies[0, i])) is falls
    torch.testing.assert_close((-found.energies[-1]).exp(), found.data, rtol=0, atol=0.01)


def test_langevin_has_the_variance_of_its_step() -> None:
    """v / (1 - eta / 2v), and a mean that decays by 1 - eta / v a step."""
    eta, v, law = 0.1, 0.25, numbers.clean(NORMAL)
    path = numbers.langevin(law.score, torch.full((4000, 1), 3.0, dtype=F64), eta, 40)
    want = v / (1.0 - eta / (2.0 * v))
    assert float(path[-1].var()) == pytest.approx(want, abs=4.0 * want * math.sqrt(2.0 / 4000))
    for n in (1, 3):
        mean = 0.7 + (1.0 - eta / v) ** n * 2.3
        assert float(path[n].mean()) == pytest.approx(mean, abs=4.0 * math.sqrt(want / 4000))


def test_the_field_is_the_gradient_of_the_density() -> None:
    x = numbers.mesh(2.0, 5)[1]
    law = numbers.clean(numbers.PLANE, 0.4)
    torch.testing.assert_close(law.score(x), gradient(law.log_prob, x), rtol=1e-9, atol=1e-11)
    axis, points = numbers.mesh(2.0, 3)
    assert points[1].tolist() == [-2.0, 0.0] and axis.tolist() == [-2.0, 0.0, 2.0]


def test_learned_score_has_its_floor_and_fails_where_data_is_rare() -> None:
    found = numbers.learn_score(steps=450)
    law = numbers.clean(numbers.FAR, 0.5)
    x = law.sample(20_000, seed=5, dtype=F64)
    square = law.score(x).square().sum(1)
    floor = 2.0 - 0.25 * float(square.mean())
    assert found.floor == pytest.approx(floor, abs=4.0 * 0.25 * float(square.std()) / math.sqrt(20_000))
    assert 0.0 < found.error < 0.03  # of 2
    assert float(found.losses[-10:].mean()) == pytest.approx(found.floor + found.error, abs=0.03)
    wrong = (found.learned - found.true).norm(dim=1)
    assert float(wrong[found.log_prob < -12.0].median()) > 5.0 * float(wrong[found.log_prob > -5.0].median())
    torch.testing.assert_close(found.true, law.score(found.points))


def test_the_mean_of_conditional_scores_is_the_marginal_score() -> None:
    x, sigma = torch.tensor([0.3, -0.7], dtype=F64), 0.6
    found = numbers.conditional_scores(x, sigma)
    law = Empirical(numbers.POINTS).at(EDM(), sigma)
    torch.testing.assert_close(found.mean, law.score(x[None])[0], rtol=0, atol=1e-12)
    assert float(found.weights.sum()) == pytest.approx(1.0)
    torch.testing.assert_close(found.arrows[2], (numbers.POINTS[2] - x) / 0.36)


def test_levels_end_in_their_own_laws() -> None:
    levels = (6.0, 3.0, 1.5, 0.8, 0.4)
    clouds = numbers.annealed(levels, n=2000, repeats=40)
    for cloud, sigma in zip(clouds, levels, strict=True):
        law = numbers.clean(numbers.PLANE, sigma)
        want = law.cov.diagonal()
        assert float((cloud.var(0) / want - 1.0).abs().max()) < 0.16  # bias of the step 0.05, noise 0.03 x 3
        assert float((cloud.mean(0) - law.mean).abs().max()) < 0.05 + 4.0 * float(want.max() / 2000) ** 0.5


def test_mode_weights() -> None:
    """Song & Ermon's toy: 50.8 and 78.2 per cent of the heavy mode by an independent implementation."""
    found = numbers.mode_weights(n=400)
    assert len(found.plain) == len(found.annealed) == 1001
    assert float(found.plain[-1]) == pytest.approx(0.508, abs=0.08)
    assert float(found.annealed[-1]) == pytest.approx(0.782, abs=0.07)
    assert float((found.annealed_end.sum(1) > 0).double().mean()) == float(found.annealed[-1])


def test_table_3_1() -> None:
    ncsn, ddpm = numbers.comparison(n=4000, drawn=1000)
    var = float(numbers.LINE.moments().cov)
    assert ncsn.exact == pytest.approx(math.sqrt(var + 100.0)) and ncsn.prior == 10.0 and ncsn.evaluations == 500
    alpha = float(VP().alpha(1.0))
    assert ddpm.exact == pytest.approx(math.sqrt(alpha**2 * var + 1.0 - alpha**2)) and ddpm.evaluations == 100
    for row in (ncsn, ddpm):
        assert (row.stepwise, row.direct) == pytest.approx((row.exact, row.exact), rel=4.0 / math.sqrt(8000))
        assert row.std == pytest.approx(math.sqrt(var), rel=0.1) and row.mean == pytest.approx(0.285, abs=0.2)
    # the floor 1 - sigma^2 E|score|^2
    for row, process, t in ((ncsn, EDM(), 0.05 * 200.0 ** (1.0 / 9.0)), (ddpm, VP(), 0.02)):
        law, x = numbers.LINE.at(process, t), torch.linspace(-5.0, 5.0, 4001, dtype=F64)[:, None]
        fisher = torch.trapezoid(law.log_prob(x).exp() * law.score(x)[:, 0] ** 2, x[:, 0])
        assert row.loss == pytest.approx(1.0 - float(process.sigma(t)) ** 2 * float(fisher), abs=0.09)


def test_one_step() -> None:
    found = sde.one_step(VP(), 1.4, 0.3, 1e-4)
    beta = 0.1 + 19.9 * 0.3
    assert found.euler == pytest.approx((1.4 - 0.5 * beta * 1.4e-4, math.sqrt(beta * 1e-4)))
    assert found.exact == pytest.approx(found.euler, rel=1e-3)
    wide = sde.one_step(EDM(), 1.4, 0.3, 0.15)
    assert wide.euler == pytest.approx((1.4, math.sqrt(2.0 * 0.3 * 0.15)))
    assert wide.exact == pytest.approx((1.4, math.sqrt(0.45**2 - 0.3**2)))


def test_paths_and_heat() -> None:
    ahead, back = sde.forward_paths(n=3, points=11, cells=60), sde.reverse_paths(n=3, points=101, cells=60)
    for found, column, t in ((ahead, 100 // 20, 0.5), (back, 75, 0.001 + 0.999 * 0.5)):
        want = numbers.LINE.at(VP(), t).log_prob(found.x[:, None]).exp()
        torch.testing.assert_close(found.density[:, column], want)
    assert ahead.ode is not None
    for t, states in zip(ahead.times.tolist(), ahead.ode, strict=True):  # every quantile is kept
        at = torch.linspace(-8.0, 8.0, 8001, dtype=F64)
        density = numbers.LINE.at(VP(), t).log_prob(at[:, None]).exp()
        below = torch.cumulative_trapezoid(density, at)
        mass = [float(below[int((at - x).abs().argmin()) - 1]) for x in states]
        if t == 0.0:
            first = mass
        assert mass == pytest.approx(first, abs=2e-3)
    assert back.times[0] == 1.0 and bool((back.sde[-1].abs() > 0.4).all())  # in a mode
    torch.testing.assert_close(ahead.sde[0], ahead.ode[0])


def test_two_ways_from_one_start() -> None:
    found = sde.ways_from_one_start(n=64, steps=120)
    assert found.sde.shape == (121, 64, 2) and bool((found.sde[0] == found.ode[0]).all())
    law = sde.PAIR.at(EDM(), sde.SPREAD).reverse(found.ode[:1], 0.01)  # the exact law of the ends
    share = float((law.weights * (law.means[..., 0] > 0)).sum())
    right = (found.sde[-1, :, 0] > 0).double().mean()
    assert float(right) == pytest.approx(share, abs=4.0 * math.sqrt(share * (1.0 - share) / 64))
    assert 0.1 < share < 0.9
    fine = sde.ways_from_one_start(n=1, steps=240).ode[-1]
    torch.testing.assert_close(found.ode[-1], fine, rtol=0, atol=1e-5)


def test_both_perturbations_have_the_law() -> None:
    found = sde.perturbed(n=4000)
    law = numbers.LINE.at(VP(), 0.35)
    for drawn in (found.stepwise, found.direct):
        assert float(drawn.mean()) == pytest.approx(float(law.mean), abs=4.0 * float(law.cov.sqrt()) / math.sqrt(4000))
        assert float(drawn.var()) == pytest.approx(float(law.cov), rel=4.0 * math.sqrt(2.0 / 4000))
    assert float(torch.trapezoid(found.density, found.x)) == pytest.approx(1.0, abs=2e-3)


def test_only_one_reverse_clock_comes_back() -> None:
    """Thm 4.1.1(ii): N(2, .25) comes back; unflipped to (-16.3, 528), as printed to (-26.4, 360)."""
    found = sde.clock_moments()
    ends = {kind: (float(found.mean[kind][-1]), float(found.var[kind][-1])) for kind in sde.SIGNS}
    assert ends["right"] == pytest.approx((2.0, 0.25), abs=1e-7)
    assert ends["unflipped"] == pytest.approx((-16.3, 528.6), rel=1e-3)
    assert ends["printed"] == pytest.approx((-26.37, 360.2), rel=1e-3)
    torch.testing.assert_close(found.mean["right"], found.law_mean, rtol=0, atol=1e-7)
    torch.testing.assert_close(found.var["right"], found.law_var, rtol=0, atol=1e-7)
    assert (float(found.law_mean[0]), float(found.law_var[0])) == pytest.approx(
        (2.0 * math.exp(-1.5), 1.0 - 0.75 * math.exp(-3.0))
    )


def test_table_4_1() -> None:
    """Moments stepped from f and g^2 are those of the kernels, and the kernels those of the book."""
    for row, name in zip(sde.kernels((0.2, 1.0)), ("VE", "VP", "sub-VP"), strict=True):
        for one, t in zip(row, (0.2, 1.0), strict=True):
            assert one.scale == pytest.approx(one.closed_scale, rel=1e-8)
            assert one.var == pytest.approx(one.closed_var, rel=1e-8)
            B = 0.1 * t + 0.5 * 19.9 * t * t
            scale = 1.0 if name == "VE" else math.exp(-0.5 * B)
            kept = -math.expm1(-B)
            var = {"VE": 1e-4 * (5000.0 ** (2.0 * t) - 1.0), "VP": kept, "sub-VP": kept**2}[name]
            assert (one.closed_scale, one.closed_var) == pytest.approx((scale, var), rel=1e-12)


def test_the_set_is_whole() -> None:
    figures = figures_of("score")
    captions = " ".join(figure.caption for figure in figures)
    for number in ("3.1", "3.2", "3.3", "3.4", "3.5", "3.6", "3.7", "4.1", "4.2", "4.3", "4.4", "4.5", "4.6"):
        assert f"Book Fig. {number}:" in captions
    assert "Book Table 3.1" in captions and "Book Table 4.1" in captions
    assert len({figure.name for figure in figures}) == len(figures) == 17


def test_arrows_point_along_the_field(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(Axes, "quiver", lambda self, *given, **options: drawn.append(given))
    book.score_field()
    x, y, u, v = drawn[0]
    score = numbers.clean(numbers.PLANE).score(torch.stack([x, y], dim=1))
    shown = torch.stack([u, v], dim=1)
    torch.testing.assert_close(shown * shown.norm(dim=1, keepdim=True), score)


def test_pictures_are_the_same_again(tmp_path: Path) -> None:
    names = ("wrong-signs",)
    made = [draw("score", tmp_path / folder, only=names) for folder in ("a", "b")]
    for one, two in zip(*made, strict=True):
        assert one.read_bytes() == two.read_bytes() and one.stat().st_size < 90_000


@pytest.mark.slow
def test_every_figure_is_drawn(tmp_path: Path) -> None:
    made = draw("score", tmp_path)
    assert len(made) == 17 and all(path.stat().st_size < 250_000 for path in made)
