"""Readings: every ordered pair in every process against x_0 and eps themselves, the ends, EDM's row, transforms."""

import math

import pytest
import torch

from fokker.errors import ConfigError, UndeterminedError
from fokker.prediction import READINGS, Denoiser, Prediction, Reading, coefficients, edm_reading, reading
from fokker.process import DDPM, EDM, OU, VE, VP, Cosine, Custom, Flow, Linear, SubVP, Trig

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
    "linear": Linear(drift=lambda t: -0.5 - t, diffusion=lambda t: 1 + t),
    "custom": Custom(alpha_of=lambda t: (1 - t) ** 2, sigma_of=lambda t: t * (2 - t)),
}
EDM_F = edm_reading(0.5)
# A reading of one's own: (0.3 x_0 - (0.2 + t) eps) / (2 + t).
MIX = Reading("mix", lambda process, t: (torch.full_like(t, 0.3), -(0.2 + t), 2.0 + t))
ALL = {**READINGS, "edm": EDM_F, "mix": MIX}
NAMES = list(ALL)


def values(process, t, x0, eps):
    """Every reading from x_0 and eps, written out (book Table 6.1, Salimans & Ho, Eq. D.6.1)."""
    a, b = process.alpha(t), process.sigma(t)
    root = (a**2 / 4 + b**2).sqrt()
    return {
        "x0": x0,
        "noise": eps,
        "score": -eps / b,
        "velocity": process.d_alpha(t) * x0 + process.d_sigma(t) * eps,
        "v": a * eps - b * x0,
        "edm": (b * x0 - a * 0.25 * eps) / (0.5 * root),
        "mix": (0.3 * x0 - (0.2 + t) * eps) / (2 + t),
    }


def predict(process, x, s, name, value):
    if name in ("edm", "mix"):
        return Prediction(process, x, s, other=(ALL[name], value))
    return Prediction(process, x, s, **{name: value})


@pytest.mark.parametrize("name", list(PROCESSES))
def test_every_ordered_pair_in_the_interior(name):
    process = PROCESSES[name]
    for place in (0.1303, 0.5001, 0.8707):
        t = torch.full((4,), place * process.T, dtype=F64)
        x0, eps = torch.randn(4, 3, dtype=F64), torch.randn(4, 3, dtype=F64)
        x = process.perturb(x0, t, eps)
        true = values(process, t[:, None], x0, eps)
        for source in NAMES:
            for s in (t, float(t[0])):
                p = predict(process, x, s, source, true[source])
                for target in NAMES:
                    # Both terms of p x + q m may be large and cancel: the floor is their rounding.
                    c = coefficients(process, s, ALL[source], ALL[target])
                    floor = 1e-12 + 1e-13 * float(c[0].abs().max() + c[1].abs().max())
                    got = p.read(ALL[target])
                    torch.testing.assert_close(got, true[target], rtol=1e-12, atol=floor, msg=f"{source}->{target}")
        pair = Prediction(process, x, t, x0=x0, noise=eps)
        for target in NAMES:
            torch.testing.assert_close(pair.read(ALL[target]), true[target], rtol=1e-12, atol=1e-13, msg=target)


