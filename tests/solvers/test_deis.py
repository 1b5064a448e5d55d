"""DEIS: exact on polynomials of the chosen variable, closed forms, what it equals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from fokker.errors import ConfigError
from fokker.process import EDM, VP, Cosine, DiscreteVP, Flow, Process, Trig
from fokker.solvers import DDIM, DEIS, DPM, LMS, UniformLam

from .oracle import F64, execute, mixture, quantile_starts, reference
from .test_exponential import bent
from .test_exponential_orders import observed

PROCESSES = [VP(), EDM(), Flow(), Trig(), Cosine()]
IDS = {"ids": lambda c: type(c).__name__}
COORDINATES = {"t": lambda p, t: t, "rho": lambda p, t: (-p.lam(t)).exp(), "lam": lambda p, t: p.lam(t)}


@pytest.mark.parametrize("space", ["t", "rho", "lam"])
@pytest.mark.parametrize("process", PROCESSES, **IDS)
def test_exact_on_polynomials(process: Process, space: Any) -> None:
    """sum_j C_j u_j^k = alpha_t int u^k drho, drho = -rho lam' dt, k <= degree, by adaptive quadrature; not above."""
    grid, u = bent(process), COORDINATES[space]

    def integral(s: float, t: float, k: int) -> float:
        def density(v: float) -> float:
            at = torch.tensor(v, dtype=F64)
            return -float(u(process, at) ** k * (-process.lam(at)).exp() * process.d_lam(at))

        return float(process.alpha(t)) * quad(density, s, t, epsabs=1e-15, epsrel=1e-13)[0]

    for degree in (0, 1, 2, 3):
        plan = DEIS(degree, space).plan(process, grid)
        for i in (3, 5):
            s, t = plan.steps[i].start, plan.steps[i].end
            for k in range(degree + 2):
                (register, carry), *terms = plan.steps[i].out
                started = {step.stages[0].keep: step.start for step in plan.steps[max(0, i - degree) : i + 1]}
                powers = [float(u(process, torch.tensor(started[m], dtype=F64))) ** k for (_, m), _ in terms]
                got = sum(c * power for (_, c), power in zip(terms, powers, strict=True))
                size = sum(abs(c * power) for (_, c), power in zip(terms, powers, strict=True))
                gap = abs(got - integral(s, t, k)) / size
                assert gap < 1e-12 if k <= degree else gap > 1e-6, (degree, k)
                assert carry == pytest.approx(float(process.alpha(t) / process.alpha(s)), rel=1e-14)
                assert register == ("x", 0)


@pytest.mark.parametrize("process", [*PROCESSES, DiscreteVP(steps=100)], **IDS)
def test_degree_0_is_ddim_and_every_row_sums_to_it(process: Process) -> None:
    grid, oracle = bent(process), mixture(process)
    x = quantile_starts(oracle, float(grid[0]))
    want = execute(DDIM().plan(process, grid), oracle, x)
    for space in ("t", "rho", "lam"):
        got = execute(DEIS(0, space).plan(process, grid), oracle, x)
        assert float((got - want).abs().max() / want.abs().max()) < 1e-12
    rho = (-process.lam(grid)).exp()
    total = process.alpha(grid[1:]) * (rho[1:] - rho[:-1])
    for space in ("rho", "lam"):
        rows = [sum(c for _, c in step.out[1:]) for step in DEIS(3, space).plan(process, grid).steps]
        assert rows == pytest.approx(total.tolist(), rel=1e-11)


@pytest.mark.parametrize("process", PROCESSES, **IDS)
def test_closed_forms_of_degree_1(process: Process) -> None:
    grid = bent(process, 3)
    s, t = grid[1], grid[2]
    lam, rho = process.lam(grid), (-process.lam(grid)).exp()
    d, dp = rho[2] - rho[1], rho[1] - rho[0]
    want = process.alpha(t) * torch.stack([d + d**2 / (2 * dp), -(d**2) / (2 * dp)])
    assert coefficients(DEIS(1, "rho"), process, grid) == pytest.approx(want.tolist(), rel=1e-12)
    h, hp = lam[2] - lam[1], lam[1] - lam[0]
    slope = process.sigma(t) * (torch.expm1(h) - h) / hp
    want = torch.stack([-process.sigma(t) * torch.expm1(h) - slope, slope])
    assert coefficients(DEIS(1, "lam"), process, grid) == pytest.approx(want.tolist(), rel=1e-12)
    assert float(s) > float(t)


def coefficients(solver: DEIS, process: Process, grid: Tensor) -> list[float]:
    return [c for _, c in solver.plan(process, grid).steps[1].out[1:]]


