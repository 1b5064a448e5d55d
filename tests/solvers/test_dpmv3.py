"""DPM-Solver-v3: its step by the book's corrected formulas, its special cases, its orders, the prints' faults."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from scipy.interpolate import CubicSpline
from torch import Tensor

import fokker as fk
from fokker.errors import ConfigError, FileError
from fokker.process import EDM, VP, Flow, Process, Trig
from fokker.registry import build, spec
from fokker.solvers import DDIM, DPM, DPMpp, DPMv3, Solver, Statistics, UniformLam, UniPC, steps_for_nfe
from fokker.solvers.dpmv3 import _Node, _update

from .oracle import F64, Oracle, execute, gaussian, mixture, quantile_starts, slopes
from .test_exponential_orders import observed

LAM = torch.linspace(-9, 9, 37, dtype=F64)


def flat(l: float, a: float, b: float, event: tuple[int, ...] = ()) -> Statistics:
    """Constant tables."""
    one = torch.ones(2, *event, dtype=F64)
    return Statistics(torch.tensor([-20.0, 20.0], dtype=F64), l * one, a * one, b * one)


def wavy(event: tuple[int, ...] = ()) -> Statistics:
    """Smooth tables that fit nothing."""
    phase = torch.arange(math.prod(event), dtype=F64).reshape(event)
    lam = LAM.reshape(-1, *(1,) * len(event))
    return Statistics(
        LAM, *(c + d * torch.sin(e * lam + phase) for c, d, e in ((0.5, 0.4, 0.7), (-0.3, 0.5, 0.9), (0.2, 0.3, 1.1)))
    )


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("event", [(), (1,)], ids=["number", "array"])
def test_special_cases(process: Process, event: tuple[int, ...]) -> None:
    """(0, -1, 0) is the noise side, (1, 0, 0) the data side, with the corrector UniPC."""
    oracle, x = mixture(process), quantile_starts(mixture(process), process.t_max)
    for times in (UniformLam().times(process, 7, process.t_max, process.t_min, to_zero) for to_zero in (False, True)):
        for table, peer, side in ((flat(0, -1, 0, event), DPM, "noise"), (flat(1, 0, 0, event), DPMpp, "data")):
            for order in (1, 2, 3):
                got = execute(DPMv3(table, order, False).plan(process, times), oracle, x)
                want = execute(peer(order, "M").plan(process, times), oracle, x)
                torch.testing.assert_close(got, want, rtol=0, atol=2e-12)
                if times[-1] > 0:  # the last evaluation corrects here, and not there
                    got = execute(DPMv3(table, order, corrector=True).plan(process, times), oracle, x)
                    want = execute(UniPC(order, side=side).plan(process, times), oracle, x)
                    torch.testing.assert_close(got, want, rtol=0, atol=1e-9)  # UniPC's noise side cancels
            ddim = execute(DDIM().plan(process, times), oracle, x)
            torch.testing.assert_close(
                execute(DPMv3(table, 1, False).plan(process, times), oracle, x), ddim, rtol=0, atol=2e-12
            )


def by_definition(
    oracle: Oracle, times: Tensor, x: Tensor, table: Statistics, order: int, corrector: bool, single: bool
) -> Tensor:
    """The book's step in its corrected form, by adaptive integration: predict, evaluate, correct."""
    l, a, b = (CubicSpline(table.lam.value.numpy(), t.value.numpy()) for t in (table.l, table.a, table.b))
    process = oracle.process
    lam, alpha = process.lam(times).numpy(), process.alpha(times).numpy()

    def f_at(state: Tensor, where: float, scale: float, t: float) -> np.ndarray:
        return ((sigma_of(t) * oracle.pair(state, t)[1] - float(l(where)) * state) / scale)[:, 0].numpy()

    def sigma_of(t: float) -> float:
        return float(process.sigma(t))

    def bent(r: float, s: float) -> float:  # int_s^r e^{-int_s^q a} b dq
        return quad(lambda q: math.exp(-a.integrate(s, q)) * float(b(q)), s, r, epsabs=1e-13, epsrel=1e-13)[0]

    def advance(y: np.ndarray, s: float, t: float, nodes: list[float], f: list[np.ndarray]) -> np.ndarray:
        g = np.stack([math.exp(-a.integrate(s, r)) * value - bent(r, s) for r, value in zip(nodes, f, strict=True)])
        poly = np.linalg.solve(np.vander(np.array(nodes) - s, increasing=True), g)

        def slope(r: float, state: np.ndarray) -> np.ndarray:
            value, kick = state[:-1], state[-1]
            inner = sum(c * (r - s) ** k for k, c in enumerate(poly)) + kick
            return np.append(-l(r) * value - math.exp(a.integrate(s, r)) * inner, math.exp(-a.integrate(s, r)) * b(r))

        return solve_ivp(slope, (s, t), np.append(y, 0.0), rtol=1e-11, atol=1e-12, method="DOP853").y[:-1, -1]

    y = (x[:, 0] / alpha[0]).numpy()
    f = [f_at(x, lam[0], alpha[0], float(times[0]))]
    for i in range(len(times) - 1):
        s, t = lam[i], lam[i + 1]
        nodes, values = list(lam[i::-1][:order]), f[::-1][:order]
        if single and i < 2:
            middle = 0.5 * (s + t)
            at = float(process.time(middle))
            half = advance(y, s, middle, nodes[:1], values[:1])
            state = torch.from_numpy(half)[:, None] * process.alpha(at)
            nodes, values = [s, middle], [values[0], f_at(state, middle, float(process.alpha(at)), at)]
        new = advance(y, s, t, nodes, values)
        if i + 2 < len(times):
            f.append(f_at(torch.from_numpy(new)[:, None] * alpha[i + 1], t, alpha[i + 1], float(times[i + 1])))
            if corrector:
                new = advance(y, s, t, [t, *nodes], [f[-1], *values])
        y = new
    return torch.from_numpy(y)[:, None] * alpha[-1]


