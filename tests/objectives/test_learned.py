"""What objectives learn: closed-form optima, unbiased estimates, the variance they save, and exact state."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor, nn

from fokker import noise
from fokker.errors import ConfigError
from fokker.objectives import (
    Adaptive,
    Denoising,
    EDMWeight,
    LearnedTimes,
    LogNormal,
    TimeLaw,
    Uncertainty,
    UniformTimes,
)
from fokker.objectives.learned import AdaptiveLaw, LearnedLaw, LogVariance
from fokker.prediction import READINGS, Prediction
from fokker.process import EDM, VP, DiscreteVP, Flow, Process
from fokker.registry import build, spec

F64 = torch.float64
VAR, DIM = 0.49, 8
FLOW = Flow(t_min=0.02)
BASE = LogNormal(-0.3, 1.6)  # wide enough for f = w err / p to have a variance


class Gaussian:
    """The exact denoiser of N(0, VAR), read as velocity."""

    shape = (DIM,)
    lam_range = (-math.inf, math.inf)
    reading = READINGS["velocity"]

    def __init__(self, process: Process) -> None:
        self.process = process

    def __call__(self, x: Tensor, s: Any, cond: Any = None) -> Prediction:
        p = self.process
        a, sig = p.alpha(s), p.sigma(s)
        slope = (p.d_alpha(s) * a * VAR + p.d_sigma(s) * sig) / (a**2 * VAR + sig**2)
        return Prediction(p, x, s, velocity=slope.reshape(-1, *[1] * (x.ndim - 1)) * x)


class Given(TimeLaw):
    """Times that are told, for the plain loss at them."""

    def __init__(self, t: Tensor) -> None:
        self.t = t

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        return self.t


def data(n: int, dim: int = DIM, seed: int = 8) -> Tensor:
    return math.sqrt(VAR) * noise.normal(seed, torch.arange(n), (dim,), dtype=F64)


def floor(t: Tensor) -> Tensor:
    """Flow's Var(eps - x0 | x_t) per dimension."""
    return VAR / ((1 - t) ** 2 * VAR + t**2)


def likelihood(t: Tensor) -> Tensor:
    """Flow's 2 / g^2: g^2 = 2 t / (1 - t)."""
    return (1 - t) / t


def integral(f: Callable[[Tensor], Tensor]) -> float:
    """Over FLOW's times, in s = log t where it is smooth."""
    inside = lambda s: float(f(torch.tensor(math.exp(s), dtype=F64))) * math.exp(s)  # noqa: E731
    return float(quad(inside, math.log(FLOW.t_min), 0, epsrel=1e-10, limit=200)[0])


def bent(law: Any, heights: list[float]) -> Any:
    """The law with these heights (of mean 1 here), whatever its kind."""
    q = torch.tensor(heights, dtype=F64) / np.mean(heights)
    if isinstance(law, AdaptiveLaw):
        law.q.copy_(q)
    else:
        law.share = 0.0
        with torch.no_grad():
            law.logits.copy_(q.log())
    return law


HEIGHTS = [0.3, 2.0, 1.0, 0.5, 1.7]
BENDERS = {"adaptive": Adaptive(bins=5), "learned": LearnedTimes(bins=5)}


@pytest.mark.parametrize("kind", BENDERS)
def test_a_step_law_draws_its_heights(kind: str) -> None:
    law = bent(BENDERS[kind].learned(Flow()), HEIGHTS)
    u = (torch.arange(1000, dtype=F64) + 0.5) / 1000
    v, q = law(u)
    heights = np.array(HEIGHTS) / np.mean(HEIGHTS)
    exact = np.interp(u.numpy(), np.concatenate([[0], (heights / 5).cumsum()]), np.arange(6) / 5)
    assert np.allclose(v.numpy(), exact, atol=1e-7) and v.dtype == F64 and not v.requires_grad
    assert np.allclose(q.detach().numpy(), heights[(exact * 5).astype(int)], rtol=1e-6)
    ends, _ = law(torch.tensor([0.0, 1.0], dtype=F64))
    assert torch.allclose(ends, torch.tensor([0.0, 1.0], dtype=F64), atol=1e-7) and (ends <= 1).all()


