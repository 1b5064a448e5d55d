"""DDIM: four forms, the Gaussian multiplier, what it equals and what it does not, and the book's errata."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from fokker.errors import ConfigError
from fokker.process import EDM, OU, VE, VP, Cosine, DiscreteVP, Flow, Process, SubVP, Trig
from fokker.solvers import DDIM, Ancestral, Euler, UniformLam
from fokker.solvers.ddim import ddim_coefficients

from .oracle import F64, Oracle, execute, gaussian, gaussian_map, law, mixture, quantile_starts, slopes

PROCESSES = [VP(), SubVP(), VE(), EDM(), Flow(), Trig(), Cosine(), OU(), DiscreteVP(steps=100)]
INNER = [(0.9, 0.7), (0.6, 0.2), (0.3, 0.05)]  # fractions of T


def times(process: Process, pair: tuple[float, float]) -> Tensor:
    return torch.tensor(pair, dtype=F64) * process.T


def close(got: Tensor, want: Tensor, tol: float = 1e-14) -> None:
    assert float(((got - want).abs() / (1.0 + want.abs())).max()) < tol


@pytest.mark.parametrize("pair", INNER, ids=str)
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_the_four_forms_agree(process: Process, pair: tuple[float, float]) -> None:
    oracle, st = mixture(process), times(process, pair)
    s, t = st
    x = quantile_starts(oracle, float(s))
    got = execute(DDIM().plan(process, st), oracle, x)
    x0, eps = oracle.pair(x, float(s))
    a_s, a_t, sig_s, sig_t = process.alpha(s), process.alpha(t), process.sigma(s), process.sigma(t)
    score = -eps / sig_s
    tol = 4e-14  # of 1 + |x|: a few roundings of the largest term
    close(got, a_t * x0 + sig_t * eps, tol)
    close(got, a_t / a_s * x - a_t * (sig_s / a_s - sig_t / a_t) * eps, tol)
    close(got, sig_t / sig_s * x + a_s * (a_t / a_s - sig_t / sig_s) * x0, tol)
    close(got, a_t / a_s * x + sig_s**2 * (a_t / a_s - sig_t / sig_s) * score, tol)
    close(execute(Euler(space="rho").plan(process, st), oracle, x), got, tol)


@pytest.mark.parametrize("pair", INNER, ids=str)
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("backwards", [False, True], ids=["sample", "encode"])
def test_multiplier_on_a_gaussian(process: Process, pair: tuple[float, float], backwards: bool) -> None:
    """(alpha_t alpha_s v + sigma_t sigma_s) / (alpha_s^2 v + sigma_s^2), towards the data and towards the noise."""
    v = 0.25
    oracle, st = gaussian(process, 0.0, v), times(process, pair)
    st = st.flip(0) if backwards else st
    (s, t), x = st, torch.ones(1, 1, dtype=F64)
    a_s, a_t, sig_s, sig_t = process.alpha(s), process.alpha(t), process.sigma(s), process.sigma(t)
    want = (a_t * a_s * v + sig_t * sig_s) / (a_s**2 * v + sig_s**2)
    close(execute(DDIM().plan(process, st), oracle, x), want.reshape(1, 1))
    assert float(want) <= math.sqrt(float((a_t**2 * v + sig_t**2) / (a_s**2 * v + sig_s**2)))


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_point_mass_is_exact_in_one_step(process: Process) -> None:
    """Also where alpha(T) = 0, to 0, and on the way out."""
    oracle = gaussian(process, 0.7, 0.0)
    noise = torch.linspace(-2, 2, 5, dtype=F64)[:, None]
    T = process.T
    for s, t in itertools.product((1.0, 0.5, 0.05), (0.8, 0.3, 0.01, 0.0)):
        if t >= s:
            continue
        start, end = process.alpha(s * T) * 0.7 + process.sigma(s * T) * noise, process.alpha(t * T) * 0.7
        end = end + process.sigma(t * T) * noise
        close(execute(DDIM().plan(process, times(process, (s, t))), oracle, start), end, 1e-13)
        if t > 0.0:
            close(execute(DDIM().plan(process, times(process, (t, s))), oracle, end), start, 1e-12)


def test_euler_in_t_is_ddim_only_where_alpha_and_sigma_are_affine() -> None:
    gaps: dict[str, list[float]] = {}
    for process in (Flow(), EDM(), VP(), Trig()):
        oracle = mixture(process)
        for h in (0.4, 0.2, 0.1):
            st = times(process, (0.9, 0.9 - h))
            x = quantile_starts(oracle, float(st[0]))
            gap = execute(Euler().plan(process, st), oracle, x) - execute(DDIM().plan(process, st), oracle, x)
            gaps.setdefault(type(process).__name__, []).append(float(gap.square().mean().sqrt() / process.T))
    assert max(gaps["Flow"] + gaps["EDM"]) < 1e-15
    assert gaps["VP"] == pytest.approx([7.28e-2, 1.011e-2, 1.988e-3], rel=2e-3)
    assert gaps["Trig"] == pytest.approx([0.25980, 6.677e-2, 1.6822e-2], rel=2e-3)
    assert slopes(gaps["Trig"]) == pytest.approx([2.0, 2.0], abs=0.05)  # a local gap of second order


def test_euler_in_lam_is_nobodys_ddim() -> None:
    for process in (Flow(), EDM(), VP(), Trig()):
        oracle, st = mixture(process), times(process, (0.6, 0.4))
        x = quantile_starts(oracle, float(st[0]))
        gap = execute(Euler(space="lam").plan(process, st), oracle, x) - execute(DDIM().plan(process, st), oracle, x)
        assert float(gap.abs().max() / process.sigma(st[0])) > 2e-3


@pytest.mark.parametrize("process", [VP(), EDM(), Flow(), Trig()], ids=lambda p: type(p).__name__)
def test_the_conditional_step_is_a_semigroup_and_the_marginal_one_is_not(process: Process) -> None:
    x = process.sigma(0.8 * process.T) * torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    whole, halves = times(process, (0.8, 0.2)), torch.tensor([0.8, 0.5, 0.2], dtype=F64) * process.T
    for oracle, semigroup in ((gaussian(process, 0.7, 0.0), True), (mixture(process), False)):
        one, two = (execute(DDIM().plan(process, grid), oracle, x) for grid in (whole, halves))
        gap = float((one - two).abs().max() / process.sigma(0.8 * process.T))
        assert gap < 1e-14 if semigroup else gap > 1e-3 * (0.1 if isinstance(process, EDM) else 1.0)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_eta_1_is_ancestral_and_every_eta_keeps_the_marginals_of_the_true_x0(process: Process) -> None:
    grid = torch.linspace(0.95, 0.02, 12, dtype=F64) * process.T
    s, t = grid[:-1], grid[1:]
    a_s, a_t, sig_s, sig_t = process.alpha(s), process.alpha(t), process.sigma(s), process.sigma(t)
    for eta in (0.0, 0.3, 0.5, 1.0):
        b, on_x0, c = ddim_coefficients(process, s, t, eta)
        close(on_x0 + b * a_s, a_t)
        close((b * sig_s) ** 2 + c**2, sig_t**2)
        # Bayes: the posterior precision of x_t given x_s and x0 is 1 / sigma_t^2 + k^2 / sigma_{s|t}^2
        k = a_s / a_t
        var = sig_s**2 - k**2 * sig_t**2
        close(c, eta / (1 / sig_t**2 + k**2 / var).sqrt(), 2e-13)
    plans = [solver.plan(process, grid) for solver in (DDIM(eta=1.0), Ancestral())]
    for one, two in zip(plans[0].steps, plans[1].steps, strict=True):
        assert [register for register, _ in one.out] == [register for register, _ in two.out]
        close(torch.tensor([c for _, c in one.out], dtype=F64), torch.tensor([c for _, c in two.out], dtype=F64), 2e-13)


def test_the_books_swapped_indices_fail() -> None:
    """Eq. 9.2.9-9.2.10 print sigma_{t|s}^2 = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2 with t < s: -4.01."""
    vp, s, t = VP(), torch.tensor(0.5, dtype=F64), torch.tensor(0.3, dtype=F64)
    a_s, a_t, v_s, v_t = vp.alpha(s), vp.alpha(t), vp.sigma(s) ** 2, vp.sigma(t) ** 2
    printed = float(v_t - (a_t / a_s) ** 2 * v_s)
    right = v_s - (a_s / a_t) ** 2 * v_t
    assert printed == pytest.approx(-4.01, abs=0.005)
    assert float(v_s / v_t * right) == pytest.approx(1.22, abs=0.005) and float(v_t) == pytest.approx(0.60, abs=0.005)
    assert float(ddim_coefficients(vp, s, t, 1.0)[2] ** 2) == pytest.approx(0.5247, abs=5e-5)
    assert float(ddim_coefficients(vp, s, t, 0.5)[2] ** 2) == pytest.approx(0.25 * float(v_t / v_s * right), abs=1e-14)


def test_eq_9_2_4_has_plus_noise_for_the_velocity() -> None:
    """alpha = 1, sigma = t: x_t = x_s + (t - s) v with v = +eps; the printed -eps steps away from x0."""
    edm, st = EDM(), torch.tensor([2.0, 0.5], dtype=F64)
    oracle, x = gaussian(edm, 0.3, 0.25), torch.tensor([[3.0]], dtype=F64)
    p = oracle(x, 2.0)
    got = execute(DDIM().plan(edm, st), oracle, x)
    close(p.velocity, p.noise)
    close(got, x + (0.5 - 2.0) * p.noise)
    close(got - p.x0, 0.25 * (x - p.x0))  # a contraction by t / s
    assert float((x + (0.5 - 2.0) * -p.noise - p.x0).abs()) > float((x - p.x0).abs())


def test_variance_on_a_gaussian_under_disperses_by_the_known_amounts() -> None:
    vp, oracle = VP(), gaussian(VP(), 0.0, 0.25)
    (_, v_T), (_, want) = oracle.moments(1.0), oracle.moments(1e-3)
    for eta, printed in (
        (0.0, [-0.139, -0.072, -0.037, -0.0185, -0.0093]),
        (1.0, [-0.248, -0.136, -0.071, -0.037, -0.0185]),
    ):
        got = []
        for n in (32, 64, 128, 256, 512):
            plan = DDIM(eta=eta).plan(vp, UniformLam().times(vp, n, 1.0, 1e-3, False))
            got.append(law(plan, oracle, 0.0, float(v_T[0]))[1] / float(want[0]) - 1.0)
        assert got == pytest.approx(printed, abs=7e-4, rel=0.02)


def test_ten_uniform_angles_on_trig() -> None:
    """v = 1 on the circle: each step multiplies by cos(angle), the exact map by 1."""
    trig, oracle = Trig(), gaussian(Trig(), 0.0, 1.0)
    grid = torch.linspace(1.0, 0.0, 11, dtype=F64)
    got = execute(DDIM().plan(trig, grid), oracle, torch.ones(1, 1, dtype=F64))
    assert float(got) == pytest.approx(math.cos(math.pi / 20) ** 10, abs=1e-14)
    assert float(got) == pytest.approx(0.8835, abs=5e-5)
    assert float(gaussian_map(oracle, torch.ones(1, 1, dtype=F64), 1.0, 0.5)) == pytest.approx(1.0, abs=1e-15)


def test_encoding_and_refusals() -> None:
    flow = Flow()
    oracle: Oracle = gaussian(flow, 0.0, 0.25)
    up = torch.tensor([0.1, 0.5, 1.0], dtype=F64)
    outward = DDIM().plan(flow, up)
    assert [stage.reading for step in outward.steps for stage in step.stages] == ["noise", "noise"]
    assert [stage.time for step in outward.steps for stage in step.stages] == [0.1, 0.5]
    assert outward.times == (0.1, 0.5, 1.0)
    assert torch.isfinite(execute(DDIM().plan(flow, up), oracle, torch.ones(2, 1, dtype=F64))).all()
    with pytest.raises(ConfigError, match="stochastic"):
        DDIM(eta=0.5).plan(flow, up)
    for eta in (-0.1, 1.1):
        with pytest.raises(ConfigError, match="eta"):
            DDIM(eta=eta)
    assert DDIM(eta=0.0).order == DDIM(eta=0.5).order == 1
    assert not DDIM().stochastic and DDIM(eta=0.1).stochastic
