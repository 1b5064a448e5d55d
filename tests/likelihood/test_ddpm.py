"""DDPM's bound in discrete time: its numbers on exact chains, never above the chain's own likelihood, unbiased."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fokker as fk
from fokker.component import Array
from fokker.errors import ConfigError
from fokker.likelihood import ChainBound, bits_per_dim, ddpm_bound, optimal_variance
from fokker.likelihood.ddpm import Chain
from fokker.likelihood.pixels import rounded_log_prob
from fokker.process import DiscreteVP
from fokker.registry import build, spec
from fokker.solvers import Ancestral

F64 = torch.float64
MEAN, VAR = 0.7, 0.25
LAW = fk.exact.Gaussian([MEAN], [VAR])
MIXTURE = fk.exact.GaussianMixture([0.3, 0.7], [[-2.0], [1.5]], [[0.04], [0.09]])
ENTROPY = 0.5 * math.log(2.0 * math.pi * math.e * VAR)


def nodes(n: int) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite for N(0, 1): exact for polynomials of degree 2n - 1."""
    h, w = np.polynomial.hermite_e.hermegauss(n)
    return torch.from_numpy(h), torch.from_numpy(w / w.sum())


def variances(process: DiscreteVP) -> Array:
    """Var[x_0 | x_n] of N(., VAR) at every level, as a table."""
    t = torch.arange(process.steps, 0, -1, dtype=F64) / process.steps
    a2, s2 = process.alpha(t) ** 2, process.sigma(t) ** 2
    return Array(torch.stack([process.lam(t), VAR * s2 / (a2 * VAR + s2)]))


def terms(
    chain: Chain, x: Tensor, weights: Tensor, n: int = 3, levels: int | None = None
) -> tuple[float, Tensor, float]:
    """(prior, KL_n of each level, reconstruction), x (B, d) averaged with weights and the noise by n nodes."""
    h, w = nodes(n)
    eps = h.repeat_interleave(len(x))[:, None].expand(-1, x.shape[1])
    many, both = x.repeat(n, 1), w.repeat_interleave(len(x)) * weights.repeat(n)

    def at(k: int) -> Any:
        place = torch.full((len(many),), k)
        missed, std = chain.predict(many, place, eps)
        return chain.decode(many, missed, std, levels) if k == 0 else chain.kl(place, missed, std)

    found = torch.stack([(both * at(k)).sum() for k in range(len(chain.n))])
    prior = chain.process.kl_to_prior(x, 0.0, chain.last / chain.process.steps).sum(1)
    return float((weights * prior).sum()), found[1:], float(found[0])


def gaussian_terms(chain: Chain) -> tuple[float, Tensor, float]:
    h, w = nodes(3)
    return terms(chain, (MEAN + math.sqrt(VAR) * h)[:, None], w)


def test_the_exact_reverse_chain_closes() -> None:
    """N(.7, .25), Ho's 1000 levels: the gap is what is forgotten, KL(p_L || N(0, 1)), and nothing else."""
    process = DiscreteVP()
    prior, kl, reconstruction = gaussian_terms(Chain(LAW.denoiser(process), variances(process)))
    assert prior == pytest.approx(1.4933e-5, abs=5e-10)
    assert reconstruction == pytest.approx(-3.186382, abs=5e-7)
    assert float(kl.sum()) == pytest.approx(3.912168, abs=5e-7) and len(kl) == 999
    total = prior + reconstruction + float(kl.sum())
    assert total == pytest.approx(0.7258012, abs=5e-8)
    forgotten = float(process.kl_to_prior(MEAN, VAR))
    assert forgotten == pytest.approx(9.8880e-6, abs=5e-11)
    assert total - ENTROPY == pytest.approx(forgotten, abs=1e-11)
    few = DiscreteVP(steps=100)
    prior, kl, reconstruction = gaussian_terms(Chain(LAW.denoiser(few), variances(few)))
    assert prior + reconstruction + float(kl.sum()) == pytest.approx(0.7257963, abs=5e-8)