@pytest.mark.parametrize("density", ["multiply", "replace"])
@pytest.mark.parametrize("kind", BENDERS)
def test_whatever_is_drawn_the_expected_loss_is_the_same(kind: str, density: Any) -> None:
    """VDM's invariance: a schedule changes the variance alone. Base laws with and without weight of their own."""
    n = 20000
    for base in (UniformTimes(), BASE):
        times = BENDERS[kind].__class__(base=base, bins=5)
        objective = Denoising(weight="likelihood", times=times, density=density)
        p = (lambda t, base=base: base.density(FLOW, t)) if density == "multiply" else torch.ones_like
        truth = integral(lambda t, p=p: likelihood(t) * floor(t) * p(t))
        spreads = []
        for heights in ([1.0] * 5, HEIGHTS, HEIGHTS[::-1]):
            learned = nn.ModuleDict({"times": bent(times.learned(FLOW), heights)})
            terms = objective.terms(Gaussian(FLOW), data(n), learned=learned, seed=3)
            se = float(terms.error.std()) / math.sqrt(n)
            assert abs(float(terms.error.mean()) - truth) < 4 * se
            spreads.append(se)
            # Sample by sample: the plain weighted error at those times over q (and over the base density).
            assert torch.allclose(base.quantile(FLOW, terms.place), terms.t, rtol=1e-12)
            bins = (terms.place * 5).long().clamp(max=4)
            assert torch.allclose(terms.ratio, np.mean(heights) / torch.tensor(heights, dtype=F64)[bins], rtol=1e-6)
            plain = Denoising(weight="likelihood", times=Given(terms.t)).terms(Gaussian(FLOW), data(n), seed=3).loss
            measure = terms.ratio / (1.0 if density == "multiply" else base.density(FLOW, terms.t))
            assert torch.allclose(terms.error, plain * measure, rtol=1e-9)
            assert torch.allclose(terms.loss, terms.error, rtol=1e-9, atol=1e-12) and not terms.error.requires_grad
        assert min(abs(a / b - 1) for a, b in pairwise(spreads)) > 0.05


@pytest.mark.parametrize("kind", BENDERS)
def test_a_fresh_law_is_its_base(kind: str) -> None:
    for base, process in ((UniformTimes(), FLOW), (LogNormal(), EDM()), (UniformTimes(levels=True), DiscreteVP())):
        times = BENDERS[kind].__class__(base=base)
        x0 = data(64)
        for density in ("multiply", "replace"):
            for stratified in (False, True):
                fields: Any = {"density": density, "stratified": stratified, "weight": "sigma2"}
                plain = Denoising(times=base, **fields).terms(Gaussian(process), x0, seed=2, step=9)
                objective = Denoising(times=times, **fields)
                learned = objective.learned(process)
                got = objective.terms(Gaussian(process), x0, seed=2, step=9, learned=learned)
                assert torch.allclose(got.t, plain.t, rtol=1e-9) and torch.allclose(got.loss, plain.loss, rtol=1e-7)
                assert torch.equal(plain.ratio, torch.ones(64, dtype=F64)) and torch.equal(plain.loss, plain.error)


