"""Toy laws against their closed forms: moments, supports, weights."""

from math import pi, sqrt

import pytest
import torch

from fokker.data import Checkerboard, EightGaussians, Moons, Pinwheel, Spirals, SwissRoll
from fokker.data.toy import Toy
from fokker.errors import ConfigError

LAWS = [Moons(), Checkerboard(), EightGaussians(), SwissRoll(), Spirals(), Pinwheel()]
N = 200_000


def raw(law: Toy, n: int = N, seed: int = 0) -> torch.Tensor:
    return law.sample(n, seed).double() * law.scale + torch.tensor(law.centre, dtype=torch.float64)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_mean_and_size(law: Toy) -> None:
    x = law.sample(N).double()
    assert (x.mean(0).abs() < 4 * x.std(0) / sqrt(N)).all()
    square = x.square().sum(1)
    assert abs(square.mean() - 2) < 4 * square.std() / sqrt(N)


# Covariance of y: var 1, var 2, covariance.
COVARIANCE = [
    (Moons(noise=0.2), 0.75 + 0.04, 9 / 16 - 1 / pi + 0.04, None),
    (Checkerboard(), 4 / 3, 4 / 3, 0.25),
    (EightGaussians(noise=0.2), 0.54, 0.54, 0.0),
    (Pinwheel(noise=0.2), 1.13 / 2, 1.13 / 2, 0.0),
]


@pytest.mark.parametrize(("law", "first", "second", "cross"), COVARIANCE)
def test_covariance(law: Toy, first: float, second: float, cross: float | None) -> None:
    y = raw(law) - torch.tensor(law.centre)
    for product, expected in ((y[:, 0] ** 2, first), (y[:, 1] ** 2, second), (y[:, 0] * y[:, 1], cross)):
        if expected is not None:
            assert abs(product.mean() - expected) < 4 * product.std() / sqrt(N)


def test_moons_lie_on_half_circles() -> None:
    law = Moons(noise=0.0)
    x, label = law.labelled(1000)
    assert label is not None and 400 < int(label.sum()) < 600
    y = x.double() * law.scale + torch.tensor(law.centre)
    centre = torch.stack([label.double(), 0.5 * label], dim=1)
    assert torch.allclose((y - centre).norm(dim=1), torch.ones(1000, dtype=torch.float64), atol=1e-6)
    assert ((y - centre)[:, 1] * (1 - 2 * label) > -1e-6).all()


def test_checkerboard_is_uniform_on_black_squares() -> None:
    y = raw(Checkerboard())
    assert (y.abs() <= 2 + 1e-6).all()
    inside = ((y - y.round()).abs() > 1e-6).all(1)  # off the edges, where float32 may round across
    cell = y[inside].floor().long()
    assert (cell.sum(1) % 2 == 0).all()
    counts = torch.bincount((cell[:, 0] + 2) * 4 + cell[:, 1] + 2, minlength=16)
    counts = counts[counts > 0]
    assert len(counts) == 8 and ((counts - N / 8).abs() < 4 * sqrt(N * 7 / 64)).all()


def test_eight_modes() -> None:
    law = EightGaussians(noise=0.1)
    x, label = law.labelled(N)
    assert label is not None
    y = x.double() * law.scale
    counts = torch.bincount(label, minlength=8)
    assert ((counts - N / 8).abs() < 4 * sqrt(N * 7 / 64)).all()
    for k in range(8):
        mode = y[label == k]
        expected = torch.tensor([torch.pi / 4 * k]).double()
        centre = torch.cat([expected.cos(), expected.sin()])
        assert ((mode.mean(0) - centre).abs() < 4 * 0.1 / sqrt(len(mode))).all()
        assert ((mode.std(0) - 0.1).abs() < 4 * 0.1 / sqrt(2 * len(mode))).all()


def test_rolls_and_arms_have_radius_equal_to_angle() -> None:
    roll = raw(SwissRoll(noise=0.0), 2000)
    radius = roll.norm(dim=1)
    assert radius.min() >= 1.5 * pi - 1e-4 and radius.max() <= 4.5 * pi + 1e-4
    assert torch.allclose(roll, torch.stack([radius * radius.cos(), radius * radius.sin()], 1), atol=1e-3)
    law = Spirals(noise=0.0)
    x, label = law.labelled(2000)
    assert label is not None
    arm = x.double() * law.scale * (1 - 2 * label)[:, None]
    radius = arm.norm(dim=1)
    assert torch.allclose(arm, torch.stack([radius * radius.cos(), radius * radius.sin()], 1), atol=1e-3)
    assert abs((radius / (3 * pi)).square().mean() - 0.5) < 4 * sqrt(1 / 12 / 2000)


def test_pinwheel_blades_unwind_to_radius() -> None:
    law = Pinwheel(noise=0.0)
    x, label = law.labelled(4000)
    assert label is not None
    y = x.double() * law.scale
    radius = y.norm(dim=1)
    angle = 2 * pi / 5 * label + 0.25 * radius.exp()
    keep = radius > 0.05
    blade = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    assert (((y - blade).norm(dim=1) < 1e-5) | ~keep | ((y + blade).norm(dim=1) < 0.9)).all()
    assert ((y - blade).norm(dim=1)[keep] < 1e-5).double().mean() > 0.99


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_splits_and_seeds(law: Toy) -> None:
    small = type(law)(n=53, seed=3)
    train, test = small.load(), small.load("test")
    assert (len(train), len(test)) == (53, 10) and train.shape == (2,) and train.values.dtype == torch.float32
    assert torch.equal(train.values, small.load().values)
    others = [test.values, type(law)(n=53, seed=4).load().values, small.sample(53), small.sample(53, seed=1)]
    assert all(not torch.isclose(other[:10], train.values[:10]).any() for other in others)
    assert (train.labels is None) == (not train.classes)
    if train.labels is not None:
        assert set(train.labels.tolist()) == set(range(len(train.classes)))


def test_bad_fields_are_named() -> None:
    with pytest.raises(ConfigError, match=r"Moons\.n"):
        Moons(n=0)
    with pytest.raises(ConfigError, match=r"Moons\.noise"):
        Moons(noise=-1)
    with pytest.raises(ConfigError, match="split"):
        Moons().load("valid")  # type: ignore[arg-type]
