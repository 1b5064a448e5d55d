"""Forward paths: right in law by kernels, strong order 1 by Euler, one Brownian path however it is read."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from fokker import noise
from fokker.errors import ConfigError
from fokker.forward import diffuse
from fokker.process import EDM, OU, VE, VP, Cosine, DiscreteVP, Flow, Process, SubVP, Trig

from .solvers.oracle import F64, slopes

PROCESSES = [VP(), SubVP(), VE(), EDM(), Flow(), Trig(), Cosine(), OU(), DiscreteVP(steps=50)]
N = 10_000


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_exact_is_the_law_at_every_time(process: Process) -> None:
    """Widely spaced times from data N(.7, .25): mean, variance and covariance with x_0 within 4 standard errors."""
    g = torch.Generator().manual_seed(1)
    x0 = 0.7 + 0.5 * torch.randn(N, 1, dtype=F64, generator=g)
    times = torch.tensor([0.0, 0.3, 0.35, 0.9, 1.0], dtype=F64) * process.T
    path = diffuse(process, x0, times, seed=4)
    assert path.shape == (5, N, 1) and torch.equal(path[0], x0)
    a, s = process.alpha(times), process.sigma(times)
    for k in range(1, 5):
        mean, var = 0.7 * a[k], 0.25 * a[k] ** 2 + s[k] ** 2
        got = path[k, :, 0]
        assert abs(float(got.mean() - mean)) < 4 * math.sqrt(var / N)
        assert abs(float(got.var() - var)) < 4 * float(var) * math.sqrt(2 / N)
        for j in range(k):  # Cov(x_j, x_k) = alpha_k / alpha_j Var(x_j)
            want = a[k] / a[j] * (0.25 * a[j] ** 2 + s[j] ** 2) if float(a[j]) > 0 else torch.zeros(())
            v_j = 0.25 * a[j] ** 2 + s[j] ** 2
            se = math.sqrt(float(v_j * var + want**2) / N)
            cov = float(((path[j, :, 0] - path[j].mean()) * (got - got.mean())).mean())
            assert abs(cov - float(want)) < 4 * se, (j, k)


def test_exact_given_its_own_increments() -> None:
    """x_t = scale x_s + std u with u the standardised increment of the keyed Brownian path: no noise left over."""
    process, times = VP(), torch.tensor([0.125, 0.375, 0.75], dtype=F64)
    x0, index = torch.linspace(-1, 1, 6, dtype=F64).reshape(3, 2), torch.tensor([4, 0, 9])
    path = diffuse(process, x0, times, seed=7, indices=index)
    w = noise.brownian(7, index, times, (2,))  # these times are on its lattice
    x = x0
    for k in range(2):
        a = process.alpha(times[k + 1]) / process.alpha(times[k])
        var = process.sigma(times[k + 1]) ** 2 - a**2 * process.sigma(times[k]) ** 2
        x = a * x + var.sqrt() * (w[k + 1] - w[k]) / (times[k + 1] - times[k]).sqrt()
        assert float((path[k + 1] - x).abs().max()) < 1e-13
    again = diffuse(process, x0.flip(0), times, seed=7, indices=index.flip(0))
    assert torch.equal(again, path.flip(1))
    assert torch.equal(diffuse(process, x0[1:2], times, seed=7, indices=index[1:2]), path[:, 1:2])
    assert torch.equal(diffuse(process, x0, times, seed=[7, 7, 7], indices=index), path)
    assert not torch.equal(diffuse(process, x0, times, seed=8, indices=index), path)


def euler_by_hand(process: Process, x0: Tensor, times: Tensor, w: Tensor) -> Tensor:
    x = x0
    for k in range(len(times) - 1):
        h = times[k + 1] - times[k]
        x = x + h * process.f(times[k]) * x + process.g2(times[k]).sqrt() * math.sqrt(process.T) * (w[k + 1] - w[k])
    return x


@pytest.mark.parametrize("process", [VP(), OU(horizon=2.0)], ids=lambda p: type(p).__name__)
def test_euler_has_strong_order_1_on_one_path(process: Process) -> None:
    """Against a fine Euler path with the same seed; additive noise makes it Milstein's scheme (1.04 .. 1.02)."""
    x0 = torch.linspace(-1, 1, 200, dtype=F64)[:, None]
    T = 0.5 * process.T

    def end(n: int) -> Tensor:
        return diffuse(process, x0, torch.linspace(0, T, n + 1, dtype=F64), seed=3, method="euler")[-1]

    fine = end(512)
    errors = [float((end(n) - fine).square().mean().sqrt()) for n in (8, 16, 32)]
    # the reference is itself off by 1 / 512: its own error takes a few per cent of the last slope
    assert slopes(errors)[-1] == pytest.approx(1.0, abs=0.15), errors
    times = torch.linspace(0, T, 9, dtype=F64)
    w = noise.brownian(3, torch.arange(200), times / process.T, (1,))
    got = diffuse(process, x0, times, seed=3, method="euler")[-1]
    assert float((got - euler_by_hand(process, x0, times, w)).abs().max()) < 1e-13


