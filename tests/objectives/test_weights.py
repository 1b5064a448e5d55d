"""Weights and per-sample losses against the tables, written out by hand for every process and every raw output."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from fokker import noise
from fokker.errors import ConfigError
from fokker.objectives import SNR, Denoising, EDMWeight, Likelihood, MinSNR, Sigma2, Uniform
from fokker.prediction import READINGS, Prediction, coefficients, edm_reading
from fokker.process import EDM, VP, Flow, Process, Trig

F64 = torch.float64
DATA_STD, GAMMA, DIM = 0.7, 3.0, 3


def vp(t: Tensor) -> tuple[Tensor, ...]:
    integral, rate = 0.1 * t + 9.95 * t**2, 0.1 + 19.9 * t
    alpha, sigma = (-integral / 2).exp(), (1 - (-integral).exp()).sqrt()
    return alpha, sigma, -rate / 2 * alpha, rate / 2 * alpha**2 / sigma


def trig(t: Tensor) -> tuple[Tensor, ...]:
    q = math.pi / 2
    return (q * t).cos(), (q * t).sin(), -q * (q * t).sin(), q * (q * t).cos()


# process, (alpha, sigma, alpha', sigma') by hand
HAND: dict[str, tuple[Process, Callable[[Tensor], tuple[Tensor, ...]]]] = {
    "vp": (VP(), vp),
    "edm": (EDM(), lambda t: (torch.ones_like(t), t, torch.zeros_like(t), torch.ones_like(t))),
    "flow": (Flow(), lambda t: (1 - t, t, -torch.ones_like(t), torch.ones_like(t))),
    "trig": (Trig(), trig),
}


def target_row(name: str, h: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """(A, B): the conditional target A x0 + B eps of a raw output, by hand."""
    a, s, da, ds = h
    root = (a**2 * DATA_STD**2 + s**2).sqrt()
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    return {
        "x0": (one, zero),
        "noise": (zero, one),
        "score": (zero, -1 / s),
        "velocity": (da, ds),
        "v": (-s, a),
        "edm": (s / (DATA_STD * root), -a * DATA_STD / root),
    }[name]


def stated(weight: str, output: str, h: tuple[Tensor, ...]) -> Tensor:
    """What weighting.py's table states on an output's squared error; v and EDM's F by |eps err| = alpha/Delta |err|."""
    a, s, da, ds = h
    snr, g2 = (a / s) ** 2, 2 * s * (ds - da / a * s)
    on_noise = {
        "snr": torch.ones_like(a),
        "sigma2": torch.ones_like(a),
        "min-snr": torch.minimum(torch.ones_like(a), GAMMA / snr),
        "edm": 1 + 1 / (snr * DATA_STD**2),
        "likelihood": g2 / (2 * s**2),
    }[weight]
    on_x0 = {
        "snr": snr,
        "sigma2": snr,
        "min-snr": torch.clamp(snr, max=GAMMA),
        "edm": snr + 1 / DATA_STD**2,
        "likelihood": -(2 * a * da / s**2 - 2 * a**2 * ds / s**3) / 2,  # -SNR'/2
    }[weight]
    if output == "noise":
        return on_noise
    if output == "x0":
        return on_x0
    if output == "score":
        return {"likelihood": g2 / 2, "sigma2": s**2, "snr": s**2}.get(weight, on_noise * s**2)
    if output == "velocity":
        unit = (2 * s / g2) ** 2
        return {"likelihood": 2 / g2, "sigma2": unit, "snr": unit}.get(weight, on_noise * unit)
    if output == "v":
        return on_noise * (a / (a**2 + s**2)) ** 2
    if weight == "edm":
        return torch.ones_like(a)
    return on_x0 * s**2 * DATA_STD**2 / (a**2 * DATA_STD**2 + s**2)  # c_out^2


WEIGHTS: dict[str, Any] = {
    "snr": SNR(),
    "sigma2": Sigma2(),
    "min-snr": MinSNR(GAMMA),
    "edm": EDMWeight(DATA_STD),
    "likelihood": Likelihood(),
}
OUTPUTS = ("x0", "noise", "score", "velocity", "v", "edm")