@pytest.mark.parametrize(
    ("order", "corrector", "start"),
    [
        (1, False, "ramp"),
        (2, False, "ramp"),
        (3, False, "ramp"),
        (2, True, "ramp"),
        (3, True, "ramp"),
        (3, False, "single"),
    ],
)
def test_the_step_is_the_definition(order: int, corrector: bool, start: Any) -> None:
    process = VP()
    oracle = mixture(process)
    times = process.time(torch.tensor([-3.0, -1.7, -0.9, 0.4, 1.0, 2.1], dtype=F64))
    x = quantile_starts(oracle, float(times[0]), 5)
    plan = DPMv3(wavy(), order, corrector, start).plan(process, times)
    assert plan.nfe == (7 if start == "single" else 5)
    want = by_definition(oracle, times, x, wavy(), order, corrector, start == "single")
    torch.testing.assert_close(execute(plan, oracle, x), want, rtol=0, atol=1e-9)
    twice = Statistics(LAM, *(torch.stack([t.value, -t.value], 1) for t in (wavy().l, wavy().a, wavy().b)))
    both = execute(DPMv3(twice, order, corrector, start).plan(process, times), oracle, x.expand(5, 2).contiguous())
    torch.testing.assert_close(both[:, :1], want, rtol=0, atol=1e-9)  # coordinate by coordinate
    assert float((both[:, 1:] - want).abs().min()) > 1e-4


ROWS = [
    *[(line, 1, False, "ramp", 64) for line in ("vp", "edm", "flow-inner")],
    *[(line, 2, False, "ramp", 96) for line in ("vp", "trig-inner")],
    *[(line, 3, False, "single", 128) for line in ("vp", "flow-inner")],
    ("edm", 2, False, "ramp", 192),
    ("edm", 3, False, "single", 192),
    *[(line, 1, True, "ramp", 96) for line in ("vp", "edm")],
    *[(line, 2, True, "ramp", 96) for line in ("vp", "flow-inner")],
]


@pytest.mark.parametrize(("line", "order", "corrector", "start", "steps"), ROWS)
def test_order_with_tables_that_fit_nothing(line: str, order: int, corrector: bool, start: Any, steps: int) -> None:
    slope, last = observed(line, DPMv3(wavy(), order, corrector, start), steps)
    assert slope == pytest.approx(order + corrector, abs=0.15), last


