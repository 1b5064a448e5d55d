"""Energies: log Z, scores and likelihoods by closed form; every objective has the truth as its minimiser."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from fokker import noise
from fokker.calculus import Grid, divergence, gradient
from fokker.classic import Energy, curl, log_density_along, log_partition, mala
from fokker.errors import ConfigError
from fokker.exact import Gaussian, GaussianMixture
from fokker.registry import build, spec

F64 = torch.float64
OBJECTIVES = ("pcd", "cd", "nce", "score-matching", "sliced", "dsm")
MIXTURE = GaussianMixture(
    [0.3, 0.7], [[-1.0, 0.4], [0.8, -0.3]], [[[0.5, 0.2], [0.2, 0.4]], [[0.3, -0.1], [-0.1, 0.6]]]
)
BOX = Grid((-9.0, -9.0), (9.0, 9.0), (180, 180))


class Modes(nn.Module):
    """The tilt that makes an `Energy` the mixture of two normals of means m and one variance, in one dimension."""

    def __init__(
        self, share: float, means: tuple[float, float], variance: float, broad: float, constant: float
    ) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(math.log(share / (1 - share)), dtype=F64))
        self.means = nn.Parameter(torch.tensor(means, dtype=F64))
        self.log_v = nn.Parameter(torch.tensor(math.log(variance), dtype=F64))
        self.broad, self.constant = broad, constant

    def forward(self, x: Tensor) -> Tensor:
        inside = -0.5 * (x - self.means).square() / self.log_v.exp() - 0.5 * self.log_v
        weights = torch.stack([-softplus(-self.logit), -softplus(self.logit)])
        return self.constant - torch.logsumexp(inside + weights, 1) - x[:, 0].square() / (2 * self.broad**2)


class Bell(nn.Module):
    """The tilt that makes an `Energy` the normal law N(m, v)."""

    def __init__(self, mean: float, variance: float, broad: float, constant: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean, dtype=F64))
        self.log_v = nn.Parameter(torch.tensor(math.log(variance), dtype=F64))
        self.broad, self.constant = broad, constant

    def forward(self, x: Tensor) -> Tensor:
        quadratic = (x[:, 0] - self.mean).square() / (2 * self.log_v.exp())
        return quadratic - x[:, 0].square() / (2 * self.broad**2) + self.constant


def bell(objective: Any = "pcd", mean: float = 0.4, variance: float = 0.6, **fields: Any) -> Energy:
    model = Energy((1,), width=2, objective=objective, **fields).double()
    model.net = Bell(mean, variance, model.broad, 0.0)
    return model


def modes(objective: Any = "pcd", **fields: Any) -> Energy:
    """.3 N(-1, .4) + .7 N(1.2, .4); of "dsm" blurred by .5."""
    model = Energy((1,), width=2, objective=objective, sigma=0.5, **fields).double()
    blur = 0.25 if objective == "dsm" else 0.0
    # Normalised (E = -log p), so that the c of "nce" is 0.
    model.net = Modes(0.3, (-1.0, 1.2), 0.4 + blur, model.broad, 0.5 * math.log(2 * math.pi))
    return model


TRUE_MODES = GaussianMixture([0.3, 0.7], [[-1.0], [1.2]], [0.4, 0.4])


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("v", [0.09, 0.7, 2.0])
def test_log_z_of_a_normal_energy(v: float, d: int) -> None:
    """Z = (2 pi v)^(D/2); E + c changes neither p nor its mass; with exp(+E) there is no Z (erratum E20)."""
    energy = lambda x: x.square().sum(1) / (2 * v)  # noqa: E731
    box = Grid((-12.0,) * d, (12.0,) * d, (200,) * d)
    log_z = log_partition(energy, box)
    assert float(log_z) == pytest.approx(0.5 * d * math.log(2 * math.pi * v), abs=1e-11)
    density = (-energy(box.centres()) - log_z).exp()
    assert float(density.sum() * box.volume) == pytest.approx(1.0, abs=1e-12)
    raised = lambda x: energy(x) + 37.5  # noqa: E731
    again = (-raised(box.centres()) - log_partition(raised, box)).exp()
    torch.testing.assert_close(again, density, rtol=1e-11, atol=0)
    wider = Grid((-13.0,) * d, (13.0,) * d, (200,) * d)
    printed = [float(log_partition(lambda x: -energy(x), b)) for b in (box, wider)]
    assert printed[1] > printed[0] + 0.9 * d * (13**2 - 12**2) / (2 * v) - 0.2 * d * 13 / v


def test_lower_energy_here_is_less_probability_there() -> None:
    energy = lambda x: -MIXTURE.log_prob(x)  # noqa: E731
    inside = lambda x: (x[:, 0] > 0.5).double()  # noqa: E731
    x = BOX.centres()

    def share(energy: Callable[[Tensor], Tensor]) -> float:
        density = (-energy(x) - log_partition(energy, BOX)).exp()
        return float((density * inside(x)).sum() * BOX.volume)

    before, after = share(energy), share(lambda x: energy(x) - 0.8 * inside(x))
    lift = before * math.exp(0.8)
    assert 0.3 < before < 0.7
    assert after == pytest.approx(lift / (lift + 1 - before), abs=1e-12)


def network(**fields: Any) -> Energy:
    torch.manual_seed(3)
    return Energy((2,), width=16, depth=2, broad=1.5, cells=80, **fields).double()


def test_the_gradient_by_two_expectations() -> None:
    """d/dphi of the mean log-likelihood = -E_data[dE] + E_p[dE] (E9: it climbs), against autograd through log Z."""
    model, x = network(), MIXTURE.sample(50, dtype=F64)
    weights = list(model.net.parameters())
    got = torch.autograd.grad(model.log_prob(x).mean(), weights)
    grid = Grid((-9.0, -9.0), (9.0, 9.0), (80, 80))
    with torch.no_grad():
        p = (-model.energy(grid.centres())).exp()
        p = p / p.sum()
    data = torch.autograd.grad(model.energy(x).mean(), weights)
    own = torch.autograd.grad((p * model.energy(grid.centres())).sum(), weights)
    scale = max(float(g.abs().max()) for g in got)
    for g, a, b in zip(got, data, own, strict=True):
        assert float((g - (b - a)).abs().max()) < 1e-8 * scale
    assert max(float(g.abs().max()) for g in data) > 1e-3 * scale
    with torch.no_grad():
        before = float(model.log_prob(x).mean())
        for weight, g in zip(weights, got, strict=True):
            weight += 1e-3 * g / scale
        assert float(model.log_prob(x).mean()) > before  # the printed L_MLE is to be maximised


def test_the_likelihood_is_largest_at_the_sample_moments() -> None:
    x = 0.4 + math.sqrt(0.6) * noise.normal(2, torch.arange(60), (1,), dtype=F64)
    model = bell(mean=float(x.mean()), variance=float(x.var(correction=0)))
    torch.testing.assert_close(
        model.log_prob(x), Gaussian(x.mean(0), x.var(0, correction=0)).log_prob(x), rtol=0, atol=1e-11
    )
    for g in torch.autograd.grad(model.log_prob(x).mean(), list(model.net.parameters())):
        assert abs(float(g)) < 1e-11


def test_log_prob_is_exact_up_to_two_dimensions_and_refused_beyond() -> None:
    x = TRUE_MODES.sample(40, dtype=F64)
    torch.testing.assert_close(modes().log_prob(x), TRUE_MODES.log_prob(x), rtol=0, atol=1e-11)
    plane = Energy((1, 2), broad=1.3).double()  # without a tilt it is N(0, broad^2 I)
    nn.init.zeros_(plane.net[-1].weight)
    x = MIXTURE.sample(40, dtype=F64)
    want = Gaussian([0.0, 0.0], 1.69).log_prob(x)
    torch.testing.assert_close(plane.log_prob(x[:, None]), want, rtol=0, atol=1e-8)  # 6 b hold all but 4e-9
    assert plane.float().log_prob(x[:, None].float()).dtype == torch.float32
    with pytest.raises(ConfigError, match=r"1 or 2 dimensions, and a sample has 3"):
        Energy((3,)).log_prob(torch.zeros(2, 3))


class Ridge(nn.Module):
    """The tilt that makes a plane's `Energy` the normal law of precision a about (m, m)."""

    def __init__(self, mean: float, precision: list[list[float]], broad: float) -> None:
        super().__init__()
        self.mean, self.broad = mean, broad
        self.a = nn.Parameter(torch.tensor(precision, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        gap = x - self.mean
        return 0.5 * torch.einsum("bi,ij,bj->b", gap, self.a, gap) - x.square().sum(1) / (2 * self.broad**2)


def test_a_coarse_grid_is_refined_until_it_tells() -> None:
    """Cells of length 1: the sum is off by the factor 1 + 2 q of the mass, q = exp(-2 pi^2 v), at worst."""
    x = torch.zeros(2, 1, dtype=F64)
    for v, enough in ((0.35, False), (0.45, True)):
        model, off = bell(mean=0.5, variance=v, cells=24), math.log1p(2 * math.exp(-2 * math.pi**2 * v))
        want = 0.5 * math.log(2 * math.pi * v)
        if enough:  # on a centre the sum is too large, by less than 0.001
            assert float(model.log_partition().detach()) == pytest.approx(want + off, abs=1e-6)
            continue
        assert off == pytest.approx(2.0e-3, abs=5e-5)
        assert float(model.log_partition().detach()) == pytest.approx(want, abs=1e-6)  # on 48 cells
        torch.testing.assert_close(model.log_prob(x), Gaussian([0.5], v).log_prob(x), rtol=0, atol=1e-6)
        model.broad = 1e4
        with pytest.raises(ConfigError, match=r"on 2048 cells an axis .* broad = 60000 .* lower model\.broad \(now 1"):
            model.log_prob(x)
    # A ridge along the other diagonal: only a shift along one axis alone tells, by 2 exp(-4 pi^2 s^2).
    along, across = 1 / 4.0, 1 / 0.15
    ridge = Energy((2,), cells=24).double()
    half, skew = 0.5 * (along + across), 0.5 * (across - along)
    ridge.net = Ridge(0.5, [[half, skew], [skew, half]], 2.0)
    with torch.no_grad():
        assert ridge._checked(2)[1] == 48
        coarse, fine = ridge._summed((0.0, 0.0), 24), ridge._summed((0.0, 0.0), 384)
        assert abs(float(coarse - fine)) > 3e-3 and abs(float(ridge.log_partition() - fine)) < 1e-4


def test_log_z_is_computed_once_for_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(
        "fokker.classic.energy.log_partition", lambda *a, **k: calls.append(1) or log_partition(*a, **k)
    )
    model, x = network(), MIXTURE.sample(5, dtype=F64)
    with torch.no_grad():
        first = [model.log_prob(x) for _ in range(3)]
        assert len(calls) == 4 and torch.equal(first[0], first[2])
        for change in (
            lambda: model.net[1].weight.data.mul_(1.5),  # which leaves the parameter's version as it was
            lambda: setattr(model, "broad", 1.6),
            lambda: setattr(model, "cells", 90),
        ):
            before = model.log_partition()
            change()
            grid = Grid((-6 * model.broad,) * 2, (6 * model.broad,) * 2, (model._checked(2)[1],) * 2)
            after, want = model.log_partition(), log_partition(model.energy, grid)
            assert float(after) == pytest.approx(float(want), abs=1e-12)
            assert model.cells == 90 or abs(float(after - before)) > 1e-3
        assert len(calls) == 16
    model.log_partition().backward()  # and what is kept is no part of it
    assert float(model.net[-1].weight.grad.abs().max()) > 0
    by_name = {name: p.detach() for name, p in model.named_parameters()}

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> Tensor:
            return self.model.log_partition()

    held = {f"model.{name}": p for name, p in by_name.items()}
    slopes = torch.func.grad(lambda held: torch.func.functional_call(Whole(), held, ()))(held)
    torch.testing.assert_close(slopes["model.net.5.weight"], model.net[-1].weight.grad, rtol=1e-11, atol=1e-13)


def test_the_score_is_free_of_z_and_of_curl() -> None:
    model, x = network().requires_grad_(False), MIXTURE.sample(20, dtype=F64)
    torch.testing.assert_close(model.score(x), gradient(model.log_prob, x), rtol=1e-11, atol=1e-12)
    assert float(curl(model.score, x).abs().max()) < 1e-12
    a = torch.tensor([[1.0, 2.0], [-3.0, 0.5]], dtype=F64)
    torch.testing.assert_close(curl(lambda x: x @ a.mT, x), (a - a.mT).expand(20, 2, 2))
    torch.manual_seed(0)
    free = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 2)).double()
    assert float(curl(free, x)[:, 0, 1].detach().abs().mean()) > 0.01