def test_the_exact_chain_from_its_own_marginal_has_no_gap_at_any_point() -> None:
    """Prior p_L in place of N(0, 1): -ELBO(x) = -log p(x) at every x; N(0, 1) adds E[log p_L - log N(0, 1) | x]."""
    process = DiscreteVP(steps=100)
    chain = Chain(LAW.denoiser(process), variances(process))
    a, s2 = float(process.alpha(1.0)), float(process.sigma(1.0)) ** 2
    mean, var = a * MEAN, a**2 * VAR + s2
    for x, known in ((-0.5, -1.2132e-5), (0.7, 4.996e-6), (1.4, 1.4987e-5)):
        row = torch.tensor([[x]], dtype=F64)
        prior, kl, reconstruction = terms(chain, row, torch.ones(1, dtype=F64))
        own = 0.5 * ((s2 + (a * x - mean) ** 2) / var - 1.0 + math.log(var / s2))
        rest = reconstruction + float(kl.sum()) + float(LAW.log_prob(row))
        assert own + rest == pytest.approx(0.0, abs=1e-13)
        assert prior + rest == pytest.approx(known, rel=1e-4)


@pytest.mark.parametrize("variance", ["posterior", "forward"])
def test_fixed_variances_pay_their_own_divergence(variance: str) -> None:
    """Beyond what is forgotten: sum 1/2 (log r^2/q + q/r^2 - 1), q the true reverse kernel's variance."""
    process = DiscreteVP(steps=50)
    prior, kl, reconstruction = gaussian_terms(Chain(LAW.denoiser(process), variance))
    betas = torch.linspace(1e-4, 0.02, 50, dtype=F64) * 20.0
    abar = (1 - betas).cumprod(0)
    before = torch.cat([torch.ones(1, dtype=F64), abar[:-1]])
    tilde = betas * (1 - before) / (1 - abar)
    q = tilde + before * betas**2 / (1 - abar) ** 2 * VAR * (1 - abar) / (abar * VAR + 1 - abar)
    r2 = tilde.clone() if variance == "posterior" else betas
    r2[0] = tilde[1] if variance == "posterior" else betas[0]
    lost = float((0.5 * ((r2 / q).log() + q / r2 - 1.0)).sum())
    want = ENTROPY + float(process.kl_to_prior(MEAN, VAR)) + lost
    assert prior + reconstruction + float(kl.sum()) == pytest.approx(want, abs=1e-11)
    assert lost > 1e-3


def test_the_printed_forms_fail() -> None:
    process = DiscreteVP(steps=50)
    denoiser, (h, w) = LAW.denoiser(process), nodes(3)
    chain = Chain(denoiser, variances(process))
    # E7: at i = 1 the posterior is a point, and its KL to any Gaussian infinite ...
    step = process.bridge(1.0 / 50, 0.0)
    assert float(step.std) == 0.0 and float(step.on_x0) == 1.0
    ratio = (step.std / chain.std[0]) ** 2
    assert float(0.5 * (ratio - 1.0 - ratio.log())) == math.inf
    # ... and whatever finite stands there, the step is counted twice: the sum from 1 misses the entropy by far.
    prior, kl, reconstruction = gaussian_terms(chain)
    total = prior + reconstruction + float(kl.sum())
    assert total == pytest.approx(ENTROPY, abs=2e-5) and abs(reconstruction) > 1.0
    # E6: of equal variances the KL is |mu - mu*|^2 / (2 sigma^2), without a constant; but only its mean over x_n is the
    # bound's term, not its value at one x_n such as the mean.
    chain = Chain(denoiser, "posterior")
    x, k, n = (MEAN + 0.5 * h)[:, None], torch.full((3,), 4), 5
    s, t = n / 50, (n - 1) / 50
    by_hand, at_mean = 0.0, 0.0
    for eps, weight in zip([*h.tolist(), 0.0], [*w.tolist(), 0.0], strict=True):
        x_n = process.perturb(x, s, torch.full_like(x, eps))
        truth = process.posterior(x_n, x, s, t)
        off = (truth.mean - process.posterior(x_n, denoiser(x_n, s).x0, s, t).mean)[:, 0]
        value = off.square() / (2.0 * truth.std.square())
        assert (chain.kl(k, *chain.predict(x, k, torch.full_like(x, eps))) - value).abs().max() < 1e-12
        by_hand += weight * float((w * value).sum())
        at_mean = float((w * value).sum())
    # E8: the terms there are, level by level, and in closed form: omega_i Var[x_0 | x_i].
    snr = [float((2.0 * process.lam(u)).exp()) for u in (t, s)]
    closed = 0.5 * (snr[0] - snr[1]) * VAR / (1.0 + VAR * snr[1])
    per_level = gaussian_terms(chain)[1]
    assert by_hand == pytest.approx(closed, rel=1e-12) == float(per_level[n - 2])
    assert abs(at_mean / closed - 1.0) > 0.3


