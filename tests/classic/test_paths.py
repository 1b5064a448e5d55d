"""Paths made by hand, inverse distribution functions, and the Kronecker sequence."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from fokker import exact
from fokker.calculus import continuity_residual
from fokker.classic import MixturePath, NormalPath, inverse_cdf, kronecker
from fokker.errors import ConfigError
from fokker.process import OU, Flow

F64 = torch.float64
FIRST, LAST = (-2.0, 0.5), (2.0, 0.8)
LEFT, RIGHT = (exact.Gaussian([m], s * s) for m, s in (FIRST, LAST))
PATHS = {
    "geodesic": NormalPath.between(FIRST, LAST),
    "swelling": NormalPath.between(FIRST, LAST, swell=0.9),
    "mixture": MixturePath(LEFT, RIGHT),
}
X = torch.linspace(-3, 3.4, 9, dtype=F64)[:, None]
TWO = exact.GaussianMixture([0.3, 0.7], [[-1.0], [0.8]], [0.35**2, 0.25**2])


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("t", [0.4, torch.linspace(0.1, 0.9, 9, dtype=F64)], ids=["one time", "a time a row"])
def test_velocities_carry_their_paths(name: str, t: float | torch.Tensor) -> None:
    path = PATHS[name]
    size = path.velocity(X, t).abs().max()
    assert continuity_residual(path.log_prob, path.velocity, X, t).value.abs().max() < 1e-12 * (1 + size)
    for wrong in (lambda x, t: -path.velocity(x, t), lambda x, t: path.velocity(x, t) + x):
        assert continuity_residual(path.log_prob, wrong, X, t).value.abs().max() > 0.1


@pytest.mark.parametrize("name", PATHS)
def test_paths_join_the_same_ends_and_flow_maps_run_along_them(name: str) -> None:
    path, h = PATHS[name], 1e-4
    for t, law in ((0.0, LEFT), (1.0, RIGHT)):
        torch.testing.assert_close(path.log_prob(X, t), law.log_prob(X), rtol=1e-12, atol=1e-12)
    y = path.flow_map(X, 0.3, 0.6)
    torch.testing.assert_close(path.flow_map(y, 0.6, 0.3), X, rtol=1e-8, atol=1e-8)
    slope = (path.flow_map(X, 0.3, 0.6 + h) - path.flow_map(X, 0.3, 0.6 - h)) / (2 * h)
    torch.testing.assert_close(slope, path.velocity(y, 0.6), rtol=2e-5, atol=2e-5)
    # F_0 to F_1 is the monotone map, whichever path it goes by
    ends = path.flow_map(X, 1e-12 if name == "mixture" else 0.0, 1.0 if name != "mixture" else 1 - 1e-12)
    want = LAST[0] + LAST[1] / FIRST[1] * (X - FIRST[0])
    torch.testing.assert_close(ends[:4], want[:4], rtol=0, atol=1e-4)


def test_normal_paths_by_value() -> None:
    t, x = 0.25, torch.tensor([[0.7]], dtype=F64)
    assert float(PATHS["geodesic"].velocity(x, t)) == pytest.approx(4.0 + 0.3 / 0.575 * (0.7 + 1.0))
    swell = 0.575 + 3.6 * 0.25 * 0.75
    assert float(PATHS["swelling"].velocity(x, t)) == pytest.approx(4.0 + (0.3 + 3.6 * 0.5) / swell * 1.7)
    turning = NormalPath(lambda t: torch.cat([t.cos(), t.sin()], -1), lambda t: 1.0 + t)  # events of two numbers
    x, t = torch.tensor([[1.0, 2.0], [0.3, -1.0]], dtype=F64), torch.tensor([0.2, 0.5], dtype=F64)
    mean = torch.stack([t.cos(), t.sin()], 1)
    want = torch.stack([-t.sin(), t.cos()], 1) + (x - mean) / (1 + t)[:, None]
    torch.testing.assert_close(turning.velocity(x, t), want)
    law = -((x - mean) ** 2).sum(1) / (2 * (1 + t) ** 2) - 2 * (1 + t).log() - math.log(2 * math.pi)
    torch.testing.assert_close(turning.log_prob(x, t), law)
    assert continuity_residual(turning.log_prob, turning.velocity, x, t).value.abs().max() < 1e-13


def test_the_mixture_teleports() -> None:
    """max |v| grows like 1 / min p, the density half-way between the modes; mass moves left to right everywhere."""
    products = []
    for gap in (2.0, 3.0, 4.0):
        path = MixturePath(*(exact.Gaussian([m], 0.25) for m in (-gap, gap)))
        x = torch.linspace(-gap, gap, 801, dtype=F64)[:, None]
        v, p = path.velocity(x, 0.5)[:, 0], path.log_prob(x, 0.5).exp()
        assert bool((v > 0).all()) and v.argmax() == p.argmin() == 400
        products.append(float(v.max() * p.min()))
        assert products[-1] == pytest.approx(math.erf(2 * gap / math.sqrt(2)), rel=1e-9)  # F_0 - F_1 in the middle
    assert v.max() > 1e12
    path = MixturePath(LEFT, TWO)
    far = path.velocity(torch.tensor([[-9.0], [9.0]], dtype=F64), 0.5)  # both tails by their own side
    survival = [0.5 * math.erfc((9 + 2) / 0.5 / math.sqrt(2)), 0.7 * 0.5 * math.erfc(8.2 / 0.25 / math.sqrt(2))]
    assert -0.2 < float(far[1]) < 0.0 < float(far[0]) < 0.2
    assert float(far[1] * path.log_prob(torch.tensor([[9.0]], dtype=F64), 0.5).exp()) == pytest.approx(
        survival[1] - survival[0], rel=1e-9
    )


def mills(z: float) -> float:
    """(1 - F) / p of a standard normal at z > 5, by Laplace's continued fraction."""
    tail = z
    for k in range(60, 0, -1):
        tail = z + k / tail
    return 1.0 / tail


