"""UniPC: the folded plan is predict, evaluate, correct; its order is one more than the predictor's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from fokker.errors import ConfigError
from fokker.process import EDM, VP, Flow, Process, Trig
from fokker.solvers import DPM, DPMpp, UniformLam, UniPC

from .oracle import F64, Oracle, execute, gaussian, gaussian_map, mixture, quantile_starts, reference
from .test_exponential import bent
from .test_exponential_orders import observed

PROCESSES = [VP(), EDM(), Flow(), Trig()]
IDS = {"ids": lambda c: type(c).__name__}


def weights(nodes: list[float], a: float, b: float, side: str) -> list[float]:
    """int_a^b e^{-+(b - u)} l_j(u) du of the Lagrange polynomials through nodes, by adaptive quadrature."""
    sign = -1.0 if side == "data" else 1.0
    out = []
    for j, own in enumerate(nodes):
        others = nodes[:j] + nodes[j + 1 :]

        def density(u: float, own: float = own, others: list[float] = others) -> float:
            return math.exp(sign * (b - u)) * math.prod((u - c) / (own - c) for c in others)

        out.append(quad(density, a, b, epsabs=1e-15, epsrel=1e-13)[0])
    return out


def by_definition(oracle: Oracle, grid: Tensor, x: Tensor, order: int, side: str) -> Tensor:
    """Predict, evaluate at the prediction, correct, one after the other; the last step is a prediction."""
    process = oracle.process
    index, on = (0, process.alpha) if side == "data" else (1, process.sigma)
    carry = process.sigma if side == "data" else process.alpha
    lam = process.lam(grid).tolist()
    sign = 1.0 if side == "data" else -1.0
    m = [oracle.pair(x, float(grid[0]))[index]]
    for i in range(len(grid) - 1):
        base, gain = carry(grid[i + 1]) / carry(grid[i]) * x, sign * on(grid[i + 1])
        past = list(range(i, max(-1, i - order), -1))
        p = weights([lam[j] for j in past], lam[i], lam[i + 1], side)
        predicted = base + gain * sum(w * m[j] for w, j in zip(p, past, strict=True))
        if i + 2 == len(grid):
            return predicted
        m.append(oracle.pair(predicted, float(grid[i + 1]))[index])
        c = weights([lam[j] for j in (i + 1, *past)], lam[i], lam[i + 1], side)
        x = base + gain * sum(w * m[j] for w, j in zip(c, (i + 1, *past), strict=True))
    return x


def as_published(oracle: Oracle, grid: Tensor, x: Tensor, order: int) -> Tensor:
    """The paper's algorithm on the data side with B(h) = e^h - 1: its matrix R, its vector b, a = 1/2 of two nodes."""
    process = oracle.process
    lam = process.lam(grid).tolist()
    m = [oracle.pair(x, float(grid[0]))[0]]
    for i in range(len(grid) - 1):
        s, t, k = grid[i], grid[i + 1], min(order, i + 1)
        h = lam[i + 1] - lam[i]
        r = [*((lam[i - j] - lam[i]) / h for j in range(1, k)), 1.0]
        big, value, rows, b = math.expm1(-h), math.expm1(-h) / -h - 1.0, [], []
        for n in range(1, k + 1):
            rows.append([c ** (n - 1) for c in r])
            b.append(value * math.factorial(n) / big)
            value = value / -h - 1.0 / math.factorial(n + 1)
        R, rhs = np.array(rows), np.array(b)
        d = [(m[i - j] - m[i]) / r[j - 1] for j in range(1, k)]
        base = process.sigma(t) / process.sigma(s) * x - process.alpha(t) * big * m[i]
        a = [0.5] if k == 2 else np.linalg.solve(R[:-1, :-1], rhs[:-1]).tolist() if k > 2 else []
        predicted = base - process.alpha(t) * big * sum(c * v for c, v in zip(a, d, strict=True))
        if i + 2 == len(grid):
            return predicted
        m.append(oracle.pair(predicted, float(t))[0])
        a = [0.5] if k == 1 else np.linalg.solve(R, rhs).tolist()
        d.append(m[i + 1] - m[i])
        x = base - process.alpha(t) * big * sum(c * v for c, v in zip(a, d, strict=True))
    return x


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("process", PROCESSES, **IDS)
def test_it_is_predict_evaluate_correct(process: Process, order: int) -> None:
    oracle, grid = mixture(process), bent(process)
    x = quantile_starts(oracle, float(grid[0]))
    for side in ("data", "noise"):
        want = by_definition(oracle, grid, x, order, side)
        got = execute(UniPC(order, side=side).plan(process, grid), oracle, x)
        assert float((got - want).abs().max() / want.abs().max()) < 1e-11
    want = as_published(oracle, grid, x, order)
    got = execute(UniPC(order, published=True).plan(process, grid), oracle, x)
    assert float((got - want).abs().max() / want.abs().max()) < 1e-11