def recursion(chain: Chain) -> tuple[float, float]:
    """Mean and variance of the chain's x_0 from N(0, 1): x0_hat is affine for Gaussian data."""
    process, m, v = chain.process, 0.0, 1.0
    for k in range(len(chain.n) - 1, -1, -1):
        s = float(chain.n[k]) / process.steps
        t = 0.0 if k == 0 else s - 1.0 / process.steps
        on_x, on_x0, _ = (float(c) for c in process.bridge(s, t))
        a, sigma2 = float(process.alpha(s)), float(process.sigma(s)) ** 2
        gain = a * VAR / (a * a * VAR + sigma2)
        scale = on_x + on_x0 * gain
        m, v = scale * m + on_x0 * (1.0 - gain * a) * MEAN, scale**2 * v + float(chain.std[k]) ** 2
    return m, v


@pytest.mark.parametrize("variance", ["posterior", "forward", None])
@pytest.mark.parametrize("steps", [4, 30])
def test_the_data_processing_inequality(variance: str | None, steps: int) -> None:
    """KL(p_data || p_chain) <= KL of the joint laws = -E bound - H, here strictly."""
    process = DiscreteVP(steps=steps, beta_start=0.01, beta_end=0.6)
    chain = Chain(LAW.denoiser(process), variances(process) if variance is None else variance)
    prior, kl, reconstruction = gaussian_terms(chain)
    joint = prior + reconstruction + float(kl.sum()) - ENTROPY
    m, v = recursion(chain)
    marginal = 0.5 * (math.log(v / VAR) + (VAR + (MEAN - m) ** 2) / v - 1.0)
    assert 0.0 <= marginal < joint
    # Pointwise: never above the chain's own log-likelihood.
    for x in (-0.5, 0.7, 1.4):
        prior, kl, reconstruction = terms(chain, torch.tensor([[x]], dtype=F64), torch.ones(1, dtype=F64))
        own = -0.5 * ((x - m) ** 2 / v + math.log(2.0 * math.pi * v))
        assert -(prior + reconstruction + float(kl.sum())) < own


def propagated(chain: Chain, grid: Tensor, down_to: int = 0) -> Tensor:
    """The chain's density of x_0 on a grid (or of x_first, before the last step), its states on the same one."""
    process, h = chain.process, float(grid[1] - grid[0])
    p = (-0.5 * grid**2).exp() / math.sqrt(2.0 * math.pi)
    for k in range(len(chain.n) - 1, down_to - 1, -1):
        s = float(chain.n[k]) / process.steps
        t = 0.0 if k == 0 else s - 1.0 / process.steps
        on_x, on_x0, _ = process.bridge(s, t)
        mean = on_x * grid + on_x0 * chain.denoiser(grid[:, None], s).x0[:, 0]
        z = (grid[:, None] - mean) / chain.std[k]
        p = h * ((-0.5 * z**2).exp() / (math.sqrt(2.0 * math.pi) * chain.std[k])) @ p
    return p


MIX_MEAN, MIX_STD = torch.tensor([-2.0, 1.5]).double(), torch.tensor([0.2, 0.3]).double()


def test_a_mixture_is_never_above_its_chain() -> None:
    process = DiscreteVP(steps=12, beta_start=0.02, beta_end=0.7)
    denoiser, grid = MIXTURE.denoiser(process), torch.linspace(-5.0, 5.0, 801, dtype=F64)
    h, x = float(grid[1] - grid[0]), grid[::20, None]
    weights = 20.0 * h * MIXTURE.log_prob(x).exp()
    table = optimal_variance(denoiser, MIXTURE.sample(4000, seed=1, dtype=F64), times=torch.arange(1, 13) / 12)
    totals = []
    for variance in ("posterior", "forward", table):
        chain = Chain(denoiser, variance)
        own = propagated(chain, grid)
        assert h * float(own.sum()) == pytest.approx(1.0, abs=1e-4)
        bounds = []
        for row in x[8:34]:
            prior, kl, reconstruction = terms(chain, row[None], torch.ones(1, dtype=F64), n=40)
            bounds.append(-prior - reconstruction - float(kl.sum()))
        gap = own[::20][8:34].log() - torch.tensor(bounds)
        assert float(gap.min()) > 1e-3
        prior, kl, reconstruction = terms(chain, x, weights, n=40)
        totals.append(prior + reconstruction + float(kl.sum()))
    # Over the data: never below the entropy, and least for the optimal variances.
    entropy = -float((weights * MIXTURE.log_prob(x)).sum())
    assert totals[0] > totals[1] > totals[2] > entropy


