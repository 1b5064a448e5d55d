"""The denoising objective: one regression, whatever is predicted; its floor, its minimiser and its randomness."""

import math
from typing import Any

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor, nn

from fokker import noise
from fokker.denoiser import NetDenoiser
from fokker.errors import ConfigError
from fokker.objectives import Denoising, EDMWeight, Likelihood, LogNormal, MinSNR, Sigma2, Uniform, UniformTimes
from fokker.prediction import READINGS, Prediction, Reading, edm_reading
from fokker.process import EDM, OU, VP, DiscreteVP, Flow, Process, Trig

F64 = torch.float64
SHAPE = (3,)
NAMES = ("x0", "noise", "score", "velocity", "v", "edm")


def reading_of(name: str) -> Any:
    return edm_reading(0.5) if name == "edm" else READINGS[name]


def column(c: Tensor, x: Tensor) -> Tensor:
    return c.reshape(-1, *[1] * (x.ndim - 1))


class Oracle:
    """E[x0 | x] and E[eps | x] of N(mean, var), plus `wrong(x, t)` on the noise (and what goes with it on x0).

    `raw` names the one reading it gives, None the pair.
    """

    lam_range = (-math.inf, math.inf)

    def __init__(self, process: Process, raw: str | None = None, mean: float = 0.0, var: float = 1.0, wrong: Any = 0.0):
        self.process, self.mean, self.var, self.wrong, self.shape = process, mean, var, wrong, SHAPE
        self.reading = None if raw is None else reading_of(raw)
        self.conds: list[Any] = []

    def __call__(self, x: Tensor, s: Any, cond: Any = None) -> Prediction:
        self.conds.append(cond)
        alpha, sigma = column(self.process.alpha(s), x), column(self.process.sigma(s), x)
        gap = (x - alpha * self.mean) / (alpha**2 * self.var + sigma**2)
        wrong = self.wrong(x, s) if callable(self.wrong) else self.wrong
        x0, eps = self.mean + alpha * self.var * gap - sigma / alpha * wrong, sigma * gap + wrong
        if self.reading is None:
            return Prediction(self.process, x, s, x0=x0, noise=eps)
        A, B, k = (column(c, x) for c in self.reading.row(self.process, s))
        return Prediction(self.process, x, s, other=(self.reading, (A * x0 + B * eps) / k))


def data(n: int, shape: tuple[int, ...] = SHAPE, seed: int = 8, mean: float = 0.0, var: float = 1.0) -> Tensor:
    return mean + math.sqrt(var) * noise.normal(seed, torch.arange(n), shape, dtype=F64)


def drawn(n: int, seed: int, step: int, shape: tuple[int, ...] = SHAPE) -> tuple[Tensor, Tensor]:
    rows = torch.arange(n)
    u = noise.uniform(seed, rows, (), draw=step * 256 + 1, domain="training", dtype=F64)
    return u, noise.normal(seed, rows, shape, draw=step * 256, domain="training", dtype=F64)


@pytest.mark.parametrize("weight", [Uniform(), Sigma2(), MinSNR(), EDMWeight(), Likelihood()], ids=str)
@pytest.mark.parametrize("process", [VP(), EDM(), Flow(), Trig(), OU()], ids=lambda p: type(p).__name__)
def test_any_raw_output_gives_the_same_loss(process: Process, weight: Any) -> None:
    x0 = data(30)
    wrong = lambda x, s: (x * 3).sin() * column(process.alpha(s), x)  # noqa: E731
    for predict in ("x0", "velocity") if isinstance(weight, Uniform) else ("velocity",):
        objective = Denoising(predict=predict, weight=weight, times=LogNormal())
        losses = [objective.terms(Oracle(process, raw, wrong=wrong), x0, seed=3, step=4) for raw in (None, *NAMES)]
        for other in losses[1:]:
            assert torch.equal(other.t, losses[0].t)
            assert torch.allclose(other.loss, losses[0].loss, rtol=1e-9, atol=1e-13), predict


