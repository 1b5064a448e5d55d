"""The Frechet distance against the closed forms of Gaussians."""

import math

import pytest
import torch

from fokker import noise
from fokker.errors import ConfigError
from fokker.metrics import frechet_distance, frechet_gaussians

F64 = torch.float64


def cloud(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return noise.normal(seed, torch.arange(n), (d,), dtype=F64)


def test_a_pair_that_does_not_commute() -> None:
    # A = diag(1, .1), B = R(.9) diag(2, .2) R': W2^2 = .9117234 by tr A + tr B - 2 tr (AB)^(1/2) in two dimensions,
    # where tr S^(1/2) = sqrt(tr S + 2 sqrt(det S)).
    A, c, s = torch.diag(torch.tensor([1.0, 0.1], dtype=F64)), math.cos(0.9), math.sin(0.9)
    R = torch.tensor([[c, -s], [s, c]], dtype=F64)
    B = R @ torch.diag(torch.tensor([2.0, 0.2], dtype=F64)) @ R.T
    zero, gap = torch.zeros(2, dtype=F64), torch.tensor([0.3, -0.4], dtype=F64)
    exact = 3.3 - 2 * math.sqrt(float((A @ B).trace()) + 2 * math.sqrt(0.1 * 0.4))
    assert exact == pytest.approx(0.9117234, abs=1e-7)
    assert float(frechet_gaussians(zero, A, zero, B)) == pytest.approx(exact, rel=1e-12)
    assert float(frechet_gaussians(gap, B.float(), zero, A.float())) == pytest.approx(exact + 0.25, rel=1e-6)


def test_singular_covariances() -> None:
    zero = torch.zeros(3, dtype=F64)
    A, B = (torch.diag(torch.tensor(v, dtype=F64)) for v in ([4.0, 0.0, 1.0], [9.0, 2.0, 0.0]))
    assert float(frechet_gaussians(zero, A, zero, B)) == pytest.approx(16 - 2 * 6, rel=1e-13)
    assert float(frechet_gaussians(zero, 0 * A, zero, B)) == pytest.approx(11, rel=1e-13)
    # Fewer points than dimensions: tr (A^(1/2) B A^(1/2))^(1/2) is the sum of singular values of X Y' of both clouds.
    x, y = cloud(7, 30, 1), 2 * cloud(9, 30, 2) + 1
    a, b = x - x.mean(0), y - y.mean(0)
    cross = torch.linalg.svdvals(a @ b.T).sum() / math.sqrt(6 * 8)
    exact = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() / 6 + b.square().sum() / 8 - 2 * cross
    assert torch.allclose(frechet_distance(x, y), exact, rtol=1e-9)
    assert torch.allclose(frechet_gaussians(x.mean(0), a.T @ a / 6, y.mean(0), b.T @ b / 8), exact, rtol=1e-9)
    assert abs(float(frechet_distance(x, x))) < 1e-9


def test_shifts_and_positive_maps_of_a_cloud() -> None:
    x = cloud(50, 4)
    shift = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=F64)
    assert float(frechet_distance(x, x + shift)) == pytest.approx(float(shift.square().sum()), rel=1e-12)
    T = torch.tensor([[1.5, 0.4, 0, 0], [0.4, 0.6, 0, 0.1], [0, 0, 2, 0], [0, 0.1, 0, 1]], dtype=F64)
    centred = x - x.mean(0)
    exact = (centred - centred @ T).square().sum() / 49  # the optimal map of Gaussians is symmetric and positive
    assert torch.allclose(frechet_distance(centred, centred @ T), exact, rtol=1e-10)
    images = centred.reshape(50, 1, 2, 2)
    assert torch.equal(frechet_distance(images, images + 1), frechet_distance(centred, centred + 1))


def test_large_samples_approach_the_laws_distance() -> None:
    s = torch.tensor([1.0, 2.0, 0.5], dtype=F64)
    x, y = cloud(20000, 3, 1), s * cloud(20000, 3, 2) + 0.3
    exact = 3 * 0.09 + float((s - 1).square().sum())
    assert float(frechet_distance(x, y)) == pytest.approx(exact, abs=4 * 0.02)
    few = torch.stack([frechet_distance(cloud(20, 3, 10 + i), cloud(20, 3, 100 + i)) for i in range(40)])
    assert 0.15 < float(few.mean()) < 0.6  # biased upwards: the reason for floors


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"frechet_gaussians: given shapes \(2,\), \(2, 2\), \(2,\), \(3, 3\)"):
        frechet_gaussians(torch.zeros(2), torch.eye(2), torch.zeros(2), torch.eye(3))
    with pytest.raises(ConfigError, match=r"given shape \(1, 4\)"):
        frechet_distance(cloud(1, 4), cloud(5, 4))