@pytest.mark.parametrize(("dtype", "places"), [(F64, (7.0, 40.0, 1e3)), (torch.float32, (8.0, 14.0, 30.0, 1e3))])
def test_the_velocity_where_both_densities_are_nothing(dtype: torch.dtype, places: tuple[float, ...]) -> None:
    """Far out the broadest part is all there is: v = -+ s (1 - F(z)) / p(z) / t, about 1 / |x|."""
    narrow, t = exact.Gaussian([0.0], 0.01), 0.3
    for last, right, left in ((RIGHT, LAST, LAST), (TWO, (-1.0, 0.35), (-1.0, 0.35))):
        path = MixturePath(narrow, last)
        for place in places:
            (m, s), (n, r) = right, left
            want = [s * mills((place - m) / s) / t, -r * mills((place + n) / r) / t]
            x = torch.tensor([[place], [-place]], dtype=dtype, requires_grad=True)
            v = path.velocity(x, t)
            assert v.dtype == dtype and v[:, 0].tolist() == pytest.approx(want, rel=1e-6)
            (slope,) = torch.autograd.grad(v.sum(), x)  # v' = v z / s - 1 / t
            assert bool(slope.isfinite().all())
    alike = MixturePath(exact.Gaussian([0.0], 1.0), exact.Gaussian([0.0], 1.0001**2))
    for place in (20.0, 100.0, 200.0):  # both count
        ratio = math.exp(0.5 * place**2 * (1.0 - 1.0001**-2)) / 1.0001
        want = (1.0001 * mills(place / 1.0001) * ratio - mills(place)) / (0.7 + 0.3 * ratio)
        both = alike.velocity(torch.tensor([[place], [-place]], dtype=dtype), t)[:, 0]
        assert both.tolist() == pytest.approx([want, -want], rel=1e-6)


def test_what_is_no_path() -> None:
    with pytest.raises(ConfigError, match="whose std falls to"):
        NormalPath.between((0.0, 1.0), (1.0, 1.0), swell=-1.1)
    with pytest.raises(ConfigError, match=r"must be \(1,\): in more dimensions"):
        MixturePath(LEFT, exact.Gaussian([0.0, 0.0], 1.0))  # type: ignore[arg-type]


