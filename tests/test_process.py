"""Processes against a sheet of definitions evaluated in 50 digits: every coefficient, kernel, bridge and prior.

The sheet states alpha(t) and sigma(t) of each process and nothing else; f, g^2, lam and all derivatives follow from
them by Lemma 4.4.1 with mpmath's differentiation, so no formula of the library is repeated here.
"""

import math

import mpmath as mp
import numpy as np
import pytest
import torch
from scipy import integrate

from fokker import noise
from fokker.component import Array
from fokker.errors import ConfigError
from fokker.process import DDPM, EDM, OU, VE, VP, Cosine, Custom, DiscreteVP, Flow, Linear, SubVP, Trig

F64 = torch.float64
mp.mp.dps = 50
BETAS = (0.1, 0.02, 0.5, 0.3)
HO = np.linspace(1e-4, 0.02, 1000)  # Ho et al. 2020: variances


def beta_clock(low, high):
    return lambda t: low * t + (mp.mpf(high) - low) * t**2 / 2


def vp(low, high):
    B = beta_clock(low, high)
    return lambda t: mp.exp(-B(t) / 2), lambda t: mp.sqrt(1 - mp.exp(-B(t)))


def sub_vp(low, high):
    B = beta_clock(low, high)
    return lambda t: mp.exp(-B(t) / 2), lambda t: 1 - mp.exp(-B(t))


def ve(low, high, published):
    def sigma(t):
        square = mp.mpf(low) ** 2 * (mp.mpf(high) / low) ** (2 * t)
        return mp.sqrt(square - (0 if published else mp.mpf(low) ** 2))

    return lambda t: mp.mpf(1), sigma


def cosine(s):
    def alpha(t):
        return mp.cos((t + s) / (1 + mp.mpf(s)) * mp.pi / 2) / mp.cos(s / (1 + mp.mpf(s)) * mp.pi / 2)

    return alpha, lambda t: mp.sqrt(1 - alpha(t) ** 2)


def chain(betas, zero=False):
    """Products of sqrt(1 - beta), log-linear in between; with zero terminal SNR shifted and scaled (Lin et al.)."""
    level = [mp.mpf(1)]
    for beta in betas:
        level.append(level[-1] * mp.sqrt(1 - mp.mpf(float(beta))))
    if zero:
        first, last = level[1], level[-1]
        level = [level[0]] + [(a - last) * first / (first - last) for a in level[1:]]
    n = len(betas)

    def alpha(t):
        k = min(int(mp.floor(t * n)), n - 1)
        r = t * n - k
        return level[k] * (1 - r) if level[k + 1] == 0 else level[k] ** (1 - r) * level[k + 1] ** r

    return alpha, lambda t: mp.sqrt(1 - alpha(t) ** 2)


