"""Langevin dynamics and its halves, the family of reverse motions, gauges, and what they do to joint laws."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

import fokker as fk
from fokker import exact, noise
from fokker.calculus import Grid, continuity_residual, divergence_between, fokker_planck_residual
from fokker.classic import Gauged, Motion, split_langevin
from fokker.errors import ConfigError
from fokker.metrics import memorisation
from fokker.process import EDM, OU, VP, Flow, Process
from fokker.solvers import Ancestral, EulerMaruyama, Heun

F64 = torch.float64
ONE = VP(beta_min=1.0, beta_max=1.0)
"""dx = -x/2 dt + dw, the clock of seed 000: alpha^2 = e^{-t}."""
COVS = torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.2, -0.05], [-0.05, 0.4]], [[0.25, 0.0], [0.0, 0.15]]])
LAW = exact.GaussianMixture([0.3, 0.5, 0.2], [[-1.5, 0.5], [1.0, 1.0], [0.5, -1.5]], COVS.double())
POINTS = LAW.sample(6, dtype=F64)
SHARP = exact.GaussianMixture([0.4, 0.6], [[-1.2], [1.0]], [0.09, 0.16])
BROAD = exact.GaussianMixture([0.7, 0.3], [[-0.9], [1.3]], [0.2, 0.1])
LINE = Grid((-9.0,), (9.0,), (3000,))


def score(process: Process) -> Callable[[Tensor, float | Tensor], Tensor]:
    return lambda x, t: LAW.at(process, t).score(x)


def within(values: Tensor, want: float | Tensor, bias: float = 0.0) -> None:
    """The mean of independent rows, at 4 standard errors."""
    assert ((values.mean(0) - want).abs() < 4 * values.std(0) / math.sqrt(len(values)) + bias).all()


@pytest.mark.parametrize(
    ("process", "eta", "rate"),
    [
        (ONE, 1.0, lambda t: 1.0),
        (ONE, 0.0, lambda t: 0.5),
        (EDM(), 0.0, lambda t: t),
        (Flow(), 0.0, lambda t: t / (1 - t)),
    ],
    ids=["VP-SDE", "VP-ODE", "VE-Karras", "rectified flow"],
)
def test_every_row_of_table_3(process: Process, eta: float, rate: Callable[[float], float]) -> None:
    """Seed 000, Table 3; S1: its rectified-flow row has t / (1 + t); S2: the blog's VP-ODE row lacks the noise."""
    t, x = 0.6, POINTS
    s = score(process)(x, t)
    ahead, back = Motion.forward(process, t), Motion.reverse(process, t, eta)
    whole = ahead + back
    torch.testing.assert_close(whole.drift(x, s), rate(t) * s, rtol=0, atol=1e-14)
    assert float(whole.noise2) == pytest.approx(2 * rate(t), abs=1e-14)
    alone = {
        "VP": (-x / 2, (x / 2 + s) if eta else (x + s) / 2),
        "EDM": (0 * x, t * s),
        "Flow": (-x / (1 - t), (t * s + x) / (1 - t)),
    }
    forward, reverse = alone[type(process).__name__]
    torch.testing.assert_close(ahead.drift(x, s), forward, rtol=0, atol=1e-14)
    torch.testing.assert_close(back.drift(x, s), reverse, rtol=0, atol=1e-14)
    if isinstance(process, Flow):
        assert (whole.drift(x, s) - t / (1 + t) * s).abs().max() > 1.0
    assert float(back.noise2) == pytest.approx(2 * rate(t) - float(ahead.noise2), abs=1e-14)
    if isinstance(process, Flow):  # S5: singular where alpha = 0
        assert Motion.forward(process, 1.0).on_x == -math.inf and Motion.reverse(process, 1.0).noise2 == math.inf
    if process is ONE and not eta:
        assert float(back.noise2) == 0.0 and float(whole.noise2) == 1.0  # without the forward half's there is none


@pytest.mark.parametrize("process", [OU(), EDM(), Flow()], ids=lambda p: type(p).__name__)
def test_reverse_is_transport_and_langevin(process: Process) -> None:
    """Eq. (5); and the memoryless drift -2 v - x / (1 - t) of Flow (seed 003: 2 v - x / t on the reversed clock)."""
    t = 0.4
    x, s = POINTS, score(process)(POINTS, t)
    transport = Motion.reverse(process, t, 0.0)
    velocity = LAW.denoiser(process)(x, t).velocity
    torch.testing.assert_close(transport.drift(x, s), -velocity, rtol=1e-12, atol=1e-12)
    assert float(transport.noise2) == 0.0
    for eta in (0.3, 1.0, 2.0):
        both = transport + Motion.langevin(0.5 * eta**2 * process.g2(t))
        whole = Motion.reverse(process, t, eta)
        torch.testing.assert_close(both.drift(x, s), whole.drift(x, s), rtol=1e-13, atol=1e-13)
        assert float(both.noise2) == pytest.approx(float(whole.noise2)) == float(eta**2 * process.g2(t))
    if isinstance(process, Flow):
        torch.testing.assert_close(
            Motion.reverse(process, t).drift(x, s), -2 * velocity - x / (1 - t), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0, 2.0])