def mixture_cdf(x: torch.Tensor) -> torch.Tensor:
    return 0.3 * torch.special.ndtr((x + 1.0) / 0.35) + 0.7 * torch.special.ndtr((x - 0.8) / 0.25)


def test_inverse_distribution_functions() -> None:
    """Seed 004, Sec. 2: u -> F^{-1}(u); after the normal's F it is the flow from noise to data (on Flow, exactly)."""
    n = 4000
    u = kronecker(n)
    x = inverse_cdf(mixture_cdf, u, -10.0, 10.0)
    torch.testing.assert_close(mixture_cdf(x), u, rtol=0, atol=1e-15)
    assert float(x.mean()) == pytest.approx(float(TWO.mean), abs=4e-3)
    assert float(x.var()) == pytest.approx(float(TWO.cov), rel=4e-3)
    z = torch.linspace(-3, 3, 13, dtype=F64)[:, None]
    flow = TWO.flow_map(Flow(), z, 1.0, 0.0)
    torch.testing.assert_close(inverse_cdf(mixture_cdf, torch.special.ndtr(z), -10.0, 10.0), flow, rtol=0, atol=1e-9)
    later = TWO.flow_map(OU(8.0), z, 8.0, 0.0)  # p_T is normal up to e^{-T}
    torch.testing.assert_close(later, flow, rtol=0, atol=4e-3)
    one = inverse_cdf(torch.special.ndtr, torch.tensor([0.5, 0.975], dtype=F64), -40.0, 40.0)
    assert one.tolist() == pytest.approx([0.0, 1.959963984540054], abs=1e-14)
    single = inverse_cdf(torch.special.ndtr, torch.tensor([0.25]), -5.0, 5.0)
    assert single.dtype == torch.float32 and float(single) == pytest.approx(-0.6744898, abs=1e-6)
    with pytest.raises(ConfigError, match=r"widen low and high"):
        inverse_cdf(torch.special.ndtr, torch.tensor([0.999]), -1.0, 1.0)


@pytest.mark.parametrize(
    ("ratio", "pairs"), [(None, 0.118), (math.sqrt(2), 0.086), (1e-3 * math.pi, 0.497)], ids=["golden", "root", "small"]
)
def test_kronecker_sequence(ratio: float | None, pairs: float) -> None:
    """Seed 004, Sec. 2: frequencies are right, independence is not: two heads in a row should have 1/4."""
    u = kronecker(100_000, ratio)
    heads = u < 0.5
    assert float((heads[1:] & heads[:-1]).double().mean()) == pytest.approx(pairs, abs=6e-4)
    if ratio is None:
        assert float(heads.double().mean()) == pytest.approx(0.49999, abs=1e-9)
        for a, b in ((0.2, 0.47), (0.05, 0.91)):
            assert float(((u > a) & (u < b)).double().mean()) == pytest.approx(b - a, abs=1.5e-5)


def test_kronecker_numbers_are_right_for_any_start() -> None:
    golden = Fraction(math.isqrt(5 * 10**80) - 10**40, 2 * 10**40)
    for start in (0, 10**10, -5, 2**40):
        want = [float((k * golden) % 1) for k in range(start + 1, start + 5)]
        assert kronecker(4, start=start).tolist() == pytest.approx(want, abs=1e-7 if start > 2**35 else 1e-9)
    assert kronecker(3, 0.25).tolist() == [0.25, 0.5, 0.75]
    assert kronecker(3, 2.625, start=2).tolist() == [0.875, 0.5, 0.125]
    assert torch.equal(kronecker(5, start=3), kronecker(8)[3:])
    with pytest.raises(ConfigError, match="n: given 0"):
        kronecker(0)
    with pytest.raises(ConfigError, match="ratio: given 3.0, whose multiples are all integers"):
        kronecker(4, 3.0)
