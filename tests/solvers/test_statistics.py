"""The statistics of DPM-Solver-v3: closed forms, quadrature, what they are for, and networks that round their time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor, nn

import fokker as fk
from fokker.errors import ConfigError
from fokker.guidance import CFG
from fokker.nets import MLP
from fokker.process import DDPM, EDM, VP, Flow, Process
from fokker.solvers import DDIM, DPMpp, DPMv3, UniformLam
from fokker.statistics import compute_statistics

from .oracle import mixture

F64 = torch.float64
MEAN, VAR = torch.tensor([0.3, -1.0, 0.5], dtype=F64), torch.tensor([0.09, 1.0, 0.01], dtype=F64)


class Told(nn.Module):
    """x0 of N(MEAN, VAR), as a network that is told t / T, or DDPM's index."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process

    def forward(self, x: Tensor, told: Tensor, cond: Tensor | None = None) -> Tensor:
        process = self.process
        t = ((told.double() + 1) / process.steps if isinstance(process, DDPM) else told * process.T)[:, None]
        alpha, sigma = process.alpha(t), process.sigma(t)
        return (MEAN + alpha * VAR / (alpha**2 * VAR + sigma**2) * (x - alpha * MEAN)).to(x.dtype)


def normal(process: Process, told: str = "t") -> fk.NetDenoiser:
    return fk.NetDenoiser(Told(process), process, predict="x0", time=told, shape=(3,))


def draws(n: int) -> Tensor:
    return fk.exact.Gaussian(MEAN, VAR.diag()).sample(n, dtype=F64)


@pytest.mark.parametrize("source", ["data", "flow"])
@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: type(p).__name__)
def test_a_gaussian_in_one_step(process: Process, source: str) -> None:
    """l = sigma^2 / (alpha^2 v + sigma^2), a = 0, b = f'; one step of order 1 is exact where DDIM is not."""
    denoiser = normal(process)
    data = draws(6) if source == "data" else None
    points = 121 if source == "data" else 61
    found = compute_statistics(denoiser, data, n=6, points=points, steps=60, per="coordinate", dtype=F64)
    rho2 = (-2.0 * found.lam.value)[:, None].exp()
    want = rho2 / (VAR + rho2)
    torch.testing.assert_close(found.l.value, want, rtol=0, atol=1e-12)
    assert float(found.a.value.abs().max()) == 0.0
    bend = 2.0 * VAR * rho2 / (VAR + rho2) ** 2 * MEAN  # f = -l mean
    torch.testing.assert_close(found.b.value[5:-5], bend[5:-5], rtol=0, atol=2e-3)  # l' is a spline's
    start, stop = process.t_max, process.t_min
    x = process.prior((3,), n=5, t=start, dtype=F64)
    (a, s), (c, d) = ((float(process.alpha(t)), float(process.sigma(t))) for t in (start, stop))
    exact = c * MEAN + ((c * c * VAR + d * d) / (a * a * VAR + s * s)).sqrt() * (x - a * MEAN)
    keys: dict[str, Any] = {"x": x, "grid": [start, stop]}
    got = fk.sample(denoiser, solver=DPMv3(found, order=1, corrector=False), **keys)
    torch.testing.assert_close(
        got, exact, rtol=0, atol=1e-6 if source == "data" and not isinstance(process, Flow) else 3e-5
    )
    assert float((fk.sample(denoiser, solver=DDIM(), **keys) - exact).abs().max()) > 0.5
    pooled = compute_statistics(denoiser, data, n=6, points=points, steps=60, dtype=F64)
    torch.testing.assert_close(pooled.l.value, want.mean(1), rtol=0, atol=1e-12)