def test_the_error_identity() -> None:
    """Prop. 9.7.1 corrected: exact on any l, a, b and f; with the book's extra 1/k! it is not."""
    table = wavy()
    l, a, b = (CubicSpline(table.lam.value.numpy(), t.value.numpy()) for t in (table.l, table.a, table.b))
    s, t, nodes = 0.3, 1.6, [0.3, -0.5, -1.4]

    def f(r: float) -> float:
        return math.cos(1.3 * r) + 0.2 * r

    def slope(r: float) -> float:  # g'
        value = -1.3 * math.sin(1.3 * r) + 0.2 - a(r) * f(r) - b(r)
        return float(value) * math.exp(-a.integrate(s, r))

    def drift(end: float) -> float:
        return quad(slope, s, end, epsabs=1e-13)[0]

    def weight(r: float) -> float:  # E of (3), seen from the end
        return math.exp(a.integrate(s, r) - l.integrate(r, t))

    seen = []
    for node in nodes:
        kick = quad(lambda q: math.exp(-a.integrate(s, q)) * float(b(q)), s, node, epsabs=1e-13)[0]
        grown = math.exp(a.integrate(s, node))
        seen.append(_Node(node, torch.tensor(grown, dtype=F64), torch.tensor(grown * kick, dtype=F64)))
    step = _update(table, s, t, seen)
    got = (
        float(step.carry) * 0.7
        - sum(float(w) * f(node) for w, node in zip(step.weights, nodes, strict=True))
        - float(step.offset)
    )
    exact = (
        0.7 * math.exp(-l.integrate(s, t)) - quad(lambda r: f(r) * math.exp(-l.integrate(r, t)), s, t, epsabs=1e-13)[0]
    )
    gaps = np.array(nodes[1:]) - s
    taylor = np.linalg.solve(gaps[:, None] ** np.array([1, 2]), [drift(node) for node in nodes[1:]])
    first = quad(lambda r: weight(r) * drift(r), s, t, epsabs=1e-12)[0]
    bends = [quad(lambda r, k=k: weight(r) * (r - s) ** k, s, t, epsabs=1e-13)[0] for k in (1, 2)]
    assert got - exact == pytest.approx(first - taylor @ bends, abs=1e-9)
    assert abs(got - exact - (first - taylor @ (np.array(bends) / [1, 2]))) > 0.01  # the k! the book loses
    assert abs(got - exact - (-first - taylor @ bends)) > 0.01  # and its sign


def gaussian_f(r: float, y: float, l: float) -> float:
    """f of N(.3, .25) at lam = r."""
    fitted = math.exp(-2 * r) / (0.25 + math.exp(-2 * r))
    return (fitted - l) * y - 0.3 * fitted


def gaussian_path(r: float) -> float:
    """y on a path of the flow of N(.3, .25)."""
    return 0.3 + math.sqrt((0.25 + math.exp(-2 * r)) / (0.25 + math.exp(4.0))) * 5.0


def errors(variant: str) -> list[float]:
    """Order 3 on a Gaussian, l of the tables and a = b = 0, from known starts, as corrected or printed."""
    table = wavy()
    l = CubicSpline(LAM.numpy(), table.l.value.numpy())
    out = []
    x, w = np.polynomial.legendre.leggauss(12)
    for n in (16, 32, 64, 128):
        lam = np.linspace(-2.0, 1.0, n + 1)
        h = lam[1] - lam[0]
        y = gaussian_path(lam[0])
        f = [gaussian_f(r, gaussian_path(r), l(r)) for r in (lam[0] - 2 * h, lam[0] - h)]
        for s, t in pairwise(lam):
            f.append(gaussian_f(s, y, l(s)))
            gaps = np.array([-h, -2 * h])
            rhs = np.array([f[-2] - f[-1], f[-3] - f[-1]])
            if variant == "rows":
                rhs = rhs[::-1]
            taylor = np.linalg.solve(gaps[:, None] ** np.array([1, 2]), rhs)
            r = 0.5 * (t - s) * (x + 1) + s
            poly = f[-1] + taylor[0] * (r - s) + taylor[1] * (r - s) ** 2
            back = np.array([l.integrate(q, t) for q in r])
            weight = np.exp(back if variant == "end" else -back)
            y = (
                math.exp(-l.integrate(s, t)) * y
                + (1 if variant == "sign" else -1) * 0.5 * (t - s) * (w * weight * poly).sum()
            )
        out.append(abs(y - gaussian_path(lam[-1])))
    return out


