"""Distances between laws: closed forms, quadrature and Monte Carlo against each other and the book."""

import math

import pytest
import torch
from torch import Tensor

from fokker import exact, noise
from fokker.calculus import DIVERGENCES, Grid, discrete_divergence, divergence_between, gaussian_divergence
from fokker.errors import ConfigError
from fokker.process import VP

F64 = torch.float64
LINE = Grid((-14.0,), (14.0,), (2800,))
PLANE = Grid((-9.0, -9.0), (9.0, 9.0), (180, 180))
P = exact.GaussianMixture([0.3, 0.7], [[-1.0], [1.5]], [0.4, 0.6])
Q = exact.GaussianMixture([0.6, 0.4], [[-0.5], [1.0]], [0.8, 0.5])
OWN = {
    "kl": lambda u: torch.xlogy(u, u),
    "reverse_kl": lambda u: -u.log(),
    "js": lambda u: 0.5 * (torch.xlogy(u, u) - (1 + u) * (0.5 * (1 + u)).log()),
    "tv": lambda u: 0.5 * (u - 1).abs(),
}


def probabilities(k: int, seed: int) -> Tensor:
    return noise.normal(seed, torch.arange(4), (k,), dtype=F64).softmax(-1)


def test_discrete_divergences_are_their_formulas() -> None:
    p, q = probabilities(6, 1), probabilities(6, 2)
    m = 0.5 * (p + q)
    kl = lambda a, b: (a * (a / b).log()).sum(-1)  # noqa: E731
    wanted = {
        "kl": kl(p, q),
        "reverse_kl": kl(q, p),
        "js": 0.5 * kl(p, m) + 0.5 * kl(q, m),
        "tv": 0.5 * (p - q).abs().sum(-1),
    }
    assert wanted.keys() == DIVERGENCES.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(discrete_divergence(p, q, name), value, rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(discrete_divergence(p, q, OWN[name]), value, rtol=1e-13, atol=1e-14)
    assert (wanted["kl"] - wanted["reverse_kl"]).abs().min() > 1e-3
    chi2 = discrete_divergence(p, q, lambda u: (u - 1) ** 2)
    torch.testing.assert_close(chi2, (p**2 / q).sum(-1) - 1)
    largest = torch.stack([(p - q).clamp(min=0.0).sum(-1)])  # TV = sup_A |p(A) - q(A)|
    torch.testing.assert_close(discrete_divergence(p, q, "tv"), largest[0])
    entropy = -(p * p.log()).sum(-1)  # book lines 378-381 print + H
    torch.testing.assert_close(wanted["kl"], -(p * q.log()).sum(-1) - entropy)


def test_disjoint_supports() -> None:
    p, q = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=F64), torch.tensor([0.0, 0.0, 0.2, 0.8], dtype=F64)
    assert discrete_divergence(p, q, "kl") == discrete_divergence(p, q, "reverse_kl") == math.inf
    assert abs(discrete_divergence(p, q, "js") - math.log(2)) < 1e-15
    assert discrete_divergence(p, q, "tv") == 1.0
    half = torch.tensor([0.5, 0.25, 0.25, 0.0], dtype=F64)
    assert abs(discrete_divergence(p, half, "kl") - 0.5 * math.log(2)) < 1e-15
    assert discrete_divergence(half, p, "kl") == math.inf
    for name in DIVERGENCES:
        assert discrete_divergence(p, p, name) == 0.0
    # The optimal discriminator's value E_p log D + E_q log(1 - D), D = p / (p + q), is 2 JS - log 4.
    a, b = probabilities(5, 3), probabilities(5, 4)
    value = (a * (a / (a + b)).log() + b * (b / (a + b)).log()).sum(-1)
    torch.testing.assert_close(value, 2 * discrete_divergence(a, b, "js") - math.log(4))


def test_gaussians_in_closed_form() -> None:
    m1, v1, m2, v2 = 0.3, 0.5, -0.8, 1.4
    p, q = exact.Gaussian([m1], v1), exact.Gaussian([m2], v2)
    wanted = {
        "kl": 0.5 * (math.log(v2 / v1) + (v1 + (m1 - m2) ** 2) / v2 - 1),
        "reverse_kl": 0.5 * (math.log(v1 / v2) + (v2 + (m1 - m2) ** 2) / v1 - 1),
        "fisher": v1 * (1 / v2 - 1 / v1) ** 2 + (m1 - m2) ** 2 / v2**2,
    }
    for name, value in wanted.items():
        assert divergence_between(p, q, name).value.item() == pytest.approx(value, rel=1e-13)
        assert divergence_between(p, q, name, grid=LINE).value.item() == pytest.approx(value, rel=1e-11)
        assert divergence_between(p, q, name).stderr == 0.0


def test_gaussians_in_the_plane_and_as_marginals() -> None:
    p = exact.Gaussian([0.5, -0.3], [[0.8, 0.3], [0.3, 0.5]])
    q = exact.GaussianMixture([1.0], [[-0.2, 0.4]], [[[0.9, -0.2], [-0.2, 0.7]]])
    for name in ("kl", "reverse_kl", "fisher"):
        closed = gaussian_divergence(p.mean.value, p.cov.value, q.mean, q.cov, name)
        quadrature = divergence_between(p, q, name, grid=PLANE).value
        assert closed.item() == pytest.approx(quadrature.item(), rel=1e-10)
        process = VP()
        here, there = p.at(process, 0.3), exact.Gaussian([-0.2, 0.4], q.cov).at(process, 0.3)
        value = divergence_between(here, there, name)
        assert value.value.item() == pytest.approx(
            divergence_between(here, there, name, grid=PLANE).value.item(), rel=1e-9
        )
        assert value.value < closed  # what diffusion forgets