def test_the_density_along_a_line_of_scores() -> None:
    """log p(x) - log p(x_0) to 1e-8, from two origins alike; a field with curl gives each origin another answer."""
    law = MIXTURE
    score = lambda x: gradient(law.log_prob, x)  # noqa: E731
    x = law.sample(30, dtype=F64)
    origins = torch.tensor([[0.0, 0.0], [1.5, -2.0]], dtype=F64)
    values = [log_density_along(score, x, o) + law.log_prob(o[None]) for o in origins]
    for value in values:
        torch.testing.assert_close(value, law.log_prob(x), rtol=0, atol=1e-8)
    assert float((log_density_along(score, x, origins[0], nodes=4) - values[0]).abs().max()) > 1e-4
    each = log_density_along(score, x, x.flip(0))
    torch.testing.assert_close(each, law.log_prob(x) - law.log_prob(x.flip(0)), rtol=0, atol=1e-8)
    turn = lambda x: torch.stack([-x[:, 1], x[:, 0]], 1)  # noqa: E731
    one, two = (log_density_along(turn, x, o) for o in origins)
    torch.testing.assert_close(two, origins[1, 0] * x[:, 1] - origins[1, 1] * x[:, 0])
    assert float(one.abs().max()) < 1e-12
    picture = log_density_along(lambda x: -x, x.reshape(30, 1, 2), origins[1].reshape(1, 2), nodes=2)
    torch.testing.assert_close(picture, 0.5 * (origins[1].square().sum() - x.square().sum(1)))
    with pytest.raises(ConfigError, match="nodes"):
        log_density_along(score, x, origins[0], nodes=0)


