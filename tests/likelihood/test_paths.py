"""Weighted paths against a chain in closed form; Girsanov's divergence of two scores."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import fokker as fk
from fokker.errors import ConfigError
from fokker.likelihood import elbo, path_kl, weighted_log_prob
from fokker.process import Process

MEAN, VAR = 0.4, 0.3
LAW = fk.exact.Gaussian([MEAN], [VAR])
X = torch.tensor([[-0.6], [0.2], [0.7], [1.9]]).double()


class Louder:
    """A score too large by a factor."""

    def __init__(self, inner: fk.Denoiser, factor: float) -> None:
        self.inner, self.factor, self.process, self.shape = inner, factor, inner.process, inner.shape
        self.lam_range, self.reading = inner.lam_range, None

    def __call__(self, x: Tensor, s: float | Tensor, cond: object = None) -> fk.Prediction:
        return fk.Prediction(self.process, x, s, noise=self.factor * self.inner(x, s, cond).noise)


def chain(process: Process, times: list[float]) -> tuple[Tensor, Tensor]:
    """(log p_chain, the discrete bound) at X with the exact denoiser: everything is Gaussian."""
    mean, var = 0.0, float(process.prior_std(times[0])) ** 2
    alpha, sigma = (float(f(times[0])) for f in (process.alpha, process.sigma))
    std2 = var
    bound = -0.5 * (sigma**2 / std2 - 1.0 - math.log(sigma**2 / std2) + (alpha * X) ** 2 / std2)
    for s, t in pairwise(times):
        on_x, on_x0, c = (float(value) for value in process.bridge(s, t))
        a, b = float(process.alpha(s)), float(process.sigma(s))
        gain = a * VAR / (a * a * VAR + b * b)  # x0_hat = MEAN + gain (x - a MEAN)
        mean = on_x * mean + on_x0 * (MEAN + gain * (mean - a * MEAN))
        var = (on_x + on_x0 * gain) ** 2 * var + c * c
        snr = [math.exp(2.0 * float(process.lam(u))) for u in (s, t)]
        bound = bound - 0.5 * (snr[1] - snr[0]) * (((1.0 - gain * a) * (X - MEAN)) ** 2 + (gain * b) ** 2)
    alpha, rho = float(process.alpha(times[-1])), math.exp(-float(process.lam(times[-1])))
    mean, var = mean / alpha, var / alpha**2 + rho**2
    log_p = -0.5 * (X - mean) ** 2 / var - 0.5 * math.log(2.0 * math.pi * var)
    return log_p[:, 0], (bound - 0.5 * math.log(2.0 * math.pi * math.e) - math.log(rho))[:, 0]


@pytest.mark.parametrize("process", [fk.VP(), fk.EDM(), fk.Flow()], ids=lambda process: type(process).__name__)
def test_the_mean_weight_is_the_chains_density(process: Process) -> None:
    times = fk.solvers.UniformLam().times(process, 12, process.t_max, 10.0 * process.t_min, False)
    log_p, bound = chain(process, times.tolist())
    found = weighted_log_prob(LAW.denoiser(process), X, paths=40_000, grid=times)
    assert ((found.value - log_p) / found.stderr).abs().max() < 4.0 and float(found.stderr.max()) < 0.1
    # Many batches of 200 paths give the discrete bound and its spread.
    few = weighted_log_prob(LAW.denoiser(process), X.repeat(100, 1), paths=200, grid=times)
    means = few.bound.reshape(100, 4)
    assert ((means.mean(0) - bound) / (means.std(0) / 10.0)).abs().max() < 4.0
    assert bool((bound < log_p - 0.02).all()) and bool((few.value >= few.bound).all())
    assert float(found.ess.min()) > 1.0 and float(found.ess.max()) < 40_000
    # The standard error is the spread of repetitions.
    ratio = few.value.reshape(100, 4).std(0) / few.stderr.reshape(100, 4).square().mean(0).sqrt()
    assert float(ratio.min()) > 0.5 and float(ratio.max()) < 2.0


def test_many_steps_approach_the_continuous_bound() -> None:
    process = fk.VP()
    steps = (50, 100, 200)
    x = X.repeat(400, 1)
    ends = [fk.solvers.UniformLam().times(process, n, 1.0, process.t_min, False).tolist() for n in steps]
    limit = elbo(LAW.denoiser(process), x, draws=64).value.reshape(400, 4)
    gaps = [float((limit.mean(0) - chain(process, times)[1]).mean()) for times in ends]
    error = float(limit.std(0).max()) / 40.0  # the mean of 4 x 400
    assert all(gap > 0 for gap in gaps) and abs(2 * gaps[2] - gaps[1]) < 0.2 * gaps[1] + 4.0 * error


def test_conditions_numbers_and_the_default_grid() -> None:
    law = fk.exact.GaussianMixture([0.5, 0.5], [[2.0], [-2.0]], [[0.3], [0.3]], labels=[0, 1])
    denoiser, told = law.denoiser(fk.VP()), torch.tensor([0, 1, 1])
    x = torch.tensor([[2.1], [-1.8], [-2.2]]).double()
    whole = weighted_log_prob(denoiser, x, paths=50, cond=told)
    last = weighted_log_prob(denoiser, x[2:], paths=50, cond=told[2:], index=torch.tensor([2]))
    assert abs(float(whole.value[2] - last.value[0])) < 1e-12
    want = torch.stack([fk.exact.Gaussian([m], [0.3]).log_prob(x) for m in (2.0, -2.0)])[told, torch.arange(3)]
    assert (whole.value - want).abs().max() < 0.5  # 50 steps, 50 paths; the other class is 13 nats away
    with pytest.raises(ConfigError, match="paths: given 1, must be 2 or more"):
        weighted_log_prob(denoiser, x, paths=1)


def test_girsanov_in_numbers() -> None:
    # Verified against exact path divergences of an Euler-Maruyama chain: 0.0739553 from t = 0 on, here from t_min.
    process, law = fk.VP(beta_max=5.0), fk.exact.Gaussian([0.0], [0.3])
    truth = law.denoiser(process)
    q = [1.0 / (1.0 + 0.3 * math.exp(2.0 * float(process.lam(t)))) for t in (process.T, process.t_min)]
    want = 0.02 * math.log((1.0 - q[1]) / (1.0 - q[0]))
    assert abs(-0.02 * math.log(1.0 - q[0]) - 0.0739553) < 1e-7 and abs(want - 0.0739553) < 1e-4
    found = path_kl(truth, Louder(truth, 1.2), law.sample(2000, dtype=torch.float64), draws=32)
    assert abs(float(found.value) - want) < 4.0 * float(found.stderr) and float(found.stderr) < 0.002
    same = path_kl(truth, truth, law.sample(10))
    assert float(same.value) == 0.0 and float(same.stderr) == 0.0
    with pytest.raises(ConfigError, match="must be one process"):
        path_kl(truth, law.denoiser(fk.Flow()), X)


SLOW = fk.VP(beta_max=5.0)
ZERO = fk.exact.Gaussian([0.0], [0.3])


def reverse_chain(n: int, factor: float) -> list[tuple[float, float, float, float]]:
    """(s, t, a, r) of x_t ~ N(a x_s, r): n equal Euler-Maruyama steps from 1 to 0, the score of ZERO times `factor`."""
    times = torch.linspace(1.0, 0.0, n + 1, dtype=torch.float64)
    denoiser, one, found = Louder(ZERO.denoiser(SLOW), factor), torch.ones(1, 1, dtype=torch.float64), []
    x0 = denoiser(one.expand(n, 1), times[:-1]).x0[:, 0].tolist()  # of the state 1: all is linear in the state
    for step, gain in zip(fk.solvers.EulerMaruyama().steps(SLOW, times[:-1], times[1:]), x0, strict=True):
        (_, on_x), (_, on_x0), (_, std) = step.out
        found.append((step.start, step.end, float(on_x) + float(on_x0) * gain, float(std) ** 2))
    return found


def test_the_path_divergence_of_the_euler_maruyama_chain() -> None:
    """Sec. C.2.1: KL(p_T | prior) and, of every step, the two means' distance^2 / (2 r); slope 1 to .0747305."""
    end = 0.3 * float(SLOW.alpha(1.0)) ** 2 + float(SLOW.sigma(1.0)) ** 2
    prior, found = 0.5 * (end - 1.0 - math.log(end)), []
    assert prior == pytest.approx(0.0007752, abs=5e-8)
    for n in (250, 500, 1000, 2000, 4000):
        u, total = end, prior
        for (_, _, a, r), (_, _, louder, _) in zip(reverse_chain(n, 1.0), reverse_chain(n, 1.2), strict=True):
            total += 0.5 * (louder - a) ** 2 * u / r
            u = a * a * u + r
        found.append(total)
    assert found == pytest.approx([0.075303, 0.075016, 0.074873, 0.074802, 0.074766], abs=6e-7)
    gaps = [value - 0.0747305 for value in found]
    assert [math.log2(a / b) for a, b in pairwise(gaps)] == pytest.approx([1.0] * 4, abs=0.01)
    # the marginals are closer than the paths: u and the louder chain's own variance, from N(0, 1)
    v = 1.0
    for _, _, a, r in reverse_chain(4000, 1.2):
        v = a * a * v + r
    assert 0.5 * (u / v - 1.0 - math.log(u / v)) == pytest.approx(0.0312, abs=1e-4)


