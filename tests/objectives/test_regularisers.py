"""Penalties by the equations of motion: 0 at exact denoisers, closed forms at wrong ones, and what training does."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import fokker as fk
from fokker import exact, noise
from fokker.denoiser import NetDenoiser
from fokker.errors import ConfigError
from fokker.nets import MLP
from fokker.objectives import Denoising, FokkerPlanckPenalty, LearnedTimes, MartingalePenalty
from fokker.process import EDM, VE, VP, DiscreteVP, Flow, Process, Trig
from fokker.registry import build, spec

F64 = torch.float64
MIXTURE = exact.GaussianMixture(
    [0.4, 0.6], [[-1.0, 0.5], [1.0, -0.3]], [[[0.5, 0.2], [0.2, 0.4]], [[0.3, -0.1], [-0.1, 0.6]]]
)
BOTH = [FokkerPlanckPenalty, MartingalePenalty]
PROCESSES = [VP(), VE(), EDM(), Flow(), Trig()]


class Of:
    """A denoiser whose score is what `change` makes of another one's, given (score, x, t)."""

    reading = None

    def __init__(self, process: Process, change: Any, inner: Any = None) -> None:
        self.process, self.change, self.inner, self.shape = process, change, inner, (2,)
        self.lam_range = (-math.inf, math.inf)

    def __call__(self, x: Tensor, s: Any, cond: Any = None) -> fk.Prediction:
        before = None if self.inner is None else self.inner(x, s, cond).score
        return fk.Prediction(self.process, x, s, score=self.change(before, x, s))


def column(c: Tensor) -> Tensor:
    return c[:, None]


def states(law: Any, process: Process, n: int = 12) -> tuple[Tensor, Tensor]:
    """Noised data with the times they are at, the middle of lam's range and both ends."""
    t = process.time(torch.linspace(2.5, -2.5, n, dtype=F64))
    t[0], t[-1] = process.t_min, process.T
    x0, eps = law.sample(n, dtype=F64), noise.normal(1, torch.arange(n), (2,), dtype=F64)
    return process.perturb(x0, t, eps), t


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("kind", BOTH)
def test_zero_at_the_exact_denoiser_and_not_beside_it(kind: Any, process: Process) -> None:
    x, t = states(MIXTURE, process)
    truth = MIXTURE.denoiser(process)
    value = kind(weight=1.0, probes=None).penalty(truth, x, t)
    assert value.abs().max() < 1e-8
    louder = kind(weight=1.0, probes=None).penalty(Of(process, lambda s, x, t: 1.1 * s, truth), x, t)
    assert bool((louder >= 0).all()) and float(louder[1:-1].mean()) > 1e-4


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("kind", BOTH)
def test_a_gaussian_read_too_loud(kind: Any, process: Process) -> None:
    """4 k^2 (1 - k)^2 sigma^6 |x|^2 / (V^4 dim), the same for both; probes are exact where J is a number."""
    v, k = 0.7, 1.3
    law = exact.Gaussian([0.0, 0.0], [v, v])
    x, t = states(law, process)
    wrong = Of(process, lambda s, x, t: k * s, law.denoiser(process))
    at = t.clamp(process.t_min, process.t_max)
    V = process.alpha(at) ** 2 * v + process.sigma(at) ** 2
    wanted = 4.0 * (k * (1.0 - k)) ** 2 * process.sigma(at) ** 6 * x.square().sum(1) / (2.0 * V**4)
    for probes in (None, 1, 3):
        found = kind(weight=0.5, probes=probes).penalty(wrong, x, t)
        torch.testing.assert_close(found, 0.5 * wanted, rtol=1e-6, atol=1e-9)


def test_where_the_score_is_no_gradient_the_two_differ() -> None:
    """s = -B x: R = -(g^2 B^T B + f (B + B^T)) x and M = (sigma^2 / alpha) (g^2 B^2 + 2 f B) x."""
    process, x = VP(), MIXTURE.sample(6, dtype=F64)
    t = torch.linspace(0.2, 0.9, 6, dtype=F64)
    g2, f, sigma, rate = (column(c) for c in (process.g2(t), process.f(t), process.sigma(t), process.d_lam(t)))
    for B, alike in (([[0.8, 0.3], [0.3, 1.1]], True), ([[0.8, 0.3], [-0.5, 1.1]], False)):
        matrix = torch.tensor(B, dtype=F64)
        linear = Of(process, lambda s, x, t: -x @ matrix.mT)  # noqa: B023
        R = -(g2 * x @ (matrix.mT @ matrix) + f * x @ (matrix + matrix.mT))
        M = sigma / rate * (g2 * x @ (matrix @ matrix).mT + 2.0 * f * x @ matrix.mT)
        for kind, residual in ((FokkerPlanckPenalty, sigma / rate * R), (MartingalePenalty, M)):
            found = kind(weight=1.0, probes=None).residual(linear, x, t, None, None)
            torch.testing.assert_close(found, residual, rtol=1e-9, atol=1e-12)
        assert torch.allclose(M, -sigma / rate * R, rtol=1e-9) == alike


