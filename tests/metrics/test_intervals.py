"""Half-sample intervals: their width where it is known, and how often they hold what they should."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fokker import noise
from fokker.errors import ConfigError
from fokker.metrics import energy_distance, half_sample_interval, wasserstein

F64 = torch.float64


def cloud(n: int, d: int, seed: int = 0) -> Tensor:
    return noise.normal(seed, torch.arange(n), (d,), dtype=F64)


def test_the_width_of_means_is_the_textbooks() -> None:
    x, y = cloud(60, 1, 1), 3 * cloud(41, 1, 2)

    def statistic(i: Tensor, j: Tensor) -> Sequence[float]:
        return [float(x[i].mean()), float(x[i].mean() - y[j].mean())]

    values = statistic(torch.arange(60), torch.arange(41))
    spans = half_sample_interval(statistic, (60, 41), values, halves=900, level=0.9)
    z = 1.6448536  # of 90 %
    sd_x, sd_y = float(x.std()) / math.sqrt(60), float(y.std()) / math.sqrt(41)
    # 41 is odd: a half of 20 rows has the variance (1 - 20/41) s^2 / 20, 5 % above s^2 / 41.
    expected = (sd_x, math.sqrt(sd_x**2 + sd_y**2 * 41 * (1 / 20 - 1 / 41)))
    for (low, high), value, sd in zip(spans, values, expected, strict=True):
        assert (high - low) / 2 == pytest.approx(z * sd, rel=4 / math.sqrt(2 * 900))
        assert (high + low) / 2 == pytest.approx(value, abs=1e-12)


def test_clouds_are_halved_without_repetition_and_apart() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def statistic(i: Tensor, j: Tensor) -> Sequence[float]:
        seen.append((i, j))
        return [0.0]

    (span,) = half_sample_interval(statistic, (9, 9), [2.5], halves=5, seed=3)
    assert span == (2.5, 2.5) and len(seen) == 5
    for i, j in seen:
        assert len(set(i.tolist())) == 4 and len(set(j.tolist())) == 4 and not torch.equal(i, j)
    assert len({tuple(i.tolist()) for pair in seen for i in pair}) == 10
    again = list(seen)
    seen.clear()
    half_sample_interval(statistic, (9, 9), [2.5], halves=5, seed=3)
    assert all(torch.equal(a, b) for old, new in zip(again, seen, strict=True) for a, b in zip(old, new, strict=True))


@pytest.mark.parametrize(("name", "n", "d"), [("energy", 60, 1), ("w2", 40, 2)])
def test_coverage_on_gaussians(name: str, n: int, d: int) -> None:
    """Of 40 intervals of 95 %, most hold the mean of the metric at this n; for the energy distance that is exact."""
    measure = energy_distance if name == "energy" else wasserstein
    repeats, s = 40, 1.5
    x = cloud(repeats * n, d, 1).reshape(repeats, n, d)
    y = 1 + s * cloud(repeats * n, d, 2).reshape(repeats, n, d)
    values = [float(measure(a, b)) for a, b in zip(x, y, strict=True)]
    spans = [
        half_sample_interval(lambda i, j, a=a, b=b: [float(measure(a[i], b[j]))], (n, n), [v], halves=12)[0]
        for a, b, v in zip(x, y, values, strict=True)
    ]
    target = sum(values) / repeats
    if name == "energy":

        def mean_distance(gap: float, variance: float) -> float:
            tail = math.exp(-(gap**2) / (2 * variance))
            return math.sqrt(2 * variance / math.pi) * tail + gap * math.erf(gap / math.sqrt(2 * variance))

        target = 2 * mean_distance(1, 1 + s * s) - mean_distance(0, 2) - mean_distance(0, 2 * s * s)
    share = sum(low <= target <= high for low, high in spans) / repeats
    assert share >= 0.81  # 95 % less four standard errors of 40 trials
    width = sum(high - low for low, high in spans) / repeats / 2
    assert 0.8 < width / (1.96 * torch.tensor(values).std().item()) < 1.4  # neither too narrow nor much too wide


def test_equal_laws_are_covered_generously() -> None:
    repeats, n = 40, 30
    x, y = (cloud(repeats * n, 1, k).reshape(repeats, n, 1) for k in (1, 2))
    values = [float(energy_distance(a, b)) for a, b in zip(x, y, strict=True)]
    widths = []
    for a, b, v in zip(x, y, values, strict=True):
        ((low, high),) = half_sample_interval(
            lambda i, j, a=a, b=b: [float(energy_distance(a[i], b[j]))], (n, n), [v], halves=8
        )
        widths.append((high - low) / 2 / 1.96)
    ratio = sum(widths) / repeats / torch.tensor(values).std().item()
    assert 1.0 < ratio < 2.2  # sqrt(3) where the linear part vanishes


@pytest.mark.parametrize("bad", [{"halves": 1}, {"level": 1.0}, {"rows": (3,)}])
def test_mistakes_are_named(bad: dict[str, object]) -> None:
    keys: dict[str, object] = {"rows": (10,), "values": [0.0], "halves": 4, "level": 0.9} | bad
    with pytest.raises(ConfigError, match="half_sample_interval: given"):
        half_sample_interval(lambda i: [0.0], **keys)  # type: ignore[arg-type]
