"""Markov chains: their steps by formula, their laws by closed form, and what is reversible reversed."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fokker import noise
from fokker.calculus import gradient
from fokker.classic import Chains, hmc, leapfrog, mala, parallel_tempering, ula
from fokker.errors import ConfigError
from fokker.exact import Gaussian, GaussianMixture

F64 = torch.float64
COV = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=F64)
CORRELATED = Gaussian([0.4, -0.7], COV)
TWO = GaussianMixture([0.3, 0.7], [[-0.8], [0.9]], [0.3, 0.2])  # near enough to mix, far from normal
TOY = GaussianMixture([0.2, 0.8], [[-5.0, -5.0], [5.0, 5.0]], [1.0, 1.0])  # Song & Ermon 2019


def potential(law: Any) -> Callable[[Tensor], Tensor]:
    """-log p up to a constant, which no sampler may see."""
    return lambda x: 3.0 - law.log_prob(x)


def quartic(x: Tensor) -> Tensor:
    return (x**4 / 4 - x**2 / 3 + 0.2 * x).sum(1) + 0.3 * x[:, 0] * x[:, 1]


def start(n: int, d: int, scale: float = 1.0) -> Tensor:
    return scale * noise.normal(11, torch.arange(n), (d,), domain="prior", dtype=F64)


@pytest.mark.parametrize(("eta", "settled"), [(0.01, 0.50505), (0.1, 0.55556), (0.3, 0.71429), (0.6, 1.25)])
def test_ula_on_a_normal_law_exactly(eta: float, settled: float) -> None:
    """x' - m = A (x - m) + B z with A = 1 - eta / v: the mean falls by A^n, the variance settles at B^2 / (1 - A^2)."""
    m, v, n = 0.7, 0.5, 7
    score = lambda x: (m - x) / v  # noqa: E731
    x, still = start(5, 1), torch.full((5, 1), m, dtype=F64)
    keys: dict[str, Any] = {"eta": eta, "seed": 3}
    gap = ula(score, x, steps=n, **keys).x - ula(score, still, steps=n, **keys).x  # the same noise
    torch.testing.assert_close(gap, (1 - eta / v) ** n * (x - m), rtol=1e-12, atol=1e-14)
    z = noise.normal(3, torch.arange(5), (1,), domain="langevin", dtype=F64)
    b = (ula(score, still, steps=1, **keys).x - m) / z
    a = (ula(score, x, steps=1, **keys).x - ula(score, still, steps=1, **keys).x) / (x - m)
    law = b**2 / (1 - a**2)
    torch.testing.assert_close(law, torch.full_like(law, v / (1 - eta / (2 * v))), rtol=1e-12, atol=0)
    assert float(law[0]) == pytest.approx(settled, abs=5e-6)
    assert abs(1 - 2 * v / v) == 1 and abs(float(a[0])) < 1  # eta = 2 v is where it ceases to settle
    wide = ula(score, x, steps=n, noise_scale=1.5, **keys).x - ula(score, x, steps=n, noise_scale=0.0, **keys).x
    plain = ula(score, x, steps=n, **keys).x - ula(score, x, steps=n, noise_scale=0.0, **keys).x
    torch.testing.assert_close(wide, 1.5 * plain, rtol=1e-12, atol=1e-14)  # the variance is c^2 times as large


def test_ula_settles_by_monte_carlo() -> None:
    n = 10_000
    x = ula(lambda x: -x / 0.5, torch.zeros(n, 1, dtype=F64), steps=25, eta=0.6)
    assert abs(float(x.x.var()) - 1.25) < 4 * 1.25 * math.sqrt(2 / n)
    assert abs(float(x.x.mean())) < 4 * math.sqrt(1.25 / n)
    assert torch.equal(x.accepted, torch.ones(n, dtype=F64))


def test_noise_c_gives_p_to_the_power_1_over_c2() -> None:
    """E x^2 of exp(-U / c^2), U = x^4 / 4, by quadrature; without noise the chain sinks to the mode."""
    n, nodes = 5_000, torch.linspace(-6, 6, 4001, dtype=F64)
    for c in (0.6, 1.5):
        p = (-(nodes**4) / 4 / c**2).exp()
        first, second = ((p * nodes**k).sum() / p.sum() for k in (2, 4))
        x = ula(lambda x: -(x**3), torch.full((n, 1), 0.7, dtype=F64), steps=150, eta=0.01, noise_scale=c, seed=2).x
        se = float((second - first**2).sqrt()) / math.sqrt(n)
        assert abs(float(x.square().mean() - first)) < 4 * se + 0.01 * float(first)  # O(eta) of its own
    sunk = ula(lambda x: (2.0 - x) / 0.5, start(5, 1), steps=200, eta=0.1, noise_scale=0.0).x
    torch.testing.assert_close(sunk, torch.full_like(sunk, 2.0))


