"""The field's spacings: against their published numbers, and unrounded on every process."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

import fokker as fk
from fokker.errors import ConfigError
from fokker.process import EDM, VE, VP, Cosine, DiscreteVP, Flow, Process, Trig
from fokker.registry import spec
from fokker.solvers import Angle, Beta, Grid, Leading, Linspace, Shift, Trailing, UniformT, as_grid
from fokker.solvers.grid import check_times

F64 = torch.float64
ZERO_SNR = DiscreteVP(zero_terminal_snr=True)
PROCESSES: list[Process] = [VP(), VE(), EDM(), Flow(), Trig(), Cosine(), DiscreteVP(), ZERO_SNR]
GRIDS: list[Grid] = [Angle(), Beta(), Beta(a=0.3, b=2.0), Shift(), Shift(shift=0.2), Leading(), Linspace(), Trailing()]


def name(process: Process) -> str:
    return type(process).__name__ + ("0" if getattr(process, "zero_terminal_snr", False) else "")


def times_of(grid: Grid, process: Process, steps: int, to_zero: bool, start: float | None = None) -> torch.Tensor:
    return grid.times(process, steps, process.T if start is None else start, process.t_min, to_zero)


@pytest.mark.parametrize("process", PROCESSES, ids=name)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_n_steps_strictly_down_to_the_right_end(grid: Grid, process: Process) -> None:
    for start in (process.T, process.t_max, 0.7 * process.T):
        for steps in (1, 2, 3, 10, 999, 1000, 1001, 2500):
            for to_zero in (True, False):
                times = times_of(grid, process, steps, to_zero, start)
                assert times.dtype == F64 and times.shape == (steps + 1,)
                assert check_times(times, process) is False  # strictly decreasing, inside [0, T], finite
                assert times[-1] == (0.0 if to_zero else process.t_min)
                assert times[0] <= start if isinstance(grid, Leading) else times[0] == start
                # the network is never asked below t_min
                assert times[-2] >= process.t_min * (1 - 1e-9)


def test_ddpm_indices_as_published() -> None:
    """1000 levels: the indices n = 1000 t - 1 of the published spacings where those need no rounding."""
    process = DiscreteVP()

    def indices(grid: Grid, steps: int) -> torch.Tensor:
        times = times_of(grid, process, steps, True)
        assert times[-1] == 0.0
        return times[:-1] * 1000 - 1

    for grid, want in (
        (Leading(), [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]),
        (Trailing(), [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]),
        (Linspace(), [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]),
    ):
        torch.testing.assert_close(indices(grid, 10), torch.tensor(want, dtype=F64), rtol=0, atol=1e-9)
        assert indices(grid, 1).tolist() == pytest.approx([0 if isinstance(grid, Leading) else 999])
        every = torch.arange(999, -1, -1, dtype=F64)
        torch.testing.assert_close(indices(grid, 1000), every, rtol=0, atol=1e-9)
    # 7 does not divide 1000: published code floors 1000 / 7 to 142 and repeats or skips; here the steps are equal
    gaps = indices(Leading(), 7).diff()
    assert float((gaps + 1000 / 7).abs().max()) < 1e-9


def test_leading_without_the_last_step() -> None:
    """N + 1 evaluations' places of which the last is `stop`; more steps than levels are spread, never repeated."""
    times = times_of(Leading(), DiscreteVP(), 4, False)
    torch.testing.assert_close(times * 1000, torch.tensor([801.0, 601, 401, 201, 1], dtype=F64), rtol=0, atol=1e-9)
    many = times_of(Leading(), DiscreteVP(), 1999, False) * 1000
    torch.testing.assert_close(many, torch.linspace(1000, 1, 2000, dtype=F64), rtol=0, atol=1e-9)


def test_trailing_is_uniform_t_and_linspace_ends_at_stop() -> None:
    for process in PROCESSES:
        for to_zero in (True, False):
            assert torch.equal(times_of(Trailing(), process, 9, to_zero), times_of(UniformT(), process, 9, to_zero))
        assert torch.equal(times_of(Linspace(), process, 9, False), times_of(UniformT(), process, 9, False))
        times = times_of(Linspace(), process, 9, True)
        want = torch.linspace(process.T, process.t_min, 9, dtype=F64)
        torch.testing.assert_close(times[:-1], want, rtol=1e-12, atol=0)