def test_adaptive_sums_by_hand() -> None:
    law = Adaptive(bins=4, share=0.25, refresh=3, memory=0.5).learned(FLOW)
    v = torch.tensor([0.1, 0.2, 0.3, 0.99, 1.0, 0.6, 0.6], dtype=F64)
    f = torch.tensor([1.0, -3.0, 2.0, 0.5, 1.5, math.nan, math.inf])
    law.observe(v, f)
    law.observe(v[:1], f[:1] * 2)
    counts, sums = np.array([3.0, 1, 0, 2]), np.array([1.0 + 9 + 4, 4, 0, 0.25 + 2.25])
    assert np.allclose(law.sums.numpy(), np.stack([counts, sums], 1), rtol=1e-14)
    for step in (0, 1, 3, 4):  # not their turn
        law.refresh(step, lambda total: total)
        assert torch.equal(law.q, torch.ones(4, dtype=F64)) and not law.running.any()

    def expected(counts: Any, sums: Any) -> Any:
        overall = sums.sum() / counts.sum()
        root = np.sqrt(np.where(counts > 0, sums / np.maximum(counts, 1e-9), overall))
        return 0.25 + 0.75 * root / root.mean()

    law.refresh(2, lambda total: total.mul_(3))  # three processes alike, reduced in place
    assert np.allclose(law.q.numpy(), expected(3 * counts, 3 * sums), rtol=1e-12)
    assert not law.sums.any() and math.isclose(law.q.mean(), 1.0, rel_tol=1e-12) and law.q.min() >= 0.25
    law.observe(torch.tensor([0.55], dtype=F64), torch.tensor([4.0]))
    law.gather(lambda total: total)  # as before a state is saved: it changes nothing of what comes
    assert not law.sums.any()
    law.observe(torch.tensor([0.55], dtype=F64), torch.tensor([2.0]))
    law.refresh(5, lambda total: total)
    new = np.array([0, 0, 1.0, 0])
    assert np.allclose(law.q.numpy(), expected(1.5 * counts + 2 * new, 1.5 * sums + 20 * new), rtol=1e-12)


def test_silence_leaves_the_base_law() -> None:
    law = Adaptive(refresh=1).learned(FLOW)
    law.refresh(0, lambda total: total)
    assert torch.equal(law.q, torch.ones(64, dtype=F64))
    law.observe(torch.rand(9, generator=torch.Generator().manual_seed(0), dtype=F64), torch.zeros(9))
    law.refresh(1, lambda total: total)
    assert torch.equal(law.q, torch.ones(64, dtype=F64))


def adapt(objective: Denoising, learned: nn.ModuleDict, steps: range, n: int = 256) -> list[Tensor]:
    """A training without a network: the laws alone."""
    seen = []
    for step in steps:
        terms = objective.terms(Gaussian(FLOW), data(n, seed=100 + step), learned=learned, seed=1, step=step)
        objective.observe(learned, terms)
        objective.refresh(learned, step)
        seen.append(terms.t)
    return seen


@pytest.mark.parametrize("density", ["multiply", "replace"])
def test_adaptive_finds_the_law_that_varies_least(density: Any) -> None:
    bins, share, n = 16, 0.1, 40000
    base = UniformTimes() if density == "multiply" else BASE
    times = Adaptive(base=base, bins=bins, refresh=10, share=share, memory=0.9)
    objective = Denoising(weight="likelihood", times=times, density=density)
    learned = objective.learned(FLOW)
    adapt(objective, learned, range(120))
    # f(v) = w err (over the base density), err a mean of DIM squares: E f^2 = (1 + 2 / DIM) (w floor)^2.
    v = (torch.arange(bins * 4000, dtype=F64) + 0.5) / (bins * 4000)
    t = base.quantile(FLOW, v)
    f = likelihood(t) * floor(t) / (1.0 if density == "multiply" else base.density(FLOW, t))
    second = ((1 + 2 / DIM) * f**2).reshape(bins, -1).mean(1)
    best = share + (1 - share) * second.sqrt() / second.sqrt().mean()
    law: Any = learned["times"]
    assert torch.allclose(law.q, best, rtol=0.12, atol=0)
    # The variance is the one that q promises, far below the base law's, near the least.
    truth = float(f.mean())
    variance = [
        float((second / q).mean()) - truth**2 for q in (torch.ones(bins), law.q, second.sqrt() / second.sqrt().mean())
    ]
    terms = objective.terms(Gaussian(FLOW), data(n), learned=learned, seed=77)
    assert abs(float(terms.error.mean()) - truth) < 4 * float(terms.error.std()) / math.sqrt(n)
    assert math.isclose(float(terms.error.var()), variance[1], rel_tol=0.06)
    plain = Denoising(weight="likelihood", times=base, density=density).terms(Gaussian(FLOW), data(n), seed=77)
    gain = float(plain.error.var()) / float(terms.error.var())
    print(f"{density}: variance {gain:.2f} times less, best {variance[0] / variance[2]:.2f}")
    assert gain > (8.0 if density == "multiply" else 1.5) and variance[1] < 1.35 * variance[2]