def test_the_beta_family_solves_its_equation(eta: float) -> None:
    """d_t q = beta Lap q - div(q ((1 + beta) s + x)), beta = eta^2, q_t = p_{T-t} (seed 004, Eq. 2; S-E3 line 160)."""
    process = OU(3.0)

    def log_q(y: Tensor, u: Tensor) -> Tensor:
        return LAW.at(process, 3.0 - u).log_prob(y)

    def drift(y: Tensor, u: Tensor, sign: float = 1.0) -> Tensor:
        s = score(process)(y, 3.0 - u)
        return Motion.reverse(process, 3.0 - u, eta).drift(y, sign * s)

    def amount(y: Tensor, u: Tensor) -> Tensor:
        return Motion.reverse(process, 3.0 - u, eta).noise2.sqrt()

    when = 2.6
    s = score(process)(POINTS, 0.4)
    torch.testing.assert_close(drift(POINTS, torch.tensor(when)), POINTS + (1 + eta**2) * s, rtol=1e-6, atol=1e-6)
    assert fokker_planck_residual(log_q, drift, amount, POINTS, when).value.abs().max() < 1e-11
    printed = lambda y, u: drift(y, u, -1.0)  # noqa: E731  Lap p = +div(p grad log p), printed with a minus
    assert fokker_planck_residual(log_q, printed, amount, POINTS, when).value.abs().max() > 1.0


def test_langevin_is_the_identity_at_any_time_scale() -> None:
    """Seed 000, Eq. (1), for any rate, even one that varies; the book's drift (lines 2037-2049) keeps p^2 instead."""
    p = LAW.at(OU(), 0.3)
    log_p = lambda x, tau: p.log_prob(x) + 0 * tau  # noqa: E731
    for rate in (
        lambda tau: 0.1 + 0 * tau,
        lambda tau: 40.0 + 0 * tau,
        lambda tau: 1.5 + torch.as_tensor(9 * tau, dtype=F64).sin(),
    ):
        drift = lambda x, tau, r=rate: Motion.langevin(r(tau)).drift(x, p.score(x))  # noqa: E731
        amount = lambda x, tau, r=rate: Motion.langevin(r(tau)).noise2.sqrt()  # noqa: E731
        assert fokker_planck_residual(log_p, drift, amount, POINTS, 0.37).value.abs().max() < 2e-10
    amount = lambda x, tau: Motion.langevin(0.8).noise2.sqrt()  # noqa: E731
    printed = lambda x, tau: 2 * 0.8 * p.score(x)  # noqa: E731
    squared = lambda x, tau: 2 * p.log_prob(x) + 0 * tau  # noqa: E731  its constant does not matter
    assert fokker_planck_residual(squared, printed, amount, POINTS, 0.37).value.abs().max() < 1e-11
    assert fokker_planck_residual(log_p, printed, amount, POINTS, 0.37).value.abs().max() > 1.0
    # and in steps on N(0, 1): variance .504 for the printed drift, 1.004 for the right one
    for push, want in ((2.0, 0.504), (1.0, 1.004)):
        h, x, still = 0.008, torch.ones(1, 1, dtype=F64), torch.zeros(1, 1, dtype=F64)
        gain = float(Motion.langevin().step(x, -push * x, h, still))
        spread = float(Motion.langevin().step(still, still, h, x))
        assert spread**2 / (1 - gain**2) == pytest.approx(want, abs=5e-4)


def test_unadjusted_langevin_by_its_recursion() -> None:
    """On N(0, 1): stationary variance 1 / (1 - h/2), autocorrelation (1 - h)^k (seed 000, S3: never 0)."""
    x = torch.tensor([[1.0], [0.0]], dtype=F64)
    z = torch.tensor([[0.0], [1.0]], dtype=F64)
    gain, spread = Motion.langevin().step(x, -x, 0.2, z).flatten().tolist()
    assert (gain, spread) == pytest.approx((0.8, math.sqrt(0.4)))
    assert spread**2 / (1 - gain**2) == pytest.approx(1.1111, abs=2e-5)
    t = torch.tensor([0.2, 0.4], dtype=F64)  # a time for each row
    moved = Motion.reverse(EDM(), t, 0.5).step(x, x, t, z)
    want = [1 + 0.2 * (0.5 * 1.25 * 0.4), math.sqrt(0.4 * 0.25 * 0.8)]
    assert moved.flatten().tolist() == pytest.approx(want)
    with pytest.raises(ConfigError, match="eta: given -1, must be 0 or more"):
        Motion.reverse(EDM(), 0.5, -1)