@pytest.mark.parametrize("kind", BOTH)
def test_probes_leave_the_mean_alone(kind: Any) -> None:
    """Two independent estimates, multiplied: a square of one would add its variance, at the exact denoiser too."""
    process, n = VP(), 2000
    truth = MIXTURE.denoiser(process)
    x, t = (c[5:6].expand(n, *c.shape[1:]) for c in states(MIXTURE, process))
    for factor in (1.0, 1.3):
        wrong = Of(process, lambda s, x, t: factor * s, truth)  # noqa: B023
        whole = kind(weight=1.0, probes=None).penalty(wrong, x[:1], t[:1])
        rough = kind(weight=1.0, probes=1).penalty(wrong, x, t, seed=3, step=5)
        error = float(rough.std()) / math.sqrt(n)
        assert abs(float(rough.mean()) - float(whole)) < 4.0 * error and 0.0 < error < 0.03
        more = kind(weight=1.0, probes=2).penalty(wrong, x, t, seed=3, step=5)
        assert float(more.var()) < 0.8 * float(rough.var())


@pytest.mark.parametrize("kind", BOTH)
def test_rows_by_position(kind: Any) -> None:
    process = VP()
    wrong = Of(process, lambda s, x, t: 1.3 * s, MIXTURE.denoiser(process))
    x, t = states(MIXTURE, process)
    every = kind(weight=1.0, every=1, probes=1).penalty(wrong, x, t, seed=2, step=7)
    third = kind(weight=1.0, every=3, probes=1).penalty(wrong, x, t, seed=2, step=7)
    mask = (torch.arange(12) + 7) % 3 == 0
    torch.testing.assert_close(third, torch.where(mask, 3.0 * every, 0.0), rtol=1e-9, atol=1e-12)
    for cut in (4, 5):
        rows = torch.arange(12).tensor_split([cut])
        parts = [kind(weight=1.0, every=3, probes=1).penalty(wrong, x[r], t[r], seed=2, step=7, rows=r) for r in rows]
        torch.testing.assert_close(torch.cat(parts), third, rtol=1e-9, atol=1e-12)
    other = kind(weight=1.0, probes=1).penalty(wrong, x, t, seed=2, step=8)
    assert not torch.equal(other, every)


@pytest.mark.parametrize("rows", [None, torch.arange(20, 30)], ids=["whole", "part"])
@pytest.mark.parametrize("kind", BOTH)
def test_every_row_has_its_turn(kind: Any, rows: Tensor | None) -> None:
    """The mean over `every` steps is the penalty of every row, also where 4 does not divide the batch of 10."""
    process = VP()
    wrong = Of(process, lambda s, x, t: 1.3 * s, MIXTURE.denoiser(process))
    x, t = states(MIXTURE, process, 10)
    whole = kind(weight=1.0, probes=None).penalty(wrong, x, t)
    some = kind(weight=1.0, every=4, probes=None)
    found = [some.penalty(wrong, x, t, step=step, rows=rows) for step in range(6, 10)]
    torch.testing.assert_close(torch.stack(found).mean(0), whole, rtol=1e-9, atol=1e-12)
    assert all(2 <= int((part > 0).sum()) <= 3 for part in found)