def test_adaptive_state_resumes_to_the_same_bits() -> None:
    objective = Denoising(weight="likelihood", times=Adaptive(bins=8, refresh=7))
    whole = objective.learned(FLOW)
    seen = adapt(objective, whole, range(20), n=32)
    first = objective.learned(FLOW)
    adapt(objective, first, range(11), n=32)  # between two renewals
    resumed = objective.learned(FLOW)
    resumed.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    again = adapt(objective, resumed, range(11, 20), n=32)
    assert all(torch.equal(a, b) for a, b in zip(seen[11:], again, strict=True))
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())


def test_two_processes_are_one() -> None:
    objective = Denoising(weight="likelihood", times=Adaptive(bins=8, refresh=4))
    whole = objective.learned(FLOW)
    parts = [objective.learned(FLOW) for _ in range(2)]
    x0 = data(64)
    for step in range(12):
        objective.observe(whole, objective.terms(Gaussian(FLOW), x0, learned=whole, step=step))
        objective.refresh(whole, step)
        for i, part in enumerate(parts):
            rows = torch.arange(32) + 32 * i
            keys: dict[str, Any] = {"step": step, "positions": rows, "total": 64}
            objective.observe(part, objective.terms(Gaussian(FLOW), x0[rows], learned=part, **keys))
        laws: Any = [part["times"] for part in parts]
        total = laws[0].sums + laws[1].sums
        for part in parts:
            objective.refresh(part, step, lambda mine, total=total: total)
        if step == 5:  # a state is saved between renewals and read by both
            total = laws[0].sums + laws[1].sums
            objective.gather(parts[0], lambda mine, total=total: total)
            laws[1].load_state_dict(laws[0].state_dict())
    ours: Any = whole["times"]
    assert not torch.equal(ours.q, torch.ones(8, dtype=F64))
    for law in laws:
        assert torch.allclose(law.q, ours.q, rtol=1e-12)


def test_the_surrogate_has_the_gradient_of_the_variance() -> None:
    f_of = lambda v: (0.5 + 3 * v**2) * (1 + 0.5 * (40 * v).sin())  # noqa: E731
    law = bent(LearnedLaw(5, 0.0), HEIGHTS).double()
    law.share = 0.2
    times = LearnedTimes(bins=5, share=0.2)
    # Through the objective: at the times it draws, f is made by a denoiser whose error is sqrt(f) in every dimension.
    n = 50000

    class Wrong(Gaussian):
        def __call__(self, x: Tensor, s: Any, cond: Any = None) -> Prediction:
            return Prediction(self.process, x, s, velocity=target + f_of((s - 0.02) / 0.98).sqrt()[:, None])

    eps = noise.normal(0, torch.arange(n), (1,), draw=0, domain="training", dtype=F64)
    target = eps - data(n, 1)
    objective = Denoising(times=times, stratified=True)
    terms = objective.terms(Wrong(FLOW), data(n, 1), learned=nn.ModuleDict({"times": law}))
    assert torch.allclose(terms.loss, f_of(terms.place) * terms.ratio, rtol=1e-8)  # its value has no part in it
    (got,) = torch.autograd.grad(terms.loss.mean(), law.logits)
    v = (torch.arange(100_000, dtype=F64) + 0.5) / 100_000
    second = f_of(v).square().reshape(5, -1).mean(1)
    (exact,) = torch.autograd.grad((second / law.heights()).mean(), law.logits)
    assert torch.allclose(got, exact, rtol=1e-3, atol=1e-4) and exact.abs().max() > 0.1


