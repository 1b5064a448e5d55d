"""Adversarial networks: identities on tables of probabilities, every f's conjugate, and whose gradient goes where."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor

from fokker.calculus import discrete_divergence
from fokker.classic import GAN
from fokker.classic.gan import GAMES, f_bound, gan_value, optimal_discriminator
from fokker.errors import ConfigError
from fokker.noise import normal
from fokker.registry import build, spec

F64 = torch.float64
P = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.45, 0.05]], dtype=F64)
Q = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.3, 0.1, 0.2, 0.4]], dtype=F64)


def test_the_value_at_the_best_discriminator() -> None:
    for p, q in ((P, Q), (torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.0, 0.25, 0.75]))):
        p, q = p.to(F64), q.to(F64)
        want = 2.0 * discrete_divergence(p, q, "js") - math.log(4.0)
        torch.testing.assert_close(gan_value(p, q), want, rtol=0, atol=1e-14)
    best = optimal_discriminator(P, Q)
    torch.testing.assert_close(best[0], torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=F64))
    for k in range(4):  # no other is better, in any coordinate, on either side
        for step in (-1e-3, 1e-3):
            moved = best.clone()
            moved[:, k] += step
            assert bool((gan_value(P, Q, moved) < gan_value(P, Q) - 1e-7).all())
    torch.testing.assert_close(optimal_discriminator(P, P), torch.full_like(P, 0.5))
    torch.testing.assert_close(gan_value(P, P), torch.full((2,), -math.log(4.0), dtype=F64))
    zero = torch.zeros(1, dtype=F64)
    assert float(optimal_discriminator(zero, zero)) == 0.5
    apart = torch.eye(2, dtype=F64)
    assert float(gan_value(apart[0], apart[1])) == 0.0  # 2 log 2 - log 4


def test_the_verified_value() -> None:
    p, q = torch.tensor([0.2, 0.3, 0.5], dtype=F64), torch.tensor([0.6, 0.3, 0.1], dtype=F64)
    assert float(gan_value(p, q)) == pytest.approx(-1.13609, abs=5e-6)


EXPLICIT = {
    "minimax": lambda p, q: 2.0 * discrete_divergence(p, q, "js") - math.log(4.0),
    "kl": discrete_divergence,
    "reverse_kl": lambda p, q: discrete_divergence(q, p),
    "js": lambda p, q: discrete_divergence(p, q, "js"),
    "tv": lambda p, q: discrete_divergence(p, q, "tv"),
    "chi2": lambda p, q: ((p - q).square() / q).sum(-1),
    "hellinger": lambda p, q: (p.sqrt() - q.sqrt()).square().sum(-1),
}


@pytest.mark.parametrize("name", GAMES)
def test_the_bound_is_tight_at_the_slope_and_nowhere_above(name: str) -> None:
    want = EXPLICIT[name](P, Q)
    torch.testing.assert_close(discrete_divergence(P, Q, GAMES[name].f), want, rtol=0, atol=1e-14)
    torch.testing.assert_close(f_bound(P, Q, name), want, rtol=0, atol=1e-13)
    v = 2.0 * torch.randn(500, 1, 4, dtype=F64)
    bound = f_bound(P, Q, name, v)
    assert bool((bound <= want + 1e-12).all()) and float((want - bound).min()) < 1.0
    # and a network's output reaches it: where g(v) = f'(p / q)
    v = torch.zeros(2, 4, dtype=F64, requires_grad=True)
    optimiser = torch.optim.LBFGS([v], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = -f_bound(P, Q, name, v).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    torch.testing.assert_close(f_bound(P, Q, name, v), want, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", GAMES)
def test_conjugates_slopes_and_outputs(name: str) -> None:
    game = GAMES[name]
    u = torch.linspace(0.05, 6.0, 40, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(game.f(u).sum(), u)
    torch.testing.assert_close(game.slope(u), slope)
    v = torch.linspace(-2.0 if name == "chi2" else -2.5, 1.2, 38, dtype=F64)  # below, f* has no maximum at u > 0
    t = game.real(v)
    torch.testing.assert_close(game.fake(v), game.conjugate(t), rtol=0, atol=1e-11)
    grid = torch.logspace(-7, 3, 400001, dtype=F64)  # the supremum, by hand
    for value, said in zip(t[::6], game.fake(v)[::6], strict=True):
        assert float((grid * value - game.f(grid)).max()) == pytest.approx(float(said), abs=2e-6)
    assert bool((t[1:] > t[:-1]).all())  # data is judged higher


def test_minimax_is_the_game_of_goodfellow() -> None:
    v = torch.randn(2, 4, dtype=F64)
    torch.testing.assert_close(f_bound(P, Q, "minimax", v), gan_value(P, Q, v.sigmoid()))
    far = torch.tensor([-800.0, 800.0], dtype=F64)
    for name in ("minimax", "js"):
        assert bool(torch.isfinite(GAMES[name].fake(far)).all() and torch.isfinite(GAMES[name].real(far)).all())


def grads(model: GAN, loss: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss.sum(), list(model.parameters()), allow_unused=True, retain_graph=True)
    named = zip((name for name, _ in model.named_parameters()), found, strict=True)
    return {name: grad for name, grad in named if grad is not None}


@pytest.mark.parametrize("game", ["non-saturating", "minimax", "kl"])
@pytest.mark.parametrize("r1", [0.0, 0.7])
def test_each_players_gradient_reaches_its_own_weights(game: str, r1: float) -> None:
    torch.manual_seed(1)
    model = GAN((2,), latent=3, game=game, r1=r1, width=6, depth=2).double()
    x = torch.randn(5, 2, dtype=F64)
    told, fooled = model.players(x, seed=4, step=9)
    first, second = grads(model, told), grads(model, fooled)
    # what a table of two players would do: each loss written out, against all weights
    z = normal(4, torch.arange(5), (3,), draw=9 << 8, domain="training", dtype=F64)
    real, fake = model.judge(x), model.judge(model.generate(z))
    rules = GAMES["minimax" if game == "non-saturating" else game]
    cost = rules.fake(fake) - rules.real(real)
    if r1:
        y = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model.judge(y).sum(), y, create_graph=True)
        cost = cost + 0.5 * r1 * slope.square().sum(1)
    gain = -fake.sigmoid().log() if game == "non-saturating" else -rules.fake(fake)
    torch.testing.assert_close(told, cost)
    torch.testing.assert_close(fooled, gain)
    if game == "minimax":
        torch.testing.assert_close(fooled, (1.0 - fake.sigmoid()).log())
        torch.testing.assert_close(cost if not r1 else cost.detach(), told)
    whole_cost, whole_gain = grads(model, cost), grads(model, gain)
    both = grads(model, model.losses(x, seed=4, step=9))
    for name in dict(model.named_parameters()):
        if name.startswith("discriminator"):
            assert name not in second and float(whole_gain[name].abs().max()) > 0.0
            if name in first:
                torch.testing.assert_close(first[name], whole_cost[name])
                torch.testing.assert_close(both[name], first[name], rtol=0, atol=0)
        else:
            assert name not in first and float(whole_cost[name].abs().max()) > 0.0
            torch.testing.assert_close(second[name], whole_gain[name])
            torch.testing.assert_close(both[name], second[name], rtol=0, atol=0)
    assert len(first) + len(second) == len(list(model.parameters()))


def test_what_is_drawn_is_keyed() -> None:
    torch.manual_seed(2)
    model = GAN((1, 2), latent=4, width=8, depth=1).double()
    x = torch.randn(6, 1, 2, dtype=F64)
    whole = model.losses(x, seed=1, step=3)
    part = model.losses(x[4:], seed=1, step=3, positions=torch.tensor([4, 5]))
    torch.testing.assert_close(part, whole[4:])
    assert not torch.allclose(model.losses(x, seed=1, step=4), whole)
    assert not torch.allclose(model.losses(x, seed=2, step=3), whole)
    made = model.sample(5, seed=3)
    assert made.shape == (5, 1, 2)
    z = normal(3, torch.tensor([4]), (4,), domain="prior", dtype=F64)
    torch.testing.assert_close(model.sample(indices=[4], seed=3), model.generate(z).detach())
    torch.testing.assert_close(model.sample(indices=[4], seed=3), made[4:])
    with torch.no_grad():  # a loss can be read without training
        torch.testing.assert_close(GAN.losses(model, x, seed=1, step=3), whole)


def test_numbers_go_to_the_device_of_the_model() -> None:
    model = GAN((2,), width=4, depth=1, r1=0.5).to("meta")
    assert model.draw(torch.arange(3), 0).is_meta
    told, fooled = model.players(torch.zeros(3, 2, device="meta"), positions=torch.arange(3))
    assert told.is_meta and fooled.is_meta


@pytest.mark.parametrize("game", ["non-saturating", *GAMES])
def test_copies_play_the_same_game(game: str) -> None:
    torch.manual_seed(4)
    model, x = GAN((2,), game=game, width=4, depth=1).double(), torch.randn(3, 2, dtype=F64)
    told = model.losses(x)
    v = model.judge(x)
    assert torch.equal(model.rules.fake(v), GAMES["minimax" if game == "non-saturating" else game].fake(v))
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert torch.equal(other.losses(x), told) and spec(other) == spec(model)


def test_descending_the_loss_finds_the_data() -> None:
    """One number: x ~ N(2, .5^2) from z ~ N(0, 1)."""
    torch.manual_seed(0)
    model = GAN((1,), latent=1, r1=1.0, width=16, depth=1)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.0, 0.9))
    seen = []
    for step in range(400):
        x = 2.0 + 0.5 * normal(5, torch.arange(128), (1,), draw=step)
        optimiser.zero_grad()
        model.losses(x, step=step).mean().backward()
        optimiser.step()
        if step >= 300 and step % 20 == 0:
            seen.append(model.sample(1000))
    x = torch.cat(seen)
    assert float(x.mean()) == pytest.approx(2.0, abs=0.15)
    assert float(x.std()) == pytest.approx(0.5, abs=0.15)


def test_it_is_rebuilt_from_its_arguments() -> None:
    told = {"kind": "gan", "shape": [2], "latent": 2, "game": "tv", "r1": 0.5, "width": 4, "depth": 1}
    made = build("model", told)
    assert isinstance(made, GAN) and spec(made) == told and made.likelihood == "none"
    for net, ends in ((made.generator, (2, 2)), (made.discriminator, (2, 1))):
        sizes = [tuple(weight.shape) for weight in net.parameters() if weight.ndim == 2]
        assert sizes == [(4, ends[0]), (ends[1], 4)]
    with pytest.raises(ConfigError, match="GAN has no density"):
        made.log_prob(torch.zeros(1, 2))


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match="GAN.latent: given 0, must be at least 1"):
        GAN((2,), latent=0)
    with pytest.raises(ConfigError, match="GAN.r1: given -1.0, must be 0 or more"):
        GAN((2,), r1=-1.0)
    with pytest.raises(ConfigError, match="GAN.game: unknown 'nonsaturating': did you mean 'non-saturating'"):
        GAN((2,), game="nonsaturating")
    with pytest.raises(ConfigError, match="game: unknown 'k'"):
        f_bound(P, Q, "k")
