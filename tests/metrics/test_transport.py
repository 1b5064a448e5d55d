"""Sliced W2 against its closed forms."""

import math

import pytest
import torch

from fokker import noise
from fokker.errors import ConfigError
from fokker.metrics import sliced_w2

F64 = torch.float64


def cloud(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return noise.normal(seed, torch.arange(n), (d,), dtype=F64)


@pytest.mark.parametrize("d", [1, 2, 5, 40])
def test_a_translation_costs_its_length_over_root_d(d: int) -> None:
    shift = torch.linspace(0.5, 1.5, d, dtype=F64)
    x, k = cloud(50, d), 4000
    # <u, shift>^2 has mean |shift|^2 / d and variance 2 (d - 1) / (d^2 (d + 2)) |shift|^4 on the sphere.
    square = float(shift.square().sum())
    se = square * math.sqrt(2 * (d - 1) / (d**2 * (d + 2)) / k)
    assert abs(float(sliced_w2(x, x + shift, projections=k)) ** 2 - square / d) < 4 * se + 1e-12
    u = noise.normal(3, torch.arange(17), (d,), domain="probe", dtype=F64)
    u = u / u.square().sum(1, keepdim=True).sqrt()
    exact = (u @ shift).square().mean().sqrt()  # whatever the cloud: only the directions are random
    assert torch.allclose(sliced_w2(x, x + shift, projections=17, seed=3), exact, rtol=1e-12)


@pytest.mark.parametrize("c", [0.3, 2.5])
def test_a_scaling_of_a_gaussian(c: float) -> None:
    x = cloud(4000, 3)
    # Sorted values of c x are c times those of x: W2 = |c - 1| rms, here of a standard normal.
    got = float(sliced_w2(x, c * x))
    assert abs(got / abs(c - 1) - 1) < 0.03
    u = noise.normal(0, torch.arange(256), (3,), domain="probe", dtype=F64)
    u = u / u.norm(dim=1, keepdim=True)
    assert math.isclose(got, abs(c - 1) * float((x @ u.T).square().mean().sqrt()), rel_tol=1e-12)
    assert math.isclose(float(sliced_w2(x, -x)), 0.0, abs_tol=0.08)  # the law is symmetric, the cloud nearly


def test_one_dimension_is_the_sorted_formula() -> None:
    x, y = cloud(31, 1, 1), cloud(31, 1, 2) * 2 + 1
    expected = (x.sort(0).values - y.sort(0).values).square().mean().sqrt()
    assert torch.allclose(sliced_w2(x, y), expected, rtol=1e-12)
    assert torch.allclose(sliced_w2(x, y, projections=1), expected, rtol=1e-12)
    a, b = torch.tensor([[0.0], [1.0]], dtype=F64), torch.tensor([[3.0], [2.0]], dtype=F64)
    assert float(sliced_w2(a, b)) == pytest.approx(2.0, rel=1e-14)
    # Sorted on each direction apart: a crossing costs nothing.
    assert float(sliced_w2(torch.tensor([[0.0], [3.0]], dtype=F64), b)) == pytest.approx(math.sqrt(2), rel=1e-14)


def test_it_is_a_distance() -> None:
    x, y, z = (cloud(60, 4, k) * (1 + k / 3) for k in range(3))
    order = torch.randperm(60)
    assert float(sliced_w2(x, x[order])) < 1e-14
    assert torch.allclose(sliced_w2(x, y), sliced_w2(y[order], x), rtol=1e-13)
    assert sliced_w2(x, z) <= sliced_w2(x, y) + sliced_w2(y, z)
    assert torch.allclose(sliced_w2(2 * x, 2 * y), 2 * sliced_w2(x, y), rtol=1e-13)
    images = x.reshape(60, 1, 2, 2)
    assert torch.equal(sliced_w2(images, y.reshape(60, 1, 2, 2)), sliced_w2(x, y))


def test_directions_depend_on_the_seed_only() -> None:
    x, y = cloud(20, 3, 1), cloud(20, 3, 2)
    assert torch.equal(sliced_w2(x, y, seed=4), sliced_w2(x, y, seed=4))
    assert not torch.equal(sliced_w2(x, y, seed=4), sliced_w2(x, y, seed=5))
    assert abs(float(sliced_w2(x, y) / sliced_w2(x, y, projections=20000)) - 1) < 4 * 0.6 / 16
    assert sliced_w2(x.float(), y.float()).dtype == torch.float32
    assert math.isclose(sliced_w2(x.float(), y.float()), sliced_w2(x, y), rel_tol=1e-4)


def test_unequal_clouds_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\(3, 2\) and \(4, 2\), must be equal"):
        sliced_w2(torch.zeros(3, 2), torch.zeros(4, 2))
