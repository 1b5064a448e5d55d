"""Clocks and the exact map between processes: Seed 000's Table 2 as printed, Prop. 6.3.3 and every ordered pair."""

import math

import pytest
import torch

from fokker.errors import ConfigError
from fokker.prediction import Prediction
from fokker.process import (
    DDPM,
    EDM,
    OU,
    VE,
    VP,
    Cosine,
    Custom,
    Flow,
    SubVP,
    Trig,
    clocks,
    convert,
    convert_time,
)

F64 = torch.float64
PROCESSES = {
    "vp": VP(),
    "sub-vp": SubVP(),
    "ve": VE(),
    "ve-published": VE(published=True),
    "edm": EDM(),
    "flow": Flow(),
    "trig": Trig(),
    "cosine": Cosine(),
    "ou": OU(),
    "ddpm": DDPM(),
    "ddpm-zero": DDPM(zero_terminal_snr=True),
    "custom": Custom(alpha_of=lambda t: (1 - t) ** 2, sigma_of=lambda t: t * (2 - t)),
}
PAIRS = [(a, b) for a in PROCESSES for b in PROCESSES]
SEED_VP = VP(beta_min=1.0, beta_max=1.0)  # Seed 000's clock: alpha_t = e^{-t} is the SQUARE of ours


def close(a, b, tight=1e-14):
    torch.testing.assert_close(torch.as_tensor(a, dtype=F64), torch.as_tensor(b, dtype=F64), rtol=tight, atol=tight)


def test_seed_000_table_2_as_printed():
    x = torch.tensor([0.7, -1.3, 2.0], dtype=F64)
    t = torch.tensor([0.05, 0.4, 0.95], dtype=F64)
    a = torch.exp(-t)
    root, rest = a.sqrt(), (1 - a).sqrt()
    z, sigma = convert(x, t, SEED_VP, EDM())
    close(z, x / root, 2e-15)
    close(sigma, ((1 - a) / a).sqrt(), 2e-15)
    close(sigma, torch.expm1(t).sqrt(), 2e-15)
    r, s = convert(x, t, SEED_VP, Flow())
    close(r, x / (root + rest), 2e-15)
    close(s, rest / (root + rest), 2e-15)

    z, sigma = x, torch.tensor([0.2, 0.9, 1.25], dtype=F64)
    x_, t_ = convert(z, sigma, EDM(), SEED_VP)
    close(x_, z / (1 + sigma**2).sqrt(), 2e-15)
    close(t_, torch.log1p(sigma**2), 2e-15)
    r, s = convert(z, sigma, EDM(), Flow())
    close(r, z / (1 + sigma), 2e-15)
    close(s, sigma / (1 + sigma), 2e-15)

    r, s = x, torch.tensor([0.1, 0.35, 0.55], dtype=F64)
    x_, t_ = convert(r, s, Flow(), SEED_VP)
    norm2 = (1 - s) ** 2 + s**2
    close(x_, r / norm2.sqrt(), 2e-15)
    close(torch.exp(-t_), (1 - s) ** 2 / norm2, 2e-15)
    z, sigma = convert(r, s, Flow(), EDM())
    close(z, r / (1 - s), 2e-15)
    close(sigma, s / (1 - s), 2e-15)


def common(one, two, points=9):
    low, high = clocks.common_lam_range(clocks.lam_range(one), clocks.lam_range(two))
    low, high = max(low, -9.0), min(high, 9.0)
    lam = torch.linspace(low, high, points + 2, dtype=F64)[1:-1]
    return one.time(lam)