def test_score_matching_has_minus_the_laplacian() -> None:
    """E10: E = x^2 / (2 v), data of variance 1: -1/v + 1/(2 v^2) is least at v = 1; as printed it falls for ever."""
    x = torch.tensor([[-1.0], [1.0]], dtype=F64)
    variances = [0.5, 0.9, 1.0, 1.1, 2.0, 10.0, 1000.0]
    right, printed = [], []
    for v in variances:
        model = bell("score-matching", mean=0.0, variance=v)
        loss = model.losses(x)
        torch.testing.assert_close(loss, torch.full_like(loss, -1 / v + 1 / (2 * v**2)), rtol=1e-11, atol=1e-12)
        right.append(float(loss.detach().mean()))
        printed.append(float((loss - 2 * divergence(model.score, x).value).detach().mean()))
    assert min(right) == right[variances.index(1.0)] == pytest.approx(-0.5, abs=1e-12)
    assert all(a > b for a, b in pairwise(printed))
    sliced = bell("sliced", mean=0.3, variance=0.7).losses(x)  # in one dimension signs tell all
    torch.testing.assert_close(sliced, bell("score-matching", mean=0.3, variance=0.7).losses(x))


def test_losses_of_a_network_by_their_formulas() -> None:
    x, rows = MIXTURE.sample(12, dtype=F64), torch.arange(40, 52)
    keys: dict[str, Any] = {"seed": 5, "step": 9, "positions": rows}
    eps = noise.normal(5, rows, (2,), draw=9 << 8, domain="training", dtype=F64)
    model = network(objective="dsm", sigma=0.3)
    at = x + 0.3 * eps
    want = 0.5 * 0.09 * (-gradient(model.energy, at) + eps / 0.3).square().sum(1)
    torch.testing.assert_close(model.losses(x, **keys), want, rtol=1e-12, atol=0)
    model = network(objective="sliced")
    u = noise.rademacher(5, rows, (2,), draw=9 << 8, domain="training", dtype=F64)
    hessian = torch.stack([torch.autograd.functional.hessian(lambda y: model.energy(y[None])[0], row) for row in x])
    want = -torch.einsum("bi,bij,bj->b", u, hessian, u) + 0.5 * gradient(model.energy, x).square().sum(1)
    torch.testing.assert_close(model.losses(x, **keys), want, rtol=1e-10, atol=1e-12)
    model = network(objective="cd", steps=4, eta=0.2, penalty=0.1)
    y = mala(model.energy, x, steps=4, eta=0.2, seed=5, indices=rows, start=9 << 8, domain="training").x
    up, down = model.energy(x), model.energy(y)
    torch.testing.assert_close(model.losses(x, **keys), up - down + 0.1 * (up**2 + down**2), rtol=1e-12, atol=1e-14)
    assert not torch.equal(y, x)
    unadjusted = network(objective="cd", steps=1, eta=0.2, move="ula")
    y = x + 0.2 * unadjusted.score(x) + math.sqrt(0.4) * eps
    want = unadjusted.energy(x) - unadjusted.energy(y)
    torch.testing.assert_close(unadjusted.losses(x, **keys), want, rtol=1e-11, atol=1e-13)