def by_quadrature(lam: np.ndarray) -> tuple[np.ndarray, ...]:
    """(l, a, b) of the mixture by quadrature over p_lam and central differences; nothing of the library's is used."""
    w, mu, v = np.array([0.3, 0.7]), np.array([-1.0, 0.8]), np.array([0.35, 0.25]) ** 2
    y = np.linspace(-12, 12, 6001)

    def x0(y: np.ndarray, r: float, scale: float) -> np.ndarray:
        total = v + math.exp(-2 * r)
        gap = scale * y[:, None] - mu
        log = np.log(w) - 0.5 * gap**2 / total - 0.5 * np.log(total)
        part = np.exp(log - log.max(1, keepdims=True))
        return ((part / part.sum(1, keepdims=True)) * (mu + v / total * gap)).sum(1)

    rows, weights = [], []
    for r in lam:  # u = y / scale spreads the grid over the law
        scale, e = math.sqrt(1 + math.exp(-2 * r)), 1e-4
        total = v + math.exp(-2 * r)
        gap = scale * y[:, None] - mu
        p = (w * np.exp(-0.5 * gap**2 / total) / np.sqrt(total)).sum(1)
        m = x0(y, r, scale)
        slope = (x0(y + e, r, scale) - x0(y - e, r, scale)) / (2 * e * scale)
        rate = (x0(y, r + e, scale) - x0(y, r - e, scale)) / (2 * e)
        rows.append((scale * y, m, slope, rate + slope * (m - scale * y)))
        weights.append(p / p.sum())
    l = np.array([1 - (p * row[2]).sum() for row, p in zip(rows, weights, strict=True)])
    d_l = CubicSpline(lam, l)(lam, 1)
    out = []
    for (y_, m, _, total), p, k, dk in zip(rows, weights, l, d_l, strict=True):
        f, df = (1 - k) * y_ - m, (1 - k) * (m - y_) - dk * y_ - total
        e_f, e_df = (p * f).sum(), (p * df).sum()
        a = ((p * f * df).sum() - e_f * e_df) / ((p * f * f).sum() - e_f**2)
        out.append((k, a, e_df - a * e_f))
    return tuple(np.array(column) for column in zip(*out, strict=True))


@pytest.mark.parametrize("source", ["data", "flow"])
def test_a_mixture_by_quadrature(source: str) -> None:
    """Within four standard errors, which eight seeds tell."""
    process = VP()
    denoiser = mixture(process, shape=(1,))
    runs = []
    for seed in range(8):
        data = denoiser.sample_data(400, 100 + seed) if source == "data" else None
        found = compute_statistics(denoiser, data, n=400, points=21, steps=80, batch_size=400, seed=seed, dtype=F64)
        runs.append(torch.stack([found.l.value, found.a.value, found.b.value]).numpy())
    runs_ = np.array(runs)
    want = np.array(by_quadrature(found.lam.value.numpy()))
    error = runs_.std(0, ddof=1) / math.sqrt(8)
    # the regression's ratio has a bias of order 1 / n, and a flow of 100 steps its own: a floor beside the errors
    floor = np.array([[1e-3], [2e-2], [1e-2]])
    assert (np.abs(runs_.mean(0) - want) < 4 * error + floor)[:, 1:-1].all()
    assert error[:, 1:-1].max() < 0.06 and np.abs(want[1]).max() > 0.5 and np.abs(want[2]).max() > 0.2


def test_the_regression_explains() -> None:
    """On fresh states f' - a f - b varies less than f', and v3 then errs less than DDIM at equal steps."""
    process = VP()
    denoiser = mixture(process, shape=(1,))
    found = compute_statistics(denoiser, n=300, points=41, steps=40, dtype=F64)
    x = process.prior((1,), n=200, seed=9, t=1.0, dtype=F64)
    keys: dict[str, Any] = {"x": x, "final": "t_min"}
    fine = fk.sample(denoiser, solver=DPMpp(), steps=400, **keys)

    def error(solver: Any, steps: int) -> float:
        return float((fk.sample(denoiser, solver=solver, steps=steps, **keys) - fine).square().mean().sqrt())

    for steps in (8, 16):
        assert error(DPMv3(found, order=1, corrector=False), steps) < 0.75 * error(DDIM(), steps)
        assert error(DPMv3(found, order=2, corrector=True), steps) < 0.5 * error(DPMpp(), steps)
    times = process.time(found.lam.value)
    _, states = fk.trajectory(denoiser, x=x, solver=DPMpp(), grid=torch.cat([times[:1], times[1:]]))
    l, a, b = (t.value[:, None] for t in (found.l, found.a, found.b))
    y = states[..., 0] / process.alpha(times)[:, None]
    m = torch.stack([denoiser(state, float(t)).x0[:, 0] for state, t in zip(states, times, strict=True)])
    f = (1 - l) * y - m
    slope = torch.gradient(f, spacing=(found.lam.value,), dim=0)[0]
    left, whole = (slope - a * f - b).var(1), slope.var(1)
    assert bool((left < 1.02 * whole)[2:-2].all()) and float((left / whole)[2:-2].mean()) < 0.8