def nichol(n):
    bar = [math.cos((i / n + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(n + 1)]
    return [min(1 - bar[i + 1] / bar[i], 0.999) for i in range(n)]


SIGMOID = 1e-4 + (0.02 - 1e-4) / (1 + np.exp(-np.linspace(-6, 6, 1000)))
SCALED = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
FLOW = (lambda t: 1 - t, lambda t: t)
TRIG = (lambda t: mp.cos(mp.pi * t / 2), lambda t: mp.sin(mp.pi * t / 2))
OU_SHEET = (lambda t: mp.exp(-t), lambda t: mp.sqrt(1 - mp.exp(-2 * t)))

SHEET = {
    "vp": (VP(), vp(0.1, 20)),
    "vp-mild": (VP(beta_min=0.3, beta_max=7.0), vp(0.3, 7)),
    "vp-flat": (VP(beta_min=2.0, beta_max=2.0), vp(2, 2)),
    "sub-vp": (SubVP(), sub_vp(0.1, 20)),
    "sub-vp-mild": (SubVP(beta_min=0.3, beta_max=3.0), sub_vp(0.3, 3)),
    "ve": (VE(), ve(0.01, 50, False)),
    "ve-published": (VE(sigma_min=0.02, sigma_max=30.0, published=True), ve(0.02, 30, True)),
    "edm": (EDM(), (lambda t: mp.mpf(1), lambda t: t)),
    "flow": (Flow(), FLOW),
    "trig": (Trig(), TRIG),
    "cosine": (Cosine(), cosine(0.008)),
    "cosine-wide": (Cosine(s=0.1), cosine(0.1)),
    "ou": (OU(), OU_SHEET),
    "ou-3": (OU(horizon=3.0), OU_SHEET),
    "ddpm": (DDPM(), chain(HO)),
    "ddpm-200": (DDPM(steps=200), chain(np.linspace(1e-4, 0.02, 200) * 5)),
    "ddpm-given-ends": (DDPM(steps=50, beta_start=0.01, beta_end=0.3), chain(np.linspace(0.01, 0.3, 50))),
    "ddpm-scaled": (DDPM(betas="scaled_linear"), chain(SCALED)),
    "ddpm-sigmoid": (DDPM(betas="sigmoid"), chain(SIGMOID)),
    "ddpm-cosine": (DDPM(steps=100, betas="cosine"), chain(nichol(100))),
    "ddpm-array": (DDPM(steps=4, betas=BETAS), chain(BETAS)),
    "ddpm-zero": (DDPM(zero_terminal_snr=True), chain(HO, zero=True)),
    "ddpm-array-zero": (DDPM(steps=4, betas=Array(BETAS), zero_terminal_snr=True), chain(BETAS, zero=True)),
    "linear": (
        Linear(drift=lambda t: -0.5 * (0.1 + 19.9 * t), diffusion=lambda t: (0.1 + 19.9 * t).sqrt()),
        vp(0.1, 20),
    ),
    "linear-ou": (Linear(drift=lambda t: -1.0, diffusion=lambda t: math.sqrt(2.0), horizon=3.0), OU_SHEET),
    "custom": (Custom(alpha_of=lambda t: 1 - t, sigma_of=lambda t: t), FLOW),
}
NAMES = list(SHEET)
each = pytest.mark.parametrize("name", NAMES)
ENDS_AT_ZERO = {"flow", "trig", "cosine", "cosine-wide", "ddpm-zero", "ddpm-array-zero", "custom"}
# Inside the cells of every table, also of 4, 50, 100, 200 and 1000 levels.
PLACES = (1e-9, 1e-6, 3.7e-4, 0.0137, 0.2507, 0.5001, 0.7713, 0.9917, 0.99937, 1 - 1e-6)


def get(name):
    return SHEET[name][0]


def times(process):
    return torch.tensor(PLACES, dtype=F64) * process.T


def truth(name, t, what):
    """A quantity of Lemma 4.4.1 at the float t, from alpha and sigma alone, in 50 digits."""
    alpha, sigma = SHEET[name][1]
    t = mp.mpf(t)

    def slope(function):
        return mp.diff(function, t, h=min(t, mp.mpf(get(name).T) - t) * mp.mpf(10) ** -22)

    def f():
        return slope(lambda u: mp.log(alpha(u)))

    return {
        "alpha": lambda: alpha(t),
        "sigma": lambda: sigma(t),
        "lam": lambda: mp.log(alpha(t) / sigma(t)),
        "d_alpha": lambda: slope(alpha),
        "d_sigma": lambda: slope(sigma),
        "f": f,
        "g2": lambda: slope(lambda u: sigma(u) ** 2) - 2 * f() * sigma(t) ** 2,
        "d_lam": lambda: slope(lambda u: mp.log(alpha(u) / sigma(u))),
    }[what]()


@each
@pytest.mark.parametrize("what", ["alpha", "sigma", "lam", "d_alpha", "d_sigma", "f", "g2", "d_lam"])
def test_coefficients_equal_the_sheet(name, what):
    process = get(name)
    t = times(process)
    got = getattr(process, what)(t)
    assert got.dtype == F64
    for u, value in zip(t.tolist(), got.tolist(), strict=True):
        exact = float(truth(name, u, what))
        # A table rounds its place t * steps: in the last cell of one that ends at 0 that is divided by what is left.
        tight = 5e-12 + (2e-13 / (1 - u) / process.steps if name.startswith("ddpm") and name in ENDS_AT_ZERO else 0)
        # lam crosses 0, f and alpha' are 0 in places, and Linear's sigma' is a difference of two terms.
        loose = 1e-13 if what in ("lam", "f", "d_alpha") or name.startswith("linear") else 0.0
        assert math.isclose(value, exact, rel_tol=tight, abs_tol=loose), u
    assert math.isclose(float(getattr(process, what)(float(t[4]))), float(got[4]), rel_tol=1e-15, abs_tol=0)


@each
def test_values_at_the_ends(name):
    process = get(name)
    alpha, sigma = SHEET[name][1]
    inf = math.inf
    assert float(process.alpha(0.0)) == 1.0
    start = float(process.sigma(0.0))
    if name == "ve-published":
        assert math.isclose(start, 0.02, rel_tol=1e-15)
        assert not process.regular_at_0
        assert math.isclose(float(process.lam(0.0)), math.log(50), rel_tol=1e-15)
    else:
        assert start == 0.0
        assert process.regular_at_0
        assert float(process.lam(0.0)) == inf
        assert float(process.d_lam(0.0)) == -inf
    end = process.T
    assert math.isclose(float(process.sigma(end)), float(sigma(mp.mpf(end))), rel_tol=1e-13)
    if name in ENDS_AT_ZERO:
        assert float(process.alpha(end)) == 0.0
        assert float(process.lam(end)) == -inf
        assert float(process.f(end)) == -inf
        assert float(process.g2(end)) == inf
        assert process.t_max == end - process.t_min
    else:
        assert math.isclose(float(process.alpha(end)), float(alpha(mp.mpf(end))), rel_tol=1e-12)
        assert process.t_max == end
    assert math.isfinite(float(process.lam(process.t_max)))
    assert math.isfinite(float(process.lam(process.t_min)))
    for what in ("d_alpha", "d_sigma"):
        assert math.isfinite(float(getattr(process, what)(end)))


ROOT_LIKE = ("vp", "vp-flat", "ve", "cosine", "ou", "ddpm", "ddpm-array", "linear")


@pytest.mark.parametrize("name", ROOT_LIKE)
def test_sigma_that_starts_like_a_root_has_slope_plus_infinity(name):
    process = get(name)
    assert float(process.d_sigma(0.0)) == math.inf
    assert math.copysign(1.0, float(process.sigma(0.0))) == 1.0


@each
def test_f_and_g2_are_finite_at_0_and_their_limit(name):
    # Bounded on [0, T): the reverse SDE and the Langevin corrector may be asked there (SubVP, Flow: g^2(0) = 0).
    process = get(name)
    for what in ("f", "g2", "d_alpha"):
        limit = float(truth(name, 1e-14 * process.T, what))
        assert math.isclose(float(getattr(process, what)(0.0)), limit, rel_tol=1e-9, abs_tol=1e-9), what


def test_hand_computed_points():
    # VP(0.1, 20): B(1) = 10.05, B(1/2) = 0.05 + 19.9/8; alpha(1) = e^{-5.025} (spec 02: 0.00657).
    assert math.isclose(float(VP().alpha(1.0)), math.exp(-5.025), rel_tol=1e-14)
    assert math.isclose(float(VP().alpha(1.0)), 0.00657, abs_tol=5e-6)
    assert math.isclose(float(VP().g2(0.5)), 10.05, rel_tol=1e-15)
    assert math.isclose(float(VP().f(0.5)), -5.025, rel_tol=1e-15)
    assert math.isclose(float(SubVP().sigma(0.5)), 1 - math.exp(-2.5375), rel_tol=1e-14)
    assert math.isclose(float(VE().sigma(0.5)), math.sqrt(0.01 * 50 - 1e-4), rel_tol=1e-14)
    assert math.isclose(float(VE(published=True).sigma(0.5)), math.sqrt(0.5), rel_tol=1e-14)
    assert math.isclose(float(EDM().g2(3.0)), 6.0)
    assert math.isclose(float(Flow().g2(0.75)), 6.0, rel_tol=1e-15)
    assert math.isclose(float(Flow().f(0.75)), -4.0, rel_tol=1e-15)
    assert math.isclose(float(Trig().alpha(1 / 3)), math.sqrt(3) / 2, rel_tol=1e-14)
    assert math.isclose(float(Trig().g2(0.5)), math.pi, rel_tol=1e-14)
    assert math.isclose(float(OU().sigma(math.log(2))), math.sqrt(3) / 2, rel_tol=1e-14)
    assert float(OU().f(2.0)) == -1.0
    assert float(OU().g2(2.0)) == 2.0
    assert math.isclose(float(DDPM(steps=4, betas=BETAS).alpha(0.5)), math.sqrt(0.9 * 0.98), rel_tol=1e-14)
    # Half way between two levels the chain's alpha is their geometric mean.
    assert math.isclose(float(DDPM(steps=4, betas=BETAS).alpha(0.375)), math.sqrt(0.9 * 0.98**0.5), rel_tol=1e-14)


@each
def test_moment_equations_by_central_differences(name):
    process = get(name)
    t, h = torch.tensor([0.1303, 0.2507, 0.5001, 0.7713, 0.9001], dtype=F64) * process.T, 1e-5 * process.T
    # d alpha/dt = f alpha and d sigma^2/dt = 2 f sigma^2 + g^2, with error O(h^2).
    d_alpha = (process.alpha(t + h) - process.alpha(t - h)) / (2 * h)
    d_var = (process.sigma(t + h) ** 2 - process.sigma(t - h) ** 2) / (2 * h)
    torch.testing.assert_close(d_alpha, process.f(t) * process.alpha(t), rtol=2e-6, atol=1e-9)
    torch.testing.assert_close(d_var, 2 * process.f(t) * process.sigma(t) ** 2 + process.g2(t), rtol=2e-6, atol=1e-9)


@each
def test_derivatives_equal_autodiff(name):
    process = get(name)
    for primal, slope in (("alpha", "d_alpha"), ("sigma", "d_sigma"), ("lam", "d_lam")):
        t = torch.tensor([0.1303, 0.2507, 0.5001, 0.9], dtype=F64) * process.T
        _, forward = torch.func.jvp(getattr(process, primal), (t,), (torch.ones_like(t),))
        torch.testing.assert_close(forward, getattr(process, slope)(t), rtol=1e-10, atol=1e-12)
        if name != "edm" or primal != "alpha":
            t.requires_grad_()
            value = getattr(process, primal)(t).sum()
            if value.requires_grad:
                (backward,) = torch.autograd.grad(value, t)
                torch.testing.assert_close(backward, getattr(process, slope)(t).detach(), rtol=1e-10, atol=1e-12)


@each
def test_time_inverts_lam(name):
    process = get(name)
    t = torch.cat([torch.linspace(0, 1, 501, dtype=F64)[1:-1], torch.logspace(-9, -1, 50, dtype=F64)]) * process.T
    lam = process.lam(t)
    assert float((process.time(lam) - t).abs().max()) < 1e-12 * process.T
    low = max(float(process.lam(process.T)), -12.0)
    high = min(float(process.lam(0.0)), 12.0)
    wanted = torch.linspace(low, high, 203, dtype=F64)[1:-1]
    at = process.time(wanted)
    assert bool((at[1:] < at[:-1]).all())
    # What half an ulp of t moves lam by is the floor.
    floor = 1e-12 * (1 + wanted.abs()) + 4e-16 * (process.d_lam(at) * process.T).abs()
    assert bool(((process.lam(at) - wanted).abs() <= floor).all())
    assert math.isclose(float(process.time(float(wanted[7]))), float(at[7]), rel_tol=1e-15)


@each
def test_time_at_the_infinite_ends(name):
    process = get(name)
    if process.regular_at_0:
        assert float(process.time(math.inf)) == 0.0
    if name in ENDS_AT_ZERO:
        assert math.isclose(float(process.time(-math.inf)), process.T, rel_tol=1e-15)
    end = float(process.lam(process.T))
    if math.isfinite(end):
        assert math.isclose(float(process.time(end)), process.T, rel_tol=1e-13)


@each
def test_float32_accuracy_that_the_base_class_claims(name):
    process = get(name)
    top = np.float32(process.T)
    near_end = top - top * np.float32(2.0) ** -np.arange(1, 24, dtype=np.float32)
    grid = np.concatenate([np.linspace(0, top, 4001), np.geomspace(1e-12, 1, 1001) * top, near_end, [0.0, top]])
    t = torch.tensor(grid, dtype=torch.float32).clamp(0, process.T)
    exact = t.double()
    for what in ("alpha", "sigma"):
        narrow, wide = getattr(process, what)(t), getattr(process, what)(exact)
        assert narrow.dtype == torch.float32
        assert torch.equal(narrow == 0, wide == 0)
        there = wide != 0
        error = (narrow.double() - wide).abs()[there] / wide[there]
        assert float(error.max()) <= 2e-6, (what, float(t[there][error.argmax()]))
    narrow, wide = process.lam(t), process.lam(exact)
    assert torch.equal(torch.isinf(narrow), torch.isinf(wide))
    finite = torch.isfinite(wide)
    error = (narrow.double() - wide).abs()[finite] / (1 + wide[finite].abs())
    assert float(error.max()) <= 2e-6, float(t[finite][error.argmax()])


@each
def test_shapes_and_dtypes_follow_the_time(name):
    process = get(name)
    grid = torch.tensor([[0.2, 0.3, 0.4], [0.5, 0.6, 0.7]], dtype=F64) * process.T
    for what in ("alpha", "sigma", "d_alpha", "d_sigma", "lam", "f", "g2", "d_lam"):
        function = getattr(process, what)
        whole = function(grid)
        assert whole.shape == (2, 3)
        for i, j in ((0, 1), (1, 0), (1, 2)):
            one = function(float(grid[i, j]))
            assert one.shape == ()
            assert one.dtype == F64
            assert math.isclose(float(one), float(whole[i, j]), rel_tol=1e-14)
        assert function(grid.float()).dtype == torch.float32
        assert function(grid.half()).dtype == torch.float32  # times are never below float32
        assert function(torch.tensor([0, 1])).dtype == F64
    lam = process.lam(grid)
    assert process.time(lam).shape == (2, 3)
    assert process.time(lam.float()).dtype == torch.float32


@each
@pytest.mark.parametrize(("s", "u", "t"), [(0.1, 0.4, 0.85), (0.5, 0.500001, 0.51), (0.0, 0.3, 1.0), (0.02, 0.6, 1.0)])
def test_transitions_compose(name, s, u, t):
    # Chapman-Kolmogorov: scale_{t|s} = scale_{t|u} scale_{u|s}, var_{t|s} = scale_{t|u}^2 var_{u|s} + var_{t|u}.
    process = get(name)
    s, u, t = (v * process.T for v in (s, u, t))
    first, second, both = process.transition(s, u), process.transition(u, t), process.transition(s, t)
    torch.testing.assert_close(both.scale, first.scale * second.scale, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(both.std**2, second.scale**2 * first.std**2 + second.std**2, rtol=1e-9, atol=0)
    torch.testing.assert_close(process.alpha(t), both.scale * process.alpha(s), rtol=1e-12, atol=1e-15)
    variance = both.scale**2 * process.sigma(s) ** 2 + both.std**2
    torch.testing.assert_close(process.sigma(t) ** 2, variance, rtol=1e-11, atol=0)


@pytest.mark.parametrize("name", ["vp", "sub-vp", "ve", "ve-published", "edm", "flow", "trig", "ou", "cosine"])
def test_transition_solves_the_sde(name):
    # scale = exp int_s^t f, var = int_s^t exp(2 int_u^t f) g^2(u) du (book Eq. 4.3.3-4.3.4), by quadrature.
    process = get(name)
    s, t = 0.2 * process.T, 0.7 * process.T

    def growth(a):
        return math.exp(integrate.quad(lambda u: float(process.f(u)), a, t, epsabs=0, epsrel=1e-12)[0])

    variance = integrate.fixed_quad(np.vectorize(lambda u: growth(u) ** 2 * float(process.g2(float(u)))), s, t, n=32)[0]
    scale, std = process.transition(s, t)
    assert math.isclose(float(scale), growth(s), rel_tol=1e-11)
    assert math.isclose(float(std) ** 2, variance, rel_tol=1e-9)


@each
def test_transition_keeps_its_digits_between_close_times(name):
    process = get(name)
    alpha, sigma = SHEET[name][1]
    for place, gap in ((0.3, 1e-7), (0.8003, 1e-5)):
        s, t = place * process.T, (place + gap) * process.T
        a, b = mp.mpf(s), mp.mpf(t)
        exact = sigma(b) ** 2 - (alpha(b) / alpha(a)) ** 2 * sigma(a) ** 2
        # lam(t) - lam(s) loses about (1 + |lam|) 2^-52 of gap; sigma_t^2 - scale^2 sigma_s^2 would lose as much of 1.
        got = float(process.transition(s, t).std) ** 2
        assert math.isclose(got, float(exact), rel_tol=1e-7), (got, float(exact))


@each
def test_transition_at_the_ends(name):
    process = get(name)
    for t in (0.0, 0.3 * process.T, process.T):
        assert [float(v) for v in process.transition(t, t)] == [1.0, 0.0]
    if process.regular_at_0:
        for t in (0.3 * process.T, process.T):
            scale, std = process.transition(0.0, t)
            assert float(scale) == float(process.alpha(t))
            assert math.isclose(float(std), float(process.sigma(t)), rel_tol=1e-15)
    if name in ENDS_AT_ZERO:
        scale, std = process.transition(0.4 * process.T, process.T)
        assert float(scale) == 0.0
        assert float(std) == float(process.sigma(process.T))


@each
def test_bridge_is_gaussian_conditioning(name):
    # Given x_0: x_t = alpha_t x_0 + sigma_t e_1 and x_s = k x_t + r e_2; condition x_t on x_s (2x2, no Eq. 5).
    process = get(name)
    alpha, sigma = SHEET[name][1]
    for t, s in ((0.2, 0.7), (0.69, 0.7), (1e-3, 0.01), (0.05, 0.99)):
        t, s = mp.mpf(t * process.T), mp.mpf(s * process.T)
        k = alpha(s) / alpha(t)
        r2 = sigma(s) ** 2 - k**2 * sigma(t) ** 2
        var_s, cov = k**2 * sigma(t) ** 2 + r2, k * sigma(t) ** 2
        gain = cov / var_s
        exact = (gain, alpha(t) - gain * k * alpha(t), mp.sqrt(sigma(t) ** 2 - gain * cov))
        got = process.bridge(float(s), float(t))
        for value, reference in zip(got, exact, strict=True):
            assert math.isclose(float(value), float(reference), rel_tol=1e-9), (t, s)


@each
def test_bridge_at_the_ends(name):
    process = get(name)
    s = 0.6 * process.T
    assert [float(v) for v in process.bridge(s, s)] == [1.0, 0.0, 0.0]
    if process.regular_at_0:
        assert [float(v) for v in process.bridge(s, 0.0)] == [0.0, 1.0, 0.0]
        with pytest.raises(ConfigError, match=r"posterior: sigma is 0 at s=0\.0"):
            process.bridge(0.0, 0.0)
        with pytest.raises(ConfigError, match="posterior: sigma is 0"):
            process.bridge(torch.tensor([s, 0.0]), torch.tensor([0.0, 0.0]))
    if name in ENDS_AT_ZERO:
        # x_T is pure noise: nothing is learnt from it.
        got = process.bridge(process.T, s)
        assert float(got.on_x) == 0.0
        assert math.isclose(float(got.on_x0), float(process.alpha(s)), rel_tol=1e-14)
        assert math.isclose(float(got.std), float(process.sigma(s)), rel_tol=1e-14)


@pytest.mark.parametrize("name", ["vp", "flow", "ve", "sub-vp", "ddpm"])
def test_posterior_mean_and_std_on_a_batch(name):
    process = get(name)
    x, x0 = torch.randn(3, 2, 4, dtype=F64), torch.randn(3, 2, 4, dtype=F64)
    s, t = torch.tensor([0.9, 0.5, 0.3], dtype=F64), torch.tensor([0.1, 0.49, 0.3], dtype=F64)
    law = process.posterior(x, x0, s, t)
    eps = torch.randn_like(x)
    for i in range(3):
        on_x, on_x0, std = (float(v) for v in process.bridge(float(s[i]), float(t[i])))
        torch.testing.assert_close(law.mean[i], on_x * x[i] + on_x0 * x0[i], rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(law.sample(eps)[i], law.mean[i] + std * eps[i], rtol=1e-13, atol=1e-14)
        alone = process.posterior(x[i : i + 1], x0[i : i + 1], float(s[i]), float(t[i]))
        torch.testing.assert_close(alone.mean[0], law.mean[i], rtol=1e-13, atol=1e-14)
    assert float(law.std[2].max()) == 0.0


def test_posterior_composes_to_the_forward_joint():
    # Both factorisations of p(x_t, x_s | x_0) have one log-density.
    process, x0 = VP(), 0.7
    t, s, a, b = 0.3, 0.6, 0.2, -1.1

    def log_normal(x, mean, std):
        return -0.5 * ((x - mean) / std) ** 2 - math.log(std)

    def marginal(u, x):
        return log_normal(x, float(process.alpha(u)) * x0, float(process.sigma(u)))

    scale, std = (float(v) for v in process.transition(t, s))
    on_x, on_x0, c = (float(v) for v in process.bridge(s, t))
    forward = marginal(t, a) + log_normal(b, scale * a, std)
    backward = marginal(s, b) + log_normal(a, on_x * b + on_x0 * x0, c)
    assert math.isclose(forward, backward, rel_tol=1e-12)


@each
def test_order_of_times_is_asserted(name):
    process = get(name)
    low, high = 0.3 * process.T, 0.4 * process.T
    one, two = torch.tensor([low, high, low]), torch.tensor([high, low, high])
    with pytest.raises(ConfigError, match=r"transition\(s, t\): the first time must not exceed the second"):
        process.transition(high, low)
    with pytest.raises(ConfigError, match=r"transition\(s, t\)"):
        process.transition(one, two)
    with pytest.raises(ConfigError, match=r"posterior\(x, x0, s, t\)"):
        process.bridge(low, high)
    with pytest.raises(ConfigError, match=r"posterior\(x, x0, s, t\)"):
        process.posterior(torch.zeros(3), torch.zeros(3), one, two)


def test_lemma_2_2_2_in_the_books_symbols_for_every_level():
    # Book: beta_i is a standard deviation, alpha_i = sqrt(1 - beta_i^2), bar alpha_i their product.
    beta2, process = HO, DDPM()
    a = np.sqrt(1 - beta2)
    bar = np.concatenate([[1.0], np.cumprod(a)])
    rest = np.concatenate([[0.0], -np.expm1(np.cumsum(np.log1p(-beta2)))])  # 1 - bar^2
    i = np.arange(1, 1001)
    on_x0 = bar[i - 1] * beta2 / rest[i]
    on_x = rest[i - 1] * a / rest[i]
    std = np.sqrt(rest[i - 1] / rest[i] * beta2)
    got = process.bridge(torch.tensor(i / 1000), torch.tensor((i - 1) / 1000))
    np.testing.assert_allclose(got.on_x0.numpy(), on_x0, rtol=1e-9)
    np.testing.assert_allclose(got.on_x.numpy(), on_x, rtol=1e-9, atol=1e-300)
    np.testing.assert_allclose(got.std.numpy(), std, rtol=1e-9, atol=1e-300)
    assert [float(v[0]) for v in got] == [0.0, 1.0, 0.0]
    # The coefficients do not sum to one (spec 01: 0.997 at i = 501, 0.990 at i = 1000).
    total = (got.on_x + got.on_x0).tolist()
    assert math.isclose(total[500], 0.997, abs_tol=5e-4)
    assert math.isclose(total[999], 0.990, abs_tol=5e-4)
    step = process.transition(torch.tensor((i - 1) / 1000), torch.tensor(i / 1000))
    np.testing.assert_allclose(step.scale.numpy(), a, rtol=1e-12)
    np.testing.assert_allclose(step.std.numpy() ** 2, beta2, rtol=1e-9)


def test_constants_of_ho_et_al():
    process = DDPM()
    assert DDPM is DiscreteVP
    assert math.isclose(float(process.alpha(1.0)), 0.0063528, abs_tol=5e-8)
    snr = (2 * process.lam(torch.tensor([0.001, 1.0], dtype=F64))).exp()
    assert math.isclose(float(snr[0]), 9999.0, rel_tol=1e-10)
    assert math.isclose(0.5 * float(snr[0] - snr[1]), 4999.5, abs_tol=1e-3)
    assert math.isclose(float(process.kl_to_prior(mean=1.0, var=0.0)), 2.018e-5, rel_tol=3e-4)
    # Data N(.7, .25): L_prior is its mean over x_0, E x_0^2 = .74; the gap of the ELBO is KL(p_T || N(0, 1)).
    assert math.isclose(float(process.kl_to_prior(mean=0.74**0.5, var=0.0)), 1.4933e-5, rel_tol=5e-5)
    assert math.isclose(float(process.kl_to_prior(mean=0.7, var=0.25)), 9.8880e-6, rel_tol=1e-5)
    assert process.t_min == 0.001


def test_published_betas_are_rescaled_and_clipped_and_given_ones_are_not():
    for steps in (20, 100, 1000):
        top = float(DDPM(steps=steps).transition(1 - 1 / steps, 1.0).std) ** 2
        assert math.isclose(top, min(20 / steps, 0.999), rel_tol=1e-9)
    ends = DDPM(steps=10, beta_start=1e-4, beta_end=0.02)
    assert math.isclose(float(ends.transition(0.9, 1.0).std) ** 2, 0.02, rel_tol=1e-9)
    half = DDPM(steps=10, beta_end=0.5)
    assert math.isclose(float(half.transition(0.0, 0.1).std) ** 2, 1e-4, rel_tol=1e-9)
    half = DDPM(steps=10, betas="scaled_linear", beta_start=0.1)
    assert math.isclose(float(half.transition(0.9, 1.0).std) ** 2, 0.012, rel_tol=1e-9)


def test_zero_terminal_snr_keeps_the_first_level_and_zeroes_the_last():
    plain, zero = DDPM(), DDPM(zero_terminal_snr=True)
    assert math.isclose(float(zero.alpha(0.001)), float(plain.alpha(0.001)), rel_tol=1e-14)
    assert float(zero.alpha(1.0)) == 0.0
    levels = torch.arange(1, 1001, dtype=F64) / 1000
    ratio = (plain.alpha(levels) - plain.alpha(1.0)) / zero.alpha(levels)
    torch.testing.assert_close(ratio[:-1], ratio[:1].expand(999), rtol=1e-10, atol=0)
    # In the last cell alpha, not log alpha, is linear.
    a = zero.alpha(torch.tensor([0.999, 0.9995, 0.99975], dtype=F64))
    torch.testing.assert_close(a / a[0], torch.tensor([1.0, 0.5, 0.25], dtype=F64), rtol=1e-10, atol=0)


def kl_between(m1, v1, v2):
    return 0.5 * (v1 / v2 - 1 - mp.log(v1 / v2) + m1**2 / v2)


@each
def test_kl_to_prior_is_the_gaussian_kl(name):
    process = get(name)
    alpha, sigma = SHEET[name][1]
    for place, mean, var in ((1.0, 0.0, 0.25), (1.0, 0.7, 2.0), (0.6, -0.3, 0.0), (0.6, 0.0, 1.0)):
        t = mp.mpf(place * process.T)
        prior = 1 if process.unit_prior else sigma(t) ** 2
        exact = kl_between(alpha(t) * mean, alpha(t) ** 2 * mp.mpf(var) + sigma(t) ** 2, prior)
        got = process.kl_to_prior(mean, var, None if place == 1.0 else float(t))
        assert math.isclose(float(got), float(exact), rel_tol=1e-6, abs_tol=1e-18), (place, mean, var)


def test_kl_to_prior_published_numbers():
    # spec 07: 3.8e-10 per dimension at T = 80, 0.0134 at T = 1, both for sigma_data = 0.5.
    assert math.isclose(float(EDM().kl_to_prior(0.0, 0.25)), 3.8e-10, rel_tol=5e-3)
    assert math.isclose(float(EDM(sigma_max=1.0).kl_to_prior(0.0, 0.25)), 0.0134, abs_tol=5e-5)
    assert math.isclose(float(VE().kl_to_prior(0.0, 0.25)), 0.25 * (0.25 / (2500 - 1e-4)) ** 2, rel_tol=1e-3)
    # Unit variance stays unit variance where the process is variance-preserving.
    for process in (VP(), Trig(), Cosine(), OU(), DDPM()):
        assert abs(float(process.kl_to_prior(0.0, 1.0, 0.3 * process.T))) < 1e-18
    got = OU().kl_to_prior(torch.tensor([0.0, 1.0]), torch.tensor([4.0, 0.0]))
    assert got.shape == (2,)
    # Seed 004, Sec. 4.1: KL(p_t || N) <= e^{-2t} KL(p_0 || N).
    start = 0.5 * (4 - 1 - math.log(4) + 1.0)
    for t in (0.1, 1.0, 3.0):
        now = float(OU().kl_to_prior(1.0, 4.0, t))
        assert 0 < now < math.exp(-2 * t) * start


def test_erratum_s8_the_prior_mismatch_of_ve_falls_but_stays():
    # Spec 03, S8: "the same Gaussian" is KL -> 0 only: v^2 / (4 Sigma^4) for a mean of 0, and m^2 / (2 Sigma^2) else.
    for mean, limit, power in ((0.0, lambda top: 0.25**2 / (4 * top**4), 4), (0.7, lambda top: 0.245 / top**2, 2)):
        gaps = [float(EDM(sigma_max=top).kl_to_prior(mean, 0.25)) for top in (5.0, 20.0, 80.0)]
        assert gaps[-1] > 0
        np.testing.assert_allclose(gaps, [limit(top) for top in (5.0, 20.0, 80.0)], rtol=0.01)
        np.testing.assert_allclose(np.log(np.divide(gaps[:-1], gaps[1:])) / math.log(4), power, atol=0.01)


PRIOR_STD = {
    "ve": math.sqrt(2500 - 1e-4),
    "ve-published": 30.0,
    "edm": 80.0,
    "linear": math.sqrt(1 - math.exp(-10.05)),
    "linear-ou": math.sqrt(1 - math.exp(-6)),
}


@each
def test_prior_law(name):
    process, n = get(name), 20_000
    std = PRIOR_STD.get(name, 1.0)
    assert math.isclose(float(process.prior_std()), std, rel_tol=1e-13)
    x = process.prior((2,), n=n, seed=3, dtype=F64) / std
    assert x.shape == (n, 2)
    # 2n numbers: the mean of N(0, 1) has error 1/sqrt(2n), its variance sqrt(2/(2n)), its kurtosis sqrt(96/(2n)).
    assert abs(float(x.mean())) < 4 / (2 * n) ** 0.5
    assert abs(float((x**2).mean()) - 1) < 4 / n**0.5
    assert abs(float((x**4).mean()) - 3) < 4 * (48 / n) ** 0.5
    raw = noise.normal(3, torch.arange(5), (2,), domain="prior", dtype=F64)
    torch.testing.assert_close(process.prior((2,), n=5, seed=3, dtype=F64), raw * std, rtol=1e-13, atol=0)
    assert torch.equal(process.prior((2,), n=9, seed=3)[:5], process.prior((2,), n=5, seed=3))
    assert process.prior((2,), n=1).dtype == torch.float32
    assert len(process.prior((1,))) == 64
    if not process.unit_prior:
        middle = float(process.sigma(0.4 * process.T))
        got = process.prior((2,), n=5, seed=3, t=0.4 * process.T, dtype=F64)
        torch.testing.assert_close(got, raw * middle, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("name", "unit"),
    [(n, n.startswith(("vp", "sub", "trig", "cosine", "ou", "ddpm"))) for n in NAMES],
)
def test_which_processes_end_in_the_unit_prior(name, unit):
    assert get(name).unit_prior is unit


def test_where_networks_stop_by_default():
    # 1e-3 for bounded clocks, Song et al.'s 1e-5 for VE, Karras et al.'s sigma_min for EDM, one level for a chain.
    for process in (VP(), SubVP(), Flow(), Trig(), Cosine(), OU(), SHEET["linear"][0], SHEET["custom"][0]):
        assert process.t_min == 1e-3
    assert VE().t_min == 1e-5
    assert EDM().t_min == 0.002
    assert DDPM(steps=50).t_min == 0.02
    assert Flow(t_min=0.01).t_max == 0.99


def test_unit_prior_of_a_custom_process():
    process = Custom(alpha_of=lambda t: (1.5 * t).cos(), sigma_of=lambda t: (1.5 * t).sin(), unit_prior=True)
    assert float(process.prior_std()) == 1.0
    assert math.isclose(float(process.d_sigma(0.4)), 1.5 * math.cos(0.6), rel_tol=1e-14)


@each
def test_perturb_at_one_time_and_at_a_time_per_sample(name):
    process = get(name)
    alpha, sigma = SHEET[name][1]
    for event in ((), (3,), (2, 3, 4)):
        x0, eps = torch.randn(4, *event, dtype=F64), torch.randn(4, *event, dtype=F64)
        t = torch.tensor([0.2, 0.9, 0.5, 0.01], dtype=F64) * process.T
        x = process.perturb(x0, t, eps)
        for i, u in enumerate(t.tolist()):
            a, b = float(alpha(mp.mpf(u))), float(sigma(mp.mpf(u)))
            torch.testing.assert_close(x[i], a * x0[i] + b * eps[i], rtol=1e-11, atol=1e-12)
            torch.testing.assert_close(process.perturb(x0, u, eps)[i], x[i], rtol=1e-13, atol=1e-13)
        assert process.perturb(x0.float(), t, eps.float()).dtype == torch.float32
        assert process.perturb(x0.float(), 0.5 * process.T, eps.float()).dtype == torch.float32


@pytest.mark.parametrize("name", ["vp", "sub-vp", "ve", "flow", "trig", "ddpm"])
def test_perturb_has_the_law_of_a_mixture(name):
    # Data -1 or 2 with weights .3 and .7: mean alpha 1.1, variance alpha^2 1.89 + sigma^2.
    process, n = get(name), 100_000
    x0 = torch.where(torch.rand(n, dtype=F64) < 0.3, -1.0, 2.0)
    t = 0.37
    x = process.perturb(x0, t, torch.randn(n, dtype=F64))
    a, b = float(process.alpha(t)), float(process.sigma(t))
    variance = 1.89 * a**2 + b**2
    assert abs(float(x.mean()) - 1.1 * a) < 4 * (variance / n) ** 0.5
    error = ((x - 1.1 * a) ** 2).var() / n
    assert abs(float(x.var()) - variance) < 4 * float(error) ** 0.5


def test_processes_that_are_one_another():
    t = torch.linspace(0.01, 0.99, 33, dtype=F64)
    pairs = [
        (SHEET["linear"][0], VP()),
        (SHEET["custom"][0], Flow()),
        (OU(horizon=1.0), VP(beta_min=2.0, beta_max=2.0)),
        (Linear(drift=lambda t: 0.0 * t, diffusion=lambda t: (2 * t).sqrt()), EDM(sigma_max=1.0)),
    ]
    for one, two in pairs:
        for what in ("alpha", "sigma", "d_alpha", "d_sigma", "f", "g2", "lam", "d_lam"):
            torch.testing.assert_close(getattr(one, what)(t), getattr(two, what)(t), rtol=1e-11, atol=1e-12)
    # sub-VP's sigma is VP's squared (Song et al. 2021), and its g^2 = beta (1 - e^{-2B}) by the moment equation.
    torch.testing.assert_close(SubVP().sigma(t), VP().sigma(t) ** 2, rtol=1e-13, atol=0)
    B = 0.1 * t + 19.9 * t**2 / 2
    torch.testing.assert_close(SubVP().g2(t), (0.1 + 19.9 * t) * -torch.expm1(-2 * B), rtol=1e-13, atol=0)
    # DDPM's thousand levels are VP(0.1, 20) up to the Euler error, which shrinks with 1/steps (spec 02: slope 1).
    gaps = [abs(float(DDPM(steps=n).lam(1.0) - VP().lam(1.0))) for n in (500, 1000, 2000)]
    assert 1.8 < gaps[0] / gaps[1] < 2.2
    assert 1.8 < gaps[1] / gaps[2] < 2.2


def test_a_linear_sde_whose_diffusion_starts_at_0_has_a_finite_slope_there():
    # dx = sqrt(2 t) dw is EDM: sigma = t, so sigma'(0) = 1.
    process = Linear(drift=lambda t: 0.0 * t, diffusion=lambda t: (2 * t).sqrt())
    assert math.isclose(float(process.d_sigma(0.0)), 1.0, rel_tol=1e-6)


def test_linear_with_a_drift_of_either_sign_and_rough_scales():
    # dx = cos(3t) x dt + (1 + t) dw: alpha = e^{sin(3t)/3}; sigma by quadrature in 50 digits.
    process = Linear(drift=lambda t: torch.cos(3 * t), diffusion=lambda t: 1 + t, horizon=2.0)
    for t in (0.003, 0.5, 1.234, 2.0):
        log_alpha = mp.sin(3 * mp.mpf(t)) / 3
        J = mp.quad(lambda u: (1 + u) ** 2 * mp.exp(-2 * mp.sin(3 * u) / 3), [0, t / 2, t])
        assert math.isclose(float(process.alpha(t)), float(mp.exp(log_alpha)), rel_tol=1e-13)
        assert math.isclose(float(process.sigma(t)), float(mp.exp(log_alpha) * mp.sqrt(J)), rel_tol=1e-13)
        assert math.isclose(float(process.lam(t)), float(-mp.log(J) / 2), rel_tol=1e-12, abs_tol=1e-13)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Custom(alpha_of=lambda t: 1 - t, sigma_of=lambda t: torch.sin(4 * t)), "alpha must be.*sigma after 0"),
        (lambda: Custom(alpha_of=lambda t: 1.0, sigma_of=lambda t: t * (1.2 - t)), "lam = log.* must decrease.*0.6"),
        (lambda: Custom(alpha_of=lambda t: 0 * t + 1, sigma_of=lambda t: 0 * t + 1), "must decrease"),
        (lambda: Custom(alpha_of=lambda t: t, sigma_of=lambda t: 1 - t), "alpha must be positive"),
        (lambda: Custom(alpha_of=lambda t: 1 - 2 * t, sigma_of=lambda t: t), "alpha must be positive"),
        (lambda: Custom(alpha_of=lambda t: 1.0 - 0 * t, sigma_of=lambda t: t - 0.1), "sigma after 0"),
        (lambda: Custom(alpha_of=lambda t: (1 - 2 * t) ** 2, sigma_of=lambda t: t), "alpha must be positive before T"),
        (lambda: Custom(alpha_of=lambda t: 1 - 1.0005 * t, sigma_of=lambda t: t), "alpha must be positive before T"),
        (lambda: Custom(alpha_of=lambda t: 1.0, sigma_of=lambda t: (t - 0.5) ** 2), "sigma after 0"),
        (lambda: Custom(alpha_of=lambda t: 1.0, sigma_of=lambda t: t - 1e-4), "sigma after 0"),
        (lambda: Linear(drift=lambda t: 0 * t, diffusion=lambda t: 0 * t), "Linear: alpha must be|must decrease"),
        (lambda: Linear(drift=lambda t: -1 / (1 - t), diffusion=lambda t: (2 * t / (1 - t)).sqrt()), "finite.*Custom"),
        (lambda: Linear(drift=lambda t: 0 * t, diffusion=lambda t: 1 / (t - t)), "finite on .0, T.*Custom"),
        (lambda: VP(beta_min=2.0, beta_max=1.0), r"beta_max.* must be at least beta_min=2\.0"),
        (lambda: VE(sigma_min=2.0, sigma_max=2.0), r"sigma_max.* must exceed sigma_min=2\.0"),
        (lambda: VE(sigma_min=2.0, sigma_max=1.5), r"sigma_max: given 1\.5, must exceed sigma_min=2\.0"),
        (lambda: EDM(sigma_min=2.0, sigma_max=1.0), r"sigma_max.* must exceed sigma_min=2\.0"),
        (lambda: DDPM(steps=3, betas=(0.1, 0.2)), r"given shape .* must be \(3,\)"),
        (lambda: DDPM(steps=2, betas=(0.1, 1.0)), "strictly between 0 and 1"),
        (lambda: DDPM(steps=2, betas=(0.0, 0.1)), "strictly between 0 and 1"),
    ],
)
def test_schedules_that_are_none_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_custom_schedules_with_positive_sigma_0_are_taken():
    process = Custom(alpha_of=lambda t: 1.0, sigma_of=lambda t: 0.1 + t, horizon=2.0)
    assert not process.regular_at_0
    assert process.T == 2.0
    assert math.isclose(float(process.time(-math.log(1.1))), 1.0, rel_tol=1e-13)
    assert float(process.d_alpha(0.3)) == 0.0
    assert torch.equal(process.f(torch.tensor([0.3, 0.4])), torch.zeros(2))


# ---- errata: the printed form misses the truth ------------------------------------------------------------------


def test_erratum_beta_is_a_variance_in_code_and_a_standard_deviation_in_the_book():
    # Spec 02, lines 1893/1899: read as standard deviations, Ho's 1e-4..0.02 forget nothing.
    as_std = math.exp(0.5 * float(np.log1p(-(HO**2)).sum()))
    assert as_std > 0.9
    assert abs(float(DDPM().alpha(1.0)) - as_std) > 0.9


def test_the_discrete_chain_nears_its_sde_with_slope_1():
    # Spec 02, Sec. 4.1.1: sum log(1 - beta(t_i) / N) -> -B(1) = -10.05, by .280, .137, .068 and .034.
    gaps = [2 * float(VP().alpha(1.0).log() - DDPM(steps=n).alpha(1.0).log()) for n in (250, 500, 1000, 2000)]
    np.testing.assert_allclose(gaps, [0.27985, 0.13689, 0.06771, 0.03368], atol=1e-5)
    np.testing.assert_allclose(np.log2(np.divide(gaps[:-1], gaps[1:])), [1.03, 1.015, 1.0075], atol=3e-3)


def test_erratum_e17_the_step_from_i_to_i_plus_1_takes_the_later_beta():
    # Table 3.1 prints beta_i for x_i -> x_{i+1}: from x_1 on, the product ends at bar alpha_L a_1 / a_L.
    process, i = DDPM(), torch.arange(1, 1000, dtype=F64)
    step = process.transition(i / 1000, (i + 1) / 1000)
    np.testing.assert_allclose(step.std.numpy() ** 2, HO[1:], rtol=1e-9)
    first, last = float(process.alpha(0.001)), float(process.alpha(1.0))
    assert math.isclose(first * float(step.scale.prod()), last, rel_tol=1e-12)
    printed = first * math.prod(np.sqrt(1 - HO[:-1]))
    assert math.isclose(printed / last, math.sqrt((1 - 1e-4) / (1 - 0.02)), rel_tol=1e-10) and printed > 1.01 * last


def test_erratum_ddpm_update_without_dt():
    # Line 1899 prints sqrt(1 - beta_t) with the rate beta(t) and no dt: at beta = 20 it is not even real.
    assert 1 - float(VP().g2(1.0)) < -18
    n = 1000
    step = VP().transition(0.5, 0.5 + 1 / n)
    rate = float(VP().g2(0.5 + 0.5 / n)) / n
    assert math.isclose(float(step.std) ** 2, rate, rel_tol=6e-3)


def test_erratum_line_2669_power_for_derivative():
    # "sigma_t^{2t}" for (sigma_t^2)': at VP, t = 0.1 the printed g^2 is half of beta(0.1) = 2.09.
    process, t = VP(), 0.1
    f, sigma = float(process.f(t)), float(process.sigma(t))
    assert abs(sigma ** (2 * t) - 2 * f * sigma**2 - 2.09) > 1.0
    assert math.isclose(2 * sigma * float(process.d_sigma(t)) - 2 * f * sigma**2, 2.09, rel_tol=1e-12)
    assert math.isclose(float(process.g2(t)), 2.09, rel_tol=1e-14)


def test_erratum_footnote_11_an_earlier_s():
    # With s the EARLIER time sigma_s^2 - (alpha_s / alpha_t)^2 sigma_t^2 is negative: no kernel exists.
    for process in (VP(), Flow(), EDM()):
        s, t = 0.3 * process.T, 0.7 * process.T
        ratio = float(process.alpha(s) / process.alpha(t))
        assert float(process.sigma(s)) ** 2 - ratio**2 * float(process.sigma(t)) ** 2 < -0.08
        with pytest.raises(ConfigError, match="must not exceed"):
            process.transition(t, s)


def test_erratum_a_non_positive_drift_need_not_forget():
    # Lines 1994-1996: f = 0 is non-positive and m(T) = x_0; the published VE also keeps sigma_min^2 of its prior.
    assert float(VE().alpha(1.0)) == 1.0
    assert math.isclose(float(VE(published=True).sigma(1.0)) ** 2 - float(VE().sigma(1.0)) ** 2, 1e-4, rel_tol=1e-6)


def test_erratum_line_10856_zero_mean_under_the_integral():
    # p_t(x) = int N(x; 0, t^2) p_data(x_0) is N(0, t^2) whatever the data; the truth for N(1, .25) is N(1, .25 + t^2).
    n, t = 50_000, 1.0
    x = EDM().perturb(1 + 0.5 * torch.randn(n, dtype=F64), t, torch.randn(n, dtype=F64))
    assert abs(float(x.mean()) - 1) < 4 * (1.25 / n) ** 0.5
    assert abs(float(x.var()) - 1.25) < 4 * 1.25 * (2 / n) ** 0.5
    assert abs(float(x.mean())) > 200 * (1.0 / n) ** 0.5