def test_persistent_chains_persist() -> None:
    model = network(objective="pcd", chains=32, steps=3, eta=0.2)
    x, first = MIXTURE.sample(8, dtype=F64), model.chains.clone()
    assert torch.allclose(first.float(), 1.5 * noise.normal(0, torch.arange(32), (2,), domain="prior"))
    loss = model.losses(x, seed=1, step=4)
    moved = mala(model.energy, first, steps=3, eta=0.2, seed=1, start=4 << 8, domain="training").x
    assert torch.equal(model.chains, moved) and not torch.equal(moved, first)
    torch.testing.assert_close(loss, model.energy(x) - model.energy(moved).mean(), rtol=1e-12, atol=1e-14)
    weights = list(model.net.parameters())  # the chains are data: no gradient goes through their moves
    got = torch.autograd.grad(loss.mean(), weights)
    want = torch.autograd.grad(model.energy(x).mean() - model.energy(moved).mean(), weights)
    assert all(torch.equal(g, w) or torch.allclose(g, w, rtol=1e-11) for g, w in zip(got, want, strict=True))
    model.losses(x, seed=1, step=4, positions=torch.arange(8, 16))  # another part of the batch: other draws
    other = mala(model.energy, moved, steps=3, eta=0.2, seed=1, start=4 << 8, domain="training").x
    assert not torch.equal(model.chains, other)
    assert model.alone and not network(objective="cd").alone
    model.eval()
    kept = model.chains.clone()
    model.losses(x, seed=1, step=5)
    assert torch.equal(model.chains, kept) and "chains" in model.state_dict()


