"""Linear-Gaussian VAEs of one level and more: the bound's identities to rounding, and what fails as printed."""

import math

import pytest
import torch

from fokker.calculus import gaussian_divergence
from fokker.classic import Affine, LinearChain, ddpm_chain, ppca
from fokker.errors import ConfigError
from fokker.process import DiscreteVP

from .affine import F64, covariance, normal, scalar, sigma_points

EYE = torch.eye(2, dtype=F64)


def flat(up: Affine | None = None) -> LinearChain:
    """x = W z + m + s eps with 3 numbers of 2 codes, and an encoder that is not the posterior."""
    down = Affine(normal(3, 2, seed=1), normal(3, seed=2), 0.4 * torch.eye(3, dtype=F64))
    return LinearChain((down,), (up or Affine(normal(2, 3, seed=3) / 3, normal(2, seed=4), covariance(2, 5)),))


def tall() -> LinearChain:
    """4 numbers, 3 codes above them, 2 on top."""
    down = (
        Affine(normal(4, 3, seed=6), normal(4, seed=7), covariance(4, 8)),
        Affine(normal(3, 2, seed=9), normal(3, seed=10), covariance(3, 11)),
    )
    up = (
        Affine(normal(3, 4, seed=12) / 3, normal(3, seed=13), covariance(3, 14)),
        Affine(normal(2, 3, seed=15) / 3, normal(2, seed=16), covariance(2, 17)),
    )
    return LinearChain(down, up)


X3, X4 = normal(5, 3, seed=20), normal(5, 4, seed=21)


def test_density_and_posterior_of_the_flat_one() -> None:
    chain = flat()
    W, m = chain.down[0].weight, chain.down[0].bias
    law = torch.distributions.MultivariateNormal(m, W @ W.mT + 0.4 * torch.eye(3, dtype=F64))
    torch.testing.assert_close(chain.log_prob(X3), law.log_prob(X3), rtol=0, atol=1e-12)
    M = W.mT @ W + 0.4 * EYE
    posterior = chain.exact().up[0]
    torch.testing.assert_close(posterior.mean(X3), torch.linalg.solve(M, W.mT @ (X3 - m).mT).mT, rtol=0, atol=1e-12)
    torch.testing.assert_close(posterior.cov, 0.4 * M.inverse(), rtol=0, atol=1e-12)
    torch.testing.assert_close(chain.exact().elbo(X3), chain.log_prob(X3), rtol=0, atol=1e-12)


def test_gap_is_the_kl_to_the_posterior() -> None:
    chain = flat()
    posterior, q = chain.exact().up[0], chain.up[0]
    kl = torch.stack([gaussian_divergence(q.mean(x), q.cov, posterior.mean(x)[0], posterior.cov) for x in X3])
    assert float(kl.min()) > 0.1
    torch.testing.assert_close(chain.gap(X3), kl, rtol=0, atol=1e-12)
    torch.testing.assert_close(chain.log_prob(X3) - chain.elbo(X3), kl, rtol=0, atol=1e-12)


