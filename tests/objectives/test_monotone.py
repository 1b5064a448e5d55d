"""Monotone weights of the log-SNR: Kingma & Gao's integral in closed form, and EDM's own weight."""

import math

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from fokker.objectives import EDMMonotone, EDMWeight, Likelihood, LogNormal, Sigmoid
from fokker.prediction import READINGS, coefficients, edm_reading
from fokker.process import EDM, VP, Flow, Process, Trig

F64 = torch.float64
PROCESSES: list[Process] = [VP(), EDM(), Flow(), Trig()]


def on_noise(weight: Sigmoid | EDMMonotone | Likelihood | EDMWeight, process: Process, t: Tensor) -> Tensor:
    """The weight as one on the squared error of the noise."""
    factor = coefficients(process, t, READINGS["noise"], weight.of(READINGS["velocity"]))[1]
    return weight.value(process, t) * factor**2


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("bias", [-3.0, 2.0])
def test_sigmoid_integrates_to_its_softplus(process: Process, bias: float) -> None:
    # A noise error of 1 everywhere: 1/2 int sigmoid(bias - l) dl = 1/2 [softplus(bias - l)] over l = 2 lam.
    low, high = process.t_min, 0.9 * process.T
    ends = [2 * float(process.lam(t)) for t in (low, high)]
    softplus = [math.log1p(math.exp(-abs(bias - l))) + max(bias - l, 0) for l in ends]
    # In s = log t, where all of these are smooth.
    value = quad(
        lambda s: float(on_noise(Sigmoid(bias), process, torch.tensor([math.exp(s)], dtype=F64))) * math.exp(s),
        math.log(low),
        math.log(high),
        epsrel=1e-10,
        limit=200,
    )[0]
    assert math.isclose(value, 0.5 * (softplus[1] - softplus[0]), rel_tol=1e-6)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_sigmoid_is_likelihood_times_one_half_at_the_bias(process: Process) -> None:
    t = torch.linspace(0.1, 0.9, 17, dtype=F64) * process.T
    for bias in (-1.0, 2.0):
        ratio = Sigmoid(bias).value(process, t) / Likelihood().value(process, t)
        snr = (process.alpha(t) / process.sigma(t)) ** 2
        assert torch.allclose(ratio, 1 / (1 + snr * math.exp(-bias)), rtol=1e-10)
        assert Sigmoid(bias).of(READINGS["x0"]) == Likelihood().of(READINGS["x0"])
    assert Sigmoid() == Sigmoid(2.0)
    assert torch.isfinite(Sigmoid().value(Flow(), torch.tensor([1.0]))).all()  # also where alpha = 0


def bump(l: Tensor, mean: float, std: float, d: float) -> Tensor:
    return torch.exp(-0.5 * ((l + 2 * mean) / (2 * std)) ** 2) * (torch.exp(-l) + d**2)


@pytest.mark.parametrize(("mean", "std", "d"), [(-1.2, 1.2, 0.5), (0.3, 0.8, 1.0), (-1.0, 4.0, 0.05)])
def test_edm_monotone_is_the_running_maximum_of_edms_weight(mean: float, std: float, d: float) -> None:
    weight = EDMMonotone(d, mean, std)
    low, high = -2 * mean - 4 * std**2, -2 * mean
    l = torch.linspace(low - 9, high + 9, 200_001, dtype=F64)
    plain = bump(l, mean, std, d)
    brute = plain.flip(0).cummax(0).values.flip(0) / plain.max()
    assert torch.allclose(weight.of_log_snr(l), brute, rtol=1e-5, atol=1e-300)
    assert (weight.of_log_snr(l).diff() <= 1e-6).all() and weight.of_log_snr(l)[0] == 1.0
    assert (brute[:-1] > plain[:-1] / plain.max() * 1.01).any()  # the maximum matters


@pytest.mark.parametrize("process", [EDM(), VP()], ids=lambda p: type(p).__name__)
def test_right_of_its_mode_it_is_what_edm_trains_with(process: Process) -> None:
    l = torch.linspace(-2.5, 7.0, 20, dtype=F64)
    t = process.time(l / 2)
    edm = on_noise(EDMWeight(0.5), process, t) * LogNormal().density(process, t)
    ratio = on_noise(EDMMonotone(), process, t) / edm
    assert torch.allclose(ratio, ratio[:1].expand(20), rtol=1e-6)
    assert EDMMonotone() == EDMMonotone(0.5, -1.2, 1.2) and edm_reading(0.5) is not None
    # Left of the mode, near l = -3.35, it stays while EDM's falls.
    left = process.time(torch.tensor([-4.5, -4.0], dtype=F64))
    if float(2 * process.lam(process.T)) < -9:
        assert torch.allclose(EDMMonotone().of_log_snr(2 * process.lam(left)), torch.ones(2, dtype=F64), atol=1e-7)