def test_learned_times_descend_to_the_root_of_the_second_moment() -> None:
    bins = 6
    objective = Denoising(times=LearnedTimes(UniformTimes(), bins, 0.0), stratified=True)
    learned = objective.learned(FLOW)
    law: Any = learned["times"]
    optimiser = torch.optim.Adam(learned.parameters(), lr=0.1)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 120)
    x0 = data(256)
    for step in range(120):
        loss = objective(Gaussian(FLOW), x0, learned=learned, step=step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rates.step()
    v = (torch.arange(bins * 4000, dtype=F64) + 0.5) / (bins * 4000)
    root = floor(UniformTimes().quantile(FLOW, v)).square().reshape(bins, -1).mean(1).sqrt()
    best = root / root.mean()
    assert best.max() / best.min() > 2
    assert torch.allclose(law.heights(), best, rtol=0.09, atol=0)


def test_a_new_uncertainty_is_its_base_and_its_network_is_edm2s() -> None:
    base = EDMWeight(0.7)
    plain = Denoising(weight=base, times=LogNormal()).terms(Gaussian(EDM()), data(32), seed=4)
    objective = Denoising(weight=Uncertainty(base, features=16), times=LogNormal())
    learned = objective.learned(EDM())
    got = objective.terms(Gaussian(EDM()), data(32), learned=learned, seed=4)
    assert torch.equal(got.loss, plain.loss) and torch.equal(got.error, plain.loss) and got.loss.requires_grad
    u: Any = learned["weight"]
    assert sorted(name for name, _ in u.named_parameters()) == ["bias", "weight"]
    with torch.no_grad():
        u.weight.copy_(torch.linspace(-1, 1, 16))
        u.bias.fill_(0.3)
    one = torch.zeros(1, dtype=torch.int64)
    w = noise.normal(0, one, (16,), draw=0, domain="probe", dtype=F64)[0]
    phi = noise.uniform(0, one, (16,), draw=1, domain="probe")[0].double()
    sigma = torch.tensor([0.01, 0.5, 30.0], dtype=F64)  # EDM: t is sigma
    c = sigma.log()[:, None] / 4
    expected = math.sqrt(2) * ((2 * math.pi * (c * w + phi)).cos() * u.weight.double()).sum(1) + 0.3
    assert torch.allclose(u(sigma).double(), expected, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(u(sigma), u(sigma).float()) and torch.allclose(u(sigma).double(), expected, atol=1e-5)
    assert torch.isfinite(LogVariance(FLOW, 8)(torch.tensor([1.0, 0.02]))).all()  # lam is -inf at 1


@pytest.mark.parametrize("density", ["multiply", "replace"])
@pytest.mark.parametrize("times", [BASE, Adaptive(BASE, bins=5)], ids=["plain", "bent"])
def test_uncertainty_divides_and_adds(times: Any, density: Any) -> None:
    objective = Denoising(weight=Uncertainty("likelihood", features=4), times=times, density=density)
    learned = objective.learned(FLOW)
    u: Any = learned["weight"]
    with torch.no_grad():
        u.weight.copy_(torch.tensor([0.3, -0.8, 0.5, 1.0]))
    if "times" in learned:
        bent(learned["times"], HEIGHTS)
    terms = objective.terms(Gaussian(FLOW), data(40), learned=learned, seed=4)
    plain = Denoising(weight="likelihood", times=Given(terms.t)).terms(Gaussian(FLOW), data(40), seed=4).loss
    density_at = BASE.density(FLOW, terms.t) if density == "replace" else 1.0
    value = u(terms.t).double().detach()
    assert value.abs().max() > 0.5
    assert torch.allclose(terms.error, plain * terms.ratio / density_at, rtol=1e-9)
    assert torch.allclose(terms.loss, (plain / value.exp() + value) * terms.ratio / density_at, rtol=1e-5)
    if "times" in learned:  # what adapts is the error that the network feels
        objective.observe(learned, terms)
        law: Any = learned["times"]
        felt = (plain / density_at / value.exp()).square()
        assert math.isclose(law.sums[:, 1].sum(), felt.sum(), rel_tol=1e-6) and law.sums[:, 0].sum() == 40
        bins = (terms.place * 5).long().bincount(minlength=5)
        assert torch.equal(law.sums[:, 0], bins.double())


def test_uncertainty_learns_the_expected_weighted_error() -> None:
    # e^u = E[w err | t] whatever the law, and not that over the density drawn from.
    objective = Denoising(weight=Uncertainty("likelihood", features=32), times=BASE, density="replace")
    learned = objective.learned(FLOW)
    optimiser = torch.optim.Adam(learned.parameters(), lr=0.1)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 200)
    x0 = data(256, 32)
    for step in range(200):
        optimiser.zero_grad()
        objective(Gaussian(FLOW), x0, learned=learned, step=step).backward()
        optimiser.step()
        rates.step()
    t = torch.linspace(0.05, 0.95, 50, dtype=F64)
    gap = learned["weight"](t).detach().double() - (likelihood(t) * floor(t)).log()
    assert gap.abs().max() < 0.3 and gap.abs().mean() < 0.08, (gap.abs().max(), gap.abs().mean())


def test_an_objective_that_learns_asks_for_its_modules() -> None:
    x0 = data(4)
    for fields, name in (
        ({"weight": "uncertainty"}, "weight"),
        ({"times": "adaptive"}, "times"),
        ({"times": "learned"}, "times"),
    ):
        objective = Denoising(**fields)  # type: ignore[arg-type]
        learned = objective.learned(VP())
        assert list(learned) == [name]
        for missing in (None, nn.ModuleDict()):
            with pytest.raises(ConfigError, match=rf"objective\.{name}: .*objective\.learned\(process\)") as caught:
                objective(Gaussian(VP()), x0, learned=missing)
            assert "\n" not in str(caught.value)
        assert torch.isfinite(objective(Gaussian(VP()), x0, learned=learned))
    plain = Denoising()
    empty = plain.learned(VP())
    assert len(empty) == 0
    assert torch.equal(plain(Gaussian(VP()), x0, learned=empty), plain(Gaussian(VP()), x0))
    for objective in (plain, Denoising(times="learned"), Denoising(weight="uncertainty")):  # nothing adapts
        learned = objective.learned(VP())
        before = {name: value.clone() for name, value in learned.state_dict().items()}
        terms = objective.terms(Gaussian(VP()), x0, learned=learned)
        objective.observe(learned, terms)
        objective.refresh(learned, 99)
        objective.gather(learned, lambda total: total)
        assert all(torch.equal(value, before[name]) for name, value in learned.state_dict().items())


def test_recipes_set_them() -> None:
    objective: Denoising = build(
        "objective",
        {
            "kind": "denoising",
            "weight": {"kind": "uncertainty", "base": {"kind": "edm", "sigma_data": 0.3}, "features": 8},
            "times": {"kind": "adaptive", "base": {"kind": "log-normal", "mean": -1.0}, "share": 0.2},
        },
    )
    assert objective.weight == Uncertainty(EDMWeight(0.3), 8)
    assert objective.times == Adaptive(LogNormal(-1.0), share=0.2) and build("objective", spec(objective)) == objective
    for given, says in (
        ({"weight": {"kind": "uncertainty", "base": "uncertainty"}}, "learns nothing"),
        ({"times": {"kind": "adaptive", "base": "learned"}}, "law that stays"),
        ({"times": {"kind": "learned", "base": "adaptive"}}, "law that stays"),
        ({"times": {"kind": "adaptive", "share": 0.0}}, "share"),
        ({"times": {"kind": "adaptive", "bins": 1}}, "bins"),
        ({"times": {"kind": "adaptive", "memory": 1.0}}, "memory"),
        ({"weight": {"kind": "uncertainty", "features": 0}}, "features"),
    ):
        with pytest.raises(ConfigError, match=says):
            build("objective", {"kind": "denoising"} | given)
