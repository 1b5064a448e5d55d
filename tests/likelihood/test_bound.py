"""The variational bound: every term in closed form, never above log p, tight where theory says."""

import math

import pytest
import torch
from torch import Tensor

import fokker as fk
from fokker.errors import ConfigError
from fokker.likelihood import bits_per_dim, elbo, log_prob
from fokker.likelihood.bound import _reconstruction
from fokker.objectives import Likelihood, LogNormal
from fokker.process import Process

VAR = torch.tensor([0.8, 0.3, 1.5]).double()
MEAN = torch.tensor([0.5, -0.2, 0.1]).double()
GAUSSIAN = fk.exact.Gaussian(MEAN, VAR)
MIXTURE = fk.exact.GaussianMixture([0.3, 0.7], [[1.0, -0.5], [-1.0, 0.5]], [[0.3, 0.2], [0.5, 0.1]])
PROCESSES = [fk.VP(), fk.VE(), fk.EDM(), fk.Flow(), fk.Cosine()]


def diffusion(x: Tensor, low: float, high: float) -> Tensor:
    """int E|eps - eps_hat|^2 d lam for Gaussian data: q = 1 / (1 + v SNR), the error (1-q)^2 + SNR q^2 y^2."""
    q = [1.0 / (1.0 + VAR * math.exp(2.0 * lam)) for lam in (low, high)]
    y2 = (x - MEAN) ** 2
    return (0.5 * ((q[0] / q[1]).log() + (q[1] - q[0]) * (1.0 - y2 / VAR))).sum(1)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
def test_every_term_of_a_gaussian(process: Process) -> None:
    x = GAUSSIAN.sample(200, seed=1, dtype=torch.float64)
    found = elbo(GAUSSIAN.denoiser(process), x, draws=32)
    s, T = process.t_min, process.t_max
    low, high = (float(process.lam(t)) for t in (T, s))
    alpha, sigma, std = (float(f(T)) for f in (process.alpha, process.sigma, process.prior_std))
    ratio = (sigma / std) ** 2
    prior = (0.5 * (ratio - 1.0 - math.log(ratio)) + 0.5 * (alpha * x / std) ** 2).sum(1)
    assert (found.prior / prior - 1.0).abs().max() < 1e-6
    assert (found.reconstruction - 1.5 * math.log(2.0 * math.pi * math.e) + 3.0 * high).abs().max() < 1e-9
    assert torch.equal(found.value, -(found.prior + found.diffusion + found.reconstruction))
    miss = found.diffusion - diffusion(x, low, high)
    assert abs(float(miss.mean())) < 4.0 * float(miss.std()) / math.sqrt(200)
    ratio = float(miss.square().mean() / found.stderr.square().mean())
    assert 0.7 < ratio < 1.4, ratio
    assert float(found.stderr.square().mean().sqrt()) < 1.1  # 1.9 without the variate of known mean


