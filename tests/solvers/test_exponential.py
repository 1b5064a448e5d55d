"""phi functions, exactness on polynomials, identities with DDIM, Heun and the printed forms, starts, ends."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from fokker.errors import ConfigError
from fokker.prediction import Prediction
from fokker.process import EDM, VP, Flow, Process, Trig
from fokker.solvers import DDIM, DEIS, DPM, LMS, DPMpp, Heun, Plan, Solver, UniformLam
from fokker.solvers.exponential import phi

from .oracle import F64, execute, gaussian, gaussian_map, mixture, quantile_starts, reference

PROCESSES = [VP(), EDM(), Flow(), Trig()]
IDS = {"ids": lambda c: type(c).__name__}


class Polynomial:
    """A denoiser whose x0 (or noise) is a polynomial of lam, whatever x is; `solve` is its flow.

    dy/dlam = p - y has the solution sum_k (-1)^k p^(k) + c e^{-lam}; dz/dlam = z - p has sum_k p^(k) + c e^{lam}.
    """

    shape, lam_range, reading = (1,), (-math.inf, math.inf), None

    def __init__(self, process: Process, side: str, coefficients: list[float]) -> None:
        self.process, self.side = process, side
        self.p = np.polynomial.Polynomial(coefficients)

    def __call__(self, x: Tensor, s: float, cond: Any = None) -> Prediction:
        value = torch.full_like(x, self.p(float(self.process.lam(s))))
        return Prediction(self.process, x, s, **{"x0" if self.side == "data" else "noise": value})

    def solve(self, x: Tensor, s: float, t: float) -> Tensor:
        sign = -1.0 if self.side == "data" else 1.0
        particular = sum((sign**k * self.p.deriv(k) for k in range(1, self.p.degree() + 1)), self.p)
        scale = self.process.alpha if self.side == "data" else self.process.sigma
        a, b = float(self.process.lam(s)), float(self.process.lam(t))
        c = (x / scale(s) - particular(a)) * math.exp(sign * (b - a))
        return scale(t) * (particular(b) + c)


def one_step_gaps(plan: Plan, model: Polynomial, skip: int) -> float:
    """The largest error of a step that starts from the exact state and exact predictions, from step `skip` on."""
    process, x0 = model.process, torch.full((1, 1), 0.7, dtype=F64)
    x, kept, worst = x0 * process.sigma(plan.times[0]), {}, 0.0
    for i, step in enumerate(plan.steps):
        (stage,) = step.stages
        kept[stage.keep] = model.p(float(process.lam(step.start)))
        got = sum(c * (x if register == ("x", 0) else kept[register[1]]) for register, c in step.out)
        x = model.solve(x, step.start, step.end)
        if i >= skip:
            worst = max(worst, float((got - x).abs() / (1.0 + x.abs())))
    return worst


def bent(process: Process, n: int = 7) -> Tensor:
    """Times with steps of lam in the ratio 2 : 1 : 3 in turn."""
    lam = torch.tensor([2.0, 1.0, 3.0], dtype=F64).repeat(n)[:n].cumsum(0)
    low, high = process.lam(0.9 * process.T), process.lam(0.05 * process.T)
    return process.time(torch.cat([low[None], low + (high - low) * lam / lam[-1]]))


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_phi_to_sixteen_digits(k: int) -> None:
    """Against 60 digits, through the change of formula at |z| = 1, at 0 and near it."""
    z = [
        0.0,
        *(s * v for s in (1, -1) for v in (1e-300, 1e-12, 1e-8, 1e-4, 0.03, 0.5, 0.999, 1.0, 1.001, 2.0, 9.0, 30.0)),
    ]
    with mpmath.workdps(60):
        want = [
            float(
                1 / mpmath.factorial(k)
                if v == 0
                else _phi(k, mpmath.mpf(v))
                if abs(v) > 1e-9
                else 1 / mpmath.factorial(k) + mpmath.mpf(v) / mpmath.factorial(k + 1)
            )
            for v in z
        ]
    assert phi(k, torch.tensor(z, dtype=F64)).tolist() == pytest.approx(want, rel=2e-14, abs=0.0)
    assert phi(k, torch.tensor([-math.inf], dtype=F64)).item() == 0.0


def _phi(k: int, z: Any) -> Any:
    return (mpmath.exp(z) - sum(z**j / mpmath.factorial(j) for j in range(k))) / z**k


def test_the_data_side_needs_phi_of_minus_h() -> None:
    """sigma_t int e^lam (lam - lam_s)^k / k! = alpha_t h^{k+1} phi_{k+1}(-h); the printed e^{lam_s} phi(h) is wrong."""
    s, h = 0.2, torch.tensor(0.7, dtype=F64)
    for k, true, printed in ((1, 0.483522, 0.383218), (2, 0.119081, 0.083975)):
        right = math.exp(s + 0.7) * 0.7 ** (k + 1) * float(phi(k + 1, -h))
        assert right == pytest.approx(true, abs=1e-6)
        assert math.exp(s) * 0.7 ** (k + 1) * float(phi(k + 1, h)) == pytest.approx(printed, abs=1e-6)


@pytest.mark.parametrize("process", PROCESSES, **IDS)
def test_order_1_is_ddim(process: Process) -> None:
    oracle, grid = mixture(process), bent(process)
    x = quantile_starts(oracle, float(grid[0]))
    want = execute(DDIM().plan(process, grid), oracle, x)
    for solver in (DPM(1), DPM(1, "M"), DPM(1, nfe=7), DPMpp(1), DPMpp(1, "S"), DEIS(0), LMS(order=1)):
        got = execute(solver.plan(process, grid), oracle, x)
        assert float((got - want).abs().max() / want.abs().max()) < 1e-12, solver


@pytest.mark.parametrize("backwards", [False, True], ids=["sample", "encode"])
@pytest.mark.parametrize("process", PROCESSES, **IDS)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver", [DPM, DPMpp], ids=["noise", "data"])
def test_multistep_is_exact_on_polynomials(solver: Any, order: int, process: Process, backwards: bool) -> None:
    """Of degree order - 1 in lam, on steps 2 : 1 : 3: an inverted ratio h / h_before, which no slope shows, fails."""
    grid = bent(process)
    grid = grid.flip(0) if backwards else grid
    model = Polynomial(process, solver.side, [0.4, -0.7, 0.3][:order])
    plan = solver(order, "M").plan(process, grid)
    assert one_step_gaps(plan, model, order - 1) < 1e-12
    if order > 1:
        assert one_step_gaps(solver(order, "M", published=True).plan(process, grid), model, order - 1) > 1e-4
        assert one_step_gaps(plan, model, order - 2) > 1e-4  # the start has fewer nodes


@pytest.mark.parametrize("process", PROCESSES, **IDS)
@pytest.mark.parametrize("solver", [DPM, DPMpp], ids=["noise", "data"])
def test_single_step_is_exact_on_affine_predictions(solver: Any, process: Process) -> None:
    grid, x = bent(process, 3), torch.tensor([[0.3], [-1.0]], dtype=F64)
    model = Polynomial(process, solver.side, [0.4, -0.7])
    want = model.solve(x, float(grid[0]), float(grid[-1]))
    for one in (
        solver(2, "S"),
        solver(2, "S", r1=0.25),
        solver(2, "S", r1=1.0),
        solver(3, "S"),
        solver(3, "S", r1=0.4, r2=0.9),
    ):
        got = execute(one.plan(process, grid), model, x)
        assert float((got - want).abs().max() / want.abs().max()) < 1e-13, one
    got = execute(solver(2, "S", published=True).plan(process, grid), model, x)
    assert float((got - want).abs().max() / want.abs().max()) > 1e-4


@pytest.mark.parametrize("process", PROCESSES, **IDS)
def test_what_the_papers_print(process: Process) -> None:
    """Algorithms 5, 6 and 7, DPM-Solver-3, the published 3M and Heun in rho, one step each, written out."""
    lams = torch.tensor([-0.9, -0.5, 0.1, 0.8], dtype=F64)
    grid = process.time(lams)
    s, t = grid[2], grid[3]
    a, sig = process.alpha, process.sigma
    h, oracle = float(lams[3] - lams[2]), mixture(process)
    x = quantile_starts(oracle, float(s))

    def at(u: Tensor, r: float) -> tuple[Tensor, Tensor, float]:
        mid = process.time(lams[2] + r * h)
        x0, noise = oracle.pair(u, float(mid))
        return x0, noise, mid

    def close(solver: Solver, want: Tensor) -> None:
        got = execute(solver.plan(process, grid[2:]), oracle, x)
        assert float((got - want).abs().max() / want.abs().max()) < 1e-13, solver

    x0, noise, _ = at(x, 0.0)
    mid = process.time(lams[2] + 0.5 * h)
    u = a(mid) / a(s) * x - sig(mid) * math.expm1(0.5 * h) * noise
    close(DPM(2, published=True), a(t) / a(s) * x - sig(t) * math.expm1(h) * at(u, 0.5)[1])
    gap = at(u, 0.5)[1] - noise
    taylor = sig(t) / (0.5 * h) * (math.exp(h) - h - 1.0) * gap
    close(DPM(2), a(t) / a(s) * x - sig(t) * math.expm1(h) * noise - taylor)
    u = sig(mid) / sig(s) * x + a(mid) * (1.0 - math.exp(-0.5 * h)) * x0
    close(DPMpp(2, "S", published=True), sig(t) / sig(s) * x + a(t) * (1.0 - math.exp(-h)) * at(u, 0.5)[0])
    close(DPM(2, published=True, r1=1.0), execute(Heun(space="rho").plan(process, grid[2:]), oracle, x))

    r1, r2 = 1 / 3, 2 / 3
    one, two = process.time(lams[2] + r1 * h), process.time(lams[2] + r2 * h)
    u = a(one) / a(s) * x - sig(one) * math.expm1(r1 * h) * noise
    d1 = at(u, r1)[1] - noise
    bend = sig(two) * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1.0) * d1
    u = a(two) / a(s) * x - sig(two) * math.expm1(r2 * h) * noise - bend
    d2 = at(u, r2)[1] - noise
    close(DPM(3), a(t) / a(s) * x - sig(t) * math.expm1(h) * noise - sig(t) / r2 * (math.expm1(h) / h - 1.0) * d2)

    before, last = float(lams[1] - lams[0]), float(lams[2] - lams[1])
    p1 = -math.expm1(-h)
    r = h / last
    two_m = DPMpp(2, published=True).plan(process, grid).steps[-1]
    assert [c for _, c in two_m.out[1:]] == pytest.approx(
        [float(a(t)) * p1 * c for c in (1 + r / 2, -r / 2)], rel=1e-13
    )
    f1 = math.expm1(-h)
    f2 = f1 / h + 1.0
    f3 = f2 / h - 0.5
    q0, q1 = last / h, before / h
    d10, d11 = np.array([1, -1, 0]) / q0, np.array([0, 1, -1]) / q1
    first, second = d10 + q0 / (q0 + q1) * (d10 - d11), (d10 - d11) / (q0 + q1)
    for published, factor in ((True, 1.0), (False, 2.0)):
        want = float(a(t)) * (-f1 * np.array([1, 0, 0]) + f2 * first - f3 * factor * second)
        got = DPMpp(3, published=published).plan(process, grid).steps[2]
        assert [register for register, _ in got.out] == [("x", 0), ("m", 2), ("m", 1), ("m", 0)]
        assert [c for _, c in got.out[1:]] == pytest.approx(want.tolist(), rel=1e-12)  # Newton's form is Lagrange's


@pytest.mark.parametrize("process", PROCESSES, **IDS)
def test_2s_with_its_node_at_the_end_is_heun_in_omega(process: Process) -> None:
    """dz / domega = x0 of z = x / sigma, omega = alpha / sigma, by the trapezoid through a predicted end."""
    grid, oracle = bent(process, 3), mixture(process)
    x = quantile_starts(oracle, float(grid[0]))
    got = execute(DPMpp(2, "S", published=True, r1=1.0).plan(process, grid), oracle, x)
    omega = process.lam(grid).exp()
    z = x / process.sigma(grid[0])
    for i in range(3):
        step = omega[i + 1] - omega[i]
        first = oracle.pair(z * process.sigma(grid[i]), float(grid[i]))[0]
        second = oracle.pair((z + step * first) * process.sigma(grid[i + 1]), float(grid[i + 1]))[0]
        z = z + 0.5 * step * (first + second)
    assert float((got - z * process.sigma(grid[3])).abs().max() / got.abs().max()) < 1e-13


@pytest.mark.parametrize("process", [VP(), Trig()], **IDS)
def test_the_forms_of_order_2_differ_in_the_third_power(process: Process) -> None:
    """Algorithm 5 against Eq. 9.4.11, 2S against it, and its nodes against each other, in one step of h."""
    oracle = mixture(process)
    pairs: list[tuple[Solver, Solver]] = [
        (DPM(2), DPM(2, published=True)),
        (DPM(2, published=True), DPMpp(2, "S", published=True)),
        (DPM(2, r1=0.3), DPM(2, r1=1.0)),
        (DPMpp(2, "S"), DPMpp(2, "S", r1=0.7)),
    ]
    for one, two in pairs:
        gaps = []
        for h in (0.1, 0.05):
            pair = process.time(torch.tensor([0.3, 0.3 + h], dtype=F64))
            x = quantile_starts(oracle, float(pair[0]))
            gap = execute(one.plan(process, pair), oracle, x) - execute(two.plan(process, pair), oracle, x)
            gaps.append(float(gap.square().mean().sqrt()))
        assert math.log2(gaps[0] / gaps[1]) == pytest.approx(3.0, abs=0.25), (one, two, gaps)


SOLVERS = [
    *[DPM(k, "S") for k in (1, 2, 3)],
    *[DPM(k, "M") for k in (2, 3)],
    *[DPMpp(k, "M") for k in (1, 2, 3)],
    *[DPMpp(k, "S") for k in (2, 3)],
    DPMpp(3, start="single"),
    DPM(3, "M", start="single"),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("final", [0.0, 1e-3])
def test_plans_run_as_they_are_written_and_cost_what_they_say(solver: Solver, final: float) -> None:
    vp = VP()
    oracle = mixture(vp)
    grid = UniformLam().times(vp, 8, 1.0, 1e-3, final == 0.0)
    plan, x = solver.plan(vp, grid), quantile_starts(oracle, 1.0)
    oracle.calls.clear()
    got = execute(plan, oracle, x)
    assert len(oracle.calls) == plan.nfe
    slots = {stage.keep for step in plan.steps for stage in step.stages}
    assert max(slots) == plan.slots - 1 == solver.slots - 1
    assert float((got - reference(plan, oracle, x)[0]).abs().max()) < 1e-13
    each = solver.order if getattr(solver, "variant", "M") == "S" else 1
    extra = 2 if getattr(solver, "start", "ramp") == "single" else 0  # two starting steps of order 2
    inner = 7 if final == 0.0 else 8
    assert plan.nfe == inner * each + extra + (final == 0.0)
    assert plan.one_stage is (each == 1 and not extra)


def test_single_starts_hand_over_the_right_predictions() -> None:
    """Steps 0 and 1 are single steps of order 2; step 2 is the multistep one, with the same coefficients as ever."""
    vp = VP()
    grid = bent(vp, 5)
    for solver in (DPMpp, DPM):
        single, ramp = (solver(3, "M", start=start).plan(vp, grid) for start in ("single", "ramp"))
        alone = solver(2, "S").plan(vp, grid)
        for i in (0, 1):
            coefficients = [c for _, c in single.steps[i].out]
            assert coefficients == [c for _, c in alone.steps[i].out]
            assert single.steps[i].stages[0].keep == i
        assert single.steps[2:] == ramp.steps[2:]


@pytest.mark.parametrize("process", [Flow(), Trig()], **IDS)
def test_ends_where_alpha_is_zero(process: Process) -> None:
    """From t = T the first step is DDIM's; an encoding to T ends with it. A point mass stays exact."""
    grid = torch.tensor([1.0, 0.7, 0.4, 0.1], dtype=F64)
    point = gaussian(process, 0.7, 0.0)
    x = torch.linspace(-2, 2, 5, dtype=F64)[:, None]
    end = process.alpha(0.1) * 0.7 + process.sigma(0.1) * x
    for solver in (DPMpp(1), DPMpp(2), DPMpp(3), DPMpp(2, "S"), DPMpp(3, "S"), DPMpp(3, start="single")):
        plan = solver.plan(process, grid)
        ddim = DDIM().plan(process, grid)
        assert [c for _, c in plan.steps[0].out] == pytest.approx([c for _, c in ddim.steps[0].out], abs=1e-15)
        assert float((execute(plan, point, x) - end).abs().max()) < 1e-13
        outward = solver.plan(process, grid.flip(0))
        assert float((execute(outward, point, end) - x).abs().max()) < 1e-12
    for solver in (DPM(2), DPM(3, "M")):
        with pytest.raises(ConfigError, match="singular at time 1"):
            solver.plan(process, grid)