def test_exact_tends_to_the_same_path_as_euler() -> None:
    """Both are driven by one Brownian path: with finer times they meet."""
    x0 = torch.linspace(-1, 1, 200, dtype=F64)[:, None]
    gaps = []
    for n in (32, 64, 128):
        times = torch.linspace(0.0, 0.5, n + 1, dtype=F64)
        one, two = (diffuse(VP(), x0, times, seed=3, method=m)[-1] for m in ("exact", "euler"))
        gaps.append(float((one - two).square().mean().sqrt()))
    assert gaps[-1] < 0.03 and min(slopes(gaps)) > 0.8


def test_a_refined_path_is_the_same_path() -> None:
    """g = 1, f = 0 by a drift of one's own: Euler is the Brownian path itself, at common times the same numbers."""
    x0 = torch.zeros(50, 2, dtype=F64)
    ou = OU(horizon=2.0)  # g^2 = 2
    coarse = torch.linspace(0.0, 2.0, 5, dtype=F64)
    fine = torch.linspace(0.0, 2.0, 33, dtype=F64)
    still = [diffuse(ou, x0, t, seed=6, method="euler", drift=lambda x, t: torch.zeros_like(x)) for t in (coarse, fine)]
    assert float((still[0] - still[1][::8]).abs().max()) < 1e-12
    step = still[1][1:] - still[1][:-1]
    assert abs(float(step.var() / (2 * 2.0 / 32)) - 1) < 4 * math.sqrt(2 / step.numel())
    lag = (step[1:] * step[:-1]).mean() / step.var()
    assert abs(float(lag)) < 4 / math.sqrt(step.numel())


def test_weak_law_of_euler() -> None:
    """m <- (1 + f h) m, V <- (1 + f h)^2 V + g^2 h: the samples follow the recursion, and it has order 1."""
    process = VP()
    g = torch.Generator().manual_seed(1)
    x0 = 0.7 + 0.5 * torch.randn(N, 1, dtype=F64, generator=g)
    gaps = []
    for n in (8, 64, 128):
        times = torch.linspace(0.0, 0.5, n + 1, dtype=F64)
        m, v = 0.7, 0.25
        for s, t in itertools.pairwise(times):
            grow = 1 + float(process.f(s) * (t - s))
            m, v = grow * m, grow**2 * v + float(process.g2(s) * (t - s))
        a, sig = float(process.alpha(0.5)), float(process.sigma(0.5))
        gaps.append((abs(m - 0.7 * a), abs(v - 0.25 * a * a - sig * sig)))
        if n == 8:
            got = diffuse(process, x0, times, seed=2, method="euler")[-1]
            assert abs(float(got.mean()) - m) < 4 * math.sqrt(v / N)
            assert abs(float(got.var()) - v) < 4 * v * math.sqrt(2 / N)
            assert gaps[0][1] > 4 * v * math.sqrt(2 / N)  # the test sees the difference from the exact law
    assert slopes([k[0] for k in gaps[1:]]) == pytest.approx([1.0], abs=0.15)
    assert slopes([k[1] for k in gaps[1:]]) == pytest.approx([1.0], abs=0.15)