def wasserstein(chain: Chain, grid: Tensor) -> float:
    """W1 from MIXTURE of the chain whose last step, increasing in x, adds no noise."""
    p = propagated(chain, grid, down_to=1)
    ours = (p.cumsum(0) - 0.5 * p) * (grid[1] - grid[0])
    y = chain.denoiser(grid[:, None], 1.0 / chain.process.steps).x0
    theirs = torch.special.ndtr((y - MIX_MEAN) / MIX_STD) @ torch.tensor([0.3, 0.7], dtype=F64)
    return float(torch.trapezoid((ours - theirs).abs(), y[:, 0]))


@pytest.mark.parametrize(
    ("steps", "posterior", "forward"),
    [(5, 1.2985, 0.7136), (10, 0.2622, 0.2090), (25, 0.1015, 0.0571), (50, 0.0560, 0.0261), (100, 0.0310, 0.0127)],
)
def test_ancestral_chains_of_a_mixture(steps: int, posterior: float, forward: float) -> None:
    """W1 from the data of .3 N(-2, .04) + .7 N(1.5, .09), the last step without noise; the grid is good to 2e-4.

    The inventory's simulation gives 1.29, .25, .082, .051, .024 and .70, .20, .046, .026, .011: low from 25 levels on.
    """
    denoiser = MIXTURE.denoiser(DiscreteVP(steps=steps))
    grid = torch.linspace(-5.0, 5.0, 401, dtype=F64)
    found = [wasserstein(Chain(denoiser, variance), grid) for variance in ("posterior", "forward")]
    assert found == pytest.approx([posterior, forward], abs=5e-4)


@pytest.mark.parametrize("steps", [5, 10])
def test_the_optimal_variance_is_nearer_than_either_fixed_one(steps: int) -> None:
    denoiser, grid = MIXTURE.denoiser(DiscreteVP(steps=steps)), torch.linspace(-5.0, 5.0, 401, dtype=F64)
    times = torch.arange(1, steps + 1) / steps
    table = optimal_variance(denoiser, MIXTURE.sample(4000, seed=1, dtype=F64), times=times)
    best, *fixed = (wasserstein(Chain(denoiser, variance), grid) for variance in (table, "posterior", "forward"))
    assert best < 0.8 * min(fixed)


def test_the_gaussian_step_nears_the_true_kernel() -> None:
    """E KL(p(x_t | x_s) || step) of a mixture, as s - t = h falls: slope 2; 3 where each x_s has its own variance."""
    process, s = fk.VP(), 0.4
    grid = torch.linspace(-4.0, 4.0, 201, dtype=F64)[:, None]
    weights = MIXTURE.at(process, s).log_prob(grid).exp() * float(grid[1] - grid[0])
    x0 = MIXTURE.denoiser(process)(grid, s).x0
    z = torch.linspace(-9.0, 9.0, 361, dtype=F64)
    lost: dict[str, list[float]] = {"posterior": [], "forward": [], "optimal": [], "own": []}
    for h in (0.02, 0.01, 0.005):
        truth = MIXTURE.at(process, s).reverse(grid, s - h)
        var, low = truth.cov[:, 0, 0], process.bridge(s, s - h).std
        mean = process.posterior(grid, x0, s, s - h).mean
        assert (mean - truth.mean).abs().max() < 1e-12
        y = mean + var.sqrt()[:, None] * z
        log_p = MIXTURE.at(process, s).reverse(grid.repeat(len(z), 1), s - h).log_prob(y.T.reshape(-1, 1))
        log_p = log_p.reshape(len(z), -1).T
        mass = log_p.exp() * var.sqrt()[:, None] * float(z[1] - z[0])
        assert (mass.sum(1) - 1.0).abs().max() < 1e-6
        best = ((weights * var).sum() / weights.sum()).sqrt()
        stds = {"posterior": low, "forward": process.transition(s - h, s).std, "optimal": best, "own": var.sqrt()}
        for name, std in stds.items():
            std = std.expand(len(grid))[:, None]
            log_q = -0.5 * ((y - mean) / std).square() - std.log() - 0.5 * math.log(2.0 * math.pi)
            lost[name].append(float((weights * (mass * (log_p - log_q)).sum(1)).sum()))
    for name, values in lost.items():
        slope = math.log2(values[1] / values[2])
        assert slope == pytest.approx(3.0 if name == "own" else 2.0, abs=0.12), (name, values)
    assert lost["own"][2] < lost["optimal"][2] < min(lost["posterior"][2], lost["forward"][2])


