"""NCSN: its levels, its multi-level loss and its floors, its sampler by exact recursion, and what it is in VP."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fokker import noise
from fokker.classic import annealing, level_floors, level_losses, sigmas
from fokker.denoiser import to_process
from fokker.errors import ConfigError
from fokker.exact import Gaussian, GaussianMixture
from fokker.objectives import Denoising, Levels, Sigma2
from fokker.process import EDM, VE, VP, DiscreteVP, Flow, Process
from fokker.registry import build, spec
from fokker.sampling import sample
from fokker.solvers import UniformLam

F64 = torch.float64
MIXTURE = GaussianMixture([0.3, 0.7], [[-1.0, 0.4], [0.8, -0.3]], [[0.3, 0.2], [0.1, 0.4]])
BOOK = torch.tensor([0.1, 1.0, 5.0], dtype=F64)


def ratio(process: Process, t: Tensor) -> Tensor:
    return process.sigma(t) / process.alpha(t)


@pytest.mark.parametrize("process", [EDM(0.05, 5.0), VE(), VP(), Flow()], ids=lambda p: type(p).__name__)
def test_levels_are_geometric_and_those_of_the_lam_grid(process: Process) -> None:
    law = Levels(7)
    times = law.levels(process)
    rho = ratio(process, times)
    steps = rho[1:] / rho[:-1]
    torch.testing.assert_close(steps, steps.mean().expand(6), rtol=1e-6, atol=0)
    top = min(process.T, process.t_max)
    assert float(times[0]) == pytest.approx(process.t_min, rel=1e-6)
    assert float(ratio(process, times[-1])) == pytest.approx(
        float(ratio(process, torch.tensor(top, dtype=F64))), rel=1e-6
    )
    torch.testing.assert_close(rho, sigmas(float(rho[0]), float(rho[-1]), 7), rtol=1e-6, atol=0)
    u = (torch.arange(70, dtype=F64) + 0.5) / 70
    assert torch.equal(law.quantile(process, u), times.repeat_interleave(10))
    assert torch.equal(law.quantile(process, torch.tensor([0.0, 1.0], dtype=F64)), times[[0, -1]])
    grid = UniformLam().times(process, 7, process.T, process.t_min, to_zero=True)
    assert float(grid[-1]) == 0.0  # Tweedie's step after the last level
    torch.testing.assert_close(ratio(process, grid[1:-1]), rho[:-1].flip(0), rtol=1e-6, atol=0)


def test_the_loss_of_all_levels() -> None:
    """Stratified over L rows every level comes once: the loss is 2 / (L D) sum_l sigma_l^2 L_DSM(sigma_l)."""
    process, objective = EDM(0.05, 5.0), Denoising.ncsn(6, stratified=True)
    assert objective == Denoising("score", Sigma2(), Levels(6), stratified=True)
    assert build("objective", spec(objective)) == objective
    other = Gaussian([0.2, -0.1], 0.7).denoiser(process)  # a wrong score
    x = MIXTURE.sample(6, dtype=F64)
    got = objective.terms(other, x, seed=4, step=3)
    levels = sigmas(0.05, 5.0, 6)
    torch.testing.assert_close(got.t, levels)
    eps = noise.normal(4, torch.arange(6), (2,), draw=3 << 8, domain="training", dtype=F64)
    at = x + levels[:, None] * eps
    score = -(at - torch.tensor([0.2, -0.1], dtype=F64)) / (0.7 + levels[:, None] ** 2)
    dsm = 0.5 * (score + eps / levels[:, None]).square().sum(1)
    torch.testing.assert_close(got.loss.mean(), 2 / (6 * 2) * (levels**2 * dsm).sum(), rtol=1e-12, atol=0)
    with pytest.raises(ConfigError, match="density='multiply'"):
        Denoising.ncsn(density="replace").terms(other, x)


def test_loss_floors() -> None:
    """1/2 D (1 / sigma^2 - 1 / (v + sigma^2)) for N(m, v); the exact score is at its floor, a wrong one L_SM above."""
    levels, v, w, n = sigmas(0.1, 5.0, 5), 0.5, 0.9, 20_000
    law = Gaussian([0.3, -0.2, 0.8], v)
    exact = 1.5 * (1 / levels**2 - 1 / (v + levels**2))
    floor = level_floors(law, levels, n=n)
    assert bool(((floor.value - exact).abs() < 4 * floor.stderr).all())
    x = law.sample(n, seed=3, dtype=F64)
    for process in (EDM(0.01, 10.0), VP()):
        loss = level_losses(law.denoiser(process), x, levels, seed=1)
        assert bool(((loss.value - exact).abs() < 4 * loss.stderr).all())
        wrong = level_losses(Gaussian([0.3, -0.2, 0.8], w).denoiser(process), x, levels, seed=1)
        above = 1.5 * (v + levels**2) * (1 / (w + levels**2) - 1 / (v + levels**2)) ** 2
        assert bool(((wrong.value - exact - above).abs() < 4 * wrong.stderr).all())
        assert float((above / wrong.stderr).max()) > 8
    mixed, alone = (level_floors(MIXTURE, levels, n=n, seed=k) for k in (0, 1))
    at_floor = level_losses(MIXTURE.denoiser(EDM()), MIXTURE.sample(n, seed=7, dtype=F64), levels)
    both = (mixed.stderr**2 + at_floor.stderr**2).sqrt()
    assert bool(((mixed.value - at_floor.value).abs() < 4 * both).all()) and not torch.equal(mixed.value, alone.value)


def test_an_ncsn_is_a_ddpm_and_a_ddpm_an_ncsn() -> None:
    """s_VP(x) = s_VE(x / alpha, sigma / alpha) / alpha and s = -E[eps | x] / sigma, to 1e-12, both ways (E14)."""
    ve = MIXTURE.denoiser(EDM())
    x = MIXTURE.sample(9, dtype=F64)
    for process, times in ((VP(), (0.02, 0.4, 0.9)), (DiscreteVP(steps=50), (0.1, 0.6))):
        ddpm = MIXTURE.denoiser(process)
        for t in times:
            alpha, sigma = process.alpha(t), process.sigma(t)
            score = ddpm(x, t).score
            torch.testing.assert_close(score, -ddpm(x, t).noise / sigma, rtol=1e-12, atol=1e-12)
            seen = ve(x / alpha, sigma / alpha)
            torch.testing.assert_close(score, seen.score / alpha, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(ddpm(x, t).noise, seen.noise, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(to_process(ve, process)(x, t).score, score, rtol=1e-12, atol=1e-12)
            back = to_process(ddpm, EDM())(x / alpha, sigma / alpha)
            torch.testing.assert_close(back.score, seen.score, rtol=1e-12, atol=1e-12)


def test_a_chain_of_levels_is_the_ve_process() -> None:
    """x_{l+1} = x_l + sqrt(sigma_{l+1}^2 - sigma_l^2) eps makes x + sigma_L eps (E17: not sigma^2 eps)."""
    for process in (EDM(0.05, 8.0), VE(0.05, 8.0)):
        times = Levels(6).levels(process)
        levels = process.sigma(times)
        step = process.transition(times[:-1], times[1:])
        torch.testing.assert_close(step.scale, torch.ones(5, dtype=F64))
        torch.testing.assert_close(step.std**2, levels[1:] ** 2 - levels[:-1] ** 2, rtol=1e-9, atol=1e-12)
        whole = levels[0] ** 2 + step.std.square().sum()
        assert float(whole) == pytest.approx(float(levels[-1]) ** 2, rel=1e-9)
        x = process.perturb(torch.zeros(1, 1, dtype=F64), times[-1:], torch.ones(1, 1, dtype=F64))
        assert float(x) == pytest.approx(float(levels[-1]), rel=1e-12) and float(x) != pytest.approx(float(whole))


def settle(levels: Tensor, start: float, delta: float, repeats: int, v: float) -> float:
    """The variance that Eq. (4) makes of N(0, start) for data N(0, v): V <- (1 - eta / (v + sigma^2))^2 V + 2 eta."""
    for sigma in levels.flip(0).tolist():
        eta = delta * sigma**2 / float(levels[0]) ** 2
        for _ in range(repeats):
            start = (1 - eta / (v + sigma**2)) ** 2 * start + 2 * eta
    return start


def test_algorithm_1_goes_down_to_the_last_level() -> None:
    """E15, data variance .25, delta = 1e-3, N = 2000: the printed loop ends with 1.3021, all levels with .260501."""
    corrected, printed = (settle(levels, 25.0, delta, 2000, 0.25) for levels, delta in ((BOOK, 1e-3), (BOOK[1:], 0.1)))
    assert corrected == pytest.approx(0.26 / (1 - 0.001 / 0.52), rel=1e-6) == pytest.approx(0.260501, abs=5e-7)
    assert printed == pytest.approx(1.25 / (1 - 0.1 / 2.5), abs=1e-9) == pytest.approx(1.3021, abs=5e-5)


@pytest.mark.parametrize("process", [EDM(), VP()], ids=lambda p: type(p).__name__)
def test_annealing_is_that_recursion(process: Process) -> None:
    """The same noise from two starts: they approach by prod (1 - eta_l / (v + sigma_l^2))^N, levels L to 1 included."""
    delta, repeats, v = 2e-3, 3, 0.25
    denoiser = Gaussian([0.7], v).denoiser(process)
    how = annealing(process, BOOK, delta=delta, repeats=repeats)
    scales = process.alpha(how["grid"])
    torch.testing.assert_close(ratio(process, how["grid"]), BOOK.flip(0), rtol=1e-12, atol=0)
    one, two = (torch.full((4, 1), c, dtype=F64) for c in (-1.0, 2.0))
    ends = [sample(denoiser, x=x * scales[0], seed=5, dtype=F64, **how) / scales[-1] for x in (one, two)]
    factor = math.prod((1 - delta * s**2 / 0.01 / (v + s**2)) ** repeats for s in BOOK.tolist())
    torch.testing.assert_close(ends[1] - ends[0], factor * (two - one), rtol=1e-10, atol=1e-12)
    n = 6_000
    x = sample(denoiser, n=n, seed=2, dtype=F64, **how) / scales[-1]
    want = settle(BOOK, 25.0, delta, repeats, v)
    assert abs(float(x.var()) - want) < 4 * want * math.sqrt(2 / n)


def test_the_start_is_as_wide_as_the_first_level() -> None:
    """E16: from N(0, sigma_L^2) one step stays near p_{sigma_L} = N(0, 25.25); from N(0, 1) it stays far below."""
    law = Gaussian([0.0], 0.25)
    right, printed = (settle(BOOK[2:], start, 2.5, 1, 0.25) for start in (25.0, 1.0))
    assert right == pytest.approx(25.25, rel=0.06) and printed < 0.25 * 25.25
    n, how = 6_000, annealing(EDM(), sigmas(4.9999, 5.0, 2), delta=2.5, repeats=1)
    for given, want in ((None, 25.0), (noise.normal(1, torch.arange(n), (1,), dtype=F64), 1.0)):
        keys: dict[str, Any] = {"n": n} if given is None else {"x": given}
        x = sample(law.denoiser(EDM()), seed=3, dtype=F64, **keys, **how)
        exact = settle(sigmas(4.9999, 5.0, 2), want, 2.5, 1, 0.25)
        assert abs(float(x.var()) - exact) < 4 * exact * math.sqrt(2 / n)


def test_annealing_weighs_modes_as_the_data_does() -> None:
    """1/5 at (-5, -5), 4/5 at (5, 5): ten levels 20 .. .1, 100 steps each, delta = .1 sigma_1^2: 78 per cent."""
    data = GaussianMixture([0.2, 0.8], [[-5.0, -5.0], [5.0, 5.0]], [1.0, 1.0])
    how = annealing(EDM(), sigmas(0.1, 20.0, 10), delta=1e-3)
    x = sample(data.denoiser(EDM()), n=400, seed=1, **how)
    share = float((x.sum(1) > 0).float().mean())
    assert abs(share - 0.782) < 4 * math.sqrt(0.782 * 0.218 / 400)
    assert share > 0.508 + 8 * math.sqrt(0.25 / 400)  # what Langevin at one level makes of a broad start


def test_what_is_refused() -> None:
    for bad in ((0.0, 1.0, 3), (2.0, 1.0, 3), (0.1, 1.0, 1)):
        with pytest.raises(ConfigError, match="sigmas"):
            sigmas(*bad)
    for levels in (BOOK.flip(0), torch.tensor([0.0, 1.0]), BOOK[:1]):
        with pytest.raises(ConfigError, match="levels: given"):
            annealing(EDM(), levels, delta=1e-3)
    for delta in (0.0, 0.0201, -1.0):
        with pytest.raises(ConfigError, match=r"delta: given .*\(0, 0.02\), 2 sigma_1\^2"):
            annealing(EDM(), BOOK, delta=delta)
    with pytest.raises(ConfigError):
        Levels(1)