def test_hierarchical_bound_in_both_forms() -> None:
    chain = tall()
    torch.testing.assert_close(chain.terms(X4).elbo, chain.elbo(X4), rtol=0, atol=1e-11)
    torch.testing.assert_close(chain.log_prob(X4) - chain.gap(X4), chain.elbo(X4), rtol=0, atol=1e-11)
    assert float(chain.gap(X4).min()) > 0.1
    exact = chain.exact()
    torch.testing.assert_close(exact.elbo(X4), chain.log_prob(X4), rtol=0, atol=1e-11)
    torch.testing.assert_close(exact.terms(X4).elbo, chain.log_prob(X4), rtol=0, atol=1e-11)
    assert float(exact.gap(X4).abs().max()) < 1e-11
    # Its density is that of the product of all links, as sampled: covariance by hand.
    (A, _, S), (B, _, R) = ((link.weight, link.bias, link.cov) for link in chain.down)
    by_hand = A @ (B @ B.mT + R) @ A.mT + S
    torch.testing.assert_close(chain.marginals()[0][1], by_hand, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chain", [flat(), tall(), tall().exact()], ids=["flat", "tall", "tight"])
def test_joint_kl_is_modelling_plus_inference(chain: LinearChain) -> None:
    d = len(chain.down[0].cov)
    mean, cov = normal(d, seed=30), covariance(d, 31)
    joint, modelling, inference = chain.joint_kl(mean, cov)
    assert abs(float(joint - modelling - inference)) < 1e-10 and float(modelling) > 0.1
    points = sigma_points(mean, cov)
    entropy = 0.5 * torch.logdet(2.0 * math.pi * math.e * cov)
    assert abs(float(joint + chain.elbo(points).mean() + entropy)) < 1e-10  # E[-ELBO] - H(p_data)
    assert abs(float(inference - chain.gap(points).mean())) < 1e-10
    assert abs(float(modelling + chain.log_prob(points).mean() + entropy)) < 1e-10


def test_kl_is_information_plus_aggregate() -> None:
    chain, mean, cov = flat(), normal(3, seed=32), covariance(3, 33)
    m, C = chain.codes(mean[None], cov)[1]
    aggregate = gaussian_divergence(m[0], C, torch.zeros(2, dtype=F64), EYE)
    kl = chain.terms(sigma_points(mean, cov)).prior.mean()
    assert abs(float(kl - chain.information(cov) - aggregate)) < 1e-12
    deaf = Affine(torch.zeros(2, 3, dtype=F64), torch.zeros(2, dtype=F64), EYE)
    assert abs(float(flat(deaf).information(cov))) < 1e-14 and float(flat(deaf).terms(X3).prior.abs().max()) < 1e-14


def test_a_diagonal_encoder_is_exact_only_for_orthogonal_columns() -> None:
    chain = flat()
    U, s, _ = torch.linalg.svd(chain.down[0].weight, full_matrices=False)
    turned = LinearChain((Affine(U * s, chain.down[0].bias, chain.down[0].cov),), chain.up)
    torch.testing.assert_close(turned.log_prob(X3), chain.log_prob(X3), rtol=0, atol=1e-12)  # the same density
    for law, gap in ((turned, 0.0), (chain, None)):
        best = law.exact().up[0]
        precision = best.cov.inverse()
        diagonal = Affine(best.weight, best.bias, torch.diag(1.0 / precision.diagonal()))  # the best diagonal one
        found = LinearChain(law.down, (diagonal,)).gap(X3)
        expected = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision)) if gap is None else gap
        assert float((found - expected).abs().max()) < 1e-12
    assert float(found[0]) > 0.01