def test_nce_measures_against_all_the_batches_there_were() -> None:
    model = network(objective="nce")
    batches = [MIXTURE.sample(200, seed=k, dtype=F64) + k for k in range(3)]
    for k, x in enumerate(batches):
        loss = model.losses(x, seed=2, step=k)
    seen = torch.cat(batches)
    std = seen.std(0, correction=0)
    torch.testing.assert_close(model.mean, seen.mean(0), rtol=1e-12, atol=1e-12)
    y = seen.mean(0) + std * noise.normal(2, torch.arange(200), (2,), draw=2 << 8, domain="training", dtype=F64)
    q = torch.distributions.Normal(seen.mean(0), std)
    gaps = [-model.energy(z) - model.log_z - q.log_prob(z).sum(1) for z in (batches[2], y)]
    want = -torch.sigmoid(gaps[0]).log() - torch.sigmoid(-gaps[1]).log()
    torch.testing.assert_close(loss, want, rtol=1e-10, atol=1e-12)
    model.eval()
    model.losses(batches[0])
    torch.testing.assert_close(model.mean, seen.mean(0), rtol=1e-12, atol=1e-12)


def at_truth(objective: str, law: str) -> tuple[Energy, Any]:
    """A model that is the law (of "dsm": blurred), and the law."""
    if law == "modes":
        return modes(objective, steps=3, eta=0.3), TRUE_MODES
    made = bell(objective, 0.4, 0.6 + (0.25 if objective == "dsm" else 0.0), steps=3, eta=0.3, sigma=0.5)
    if objective == "nce":
        made.log_z.data.fill_(0.5 * math.log(2 * math.pi * 0.6))
    return made, Gaussian([0.4], 0.6)


def population_gradient(model: Energy, law: Any) -> Tensor:
    """The mean gradient over its standard error, for each parameter, from 25 batches of 500."""
    rows = []
    for k in range(25):
        if model.objective == "pcd":
            model.chains = law.sample(500, seed=1000 + k, dtype=F64)
        loss = model.losses(law.sample(500, seed=100 + k, dtype=F64), seed=k, step=k).mean()
        rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))]))
    each = torch.stack(rows)
    return each.mean(0) / (each.std(0) / math.sqrt(len(rows)))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("law", ["bell", "modes"])
