"""Taylor's method: exact derivatives of the noise, exact on polynomials, its orders, what cannot be differentiated."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fokker as fk
from fokker.denoiser import NetDenoiser
from fokker.errors import ConfigError
from fokker.exact import Gaussian, GaussianMixture
from fokker.nets import MLP
from fokker.prediction import Prediction
from fokker.process import EDM, VP, DiscreteVP, Flow, Process, Trig
from fokker.solvers import DPM, Taylor, UniformLam

from .oracle import F64, execute, flow_map, mixture, quantile_starts, slopes
from .test_exponential import Polynomial, bent
from .test_exponential_orders import exact, setting

CPU = torch.device("cpu")
PROCESSES = [VP(), EDM(), Flow(), Trig()]
IDS = {"ids": lambda c: type(c).__name__}


def go(solver: Taylor, denoiser: Any, times: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        return solver.prepare(denoiser, times, CPU, F64)[1](x)


class Smooth(Polynomial):
    """The polynomial at a time that carries derivatives."""

    def __call__(self, x: Tensor, s: float | Tensor, cond: Any = None) -> Prediction:
        lam = self.process.lam(torch.as_tensor(s, dtype=F64))
        return Prediction(self.process, x, s, noise=sum(c * lam**k for k, c in enumerate(self.p.coef)) + 0.0 * x)


@pytest.mark.parametrize("process", PROCESSES, **IDS)
def test_exact_on_polynomials_of_lam(process: Process) -> None:
    """Of a degree below the order, whatever the steps; not of that degree."""
    grid, x = bent(process, 3), torch.tensor([[0.3], [-1.0]], dtype=F64)
    for order in (1, 2, 3):
        for degree in (order - 1, order):
            model = Smooth(process, "noise", [0.4, -0.7, 0.3, 0.2][: degree + 1])
            want = model.solve(x, float(grid[0]), float(grid[-1]))
            gap = float((go(Taylor(order), model, grid, x) - want).abs().max() / want.abs().max())
            assert gap < 1e-12 if degree < order else gap > 1e-4, (order, degree)


@pytest.mark.parametrize("process", [*PROCESSES, DiscreteVP(steps=100)], **IDS)
def test_one_step_from_the_derivatives_of_a_gaussian(process: Process) -> None:
    """noise = c sigma / sqrt(V) on the flow of N(m, v), c a constant of it: d/dlam by hand, by central differences."""
    law, s, t = Gaussian([0.3], [0.25]), 0.503 * process.T, 0.402 * process.T  # between the nodes of the chain
    x = torch.tensor([[0.9], [-0.4]], dtype=F64) * float(process.sigma(s))
    c = (x - 0.3 * process.alpha(s)) / (0.25 * process.alpha(s) ** 2 + process.sigma(s) ** 2).sqrt()

    def ratio(lam: float) -> float:
        return 1.0 / math.sqrt(1.0 + 0.25 * math.exp(2.0 * lam))  # sigma / sqrt(V)

    here, step = float(process.lam(s)), 1e-3
    h = float(process.lam(t)) - here
    grid = [ratio(here + k * step) for k in (-1, 0, 1)]
    found = [grid[1], (grid[2] - grid[0]) / (2 * step), (grid[2] - 2 * grid[1] + grid[0]) / step**2]
    weights = [math.expm1(h), math.expm1(h) - h, math.expm1(h) - h - h * h / 2]
    for order in (1, 2, 3):
        noise = sum(w * d for w, d in zip(weights[:order], found, strict=False)) * c
        want = process.alpha(t) / process.alpha(s) * x - process.sigma(t) * noise
        got = go(Taylor(order), law.denoiser(process), torch.tensor([s, t], dtype=F64), x)
        assert float((got - want).abs().max() / want.abs().max()) < 1e-6, order


def test_order_1_is_ddim_and_it_costs_order_evaluations() -> None:
    vp, oracle = VP(), mixture(VP())
    times = UniformLam().times(vp, 5, 1.0, 1e-3, True)
    x = quantile_starts(oracle, 1.0)
    want = execute(DPM(1).plan(vp, times), oracle, x)
    assert float((go(Taylor(1), oracle, times, x) - want).abs().max()) < 1e-13
    for order in (1, 2, 3):
        oracle.calls.clear()
        seen: list[Any] = []
        got = fk.sample(
            oracle, x=x, solver={"kind": "taylor", "order": order}, nfe=4 * order + 1, grid="lam",
            callback=lambda n, t, x, p: seen.append((n, p.x0)),  # noqa: B023
        )  # fmt: skip
        assert len(oracle.calls) == Taylor(order).plan(vp, times).nfe == 4 * order + 1
        assert float((got - go(Taylor(order), oracle, times, x)).abs().max()) == 0.0
        assert [n for n, _ in seen] == [0, 1, 2, 3, 4]
        assert float((seen[0][1] - oracle.pair(x, 1.0)[0]).abs().max()) < 1e-12
    stopped = fk.sample(oracle, x=x, solver=Taylor(2), steps=3, callback=lambda *_: True)
    assert torch.equal(stopped, x)


@pytest.mark.parametrize(
    ("line", "law", "order"), [("vp", "part", 1), ("flow-inner", "part", 2), ("edm", "gaussian", 3)]
)
def test_orders(line: str, law: str, order: int) -> None:
    oracle, grid, start, stop = setting(line, law)
    x, errors = quantile_starts(oracle, start), []
    for n in (16, 32):
        got = go(Taylor(order), oracle, grid.times(oracle.process, n, start, stop, False), x)
        errors.append(float((got - exact(line, law)).square().mean().sqrt()))
    assert slopes(errors)[-1] == pytest.approx(order, abs=0.15), errors


@pytest.mark.parametrize("process", [VP(), Trig()], **IDS)
def test_a_step_on_a_mixture_errs_by_one_order_more(process: Process) -> None:
    oracle = mixture(process)
    for order in (1, 2, 3):
        errors = []
        for h in (0.1, 0.05):
            times = process.time(torch.tensor([0.2, 0.2 + h], dtype=F64))
            x = quantile_starts(oracle, float(times[0]))
            want = flow_map(oracle, x, float(times[0]), float(times[1]))
            errors.append(float((go(Taylor(order), oracle, times, x) - want).square().mean().sqrt()))
        assert slopes(errors)[-1] == pytest.approx(order + 1, abs=0.15), errors


def test_a_network_in_two_dimensions() -> None:
    """The steps of DPM-Solver-3 and Taylor's agree up to the fourth power of the step, for a network as well."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.inner(torch.cat([x, t[:, None]], 1))

    model = NetDenoiser(Net().double(), VP(), predict="v", time="lam", shape=(2,))
    x = torch.tensor([[0.5, -1.0], [1.5, 0.2]], dtype=F64)
    gaps = []
    for h in (0.4, 0.2, 0.1):
        times = VP().time(torch.tensor([-0.3, -0.3 + h], dtype=F64))
        other = execute(DPM(3).plan(VP(), times), model, x)
        gaps.append(float((go(Taylor(3), model, times, x) - other).abs().max()))
    assert slopes(gaps)[-1] == pytest.approx(4.0, abs=0.3), gaps