def reading_of(name: str) -> Any:
    return edm_reading(DATA_STD) if name == "edm" else READINGS[name]


class Fixed:
    """A denoiser that says `out` whatever it is asked, in one reading (None: the pair x0, noise)."""

    shape = (DIM,)
    lam_range = (-math.inf, math.inf)

    def __init__(self, process: Process, out: Any, reading: Any) -> None:
        self.process, self.out, self.reading = process, out, reading

    def __call__(self, x: Tensor, s: Any, cond: Any = None) -> Prediction:
        self.x, self.s = x, s
        if self.reading is None:
            return Prediction(self.process, x, s, x0=self.out[0], noise=self.out[1])
        return Prediction(self.process, x, s, other=(self.reading, self.out))


def draws(n: int, seed: int = 5, step: int = 7, dim: int = DIM) -> tuple[Tensor, Tensor]:
    """(u, eps): what the objective draws for (seed, step)."""
    rows = torch.arange(n)
    u = noise.uniform(seed, rows, (), draw=step << 8 | 1, domain="training", dtype=F64)
    return u, noise.normal(seed, rows, (dim,), draw=step << 8, domain="training", dtype=F64)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("name", HAND)
def test_the_loss_of_a_sample_is_the_stated_weight_times_the_squared_error(name: str, weight: str, output: str) -> None:
    process, hand = HAND[name]
    n = 40
    u, eps = draws(n)
    x0, out = torch.randn(2, n, DIM, dtype=F64)
    t = process.t_min + (process.T - process.t_min) * u
    h = hand(t)
    A, B = target_row(output, h)
    denoiser = Fixed(process, out, reading_of(output))
    result = Denoising(weight=WEIGHTS[weight]).terms(denoiser, x0, seed=5, step=7)
    assert torch.allclose(result.t, t, rtol=1e-14, atol=0)
    assert torch.allclose(denoiser.x, h[0][:, None] * x0 + h[1][:, None] * eps, rtol=1e-9, atol=1e-13)
    error = (out - A[:, None] * x0 - B[:, None] * eps).square().mean(1)
    assert torch.allclose(result.loss, stated(weight, output, h) * error, rtol=3e-12, atol=0)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("name", HAND)
def test_value_times_q_squared_is_the_table(name: str, weight: str) -> None:
    process, hand = HAND[name]
    t = torch.linspace(0.02, 0.98, 25, dtype=F64) * process.T
    h = hand(t)
    base = WEIGHTS[weight].of(READINGS["v"])
    for output in OUTPUTS:
        q = coefficients(process, t, reading_of(output), base)[1]
        got = WEIGHTS[weight].value(process, t) * q**2
        assert torch.allclose(got, stated(weight, output, h), rtol=1e-12, atol=0), output


@pytest.mark.parametrize("predict", ["x0", "noise", "score", "velocity", "v"])
def test_uniform_is_one_on_the_reading_it_predicts(predict: str) -> None:
    process, hand = HAND["trig"]
    u, eps = draws(30)
    x0, out = torch.randn(2, 30, DIM, dtype=F64)
    h = hand(process.t_min + (process.T - process.t_min) * u)
    A, B = target_row(predict, h)
    got = Denoising(predict=predict).terms(Fixed(process, out, READINGS[predict]), x0, seed=5, step=7).loss
    assert torch.allclose(got, (out - A[:, None] * x0 - B[:, None] * eps).square().mean(1), rtol=1e-12, atol=0)
    assert Uniform().of(READINGS[predict]) is READINGS[predict]