@pytest.mark.parametrize("told", ["index", "integer"])
def test_a_network_that_rounds_its_time(told: str) -> None:
    """Where jvp sees no time, differences do: b holds it."""
    process = DDPM()
    found = compute_statistics(normal(process, told), draws(4), points=41, per="coordinate", dtype=F64)
    inner = (found.lam.value.abs() < 2).nonzero()[:, 0]
    rho2 = (-2.0 * found.lam.value[inner])[:, None].exp()
    bend = 2.0 * VAR * rho2 / (VAR + rho2) ** 2 * MEAN
    mean_slope = found.b.value[inner] + found.a.value[inner] * -(rho2 / (VAR + rho2)) * MEAN
    assert float((mean_slope - bend).abs().max()) < (0.01 if told == "index" else 0.1) and float(bend.abs().max()) > 0.3


def test_networks_guidance_and_keys() -> None:
    """A network under jvp in float32; batches and seeds; guided flows with their conditions."""
    torch.manual_seed(1)
    net = MLP(2, width=16, depth=2, classes=2)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn_like(p))
    denoiser = fk.NetDenoiser(net, VP(), predict="v", time="log_sigma", shape=(2,))
    keys: dict[str, Any] = {"n": 12, "points": 5, "steps": 8, "per": "coordinate"}
    told: list[int] = []
    one = compute_statistics(denoiser, batch_size=5, progress=told.append, **keys)
    assert told == [5, 5, 2]
    assert one.shape == (2,) and not any(p.grad is not None for p in net.parameters())
    whole = compute_statistics(denoiser, **keys)
    torch.testing.assert_close(one.l.value, whole.l.value, rtol=0, atol=1e-5)
    torch.testing.assert_close(one.a.value, whole.a.value, rtol=1e-3, atol=1e-3)
    # l is the mean diagonal of sigma dnoise/dx, by autograd
    k = 2
    t = float(VP().time(whole.lam.value[k]))
    grid = UniformLam().times(VP(), 8, VP().T, VP().t_min, False)
    _, states = fk.trajectory(denoiser, n=12, solver=DPMpp(), grid=grid)
    jacobian = torch.func.vmap(torch.func.jacfwd(lambda x: denoiser(x[None], t).noise[0]))(states[2 * k])
    want = float(VP().sigma(t)) * jacobian.diagonal(dim1=1, dim2=2).mean(0)
    many = compute_statistics(denoiser, **keys, probes=60)
    torch.testing.assert_close(many.l.value[k].float(), want, rtol=0, atol=0.03)
    assert whole != compute_statistics(denoiser, seed=1, **keys)
    labels = torch.arange(12) % 2
    guided = compute_statistics(CFG(denoiser, 2.0), cond=labels, batch_size=5, **keys)
    assert not torch.allclose(guided.b.value, whole.b.value, atol=1e-2)
    alone = compute_statistics(CFG(denoiser, 1.0), cond=1, **keys)
    again = compute_statistics(denoiser, cond=torch.ones(12, dtype=torch.int64), **keys)
    torch.testing.assert_close(alone.l.value, again.l.value, rtol=0, atol=1e-6)


def test_refusals() -> None:
    denoiser = normal(VP())
    for keys, says in (
        ({"n": 1}, "n: given 1, must be at least 2"),
        ({"points": 3}, "points: given 3, must be at least 4"),
        ({"probes": 0}, "probes: given 0"),
        ({"batch_size": 0}, "batch_size: given 0"),
        ({"per": "pixel"}, "per: given 'pixel', must be 'coordinate' or 'event'"),
        ({"solver": "ancestral"}, "which draws noise"),
    ):
        with pytest.raises(ConfigError, match=says):
            compute_statistics(denoiser, **keys)
    with pytest.raises(ConfigError, match="shape: this denoiser does not know"):
        compute_statistics(fk.NetDenoiser(MLP(2), VP()))
