"""Averages over pairs against brute force and the closed forms of Gaussians."""

import math

import pytest
import torch
from torch import Tensor

from fokker import noise
from fokker.errors import ConfigError
from fokker.metrics import energy_distance, gaussian_kernel, kid, median_bandwidth, mmd2, pairs, polynomial_kernel
from fokker.metrics.kernels import Kernel

F64 = torch.float64


def cloud(n: int, d: int, seed: int = 0) -> Tensor:
    return noise.normal(seed, torch.arange(n), (d,), dtype=F64)


def many(repeats: int, n: int, d: int, seed: int) -> Tensor:
    return cloud(repeats * n, d, seed).reshape(repeats, n, d)


def brute(x: Tensor, y: Tensor, k: Kernel, unbiased: bool) -> float:
    def mean(a: Tensor, b: Tensor, skip: bool) -> float:
        values = [float(k(p[None], q[None])) for i, p in enumerate(a) for j, q in enumerate(b) if not (skip and i == j)]
        return math.fsum(values) / len(values)

    return mean(x, x, unbiased) + mean(y, y, unbiased) - 2 * mean(x, y, False)


def distance(a: Tensor, b: Tensor) -> Tensor:
    return -(a - b).norm(dim=1, keepdim=True)


@pytest.mark.parametrize("unbiased", [True, False])
def test_every_pair_counts_once(monkeypatch: pytest.MonkeyPatch, unbiased: bool) -> None:
    monkeypatch.setattr(pairs, "BLOCK", 4)  # blocks on and off the diagonal, and broken ones
    x, y = cloud(9, 3, 1), 2 * cloud(6, 3, 2) + 1
    assert float(energy_distance(x, y, unbiased=unbiased)) == pytest.approx(brute(x, y, distance, unbiased), rel=1e-10)

    def gaussian(a: Tensor, b: Tensor) -> Tensor:
        square = (a - b).square().sum(1, keepdim=True)
        return (torch.exp(-square / (2 * 0.7**2)) + torch.exp(-square / (2 * 3.0**2))) / 2

    got = mmd2(x, y, gaussian_kernel(0.7, 3.0), unbiased=unbiased)
    assert float(got) == pytest.approx(brute(x, y, gaussian, unbiased), rel=1e-10)

    def cubic(a: Tensor, b: Tensor) -> Tensor:
        return ((a * b).sum(1, keepdim=True) / 3 + 1) ** 3

    got = mmd2(x, y, polynomial_kernel(), unbiased=unbiased)
    assert float(got) == pytest.approx(brute(x, y, cubic, unbiased), rel=1e-10)


def fair(values: Tensor, expected: float) -> None:
    """The mean of independent estimates lies within four standard errors of what it estimates."""
    error = float(values.std() / math.sqrt(len(values)))
    assert abs(float(values.mean()) - expected) < 4 * error


def test_energy_distance_of_gaussians_on_the_line_without_bias() -> None:
    m, s = 0.8, 1.6

    def mean_distance(gap: float, variance: float) -> float:
        return math.sqrt(2 * variance / math.pi) * math.exp(-(gap**2) / (2 * variance)) + gap * math.erf(
            gap / math.sqrt(2 * variance)
        )

    exact = 2 * mean_distance(m, 1 + s * s) - mean_distance(0, 2) - mean_distance(0, 2 * s * s)
    x, y = many(400, 20, 1, 1), m + s * many(400, 20, 1, 2)
    values = torch.stack([energy_distance(a, b) for a, b in zip(x, y, strict=True)])
    fair(values, exact)
    # The V-statistic is above by (E|x - x'| + E|y - y'|) / n.
    above = torch.stack([energy_distance(a, b, unbiased=False) for a, b in zip(x, y, strict=True)])
    assert float(above.min()) >= 0
    fair(above, exact + (mean_distance(0, 2) + mean_distance(0, 2 * s * s)) / 20)
    null = torch.stack([energy_distance(a, b) for a, b in zip(x[:200], x[200:], strict=True)])
    fair(null, 0.0)
    assert float(null.min()) < 0