def mean_terms(chain: Chain, x: Tensor, levels: int | None = None, n: int = 3) -> Tensor:
    """The exact bound of each row."""
    rows = [terms(chain, row[None], torch.ones(1, dtype=F64), n, levels) for row in x]
    return torch.tensor([-(prior + reconstruction + float(kl.sum())) for prior, kl, reconstruction in rows], dtype=F64)


@pytest.mark.parametrize("variance", ["posterior", "forward", None])
@pytest.mark.parametrize("draws", [2, 16, None])
def test_estimates_are_unbiased_with_their_errors(variance: str | None, draws: int | None) -> None:
    law = fk.exact.Gaussian(torch.tensor([0.5, -0.2, 0.1]), torch.tensor([0.8, 0.3, 1.5]))
    process = DiscreteVP(steps=15)
    rule = variances(process) if variance is None else variance
    x = law.sample(6, seed=1, dtype=F64)
    want = mean_terms(Chain(law.denoiser(process), rule), x)
    found = ddpm_bound(law.denoiser(process), x.repeat(300, 1), variance=rule, draws=draws)
    miss = (found.value.reshape(300, 6) - want).flatten()
    assert abs(float(miss.mean())) < 4.0 * float(miss.std()) / math.sqrt(1800)
    assert 0.8 < float(miss.square().mean() / found.stderr.square().mean()) < 1.25
    assert torch.equal(found.value, -(found.prior + found.diffusion + found.reconstruction))
    if draws is None:
        assert found.per_level is not None and found.per_level.shape == (14, 1800)
        assert (found.per_level.sum(0) - found.diffusion).abs().max() < 1e-12
        own = gaussian_terms(Chain(LAW.denoiser(process), variances(process)))[1]
        single = ddpm_bound(LAW.denoiser(process), LAW.sample(4000, dtype=F64), variance=variances(process), draws=None)
        assert single.per_level is not None
        error = single.per_level.std(1) / math.sqrt(4000)
        assert float(((single.per_level.mean(1) - own) / error).abs().max()) < 4.0
    else:
        assert found.per_level is None
    bits, error = found.bits((3,))
    assert torch.equal(bits, bits_per_dim(found.value, (3,)))
    assert torch.allclose(bits, -found.value / (3.0 * math.log(2.0)), rtol=1e-15)
    assert torch.allclose(error, found.stderr / (3.0 * math.log(2.0)), rtol=1e-15)


def test_fine_levels_are_the_bound_in_continuous_time() -> None:
    """int E|eps - eps_hat|^2 d lam = 1/2 log(1 + v SNR) between the ends; the sum over levels is more, by O(step)."""
    excess = []
    for steps in (50, 100, 200):
        alpha2 = torch.sigmoid(2.0 * torch.linspace(3.0, -3.0, steps + 1, dtype=F64))
        betas = 1.0 - alpha2 / torch.cat([torch.ones(1, dtype=F64), alpha2[:-1]])
        process = DiscreteVP(steps=steps + 1, betas=Array(betas))
        limit = 0.5 * math.log((1.0 + VAR * math.exp(6.0)) / (1.0 + VAR * math.exp(-6.0)))
        excess.append(float(gaussian_terms(Chain(LAW.denoiser(process), "posterior"))[1].sum()) - limit)
    ratios = [excess[0] / excess[1], excess[1] / excess[2]]
    assert 0.0 < excess[2] < 0.06 and ratios == pytest.approx([2.0, 2.0], abs=0.1)
    # Ho's levels are never fine near the data, where SNR halves from the first to the second: Euler's constant remains.
    for steps in (1000, 200_000):
        process = DiscreteVP(steps=steps)
        snr = (2.0 * process.lam(torch.arange(1, steps + 1, dtype=F64) / steps)).exp()
        summed = float((-0.5 * snr.diff() * VAR / (1.0 + VAR * snr[1:])).sum())
        if steps == 1000:
            own = gaussian_terms(Chain(LAW.denoiser(process), "posterior"))[1]
            assert summed == pytest.approx(float(own.sum()), rel=1e-12)
    assert summed - 0.5 * math.log((1.0 + VAR * float(snr[0])) / (1.0 + VAR * float(snr[-1]))) == pytest.approx(
        0.5 * 0.57722, abs=4e-3
    )