@pytest.mark.parametrize("name", [*DIVERGENCES, "fisher"])
def test_monte_carlo_is_unbiased_and_calibrated(name: str) -> None:
    truth = divergence_between(P, Q, name, grid=LINE).value
    for n in (20_000, 20_001):
        value, stderr = divergence_between(P, Q, name, n=n, seed=5)
        assert abs(value - truth) < 4 * stderr and stderr < 0.05 * truth
    runs = [divergence_between(P, Q, name, n=400, seed=10 * s) for s in range(120)]
    values, errors = torch.stack([r.value for r in runs]), torch.stack([r.stderr for r in runs])
    assert abs(values.mean() - truth) < 4 * values.std() / math.sqrt(120)
    assert abs(values.var() / errors.square().mean() - 1) < 5 * math.sqrt(2 / 120)
    if name in OWN:
        own = divergence_between(P, Q, OWN[name], n=400, seed=0)
        torch.testing.assert_close(own, runs[0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(divergence_between(P, Q, OWN[name], grid=LINE).value, truth, rtol=1e-9, atol=1e-12)


def test_a_function_of_ones_own_meets_densities_that_underflow() -> None:
    p, q = exact.Gaussian([0.0], 0.01), exact.Gaussian([0.6], 0.01)
    wanted = math.erf(0.6 / (2 * 0.1 * math.sqrt(2)))
    assert q.at(VP(), 0.0).log_prob(LINE.centres()).exp().min() == 0.0
    for f in ("tv", OWN["tv"]):
        assert divergence_between(p, q, f, grid=LINE).value.item() == pytest.approx(wanted, abs=1e-3)


def test_mixture_divergences_against_scipy() -> None:
    from scipy.integrate import quad

    def density(law: exact.Law, x: float) -> float:
        return float(law.log_prob(torch.tensor([[x]], dtype=F64)).exp())

    kl = lambda x: density(P, x) * math.log(density(P, x) / density(Q, x))  # noqa: E731
    assert divergence_between(P, Q, grid=LINE).value.item() == pytest.approx(quad(kl, -9, 9, limit=200)[0], rel=1e-7)
    bounds = {name: divergence_between(P, Q, name, grid=LINE).value for name in ("js", "tv")}
    assert 0 < bounds["js"] < math.log(2) and 0 < bounds["tv"] < 1
    back = {name: divergence_between(Q, P, name, grid=LINE).value for name in ("js", "tv", "reverse_kl")}
    torch.testing.assert_close(back["js"], bounds["js"])
    torch.testing.assert_close(back["reverse_kl"], divergence_between(P, Q, grid=LINE).value)


def test_fisher_is_blind_to_the_weights_of_separate_modes() -> None:
    """Book line 401 (E18): "= 0 iff p = q" needs connected support."""
    p, q = (exact.GaussianMixture(w, [[-5.0], [5.0]], [1.0, 1.0]) for w in ([0.2, 0.8], [0.8, 0.2]))
    assert divergence_between(p, q, "fisher", grid=LINE).value.item() == pytest.approx(2.08e-5, rel=3e-3)
    assert divergence_between(p, q, "kl", grid=LINE).value.item() == pytest.approx(0.8318, abs=5e-5)


def test_kl_decays_by_half_g2_fisher() -> None:
    """d/dt KL(p_t, q_t) = -1/2 g^2 Fisher(p_t, q_t) along one process (seed 000)."""
    process, t, h = VP(), 0.2, 1e-4

    def kl(t: float) -> Tensor:
        return divergence_between(P.at(process, t), Q.at(process, t), grid=LINE).value

    rate = (kl(t + h) - kl(t - h)) / (2 * h)
    fisher = divergence_between(P.at(process, t), Q.at(process, t), "fisher", grid=LINE).value
    assert rate.item() == pytest.approx(float(-0.5 * process.g2(t) * fisher), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: divergence_between(P, Q), "no closed form of 'kl' for these laws: give grid=Grid"),
        (lambda: divergence_between(P, Q, grid=LINE, n=100), "give grid or n, not both"),
        (lambda: divergence_between(P, Q, "jsd", n=100), "unknown divergence 'jsd': did you mean 'js'"),
        (lambda: divergence_between(P, Q, n=3), "n: given 3, must be 4 or more"),
        (lambda: gaussian_divergence(*[torch.zeros(1), torch.eye(1)] * 2, "js"), "'js' has no closed form"),
        (lambda: discrete_divergence(torch.ones(1), torch.zeros(1), OWN["kl"]), "q: has zeros"),
        (lambda: discrete_divergence(torch.ones(1), torch.ones(1), "fisher"), "unknown divergence 'fisher'"),
        (
            lambda: divergence_between(exact.Gaussian([0.0], 1.0), exact.Gaussian([0.0], 2.0), "tv"),
            "no closed form of 'tv'",
        ),
    ],
)
def test_refusals(call, message) -> None:
    with pytest.raises(ConfigError, match=message):
        call()