def gaussian_chain(
    mean: float, var: float, beta: float, tau: float, T: float = 3.0, at_end: bool = False
) -> tuple[list[tuple[float, float]], float]:
    """(mean, variance) at every rung of Euler-Maruyama on OU from N(0, 1), and the product of the gains.

    `at_end`: starts from p_T itself.
    """
    process, n = OU(T), round(T / tau)
    law = exact.Gaussian([mean], var)
    m, v = (float(law.at(process, T).mean), float(law.at(process, T).cov)) if at_end else (0.0, 1.0)
    probe, unit = torch.tensor([[0.0], [1.0], [0.0]], dtype=F64), torch.tensor([[0.0], [0.0], [1.0]], dtype=F64)
    rungs, whole = [(m, v)], 1.0
    for k in range(n):
        t = T - k * tau
        moved = Motion.reverse(process, t, math.sqrt(beta)).step(probe, law.at(process, t).score(probe), tau, unit)
        shift, one, spread = moved.flatten().tolist()
        gain = one - shift
        m, v, whole = gain * m + shift, gain**2 * v + (spread - shift) ** 2, gain * whole
        rungs.append((m, v))
    return rungs, whole


@pytest.mark.parametrize(
    ("beta", "limit", "coarse"),
    [(0.0, (0.682558, 0.250466), (0.68032, 0.25600)), (1.0, (0.699565, 0.2500003), (0.69875, 0.25964))],
)
def test_the_beta_family_in_closed_form(beta: float, limit: tuple[float, float], coarse: tuple[float, float]) -> None:
    """Seed 004 on N(.7, .25), T = 3: mean m - F mu_T, variance s^2 + F^2 (1 - v_T); Euler-Maruyama at slope 1."""
    m, s2, T = 0.7, 0.25, 3.0
    v_T, mu_T = math.exp(-2 * T) * s2 - math.expm1(-2 * T), math.exp(-T) * m
    F = (s2 / v_T) ** ((1 + beta) / 2) * math.exp(-beta * T)
    want = (m - F * mu_T, s2 + F**2 * (1 - v_T))
    assert want == pytest.approx(limit, abs=6e-7)
    gaps = []
    for tau in (0.04, 0.02, 0.01):
        rungs, whole = gaussian_chain(m, s2, beta, tau)
        gaps.append([abs(a - b) for a, b in zip((*rungs[-1], whole), (*want, F), strict=True)])
    assert rungs[-1] == pytest.approx(coarse, abs=6e-6)
    for k in range(3):
        for one, two in pairwise(gaps):
            assert math.log2(one[k] / two[k]) == pytest.approx(1.0, abs=0.12)


def test_the_family_is_what_the_solver_runs() -> None:
    """Every step of EulerMaruyama(eta) is a step of the motion with its draw."""
    process, eta, n = OU(3.0), math.sqrt(0.5), 4
    times = torch.linspace(3.0, 0.2, 6, dtype=F64)
    start = torch.linspace(-2, 2, n, dtype=F64)[:, None]
    found = fk.trajectory(
        SHARP.denoiser(process), x=start, grid=times, solver=EulerMaruyama(eta=eta), dtype=F64, seed=3
    )[1]
    x = start
    for k, (t, after) in enumerate(pairwise(times.tolist())):
        z = noise.normal(3, torch.arange(n), (1,), draw=k << 8, dtype=F64)
        x = Motion.reverse(process, t, eta).step(x, SHARP.at(process, t).score(x), t - after, z)
        torch.testing.assert_close(found[k + 1], x, rtol=1e-12, atol=1e-12)


def test_the_duality_ladder() -> None:
    """From p_T down, q is p_{T-t} at every rung, with slope 1 in the step (seed 000, Fig. 7)."""
    law, worst = exact.Gaussian([2.0], 0.25), []
    for tau in (0.04, 0.02, 0.01):
        rungs, _ = gaussian_chain(2.0, 0.25, 1.0, tau, at_end=True)
        levels = [3.0 - k * tau for k in range(len(rungs))]
        gaps = [
            max(abs(m - float(law.at(OU(3.0), max(t, 0.0)).mean)), abs(v - float(law.at(OU(3.0), max(t, 0.0)).cov)))
            for t, (m, v) in zip(levels, rungs, strict=True)
        ]
        worst.append(max(gaps))
    assert worst[-1] < 0.02
    for one, two in pairwise(worst):
        assert math.log2(one / two) == pytest.approx(1.0, abs=0.1)