class Narrow:
    """A denoiser that supports a part of lam only."""

    def __init__(self, inner: fk.Denoiser, lam_range: tuple[float, float]) -> None:
        self.denoiser, self.process, self.shape = inner, inner.process, inner.shape
        self.lam_range, self.reading = lam_range, None

    def __call__(self, x: Tensor, s: float | Tensor, cond: object = None) -> fk.Prediction:
        lam = self.process.lam(s)
        assert bool(((lam > self.lam_range[0] - 1e-6) & (lam < self.lam_range[1] + 1e-6)).all())
        return self.denoiser(x, s, cond)


def test_denoisers_of_other_processes_in_a_chain() -> None:
    x, chain = LAW.sample(5, seed=2, dtype=F64), DiscreteVP(steps=40, beta_start=0.0025, beta_end=0.3)
    own = ddpm_bound(LAW.denoiser(chain), x, draws=8)
    for process in (fk.EDM(sigma_max=300.0), fk.Flow(), fk.VP(beta_max=40.0)):
        seen = ddpm_bound(LAW.denoiser(process), x, process=chain, draws=8)
        assert (seen.value - own.value).abs().max() < 1e-9
    with pytest.raises(ConfigError, match="process: given a denoiser of Flow.*pass process=DiscreteVP"):
        ddpm_bound(LAW.denoiser(fk.Flow()), x)
    # Levels without support are left out at both ends, and the exact chain still closes: the prior is met at the last.
    lam = chain.lam(torch.arange(1, 41, dtype=F64) / 40)
    narrow = Narrow(LAW.denoiser(chain), (float(lam[34]), float(lam[2])))
    part = Chain(narrow, variances(chain))
    assert (part.first, part.last) == (3, 35)
    prior, kl, reconstruction = gaussian_terms(part)
    gap = prior + float(kl.sum()) + reconstruction - ENTROPY
    assert gap == pytest.approx(float(chain.kl_to_prior(MEAN, VAR, t=35 / 40)), abs=1e-11) and gap > 1e-4
    met = ddpm_bound(narrow, x, draws=8).prior
    assert torch.allclose(met, chain.kl_to_prior(x[:, 0], 0.0, t=35 / 40), rtol=1e-12)
    with pytest.raises(ConfigError, match="has 1 levels in the denoiser's range of lam, must be >= 2"):
        Chain(Narrow(LAW.denoiser(chain), (float(lam[5]), float(lam[5]) + 1e-3)))


def test_a_chain_that_ends_without_signal() -> None:
    process = DiscreteVP(steps=30, zero_terminal_snr=True)
    x = LAW.sample(2000, seed=2, dtype=F64)
    found = ddpm_bound(LAW.denoiser(process), x, variance="forward", draws=8)
    want = gaussian_terms(Chain(LAW.denoiser(process), "forward"))
    assert want[0] == 0.0 and float(found.prior.abs().max()) == 0.0 and len(want[1]) == 29
    error = float(found.value.std()) / math.sqrt(2000)
    assert abs(float(found.value.mean()) + want[2] + float(want[1].sum())) < 4.0 * error < 0.15


def test_batches_and_conditions_change_nothing() -> None:
    law = fk.exact.GaussianMixture([0.5, 0.5], [[2.0], [-2.0]], [[0.3], [0.3]], labels=[0, 1])
    denoiser, told, seen = law.denoiser(DiscreteVP(steps=20)), torch.tensor([0, 1, 1]), []
    x = torch.tensor([[2.1], [-1.8], [-2.2]])
    whole = ddpm_bound(denoiser, x, draws=4, cond=told, batch_size=2, progress=lambda n: seen.append(n))
    last = ddpm_bound(denoiser, x[2:], draws=4, cond=told[2:], index=torch.tensor([2]))
    assert float(whole.value[2]) == float(last.value[0]) and seen == [2, 1]
    assert float((whole.value - ddpm_bound(denoiser, x, draws=4, cond=1 - told).value).min()) > 5.0
    assert not torch.equal(ddpm_bound(denoiser, x, draws=4, seed=1).value, ddpm_bound(denoiser, x, draws=4).value)
    assert isinstance(whole, ChainBound) and whole.value.dtype == F64


class Says:
    """An exact denoiser that says a variance: v, of the shape of x."""

    def __init__(self, inner: fk.Denoiser, v: Tensor) -> None:
        self.inner, self.v, self.process, self.shape = inner, v, inner.process, inner.shape
        self.lam_range, self.reading = inner.lam_range, None

    def __call__(self, x: Tensor, s: float | Tensor, cond: object = None) -> fk.Prediction:
        x0 = self.inner(x, s).x0
        return fk.Prediction(self.process, x, s, x0=x0, variance=self.v.expand_as(x))