def test_a_reading_of_ones_own_is_regressed_on_its_own_target() -> None:
    own = Reading("own", lambda process, t: (1 + t, 2 - t, 3 + t))  # target ((1 + t) x0 + (2 - t) eps) / (3 + t)
    x0, out = data(20), data(20, seed=1)
    u, eps = drawn(20, 0, 0)
    t = (1e-3 + (1 - 1e-3) * u)[:, None]
    error = out - ((1 + t) * x0 + (2 - t) * eps) / (3 + t)

    class Says(Oracle):
        def __call__(self, x: Tensor, s: Any, cond: Any = None) -> Prediction:
            return Prediction(self.process, x, s, other=(own, out))

    denoiser = Says(Flow())
    denoiser.reading = own
    # |noise error| = |k alpha / (A sigma - B alpha)| |error|, the 2x2 inverse by hand
    factor = (3 + t) * (1 - t) / ((1 + t) * t - (2 - t) * (1 - t))
    got = Denoising(weight="sigma2").terms(denoiser, x0).loss
    assert torch.allclose(got, (factor * error).square().mean(1), rtol=1e-11, atol=0)


def test_the_exact_denoiser_is_the_minimiser_and_the_gap_is_the_perturbation() -> None:
    process, x0 = Trig(), data(20000, (1,), var=0.5)
    objective = Denoising(predict="noise")
    floor = objective.terms(Oracle(process, None, var=0.5), x0).loss
    for wrong in (lambda x, s: 0.2 * x, lambda x, s: 0.2 * torch.ones_like(x), lambda x, s: 0.3 * column(s, x).cos()):
        seen: list[Tensor] = []

        def remembered(x: Tensor, s: Tensor, wrong: Any = wrong, seen: list[Tensor] = seen) -> Tensor:
            seen.append(wrong(x, s))
            return seen[-1]

        gap = objective.terms(Oracle(process, None, var=0.5, wrong=remembered), x0).loss - floor
        se = float(gap.std()) / math.sqrt(len(gap))
        assert float(gap.mean()) > 4 * se
        assert abs(float(gap.mean() - seen[0].square().mean())) < 4 * se  # E|m + d - m*|^2 = floor + E d^2


class Line(nn.Module):
    """out = (c0 + c1 x): one time only."""

    def __init__(self, c0: float, c1: float) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.tensor([c0, c1], dtype=F64))

    def forward(self, x: Tensor, time: Tensor, cond: Any = None) -> Tensor:
        return self.c[0] + self.c[1] * x


@pytest.mark.parametrize("output", ["x0", "noise", "score", "velocity", "v"])
def test_the_gradient_vanishes_at_the_closed_form_optimum(output: str) -> None:
    # Data N(.6, .4): x0* = mean + alpha var (x - alpha mean) / V, eps* = sigma (x - alpha mean) / V.
    process, mean, var, n = VP(t_min=0.1), 0.6, 0.4, 40000
    at = torch.tensor(0.3, dtype=F64)
    a, s, da, ds = (float(f(at)) for f in (process.alpha, process.sigma, process.d_alpha, process.d_sigma))
    V = a * a * var + s * s
    x0 = (mean - a * var * a * mean / V, a * var / V)
    eps = (-s * a * mean / V, s / V)
    rows = {"x0": (1, 0), "noise": (0, 1), "score": (0, -1 / s), "velocity": (da, ds), "v": (-s, a)}
    A, B = rows[output]
    best = [A * p + B * q for p, q in zip(x0, eps, strict=True)]
    batch = data(n, (1,), mean=mean, var=var)

    def gradient(c0: float, c1: float) -> tuple[Tensor, Tensor]:
        """Mean and standard error of the per-sample gradient, from the losses of 50 groups."""
        net = NetDenoiser(Line(c0, c1), process, predict=output, shape=(1,))
        frozen = Denoising(weight="sigma2", times=LogNormal(-float(process.lam(at)), 1e-9))
        loss = frozen.terms(net, batch, seed=2).loss.reshape(50, -1).mean(1)
        grads = torch.stack([torch.autograd.grad(one, net.net.c, retain_graph=True)[0] for one in loss])
        return grads.mean(0), grads.std(0) / 50**0.5

    grad, se = gradient(*best)
    assert (grad.abs() < 4 * se).all()
    for shifted in ([best[0] + 0.15 * abs(B or A), best[1]], [best[0], best[1] + 0.15 * abs(B or A)]):
        grad, se = gradient(*shifted)
        assert (grad.abs() > 4 * se).any()