def test_one_turn_by_hand() -> None:
    """x -> the forward kernel to t -> Euler's reverse step to s, with the stated draws; indices are samples."""
    process, s, t = VP(), 0.3, 0.35
    x, index = LAW.at(process, s).sample(5, dtype=F64), torch.tensor([7, 3, 0, 11, 5])
    found = split_langevin(LAW.denoiser(process), x, s, t, repeats=2, seed=4, indices=index)
    assert found.shape == (3, 5, 2) and torch.equal(found[0], x)
    want, (scale, std) = x, process.transition(s, t)
    for k in (0, 2):
        z, w = (noise.normal(4, index, (2,), draw=(k + j) << 8, domain="langevin", dtype=F64) for j in (0, 1))
        up = scale * want + std * z
        want = Motion.reverse(process, t).step(up, score(process)(up, t), t - s, w)
        torch.testing.assert_close(found[1 + k // 2], want, rtol=1e-12, atol=1e-12)
    by_flow = split_langevin(LAW.denoiser(process), x, s, 0.6, solver="heun", steps=3, seed=4, indices=index)[1]
    scale, std = process.transition(s, 0.6)
    up = scale * x + std * noise.normal(4, index, (2,), domain="langevin", dtype=F64)
    grid = torch.linspace(0.6, s, 4, dtype=F64)
    torch.testing.assert_close(by_flow, fk.sample(LAW.denoiser(process), x=up, solver="heun", grid=grid, dtype=F64))
    alone = split_langevin(LAW.denoiser(process), x[1:2], s, t, seed=4, indices=[3])
    torch.testing.assert_close(alone[1], found[1, 1:2])


@pytest.mark.parametrize("process", [EDM(), Flow()], ids=lambda p: type(p).__name__)
def test_states_of_a_sampler_do_not_meet_their_noise_again(process: Process) -> None:
    """Ancestral draws for N(0, 1), which ten steps give the variance .65, after a turn of the same seed."""
    denoiser, n, s, t = exact.Gaussian([0.0], 1.0).denoiser(process), 20_000, process.t_min, 0.5 * min(2.0, process.T)
    x = fk.sample(denoiser, n=n, seed=0, steps=10, solver="ancestral", final="t_min", dtype=F64)
    end = split_langevin(denoiser, x, s, t, steps=9, seed=0)[1]
    scale, std = (float(c) for c in process.transition(s, t))
    want, h = scale**2 * float(x.var()) + std**2, (t - s) / 9
    for k in range(9):
        motion, law = Motion.reverse(process, t - k * h), exact.Gaussian([0.0], 1.0).at(process, t - k * h)
        gain = 1 + h * float(motion.on_x - motion.on_score / law.cov)
        want = gain**2 * want + h * float(motion.noise2)
    assert float(end.var()) == pytest.approx(want, rel=4 * math.sqrt(2 / n))  # with its noise again .5 more


def test_turns_under_a_condition() -> None:
    """The condition reaches the denoiser: samples of one mode stay a sample of it, also where modes touch."""
    process, s, n = VP(), 0.25, 1500
    two = exact.GaussianMixture([0.5, 0.5], [[-0.6], [0.6]], [0.1, 0.2], labels=torch.tensor([0, 1]))
    law = two.given(1).at(process, s)
    x = law.sample(n, dtype=F64)
    end = split_langevin(two.denoiser(process), x, s, 0.27, repeats=10, cond=1, steps=2)[-1]
    within(end, law.mean, 0.01)
    within((end - law.mean).square(), law.cov[0], 0.01)
    free = split_langevin(two.denoiser(process), x, s, 0.27, repeats=10, steps=2)[-1]
    assert float(law.mean) - float(free.mean()) > 0.05


def test_the_halves_cancel_to_second_order() -> None:
    """S4: forward exactly, then one reverse step, changes the variance by O(h^2); score at s: the same, other sign."""
    process, law, s = ONE, exact.Gaussian([0.0], 0.25), 0.2
    here = float(law.at(process, s).cov)
    changes: dict[str, list[float]] = {"t": [], "s": []}
    for h in (0.02, 0.01, 0.005, 0.0025):
        scale, std = (float(c) for c in process.transition(s, s + h))
        up = scale**2 * here + std**2
        for name, level in (("t", s + h), ("s", s)):
            x = torch.ones(1, 1, dtype=F64)
            gain = float(Motion.reverse(process, level).step(x, law.at(process, level).score(x), h, 0 * x))
            changes[name].append(gain**2 * up + h - here)
    for found in changes.values():
        for one, two in pairwise(found):
            assert math.log2(one / two) == pytest.approx(2.0, abs=0.12)
    assert all(a > 0 > b for a, b in zip(changes["t"], changes["s"], strict=True))


@pytest.mark.parametrize(
    ("solver", "steps", "s", "t", "turns"),
    [(None, 1, 0.3, 0.31, 8), ("heun", 4, 0.3, 0.45, 8), (Ancestral(), 60, 0.0, 0.3, 2)],
    ids=["reverse SDE", "flow", "data"],
)
def test_turns_keep_the_law_and_renew_the_sample(solver: object, steps: int, s: float, t: float, turns: int) -> None:
    process, n = VP(), 3000
    law = LAW.at(process, s)
    x = law.sample(n, dtype=F64)
    end = split_langevin(
        LAW.denoiser(process),
        x,
        s,
        t,
        repeats=turns,
        solver=solver,
        steps=steps,
        seed=5,  # type: ignore[arg-type]
    )[-1]
    bias = 0.02
    within(end, law.mean, bias)
    cov = (end - law.mean)[:, :, None] * (end - law.mean)[:, None, :]
    within(cov, law.cov, bias)
    log_p = law.log_prob(end)
    entropy = law.log_prob(law.sample(20_000, seed=9, dtype=F64)).mean()
    within(log_p, entropy, 0.02)
    assert float((end - x).norm(dim=1).median()) > 0.3
    together = torch.corrcoef(torch.stack([x[:, 0], end[:, 0]]))[0, 1]
    assert together < (0.97 if solver is None else 0.9)


def test_a_turn_is_as_long_as_langevin_says() -> None:
    """On N(0, 1) under VP, p_s = N(0, 1): the start is forgotten by e^{-rate h} a turn, rate (g^2 + gamma^2) / 2."""
    process, s, h = ONE, 0.5, 0.02
    for eta in (0.0, 1.0):
        x = torch.tensor([[1.0], [0.0]], dtype=F64)
        found = split_langevin(
            exact.Gaussian([0.0], 1.0).denoiser(process),
            x, s, s + h, solver=EulerMaruyama(eta=eta), indices=[0, 0], repeats=5,
        )  # fmt: skip
        kept = float(found[-1, 0] - found[-1, 1])
        assert kept == pytest.approx(math.exp(-0.5 * (1 + eta**2) * h * 5), abs=3 * h**2)


def test_what_cannot_be_split() -> None:
    denoiser, x = LAW.denoiser(Flow()), POINTS
    for s, t in ((0.5, 0.5), (0.6, 0.2), (0.5, 1.2), (-0.1, 0.5)):
        with pytest.raises(ConfigError, match="must be 0 <= s < t <= 1"):
            split_langevin(denoiser, x, s, t)
    with pytest.raises(ConfigError, match="singular at time 1"):
        split_langevin(denoiser, x, 0.5, 1.0)
    with pytest.raises(ConfigError, match="indices: given 2 for 6 states"):
        split_langevin(denoiser, x, 0.5, 0.6, indices=[0, 1])
    with pytest.raises(ConfigError, match="repeats: given 0, must be at least 1"):
        split_langevin(denoiser, x, 0.5, 0.6, repeats=0)
    with pytest.raises(ConfigError, match="steps: given 0"):
        split_langevin(denoiser, x, 0.5, 0.6, steps=0)
    with pytest.raises(ConfigError, match="which runs in a way of its own"):
        split_langevin(denoiser, x, 0.5, 0.6, solver="picard")


# Divergences along the forward process.


def test_kl_to_the_normal_decays_at_least_as_fast_as_data_is_forgotten() -> None:
    """KL(p_t, N) <= alpha^2 KL(p_0, N): e^{-2t} on OU, e^{-t} on the clock of seed 000; equal where p is shifted."""
    normal = exact.Gaussian([0.0], 1.0)
    for process, rate in ((OU(), 2.0), (ONE, 1.0)):
        kl = [float(divergence_between(SHARP.at(process, t), normal, grid=LINE).value) for t in (0.0, 0.2, 0.5, 0.9)]
        for t, value in zip((0.2, 0.5, 0.9), kl[1:], strict=True):
            assert value < math.exp(-rate * t) * kl[0]
        assert all(a > b for a, b in pairwise(kl))
        moved = exact.Gaussian([1.7], 1.0).at(process, 0.4)
        assert float(divergence_between(moved, normal).value) == pytest.approx(math.exp(-rate * 0.4) * 1.7**2 / 2)
    assert (
        float(divergence_between(exact.Gaussian([1.7], 1.0).at(ONE, 0.4), normal).value) > math.exp(-0.8) * 1.7**2 / 2
    )


@pytest.mark.parametrize("process", [OU(20.0), EDM(), Flow()], ids=lambda p: type(p).__name__)
def test_time_distributed_likelihood(process: Process) -> None:
    """Seed 000, Eqs. (14) to (17): int_0^t g^2/2 Fisher(p_u, q_u) du = KL(p_0, q_0) - KL(p_t, q_t), in any clock."""
    end = {"OU": 2.0, "EDM": 2.0, "Flow": 0.8}[type(process).__name__]
    marginals = lambda u: (SHARP.at(process, u), BROAD.at(process, u))  # noqa: E731
    grid, total = Grid((-16.0,), (16.0,), (2400,)), 0.0
    for node, weight in zip(*np.polynomial.legendre.leggauss(30), strict=True):
        v = 0.5 * (float(node) + 1)  # u = end v^2: the clean end is where things happen
        fisher = divergence_between(*marginals(end * v**2), "fisher", grid=grid).value
        total += float(weight) * end * v * 0.5 * float(process.g2(end * v**2)) * float(fisher)
    first, last = (float(divergence_between(*marginals(u), grid=grid).value) for u in (0.0, end))
    assert total == pytest.approx(first - last, abs=2e-9)


@pytest.mark.parametrize(
    ("process", "reading", "weight"),
    [(ONE, "score", lambda t: 0.5), (EDM(), "noise", lambda t: 1 / t), (Flow(), "velocity", lambda t: (1 - t) / t)],
    ids=["VP", "VE-Karras", "rectified flow"],
)
def test_table_6_weights(process: Process, reading: str, weight: Callable[[float], float]) -> None:
    """g^2/2 |grad log p(x_t | x_0) - s|^2 = 1/2, 1/sigma and (1-s)/s times the squared error of the output."""
    t, x0, eps = 0.3, POINTS, noise.normal(1, torch.arange(6), (2,), dtype=F64)
    x = process.perturb(x0, t, eps)
    p = BROAD_PLANE.denoiser(process)(x, t)
    target = {
        "score": -eps / process.sigma(t),
        "noise": eps,
        "velocity": process.d_alpha(t) * x0 + process.d_sigma(t) * eps,
    }
    by_score = 0.5 * process.g2(t) * (p.score + eps / process.sigma(t)).square().sum(1)
    by_output = weight(t) * (p.read(reading) - target[reading]).square().sum(1)
    torch.testing.assert_close(by_score, by_output, rtol=1e-11, atol=1e-12)


def test_without_its_weight_rectified_flows_loss_is_no_kl() -> None:
    """S11: int (1-s)/s E|v - v_q|^2 ds = KL(p, q) of the SDEs' data; unweighted it is 0 where that is, and no more."""
    process, p, found = Flow(), exact.Gaussian([0.4], 0.3), []
    z, mass = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(4))  # v is affine in x
    for mean, var in ((0.9, 0.3), (0.4, 0.1), (-0.2, 0.6), (0.4, 0.3)):
        q, weighted, plain = exact.Gaussian([mean], var), 0.0, 0.0
        for node, weight in zip(*np.polynomial.legendre.leggauss(24), strict=True):
            s = 0.5 * (float(node) + 1.0)
            here = p.at(process, s)
            x = here.mean + here.cov.sqrt() * z[:, None]
            off = p.denoiser(process)(x, s).velocity - q.denoiser(process)(x, s).velocity
            error = 0.5 * float(weight) * float(mass @ off.square()[:, 0] / mass.sum())
            weighted, plain = weighted + (1.0 - s) / s * error, plain + error
        kl = float(divergence_between(p, q).value)
        assert weighted == pytest.approx(kl, rel=1e-6, abs=1e-20)
        found.append((kl, plain))
    (moved, plain_moved), (narrow, plain_narrow), (_, plain_both), same = found
    assert [plain_moved, plain_narrow, plain_both] == pytest.approx([0.3585, 0.1331, 0.4172], abs=1e-4)
    assert moved < narrow and plain_moved > 2.0 * plain_narrow  # it would even choose the other model
    assert same == pytest.approx((0.0, 0.0), abs=1e-20)


BROAD_PLANE = exact.Gaussian([0.2, -0.4], 0.7)


def test_a_free_network_has_a_bound_and_no_equality() -> None:
    """S7: p_0 = N(0, 1), s = -1.2 x, T = 5: KL .0317 by the SDE, its bound .1000; the flow has no such bound, .359."""
    T, h = 5.0, 1e-3
    ends = []
    for eta in (1.0, 0.0):
        v = 1.0
        for _ in range(round(T / h)):
            motion = Motion.reverse(ONE, 0.5, eta)  # of constant coefficients
            gain = 1 + h * float(motion.on_x - 1.2 * motion.on_score)
            v = gain**2 * v + h * float(motion.noise2)
        ends.append(0.5 * (1 / v - 1 + math.log(v)))
    bound = 0.5 * T * 0.2**2
    assert ends[0] == pytest.approx(0.0317, abs=1e-4) and bound == pytest.approx(0.1)
    assert ends[0] < bound < ends[1] == pytest.approx(0.359, abs=1e-3)


def test_the_denoising_loss_has_a_plus_and_grows_without_weight() -> None:
    """Seed 004 on N(m, .25): S-E4 (lines 322, 326), S-E6: the irreducible part is about 1 / (2t)."""
    process, law, n = OU(), exact.Gaussian([0.7], 0.25), 40_000

    def losses(t: float, sign: float) -> tuple[Tensor, Tensor]:
        x0, z = law.sample(n, dtype=F64), noise.normal(8, torch.arange(n), (1,), dtype=F64)
        x, sigma = process.perturb(x0, t, z), process.sigma(t)
        s = law.at(process, t).score(x)
        return (s + sign * z / sigma).square(), (-s + sign * z / sigma).square()

    right, wrong = losses(0.5, 1.0)
    within(right, 0.201, 1e-3)
    within(wrong, 0.201 + 4 / 0.7241, 2e-2)
    swapped = losses(0.5, -1.0)
    assert swapped[0].mean() > 5 > 1 > swapped[1].mean()  # the printed loss is minimised by -score
    v = float(law.at(process, 1e-3).cov)
    least = math.exp(-2e-3) * 0.25 / (float(process.sigma(1e-3)) ** 2 * v)
    assert least == pytest.approx(496.5, abs=0.3)
    within(losses(1e-3, 1.0)[0], least)


# One marginal, many dynamics.


def test_three_conditionals_and_one_marginal() -> None:
    """Book Sec. 4.1.5: the kernel, the flow's image, and either by a coin, have the law p_t; correlations tell."""
    process, t, n = VP(), 0.4, 8000
    x0 = SHARP.sample(n, dtype=F64)
    kernel = process.perturb(x0, t, noise.normal(2, torch.arange(n), (1,), dtype=F64))
    image = SHARP.flow_map(process, x0, 0.0, t)
    coin = noise.uniform(3, torch.arange(n), (1,), dtype=F64) < 0.3
    # F_t through the flow map to a standard normal and ndtr: uniform if x_t ~ p_t
    spread = math.sqrt(float(SHARP.cov))
    a, b = float(process.alpha(t)), float(process.sigma(t))
    by_kernel = a * spread / math.sqrt(a**2 * spread**2 + b**2)
    kept = []
    for x in (kernel, image, torch.where(coin, kernel, image)):
        means, sds = a * SHARP.means.value[:, 0], (a**2 * torch.tensor([0.09, 0.16]).double() + b**2).sqrt()
        u = (torch.tensor([0.4, 0.6]).double() * torch.special.ndtr((x - means) / sds)).sum(1).sort().values
        ranks = (torch.arange(n) + 0.5) / n
        assert (u - ranks).abs().max() < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov at .001
        kept.append(float(torch.corrcoef(torch.cat([x0, x], 1).T)[0, 1]))
    assert kept[0] == pytest.approx(by_kernel, abs=4 / math.sqrt(n))
    assert kept[1] > 0.93 and kept[0] + 0.1 < kept[2] < kept[1] - 0.02
    assert kept[2] == pytest.approx(0.3 * kept[0] + 0.7 * kept[1], abs=0.02)


def test_the_joint_law_tells_the_dynamics_apart() -> None:
    """corr(x_0, x_T) on a Gaussian: F sqrt(v_T) / s, so that eta = 1 alone has the forward process's joint law."""
    s2, T = 0.25, 1.0
    v_T = math.exp(-2 * T) * s2 - math.expm1(-2 * T)
    forward = math.exp(-T) * math.sqrt(s2 / v_T)
    found = []
    for beta in (0.0, 0.5, 1.0, 2.0):
        want = (s2 / v_T) ** (beta / 2) * math.exp(-beta * T)
        rungs, gain = gaussian_chain(0.7, s2, beta, 0.0025, T, at_end=True)
        found.append(gain * math.sqrt(v_T / rungs[-1][1]))
        assert found[-1] == pytest.approx(want, abs=4e-3)
        assert rungs[-1] == pytest.approx((0.7, s2), abs=8e-3)
    assert found[0] == pytest.approx(1.0, abs=1e-12) and found[2] == pytest.approx(forward, abs=3e-3)
    assert all(a > b + 0.05 for a, b in pairwise(found))


TURN = torch.tensor([[0.0, 1.5], [-1.5, 0.0]], dtype=F64)


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: type(p).__name__)
def test_gauged_denoisers_have_the_same_marginals(process: Process) -> None:
    plain, t = LAW.denoiser(process), 0.4
    turned = Gauged(plain, TURN)
    log_p = lambda x, t: LAW.at(process, t).log_prob(x)  # noqa: E731
    for denoiser in (plain, turned):
        velocity = lambda x, t, d=denoiser: d(x, t).velocity  # noqa: E731
        assert continuity_residual(log_p, velocity, POINTS, t).value.abs().max() < 1e-10
    s = score(process)(POINTS, t)
    p = turned(POINTS, t)
    torch.testing.assert_close(p.velocity, plain(POINTS, t).velocity - 0.5 * process.g2(t) * s @ TURN.T)
    torch.testing.assert_close(process.alpha(t) * p.x0 + process.sigma(t) * p.noise, POINTS)
    # an unsymmetric matrix would not do, whatever it is called
    velocity = lambda x, t: plain(x, t).velocity + LAW.at(process, t).score(x) @ TURN.abs()  # noqa: E731
    assert continuity_residual(log_p, velocity, POINTS, t).value.abs().max() > 0.1