@pytest.mark.parametrize("kind", BOTH)
def test_as_an_option_of_denoising(kind: Any) -> None:
    process, x0 = Flow(), MIXTURE.sample(8, dtype=F64)
    wrong = Of(process, lambda s, x, t: 1.3 * s, MIXTURE.denoiser(process))
    plain, extra = Denoising(), kind(weight=2.0, every=2)
    both = Denoising(regulariser=extra)
    keys = {"seed": 4, "step": 9, "positions": torch.arange(8, 16), "total": 32}
    first, second = (objective.terms(wrong, x0, **keys) for objective in (plain, both))
    assert torch.equal(first.error, second.error) and torch.equal(first.t, second.t)
    eps = noise.normal(4, torch.arange(8, 16), (2,), draw=9 << 8, domain="training", dtype=F64)
    x = process.perturb(x0, first.t, eps)
    penalty = extra.penalty(wrong, x, first.t, seed=4, step=9, rows=torch.arange(8, 16))
    torch.testing.assert_close(second.loss, first.loss + penalty)
    assert float(penalty.abs().max()) > 1e-3 and int((penalty == 0).sum()) == 4
    # A law of times that is learned leaves the penalty's mean as it is: every row weighs ratio times it.
    plain, both = (Denoising(times=LearnedTimes(bins=4), regulariser=r) for r in (None, extra))
    learned = plain.learned(process)
    with torch.no_grad():
        next(learned.parameters()).copy_(torch.tensor([0.5, -1.0, 0.3, 0.8]))
    first, second = (objective.terms(wrong, x0, learned=learned, **keys) for objective in (plain, both))
    x = process.perturb(x0, first.t, eps)
    penalty = extra.penalty(wrong, x, first.t, seed=4, step=9, rows=torch.arange(8, 16))
    torch.testing.assert_close(second.loss, first.loss + first.ratio * penalty)
    assert float(first.ratio.std()) > 0.1
    plain, both = Denoising(), Denoising(regulariser=extra)
    name = {FokkerPlanckPenalty: "fokker-planck", MartingalePenalty: "martingale"}[kind]
    assert build("objective", spec(both)) == both and spec(both)["regulariser"]["kind"] == name
    assert Denoising(regulariser=name).regulariser == kind() and plain.regulariser is None  # type: ignore[arg-type]
    integer = NetDenoiser(MLP(2, width=8, depth=1), DiscreteVP(), predict="noise", time="integer", shape=(2,))
    with pytest.raises(ConfigError, match="differentiates in time, which a network with denoiser.time='integer'"):
        both(integer, x0.float())


@pytest.mark.parametrize("kind", BOTH)
def test_conditions_go_with_their_rows(kind: Any) -> None:
    """A network's own loss has a gradient through the penalty, and rows keep their conditions."""
    torch.manual_seed(0)
    net = MLP(2, width=16, depth=2, classes=3)
    denoiser = NetDenoiser(net, Flow(), shape=(2,))
    x, t = (c.float() for c in states(MIXTURE, Flow()))
    cond = torch.arange(12) % 3
    whole = kind(weight=1.0).penalty(denoiser, x, t, cond, seed=1)
    alone = kind(weight=1.0).penalty(denoiser, x[7:8], t[7:8], cond[7:8], seed=1, rows=torch.tensor([7]))
    torch.testing.assert_close(whole[7:8], alone, rtol=1e-3, atol=1e-4)
    third = kind(weight=1.0, every=3).penalty(denoiser, x, t, cond, seed=1)
    torch.testing.assert_close(third[::3], 3.0 * whole[::3], rtol=1e-3, atol=1e-4)
    whole.mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())
    assert max(float(p.grad.abs().max()) for p in net.parameters() if p.grad is not None) > 1e-4


@pytest.mark.parametrize("kind", BOTH)
def test_training_lowers_the_residual(kind: Any) -> None:
    law = exact.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
    x0 = law.sample(64)
    judge = kind(weight=1.0, probes=None)
    t = torch.linspace(0.1, 0.9, 64, dtype=F64)
    x = Flow().perturb(law.sample(64, seed=9), t, noise.normal(9, torch.arange(64), (1,)))
    found = []
    for regulariser in (None, kind(weight=0.3, probes=None)):
        torch.manual_seed(3)
        denoiser = NetDenoiser(MLP(1, width=24, depth=2), Flow(), shape=(1,))
        optimiser = torch.optim.Adam(denoiser.parameters(), lr=2e-2)
        objective = Denoising(stratified=True, regulariser=regulariser)
        for step in range(15):
            optimiser.zero_grad()
            objective(denoiser, x0, step=step).backward()
            optimiser.step()
        plain = float(Denoising()(denoiser, x0, seed=77).detach())
        found.append((float(judge.penalty(denoiser, x, t).detach().mean()), plain))
    assert found[1][0] < 0.5 * found[0][0]
    assert found[1][1] < 1.2 * found[0][1]