def test_a_learned_variance() -> None:
    law, process = fk.exact.Gaussian([0.0, 0.0], [0.25, 0.25]), DiscreteVP(steps=10)
    x, exact = law.sample(4, seed=1, dtype=F64), law.denoiser(process)
    for v, fixed in ((-1.0, "posterior"), (1.0, "forward")):
        said = mean_terms(Chain(Says(exact, torch.tensor([v]).double()), "learned"), x)
        assert (said - mean_terms(Chain(exact, fixed), x)).abs().max() < 1e-12
    # Every coordinate by itself: the halves of the two fixed ones; and in between the geometric mean.
    both = Chain(Says(exact, torch.tensor([-1.0, 1.0]).double()), "learned")
    one, two = (Chain(fk.exact.Gaussian([0.0], [0.25]).denoiser(process), name) for name in ("posterior", "forward"))
    assert (mean_terms(both, x) - mean_terms(one, x[:, :1]) - mean_terms(two, x[:, 1:])).abs().max() < 1e-12
    middle = Chain(Says(exact, torch.zeros(1).double()), "learned")
    _, std = middle.predict(x, torch.full((4,), 4), x)
    assert (std.square() - middle.low[4] * middle.high[4]).abs().max() < 1e-15
    found = ddpm_bound(Says(exact, torch.tensor([-1.0, 1.0]).double()), x.repeat(400, 1), variance="learned", draws=8)
    miss = (found.value.reshape(400, 4) - mean_terms(both, x)).flatten()
    assert abs(float(miss.mean())) < 4.0 * float(miss.std()) / 40.0
    with pytest.raises(ConfigError, match="variance='learned' needs a denoiser with learned_variance=True"):
        ddpm_bound(exact, x, variance="learned")


class Louder:
    """(1 + c) times the exact noise."""

    def __init__(self, inner: fk.Denoiser) -> None:
        self.inner, self.process, self.shape = inner, inner.process, inner.shape
        self.lam_range, self.reading = inner.lam_range, None

    def __call__(self, x: Tensor, s: float | Tensor, cond: object = None) -> fk.Prediction:
        return fk.Prediction(self.process, x, s, noise=1.2 * self.inner(x, s).noise)


def test_the_optimal_variance() -> None:
    process, x = DiscreteVP(steps=50), LAW.sample(10_000, seed=3, dtype=F64)
    t = torch.arange(1, 51, dtype=F64) / 50
    exact, seen = variances(process).value, []
    table = optimal_variance(LAW.denoiser(process), x, times=t, batch_size=7_500, progress=lambda n: seen.append(n))
    assert seen == [7_500, 2_500] and torch.equal(table.value[0], exact[0])
    sd = math.sqrt(2.0 / 10_000)  # of a mean of squares of normals
    assert ((table.value[1] / exact[1] - 1.0).abs() < 4.5 * sd).all()
    score = optimal_variance(LAW.denoiser(process), x, times=t, by="score").value
    assert torch.equal(score[0], exact[0]) and float(score[1].max()) <= float(x.var(correction=0)) * (1 + 1e-12)
    clean = score[0] > -1.0  # in noise 1 - E|eps_hat|^2 is a small difference
    assert (score[1] / exact[1] - 1.0)[clean].abs().max() < 0.15
    # For a denoiser that is wrong the first form is best, level by level, and the second is not.
    wrong = Louder(LAW.denoiser(process))
    best = optimal_variance(wrong, x, times=t).value

    def cost(value: Tensor) -> Tensor:
        chain = Chain(wrong, torch.stack([exact[0], value]))
        return gaussian_terms(chain)[1]

    least = cost(best[1])
    for factor in (0.85, 1.15):
        assert bool((cost(factor * best[1]) > least).all())
    score = optimal_variance(wrong, x, times=t, by="score").value
    assert float(cost(score[1]).sum() - least.sum()) > 0.01