def test_properties_are_the_readings():
    process, t = VP(), torch.tensor([0.3, 0.6], dtype=F64)
    x0, eps = torch.randn(2, 3, dtype=F64), torch.randn(2, 3, dtype=F64)
    x = process.perturb(x0, t, eps)
    true = values(process, t[:, None], x0, eps)
    for p in (Prediction(process, x, t, v=true["v"]), Prediction(process, x, t, x0=x0, noise=eps)):
        for name in READINGS:
            torch.testing.assert_close(getattr(p, name), true[name], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(p.read(name), getattr(p, name), rtol=0, atol=0)


def test_prop_6_3_1_and_6_3_2_as_the_book_writes_them():
    for process in (VP(), Flow(), Trig(), EDM(), VE(), SubVP()):
        s = 0.4 * process.T
        alpha, sigma, da, ds = (float(getattr(process, n)(s)) for n in ("alpha", "sigma", "d_alpha", "d_sigma"))
        x, score = torch.randn(5, dtype=F64), torch.randn(5, dtype=F64)
        p = Prediction(process, x, s, score=score)
        eps, x0 = -sigma * score, (x + sigma**2 * score) / alpha
        kappa = da / alpha - ds / sigma
        drifts = [
            (da / alpha) * x - sigma * kappa * eps,
            (ds / sigma) * x + alpha * kappa * x0,
            (da / alpha) * x + sigma**2 * kappa * score,
            da * x0 + ds * eps,
            float(process.f(s)) * x - 0.5 * float(process.g2(s)) * score,
        ]
        for drift in drifts:
            torch.testing.assert_close(p.velocity, drift, rtol=1e-11, atol=1e-12)
        v = p.velocity
        back = (alpha * v - da * x) / (sigma * (da * sigma - alpha * ds))
        torch.testing.assert_close(Prediction(process, x, s, velocity=v).score, back, rtol=1e-11, atol=1e-12)


def test_seed_000_table_5_as_printed():
    x, field = torch.randn(6, dtype=F64), torch.randn(6, dtype=F64)
    t = 0.6
    vp = VP(beta_min=1.0, beta_max=1.0)
    a = math.exp(-t)  # the seed's alpha, the square of ours
    root, rest = math.sqrt(a), math.sqrt(1 - a)
    sigma, s = rest / root, rest / (root + rest)
    z, r = x / root, x / (root + rest)
    eps = -rest * field
    v = -(x + (1 - a + math.sqrt(a * (1 - a))) * field) / root

    def close(one, two):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-13)

    from_score = Prediction(vp, x, t, score=field)
    close(from_score.noise, eps)
    from_eps = Prediction(EDM(), z, sigma, noise=eps)
    close(-(math.sqrt(1 + sigma**2) / sigma) * eps, field)
    close(Prediction(Flow(), r, s, noise=eps).velocity, (1 + sigma) * eps - z)
    close(Prediction(Flow(), r, s, noise=eps).velocity, v)
    from_v = Prediction(Flow(), r, s, velocity=v)
    close(from_v.noise, r + (1 - s) * v)
    close(-(math.sqrt((1 - s) ** 2 + s**2) / s) * (r + (1 - s) * v), field)
    # Score chain rule, and one clean datum in all three pictures.
    close(from_eps.score, root * field)
    close(from_v.score, (root + rest) * field)
    for p in (from_score, from_eps, from_v):
        close(p.x0, (x + (1 - a) * field) / root)


@pytest.mark.parametrize("name", ["vp", "sub-vp", "ve", "edm", "flow", "trig", "cosine"])
def test_squared_errors_of_eq_6_3_6(name):
    process = PROCESSES[name]
    s = 0.4 * process.T
    alpha, sigma, da, ds = (float(getattr(process, n)(s)) for n in ("alpha", "sigma", "d_alpha", "d_sigma"))
    x, one, two = torch.randn(3, 7, dtype=F64).unbind()

    def error(reading_name):
        a, b = (getattr(Prediction(process, x, s, noise=n), reading_name) for n in (one, two))
        return float(((a - b) ** 2).sum())

    score = error("score")
    assert math.isclose(score, error("noise") / sigma**2, rel_tol=1e-11)
    assert math.isclose(score, error("x0") * alpha**2 / sigma**4, rel_tol=1e-11)
    assert math.isclose(score, error("velocity") * (alpha / (sigma * (da * sigma - alpha * ds))) ** 2, rel_tol=1e-11)
    assert math.isclose(score, error("velocity") * (2 / float(process.g2(s))) ** 2, rel_tol=1e-11)
    assert math.isclose(score, error("v") * (alpha / (sigma * (alpha**2 + sigma**2))) ** 2, rel_tol=1e-11)


# ---- the ends ----------------------------------------------------------------------------------------------------

CLEAN = {n: {"x0", "noise", "velocity", "v", "edm", "mix"} for n in ("noise", "velocity", "v", "edm", "mix")}
CLEAN |= {"x0": {"x0"}, "score": set(NAMES)}
NOISY = {n: set(NAMES) for n in ("x0", "velocity", "v", "edm", "mix")}
NOISY |= {n: {"noise", "score"} for n in ("noise", "score")}


def check_end(process, s, source, target, determined, x, values_, message):
    p = predict(process, x, s, source, values_[source])
    if target not in determined and target != source:
        with pytest.raises(UndeterminedError) as caught:
            p.read(ALL[target])
        text = str(caught.value)
        assert text.startswith(f"{ALL[target].name} is not determined by a prediction of {ALL[source].name} at time")
        assert message in text
        assert "predict" in text
        return
    torch.testing.assert_close(p.read(ALL[target]), values_[target], rtol=1e-13, atol=1e-14, msg=f"{source}->{target}")