def test_gaussian_mmd_of_gaussians_without_bias() -> None:
    h, d, s = 0.9, 3, 1.5
    gap = torch.tensor([0.5, -0.4, 0.2], dtype=F64)

    def mean_kernel(variance: float, square: float) -> float:
        total = h * h + variance
        return (h * h / total) ** (d / 2) * math.exp(-square / (2 * total))

    exact = mean_kernel(2, 0) + mean_kernel(2 * s * s, 0) - 2 * mean_kernel(1 + s * s, float(gap.square().sum()))
    x, y = many(300, 25, d, 1), gap + s * many(300, 25, d, 2)
    fair(torch.stack([mmd2(a, b, gaussian_kernel(h)) for a, b in zip(x, y, strict=True)]), exact)


def test_cubic_mmd_on_the_line_and_kid_without_bias() -> None:
    m, s = 0.5, 1.3
    # E (x y + 1)^3 = m3 m3' + 3 m2 m2' + 3 m1 m1' + 1 with the raw moments of each side.
    p = (0.0, 1.0, 0.0)
    q = (m, m * m + s * s, m**3 + 3 * m * s * s)
    exact = sum(c * (a - b) ** 2 for c, a, b in zip((3, 3, 1), p, q, strict=True))
    x, y = many(250, 30, 1, 1), m + s * many(250, 30, 1, 2)
    fair(torch.stack([mmd2(a, b, polynomial_kernel()) for a, b in zip(x, y, strict=True)]), exact)
    fair(torch.stack([kid(a, b, subsets=3, size=10) for a, b in zip(x, y, strict=True)]), exact)


def test_kid_is_the_mean_over_subsets() -> None:
    x, y = cloud(40, 5, 1), cloud(30, 5, 2) + 0.2
    whole = mmd2(x[:30], y, polynomial_kernel())
    assert torch.allclose(kid(x[:30], y, subsets=2), whole, rtol=1e-10)  # all 30 of both, in another order
    rows = [noise.permutation(7, n, i)[:12] for i, n in ((0, 40), (1, 30), (2, 40), (3, 30))]
    two = [mmd2(x[rows[i]], y[rows[i + 1]], polynomial_kernel()) for i in (0, 2)]
    assert torch.allclose(kid(x, y, subsets=2, size=12, seed=7), (two[0] + two[1]) / 2, rtol=1e-12)
    far = y + 1.0  # an average of many subsets, whose spread is a third of their mean
    assert abs(float(kid(x, far, subsets=300, size=12) / mmd2(x, far, polynomial_kernel())) - 1) < 0.08
    with pytest.raises(ConfigError, match="subsets=0"):
        kid(x, y, subsets=0)


def test_the_median_bandwidth() -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]], dtype=F64)  # distances 5, 1, sqrt(18)
    assert median_bandwidth(x) == pytest.approx(math.sqrt(18), rel=1e-12)
    assert median_bandwidth(cloud(500, 4), limit=100) == pytest.approx(math.sqrt(2 * 3.36), rel=0.08)
    assert median_bandwidth(torch.cat([x, x, x])) == pytest.approx(math.sqrt(18), rel=1e-12)  # repetitions are left out
    assert median_bandwidth(torch.full((5, 2), 3.3)) == 1.0
    y = cloud(20, 2, 3)
    h = median_bandwidth(y)
    assert torch.equal(mmd2(x, y), mmd2(x, y, gaussian_kernel(h / 2, h, 2 * h)))


def test_mistakes_are_named() -> None:
    for bad in ((), (0.0,), (1.0, -1.0)):
        with pytest.raises(ConfigError, match="bandwidths"):
            gaussian_kernel(*bad)
    with pytest.raises(ConfigError, match=r"energy_distance: given shape \(1, 2\)"):
        energy_distance(cloud(1, 2), cloud(3, 2))
    with pytest.raises(ConfigError, match=r"mmd2: given points of shape \(2,\) and \(3,\)"):
        mmd2(cloud(4, 2), cloud(4, 3))