@pytest.mark.parametrize("law", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
def test_never_above_and_tight_where_theory_says(law: fk.exact.Gaussian | fk.exact.GaussianMixture) -> None:
    # Exact denoiser: E log p_0 - E bound = KL(p_T || prior) + E KL(x_0 | x_s || decoder), the latter about rho^2 / 2
    # times the Fisher information; together below 1e-2 here. A sample's own gap is a KL as well: never negative.
    process = fk.VP()
    x = law.sample(12, seed=2, dtype=torch.float64)
    found = elbo(law.denoiser(process), x.repeat(64, 1), draws=64).value.reshape(64, 12)
    gap, error = law.log_prob(x) - found.mean(0), found.std(0) / 8.0
    assert float((gap / error).min()) > -4.0
    # Their mean over the data, with a variance of the bound's own: at most the 1e-2 of above.
    x = law.sample(2000, seed=3, dtype=torch.float64)
    gap = law.log_prob(x) - elbo(law.denoiser(process), x, draws=32).value
    error = float(gap.std()) / math.sqrt(2000)
    assert -4.0 * error < float(gap.mean()) < 1e-2 + 4.0 * error and error < 0.025


def test_a_wrong_score_pays_its_path_divergence() -> None:
    # Score (1 + c) s: the gap grows by 1/2 int g^2 c^2 E|s|^2 dt in expectation (book Eq. C.2.1), and here
    # E eps_hat^2 = sigma^2 / V = q with d lam = -dq / (2 q (1 - q)).
    class Louder:
        def __init__(self, inner: fk.Denoiser) -> None:
            self.denoiser, self.process, self.shape = inner, inner.process, inner.shape
            self.lam_range, self.reading = inner.lam_range, None

        def __call__(self, x: Tensor, s: float | Tensor, cond: object = None) -> fk.Prediction:
            return fk.Prediction(self.process, x, s, noise=1.3 * self.denoiser(x, s, cond).noise)

    process, law = fk.VP(), fk.exact.Gaussian(torch.zeros(3).double(), VAR)
    x = law.sample(2000, seed=3, dtype=torch.float64)
    right, wrong = (elbo(d, x, draws=16) for d in (law.denoiser(process), Louder(law.denoiser(process))))
    lost = right.diffusion - wrong.diffusion
    q = [1.0 / (1.0 + VAR * (2.0 * process.lam(t)).exp()) for t in (process.T, process.t_min)]
    want = -0.09 * 0.5 * float(((1.0 - q[1]) / (1.0 - q[0])).log().sum())
    assert abs(float(lost.mean()) - want) < 4.0 * float(lost.std()) / math.sqrt(2000)
    assert abs(want) > 20.0 * float(lost.std()) / math.sqrt(2000)


def test_the_likelihood_weighted_loss_is_the_diffusion_term() -> None:
    process = fk.VP()
    objective = fk.Denoising(weight=Likelihood(), times=LogNormal(mean=0.0, std=3.0), density="replace")
    x = GAUSSIAN.sample(20_000, seed=6, dtype=torch.float64)
    losses = 3.0 * objective.terms(GAUSSIAN.denoiser(process), x).loss.double()
    want = diffusion(x, *(float(process.lam(t)) for t in (process.T, process.t_min)))
    error = math.hypot(float(losses.std()), float(want.std())) / math.sqrt(20_000)
    assert abs(float(losses.mean() - want.mean())) < 4.0 * error < 0.05 * float(want.mean())


def test_the_bound_is_below_the_likelihood_of_the_flow_and_by_little() -> None:
    process = fk.Flow()
    x = MIXTURE.sample(64, seed=5, dtype=torch.float64)
    flow, bound = log_prob(MIXTURE.denoiser(process), x, solver="rk4", steps=40), elbo(MIXTURE.denoiser(process), x)
    gap = flow.value - bound.value
    error = float(gap.std()) / 8.0
    assert -4.0 * error < float(gap.mean()) < 4.0 * error and error < 0.1


def test_levels_are_bounded_by_the_rounded_model() -> None:
    # A 1-D Gaussian, 8 levels: the model draws x_s, then N(x_s / alpha, rho^2), and rounds: variance v + 2 rho^2.
    process, v = fk.VP(), 0.3
    law = fk.exact.Gaussian([0.1], [v])
    levels, h = 8, 2.0 / 7.0
    x = (torch.arange(8).double() * h - 1.0)[:, None]
    edges = torch.cat([torch.tensor([-math.inf]), (x[:-1, 0] + h / 2), torch.tensor([math.inf])])
    rho2 = (0.75 * h) ** 2  # noisier than t_min
    cdf = torch.special.ndtr((edges - 0.1) / math.sqrt(v + 2.0 * rho2))
    log_p = cdf.diff().log()
    found = elbo(law.denoiser(process), x.repeat(100, 1), levels=levels).value.reshape(100, 8)
    gap, error = log_p - found.mean(0), found.std(0) / 10.0
    assert float((gap / error).min()) > -4.0
    assert 0.0 < float((log_p.exp() * gap).sum()) < 0.2  # what one more step of noise and a whole cell can cost
    bits = float((log_p.exp() * bits_per_dim(found.mean(0), (1,))).sum())
    assert -float((log_p.exp() * log_p).sum()) / math.log(2.0) < bits < 3.1


def test_the_decoder_of_levels_in_numbers() -> None:
    # By simulation: P(level | x_s) as the share of N(x_s / alpha, rho^2) that rounds to it.
    torch.manual_seed(1)
    rho, levels, h = 0.2, 6, 0.4
    for level in (0, 2, 5):
        c = 2.0 * level / 5 - 1.0
        seen = c + rho * torch.randn(400_000, dtype=torch.float64)
        low = -math.inf if level == 0 else c - h / 2
        high = math.inf if level == 5 else c + h / 2
        share = torch.special.ndtr((high - seen) / rho) - torch.special.ndtr((low - seen) / rho)
        costs = -share.log()
        found = float(_reconstruction(torch.tensor([[c]]), rho, levels))
        assert abs(found - float(costs.mean())) < 4.0 * float(costs.std()) / math.sqrt(400_000)
    both = _reconstruction(torch.tensor([[-1.0, 0.2, 1.0], [0.2, 0.2, -0.6]]), rho, levels).tolist()
    edge, inner = (float(_reconstruction(torch.tensor([[c]]), rho, levels)) for c in (-1.0, 0.2))
    assert abs(both[0] - 2 * edge - inner) < 1e-12 and abs(both[1] - 3 * inner) < 1e-12
    # Wide noise: the density times the cell; narrow noise: certain.
    wide = float(_reconstruction(torch.tensor([[0.2]]), 50.0, levels))
    assert abs(wide - (0.5 * math.log(2.0 * math.pi * math.e) + math.log(50.0) - math.log(h))) < 1e-5
    assert float(_reconstruction(torch.tensor([[0.2]]), 1e-3, levels)) < 1e-12


def test_batches_numbers_and_conditions_change_nothing() -> None:
    law = fk.exact.GaussianMixture([0.5, 0.5], [[2.0], [-2.0]], [[0.3], [0.3]], labels=[0, 1])
    denoiser, told, seen = law.denoiser(fk.VP()), torch.tensor([0, 1, 1]), []
    x = torch.tensor([[2.1], [-1.8], [-2.2]])
    whole = elbo(denoiser, x, draws=8, cond=told, batch_size=2, progress=lambda n: seen.append(n))
    last = elbo(denoiser, x[2:], draws=8, cond=told[2:], index=torch.tensor([2]))
    assert float(whole.value[2]) == float(last.value[0]) and seen == [2, 1]
    wrong = elbo(denoiser, x, draws=8, cond=1 - told)
    assert float((whole.value - wrong.value).min()) > 5.0
    assert not torch.equal(elbo(denoiser, x, draws=8, seed=1).value, elbo(denoiser, x, draws=8).value)


@pytest.mark.parametrize("draws", [0, 3])
def test_draws_come_in_pairs(draws: int) -> None:
    with pytest.raises(ConfigError, match=f"draws: given {draws}, must be even, 2 or more"):
        elbo(MIXTURE.denoiser(fk.VP()), torch.zeros(1, 2), draws=draws)