def test_a_table_in_the_sampler() -> None:
    """From N(0, 1) on Ho's chain the best variances end at .2500000, where the fixed ones end at .2461 and .2508."""
    process = DiscreteVP()
    table = variances(process)
    plan = Ancestral(variance=table).plan(process, torch.arange(1000, -1, -1, dtype=F64) / 1000)
    m, v = 0.0, 1.0
    for step in plan.steps:
        on, a, sigma2 = dict(step.out), float(process.alpha(step.start)), float(process.sigma(step.start)) ** 2
        gain = a * VAR / (a * a * VAR + sigma2)
        x, m0 = float(on.get(("x", 0), 0.0)), float(on["m", 0])
        scale = x + m0 * gain
        m, v = scale * m + m0 * (1.0 - gain * a) * MEAN, scale**2 * v + float(on.get(("z", 0), 0.0)) ** 2
    # The last step gives x0_hat without noise: Var[x_0 | x_1] = 1e-4 is missing.
    assert (m, v + float(table.value[1, -1])) == pytest.approx((0.699993, 0.2500000), abs=6e-7)
    # Between the knots log v is linear in lam, beyond them held; the same on any process and grid.
    coarse = Array([[-1.0, 1.0], [0.2, 0.05]])
    for lam, want in ((0.0, 0.1), (0.5, 0.2 * 0.25**0.75), (-3.0, 0.2), (2.0, 0.05)):
        for other in (fk.VP(), fk.Flow(), fk.EDM()):
            s, t = (float(other.time(value)) for value in (lam, lam + 0.3))
            (step,) = Ancestral(variance=coarse).plan(other, torch.tensor([s, t], dtype=F64)).steps
            bridge = other.bridge(s, t)
            std = math.sqrt(float(bridge.std) ** 2 + float(bridge.on_x0) ** 2 * want)
            assert float(dict(step.out)["z", 0]) == pytest.approx(std, rel=1e-9)  # type: ignore[arg-type]
    solver = Ancestral(variance=coarse)
    assert build("solver", spec(solver)) == solver and spec(solver)["variance"] == [[-1.0, 1.0], [0.2, 0.05]]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("middle", "variance: given 'middle', "),
        ([[0.0, 1.0]], r"a table of shape \(1, 2\), must be \(2, K\)"),
        ([[1.0, 0.0], [1.0, 1.0]], "must increase"),
        ([[0.0, 1.0], [1.0, 0.0]], "be positive"),
    ],
)
def test_variances_that_are_none(given: Any, says: str) -> None:
    for make in (lambda: Ancestral(variance=given), lambda: Chain(LAW.denoiser(DiscreteVP(steps=5)), given)):
        with pytest.raises(ConfigError, match=says):
            make()


def test_other_mistakes() -> None:
    denoiser, x = LAW.denoiser(DiscreteVP(steps=5)), torch.zeros(2, 1)
    with pytest.raises(ConfigError, match="draws: given 3, must be even, 2 or more, or None"):
        ddpm_bound(denoiser, x, draws=3)
    with pytest.raises(ConfigError, match="not one of 256 levels"):
        ddpm_bound(denoiser, x, levels=256)
    with pytest.raises(ConfigError, match="by: given 'noise', must be 'error' or 'score'"):
        optimal_variance(denoiser, x, by="noise")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"times: given shape \(1,\), must be"):
        optimal_variance(denoiser, x, times=torch.ones(1))


def test_pictures_are_rounded() -> None:
    # The decoder is a law on the levels, of numbers that are right, also far out and at the edges.
    levels, h = 6, 0.4
    c = torch.arange(6, dtype=F64) * h - 1.0
    for mean, std in ((0.13, 0.2), (-1.7, 0.05), (4.0, 0.3), (0.2, 30.0)):
        logs = rounded_log_prob(c, torch.tensor(mean, dtype=F64), std, levels)
        assert float(logs.exp().sum()) == pytest.approx(1.0, abs=1e-12) and bool(logs.isfinite().all())
    logs = rounded_log_prob(c, torch.tensor(0.13, dtype=F64), 0.2, levels).exp().tolist()
    edges = torch.special.ndtr((torch.tensor([-0.8, -0.4, 0.0, 0.4, 0.8], dtype=F64) - 0.13) / 0.2).tolist()
    assert logs == pytest.approx(np.diff([0.0, *edges, 1.0]).tolist(), abs=1e-15)
    # The bound is one on log P: over all levels the probabilities sum to less than 1, and to nearly that.
    law, process = fk.exact.Gaussian([0.1], [0.3]), DiscreteVP(steps=30, beta_start=0.08, beta_end=0.3)
    chain = Chain(law.denoiser(process), variances(process))
    bound = mean_terms(chain, c[:, None], levels=levels, n=40)
    assert 0.85 < float(bound.exp().sum()) < 1.0
    found = ddpm_bound(law.denoiser(process), c[:, None].repeat(500, 1), variance=variances(process), levels=6, draws=8)
    miss = (found.value.reshape(500, 6) - bound).flatten()
    assert abs(float(miss.mean())) < 4.0 * float(miss.std()) / math.sqrt(3000) < 0.05