def test_gauged_flows_have_the_same_likelihood_and_other_couplings() -> None:
    process, n = VP(), 1000
    plain = LAW.denoiser(process)
    turned = Gauged(plain, TURN)
    x, found = LAW.sample(4, seed=3, dtype=F64), []
    for denoiser in (plain, turned):
        said = fk.log_prob(denoiser, x)
        prior = exact.Gaussian([0.0, 0.0], 1.0).log_prob(said.latent)  # which p_T is not quite, at another latent
        found.append((said.value - prior + LAW.at(process, process.T).log_prob(said.latent), said.latent))
    torch.testing.assert_close(found[0][0], LAW.at(process, process.t_min).log_prob(x), rtol=0, atol=2e-5)
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0, atol=2e-4)
    assert (found[1][1] - found[0][1]).norm(dim=1).min() > 0.1
    ends = [fk.sample(d, n=n, solver=Heun("lam"), steps=50, grid="lam", seed=1, dtype=F64) for d in (plain, turned)]
    for end in ends:
        within(end, LAW.mean, 0.01)
        within((end - LAW.mean)[:, :, None] * (end - LAW.mean)[:, None, :], LAW.cov, 0.02)
    assert float((ends[0] - ends[1]).norm(dim=1).median()) > 0.5
    noisy = fk.sample(turned, n=n, solver=EulerMaruyama(), steps=150, grid="lam", seed=1, dtype=F64)
    within(noisy, LAW.mean, 0.02)
    within((noisy - LAW.mean)[:, :, None] * (noisy - LAW.mean)[:, None, :], LAW.cov, 0.05)
    # E|v + w|^2 = E|v|^2 + E|w|^2: a gauge only costs
    x = LAW.at(process, 0.4).sample(20_000, dtype=F64)
    v, w = plain(x, 0.4).velocity, turned(x, 0.4).velocity - plain(x, 0.4).velocity
    within((v * w).sum(1), 0.0)
    assert w.square().sum(1).mean() > 1.0


