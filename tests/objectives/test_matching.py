"""Implicit and sliced matching of the noised marginals: the loss of `Denoising` less its mean weight."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fokker as fk
from fokker import exact, noise
from fokker.calculus import Hutchinson
from fokker.denoiser import NetDenoiser
from fokker.errors import ConfigError
from fokker.nets import MLP
from fokker.objectives import (
    SNR,
    Adaptive,
    Denoising,
    EDMWeight,
    LogNormal,
    ScoreMatching,
    Sigma2,
    Uncertainty,
    Uniform,
    implicit_matching,
    sliced_matching,
)
from fokker.process import EDM, VP, Flow, Process
from fokker.registry import build, spec

F64 = torch.float64
FORMS = ("implicit", "sliced", "sliced-vr")
LAW = exact.GaussianMixture(
    [0.4, 0.6], [[-1.0, 0.5], [1.0, -0.3]], [[[0.5, 0.2], [0.2, 0.4]], [[0.3, -0.1], [-0.1, 0.6]]]
)


class Bent:
    """The exact noise times a factor and a bend."""

    def __init__(self, process: Process, factor: float = 1.3, bend: float = 0.2) -> None:
        self.inner, self.process, self.shape, self.reading = LAW.denoiser(process), process, (2,), None
        self.lam_range, self.factor, self.bend = self.inner.lam_range, factor, bend

    def __call__(self, x: Tensor, s: Any, cond: Any = None) -> fk.Prediction:
        n = self.factor * self.inner(x, s).noise + self.bend * x.flip(-1).sin()
        return fk.Prediction(self.process, x, s, noise=n)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("process", "fields"),
    [
        (VP(), {"weight": Sigma2()}),
        (Flow(), {"predict": "velocity", "weight": Uniform()}),
        (EDM(), {"predict": "x0", "weight": EDMWeight(), "times": LogNormal()}),
        (VP(), {"predict": "noise", "weight": Uniform(), "times": Adaptive()}),
    ],
    ids=["dsm", "flow", "edm", "adaptive"],
)
def test_denoising_less_its_mean_weight(form: str, process: Process, fields: dict[str, Any]) -> None:
    """E |n - eps|^2 / D = E (|n|^2 - 2 sigma div n) / D + 1: the same constant for any network."""
    n = 20_000
    x0 = LAW.sample(n, 3, dtype=F64)
    plain, matching = Denoising(**fields), ScoreMatching(**fields, form=form)  # type: ignore[arg-type]
    learned = plain.learned(process)
    keys = {"seed": 5, "step": 3, "learned": learned}
    nothing = plain.terms(Still(process), x0, **keys)  # type: ignore[arg-type]
    for factor, bend in ((1.0, 0.0), (1.3, 0.2)):
        denoiser = Bent(process, factor, bend)
        both = [objective.terms(denoiser, x0, **keys) for objective in (plain, matching)]  # type: ignore[arg-type]
        assert torch.equal(both[0].t, both[1].t) and torch.equal(both[0].ratio, both[1].ratio)
        eps = noise.normal(5, torch.arange(n), (2,), draw=3 << 8, domain="training", dtype=F64)
        weight = nothing.error / eps.square().mean(1)  # |0 - eps|^2 w / D over |eps|^2 / D
        gap = (both[0].error - both[1].error) / weight - 1.0
        assert abs(float(gap.mean())) < 4.0 * float(gap.std()) / math.sqrt(n)
        assert float(gap.std()) / math.sqrt(n) < 0.02


class Still(Bent):
    """The noise 0."""

    def __call__(self, x: Tensor, s: Any, cond: Any = None) -> fk.Prediction:
        return fk.Prediction(self.process, x, s, noise=torch.zeros_like(x))


def test_it_is_hyvarinens_loss_of_the_score() -> None:
    """2 sigma^2 / D times `implicit_matching` or `sliced_matching` at x_t, row by row, with the objective's probes."""
    process, x0, rows = VP(), LAW.sample(6, dtype=F64), torch.arange(10, 16)
    denoiser = Bent(process)
    keys = {"seed": 7, "step": 11, "positions": rows}
    eps = noise.normal(7, rows, (2,), draw=11 << 8, domain="training", dtype=F64)
    for form in FORMS:
        terms = ScoreMatching(weight="sigma2", form=form, probes=2).terms(denoiser, x0, **keys)  # type: ignore[arg-type]
        x, sigma2 = process.perturb(x0, terms.t, eps), process.sigma(terms.t) ** 2
        score = lambda x, t=terms.t: denoiser(x, t).score  # noqa: E731
        u = Hutchinson(seed=7).draw(rows, (2,), F64, (11 << 8) + torch.arange(2))
        probes = None if form == "implicit" else u
        wanted = implicit_matching(score, x, probes=probes)
        if form == "sliced":
            wanted = sliced_matching(score, x, probes=u)
        torch.testing.assert_close(terms.loss, sigma2 * wanted)
        snr = ScoreMatching(weight=SNR(), form=form, probes=2).terms(denoiser, x0, **keys)  # type: ignore[arg-type]
        assert torch.equal(snr.loss, terms.loss)


