"""Autoregressive models: causality, sums over whole tables, the Gaussian optimum, draws."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from fokker.calculus import discrete_divergence, jacobian
from fokker.classic import Autoregressive
from fokker.classic.autoregressive import LEAST
from fokker.errors import ConfigError
from fokker.registry import build, spec

F64 = torch.float64


def model(shape: tuple[int, ...], size: float = 1.0, **options: int) -> Autoregressive:
    """One with weights far from those of a new one."""
    torch.manual_seed(3)
    made = Autoregressive(shape, **options).double()
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(size * torch.randn_like(weight))
    return made


@pytest.mark.parametrize(("depth", "width"), [(0, 1), (1, 7), (3, 9), (2, 3)])
def test_a_conditional_knows_what_is_before_it_and_nothing_else(depth: int, width: int) -> None:
    one = model((1, 2, 3), components=2, depth=depth, width=width)
    x = torch.randn(4, 6, dtype=F64)
    moved = jacobian(lambda x: one.conditionals(x).flatten(1), x).reshape(4, 6, 6, 6)
    for i in range(6):
        assert bool((moved[:, i, :, i:] == 0.0).all())
    if width >= 5 or not depth:  # all degrees have a unit
        for i in range(6):
            assert bool((moved[:, i, :, :i] != 0.0).any(dim=1).all())
    # number i of a picture is number i of its memory
    flat = model((6,), components=2, depth=depth, width=width)
    flat.load_state_dict(one.state_dict())
    torch.testing.assert_close(one.log_prob(x.view(4, 1, 2, 3)), flat.log_prob(x), rtol=0, atol=0)


def table(levels: int, dim: int) -> torch.Tensor:
    line = 2.0 * torch.arange(levels, dtype=F64) / (levels - 1) - 1.0
    return torch.cartesian_prod(*[line] * dim).reshape(-1, dim)


def test_probabilities_of_a_whole_table_sum_to_one() -> None:
    one, x = model((3,), levels=4, width=8, depth=2, size=0.7), table(4, 3)
    p = one.log_prob(x).exp().detach()
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-12)
    assert float(p.max() / p.min()) > 20.0
    # the chain rule: each conditional is the ratio of its own marginals
    cube = p.reshape(4, 4, 4)
    logs = one.conditionals(x).log_softmax(-1).reshape(4, 4, 4, 3, 4)
    want = (cube.sum((1, 2)), cube.sum(2) / cube.sum((1, 2))[:, None], cube / cube.sum(2, keepdim=True))
    torch.testing.assert_close(logs[0, 0, 0, 0].exp(), want[0])
    torch.testing.assert_close(logs[:, 0, 0, 1].exp(), want[1])
    torch.testing.assert_close(logs[:, :, 0, 2].exp(), want[2])


def test_the_loss_is_the_cross_entropy_and_the_printed_signs_fail() -> None:
    one, x = model((2,), levels=3, width=6, depth=1, size=0.7), table(3, 2)
    data = torch.softmax(torch.randn(9, dtype=F64), 0)
    loss = (data * one.losses(x, step=5)).sum().detach()
    entropy = -(data * data.log()).sum()
    kl = discrete_divergence(data, one.log_prob(x).exp().detach())
    assert float(loss - entropy - kl) == pytest.approx(0.0, abs=1e-12)
    assert float(entropy) > 0.5  # Lemma 1.1.1's printed + H is off by twice that: a negative KL from itself
    assert float((loss + entropy - kl).abs()) > 1.0
    # the product of conditionals is the model's, not the data's law as printed: that one's loss would be H
    assert float(loss - entropy) > 0.1


def gaussian(one: Autoregressive, mean: torch.Tensor, cov: torch.Tensor) -> Autoregressive:
    """Conditionals of N(mean, cov) put into a linear one."""
    with torch.no_grad():
        for weight in one.parameters():
            weight.zero_()
        for i in range(len(mean)):
            slope = torch.linalg.solve(cov[:i, :i], cov[:i, i])
            spread = (cov[i, i] - slope @ cov[:i, i]).sqrt()
            one.last.weight[3 * i + 1, :i] = slope
            one.last.bias[3 * i + 1] = mean[i] - slope @ mean[:i]
            one.last.bias[3 * i + 2] = torch.special.expm1(spread - LEAST).log()
    return one


MEAN = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=F64)
ROOT = torch.tensor([[1.2, 0, 0, 0], [-0.7, 0.5, 0, 0], [0.4, 0.9, 0.3, 0], [1.0, -0.2, 0.6, 0.8]], dtype=F64)
COV = ROOT @ ROOT.T


def test_gaussian_conditionals_hold_a_gaussian_exactly() -> None:
    one = gaussian(Autoregressive((4,), depth=0).double(), MEAN, COV)
    law = MultivariateNormal(MEAN, COV)
    x = MEAN + torch.randn(20000, 4, dtype=F64) @ ROOT.T
    torch.testing.assert_close(one.log_prob(x), law.log_prob(x), rtol=0, atol=1e-11)
    nll = one.losses(x).detach()
    entropy = 2.0 * (1.0 + math.log(2.0 * math.pi)) + float(ROOT.diagonal().log().sum())
    assert abs(float(nll.mean()) - entropy) < 4.0 * float(nll.std()) / math.sqrt(20000)


def test_moments_of_the_data_are_the_optimum_of_the_loss() -> None:
    x = MEAN + torch.randn(60, 4, dtype=F64) @ ROOT.T
    mean, cov = x.mean(0), torch.cov(x.T, correction=0)
    one = gaussian(Autoregressive((4,), depth=0).double(), mean, cov)
    loss = one.losses(x).mean()
    loss.backward()
    bias, weight = one.last.bias.grad, one.last.weight.grad  # a spread that varies with x_<i would fit 60 rows better
    assert float(bias.abs().max()) < 1e-10 and float(weight[1::3].abs().max()) < 1e-10
    entropy = 2.0 * (1.0 + math.log(2.0 * math.pi)) + 0.5 * float(torch.logdet(cov))
    assert float(loss) == pytest.approx(entropy, abs=1e-11)
    away = gaussian(Autoregressive((4,), depth=0).double(), mean, cov + 0.02 * torch.eye(4))
    assert float(away.losses(x).mean()) > float(loss) + 1e-3


def test_draws_have_the_models_moments() -> None:
    n = 40000
    one = gaussian(Autoregressive((2, 2), depth=0).double(), MEAN, COV)
    drawn = one.sample(n, seed=2, batch_size=n // 2)
    assert drawn.shape == (n, 2, 2) and drawn.dtype == F64
    x = drawn.flatten(1) - MEAN
    assert bool((x.mean(0).abs() < 4.0 * COV.diagonal().sqrt() / math.sqrt(n)).all())
    products = x[:, :, None] * x[:, None]
    assert bool(((products.mean(0) - COV).abs() < 4.0 * products.std(0) / math.sqrt(n)).all())
    torch.testing.assert_close(one.sample(indices=[7, 5], seed=2), drawn[[7, 5]])
    assert not torch.equal(one.sample(2, seed=3), drawn[:2])


def test_numbers_go_to_the_device_of_the_model() -> None:
    for levels in (0, 3):
        drawn = Autoregressive((2, 2), levels=levels, width=4).to("meta").draw(torch.arange(3), 0)
        assert drawn.is_meta and drawn.shape == (3, 2, 2)


def test_draws_of_mixtures_follow_the_density() -> None:
    one, n = model((2,), components=3, width=6, depth=2, size=0.8), 40000
    cell = 0.04
    line = torch.arange(-12.0, 12.0, cell, dtype=F64) + 0.5 * cell
    x = torch.cartesian_prod(line, line)
    p = one.log_prob(x).exp().detach() * cell**2
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-6)
    drawn = one.sample(n, seed=1)
    for read in (
        lambda x: x[:, 0],
        lambda x: x[:, 1],
        lambda x: x[:, 0] * x[:, 1],
        lambda x: (x[:, 1] > 0.5 * x[:, 0]).double(),
        lambda x: x[:, 1].square(),
        lambda x: (x[:, 0] < 0.0).double(),
    ):
        told = read(drawn)
        assert abs(float(told.mean() - (p * read(x)).sum())) < 4.0 * float(told.std()) / math.sqrt(n) + 1e-4


def test_draws_of_levels_follow_the_table() -> None:
    one, x, n = model((3,), levels=3, width=8, depth=2, size=0.7), table(3, 3), 40000
    drawn = one.sample(n, seed=4)
    seen = torch.bincount(((drawn + 1.0).round().long() * torch.tensor([9, 3, 1])).sum(1), minlength=27) / n
    p = one.log_prob(x).exp()
    assert bool(((seen - p).abs() < 4.0 * (p * (1.0 - p) / n).sqrt() + 1e-12).all())
    assert float((seen - p).abs().max()) > 0.0
    assert bool(torch.isin(drawn, torch.tensor([-1.0, 0.0, 1.0], dtype=F64)).all())


def test_bytes_as_pictures_give_them_are_read_as_their_levels() -> None:
    one = Autoregressive((1, 16, 16), levels=256, width=8, depth=1)
    v = torch.arange(256).reshape(1, 1, 16, 16)
    x = v.float() / 127.5 - 1.0
    logits = one.conditionals(x.flatten(1)).log_softmax(-1)
    want = logits[0, torch.arange(256), torch.arange(256)].sum()
    torch.testing.assert_close(one.log_prob(x)[0], want)
    assert one.levels == 256 and Autoregressive((2,)).levels is None


def test_new_components_start_apart() -> None:
    one = Autoregressive((2,), components=4, width=8, depth=1).double()
    with torch.no_grad():
        one.last.weight.zero_()
    means = one.conditionals(torch.zeros(1, 2, dtype=F64))[0, :, 4:8]
    torch.testing.assert_close(means, torch.tensor([[-1.5, -0.5, 0.5, 1.5]] * 2, dtype=F64), rtol=0, atol=1e-6)


def test_narrow_components_have_a_floor() -> None:
    one = Autoregressive((1,)).double()
    with torch.no_grad():
        one.last.weight.zero_()
        one.last.bias.copy_(torch.tensor([0.0, 0.5, -800.0]))
    want = -math.log(LEAST) - 0.5 * math.log(2.0 * math.pi)
    assert float(one.log_prob(torch.tensor([[0.5]], dtype=F64))) == pytest.approx(want, abs=1e-12)


def test_it_is_rebuilt_from_its_arguments() -> None:
    told = {"kind": "autoregressive", "shape": [2], "components": 4, "levels": 0, "width": 5, "depth": 1}
    made = build("model", told)
    assert isinstance(made, Autoregressive) and spec(made) == told and made.likelihood == "exact"
    again = build("model", spec(made))
    again.load_state_dict(made.state_dict())
    x = torch.randn(3, 2)
    assert torch.equal(made.log_prob(x), again.log_prob(x))
    assert not any("mask" in name for name in made.state_dict())


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match="Autoregressive.levels: given 1, must be 0"):
        Autoregressive((2,), levels=1)
    with pytest.raises(ConfigError, match="Autoregressive.components: given 2 with levels=4"):
        Autoregressive((2,), components=2, levels=4)
    with pytest.raises(ConfigError, match="Autoregressive.width: given 0, must be at least 1"):
        Autoregressive((2,), width=0)
    with pytest.raises(ConfigError, match="Autoregressive.depth: given -1, must be at least 0"):
        Autoregressive((2,), depth=-1)
    with pytest.raises(ConfigError, match="not one of 4 levels"):
        Autoregressive((2,), levels=4).log_prob(torch.zeros(1, 2))