def test_gauged_starts_where_it_can_and_refuses_other_matrices() -> None:
    turned = Gauged(LAW.denoiser(Flow()), TURN)
    assert turned.lam_range[0] == pytest.approx(float(Flow().lam(Flow().t_max)))
    assert bool(torch.isfinite(fk.sample(turned, n=2, solver="heun", steps=8)).all())
    pictures = exact.Empirical(noise.normal(0, torch.arange(5), (1, 2, 2)))  # type: ignore[arg-type]
    A = torch.arange(16, dtype=F64).reshape(4, 4)
    A = A - A.T
    x = noise.normal(1, torch.arange(3), (1, 2, 2))
    plain, p = pictures.denoiser(VP())(x, 0.4), Gauged(pictures.denoiser(VP()), A)(x, 0.4)
    want = plain.noise.flatten(1) + torch.einsum("ij,bj->bi", A.float(), plain.noise.flatten(1))
    assert p.noise.dtype == torch.float32 and p.x0.shape == x.shape
    torch.testing.assert_close(p.noise.flatten(1), want)
    for bad in (TURN.abs(), torch.zeros(3, 3)):
        with pytest.raises(ConfigError, match=r"matrix: given shape .*must be \(2, 2\) with A\^T = -A"):
            Gauged(LAW.denoiser(Flow()), bad)