@pytest.mark.parametrize("name", HAND)
def test_equation_6_3_6_holds_per_sample(name: str) -> None:
    process, hand = HAND[name]
    t = torch.linspace(0.05, 0.95, 30, dtype=F64) * process.T
    x0, eps, wrong = torch.randn(3, 30, DIM, dtype=F64)
    a, s, da, ds = hand(t)
    x = a[:, None] * x0 + s[:, None] * eps
    model = Prediction(process, x, t, noise=eps + wrong)
    truth = Prediction(process, x, t, noise=eps)
    error = {r: (model.read(r) - truth.read(r)).square().sum(1) for r in ("x0", "noise", "score", "velocity")}
    g2 = 2 * s * (ds - da / a * s)
    expected = {
        "score": error["score"],
        "noise": error["noise"] / s**2,
        "x0": error["x0"] * a**2 / s**4,
        "velocity": error["velocity"] * (a / (s * (da * s - a * ds))) ** 2,
        "g": error["velocity"] * (2 / g2) ** 2,
    }
    for value in expected.values():
        assert torch.allclose(value, wrong.square().sum(1) / s**2, rtol=1e-11, atol=0)


def test_min_snr_stops_growing_at_gamma() -> None:
    t = torch.linspace(0.01, 0.99, 99, dtype=F64)
    snr = ((1 - t) / t) ** 2
    for gamma in (0.5, 5.0):
        on_x0 = MinSNR(gamma).value(Flow(), t) * snr
        assert torch.allclose(on_x0, snr.clamp(max=gamma), rtol=1e-12, atol=0)
        assert (on_x0 == snr.clamp(max=gamma)).any() or math.isclose(float(on_x0.max()), gamma, rel_tol=1e-12)
    ends = torch.tensor([1.0], dtype=F64)
    assert MinSNR().value(Flow(), ends).item() == 1.0  # no signal is left: finite all the same
    assert MinSNR().gamma == 5.0 and EDMWeight().sigma_data == 0.5


@pytest.mark.parametrize(("cls", "field"), [(MinSNR, "gamma"), (EDMWeight, "sigma_data")])
def test_impossible_weights_are_refused(cls: Any, field: str) -> None:
    for value in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match=field):
            cls(**{field: value})


@pytest.mark.parametrize("name", HAND)
def test_a_net_that_says_zero_has_edm_loss_one_at_every_time(name: str) -> None:
    process, hand = HAND[name]
    n, dim, slices = 1600, 64, 8
    x0 = DATA_STD * noise.normal(3, torch.arange(n), (dim,), dtype=F64)
    silent = Fixed(process, torch.zeros(n, dim, dtype=F64), edm_reading(DATA_STD))
    objective = Denoising.edm(DATA_STD, stratified=True)
    result = objective.terms(silent, x0, seed=1)
    parts = result.loss.reshape(slices, -1).mean(1)
    se = math.sqrt(2 / dim / (n / slices))  # the loss of a sample is chi-squared / dim
    assert ((parts - 1).abs() < 4 * se).all(), parts
    A, B = target_row("edm", hand(result.t))
    assert torch.allclose(A**2 * DATA_STD**2 + B**2, torch.ones(n, dtype=F64), rtol=1e-13, atol=0)


# ---- Zheng & Lan 2026, Table 6: the maximum-likelihood losses, p = N(.4, .5) and q = N(-.3, 1.2)

P, Q = (0.4, 0.5), (-0.3, 1.2)
TABLE6: dict[str, tuple[Process, Callable[[Tensor], tuple[Tensor, ...]], str, Callable[[Tensor], Tensor]]] = {
    "vp": (
        VP(beta_min=1.0, beta_max=1.0),
        lambda t: (
            (-t / 2).exp(),
            (1 - (-t).exp()).sqrt(),
            -(-t / 2).exp() / 2,
            (-t).exp() / (1 - (-t).exp()).sqrt() / 2,
        ),
        "score",
        lambda t: torch.full_like(t, 0.5),
    ),
    "edm": (EDM(sigma_max=3.0), HAND["edm"][1], "noise", lambda t: 1 / t),
    "flow": (Flow(), HAND["flow"][1], "velocity", lambda t: (1 - t) / t),
}