def test_the_books_prints_fail() -> None:
    """+N for -N does not converge; E from the wrong end, and R's rows against its right-hand side, lose two orders."""
    assert slopes(errors("corrected"))[-1] == pytest.approx(3, abs=0.15)
    assert errors("sign")[-1] > 0.1
    assert slopes(errors("end"))[-1] < 1.2
    assert slopes(errors("rows"))[-1] < 1.2
    # E(s -> t) of x' = L x + N is e^{+L h} and weighs N from where it acts to the end: L = .8, N = cos, x = 1
    l, h = 0.8, 1.0
    exact = solve_ivp(lambda r, x: l * x + math.cos(r), (0.0, h), [1.0], rtol=1e-12, atol=1e-12).y[0, -1]
    assert math.exp(l * h) + quad(lambda r: math.exp(l * (h - r)) * math.cos(r), 0, h)[0] == pytest.approx(
        exact, abs=1e-9
    )
    assert abs(math.exp(-l * h) + quad(lambda r: math.exp(l * r) * math.cos(r), 0, h)[0] - exact) > 1.0


@pytest.mark.parametrize("process", [Flow(), Trig()], ids=lambda p: type(p).__name__)
def test_alpha_may_be_zero_at_the_start(process: Process) -> None:
    """From T, and back to it: what a start at the tables' end gives in the limit."""
    lam = torch.linspace(float(process.lam(process.t_max)), float(process.lam(process.t_min)), 200, dtype=F64)
    rho2 = (-2 * lam).exp()
    table = Statistics(lam, rho2 / (0.25 + rho2), 0 * lam, 2 * 0.3 * 0.25 * rho2 / (0.25 + rho2) ** 2)
    oracle = gaussian(process, 0.3, 0.25)
    x = torch.linspace(-2, 2, 5, dtype=F64)[:, None]
    t = float(process.time(0.5))
    a, s = float(process.alpha(t)), float(process.sigma(t))
    want = 0.3 * a + math.sqrt(0.25 * a * a + s * s) * x
    for order in (1, 2, 3):
        for times in ([process.T, t], [process.T, process.t_max, t], [process.T, 0.9, 0.8, t]):
            plan = DPMv3(table, order, False).plan(process, torch.tensor(times, dtype=F64))
            torch.testing.assert_close(execute(plan, oracle, x), want, rtol=0, atol=1e-4)
        back = DPMv3(table, order, False).plan(process, torch.tensor([t, 0.8, process.T], dtype=F64))
        torch.testing.assert_close(execute(back, oracle, want), x, rtol=0, atol=1e-3)
    with pytest.raises(ConfigError, match=r"l is below 0\.99"):
        DPMv3(flat(0, -1, 0), 3, False).plan(process, torch.tensor([process.T, t], dtype=F64))