@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_every_pair_maps_exactly_and_back(one, two):
    source, target = PROCESSES[one], PROCESSES[two]
    t = common(source, target)
    x0, eps = torch.randn(len(t), 3, dtype=F64), torch.randn(len(t), 3, dtype=F64)
    x = source.perturb(x0, t, eps)
    y, u = convert(x, t, source, target)
    # The same x_0 and eps at the same lam: that is the whole statement.
    torch.testing.assert_close(target.lam(u), source.lam(t), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(y, target.perturb(x0, u, eps), rtol=1e-12, atol=1e-12)
    back, t_back = convert(y, u, target, source)
    torch.testing.assert_close(t_back, t, rtol=0, atol=2e-12 * source.T)
    torch.testing.assert_close(back, x, rtol=1e-12, atol=1e-12)
    y0, u0 = convert(x[:1], float(t[0]), source, target)
    torch.testing.assert_close(y0, y[:1], rtol=1e-14, atol=0)
    assert u0.shape == ()


@pytest.mark.parametrize("name", list(PROCESSES))
def test_prop_6_3_3_velocity_through_the_canonical_path(name):
    # v(x, t) = c' x / c + c tau' v_FM(x / c, tau), c = alpha + sigma, tau = sigma / c, for Gaussian data N(m, d^2).
    process, m, d2 = PROCESSES[name], 0.8, 0.3
    t = common(process, Flow())

    def velocity(p, x, u):
        alpha, sigma = p.alpha(u)[:, None], p.sigma(u)[:, None]
        gain = alpha * d2 / (alpha**2 * d2 + sigma**2)
        x0 = m + gain * (x - alpha * m)
        return Prediction(p, x, u, x0=x0, noise=(x - alpha * x0) / sigma).velocity

    x = torch.randn(len(t), 4, dtype=F64) * process.sigma(t)[:, None] + process.alpha(t)[:, None] * m
    alpha, sigma, da, ds = (getattr(process, n)(t)[:, None] for n in ("alpha", "sigma", "d_alpha", "d_sigma"))
    c, dc, c_dtau = alpha + sigma, da + ds, (alpha * ds - sigma * da) / (alpha + sigma)
    y, tau = convert(x, t, process, Flow())
    torch.testing.assert_close(tau[:, None], sigma / c, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(y, x / c, rtol=1e-12, atol=0)
    expected = dc * x / c + c_dtau * velocity(Flow(), x / c, tau)
    torch.testing.assert_close(velocity(process, x, t), expected, rtol=1e-9, atol=1e-11)
    # The law of the trajectory: v = alpha' x_0 + sigma' eps is d/dt of the ODE x(t) = alpha m + (std_t / std_s) (...).
    std2 = alpha**2 * d2 + sigma**2
    flow = da * m + (alpha * da * d2 + sigma * ds) / std2 * (x - alpha * m)
    torch.testing.assert_close(velocity(process, x, t), flow, rtol=1e-9, atol=1e-11)


def test_trigonometric_path_eq_6_3_4():
    # x_t = R x_Trig(u), R = sqrt(alpha^2 + sigma^2), u = atan2(sigma, alpha) in radians; our clock has u = pi t / 2.
    for process in (VP(), SubVP(), EDM(), Flow(), VE()):
        t = common(process, Trig())
        alpha, sigma = process.alpha(t), process.sigma(t)
        x = torch.randn(len(t), dtype=F64)
        y, u = convert(x, t, process, Trig())
        close(u * math.pi / 2, torch.atan2(sigma, alpha), 1e-12)
        torch.testing.assert_close(y, x / torch.hypot(alpha, sigma), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", list(PROCESSES))
def test_log_snr_is_twice_lam_and_edm_sigma_is_its_exponential(name):
    process = PROCESSES[name]
    t = torch.tensor([0.1, 0.5, 0.9], dtype=F64) * process.T
    alpha, sigma = process.alpha(t), process.sigma(t)
    close(clocks.log_snr(process, t), (alpha**2 / sigma**2).log(), 1e-12)
    close(clocks.log_snr(process, t), 2 * process.lam(t), 0)
    close(clocks.edm_sigma(process, t), sigma / alpha, 1e-14)
    close(clocks.edm_sigma(process, t), torch.exp(-process.lam(t)), 1e-12)
    close(clocks.time_of_log_snr(process, clocks.log_snr(process, t)) / process.T, t / process.T, 1e-12)
    close(clocks.time_of_edm_sigma(process, clocks.edm_sigma(process, t)) / process.T, t / process.T, 1e-12)
    close(clocks.reversed_time(process, t), process.T - t, 0)
    close(clocks.time_of_reversed(process, clocks.reversed_time(process, t)), t, 1e-13)
    low, high = clocks.lam_range(process)
    assert low == float(process.lam(process.T))
    assert high == float(process.lam(0.0))
    assert low < high
    if process.regular_at_0:
        assert float(clocks.edm_sigma(process, 0.0)) == 0.0
        assert float(clocks.time_of_edm_sigma(process, 0.0)) == 0.0


def test_the_half_log_snr_is_not_the_whole():
    # Reading log_snr as lam is off by a factor 2 in the clock: sigma / alpha would be squared.
    t = 0.8
    assert math.isclose(float(clocks.log_snr(Flow(), t)), 2 * math.log(0.25), rel_tol=1e-14)
    assert math.isclose(float(Flow().lam(t)), math.log(0.25), rel_tol=1e-14)
    assert math.isclose(float(clocks.time_of_log_snr(Flow(), 2 * math.log(0.25))), t, rel_tol=1e-14)


def test_flow_matchings_clock_reverses_time_and_velocity():
    # F-clock: x_u = u x_1 + (1 - u) x_0 with x_1 data, so alpha = u at our t = 1 - u and v_F = -v_D (spec 02, Sec. 0).
    u = torch.tensor([0.0, 0.3, 1.0], dtype=F64)
    t = clocks.time_of_reversed(Flow(), u)
    close(Flow().alpha(t), u, 1e-15)
    close(Flow().sigma(t), 1 - u, 0)
    data, source = torch.randn(3, 2, dtype=F64), torch.randn(3, 2, dtype=F64)
    x = Flow().perturb(data, t, source)
    v = Prediction(Flow(), x, t, x0=data, noise=source).velocity
    torch.testing.assert_close(-v, data - source, rtol=1e-14, atol=0)


def test_ddpm_integers():
    process = DDPM()
    n = torch.arange(-1, 1000)
    t = clocks.time_of_index(process, n)
    assert float(t[0]) == 0.0
    assert float(t[1]) == 0.001
    assert float(t[-1]) == 1.0
    close(clocks.index(process, t), n.double(), 1e-12)
    assert math.isclose(float(clocks.index(process, 0.5)), 499.0)
    # alphas_cumprod[n] of the usual code is alpha(t_n)^2.
    cumulative = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=F64), 0)
    torch.testing.assert_close(process.alpha(t[1:]) ** 2, cumulative, rtol=1e-11, atol=0)


def test_scale_is_the_ratio_at_both_ends():
    # (alpha_2 + sigma_2) / (alpha_1 + sigma_1): 1 at the clean end, sigma_2 / sigma_1 at a noisy end with alpha = 0.
    zero = torch.tensor(0.0, dtype=F64)
    assert float(clocks.scale(zero, zero, VP(), EDM())) == 1.0
    x, u = convert(torch.ones(1, dtype=F64), 1.0, Flow(), Trig())
    assert float(u) == 1.0
    assert float(x) == 1.0
    x, u = convert(torch.ones(1, dtype=F64), 0.0, VP(), EDM())
    assert float(u) == 0.0
    assert float(x) == 1.0


@pytest.mark.parametrize(
    ("t", "source", "target"),
    [
        (1.0, VP(), VE(sigma_max=2.0)),
        (0.99, Flow(), EDM(sigma_max=2.0)),
        (1e-6, VP(), VE(published=True)),
        (torch.tensor([0.5, 0.999]), Flow(), VP(beta_max=2.0)),
    ],
)
def test_a_lam_the_target_never_has_is_refused(t, source, target):
    with pytest.raises(ConfigError, match=r"lam=.* is outside .*'s range \["):
        convert_time(t, source, target)


@pytest.mark.parametrize(
    ("t", "source", "target"),
    [
        (0.0, VP(), VE(published=True)),  # clean data, where the published VE has none
        (1.0, Flow(), EDM()),  # pure noise, where EDM keeps sigma = 80
        (1.0, Flow(), VP()),
        (1.0, Trig(), DDPM()),
    ],
)
def test_an_infinite_lam_the_target_never_has_is_refused(t, source, target):
    with pytest.raises(ConfigError, match=r"lam=-?inf is outside"):
        convert_time(t, source, target)


@pytest.mark.parametrize("beta_max", [12.0 + 0.37 * i for i in range(30)])
def test_float32_times_reach_the_ends_of_an_equal_range(beta_max):
    # The float32 lam of T is off by up to 2e-6 (1 + |lam|): not a reason to call T outside its own process's range.
    one, two = VP(beta_max=beta_max), VP(beta_max=beta_max, t_min=1e-4)
    for t in (1.0, 0.0):
        got = convert_time(torch.tensor(t, dtype=torch.float32), one, two)
        assert math.isclose(float(got), t, abs_tol=2e-6)


def test_common_lam_range():
    assert clocks.common_lam_range((-3.0, 2.0), (-1.0, 5.0), (-9.0, 1.0)) == (-1.0, 1.0)
    with pytest.raises(ConfigError, match="no common part"):
        clocks.common_lam_range((-3.0, -2.0), (-1.0, 5.0))
    with pytest.raises(ConfigError, match="no common part"):
        clocks.common_lam_range((-3.0, -1.0), (-1.0, 5.0))