def test_the_density_and_the_bound_of_a_chain_of_fifty_steps() -> None:
    """Sec. C.2.1: log p(.7) = -1.27746, and E log of the weight under exact forward transitions -1.46177 (by sampling
    -1.46257); the line that the book prints counts the prior twice."""
    chain, x = reverse_chain(50, 1.2), 0.7
    v = 1.0
    for _, _, a, r in chain:
        v = a * a * v + r
    log_p = -0.5 * (x * x / v + math.log(2.0 * math.pi * v))
    alpha, sigma = float(SLOW.alpha(1.0)), float(SLOW.sigma(1.0))
    prior = -0.5 * (math.log(2.0 * math.pi) + (alpha * x) ** 2 + sigma**2)
    bound = prior
    for s, t, a, r in chain:
        kernel = SLOW.transition(t, s)
        k, c2 = (float(value) for value in (kernel.scale, kernel.std**2))
        square = (float(SLOW.alpha(t)) * x) ** 2 + float(SLOW.sigma(t)) ** 2  # E x_t^2 given x
        bound += -0.5 * (math.log(r) + ((1.0 - a * k) ** 2 * square + a * a * c2) / r) + 0.5 * (math.log(c2) + 1.0)
    assert log_p == pytest.approx(-1.27746, abs=1e-5) and bound == pytest.approx(-1.46177, abs=1e-5)
    assert bound == pytest.approx(-1.46257, abs=1.5e-3)  # the printed estimate
    assert bound + prior < -2.0
