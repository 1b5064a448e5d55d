"""DDPM's L_vlb: its weight on the mean, and the learned variance's part, against the bound's own terms."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fokker as fk
from fokker import noise
from fokker.errors import ConfigError
from fokker.likelihood.ddpm import Chain
from fokker.objectives import VLB, Denoising, TimeLaw, Uniform, UniformTimes
from fokker.prediction import READINGS, Prediction, coefficients, learned_std
from fokker.process import DiscreteVP, Process
from fokker.registry import build, spec

F64 = torch.float64
MEAN, VAR, DIM = 0.7, 0.25, 3


class Given(TimeLaw):
    """Times that are told."""

    def __init__(self, t: Tensor) -> None:
        self.t = t

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        return self.t


class Says:
    """A wrong denoiser with a variance: x0 = .3 x + .2, v = .4 sin x + t - .5; keeps both for gradients."""

    shape = (DIM,)
    lam_range = (-math.inf, math.inf)
    reading = READINGS["noise"]

    def __init__(self, process: Process, variance: bool = True) -> None:
        self.process, self.says = process, variance

    def __call__(self, x: Tensor, s: Any, cond: Any = None) -> Prediction:
        s = torch.as_tensor(s, dtype=F64).reshape(-1, 1)
        x0 = 0.3 * x + 0.2
        self.value = ((x - self.process.alpha(s) * x0) / self.process.sigma(s)).requires_grad_()
        self.v = (0.4 * x.sin() + s - 0.5).requires_grad_()
        v = self.v if self.says else None
        return Prediction(self.process, x, s.flatten(), other=(self.reading, self.value), variance=v)


def each_level(process: DiscreteVP) -> tuple[Tensor, Tensor, Given]:
    """(data, the noise `Denoising` draws, a law that takes the levels in turn), a row for each level."""
    rows = torch.arange(process.steps)
    x0 = MEAN + math.sqrt(VAR) * noise.normal(8, rows, (DIM,), dtype=F64)
    return x0, noise.normal(0, rows, (DIM,), domain="training", dtype=F64), Given((rows + 1.0).double() / process.steps)


def costs(chain: Chain, x0: Tensor, eps: Tensor) -> Tensor:
    """Row k's cost at level k + 1 in the bound."""
    k = torch.arange(len(x0))
    missed, std = chain.predict(x0, k, eps)
    return torch.cat([chain.decode(x0[:1], missed[:1], std[:1], None), chain.kl(k, missed, std)[1:]])


def test_the_weights_of_hos_chain() -> None:
    """On the noise beta^2 / (2 alpha^2 (1 - abar_{n-1})): .600, .318, .222, ... .0102; on x0 4999.5 in all."""
    process = DiscreteVP()
    t = torch.arange(1, 1001, dtype=F64) / 1000
    weight = VLB().value(process, t) / 1000.0
    on_noise = weight * coefficients(process, t, READINGS["noise"], READINGS["x0"])[1] ** 2
    assert on_noise[[1, 2, 3, 999]].tolist() == pytest.approx([0.600, 0.318, 0.222, 0.0102], abs=5e-4)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=F64)
    abar = (1 - betas).cumprod(0)
    by_hand = betas[1:] / (2.0 * (1.0 - betas[1:]) * (1.0 - abar[:-1]))  # beta is the variance here
    assert torch.allclose(on_noise[1:], by_hand, rtol=1e-9)
    assert float(weight[1:].sum()) == pytest.approx(4999.5, abs=0.01)
    snr = abar / (1 - abar)
    assert torch.allclose(weight[1:], 0.5 * (snr[:-1] - snr[1:]), rtol=1e-8)
    assert float(weight[0]) == pytest.approx(float(0.5 * (1 - abar[1]) / (betas[1] * (1 - abar[0]))), rel=1e-9)
    forward = VLB("forward").value(process, t) / 1000.0
    b = abar.sqrt().roll(1) * betas / (1 - abar)
    assert torch.allclose(forward[1:], b[1:] ** 2 / (2.0 * betas[1:]), rtol=1e-9)
    assert float(forward[0]) == pytest.approx(0.5 / 1e-4, rel=1e-9)
    assert VLB().value(process, t.float()).dtype in (torch.float32, F64)