def test_shift_of_sd3() -> None:
    """m tau / (1 + (m - 1) tau) at m = 3, tau = 1, 3/4, 1/2, 1/4, 0: 1, 9/10, 3/4, 1/2, 0."""
    want = torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0], dtype=F64)
    torch.testing.assert_close(times_of(Shift(), Flow(), 4, True), want, rtol=0, atol=1e-12)
    torch.testing.assert_close(times_of(Shift(shift=1.0), Flow(), 5, True), torch.linspace(1, 0, 6, dtype=F64))
    # pinned to (start, stop), the unshifted times are uniform, and the ends are where they were asked to be
    t = Shift(shift=2.5).times(Flow(), 7, 0.9, 0.02, False)
    back = t / (2.5 - 1.5 * t)
    assert t[0] == 0.9 and t[-1] == 0.02
    assert float((back.diff() - back.diff().mean()).abs().max()) < 1e-14
    # SD3's rule for the resolution moves lam by -log m
    one, three = (times_of(Shift(shift=m), Flow(), 5, True)[1:-1] for m in (1.0, 3.0))
    torch.testing.assert_close(Flow().lam(three), Flow().lam(one) - math.log(3.0))


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_shift_and_angle_are_one_grid_for_all_processes(process: Process) -> None:
    start, stop = process.t_max, process.t_min
    noise, signal = process.sigma, process.alpha
    for to_zero, steps in ((False, 12), (True, 5)):
        end = 0.0 if to_zero else stop
        t = Shift(shift=3.0).times(process, steps, start, stop, to_zero)
        if not to_zero or t[-2] > stop:
            tau = noise(t) / (noise(t) + 3.0 * signal(t))
            want = torch.linspace(float(tau[0]), float(noise(end) / (noise(end) + 3 * signal(end))), steps + 1)
            torch.testing.assert_close(tau, want.double(), rtol=0, atol=2e-7)
            assert float((tau.diff() - tau.diff().mean()).abs().max()) < 1e-11
        t = Angle().times(process, steps, start, stop, to_zero)
        angle = torch.atan2(noise(t), signal(t))
        assert float((angle.diff() - angle.diff().mean()).abs().max()) < 1e-11


def test_cosine_is_uniform_t_on_the_cosine_schedule() -> None:
    """alpha = cos, sigma = sin: t / T is the angle, also at T, where alpha = 0, and at 0."""
    want = torch.linspace(Trig().T, 0, 9, dtype=F64)
    torch.testing.assert_close(times_of(Angle(), Trig(), 8, True), want, rtol=0, atol=1e-12)
    # EDM, three steps from sigma = 1 to tan(pi/16): atan(sigma) = 4, 3, 2, 1 sixteenths of pi
    got = Angle().times(EDM(), 3, 1.0, math.tan(math.pi / 16), False)
    want = torch.tensor([math.tan(k * math.pi / 16) for k in (4, 3, 2, 1)], dtype=F64)
    torch.testing.assert_close(got, want, rtol=1e-13, atol=0)


def test_beta_quantiles() -> None:
    """F^{-1}(p) is sin^2(pi p / 2) for Beta(1/2, 1/2), 1 - (1 - p)^{1/b} for Beta(1, b) and p^{1/a} for Beta(a, 1)."""
    p = torch.linspace(1, 0, 9, dtype=F64)
    laws = (
        (0.5, 0.5, (0.5 * math.pi * p).sin() ** 2),
        (1.0, 4.0, 1 - (1 - p) ** 0.25),
        (3.0, 1.0, p ** (1 / 3)),
        (1.0, 1.0, p),
    )
    for a, b, quantile in laws:
        got = Beta(a=a, b=b).times(VP(), 8, 1.0, 1e-3, True)
        torch.testing.assert_close(got, quantile, rtol=0, atol=1e-12)
        got = Beta(a=a, b=b).times(EDM(), 8, 60.0, 4.0, False)
        torch.testing.assert_close(got, 4.0 + 56.0 * quantile, rtol=0, atol=1e-11)
    # the default of the literature, a = b = 0.6: the median is the middle, and F^{-1}(0.1) = 0.04213...
    t = Beta().times(Flow(), 10, 1.0, 1e-4, True)
    assert float(t[5]) == pytest.approx(0.5, abs=1e-12)
    assert float(t[9] + t[1]) == pytest.approx(1.0, abs=1e-12)
    x = torch.linspace(0, float(t[9]), 400001, dtype=F64)[1:]
    middle = x - 0.5 * float(t[9]) / 400000
    mass = float(((middle * (1 - middle)) ** -0.4).mean() * t[9])
    total = math.gamma(0.6) ** 2 / math.gamma(1.2)
    assert mass / total == pytest.approx(0.1, abs=1e-4)


def test_they_are_kinds() -> None:
    for text, grid in (
        ("cosine", Angle()),
        ("beta", Beta(a=0.6, b=0.6)),
        ("shift", Shift(shift=3.0)),
        ("leading", Leading()),
        ("linspace", Linspace()),
        ("trailing", Trailing()),
    ):
        assert as_grid(text) == grid
        assert as_grid(spec(grid)) == grid and spec(grid)["kind"] == text
    for bad in ({"kind": "beta", "a": 0.2}, {"kind": "beta", "b": 101.0}, {"kind": "shift", "shift": 0.0}):
        with pytest.raises(ConfigError):
            as_grid(bad)


def test_sample_takes_them() -> None:
    """Ten steps of DDIM on a Gaussian, by its closed form: every step scales x by what DDIM's step does."""
    law = fk.exact.Gaussian(torch.zeros(2), 0.25 * torch.eye(2))
    process = VP()
    for grid in GRIDS:
        times, states = fk.trajectory(law.denoiser(process), n=3, solver="ddim", steps=10, grid=grid, dtype=F64)
        assert torch.equal(times, times_of(grid, process, 10, True))
        x = states[0]
        for s, t in pairwise(times):
            a, b = process.alpha(s), process.sigma(s)
            total = 0.25 * a**2 + b**2
            x = process.alpha(t) * (0.25 * a / total) * x + process.sigma(t) * (b / total) * x
        torch.testing.assert_close(states[-1], x, rtol=1e-10, atol=1e-12)