@pytest.mark.parametrize("solver", [DPM(3), DPM(3, "M"), DPMpp(2, "S"), DPMpp(3)], ids=str)
def test_encoding(solver: Solver) -> None:
    """Outwards the Gaussian's map is met as well; from sigma = 0 by the noise side alone."""
    vp = VP()
    oracle = gaussian(vp, 0.3, 0.25)
    grid = UniformLam().times(vp, 160, 0.9, 0.01, False).flip(0)
    x = torch.linspace(-1, 1, 5, dtype=F64)[:, None]
    got = execute(solver.plan(vp, grid), oracle, x)
    assert float((got - gaussian_map(oracle, x, 0.01, 0.9)).abs().max()) < 2e-4
    zero = torch.cat([torch.zeros(1, dtype=F64), grid])
    if solver.open_data:
        with pytest.raises(ConfigError, match="singular at time 0"):
            solver.plan(vp, zero)
    else:
        first, ddim = (one.plan(vp, zero).steps[0] for one in (solver, DDIM()))
        assert [c for _, c in first.out] == pytest.approx([c for _, c in ddim.out], rel=1e-14)
        assert torch.isfinite(execute(solver.plan(vp, zero), oracle, x)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPM(order=4), "DPM.order"),
        (lambda: DPM(order=0), "DPM.order"),
        (lambda: DPM(2, "M", r1=0.5), "r1: given 0.5, but only variant='S'"),
        (lambda: DPM(1, r1=0.5), "r1: given 0.5"),
        (lambda: DPM(2, r2=0.5), "r2: given 0.5"),
        (lambda: DPM(3, r1=2 / 3, r2=0.5), "r1 must not be 2/3"),
        (lambda: DPM(3, r1=0.5, r2=0.5), "they must differ"),
        (lambda: DPM(2, r1=1.5), "DPM.r1: given 1.5"),
        (lambda: DPMpp(variant="X"), "DPMpp.variant"),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