class Scale(nn.Module):
    """noise = a x at one time: the minimiser over data of variance v is a = sigma / (alpha^2 v + sigma^2)."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros((), dtype=F64))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.a * x


@pytest.mark.parametrize("form", FORMS)
def test_the_minimiser_asks_no_target(form: str) -> None:
    process, x0 = VP(), LAW.sample(4000, dtype=F64)
    denoiser = NetDenoiser(Scale(), process, predict="noise", shape=(2,))
    objective = ScoreMatching(form=form, times=One(0.4), probes=2)  # type: ignore[arg-type]
    loss = objective(denoiser, x0)
    slope = torch.autograd.grad(loss, denoiser.net.a, create_graph=True)[0]
    curve = torch.autograd.grad(slope, denoiser.net.a)[0]
    best = float(-slope / curve)
    alpha, sigma = float(process.alpha(0.4)), float(process.sigma(0.4))
    x = process.perturb(x0, 0.4, noise.normal(0, torch.arange(4000), (2,), domain="training", dtype=F64))
    square = x.square().sum(1).mean()
    if form == "sliced":
        u = Hutchinson().draw(torch.arange(4000), (2,), F64, torch.arange(2))
        square = (u * x).sum(2).square().mean()
    assert abs(best - 2.0 * sigma / float(square)) < 1e-12  # the sample's own minimiser of |n|^2 - 2 sigma div n
    v = float(LAW.moments().cov.trace() + LAW.moments().mean.square().sum()) / 2.0
    assert abs(best - sigma / (alpha**2 * v + sigma**2)) < 0.06


class One(fk.objectives.TimeLaw):
    """All times the same."""

    def __init__(self, t: float) -> None:
        self.t = t

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        return torch.full_like(u, self.t)

    def density(self, process: Process, t: Tensor) -> Tensor:
        return torch.ones_like(t)


def test_as_a_recipes_objective() -> None:
    objective = build("objective", {"kind": "score-matching", "form": "sliced", "probes": 2, "weight": "sigma2"})
    assert objective == ScoreMatching(form="sliced", probes=2, weight=Sigma2()) and isinstance(objective, Denoising)
    assert build("objective", spec(objective)) == objective and spec(objective)["kind"] == "score-matching"
    with pytest.raises(ConfigError, match="ScoreMatching.weight: given Uncertainty.*as 'sigma2'"):
        ScoreMatching(weight=Uncertainty())
    with pytest.raises(ConfigError, match=r"ScoreMatching\.form: given 'hyvarinen'"):
        ScoreMatching(form="hyvarinen")  # type: ignore[arg-type]


def test_a_small_network_learns_a_density_without_targets() -> None:
    law = exact.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
    x0, held_out = law.sample(512), law.sample(2000, seed=8)
    torch.manual_seed(0)
    denoiser = NetDenoiser(MLP(1, width=32, depth=2), Flow(), shape=(1,))
    optimiser = torch.optim.Adam(denoiser.parameters(), lr=1e-2)
    objective = ScoreMatching(weight="sigma2", stratified=True)
    judge = Denoising(weight="sigma2")
    floor, before = (float(judge(d, held_out, seed=5).detach()) for d in (law.denoiser(Flow()), denoiser))
    for step in range(60):
        optimiser.zero_grad()
        objective(denoiser, x0, step=step).backward()
        optimiser.step()
    after = float(judge(denoiser, held_out, seed=5).detach())
    assert after - floor < 0.5 * (before - floor)