def test_a_drift_of_ones_own() -> None:
    """dx = cos(t) dt + g dw in place of f x: the drift is called at (x, start of the step)."""
    ou, x0 = OU(), torch.zeros(2, 1, dtype=F64)
    times = torch.tensor([0.0, 0.5, 1.25], dtype=F64)
    seen: list[float] = []

    def drift(x: Tensor, t: float) -> Tensor:
        seen.append(t)
        return torch.full_like(x, math.cos(t))

    got = diffuse(ou, x0, times, seed=1, method="euler", drift=drift)
    base = diffuse(ou, x0, times, seed=1, method="euler", drift=lambda x, t: torch.zeros_like(x))
    assert seen == [0.0, 0.5]
    want = torch.tensor([0.0, 0.5, 0.5 + 0.75 * math.cos(0.5)], dtype=F64)
    assert float((got - base - want[:, None, None]).abs().max()) < 1e-14
    same = diffuse(ou, x0, times, seed=1, method="euler", drift=lambda x, t: -x)
    assert float((same - diffuse(ou, x0, times, seed=1, method="euler")).abs().max()) < 1e-15


def test_close_times_keep_their_variance() -> None:
    """Times are read on a lattice of 2^-24 T (4.8e-6 here): a step is never given another step's variance."""
    process = EDM()
    x0 = torch.zeros(4000, 1, dtype=F64)
    for gap in (1e-3, 2e-5, 1e-6):
        times = torch.tensor([0.002, 0.002 + gap], dtype=F64)
        for method in ("exact", "euler"):
            got = diffuse(process, x0, times, seed=5, method=method)[-1]
            var = (0.002 + gap) ** 2 - 0.002**2 if method == "exact" else 0.004 * gap
            assert abs(float(got.var()) / var - 1) < 4 * math.sqrt(2 / 4000), (gap, method)
    with pytest.raises(ConfigError, match="times"):  # one lattice point: there is no increment to give
        diffuse(process, x0, [0.002, 0.002 + 1e-9], seed=5)


def test_dtype_and_events() -> None:
    x0 = torch.zeros(3, 2, 4)
    path = diffuse(VP(), x0, [0.0, 0.5, 1.0])
    assert path.dtype == torch.float32 and path.shape == (3, 3, 2, 4)
    assert float((path - diffuse(VP(), x0.double(), [0.0, 0.5, 1.0]).float()).abs().max()) < 1e-5
    assert len(torch.unique(path[1])) == 24


def test_errors() -> None:
    x0 = torch.zeros(3, 1)
    for times in ([0.5, 0.2], [0.5, 0.5], [0.5], [0.0, 1.5], [-0.1, 0.5], [0.0, math.nan]):
        with pytest.raises(ConfigError):
            diffuse(VP(), x0, times)
    with pytest.raises(ConfigError, match="euler"):
        diffuse(VP(), x0, [0.0, 0.5], drift=lambda x, t: x)
    with pytest.raises(ConfigError, match="method"):
        diffuse(VP(), x0, [0.0, 0.5], method="milstein")  # type: ignore[arg-type]
    for wrong in (torch.tensor([0]), torch.tensor([0, 1])):
        with pytest.raises(ConfigError):  # one number must not quietly give all samples one path
            diffuse(VP(), x0, [0.0, 0.5], indices=wrong)
    with pytest.raises(ConfigError):
        diffuse(VP(), x0, [0.0, 0.5], seed=[1])