@pytest.mark.parametrize("final", [0.0, 1e-3])
@pytest.mark.parametrize("solver", [UniPC(1), UniPC(3), UniPC(3, start="single"), UniPC(2, side="noise")], ids=str)
def test_n_steps_cost_n_evaluations(solver: UniPC, final: float) -> None:
    vp, oracle = VP(), mixture(VP())
    grid, x = UniformLam().times(vp, 8, 1.0, 1e-3, final == 0.0), quantile_starts(oracle, 1.0)
    plan = solver.plan(vp, grid)
    oracle.calls.clear()
    got = execute(plan, oracle, x)
    single = solver.start == "single"
    assert len(oracle.calls) == plan.nfe == 8 + (2 if single else 0)
    assert [call[0] for call in oracle.calls[-7:]] == grid[1:8].tolist()
    assert plan.one_stage is not single
    assert plan.slots == solver.slots == max(stage.keep for step in plan.steps for stage in step.stages) + 1
    assert float((got - reference(plan, oracle, x)[0]).abs().max()) < 1e-13


def test_without_the_corrector_it_is_dpm_solver() -> None:
    grid = bent(VP())
    for order in (1, 2, 3):
        for start in ("ramp", "single"):
            for side, other in (("data", DPMpp), ("noise", DPM)):
                one, two = UniPC(order, False, side, start), other(order, "M", start=start)
                assert one.plan(VP(), grid) == two.plan(VP(), grid)
    assert UniPC(2, False, published=True).plan(VP(), grid) == DPMpp(2, published=True).plan(VP(), grid)


def test_ends_and_encoding() -> None:
    """From alpha = 0 the first step is DDIM's and is not corrected; outwards too."""
    flow = Flow()
    grid = torch.tensor([1.0, 0.7, 0.4, 0.2, 0.1], dtype=F64)
    point, x = gaussian(flow, 0.7, 0.0), torch.linspace(-2, 2, 5, dtype=F64)[:, None]
    end = flow.alpha(0.1) * 0.7 + flow.sigma(0.1) * x
    for solver in (UniPC(), UniPC(2), UniPC(3, start="single")):
        assert float((execute(solver.plan(flow, grid), point, x) - end).abs().max()) < 1e-13
        assert float((execute(solver.plan(flow, grid.flip(0)), point, end) - x).abs().max()) < 1e-12
        first, second = solver.plan(flow, grid).steps[:2]
        assert [register for register, _ in first.out] == [("x", 0), ("m", 0)]
        assert [register for register, _ in second.out] == [("x", 0), ("m", 1)]
    with pytest.raises(ConfigError, match="singular at time 1"):
        UniPC(side="noise").plan(flow, grid)
    with pytest.raises(ConfigError, match="singular at time 0"):
        UniPC().plan(flow, torch.tensor([0.0, 0.5], dtype=F64))
    vp, oracle = VP(), gaussian(VP(), 0.3, 0.25)
    up = UniformLam().times(vp, 80, 0.9, 0.01, False).flip(0)
    for side in ("data", "noise"):
        got = execute(UniPC(3, side=side).plan(vp, up), oracle, x)
        assert float((got - gaussian_map(oracle, x, 0.01, 0.9)).abs().max()) < 5e-5
    for wrong in ({"order": 4}, {"order": 0}, {"side": "score"}, {"start": "cold"}):
        with pytest.raises(ConfigError, match=f"UniPC.{next(iter(wrong))}"):
            UniPC(**wrong)


ROWS: list[tuple[str, UniPC, int, str]] = [  # line, solver, N of the slope from N to 2 N, law
    *[(line, UniPC(1), 64, "mixture") for line in ("edm", "trig-inner")],
    *[(line, UniPC(2), 96, "mixture") for line in ("vp", "edm", "flow-inner", "trig-inner")],
    *[("flow-inner", UniPC(2, side="noise"), 96, law) for law in ("mixture", "gaussian")],
    *[(line, UniPC(3, start="single"), 192, "part") for line in ("vp", "edm", "flow-inner", "trig-inner")],
    *[(line, UniPC(3, side="noise", start="single"), 128, "gaussian") for line in ("edm", "trig-inner")],
    ("vp", UniPC(2, published=True), 128, "mixture"),
]


@pytest.mark.parametrize(("line", "solver", "steps", "law"), ROWS, ids=str)
def test_order_is_one_more_than_the_predictors(line: str, solver: UniPC, steps: int, law: Any) -> None:
    slope, last = observed(line, solver, steps, law)
    assert slope == pytest.approx(solver.order + 1, abs=0.15), last