def gaussian_at(law: tuple[float, float], h: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    return h[0] * law[0], h[0] ** 2 * law[1] + h[1] ** 2


def kl_at(h: tuple[Tensor, ...]) -> float:
    (m, v), (k, w) = gaussian_at(P, h), gaussian_at(Q, h)
    return float(0.5 * (v / w - 1 - (v / w).log() + (m - k) ** 2 / w))


def fisher_at(h: tuple[Tensor, ...]) -> float:
    """E_p (score_p - score_q)^2, scores -(x - m)/v and -(x - k)/w."""
    (m, v), (k, w) = gaussian_at(P, h), gaussian_at(Q, h)
    slope = 1 / w - 1 / v
    return float(slope**2 * v + ((m - k) / w) ** 2)


class GaussianOracle(Fixed):
    """The exact denoiser of N(mean, var), in the pair."""

    def __init__(self, process: Process, law: tuple[float, float]) -> None:
        super().__init__(process, None, None)
        self.law = law

    def __call__(self, x: Tensor, s: Any, cond: Any = None) -> Prediction:
        a, sig = self.process.alpha(s)[:, None], self.process.sigma(s)[:, None]
        gap = (x - a * self.law[0]) / (a**2 * self.law[1] + sig**2)
        return Prediction(self.process, x, s, x0=self.law[0] + a * self.law[1] * gap, noise=sig * gap)


@pytest.mark.parametrize("name", TABLE6)
def test_table_6_coefficients(name: str) -> None:
    process, hand, output, coefficient = TABLE6[name]
    u, eps = draws(50)
    x0, out = torch.randn(2, 50, DIM, dtype=F64)
    t = process.t_min + (process.T - process.t_min) * u
    A, B = target_row(output, hand(t))
    objective = Denoising(weight=Likelihood(), density="replace")
    got = objective.terms(Fixed(process, out, READINGS[output]), x0, seed=5, step=7).loss / (process.T - process.t_min)
    error = (out - A[:, None] * x0 - B[:, None] * eps).square().mean(1)
    assert torch.allclose(got, coefficient(t) * error, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", TABLE6)
def test_kl_decays_by_half_g2_fisher_and_the_loss_integrates_to_it(name: str) -> None:
    process, hand, _, _ = TABLE6[name]

    def rate(t: float) -> float:
        """w E_p (v_p - v_q)^2 with the library's weight; v_p - v_q = -(g^2/2)(score_p - score_q), by hand."""
        at = torch.tensor([t], dtype=F64)
        a, s, da, ds = hand(at)
        half = float(s * (ds - da / a * s))
        return float(Likelihood().value(process, at)) * half**2 * fisher_at(hand(at))

    for t in (0.1, 0.3, 0.6, 0.9):
        h = 1e-3
        k = [kl_at(hand(torch.tensor([t + j * h], dtype=F64))) for j in (-2, -1, 1, 2)]
        slope = (k[0] - 8 * k[1] + 8 * k[2] - k[3]) / (12 * h)
        assert math.isclose(slope, -rate(t), rel_tol=1e-7)
    low, high = process.t_min, process.T * (1 - 1e-12)
    gap = kl_at(hand(torch.tensor([low], dtype=F64))) - kl_at(hand(torch.tensor([high], dtype=F64)))
    assert math.isclose(quad(rate, low, high, epsabs=1e-12, epsrel=1e-11, limit=200)[0], gap, rel_tol=1e-9)


@pytest.mark.parametrize("name", TABLE6)
def test_the_likelihood_loss_of_a_model_less_its_floor_is_the_kl(name: str) -> None:
    process, hand, _, _ = TABLE6[name]
    n, dim = 4096, 48
    x0 = P[0] + math.sqrt(P[1]) * noise.normal(9, torch.arange(n), (dim,), dtype=F64)
    objective = Denoising(weight="likelihood", density="replace", stratified=True)
    model, floor = (objective.terms(GaussianOracle(process, law), x0).loss for law in (Q, P))
    gap = model - floor
    ends = [torch.tensor([t], dtype=F64) for t in (process.t_min, process.T * (1 - 1e-12))]
    expected = kl_at(hand(ends[0])) - kl_at(hand(ends[1]))
    se = float(gap.std()) / math.sqrt(n)
    assert abs(float(gap.mean()) - expected) < 4 * se and se < 0.03 * expected
