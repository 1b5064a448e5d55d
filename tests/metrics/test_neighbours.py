"""Neighbours, supports and copies on sets whose answer is known."""

import math

import pytest
import torch
from torch import Tensor

from fokker import noise
from fokker.data import Samples
from fokker.errors import ConfigError
from fokker.metrics import memorisation, pairs, support
from fokker.metrics.neighbours import copied_share, nearness
from fokker.metrics.pairs import nearest

F64 = torch.float64


def cloud(n: int, d: int, seed: int = 0) -> Tensor:
    return noise.normal(seed, torch.arange(n), (d,), dtype=F64)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)[:, None]


def test_nearest_against_all_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = cloud(23, 3, 1), cloud(31, 3, 2)
    for block in (7, 2048):
        monkeypatch.setattr(pairs, "BLOCK", block)
        for k, itself in ((1, False), (4, False), (1, True), (4, True)):
            a = y if itself else x
            matrix = (a[:, None] - y).norm(dim=2)
            if itself:
                matrix.fill_diagonal_(math.inf)
            expected, index = matrix.sort(1)
            got = nearest(a, y, k, itself=itself)
            assert torch.allclose(got[0], expected[:, :k], rtol=1e-12)
            assert torch.equal(got[1], index[:, :k])
    far = x + 1e6  # distances are those of differences, not of squares that cancel
    assert torch.equal(nearest(far[:3], far)[0], torch.zeros(3, 1, dtype=F64))
    assert torch.allclose(nearest(far, y + 1e6)[0], nearest(x, y)[0], rtol=1e-8)
    with pytest.raises(ConfigError, match="k=31 and 31 points, must be between 1 and 30"):
        nearest(y, y, 31, itself=True)


def test_supports_on_the_line_by_hand() -> None:
    # Balls of real (k = 1): 0, 1, 2 reach 1 and 10 reaches 8; of x: 1.5 and 3 reach 1.5, 30 reaches 27.
    real, x = column(0, 1, 2, 10), column(1.5, 3, 30)
    found = support(x, real, k=1)
    assert (found.precision, found.recall, found.coverage) == pytest.approx((2 / 3, 1.0, 3 / 4))
    assert found.density == pytest.approx(4 / 3)  # 1.5 is in two balls, 3 in two (on the border of one), 30 in none
    back = support(real, x, k=1)
    assert (back.precision, back.recall, back.coverage) == pytest.approx((1.0, 2 / 3, 1.0))
    # Of k = 2: real reach 2, 1, 2, 9; 1.5 lies in three balls, 3 in two.
    second = support(x, real, k=2)
    assert second.density == pytest.approx((3 + 3 + 0) / (2 * 3)) and second.precision == pytest.approx(2 / 3)


def test_equal_and_separate_supports() -> None:
    x = cloud(60, 2)
    assert support(x, x[torch.randperm(60)]) == pytest.approx(support(x, x))
    same, apart = support(x, x), support(x, x + 100)
    assert (same.precision, same.recall, same.coverage) == (1.0, 1.0, 1.0)
    assert (apart.precision, apart.recall, apart.density, apart.coverage) == (0.0, 0.0, 0.0, 0.0)
    lost = support(x[:, :1] * 0 + cloud(60, 1, 4) * 1e-3, x[:, :1])  # one mode of a wide law
    assert lost.precision == 1.0 and lost.recall < 0.1 and lost.coverage < 0.5