@pytest.mark.parametrize("name", ["flow", "edm", "trig", "sub-vp", "custom"])
@pytest.mark.parametrize("source", NAMES)
@pytest.mark.parametrize("batched", [False, True])
def test_clean_end_determines_exactly_this_table(name, source, batched):
    # sigma(0) = 0, sigma' finite: x_0 = x whatever is predicted, nothing gives the score, x_0 gives nothing else.
    process = PROCESSES[name]
    x, eps = torch.randn(3, 2, dtype=F64), torch.randn(3, 2, dtype=F64)
    s = torch.zeros(3, dtype=F64) if batched else 0.0
    zero = torch.tensor(0.0, dtype=F64)
    # A finite score at sigma = 0 says eps = -sigma score = 0.
    true = values(process, zero, x, torch.zeros_like(x) if source == "score" else eps)
    true["score"] = torch.randn_like(x)
    for target in NAMES:
        check_end(process, s, source, target, CLEAN[source], x, true, "sigma = 0")


@pytest.mark.parametrize("name", ["flow", "trig", "cosine", "ddpm-zero"])
@pytest.mark.parametrize("source", NAMES)
@pytest.mark.parametrize("batched", [False, True])
def test_noisy_end_determines_exactly_this_table(name, source, batched):
    # alpha(T) = 0: eps = x / sigma whatever is predicted; noise and score give one another and nothing else.
    process = PROCESSES[name]
    x0, eps = torch.randn(3, 2, dtype=F64), torch.randn(3, 2, dtype=F64)
    s = torch.full((3,), process.T, dtype=F64) if batched else process.T
    end = torch.tensor(process.T, dtype=F64)
    true = values(process, end, x0, eps)
    for target in NAMES:
        check_end(process, s, source, target, NOISY[source], eps, true, "alpha = 0")


@pytest.mark.parametrize("name", ["vp", "ve", "cosine", "ou", "ddpm"])
@pytest.mark.parametrize("source", NAMES)
def test_clean_end_where_sigma_starts_like_a_root(name, source):
    # There sigma'(0) is infinite: the velocity's row is no pair of numbers, so it gives x_0 = x and itself alone.
    process, x, value = PROCESSES[name], torch.randn(3, 2, dtype=F64), torch.randn(3, 2, dtype=F64)
    p = predict(process, x, 0.0, source, value)
    allowed = {"x0", "velocity"} if source == "velocity" else CLEAN[source] - {"velocity"}
    if name == "ve" and source == "velocity":
        allowed |= {"noise", "v", "edm"}  # v = sigma' eps alone: a finite v there means eps = 0
    for target in NAMES:
        if target in allowed or target == source:
            assert torch.isfinite(p.read(ALL[target])).all(), target
        else:
            with pytest.raises(UndeterminedError, match="sigma = 0"):
                p.read(ALL[target])