@pytest.mark.parametrize("steps", [20, 49])  # 49 (2 / 49) is less than 2
@pytest.mark.parametrize("variance", ["posterior", "forward"])
def test_the_loss_is_the_bound(variance: Any, steps: int) -> None:
    """Level by level, for the same noise: steps KL_n / D, without what the model does not touch."""
    process = DiscreteVP(steps=steps)
    x0, eps, law = each_level(process)
    denoiser = Says(process)
    objective = Denoising(weight=VLB(variance), times=law)
    loss = objective.terms(denoiser, x0).loss.detach()
    chain = Chain(denoiser, variance)
    ratio = (chain.low / chain.std) ** 2
    free = 0.5 * DIM * (ratio - 1.0 - ratio.log())
    free[0] = 0.5 * DIM * (math.log(2.0 * math.pi) + 2.0 * chain.std[0].log())
    assert torch.allclose(loss * DIM / steps, costs(chain, x0, eps) - free, rtol=1e-9, atol=1e-11)
    assert torch.allclose(Denoising(predict="noise", weight="vlb", times=law).terms(denoiser, x0).loss, loss) is (
        variance == "posterior"
    )


@pytest.mark.parametrize("steps", [20, 49])
def test_the_hybrid_loss_adds_the_bounds_terms(steps: int) -> None:
    process = DiscreteVP(steps=steps)
    x0, eps, law = each_level(process)
    denoiser = Says(process)
    plain = Denoising.ddpm(times=law)
    found, simple = (o.terms(denoiser, x0) for o in (Denoising.ddpm(times=law, variance_weight=0.1), plain))
    want = 0.1 * steps / DIM * costs(Chain(denoiser, "learned"), x0, eps)
    assert torch.allclose(found.loss - simple.loss, want, rtol=1e-9, atol=1e-11)
    assert torch.equal(found.error, simple.error)


def test_the_mean_has_no_gradient_of_the_variances_part() -> None:
    process = DiscreteVP(steps=20)
    x0, _, law = each_level(process)
    denoiser, grads = Says(process), []
    for weight in (0.0, 0.1):
        loss = Denoising.ddpm(times=law, variance_weight=weight).terms(denoiser, x0).loss.sum()
        grads.append(torch.autograd.grad(loss, [denoiser.value, denoiser.v], allow_unused=True))
    assert torch.equal(grads[0][0], grads[1][0]) and grads[0][1] is None
    assert bool((grads[1][1][:8].abs() > 1e-6).all())  # in noise the two variances are nearly one


def best(process: DiscreteVP) -> Tensor:
    """v whose standard deviation is the true reverse kernel's, of N(., VAR), at every level."""
    t = torch.arange(1, process.steps + 1, dtype=F64) / process.steps
    on_x0, low, high = process.reverse(process.steps * t)
    a2, s2 = process.alpha(t) ** 2, process.sigma(t) ** 2
    std = torch.where(t * process.steps < 1.5, 0.0, low).square()
    q = std + on_x0**2 * VAR * s2 / (a2 * VAR + s2)
    v = 2.0 * (q.sqrt() / low).log() / (high / low).log() - 1.0
    assert torch.allclose(learned_std(v, low, high), q.sqrt(), rtol=1e-12)
    return v


GENTLE = DiscreteVP(steps=6, beta_start=0.05, beta_end=0.3)