@pytest.mark.parametrize("block", [16, 2048])
def test_density_and_coverage_of_equal_laws(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(pairs, "BLOCK", block)
    k, n, m, repeats = 3, 40, 25, 120
    real, x = cloud(n * repeats, 2, 1).reshape(repeats, n, 2), cloud(m * repeats, 2, 2).reshape(repeats, m, 2)
    found = [support(a, b, k=k) for a, b in zip(x, real, strict=True)]
    density, coverage = (torch.tensor([getattr(f, name) for f in found]) for name in ("density", "coverage"))
    exact = 1 - math.prod((n - i) / (m + n - i) for i in range(1, k + 1))  # Naeem et al. 2020, Sec. 3.3
    for values, expected in ((density, 1.0), (coverage, exact)):
        assert abs(float(values.mean()) - expected) < 4 * float(values.std()) / math.sqrt(repeats)
    assert float(coverage.std()) / math.sqrt(repeats) < 0.01


def test_too_few_points_for_their_neighbours() -> None:
    with pytest.raises(ConfigError, match="k=5, must be at least 1 and less than 5"):
        support(cloud(5, 2), cloud(9, 2))


# ---- copies


def test_ratios_by_hand() -> None:
    train, held = column(0, 10), column(1, 5, 5.5)
    found = memorisation(column(0.25, 7, 10), train, held)
    assert found.ratio.tolist() == pytest.approx([0.25 / 0.75, 3 / 1.5, 0.0])
    assert found.held_out_ratio.tolist() == pytest.approx([1 / 4, 5 / 0.5, 4.5 / 0.5])
    assert found.train.tolist() == [0, 1, 1] and found.held_out.tolist() == [0, 2, 2]
    # Samples' 1/3 beats 10 and 9, 2 beats both, 0 beats all; the 5 % quantile of the ratios is 0.25 + 0.1 (9 - 0.25).
    assert found.nearness == pytest.approx((2 + 2 + 3) / 9)
    assert found.copied == pytest.approx((2 / 3 - 0.05) / 0.95)


def test_shares_of_ratios() -> None:
    held = torch.arange(1, 102, dtype=F64)  # its 5 % quantile is 6
    assert copied_share(torch.tensor([5.9, 6.0, 7.0, 1.0], dtype=F64), held) == pytest.approx((0.5 - 0.05) / 0.95)
    assert nearness(held, held) == 0.5
    assert nearness(torch.tensor([1.0], dtype=F64), held) == pytest.approx(100.5 / 101)
    assert nearness(torch.tensor([200.0, 0.0], dtype=F64), held) == 0.5


def images(n: int, seed: int) -> Tensor:
    """Smooth pictures as bytes (n, 1, 8, 8)."""
    x = noise.normal(seed, torch.arange(n), (1, 4, 4))
    return (127.5 + 40 * torch.nn.functional.interpolate(x, (8, 8), mode="bilinear")).clamp(0, 255).to(torch.uint8)


def test_copies_are_found_and_independent_samples_raise_no_alarm() -> None:
    train, held = Samples(images(900, 1)), images(300, 2) / 127.5 - 1
    fresh = images(400, 3) / 127.5 - 1
    found = memorisation(fresh, train, held)
    assert abs(found.copied) < 4 * math.sqrt(0.05 * 0.95 * (1 / 400 + 1 / 300))
    assert abs(found.nearness - 0.5) < 4 * math.sqrt((1 / 400 + 1 / 300) / 12)
    planted = fresh.clone()
    rows = torch.arange(100) * 9 + 4
    # A quarter copies, a little noisy: far below the distance of neighbours.
    planted[:100] = train.take(rows)[0] + 0.01 * noise.normal(4, torch.arange(100), (1, 8, 8))
    caught = memorisation(planted, train, held)
    assert caught.copied == pytest.approx(0.25, abs=4 * math.sqrt(0.05 * 0.95 * (1 / 300 + 1 / 300)))
    assert torch.equal(caught.train[:100], rows) and float(caught.ratio[:100].max()) < 0.2
    assert torch.equal(caught.ratio[100:], found.ratio[100:])
    assert caught.nearness > found.nearness + 0.09
    dull = 0.2 * fresh  # nearer to the middle of everything, but to no row of the training set
    assert memorisation(dull, train, held).copied < 0.08


def test_rows_that_are_in_both_splits_raise_no_alarm() -> None:
    train, held = cloud(300, 2, 1), cloud(100, 2, 2)
    held[:30] = train[:30]
    found = memorisation(held[:30], train, held)
    assert torch.equal(found.ratio, torch.ones(30, dtype=F64))
    assert found.copied < 0


def test_chunks_of_the_training_set_do_not_matter() -> None:
    train = cloud(9000, 2, 1)
    x = train[[8500, 17]] + 1e-9
    found = memorisation(x, Samples(train.float()), cloud(50, 2, 2))
    assert found.train.tolist() == [8500, 17]
    with pytest.raises(ConfigError, match=r"given events \(3,\), \(2,\) and \(2,\)"):
        memorisation(cloud(4, 3), Samples(train.float()), cloud(50, 2))
    with pytest.raises(ConfigError, match="two or more held-out rows"):
        memorisation(x, train, cloud(1, 2))