def test_the_librarys_networks_at_order_2_and_gradients() -> None:
    """Torch does not differentiate SiLU forwards twice; a gradient through a step is the difference quotient."""
    torch.manual_seed(1)
    model = NetDenoiser(MLP(1, 8, 1).double(), VP(), predict="velocity", time="log_sigma", shape=(1,))
    times = VP().time(torch.tensor([-0.3, 0.1], dtype=F64))
    x = torch.tensor([[0.4]], dtype=F64, requires_grad=True)
    fk.sample(model, x=x, solver=Taylor(2), grid=times).sum().backward()
    up, down = (go(Taylor(2), model, times, x.detach() + e) for e in (1e-5, -1e-5))
    assert x.grad is not None and float(x.grad) == pytest.approx(float(up - down) / 2e-5, rel=1e-7)
    with pytest.raises(ConfigError, match="cannot be differentiated forwards 2 times in a row"):
        go(Taylor(3), model, times, x.detach())


def test_refusals() -> None:
    ddpm = DiscreteVP(steps=10)

    class Rounds(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 1.0

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            return grads[0]

    class Net(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return Rounds.apply(x)

    integer = NetDenoiser(Net(), ddpm, predict="noise", time="integer", shape=(1,))
    with pytest.raises(ConfigError, match="time='integer', which has no derivative in time"):
        fk.sample(integer, n=2, solver=Taylor(2), steps=3)
    with pytest.raises(ConfigError, match="cannot be differentiated forwards 1 times"):
        fk.sample(NetDenoiser(Net(), VP(), predict="noise", shape=(1,)), n=2, solver=Taylor(2), steps=3)
    law = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], np.array([0.1, 0.1])).denoiser(Flow())
    with pytest.raises(ConfigError, match="singular at time 1"):
        Taylor().plan(Flow(), torch.tensor([1.0, 0.5], dtype=F64))
    with pytest.raises(ConfigError, match="needs a finite lam"):
        fk.encode(law, torch.zeros(1, 1), solver=Taylor(), grid=[0.0, 0.3, 0.6])
    with pytest.raises(ConfigError, match=r"Taylor\.order"):
        Taylor(order=4)