def test_the_truth_is_stationary(objective: str, law: str) -> None:
    """The population's gradient is 0 at the truth within 4 standard errors; beside it it is 8 away."""
    model, exact = at_truth(objective, law)
    if objective == "nce":
        model.losses(exact.sample(20_000, seed=5, dtype=F64))  # q is the data's normal law, then left alone
        model.eval()
    assert float(population_gradient(model, exact).abs().max()) < 4
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3
    assert float(population_gradient(model, exact).abs().max()) > 8


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_descent_finds_the_truth(objective: str) -> None:
    """From N(-.6, 1.8) to the data's N(.4, .6), blurred by "dsm"; "nce" finds log Z too."""
    model = bell(objective, -0.6, 1.8, steps=4, eta=0.5, chains=500, sigma=0.5)
    x = 0.4 + math.sqrt(0.6) * noise.normal(2, torch.arange(500), (1,), dtype=F64)
    mean, v = float(x.mean()), float(x.var()) + (0.25 if objective == "dsm" else 0.0)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.08)
    path = []
    for k in range(100):
        optimiser.param_groups[0]["lr"] = 0.08 * (1 - k / 100)
        optimiser.zero_grad()
        model.losses(x, seed=1, step=k).mean().backward()
        optimiser.step()
        path.append(torch.stack([model.net.mean.detach(), model.net.log_v.detach().exp()]))
    found = torch.stack(path[-30:]).mean(0)
    near = 0.08 if objective in ("nce", "dsm") else 0.05
    assert abs(float(found[0]) - mean) < near and abs(float(found[1]) / v - 1) < near
    if objective == "nce":
        assert float(model.log_z.detach()) == pytest.approx(0.5 * math.log(2 * math.pi * v), abs=0.05)