@pytest.mark.parametrize("name", ["ula", "mala", "hmc", "tempering"])
def test_a_chain_does_not_depend_on_the_others_and_goes_on(name: str) -> None:
    run: dict[str, Callable[..., Chains]] = {
        "ula": lambda x, **k: ula(lambda x: -gradient(quartic, x), x, eta=0.05, **k),
        "mala": lambda x, **k: mala(quartic, x, eta=0.3, **k),
        "hmc": lambda x, **k: hmc(quartic, x, size=0.5, leaps=3, **k),
        "tempering": lambda x, **k: parallel_tempering(quartic, x, betas=(1.0, 0.5, 0.2), eta=0.3, **k),
    }
    go, x = run[name], start(6, 2)
    whole = go(x, steps=8, seed=5, indices=torch.arange(10, 16))
    part = go(x[2:4], steps=8, seed=5, indices=torch.tensor([12, 13]))
    assert torch.equal(part.x, whole.x[2:4]) and torch.equal(part.accepted, whole.accepted[2:4])
    assert not torch.equal(go(x, steps=8, seed=6, indices=torch.arange(10, 16)).x, whole.x)
    if name != "tempering":  # whose other levels are left behind
        half = go(x, steps=3, seed=5, indices=torch.arange(10, 16))
        rest = go(half.x, steps=5, start=3, seed=5, indices=torch.arange(10, 16))
        torch.testing.assert_close(rest.x, whole.x, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(half.accepted * 3 + rest.accepted * 5, whole.accepted * 8)
    assert not torch.equal(go(x, steps=8, seed=5, indices=torch.arange(10, 16), domain="training").x, whole.x)


def test_draws_made_together_are_those_made_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mala(quartic, start(4, 2), steps=9, eta=0.2).x
    monkeypatch.setattr("fokker.classic.mcmc.AT_ONCE", 33)  # two steps of 4 x 4 numbers
    assert torch.equal(mala(quartic, start(4, 2), steps=9, eta=0.2).x, whole)


def test_leapfrog_is_reversible_keeps_volume_and_nearly_energy() -> None:
    x, p = start(6, 2), start(12, 2)[6:]
    y, q = leapfrog(quartic, x, p, size=0.2, leaps=9)
    back, turned = leapfrog(quartic, y, -q, size=0.2, leaps=9)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(turned, -p, rtol=0, atol=1e-12)
    one = torch.cat([x[:1], p[:1]], 1)
    step = 1e-5
    columns = []
    for k in range(4):  # the volume: central differences of the map
        ends = []
        for sign in (1, -1):
            z = one.clone()
            z[0, k] += sign * step
            ends.append(torch.cat(leapfrog(quartic, z[:, :2], z[:, 2:], size=0.2, leaps=9), 1)[0])
        columns.append((ends[0] - ends[1]) / (2 * step))
    assert float(torch.linalg.det(torch.stack(columns, 1))) == pytest.approx(1.0, abs=1e-8)
    errors = []
    for leaps in (20, 40, 80):  # over the same time the energy is off by O(h^2)
        y, q = leapfrog(quartic, x, p, size=1.0 / leaps, leaps=leaps)
        gap = quartic(y) + q.square().sum(1) / 2 - quartic(x) - p.square().sum(1) / 2
        errors.append(float(gap.abs().mean()))
    assert all(1.9 < math.log2(a / b) < 2.1 for a, b in pairwise(errors))
    turn = 0.3  # one step on U = x^2 / 2: x' = (1 - h^2/2) x + h p, p' = (1 - h^2/2) p - h (1 - h^2/4) x
    y, q = leapfrog(lambda x: x.square().sum(1) / 2, x, p, size=turn)
    torch.testing.assert_close(y, (1 - turn**2 / 2) * x + turn * p)
    torch.testing.assert_close(q, (1 - turn**2 / 2) * p - turn * (1 - turn**2 / 4) * x)


def test_mala_is_the_metropolis_rule_of_its_proposal() -> None:
    """y ~ N(x - eta grad U, 2 eta), accepted with min(1, p(y) q(x | y) / (p(x) q(y | x))): detailed balance."""
    n, eta = 400, 0.4
    x = start(n, 2, 1.5)
    z = noise.normal(8, torch.arange(n), (4,), draw=7, domain="langevin", dtype=F64)

    def log_q(to: Tensor, at: Tensor) -> Tensor:
        return -(to - at + eta * gradient(quartic, at)).square().sum(1) / (4 * eta)

    y = x - eta * gradient(quartic, x) + math.sqrt(2 * eta) * z[:, :2]
    ratio = quartic(x) - quartic(y) + log_q(x, y) - log_q(y, x)
    yes = -0.5 * z[:, 2:].square().sum(1) < ratio
    got = mala(quartic, x, steps=1, eta=eta, seed=8, start=7)
    assert 0.2 < float(yes.double().mean()) < 0.9
    assert torch.equal(got.accepted, yes.double())
    torch.testing.assert_close(got.x, torch.where(yes[:, None], y, x), rtol=1e-12, atol=1e-13)
    same = hmc(quartic, x, steps=4, size=math.sqrt(2 * eta), leaps=1, seed=8)
    assert torch.equal(same.x, mala(quartic, x, steps=4, eta=eta, seed=8).x)
    alone = parallel_tempering(quartic, x, betas=(1.0,), steps=4, eta=eta, seed=8)
    torch.testing.assert_close(alone.x, same.x, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(alone.accepted, same.accepted)


def moments(x: Tensor) -> Tensor:
    """Means and second moments, (n, k)."""
    pairs = x[:, :, None] * x[:, None, :]
    return torch.cat([x, pairs.flatten(1), x**3], 1)


@pytest.mark.parametrize("law", [CORRELATED, TWO], ids=["correlated", "two modes"])
@pytest.mark.parametrize("name", ["mala", "hmc", "tempering", "ula"])
def test_metropolis_keeps_the_law_and_ula_does_not(law: Any, name: str) -> None:
    """n = 6,000 chains from the law itself: every moment within 4 standard errors, where ULA's are 8 off."""
    n, u = 6_000, potential(law)
    x = law.sample(n, seed=4, dtype=F64)
    runs: dict[str, Callable[[], Tensor]] = {
        "mala": lambda: mala(u, x, steps=12, eta=0.25, seed=1).x,
        "hmc": lambda: hmc(u, x, steps=5, size=0.55, leaps=3, seed=1).x,
        "tempering": lambda: parallel_tempering(u, x, betas=(1.0, 0.5), steps=8, eta=0.25, seed=1).x,
        "ula": lambda: ula(lambda x: -gradient(u, x), x, steps=12, eta=0.25, seed=1).x,
    }
    y = moments(runs[name]())
    exact = moments(law.sample(200_000, seed=9, dtype=F64))
    sigmas = (y.mean(0) - exact.mean(0)).abs() / (y.var(0) / n + exact.var(0) / 200_000).sqrt()
    assert float(sigmas.max()) > 8 if name == "ula" else float(sigmas.max()) < 4


@pytest.mark.parametrize("name", ["mala", "hmc"])
def test_chains_forget_where_they_start(name: str) -> None:
    n, u = 4_000, potential(CORRELATED)
    x = start(n, 2, 3.0) + 1.0
    y = mala(u, x, steps=100, eta=0.15).x if name == "mala" else hmc(u, x, steps=30, size=0.35, leaps=5).x
    mean, cov = torch.tensor([0.4, -0.7], dtype=F64), COV
    assert bool(((y.mean(0) - mean).abs() < 4 * (cov.diagonal() / n).sqrt()).all())
    spread = ((cov.diagonal()[:, None] * cov.diagonal() + cov**2) / n).sqrt()
    assert bool(((y.mT.cov() - cov).abs() < 4 * spread).all())


def toy_start(n: int) -> Tensor:
    return 16 * noise.uniform(0, torch.arange(n), (2,), domain="prior", dtype=F64) - 8


def test_mala_keeps_to_a_mode_and_tempering_crosses() -> None:
    """1/5 at (-5, -5), 4/5 at (5, 5), start uniform on [-8, 8]^2: MALA near one half, tempering at 80 per cent."""
    n = 500
    x, u = toy_start(n), potential(TOY)
    share = lambda y: float((y.sum(1) > 0).double().mean())  # noqa: E731
    assert share(mala(u, x, steps=60, eta=0.2).x) == pytest.approx(0.508, abs=0.05)
    betas = (1.0, 0.3, 0.1, 0.03, 0.01)
    broad = lambda x: x.square().sum(1) / 72  # noqa: E731
    for base, etas in ((None, [0.3 / b for b in betas]), (broad, [1 / (b / 0.3 + (1 - b) / 10) for b in betas])):
        got = parallel_tempering(u, x, betas=betas, steps=120, eta=etas, base=base, seed=1)
        assert abs(share(got.x) - 0.8) < 4 * math.sqrt(0.16 / n)
        near = got.x[got.x.sum(1) > 0] - 5.0  # within the mode it is N(0, I)
        assert abs(float(near.mean())) < 4 / math.sqrt(near.numel())
        assert abs(float(near.square().mean()) - 1) < 4 * math.sqrt(2 / near.numel())
        assert got.swapped is not None and got.swapped.shape == (n, 4)
        assert float(got.swapped.mean(0).min()) > 0.2 and float(got.swapped.max()) <= 1.0
        assert 0.3 < float(got.accepted.mean()) < 0.98


def test_exchanges_by_the_rule() -> None:
    """Normal levels 1, 1/4: swapped with probability E min(1, e^((b_0 - b_1) (U_0 - U_1))), by quadrature: .5903."""
    n, betas = 1_000, (1.0, 0.25)
    u = lambda x: x.square().sum(1) / 2  # noqa: E731
    got = parallel_tempering(u, start(n, 1), betas=betas, steps=200, eta=[0.5, 2.0], seed=3)
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    w = weights / weights.sum()
    a, b = nodes[:, None], 2.0 * nodes[None]  # deviations 1 and 2
    rate = (w[:, None] * w * np.minimum(1.0, np.exp(0.75 * (a**2 - b**2) / 2))).sum()
    assert got.swapped is not None
    assert float(got.swapped.mean()) == pytest.approx(rate, abs=0.01)


def test_shares_are_of_the_exchanges_there_were() -> None:
    """Of three steps the pair (0, 1) tries at two, (1, 2) at one; levels that are all but equal always exchange."""
    for steps in (2, 3):
        got = parallel_tempering(quartic, start(7, 2), betas=(1.0, 1.0 - 1e-14, 1.0 - 2e-14), steps=steps, eta=0.1)
        assert got.swapped is not None and torch.equal(got.swapped, torch.ones(7, 2, dtype=F64))


def test_proposals_that_are_not_finite_are_refused() -> None:
    wall = lambda x: torch.where(x[:, 0] > 0, x[:, 0], math.nan) + 0 * x.sum(1)  # noqa: E731
    x = torch.full((500, 1), 0.1, dtype=F64)
    got = mala(wall, x, steps=5, eta=0.5)
    assert bool((got.x > 0).all()) and 0.1 < float(got.accepted.mean()) < 0.9


def test_what_is_refused() -> None:
    x = start(2, 2)
    with pytest.raises(ConfigError, match="steps: given 0"):
        ula(lambda x: -x, x, steps=0, eta=0.1)
    for eta in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="eta"):
            ula(lambda x: -x, x, steps=1, eta=eta)
        with pytest.raises(ConfigError, match="eta"):
            mala(quartic, x, steps=1, eta=eta)
    for bad in ({"size": 0.0}, {"size": 0.1, "leaps": 0}):
        with pytest.raises(ConfigError):
            hmc(quartic, x, steps=1, **bad)
        with pytest.raises(ConfigError):
            leapfrog(quartic, x, x, **bad)
    for betas in ((), (0.5,), (1.0, 1.0), (1.0, -0.1)):
        with pytest.raises(ConfigError, match="betas"):
            parallel_tempering(quartic, x, betas=betas, steps=1, eta=0.1)
    with pytest.raises(ConfigError, match="eta: given inf"):
        parallel_tempering(quartic, x, betas=(1.0, 0.5), steps=1, eta=[0.1, math.inf])
    with pytest.raises(ConfigError, match="2 numbers for 3 betas"):
        parallel_tempering(quartic, x, betas=(1.0, 0.5, 0.1), steps=1, eta=[0.1, 0.1])