class Levels(nn.Module):
    """A mean a_n x + b_n and a variance v_n of every level's own, the time being the level's index."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.a, self.b, self.v = (nn.Parameter(torch.zeros(steps, dtype=F64)) for _ in range(3))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return torch.cat([self.a[time][:, None] * x + self.b[time][:, None], self.v[time][:, None].expand_as(x)], 1)


def exact_noise(process: DiscreteVP) -> tuple[Tensor, Tensor]:
    """(a_n, b_n) of E[eps | x_n]."""
    t = torch.arange(1, process.steps + 1, dtype=F64) / process.steps
    a, s = process.alpha(t), process.sigma(t)
    total = a**2 * VAR + s**2
    return s / total, -s * a * MEAN / total


def test_the_minimiser_is_the_true_reverse_variance() -> None:
    """The gradient of the expected loss, by quadrature, is zero at the exact mean and variance, and only there."""
    process = GENTLE
    net = Levels(6)
    denoiser = fk.NetDenoiser(net, process, predict="noise", time="integer", shape=(1,), learned_variance=True)
    h, w = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(3))
    w = w / w.sum()
    x0, weights = (MEAN + 0.5 * h).repeat(3)[:, None].repeat(6, 1), torch.outer(w, w).flatten().repeat(6)
    law = Given(torch.arange(1, 7, dtype=F64).repeat_interleave(9) / 6)
    objective, v = Denoising.ddpm(times=law, variance_weight=1e-3), best(process)
    assert bool((v.abs() < 1.0).all())  # between beta-tilde and beta
    eps = h.repeat_interleave(3)[:, None].repeat(6, 1)

    def slope(off: float) -> Tensor:
        with torch.no_grad():
            for parameter, value in zip((net.a, net.b, net.v), (*exact_noise(process), v + off), strict=True):
                parameter.copy_(value)
        net.zero_grad()
        (weights * objective.terms(denoiser, x0).loss).sum().backward()  # type: ignore[no-untyped-call]
        assert net.v.grad is not None
        return net.v.grad.clone()

    original = noise.normal
    try:
        noise.normal = lambda *args, **keys: eps  # type: ignore[assignment]
        assert slope(0.0).abs().max() < 1e-14
        assert bool((slope(0.3) > 1e-6).all() & (slope(-0.3) < -1e-6).all())
    finally:
        noise.normal = original


def test_training_finds_it_and_leaves_the_mean_alone() -> None:
    process, found = GENTLE, []
    for weight in (0.0, 1e-3):
        net = Levels(6)
        with torch.no_grad():
            net.a.copy_(0.5 * exact_noise(process)[0])
        denoiser = fk.NetDenoiser(net, process, predict="noise", time="integer", shape=(1,), learned_variance=True)
        objective = Denoising.ddpm(stratified=True, variance_weight=weight)
        optimiser = torch.optim.Adam(net.parameters(), lr=0.1)
        for step in range(150):
            optimiser.param_groups[0]["lr"] = 0.1 * (1.0 - step / 150)
            x0 = MEAN + 0.5 * noise.normal(5, torch.arange(1536), (1,), draw=step, dtype=F64)
            optimiser.zero_grad()
            objective(denoiser, x0, step=step).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        found.append(net)
    assert torch.equal(found[0].a, found[1].a) and torch.equal(found[0].b, found[1].b)
    assert (found[1].a - exact_noise(process)[0]).abs().max() < 0.03
    assert float(found[0].v.abs().max()) == 0.0
    _, low, high = process.reverse(torch.arange(1, 7))
    ratio = learned_std(found[1].v.detach(), low, high) / learned_std(best(process), low, high)
    assert (ratio - 1.0).abs().max() < 0.02 < (low / high * ratio - 1.0).abs().min()


def test_mistakes_and_recipes() -> None:
    x0 = torch.zeros(2, DIM, dtype=F64)
    with pytest.raises(ConfigError, match="VLB: given the process VP.*must be a chain of levels, 'ddpm'"):
        Denoising(weight="vlb")(Says(fk.VP()), x0)
    objective = Denoising.ddpm(variance_weight=0.001)
    with pytest.raises(ConfigError, match="variance_weight: given DiscreteVP.* and a network without a learned"):
        objective(Says(DiscreteVP(steps=5), variance=False), x0)
    with pytest.raises(
        ConfigError, match="variance_weight: given VP.* and a network with a learned.*needs the process"
    ):
        objective(Says(fk.VP()), x0)
    with pytest.raises(ConfigError, match="variance_weight"):
        Denoising(variance_weight=-1.0)
    for made in (objective, Denoising(weight=VLB("forward"))):
        assert build("objective", spec(made)) == made
    assert Denoising.ddpm() == Denoising("noise", Uniform(), UniformTimes(levels=True), variance_weight=0.0)