def test_draws() -> None:
    """Two modes 14 deviations apart by tempering, .2 and .8 within 4 standard errors; each draw its own."""
    model = Energy((1,), broad=3.0, eta=0.1, replicas=6, draw_steps=100).double()
    model.net = Modes(0.2, (-2.8, 2.8), 0.16, 3.0, 0.0)
    x = model.sample(400, seed=4)
    share = float((x > 0).double().mean())
    assert abs(share - 0.8) < 4 * math.sqrt(0.16 / 400)
    near = x[x > 0] - 2.8
    assert abs(float(near.mean())) < 4 * math.sqrt(0.16 / len(near))
    assert abs(float(near.var()) / 0.16 - 1) < 4 * math.sqrt(2 / len(near))
    few = model.sample(indices=[3, 77], seed=4)
    torch.testing.assert_close(few, x[[3, 77]], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(model.sample(indices=[3, 77], seed=5), few)
    plain = Energy((1,), broad=3.0, eta=0.1, replicas=1, draw_steps=30).double()
    plain.net = model.net
    start = 3.0 * noise.normal(4, torch.arange(400), (1,), domain="prior", dtype=F64)
    want = mala(plain.energy, start, steps=30, eta=0.1, seed=4).x
    torch.testing.assert_close(plain.sample(400, seed=4), want, rtol=1e-9, atol=1e-9)


def test_a_picture_has_an_energy() -> None:
    model = Energy((1, 4, 4), width=8, depth=2, objective="pcd", chains=6, steps=2, draw_steps=3)
    x = noise.normal(0, torch.arange(5), (1, 4, 4))
    flat = torch.nn.functional.silu(model.net[1](x.flatten(1)))
    flat = torch.nn.functional.silu(model.net[3](flat)) @ model.net[5].weight.mT
    torch.testing.assert_close(model.energy(x), flat[:, 0] + x.flatten(1).square().sum(1) / 8)
    assert model.losses(x).shape == (5,) and model.sample(3).shape == (3, 1, 4, 4)


def test_what_a_recipe_and_a_file_say() -> None:
    model = build("model", {"kind": "energy", "shape": [2], "width": 8, "objective": "nce", "broad": 1.5})
    written = spec(model)
    assert written["kind"] == "energy" and written["broad"] == 1.5 and written["draw_steps"] == 300
    assert spec(build("model", written)) == written
    for bad in (
        {"width": 0}, {"depth": 0}, {"objective": "mle"}, {"broad": 0.0}, {"steps": 0}, {"steps": 201}, {"eta": -1.0},
        {"move": "hmc"}, {"chains": 0}, {"penalty": -0.1}, {"sigma": 0.0}, {"replicas": 0}, {"draw_steps": 0},
        {"cells": 1}, {"cells": 2049}, {"eta": math.inf}, {"broad": math.inf}, {"sigma": math.inf}, {"eta": math.nan},
        {"penalty": math.nan}, {"penalty": math.inf},
    ):  # fmt: skip
        (name,) = bad
        with pytest.raises(ConfigError, match=rf"Energy\.{name}: given"):
            Energy((2,), **bad)


def test_a_broken_model_draws_nothing() -> None:
    """Without a finite energy no move is accepted: the start is no sample. Rows that are whole stay as they are."""
    model = network(steps=2, draw_steps=60)
    whole = model.sample(40, seed=1)
    assert bool(whole.isfinite().all())

    class Holed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x[:, 0] > 0, math.nan, 0.0) + 0.0 * x.sum(1)

    model.net = nn.Sequential(Holed())
    model.anchor = nn.Parameter(torch.zeros((), dtype=F64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # whose acceptance is not to blame
        x = model.sample(40, seed=1)
        start = 1.5 * noise.normal(1, torch.arange(40), (2,), domain="prior", dtype=F64)
        assert torch.equal(x.isnan().all(1), start[:, 0] > 0) and bool((x[start[:, 0] <= 0, 0] <= 0).all())
        broken = network(draw_steps=60)
        nn.init.constant_(broken.net[1].weight, math.nan)
        assert bool(broken.sample(40).isnan().all())


@pytest.mark.filterwarnings("always:Energy.eta")
def test_moves_that_are_refused_are_heard_of() -> None:
    said = r"at eta=1e\+09 0\.0% of the chains' moves are accepted, .* lower model\.eta$"
    model = network(objective="pcd", eta=1e9, steps=2, chains=50, draw_steps=20, replicas=3)
    with pytest.warns(UserWarning, match=said):
        x = model.sample(20)
    assert bool(x.isfinite().all())
    data = MIXTURE.sample(8, dtype=F64)
    with warnings.catch_warnings(record=True) as heard:
        for step in (1, 99, 100, 200):  # looked at every 100 steps, said once
            model.losses(data, step=step)
            assert len(heard) == (step >= 100)
        network(objective="cd", eta=1e9, steps=2, move="ula").losses(data)  # never refuses
        network(objective="cd", eta=1e9, steps=2).losses(data)  # 16 moves tell nothing
        network(objective="pcd", eta=0.2, steps=2, chains=50).losses(data)
        network(eta=0.2, draw_steps=20).sample(20)
    assert len(heard) == 1


@pytest.mark.parametrize("move", ["ula", "mala"])
def test_a_lost_chain_begins_anew(move: Any) -> None:
    """The other chains go on as if nothing had been; a chain so far off that |x|^2 is not finite is lost as well."""
    lost = torch.tensor([1, 4, 6])

    def moved(at: dict[int, float]) -> tuple[Tensor, Tensor]:
        model = network(objective="pcd", chains=8, steps=2, eta=0.2, move=move)
        for row, value in at.items():
            model.chains[row, 1] = value
        loss = model.losses(MIXTURE.sample(3, dtype=F64), seed=5, step=7)
        return model.chains, loss

    (got, loss), (want, _) = moved({1: math.nan, 4: math.inf, 6: 1e200}), moved({})
    fresh = 1.5 * noise.normal(5, lost, (2,), draw=(7 << 8) + 255, domain="training", dtype=F64)
    assert torch.equal(got[lost], fresh) and bool(loss.isfinite().all())
    rest = torch.tensor([0, 2, 3, 5, 7])
    assert torch.equal(got[rest], want[rest]) and not torch.equal(want[lost], fresh)


def test_the_noise_law_of_nce_has_the_moments_of_all_batches() -> None:
    """Also in single precision and far from 0."""
    model = Energy((2,), width=4, depth=1, objective="nce")
    rows = torch.tensor([0.01, 2.0], dtype=F64) * noise.normal(7, torch.arange(300), (2,), dtype=F64)
    rows = (rows + torch.tensor([100.0, -50.0], dtype=F64)).float()
    for step, batch in enumerate(rows.split(60)):
        model.losses(batch, step=step)
    torch.testing.assert_close(model.mean, rows.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(model.variance.sqrt(), rows.double().std(0, correction=0).float(), rtol=1e-2, atol=0)