@pytest.mark.parametrize("source", NAMES)
@pytest.mark.parametrize("name", ["vp", "flow", "edm", "ddpm"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_x0_at_sigma_0_is_x_to_the_bit(source, name, dtype):
    x, value = torch.randn(4, 3, dtype=dtype), torch.randn(4, 3, dtype=dtype)
    if source != "x0":
        for s in (0.0, torch.zeros(4, dtype=dtype)):
            assert torch.equal(predict(PROCESSES[name], x, s, source, value).x0, x)


def test_one_bad_row_of_a_batch_is_named():
    x = torch.randn(3, 2)
    with pytest.raises(UndeterminedError, match=r"score is not determined by a prediction of noise at time 0,"):
        Prediction(Flow(), x, torch.tensor([0.5, 0.0, 1.0]), noise=x).score
    with pytest.raises(UndeterminedError, match=r"x0 is not determined by a prediction of noise at time 1, "):
        Prediction(Flow(), x, torch.tensor([0.5, 0.0, 1.0]), noise=x).x0


def test_the_pair_at_the_ends():
    x, other = torch.randn(2, 3, dtype=F64), torch.randn(2, 3, dtype=F64)
    clean = Prediction(Flow(), x, 0.0, x0=x, noise=other)
    torch.testing.assert_close(clean.velocity, other - x)
    torch.testing.assert_close(clean.v, other)
    with pytest.raises(UndeterminedError, match=r"score is not determined by a prediction of x0 and noise.*sigma = 0"):
        clean.score
    with pytest.raises(UndeterminedError, match=r"velocity .* sigma = 0"):
        Prediction(VP(), x, 0.0, x0=x, noise=other).velocity
    noisy = Prediction(Flow(), x, 1.0, x0=other, noise=x)
    torch.testing.assert_close(noisy.velocity, x - other)
    torch.testing.assert_close(noisy.score, -x)


def test_values_are_given_back_untouched():
    x, a, b = torch.randn(3, 2, 2)
    for name in READINGS:
        assert predict(VP(), x, 0.0, name, a).read(name) is a
    pair = Prediction(VP(), x, 0.0, x0=a, noise=b)
    assert pair.x0 is a
    assert pair.noise is b
    assert pair.value is a
    assert Prediction(VP(), x, 0.3, noise=a, variance=b).variance is b
    assert Prediction(VP(), x, 0.3, other=(MIX, a)).read(MIX) is a


def test_a_wrong_set_of_readings_is_refused():
    x = torch.zeros(2)
    for given in ({}, {"x0": x, "v": x}, {"noise": x, "score": x}, {"x0": x, "noise": x, "v": x}):
        with pytest.raises(ConfigError, match="give one reading, or x0 and noise together"):
            Prediction(VP(), x, 0.5, **given)
    with pytest.raises(ConfigError, match="give one reading"):
        Prediction(VP(), x, 0.5, x0=x, other=(MIX, x))
    with pytest.raises(ConfigError, match=r"unknown reading 'nois'.*did you mean 'noise'"):
        reading("nois")
    assert reading("v") is READINGS["v"]
    assert reading(MIX) is MIX
    assert "noise at s=0.5, shape=(2,)" in repr(Prediction(VP(), x, 0.5, noise=x))
    assert "x0 and noise" in repr(Prediction(VP(), x, 0.5, x0=x, noise=x))


# ---- EDM's row ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sigma", "skip", "out", "c_in"),
    [
        (0.002, 0.999984, 0.0019999840, 1.999984),
        (0.5, 0.5, 0.353553, 1.414214),
        (80.0, 3.906e-5, 0.49999023, 0.01249976),
    ],
)
def test_edm_preconditioning_published_values(sigma, skip, out, c_in):
    p, q = coefficients(EDM(), sigma, EDM_F, READINGS["x0"])
    assert math.isclose(float(p), skip, rel_tol=5e-4 if sigma == 80.0 else 1e-6)
    assert math.isclose(float(q), out, rel_tol=2e-6)
    # The exact expressions behind the printed digits; c_in is 1 / sqrt(R).
    assert math.isclose(float(p), 0.25 / (0.25 + sigma**2), rel_tol=1e-13)
    assert math.isclose(float(q), sigma * 0.5 / math.sqrt(0.25 + sigma**2), rel_tol=1e-13)
    assert math.isclose(1 / math.hypot(0.5, sigma), c_in, rel_tol=1e-6)


@pytest.mark.parametrize("name", list(PROCESSES))
@pytest.mark.parametrize("d", [0.5, 1.0, 2.5])
def test_edm_reading_in_any_process(name, d):
    process = PROCESSES[name]
    t = torch.tensor([0.03, 0.4, 0.97], dtype=F64) * process.T
    alpha, sigma = process.alpha(t), process.sigma(t)
    R = alpha**2 * d**2 + sigma**2
    p, q = coefficients(process, t, edm_reading(d), READINGS["x0"])
    torch.testing.assert_close(p, alpha * d**2 / R, rtol=1e-11, atol=1e-15)
    torch.testing.assert_close(q, sigma * d / R.sqrt(), rtol=1e-11, atol=0)
    A, B, k = edm_reading(d).row(process, t)
    one = torch.ones(3, dtype=F64)
    torch.testing.assert_close(k, one)
    # Data of variance d^2: the target has unit variance and is uncorrelated with x.
    torch.testing.assert_close(A**2 * d**2 + B**2, one, rtol=1e-12, atol=0)
    torch.testing.assert_close(A * alpha * d**2 + B * sigma, 0 * one, rtol=0, atol=1e-12 * (1 + process.T) ** 2)
    # c_skip minimises c_out^2 = (1 - c_skip alpha)^2 d^2 + c_skip^2 sigma^2 (Eq. D.6.3).
    for shift in (-1e-3, 1e-3):
        other = (1 - (p + shift) * alpha) ** 2 * d**2 + (p + shift) ** 2 * sigma**2
        assert bool((other > q**2).all())
    # It is EDM at the noise sigma / alpha, seen through x / alpha.
    ratio = sigma / alpha
    torch.testing.assert_close(p * alpha, d**2 / (d**2 + ratio**2), rtol=1e-11, atol=1e-15)


def test_edm_unit_variance_by_monte_carlo():
    n, process, s = 200_000, Flow(), 0.35
    x0 = torch.where(torch.rand(n, dtype=F64) < 0.5, -0.5, 0.5)
    eps = torch.randn(n, dtype=F64)
    x = process.perturb(x0, s, eps)
    target = Prediction(process, x, s, x0=x0, noise=eps).read(EDM_F)
    assert abs(float(target.mean())) < 4 / n**0.5
    assert abs(float((target**2).mean()) - 1) < 4 * float((target**2).var() / n) ** 0.5
    assert abs(float((target * x).mean())) < 4 * float((target * x).var() / n) ** 0.5


@pytest.mark.parametrize("name", list(PROCESSES))
def test_zero_output_of_edm_is_the_posterior_mean_of_gaussian_data(name):
    process = PROCESSES[name]
    t = torch.tensor([0.05, 0.5, 0.95], dtype=F64) * process.T
    x = torch.randn(3, 4, dtype=F64)
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    got = Prediction(process, x, t, other=(EDM_F, torch.zeros_like(x)))
    torch.testing.assert_close(got.x0, alpha * 0.25 / (alpha**2 * 0.25 + sigma**2) * x, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(got.score, -x / (alpha**2 * 0.25 + sigma**2), rtol=1e-10, atol=1e-13)


def test_edm_of_unit_variance_in_vp_is_minus_v():
    x0, eps = torch.randn(2, 3, dtype=F64), torch.randn(2, 3, dtype=F64)
    for process in (VP(), Trig(), Cosine(), DDPM()):
        p = Prediction(process, process.perturb(x0, 0.4, eps), 0.4, x0=x0, noise=eps)
        torch.testing.assert_close(p.read(edm_reading(1.0)), -p.v, rtol=1e-12, atol=1e-13)


def test_v_is_the_velocity_in_the_angle_clock():
    # dx/dt = u'(t) v with u the angle: pi/2 in Trig; in VP's clock u = atan2(sigma, alpha), u' = sigma' / alpha.
    x0, eps = torch.randn(2, 3, dtype=F64), torch.randn(2, 3, dtype=F64)
    for process, speed in ((Trig(), math.pi / 2), (VP(), float(VP().d_sigma(0.4) / VP().alpha(0.4)))):
        p = Prediction(process, process.perturb(x0, 0.4, eps), 0.4, x0=x0, noise=eps)
        torch.testing.assert_close(p.velocity, speed * p.v, rtol=1e-12, atol=1e-13)


# ---- errata ------------------------------------------------------------------------------------------------------


def test_erratum_e3_velocity_without_primes():
    # Fig. 6.1's caption prints v = alpha x_0 + sigma eps, which is x itself.
    x0, eps = torch.ones(1, 1, dtype=F64), -torch.ones(1, 1, dtype=F64)
    for process in (VP(), Flow(), Trig()):
        x = process.perturb(x0, 0.4, eps)
        v = Prediction(process, x, 0.4, x0=x0, noise=eps).velocity
        assert float((v - x).abs()) > 1.5
        h = 1e-5
        slope = (process.perturb(x0, 0.4 + h, eps) - process.perturb(x0, 0.4 - h, eps)) / (2 * h)
        torch.testing.assert_close(v, slope, rtol=1e-7, atol=1e-8)


def test_erratum_table_3_1_sigma_squared_eps():
    # Spec 01, E17: x = x_0 + sigma^2 eps for sigma eps; read back as noise it misses by |sigma - 1| |eps|.
    x0, eps, sigma = torch.zeros(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64), 3.0
    printed = Prediction(EDM(), x0 + sigma**2 * eps, sigma, x0=x0).noise
    assert float((printed - eps).abs()) > 1.9
    right = Prediction(EDM(), x0 + sigma * eps, sigma, x0=x0).noise
    torch.testing.assert_close(right, eps, rtol=1e-14, atol=0)


# ---- transforms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", NAMES)
@pytest.mark.parametrize("name", ["vp", "flow", "edm", "ddpm"])
def test_under_vmap_and_jvp(source, name):
    process = PROCESSES[name]
    t = torch.tensor([0.3, 0.6, 0.9], dtype=F64) * process.T
    x = torch.randn(3, 2, dtype=F64)

    def net(y):
        return torch.tanh(y) + y**2

    def read(y, s, target):
        return predict(process, y, s, source, net(y)).read(ALL[target])

    for target in NAMES:
        whole = read(x, t, target)
        rows = torch.func.vmap(lambda y, s, target=target: read(y[None], s, target)[0])(x, t)
        torch.testing.assert_close(rows, whole, rtol=1e-12, atol=1e-12)
        tangent = torch.randn_like(x)
        _, forward = torch.func.jvp(lambda y, target=target: read(y, t, target), (x,), (tangent,))
        p, q = coefficients(process, t, ALL[source], ALL[target])
        exact = p[:, None] * tangent + q[:, None] * (1 - torch.tanh(x) ** 2 + 2 * x) * tangent
        torch.testing.assert_close(forward, exact, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("source", NAMES)
@pytest.mark.parametrize("target", NAMES)
def test_time_derivative_of_a_reading(source, target):
    # Consistency models differentiate a prediction in s, forwards; reverse mode must agree.
    process, s, h = Flow(), torch.tensor([0.4, 0.7], dtype=F64), 1e-6
    x, m = torch.randn(2, 3, dtype=F64), torch.randn(2, 3, dtype=F64)

    def read(u):
        return predict(process, x, u, source, m).read(ALL[target]).sum(1)

    _, forward = torch.func.jvp(read, (s,), (torch.ones_like(s),))
    numeric = (read(s + h) - read(s - h)) / (2 * h)
    torch.testing.assert_close(forward, numeric, rtol=1e-7, atol=1e-7)
    if source != target:
        u = s.clone().requires_grad_()
        value = read(u).sum()
        if value.requires_grad:
            (backward,) = torch.autograd.grad(value, u)
            torch.testing.assert_close(backward, forward, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vp", "flow", "edm"])
def test_under_compile_without_a_graph_break(name):
    process = PROCESSES[name]
    x, m = torch.randn(3, 2, dtype=F64), torch.randn(3, 2, dtype=F64)
    t = torch.tensor([0.3, 0.6, 0.9], dtype=F64) * process.T

    def read(y, s, value):
        p = Prediction(process, y, s, velocity=value)
        return p.x0, p.noise, p.score, p.v, p.read(EDM_F)

    compiled = torch.compile(read, fullgraph=True, backend="aot_eager")
    for s in (t, t[0]):
        for got, exact in zip(compiled(x, s, m), read(x, s, m), strict=True):
            torch.testing.assert_close(got, exact, rtol=1e-12, atol=1e-12)


def test_dtype_and_event_shapes():
    for event in ((), (3,), (2, 3, 4)):
        x = torch.randn(2, *event)
        for s in (0.4, torch.tensor(0.4), torch.tensor([0.4, 0.5])):
            got = Prediction(VP(), x, s, noise=x).velocity
            assert got.dtype == torch.float32
            wide = Prediction(VP(), x.double(), torch.as_tensor(s).double(), noise=x.double()).velocity
            torch.testing.assert_close(got.double(), wide, rtol=1e-5, atol=1e-5)


def test_the_protocol_is_checkable():
    class Mine:
        process, shape, lam_range, reading = VP(), (2,), (-5.0, 5.0), None

        def __call__(self, x, s, cond=None):
            return Prediction(self.process, x, s, noise=x)

    assert isinstance(Mine(), Denoiser)
    assert not isinstance(VP(), Denoiser)


def test_noisy_end_of_a_process_whose_prior_is_not_of_unit_size():
    # alpha(1) = 0 and sigma(1) = 2: eps = x / 2, whatever was predicted.
    process, x = Custom(alpha_of=lambda t: 1 - t, sigma_of=lambda t: 2 * t), torch.randn(3, 2, dtype=F64)
    for source in ("x0", "velocity", "v", "score"):
        p = predict(process, x, 1.0, source, torch.randn_like(x))
        torch.testing.assert_close(p.noise, x / 2, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("s", "message"), [([0.0, 1.0], "time 0, where sigma = 0"), ([1.0, 0.0], "time 1, where alpha")]
)
def test_the_end_that_is_named_is_the_end_of_the_time_that_is_named(s, message):
    # Of noise alone the cosine process has no velocity at either end.
    p = Prediction(Cosine(), torch.ones(2, 1, dtype=F64), torch.tensor(s, dtype=F64), noise=torch.ones(2, 1, dtype=F64))
    with pytest.raises(UndeterminedError, match=message):
        p.velocity
