"""The figures of chapters 1 and 2: the numbers that are drawn, by value; the pictures."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from fokker.calculus import Grid, divergence_between, gaussian_divergence
from fokker.data import Fashion, Moons
from fokker.exact import Empirical
from fokker.figures import draw, figures_of
from fokker.figures import roots_chains as chains
from fokker.figures import roots_divergences as divergences
from fokker.figures import roots_numbers as numbers
from fokker.figures.style import style
from fokker.process import EDM, VP

F64 = torch.float64
LINE = Grid((-9.0,), (9.0,), (3600,))


def test_densities_scores_and_divergences_are_those_of_the_library() -> None:
    x = torch.linspace(-4.0, 4.0, 9, dtype=F64)
    for law in (numbers.BUMPS, numbers.TWO):
        torch.testing.assert_close(numbers.on_line(law).log_prob(x), law.log_prob(x[:, None]))
        y = x.clone().requires_grad_()
        (want,) = torch.autograd.grad(law.log_prob(y[:, None]).sum(), y)
        torch.testing.assert_close(numbers.on_line(law).score(x), want)
    found = numbers.between(numbers.BUMPS, numbers.TWO)
    for name in ("kl", "js", "tv", "fisher"):
        want = float(divergence_between(numbers.BUMPS, numbers.TWO, name, grid=LINE).value)
        assert found[name] == pytest.approx(want, rel=1e-5), name
    one = torch.ones(1, dtype=F64)
    for f in ("kl", "fisher"):
        want = float(gaussian_divergence(0.2 * one, 0.5 * one[None], -0.7 * one, 1.3 * one[None], f))
        assert numbers.between(numbers.gaussian(0.2, 0.5), numbers.gaussian(-0.7, 1.3))[f] == pytest.approx(want)


def test_the_fit_climbs_the_likelihood_and_ends_at_a_maximum() -> None:
    x = numbers.BUMPS.sample(400, 0, dtype=F64)[:, 0]
    third = torch.full((3,), 1.0, dtype=F64).softmax(0)
    start = numbers.mixture(third, torch.tensor([-0.5, 0.0, 0.5], dtype=F64), torch.ones(3, dtype=F64))
    found = numbers.model_fit(numbers.BUMPS, start, x, 100)
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(found.loss))
    assert found.loss[3] == pytest.approx(-float(found.models[3].log_prob(x[:, None]).mean()))
    weights = found.models[-1].weights.value.log().requires_grad_()
    means = found.models[-1].means.value[:, 0].clone().requires_grad_()
    logs = found.models[-1].covs.value.log().requires_grad_()
    loss = -numbers.Line(weights.softmax(0), means, logs.exp()).log_prob(x).mean()
    for slope in torch.autograd.grad(loss, (weights, means, logs)):
        assert float(slope.abs().max()) < 1e-5
    assert found.divergences["kl"][0] > 0.3
    assert found.divergences["kl"][-1] < 0.02  # about (8 parameters) / (2 n)
    kl = [float(divergence_between(numbers.BUMPS, found.models[k], "kl", grid=LINE).value) for k in (0, 100)]
    assert [found.divergences["kl"][0], found.divergences["kl"][-1]] == pytest.approx(kl, abs=1e-8)


def test_forward_covers_and_reverse_seeks() -> None:
    law = numbers.TWO
    best = numbers.forward_cover(law)
    assert best.mean == pytest.approx(0.35 * -2.0 + 0.65 * 1.5)
    assert best.std**2 == pytest.approx(0.35 * (0.25 + 4.0) + 0.65 * (0.49 + 2.25) - best.mean**2)
    means = torch.tensor([best.mean, best.mean + 0.3, -1.0], dtype=F64)
    stds = torch.tensor([best.std, best.std, 0.8], dtype=F64)
    forward, reverse = numbers.forward_values(law, means, stds), numbers.reverse_values(law, means, stds)
    for k in range(3):
        q = numbers.gaussian(float(means[k]), float(stds[k]) ** 2)
        assert float(forward[k]) == pytest.approx(numbers.between(law, q)["kl"], abs=1e-9)
        assert float(reverse[k]) == pytest.approx(numbers.between(q, law)["kl"], abs=1e-6)
    assert float(forward[0]) == pytest.approx(best.value) and float(forward.min()) == float(forward[0])
    for mean, value in ((1.5, -math.log(0.65)), (-2.0, -math.log(0.35))):
        found = numbers.reverse_cover(law, mean, 0.6)
        assert found.value == pytest.approx(value, abs=0.01)  # a mode's own Gaussian, but for what overlaps
        at = torch.tensor([found.mean, found.std], dtype=F64, requires_grad=True)
        slope = torch.autograd.grad(numbers.reverse_values(law, at[0], at[1]), at)[0]
        assert float(slope.abs().max()) < 1e-7
    apart = numbers.mixture(*(torch.tensor(v, dtype=F64) for v in ([0.3, 0.7], [-20.0, 20.0], [0.25, 1.44])))
    found = numbers.reverse_cover(apart, 19.0, 1.0)
    assert tuple(found) == pytest.approx((20.0, 1.2, -math.log(0.7)), abs=1e-6)


def test_fisher_is_blind_to_the_weights_of_distant_modes() -> None:
    kl, fisher = numbers.blindness(5.0)
    assert kl == pytest.approx(0.8318, abs=5e-5) and fisher == pytest.approx(2.08e-5, rel=5e-3)
    assert numbers.blindness(8.0)[1] == pytest.approx(1.1e-13, rel=0.05)
    seen = [numbers.blindness(5.0, sigma)[1] for sigma in (0.0, 1.0, 3.0)]
    assert seen[0] < 1e-4 < 1e-3 < seen[1] < 0.03 < seen[2]
    p, q = numbers.lopsided(1.0, 2.0)
    want = [float(divergence_between(p, q, f, grid=Grid((-25.0,), (25.0,), (4000,))).value) for f in ("kl", "fisher")]
    assert list(numbers.blindness(1.0, 2.0)) == pytest.approx(want, rel=1e-5)


def test_the_best_decoder_is_the_conditional_mean() -> None:
    codes, std = torch.tensor([-1.0, 0.5, 2.0], dtype=F64), 0.6
    data = torch.tensor([[3.0, 0.0], [-1.0, 2.0], [5.0, 1.0]], dtype=F64)
    z = torch.tensor([-0.4, 0.3, 1.9], dtype=F64)
    found = numbers.best_decoder(codes, data, std, z)
    said = Empirical(codes[:, None]).denoiser(EDM())(z[:, None], std).x0[:, 0]  # the codes' own posterior mean
    torch.testing.assert_close(numbers.best_decoder(codes, codes, std, z).mean, said)
    torch.testing.assert_close(found.weights.sum(1), torch.ones(3, dtype=F64))
    torch.testing.assert_close(found.mean, found.weights @ data)
    # least squares over draws: no other value at a code does better
    noise = torch.linspace(-5.0, 5.0, 4001, dtype=F64)
    mass = torch.softmax(-0.5 * noise**2, 0)
    drawn = codes[:, None] + std * noise
    fits = numbers.best_decoder(codes, data, std, drawn.reshape(-1)).mean.reshape(3, -1, 2)

    def loss(guess: torch.Tensor) -> float:
        return float((mass[:, None] * (guess - data[:, None]) ** 2).sum() / 3.0)

    bump = torch.exp(-((drawn - 0.3) ** 2))[..., None]
    assert loss(fits) < min(loss(fits + 0.01 * bump), loss(fits - 0.01 * bump))
    assert loss(fits + 0.01 * bump) == pytest.approx(loss(fits - 0.01 * bump), rel=1e-9)
    # the printed denominator, the prior, gives weights that do not sum to one (and so no mean)
    evidence = torch.stack([torch.distributions.Normal(c, std).log_prob(z).exp() for c in codes]).mean(0)
    torch.testing.assert_close(found.printed, evidence / torch.distributions.Normal(0.0, 1.0).log_prob(z).exp())
    assert float((found.printed - 1.0).abs().max()) > 0.5


def test_collapse_is_the_optimum_of_the_linear_elbo() -> None:
    lam, s2 = torch.tensor([3.0, 1.0, 0.2], dtype=F64), torch.tensor(0.5, dtype=F64)
    found = numbers.collapse(lam, s2)

    def elbo(w: torch.Tensor, gain: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
        """Dimension by dimension: x = w z + s eps, q = N(gain x, spread), x ~ N(0, lam)."""
        miss = lam * (1.0 - w * gain) ** 2 + w**2 * spread
        kl = 0.5 * (gain**2 * lam + spread - 1.0 - spread.log())
        return (-0.5 * (math.log(2.0 * math.pi) + s2.log() + miss / s2) - kl).sum()

    w = (lam - s2).clamp(min=0.0).sqrt()
    best = [one.requires_grad_() for one in (w, w / (w**2 + s2), s2 / (w**2 + s2))]
    value = elbo(*best)
    for slope in torch.autograd.grad(value, best):
        assert float(slope.abs().max()) < 1e-12
    assert float(found.elbo) == pytest.approx(value.item(), abs=1e-12)
    rate = 0.5 * (best[1] ** 2 * lam + best[2] - 1.0 - best[2].log())
    torch.testing.assert_close(found.kl, rate.detach(), rtol=0, atol=1e-12)
    assert float(found.kl[2]) == 0.0 and float(found.kl[1]) == pytest.approx(0.5 * math.log(2.0))
    many = numbers.collapse(lam, torch.tensor([0.1, 0.5, 2.0, 9.0], dtype=F64))
    assert (many.kl > 0.0).sum(1).tolist() == [3, 2, 1, 0]


def test_the_rate_is_information_and_mismatch() -> None:
    gain, std = torch.tensor([0.0, 0.4, 1.1], dtype=F64), torch.tensor([0.5, 0.9, 0.3], dtype=F64)
    found = numbers.rate_split(gain, std)
    torch.testing.assert_close(found.rate, found.information + found.mismatch)
    x = torch.linspace(-9.0, 9.0, 2001, dtype=F64)
    mass = torch.softmax(-0.5 * x**2, 0)
    for k in range(3):
        q = torch.distributions.Normal(gain[k] * x, std[k])
        prior = torch.distributions.Normal(torch.zeros_like(x), 1.0)
        whole = torch.distributions.Normal(0.0, (gain[k] ** 2 + std[k] ** 2).sqrt())
        kl = torch.distributions.kl_divergence
        assert float(found.rate[k]) == pytest.approx(float(mass @ kl(q, prior)), abs=1e-9)
        assert float(found.mismatch[k]) == pytest.approx(float(kl(whole, torch.distributions.Normal(0.0, 1.0))))
        assert float(found.information[k]) == pytest.approx(float(mass @ kl(q, whole)), abs=1e-9)


def test_pictures_and_their_noise() -> None:
    levels = (0, 100, 400, 1000)
    found = numbers.noised_pictures(levels, 3, seed=1)
    x, _ = Fashion().load("train").take(torch.arange(60))
    assert torch.equal(found[0], x[:3])
    beta2 = torch.linspace(1e-4, 0.02, 1000, dtype=F64)
    bar = (1.0 - beta2).sqrt().cumprod(0)
    for k, level in enumerate(levels[1:], 1):  # one-shot: what is left is standard noise
        left = (found[k] - bar[level - 1] * x[:3]) / (1.0 - bar[level - 1] ** 2).sqrt()
        assert abs(float(left.mean())) < 4.0 / math.sqrt(3 * 784)
        assert abs(float(left.var()) - 1.0) < 4.0 * math.sqrt(2.0 / (3 * 784))


def test_clean_predictions() -> None:
    levels = (0, 100, 400, 1000)
    found = numbers.picture_chain(levels, 3, size=60, stride=50, seed=1)
    x, _ = Fashion().load("train").take(torch.arange(60))
    denoiser = Empirical(x).denoiser(numbers.ddpm())
    for k, level in enumerate(levels[1:], 1):
        torch.testing.assert_close(found.clean[k], denoiser(found.states[k], level / 1000).x0, rtol=0, atol=2e-4)
    ends = torch.cdist(found.states[0].flatten(1).double(), x.flatten(1).double()).amin(1)
    assert float(ends.max()) < 1e-3  # memorised
    weights = numbers.chosen(numbers.ddpm(), x, found.states[3], 1.0)
    want = torch.distributions.Categorical(probs=weights).entropy().exp()
    torch.testing.assert_close(found.choices[3], want)
    assert bool((found.choices[-1] > 40.0).all() and (found.choices[1] < 1.5).all())
    with style():
        figure = chains.clean(size=60, stride=50)
    named = [axes.get_xlabel() for axes in figure.axes[9:18]]
    numbered = [float(name.removeprefix("of ")) for name in named]
    assert numbered[0] > 40.0 and numbered[-1] == 1.0
    assert figure.axes[0].get_title() == "i = 1000" and figure.axes[8].get_title() == "i = 0"


def test_clouds_of_the_moons() -> None:
    law, moons = numbers.moons_law(), Moons()
    drawn = moons.sample(20000, 3).double()
    torch.testing.assert_close(law.mean, torch.zeros(2, dtype=F64), rtol=0, atol=1e-12)
    # variances of y: 3/4 + noise^2 and 9/16 - 1/pi + noise^2, up to how pieces are cut
    want = torch.tensor([0.75, 9 / 16 - 1 / math.pi], dtype=F64) + moons.noise**2
    torch.testing.assert_close(law.cov.diagonal() * moons.scale**2, want, rtol=2e-3, atol=0)
    gap = law.log_prob(drawn).mean() - law.log_prob(law.sample(20000, 1, dtype=F64)).mean()
    assert abs(float(gap)) < 0.03  # the two have the same entropy and fit each other
    levels, n = (0, 200, 1000), 400
    there, back = numbers.cloud_chain(levels, n=n, stride=20)
    process = numbers.ddpm()
    for k, level in enumerate(levels):
        exact = law.at(process, level / 1000)
        for cloud, slack in ((there[k], 0.0), (back[k], 0.1)):  # 50 steps of the small variance shrink a little
            assert bool((cloud.mean(0).abs() < 4.0 * exact.cov.diagonal().sqrt() / math.sqrt(n) + slack).all())
            spread = cloud.double().var(0) / exact.cov.diagonal() - 1.0
            assert bool((spread.abs() < 4.0 * math.sqrt(2.0 / n) + slack).all())


def test_reverse_kernels_become_gaussian() -> None:
    law, process, s = numbers.TWO, VP(), 0.3
    t = numbers.step_of(process, s, 0.3)
    ratio = process.alpha(torch.tensor(s, dtype=F64)) / process.alpha(torch.tensor(t, dtype=F64))
    assert float(ratio**2) == pytest.approx(0.7, abs=1e-9)
    found = numbers.reverse_kernel(law, process, 0.1, s, t)
    # Bayes: p(x_t | x_s) = p(x_s | x_t) p_t(x_t) / p_s(x_s)
    scale, std = process.transition(t, s)
    step = torch.distributions.Normal(scale * found.x, std).log_prob(torch.tensor(0.1, dtype=F64))
    there = law.at(process, t).log_prob(found.x[:, None])
    here = law.at(process, s).log_prob(torch.tensor([[0.1]], dtype=F64))
    torch.testing.assert_close(found.true, (step + there - here).exp(), rtol=1e-9, atol=1e-12)
    mean = torch.trapezoid(found.x * found.true, found.x)
    var = torch.trapezoid((found.x - mean) ** 2 * found.true, found.x)
    log_q = torch.distributions.Normal(mean, var.sqrt()).log_prob(found.x)
    torch.testing.assert_close(found.matched, log_q.exp())
    gap = (found.true * (found.true.log() - log_q)).nan_to_num()
    assert found.kl_matched == pytest.approx(float(torch.trapezoid(gap, found.x)), abs=1e-9)
    small = float(process.bridge(s, t).std) ** 2  # the same mean, another variance: the difference is Gaussian
    want = 0.5 * (float(var) / small - 1.0 - math.log(float(var) / small))
    assert found.kl_fixed - found.kl_matched == pytest.approx(want, rel=1e-6)
    fine = numbers.kernel_gaps(law, process, 0.1, s, [0.01, 0.005])
    for k, slope in ((0, 3.0), (1, 2.0)):
        assert math.log2(fine[0][k] / fine[1][k]) == pytest.approx(slope, abs=0.05)


QUICK = ("families", "autoencoders", "reverse-kernel")


def test_pictures_are_the_same_twice(tmp_path: Path) -> None:
    made = draw("roots", tmp_path / "a", only=QUICK)
    again = draw("roots", tmp_path / "b", only=QUICK[1:2])
    for one, two in zip(made[1:2], again, strict=True):
        assert one.read_bytes() == two.read_bytes()
    for path in made:
        with Image.open(path) as image:
            assert image.width > 600 and len(image.convert("L").getcolors()) > 20
        assert path.stat().st_size < 80_000
    index = (tmp_path / "a" / "index.md").read_text()
    for figure in figures_of("roots"):
        assert (f"![{figure.name}]({figure.name}.png)\n\n{figure.caption}\n" in index) is (figure.name in QUICK)


def test_the_set_is_whole() -> None:
    figures = figures_of("roots")
    assert len({figure.name for figure in figures}) == len(figures) == 11
    captions = " ".join(figure.caption for figure in figures)
    for named in ("Fig. 1.1:", "Fig. 1.2 and", "Figs. 2.1 and 2.2:", "Figs. 2.3 and 2.4:", "Fig. 2.5:", "Fig. 2.6:"):
        assert f"Book {named}" in captions


def test_the_others_draw_what_they_say() -> None:
    with style():
        figure = chains.blur((0.2, 0.9))
        weights = figure.axes[1].lines
        assert len(weights) == 6 and max(weights[0].get_ydata()) == pytest.approx(1.0, abs=1e-3)
        fit = divergences.fit(n=100, steps=4, shown=(0, 2, 4))
        assert [axes.get_title(loc="left") for axes in fit.axes[:3]] == [f"after {k} steps" for k in (0, 2, 4)]
        assert len(fit.axes[3].lines[0].get_ydata()) == 5
        lines = divergences.blindness().axes[1].lines
        assert float(lines[1].get_ydata()[-1]) == pytest.approx(numbers.blindness(8.0)[1])
