"""Transport distances against their closed forms."""

import math
import sys
import warnings
from itertools import permutations

import pytest
import torch

from fokker import noise
from fokker.errors import ConfigError, MissingExtraError
from fokker.metrics import sinkhorn_divergence, sliced_w2, wasserstein

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
    with pytest.raises(ConfigError, match="projections=0, must be at least 1"):
        sliced_w2(cloud(4, 2), cloud(4, 2), projections=0)


def test_unequal_clouds_go_by_their_quantiles() -> None:
    x, y = torch.tensor([[6.0], [0.0]], dtype=F64), torch.tensor([[3.0], [6.0], [0.0]], dtype=F64)
    # The quantile functions differ by 3 on [1/3, 2/3) alone.
    assert float(sliced_w2(x, y, projections=3)) == pytest.approx(math.sqrt(3), rel=1e-14)
    assert float(sliced_w2(y, x + 1, projections=3)) == pytest.approx(
        math.sqrt((1 + 1 + 4 / 2 + 16 / 2) / 3), rel=1e-14
    )
    a, b = cloud(12, 3, 1), cloud(18, 3, 2)
    expected = sliced_w2(a.repeat(3, 1), b.repeat(2, 1))
    assert torch.allclose(sliced_w2(a, b), expected, rtol=1e-12)
    assert torch.allclose(sliced_w2(b, a), expected, rtol=1e-12)
    for bad in (torch.zeros(4, 3), torch.zeros(0, 2)):
        with pytest.raises(ConfigError, match="one event"):
            sliced_w2(torch.zeros(3, 2), bad)


# ---- exact


@pytest.mark.parametrize("p", [1.0, 2.0, 3.5])
def test_it_is_the_best_of_all_permutations(p: float) -> None:
    x, y = cloud(6, 3, 1), cloud(6, 3, 2)
    every = torch.tensor(list(permutations(range(6))))
    best = (x - y[every]).norm(dim=2).pow(p).mean(1).min().pow(1 / p)
    assert torch.allclose(wasserstein(x, y, p), best, rtol=1e-12)
    a, b = x[:, :1], 2 * y[:, :1]  # in one dimension by sorting
    best = (a - b[every]).norm(dim=2).pow(p).mean(1).min().pow(1 / p)
    assert torch.allclose(wasserstein(a, b, p), best, rtol=1e-12)


def test_a_symmetric_positive_map_is_optimal() -> None:
    x = cloud(300, 2)
    T = torch.tensor([[1.5, 0.4], [0.4, 0.6]], dtype=F64)
    y = x @ T + 100.0  # the gradient of a convex function (Brenier), far away
    got = wasserstein(x, y[torch.randperm(300)])
    assert torch.allclose(got, (x - y).square().sum(1).mean().sqrt(), rtol=1e-12)
    assert torch.allclose(wasserstein(x.float().reshape(300, 1, 2), y.reshape(300, 1, 2)), got, rtol=1e-6)


def test_gaussians_on_the_line() -> None:
    u = (torch.arange(4000, dtype=F64) + 0.5) / 4000
    z = torch.special.ndtri(u)[:, None]  # quantiles: W2^2 = (1 - 3)^2 + (2 - 0.5)^2 (book, special cases of Sec. 7.2.1)
    assert float(wasserstein(1 + 2 * z, 3 + 0.5 * z)) == pytest.approx(2.5, rel=2e-4)
    x, y = 1 + 2 * cloud(20000, 1, 5), 3 + 0.5 * cloud(20000, 1, 6)
    # By the delta method Var W2^2 ~ (2 d)^2 (s1^2 + s2^2) / n at least; d = 2, s = (2, 0.5): sd of W2 ~ 0.012.
    assert abs(float(wasserstein(x, y)) - 2.5) < 4 * 0.02


def test_mistakes_of_exact_transport_are_named() -> None:
    x = cloud(5, 2)
    for y, p, says in ((x[:4], 2.0, "5 and 4 points"), (x, 0.5, "p=0.5"), (cloud(5, 3), 2.0, r"\(2,\) and \(3,\)")):
        with pytest.raises(ConfigError, match=says):
            wasserstein(x, y, p)
    x[3, 1] = math.nan
    with pytest.raises(ConfigError, match="1 of 5 points are not finite"):
        wasserstein(x, cloud(5, 2))


# ---- regularised


def test_sinkhorn_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ot", None)
    monkeypatch.setitem(sys.modules, "ot.bregman", None)
    with pytest.raises(MissingExtraError, match=r"fokker\[ot\]"):
        sinkhorn_divergence(cloud(4, 2), cloud(4, 2))


def test_sinkhorn_between_gaussians() -> None:
    pytest.importorskip("ot")
    z = torch.special.ndtri((torch.arange(250, dtype=F64) + 0.5) / 250)[:, None]
    s1, s2, gap, epsilon = 1.0, 0.5, 0.7, 0.4

    def regularised(a: float, b: float) -> float:
        # OT_eps of N(0, a^2), N(0, b^2) with cost |x - y|^2: Janati et al. 2020, Eq. 5 with 2 sigma^2 = eps.
        half = epsilon / 2
        d = math.sqrt(4 * a * a * b * b + half**2)
        return a * a + b * b - d + half * (1 - math.log(2 * half)) + half * math.log(d + half)

    expected = gap**2 + regularised(s1, s2) - (regularised(s1, s1) + regularised(s2, s2)) / 2
    got = float(sinkhorn_divergence(s1 * z, s2 * z + gap, epsilon=epsilon))
    assert got == pytest.approx(expected, rel=4e-3)


def test_sinkhorn_of_a_shift_and_its_limits() -> None:
    pytest.importorskip("ot")
    x, shift = cloud(40, 2), torch.tensor([0.3, -1.0], dtype=F64)
    for epsilon in (0.05, 1.0, 20.0):  # the cost of a shift enters the potentials alone
        got = float(sinkhorn_divergence(x, x + shift, epsilon=epsilon))
        assert got == pytest.approx(float(shift.square().sum()), rel=1e-4)
    y = 0.5 * cloud(30, 2, 3) + 1
    far = float((x.mean(0) - y.mean(0)).square().sum())
    assert float(sinkhorn_divergence(x, y, epsilon=1e4)) == pytest.approx(far, rel=2e-3)
    near = float(wasserstein(x[:30], y)) ** 2
    assert float(sinkhorn_divergence(x[:30], y, epsilon=0.01)) == pytest.approx(near, rel=0.02)
    assert abs(float(sinkhorn_divergence(x, x[torch.randperm(40)], epsilon=0.1))) < 1e-8
    with pytest.raises(ConfigError, match="epsilon=0"):
        sinkhorn_divergence(x, y, epsilon=0)


def test_sinkhorn_says_where_it_did_not_converge() -> None:
    pytest.importorskip("ot")
    x = cloud(40, 2)
    with pytest.warns(
        RuntimeWarning, match=r"after iterations=20 up to \d+\.\d% of the mass .* or epsilon=0.001"
    ) as told:
        far = float(sinkhorn_divergence(x, x + 1, epsilon=0.001, iterations=20))
    assert abs(far - 2) > 0.1 and len(told) == 1  # the two of a cloud with itself converge
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(sinkhorn_divergence(x, x + 1, epsilon=0.1)) == pytest.approx(2, rel=1e-4)