def test_the_last_step_to_zero() -> None:
    """From the tables' end it is the x0 step; from earlier the own step there, then the x0 step of the predicted f."""
    process = VP()
    oracle, table = mixture(process), wavy()
    near = float(process.time(4.5))
    ends = Statistics(*(t.value[LAM <= 4.5] for t in (table.lam, table.l, table.a, table.b)))
    x = quantile_starts(oracle, 0.5)
    plan = DPMv3(ends, 3, False).plan(process, torch.tensor([0.5, near, 0.0], dtype=F64))
    middle = execute(DPMv3(ends, 3, False).plan(process, torch.tensor([0.5, near], dtype=F64)), oracle, x)
    torch.testing.assert_close(execute(plan, oracle, x), oracle.pair(middle, near)[0], rtol=0, atol=1e-12)
    far = float(process.time(1.0))
    y = quantile_starts(oracle, far)
    got = execute(DPMv3(ends, 3, False).plan(process, torch.tensor([far, 0.0], dtype=F64)), oracle, y)
    l, a, b = (CubicSpline(ends.lam.value.numpy(), t.value.numpy()) for t in (ends.l, ends.a, ends.b))
    f = (1 - l(1.0)) * y / process.alpha(far) - oracle.pair(y, far)[0]
    kick = quad(lambda q: math.exp(-a.integrate(1.0, q)) * float(b(q)), 1.0, 4.5, epsabs=1e-13)[0]
    last = math.exp(a.integrate(1.0, 4.5)) * (f + kick)
    there = execute(
        DPMv3(ends, 3, False).plan(process, torch.tensor([far, near], dtype=F64)), oracle, y
    ) / process.alpha(near)
    torch.testing.assert_close(got, (1 - float(l(4.5))) * there - last, rtol=0, atol=1e-10)


def test_files(tmp_path: Path) -> None:
    table, path = wavy((2,)), tmp_path / "s.safetensors"
    table.save(path)
    back = Statistics.load(path)
    assert back == table and back.shape == (2,)
    with pytest.raises(FileError, match="exists and is left as it is"):
        table.save(path)
    solver = DPMv3(str(path), order=3)
    assert spec(solver) == {"kind": "dpmv3", "statistics": str(path), "order": 3, "corrector": True, "start": "ramp"}
    assert build("solver", spec(solver)) == solver and solver.table == table
    with pytest.raises(ConfigError, match=r"statistics: <Statistics in memory> cannot .*save\(path\)"):
        spec(DPMv3(table))
    whole = path.read_bytes()
    for i in (len(whole) // 2, len(whole) - 1):
        broken = tmp_path / f"broken{i}.safetensors"
        broken.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        with pytest.raises(FileError, match=rf"broken{i}.safetensors: damaged"):
            DPMv3(str(broken))
    with pytest.raises(FileError, match="none.safetensors: the statistics cannot be read"):
        DPMv3(str(tmp_path / "none.safetensors"))


def test_refusals() -> None:
    lam = torch.arange(3.0, dtype=F64)
    with pytest.raises(ConfigError, match="must be K >= 2 increasing numbers"):
        Statistics(lam.flip(0), lam, lam, lam)
    with pytest.raises(ConfigError, match=r"Statistics\.b: given shape \(3, 2\)"):
        Statistics(lam, lam, lam, torch.zeros(3, 2))
    with pytest.raises(ConfigError, match=r"Statistics\.l: given shape \(2,\)"):
        Statistics(lam, lam[:2], lam[:2], lam[:2])
    with pytest.raises(ConfigError, match=r"DPMv3\.statistics must be given"):
        build("solver", "dpmv3")
    with pytest.raises(ConfigError, match="begins at full order by itself"):
        DPMv3(wavy(), corrector=True, start="single")
    law = fk.exact.Gaussian(torch.zeros(3), torch.eye(3))
    with pytest.raises(ConfigError, match=r"shape \(2,\), this denoiser's are \(3,\)"):
        fk.sample(law.denoiser(VP()), n=2, solver=DPMv3(wavy((2,))), steps=3)
    short = Statistics(lam, lam, lam, lam)
    with pytest.raises(ConfigError, match="their lam runs from 0 to 2, this grid's from -5"):
        fk.sample(law.denoiser(VP()), n=2, solver=DPMv3(short), steps=3)


@pytest.mark.parametrize("solver", [DPMv3(wavy(), 3, False), DPMv3(wavy(), 2, corrector=True)], ids=["3", "2c"])
def test_one_evaluation_a_step(solver: Solver) -> None:
    process = EDM()
    assert steps_for_nfe(solver, UniformLam(), process, 6, process.T, process.t_min, True) == 6
    oracle = mixture(process)
    oracle.shape = (1,)
    fk.sample(oracle, n=3, solver=solver, nfe=6, dtype=F64)
    assert len(oracle.calls) == 6