def test_ppca_is_the_largest_likelihood() -> None:
    mean, cov = normal(4, seed=40), covariance(4, 41)
    best = ppca(mean, cov, 2)
    encoder = Affine(torch.zeros(2, 4, dtype=F64), torch.zeros(2, dtype=F64), EYE)
    points = sigma_points(mean, cov)

    def likelihood(weight: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        link = Affine(weight, mean, noise * torch.eye(4, dtype=F64))
        return LinearChain((link,), (encoder,)).log_prob(points).mean()

    values = torch.linalg.eigvalsh(cov)
    s2 = values[:2].mean()
    top = -0.5 * (4 * math.log(2 * math.pi) + values[2:].log().sum() + 2 * s2.log() + 4)
    assert abs(float(likelihood(best.weight, best.cov[0, 0]) - top)) < 1e-12
    W, v = best.weight.clone().requires_grad_(), best.cov[0, 0].clone().requires_grad_()
    for gradient in torch.autograd.grad(likelihood(W, v), (W, v)):
        assert float(gradient.abs().max()) < 1e-10
    for seed in range(5):
        other = likelihood(best.weight + 0.1 * normal(4, 2, seed=50 + seed), best.cov[0, 0] * 1.1)
        assert float(other) < float(top) - 1e-4
    gram = best.weight.mT @ best.weight
    assert abs(float(gram[0, 1])) < 1e-12
    for latent in (0, 4):
        with pytest.raises(ConfigError, match=f"latent: given {latent}, must lie in 1 to 3"):
            ppca(mean, cov, latent)


def test_neighbours_kl_as_printed_is_no_bound_of_the_chain() -> None:
    # x | z1 ~ N(1.2 z1, .3), z1 | z2 ~ N(.8 z2, .5); z1 | x ~ N(.7 x, .2), z2 | z1 ~ N(.6 z1, .4); x = .9.
    chain = LinearChain((scalar(1.2, 0.3), scalar(0.8, 0.5)), (scalar(0.7, 0.2), scalar(0.6, 0.4)))
    x = torch.full((1, 1), 0.9, dtype=F64)
    true = float(chain.elbo(x))
    assert abs(true - -1.47265) < 5e-6 and abs(float(chain.terms(x).elbo) - true) < 1e-14
    # As printed: E_q KL(q(z1 | x) | p(z1 | z2)) over z2 alone, then E_q KL(q(z2 | z1) | p(z2)).
    (m1, v1), (m2, v2) = ((float(m), float(v)) for m, v in chain.codes(x)[1:])
    reconstruction = -0.5 * (math.log(2 * math.pi * 0.3) + ((0.9 - 1.2 * m1) ** 2 + 1.44 * v1) / 0.3)
    first = 0.5 * ((v1 + (m1 - 0.8 * m2) ** 2 + 0.64 * v2) / 0.5 - 1 + math.log(0.5 / v1))
    second = 0.5 * (0.4 + m2**2 + 0.36 * v1 - 1 - math.log(0.4))
    printed = reconstruction - first - second
    assert abs(printed - -1.66465) < 5e-6
    assert abs((printed - true) - -0.8 * 0.6 * 0.2 / 0.5) < 1e-14  # -a Cov(z1, z2) / b = -0.192
    # Never tight: with the true posterior for an encoder (4) is log p, and the printed form is below it.
    exact = chain.exact()
    assert abs(float(exact.elbo(x) - chain.log_prob(x))) < 1e-14
    cross = float(exact.up[1].weight) * float(exact.codes(x)[1][1])
    assert 0.8 * cross / 0.5 > 0.1


def test_ddpm_as_a_hierarchical_vae() -> None:
    mean, var, process = 0.7, 0.25, DiscreteVP()
    points = torch.tensor([[mean - 0.5], [mean + 0.5]], dtype=F64)  # of the data's mean and variance
    chain = ddpm_chain(process, mean, var)
    terms = chain.terms(points)
    entropy = 0.5 * math.log(2 * math.pi * math.e * var)
    assert abs(float(terms.prior.mean()) - 1.4933e-5) < 5e-10
    assert abs(float(terms.reconstruction.mean()) - 3.186382) < 5e-7
    assert abs(float(sum(level.mean() for level in terms.levels)) - 3.912168) < 5e-7
    assert abs(float(-terms.elbo.mean()) - 0.7258012) < 5e-8 and abs(entropy - 0.7257914) < 5e-8
    mismatch = float(process.kl_to_prior(mean, var))
    assert abs(mismatch - 9.8880e-6) < 5e-11
    assert abs(float(-terms.elbo.mean()) - entropy - mismatch) < 1e-12
    assert abs(float(chain.elbo(points).mean() - terms.elbo.mean())) < 1e-9  # by a difference of large numbers
    assert abs(float(-ddpm_chain(DiscreteVP(steps=100), mean, var).terms(points).elbo.mean()) - 0.7257963) < 5e-8


def test_ddpm_of_posterior_variances_costs_their_mismatch() -> None:
    mean, var, process = 0.7, 0.25, DiscreteVP(steps=20)
    points = torch.tensor([[mean - 0.5], [mean + 0.5]], dtype=F64)
    exact, fixed = ddpm_chain(process, mean, var), ddpm_chain(process, mean, var, reverse="posterior")
    ratios = [float(a.cov / b.cov) for a, b in zip(exact.down, fixed.down, strict=True)]
    times = torch.arange(21, dtype=F64) / 20
    assert ratios[0] == 1.0 and min(ratios[1:]) > 1.0
    std = process.bridge(times[5], times[4]).std
    assert abs(float(fixed.down[4].cov) - float(std) ** 2) < 1e-14
    excess = sum(0.5 * (r - 1.0 - math.log(r)) for r in ratios)
    assert excess > 1e-3
    assert abs(float((exact.terms(points).elbo - fixed.terms(points).elbo).mean()) - excess) < 1e-12
    with pytest.raises(ConfigError, match="reverse: given 'upper'"):
        ddpm_chain(process, mean, var, reverse="upper")


def test_a_chain_has_as_many_links_up_as_down() -> None:
    with pytest.raises(ConfigError, match="given 1 links down and 2 up"):
        LinearChain((scalar(1.0, 1.0),), (scalar(1.0, 1.0), scalar(1.0, 1.0)))