# No sample is un-noised.


def test_noise_is_not_undone_but_an_encoding_is() -> None:
    """Seed 004, Sec. 5: the way up by noise and down by the flow ends elsewhere; up and down by the flow comes back."""
    process, n = OU(3.0), 400
    denoiser, x = LAW.denoiser(process), LAW.sample(n, dtype=F64)
    noisy = process.perturb(x, 3.0, noise.normal(4, torch.arange(n), (2,), dtype=F64))
    back = fk.sample(denoiser, x=noisy, solver=Heun(), grid=torch.linspace(3.0, 0.0, 41, dtype=F64), dtype=F64)
    assert float((back - x).norm(dim=1).median()) > 1.0
    within(back, LAW.mean, 0.02)  # yet a sample of the same law
    missed = []
    for steps in (20, 40, 80):
        times = torch.linspace(0.1, 3.0, steps + 1, dtype=F64)
        code = fk.encode(denoiser, x, solver=Heun(), grid=times)
        home = fk.sample(denoiser, x=code, solver=Heun(), grid=times.flip(0), dtype=F64)
        missed.append(float((home - x).norm(dim=1).mean()))
    assert missed[-1] < 2e-3
    for one, two in pairwise(missed):
        assert math.log2(one / two) > 1.8


def test_the_exact_empirical_score_memorises() -> None:
    """Seed 004, Sec. 4.4: samples of the data set's own exact dynamics are its points; those of the law are new."""
    rows = LAW.sample(300, seed=1, dtype=F64)
    train, held_out = rows[:150], rows[150:]
    found = [
        memorisation(fk.sample(d, n=200, solver=EulerMaruyama(), steps=120, grid="lam", dtype=F64), train, held_out)
        for d in (exact.Empirical(train).denoiser(VP()), LAW.denoiser(VP()))  # type: ignore[arg-type]
    ]
    assert found[0].copied > 0.95 and abs(found[1].copied) < 0.1
    assert found[0].nearness > 0.95 and abs(found[1].nearness - 0.5) < 0.1