@pytest.mark.parametrize("std", [0.5, 1.0, 2.0])
def test_flow_matching_cannot_fall_below_pi_s_over_2(std: float) -> None:
    n, dim, s2 = 2000, 64, std**2
    x0 = data(n, (dim,), var=s2)
    result = Denoising.cfm(stratified=True).terms(Oracle(Flow(t_min=1e-9), "velocity", var=s2), x0)
    pointwise = s2 / ((1 - result.t) ** 2 * s2 + result.t**2)  # the conditional variance of eps - x0
    se = float((result.loss - pointwise).std()) / math.sqrt(n)
    assert abs(float((result.loss - pointwise).mean())) < 4 * se
    assert abs(float(result.loss.mean()) - math.pi * std / 2) < 5 * se and se < 0.01 * std
    assert math.isclose(quad(lambda t: s2 / ((1 - t) ** 2 * s2 + t**2), 0, 1)[0], math.pi * std / 2, rel_tol=1e-9)


@pytest.mark.parametrize("process", [VP(), EDM(sigma_max=3.0), Flow()], ids=lambda p: type(p).__name__)
def test_the_irreducible_part_of_score_matching(process: Process) -> None:
    var, n, dim = 0.7, 1000, 64
    x0 = data(n, (dim,), var=var)
    result = Denoising(predict="score", weight="uniform", stratified=True).terms(Oracle(process, "score", var=var), x0)
    a2, s2 = process.alpha(result.t) ** 2, process.sigma(result.t) ** 2
    ratio = result.loss / (a2 * var / (s2 * (a2 * var + s2)))
    # Given x the target is Gaussian: the ratio is chi-squared / dim at every time.
    assert abs(float(ratio.mean()) - 1) < 4 * math.sqrt(2 / dim / n)
    assert abs(float(ratio[: n // 10].mean()) - 1) < 4 * math.sqrt(20 / dim / n)
    dsm = Denoising.dsm().terms(Oracle(process, "score", var=var), x0, seed=1)
    a2, s2 = process.alpha(dsm.t) ** 2, process.sigma(dsm.t) ** 2
    assert abs(float((dsm.loss / (a2 * var / (a2 * var + s2))).mean()) - 1) < 4 * math.sqrt(2 / dim / n)


def test_conditional_less_marginal_flow_matching_is_the_same_for_every_net() -> None:
    n, process = 60000, Flow(t_min=0.02)
    x0 = data(n, (1,), mean=1.0, var=0.25)
    objective = Denoising.cfm()
    exact = Oracle(process, "velocity", mean=1.0, var=0.25)
    constants = []
    for k, net in enumerate((lambda x, t: x, lambda x, t: (2 * x).sin() - t, lambda x, t: 0.5 - 2 * t * x)):
        kept: list[Tensor] = []

        class Net(Oracle):
            def __call__(self, x: Tensor, s: Any, cond: Any = None, net: Any = net, kept: Any = kept) -> Prediction:
                out = net(x, column(s, x))
                kept.append((out - exact(x, s).value).square().flatten(1).mean(1))
                return Prediction(self.process, x, s, velocity=out)

        loss = objective.terms(Net(process, "velocity"), x0, seed=k).loss
        gap = loss - kept[0]
        constants.append((float(gap.mean()), float(gap.std()) / math.sqrt(n)))
    V = quad(lambda t: 0.25 / ((1 - t) ** 2 * 0.25 + t**2), 0.02, 1)[0] / 0.98
    for value, se in constants:
        assert abs(value - V) < 4 * se and se < 0.03 * V


def hand_net(x: Tensor, told: Tensor) -> Tensor:
    return (x + told[:, None]).tanh()


class Net(nn.Module):
    def forward(self, x: Tensor, time: Tensor, cond: Any = None) -> Tensor:
        return hand_net(x, time)


def test_presets_are_the_published_losses() -> None:
    n, x0 = 40, data(40)
    u, eps = drawn(n, 4, 9)

    # Ho et al. 2020: |eps_theta(sqrt(abar) x0 + sqrt(1 - abar) eps, n) - eps|^2, n uniform on 1..1000
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=F64)
    level = (u * 1000).floor().long()
    abar = torch.cumprod(1 - beta, 0)[level][:, None]
    net = NetDenoiser(Net(), DiscreteVP(), predict="noise", time="index", shape=SHAPE)
    got = Denoising.ddpm()(net, x0, seed=4, step=9)
    hand = (hand_net(abar.sqrt() * x0 + (1 - abar).sqrt() * eps, level.double()) - eps).square().mean()
    assert math.isclose(got, hand, rel_tol=1e-9)

    # Song & Ermon 2019: sigma^2 |s_theta + eps / sigma|^2 on VE's clock
    t = 0.002 + (80 - 0.002) * u
    net = NetDenoiser(Net(), EDM(), predict="score", time="t", shape=SHAPE)
    hand = (t[:, None] * hand_net(x0 + t[:, None] * eps, t / 80) + eps).square().mean()
    assert math.isclose(Denoising.dsm()(net, x0, seed=4, step=9), hand, rel_tol=1e-12)

    # Lipman et al. 2022 (clock reversed): |v_theta((1 - t) x0 + t eps) - (eps - x0)|^2
    t = 1e-3 + (1 - 1e-3) * u
    net = NetDenoiser(Net(), Flow(), shape=SHAPE)
    x = (1 - t)[:, None] * x0 + t[:, None] * eps
    hand = (hand_net(x, t) - (eps - x0)).square().mean()
    assert math.isclose(Denoising.cfm()(net, x0, seed=4, step=9), hand, rel_tol=1e-12)

    # Karras et al. 2022: lambda |D(x0 + sigma eps; sigma) - x0|^2, sigma_data .7, log sigma ~ N(-1.2, 1.2^2)
    d = 0.7
    process = EDM(1e-9, 1e9)  # no truncation to speak of
    sigma = (-1.2 + 1.2 * torch.special.ndtri(u)).exp()[:, None]
    R = sigma**2 + d**2
    net = NetDenoiser(Net(), process, "edm", "edm", "log_sigma", sigma_data=d, shape=SHAPE)
    x = x0 + sigma * eps
    D = d**2 / R * x + sigma * d / R.sqrt() * hand_net(x / R.sqrt(), sigma.log()[:, 0] / 4)
    hand = (R / (sigma * d) ** 2 * (D - x0) ** 2).mean()
    assert math.isclose(Denoising.edm(d)(net, x0, seed=4, step=9), hand, rel_tol=1e-9)


def test_presets_state_their_parts() -> None:
    assert Denoising.ddpm() == Denoising("noise", Uniform(), UniformTimes(levels=True))
    assert Denoising.dsm() == Denoising("score", Sigma2(), UniformTimes())
    assert Denoising.cfm() == Denoising("velocity", Uniform(), UniformTimes()) == Denoising()
    assert Denoising.edm() == Denoising("x0", EDMWeight(0.5), LogNormal(-1.2, 1.2))
    assert Denoising.cfm(stratified=True, cond_dropout=0.1, times="log-normal") == Denoising(
        times=LogNormal(), stratified=True, cond_dropout=0.1
    )
    assert Denoising.edm(0.7, weight="uniform").weight == Uniform()
    assert Denoising().density == "multiply" and not Denoising().stratified and Denoising().cond_dropout == 0.0


@pytest.mark.parametrize("kind", ["labels", "vectors"])
def test_cond_dropout_replaces_the_stated_share_by_null(kind: str) -> None:
    n, share = 4000, 0.3
    cond = torch.arange(n) % 7 if kind == "labels" else data(n, (2,)).float()
    oracle = Oracle(Flow(), "velocity")
    objective = Denoising(cond_dropout=share)
    objective(oracle, torch.zeros(n, 1), cond, seed=1, step=2)
    given = oracle.conds[0]
    null = (given == -1) if kind == "labels" else given.isnan().all(1)
    expected = noise.uniform(1, torch.arange(n), (), draw=2 * 256 + 2, domain="training") < share
    assert torch.equal(null, expected) and given.dtype == cond.dtype
    assert abs(float(null.double().mean()) - share) < 4 * math.sqrt(share * (1 - share) / n)
    assert torch.equal(given[~null], cond[~null])
    objective(oracle, torch.zeros(n, 1), None)
    Denoising()(oracle, torch.zeros(n, 1), cond)
    assert oracle.conds[1] is None and oracle.conds[2] is cond
    # Dropping says nothing of the time: the two draws are independent.
    t = objective.terms(oracle, torch.zeros(n, 1), cond, seed=1, step=2).t
    assert abs(float(torch.corrcoef(torch.stack([t, null.double()]))[0, 1])) < 4 / math.sqrt(n)


@pytest.mark.parametrize("stratified", [False, True])
def test_a_batch_in_parts_is_the_whole_batch(stratified: bool) -> None:
    x0, cond = data(24).float(), torch.arange(24) % 3
    objective = Denoising(times="logit-normal", stratified=stratified, cond_dropout=0.5)
    whole_oracle, part_oracle = Oracle(Flow(), "velocity"), Oracle(Flow(), "velocity")
    whole = objective.terms(whole_oracle, x0, cond, seed=6, step=3)
    for rows in (torch.arange(10), torch.arange(10, 24), torch.tensor([23, 0, 5])):
        part = objective.terms(part_oracle, x0[rows], cond[rows], seed=6, step=3, positions=rows, total=24)
        assert torch.equal(part.loss, whole.loss[rows]) and torch.equal(part.t, whole.t[rows])
        assert torch.equal(part_oracle.conds[-1], whole_oracle.conds[0][rows])
    for keys in ({"seed": 7, "step": 3}, {"seed": 6, "step": 4}):
        other = objective.terms(Oracle(Flow(), "velocity"), x0, cond, **keys)
        assert not torch.isclose(other.t, whole.t).any() and not torch.isclose(other.loss, whole.loss).any()
    again = objective.terms(Oracle(Flow(), "velocity"), x0, cond, seed=6, step=3)
    assert torch.equal(again.loss, whole.loss)
    assert torch.equal(objective(Oracle(Flow(), "velocity"), x0, cond, seed=6, step=3), whole.loss.mean())


def test_the_draws_are_the_documented_ones() -> None:
    u, eps = drawn(12, 2, 5)
    seen: list[Tensor] = []

    class Spy(Oracle):
        def __call__(self, x: Tensor, s: Any, cond: Any = None) -> Prediction:
            seen.extend([x, s])
            return super().__call__(x, s, cond)

    terms = Denoising(times=UniformTimes()).terms(Spy(Flow(), "noise"), data(12), seed=2, step=5)
    assert torch.equal(terms.t, 1e-3 + (1 - 1e-3) * u) and terms.t is seen[1]
    assert torch.allclose(seen[0], (1 - terms.t)[:, None] * data(12) + terms.t[:, None] * eps, rtol=1e-14)


def test_keys_default_to_zero() -> None:
    x0, objective = data(5), Denoising()
    plain = objective.terms(Oracle(Flow(), "velocity"), x0)
    keyed = objective.terms(Oracle(Flow(), "velocity"), x0, seed=0, step=0)
    assert torch.equal(plain.loss, keyed.loss) and torch.equal(plain.t, keyed.t)


def test_precision_follows_the_data_but_never_falls_below_float32() -> None:
    for given, kept in ((torch.float16, torch.float32), (torch.float32, torch.float32), (F64, F64)):
        x0 = data(6).to(given)
        assert Denoising().terms(Oracle(Flow(), "velocity"), x0).loss.dtype == kept
    images = data(6, (2, 4, 4))
    got = Denoising().terms(Oracle(Flow(), "velocity"), images)
    assert got.loss.shape == (6,) == got.t.shape
    flat = Denoising().terms(Oracle(Flow(), "velocity"), images.flatten(1))
    assert torch.allclose(got.loss, flat.loss, rtol=1e-12)  # per dimension, whatever the event's shape


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"predict": "epsilon"}, "unknown reading 'epsilon'"),
        ({"weight": "snrr"}, "did you mean 'snr'"),
        ({"times": "log_normall"}, "did you mean 'log-normal'"),
        ({"density": "divide"}, "density"),
        ({"cond_dropout": 1.0}, "cond_dropout"),
        ({"cond_dropout": -0.1}, "cond_dropout"),
        ({"stratifed": True}, "did you mean 'stratified'"),
        ({"weight": {"kind": "min-snr", "gama": 1}}, "did you mean 'gamma'"),
    ],
)
def test_mistakes_are_named(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Denoising(**fields)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="empty"):
        Denoising()(Oracle(Flow(), "velocity"), torch.zeros(0, 3))