def test_what_it_equals() -> None:
    """In lam it is multistep DPM-Solver; where rho = t, "t" is "rho"; the executor's sum is the definition's."""
    for process in PROCESSES:
        for start in ("ramp", "single"):
            for degree in (0, 1, 2):
                want = DPM(degree + 1, "M", start=start).plan(process, bent(process))
                assert DEIS(degree, "lam", start).plan(process, bent(process)) == want
    edm = EDM()
    for degree in (0, 1, 2, 3):
        one, two = (DEIS(degree, space).plan(edm, bent(edm)) for space in ("t", "rho"))
        for a, b in zip(one.steps, two.steps, strict=True):
            assert [c for _, c in a.out] == pytest.approx([c for _, c in b.out], rel=1e-11)
    vp, oracle = VP(), mixture(VP())
    grid, x = UniformLam().times(vp, 9, 1.0, 1e-3, True), quantile_starts(oracle, 1.0)
    for solver in (DEIS(3, start="single"), DEIS(3)):
        plan = solver.plan(vp, grid)
        oracle.calls.clear()
        got = execute(plan, oracle, x)
        assert len(oracle.calls) == plan.nfe == 9 + (6 if solver.start == "single" else 0)
        assert float((got - reference(plan, oracle, x)[0]).abs().max()) < 1e-13
        assert plan.slots == max(stage.keep for step in plan.steps for stage in step.stages) + 1


@pytest.mark.parametrize("process", PROCESSES, **IDS)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_is_deis_in_rho(process: Process, order: int) -> None:
    """And its weights are Lagrange's polynomials in rho, integrated by adaptive quadrature."""
    grid = bent(process)
    steps = LMS(order).plan(process, grid).steps
    rho = (process.sigma(grid) / process.alpha(grid)).tolist()
    for i, (one, two) in enumerate(zip(steps, DEIS(order - 1, "rho").plan(process, grid).steps, strict=True)):
        assert [register for register, _ in one.out] == [register for register, _ in two.out]
        assert [c for _, c in one.out] == pytest.approx([c for _, c in two.out], rel=1e-14)
        nodes = rho[max(0, i + 1 - order) : i + 1][::-1]
        assert len(one.out) == len(nodes) + 1
        for j, (_, c) in enumerate(one.out[1:]):

            def lagrange(u: float, j: int = j, nodes: list[float] = nodes) -> float:
                return math.prod((u - v) / (nodes[j] - v) for k, v in enumerate(nodes) if k != j)

            want = float(process.alpha(grid[i + 1])) * quad(lagrange, rho[i], rho[i + 1], epsabs=0.0, epsrel=1e-12)[0]
            assert c == pytest.approx(want, rel=1e-9)
    assert LMS().order == 4 and LMS(order).slots == order


@pytest.mark.parametrize(("order", "law"), [(2, "mixture"), (3, "gaussian")])
def test_the_order_of_lms(order: int, law: str) -> None:
    """Its start, of the order of its history, leaves an error of second order: small before it is asymptotic."""
    slope, _ = observed("edm", LMS(order), 128, law)  # type: ignore[arg-type]
    assert slope == pytest.approx(order, abs=0.15)


SINGLE = [DEIS(degree, space, "single") for degree in (2, 3) for space in ("t", "rho", "lam")]
ROWS: list[tuple[str, DEIS, int, str]] = [  # line, solver, N of the slope from N to 2 N, law
    *[(line, DEIS(1), 96, "mixture") for line in ("vp", "edm", "flow-inner", "trig-inner")],
    *[(line, DEIS(2, start="single"), 128, "mixture") for line in ("vp", "edm", "flow-inner", "trig-inner")],
    ("edm", DEIS(1, "rho"), 128, "mixture"),
    ("edm", DEIS(3, start="single"), 256, "mixture"),
    *[("vp", solver, 160, "part") for solver in SINGLE],
    *[("edm", solver, 160, "gaussian") for solver in SINGLE],
    *[("flow-inner", solver, 128, "gaussian") for solver in SINGLE],
]


@pytest.mark.parametrize(("line", "solver", "steps", "law"), ROWS, ids=str)
def test_order_is_degree_plus_1(line: str, solver: DEIS, steps: int, law: str) -> None:
    slope, last = observed(line, solver, steps, law)
    assert slope == pytest.approx(solver.degree + 1, abs=0.15), last
    assert solver.order == solver.degree + 1


def test_a_ramp_limits_the_order_to_2() -> None:
    """Its first step is DDIM's, of error h^2; visible where the prediction is not flat at the noisy end."""
    assert observed("flow-inner", DEIS(3), 128, "gaussian")[0] == pytest.approx(2.0, abs=0.15)
    assert observed("flow-inner", DEIS(3, start="single"), 128, "gaussian")[0] == pytest.approx(4.0, abs=0.15)


def test_refusals() -> None:
    for degree in (-1, 4):
        with pytest.raises(ConfigError, match="DEIS.degree"):
            DEIS(degree=degree)
        with pytest.raises(ConfigError, match="LMS.order"):
            LMS(order=degree + 1 if degree > 0 else 0)
    with pytest.raises(ConfigError, match="DEIS.space"):
        DEIS(space="log")
    with pytest.raises(ConfigError, match="singular at time 1"):
        DEIS().plan(Flow(), torch.tensor([1.0, 0.5], dtype=F64))
