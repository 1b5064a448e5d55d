"""SDE-DPM-Solver++, SEEDS and SA: coefficients by the SDE's own moments, weak orders, the joint law of inner noise."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from fokker.errors import ConfigError
from fokker.process import EDM, VP, Flow, Process, Trig
from fokker.sampling import sample
from fokker.solvers import DDIM, DPM, SA, Ancestral, DPMpp, Plan, Solver, Step, UniformLam, UniPC
from fokker.solvers.exponential import gain_of, spread_of
from fokker.solvers.multistep import tables

from .oracle import F64, execute, gaussian, law, mixture, quantile_starts, slopes

PROCESSES = [VP(), EDM(), Flow()]
LINES = {"vp": (VP(), 1.0, 1e-3), "edm": (EDM(), 80.0, 0.002), "flow": (Flow(), 0.98, 1e-3)}


def ids(value: Any) -> str:
    return type(value).__name__ if isinstance(value, Process) else str(value)


def sde_moments(
    process: Process, side: str, eta: float, s: float, t: float, said: Any, x: float
) -> tuple[float, float]:
    """Mean and variance at t of dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw from x at s, where the denoiser says

    `said(lam)` of x0 or of the noise, whatever x is: integrated in time from f and g^2 alone.
    """

    def slope(time: float, y: np.ndarray) -> list[float]:
        a, sig, f, g2 = (float(c(time)) for c in (process.alpha, process.sigma, process.f, process.g2))
        m, pull = said(math.log(a / sig)), 0.5 * (1 + eta**2) * g2
        if side == "data":  # score = (alpha x0 - x) / sigma^2
            rate = f + pull / sig**2
            return [rate * y[0] - pull * a * m / sig**2, 2 * rate * y[1] - eta**2 * g2]
        return [f * y[0] + pull * m / sig, 2 * f * y[1] - eta**2 * g2]

    y = solve_ivp(slope, (s, t), [x, 0.0], method="DOP853", rtol=1e-12, atol=1e-13 * (1 + float(process.sigma(s))) ** 2)
    return float(y.y[0, -1]), float(y.y[1, -1])


@pytest.mark.parametrize("process", PROCESSES, ids=ids)
@pytest.mark.parametrize(("side", "eta"), [("data", 0.3), ("data", 1.0), ("data", 2.0), ("noise", 0.3), ("noise", 1.0)])
def test_the_table_is_exact_on_polynomials_in_lam(process: Process, side: Any, eta: float) -> None:
    """Degree order - 1 (with a node ahead, order), against the SDE's own mean and variance; a wrong rate fails."""
    lam = torch.tensor([-1.2, -0.9, -0.3, 0.25], dtype=F64)
    times = process.time(lam)
    s, t = float(times[2]), float(times[3])
    for order, ahead in ((1, 0), (2, 0), (3, 0), (2, 1)):
        carry, table = tables(process, side, times, order, ahead=ahead, eta=eta)
        degree = order + ahead - 1

        def said(at: Any, degree: int = degree) -> Any:
            return 1.0 + sum((0.5 * at) ** p for p in range(1, degree + 1))

        nodes = lam[[3 - j for j in range(1 - ahead, order + 1)]]
        got = float(carry[2]) * 0.4 + float((table[2] * said(nodes)).sum())
        mean, var = sde_moments(process, side, eta, s, t, said, 0.4)
        assert got == pytest.approx(mean, abs=1e-9 * (1 + abs(mean)))
        spread = float(spread_of(process, side, times[2:3], times[3:], eta))
        assert spread**2 == pytest.approx(var, rel=1e-8)


def coefficients(step: Step) -> dict[Any, float]:
    return dict(step.out)


@pytest.mark.parametrize("process", PROCESSES, ids=ids)
def test_published_coefficients(process: Process) -> None:
    """Order 1 and 2M of SDE-DPM-Solver++, 3M with its second derivative right, SEEDS-1 and SEEDS-2."""
    lam = torch.tensor([-1.2, -0.9, -0.3, 0.25], dtype=F64)
    times = process.time(lam)
    a, sig = process.alpha(times).tolist(), process.sigma(times).tolist()
    h = lam.diff().tolist()

    def last(solver: Solver) -> Step:
        return solver.plan(process, times).steps[-1]

    one = 1 - math.exp(-2 * h[2])
    x, z = sig[3] / sig[2] * math.exp(-h[2]), sig[3] * math.sqrt(one)
    for solver in (DPMpp(order=1, sde=True), DPMpp(order=1, variant="S", sde=True), Ancestral(), DDIM(eta=1.0)):
        want = {("x", 0): x, ("m", 0): a[3] * one, ("z", 0): z}
        assert coefficients(last(solver)) == pytest.approx(want, abs=1e-13)
        assert last(solver).draws == 1
    r = h[2] / h[1]
    got = coefficients(last(DPMpp(sde=True, published=True)))
    assert got == pytest.approx(
        {("x", 0): x, ("m", 0): a[3] * one * (1 + r / 2), ("m", 1): -a[3] * one * r / 2, ("z", 0): z}, abs=1e-13
    )
    # 3M in divided differences D0, D1, D2. diffusers has (...) / H^2 - 1/2 at D2, where + 1/2 is right
    H, r0, r1 = 2 * h[2], h[1] / h[2], h[0] / h[2]
    on_d1, on_d2 = a[3] * (1 - one / H), a[3] * ((one - H) / H**2 + 0.5)
    d10, d11 = np.array([1, -1, 0]) / r0, np.array([0, 1, -1]) / r1
    d1, d2 = d10 + r0 / (r0 + r1) * (d10 - d11), (d10 - d11) / (r0 + r1)
    for published, factor in ((True, 1.0), (False, 2.0)):
        want3 = a[3] * one * np.array([1, 0, 0]) + on_d1 * d1 + factor * on_d2 * d2
        on = coefficients(last(DPMpp(order=3, sde=True, published=published)))
        assert [on["m", (2 - j) % 3] for j in range(3)] == pytest.approx(want3.tolist(), abs=1e-12)
    up = math.expm1(h[2])
    want = {("x", 0): a[3] / a[2], ("m", 0): -2 * sig[3] * up, ("z", 0): sig[3] * math.sqrt(math.expm1(2 * h[2]))}
    for variant in ("S", "M"):
        got = coefficients(last(DPM(order=1, variant=variant, sde=True)))
        assert got == pytest.approx(want, abs=1e-13)
    step, half = last(DPM(sde=True, published=True)), process.time(lam[2] + h[2] / 2)
    inner, outer = dict(step.stages[1].terms), coefficients(step)
    assert inner["m", 0] == pytest.approx(-2 * float(process.sigma(half)) * math.expm1(h[2] / 2), abs=1e-13)
    assert ("m", 0) not in outer and outer["m", 1] == pytest.approx(-2 * sig[3] * up, abs=1e-13)
    assert step.draws == 2


@pytest.mark.parametrize("process", PROCESSES, ids=ids)
@pytest.mark.parametrize("cls", [DPM, DPMpp])
@pytest.mark.parametrize(
    ("order", "r1", "r2"), [(2, 0.5, None), (2, 1.0, None), (3, None, None), (3, 0.7, 0.2), (3, 0.4, 1.0)]
)
def test_the_noise_within_a_step_is_that_of_one_path(
    process: Process, cls: Any, order: int, r1: float | None, r2: float | None
) -> None:
    """Cov(noise at u, noise at v) = carry_{u -> v} Var(noise at u), u before v; z_0 alone makes the whole step's."""
    solver = cls(order=order, variant="S", r1=r1, r2=r2, sde=True)
    lam = torch.tensor([-0.7, 0.2], dtype=F64)
    step = solver.plan(process, process.time(lam)).steps[0]
    rows = [dict(stage.terms) for stage in step.stages[1:]] + [dict(step.out)]
    at = [(float(process.time(lam[0] + 0.9 * r)), r) for r in [*solver._nodes[: order - 1], 1.0]]
    vectors = np.array([[row.get(("z", k), 0.0) for k in range(order)] for row in rows])
    assert step.draws == order - (1.0 in (r1, r2)) and vectors[-1, 1:].tolist() == [0.0] * (order - 1)

    def spread2(r: float, sigma: float) -> float:
        return sigma**2 * (math.expm1(2 * 0.9 * r) if cls is DPM else -math.expm1(-2 * 0.9 * r))

    for (u, i), (v, j) in itertools.product(enumerate(at), repeat=2):
        if i[1] <= j[1]:
            (su, sv), (au, av) = ([float(c(w)) for w in (i[0], j[0])] for c in (process.sigma, process.alpha))
            carry = av / au if cls is DPM else sv / su * math.exp(-0.9 * (j[1] - i[1]))
            assert vectors[u] @ vectors[v] == pytest.approx(carry * spread2(i[1], su), rel=1e-11)


def test_special_cases() -> None:
    """SA is DPMpp and UniPC at eta = 0, DPMpp(sde=True) at eta = 1; eta -> 0 is continuous."""
    for process, begin, end in LINES.values():
        times = UniformLam().times(process, 7, begin, end, True)
        oracle = mixture(process)
        x = quantile_starts(oracle, begin)

        def run(solver: Solver, times: Tensor = times, oracle: Any = oracle, x: Tensor = x) -> Tensor:
            def draw(n: int, k: int) -> Tensor:
                return torch.linspace(1, -1 - n, len(x), dtype=F64)[:, None]

            return execute(solver.plan(oracle.process, times), oracle, x, draw=draw)

        for order in (1, 2, 3):
            pairs = [
                (SA(order, 0.0, False), DPMpp(order=order)),
                (SA(order, 0.0), UniPC(order=order)),
                (SA(order, 1.0, False), DPMpp(order=order, sde=True)),
            ]
            for one, two in pairs:
                assert float((run(one) - run(two)).abs().max()) < 1e-12
            near = float((run(SA(order, 1e-4)) - run(SA(order, 0.0))).abs().max())
            assert 1e-7 < near < 1e-1  # sigma sqrt(2 h) eta


def test_single_starts_draw_their_noise() -> None:
    """start="single" at order 3 takes two steps by the single-step method of order 2, draws and all."""
    times = UniformLam().times(VP(), 4, 1.0, 0.1, False)
    for cls in (DPM, DPMpp):
        steps = cls(order=3, variant="M", start="single", sde=True).plan(VP(), times).steps
        want = cls(order=2, variant="S", sde=True).plan(VP(), times).steps
        for one, two in zip(steps[:2], want, strict=False):
            assert [c for _, c in one.out] == [c for _, c in two.out] and one.draws == two.draws == 2
            assert [c for _, c in one.stages[1].terms] == [c for _, c in two.stages[1].terms]
        assert [step.draws for step in steps[2:]] == [1, 1]


def moments(solver: Solver, line: str, steps: int, data: tuple[float, float] = (0.7, 0.25)) -> tuple[float, float]:
    """Relative errors of mean and variance from the exact start, uniform lam."""
    process, begin, end = LINES[line]
    oracle = gaussian(process, *data)
    (m, v), (mt, vt) = oracle.moments(begin), oracle.moments(end)
    got = law(
        solver.plan(process, UniformLam().times(process, steps, begin, end, False)), oracle, float(m[0]), float(v[0])
    )
    return got[0] / float(mt[0]) - 1, got[1] / float(vt[0]) - 1


ORDERS: list[tuple[Solver, int, float, float]] = [  # solver, N, slope of the variance from N to 2 N, bound on the error
    (DPMpp(order=1, sde=True), 256, 1.0, 2.2e-2),
    (DPMpp(order=2, sde=True), 96, 2.0, 2.2e-3),
    (DPMpp(order=2, sde=True, published=True), 64, 2.0, 2.4e-3),
    (DPMpp(order=3, sde=True), 128, 2.0, 2.2e-4),
    (DPMpp(order=3, sde=True, start="single"), 128, 2.0, 2.2e-4),
    (DPMpp(order=2, variant="S", sde=True), 64, 2.0, 1.3e-3),
    (DPMpp(order=3, variant="S", sde=True), 256, 2.0, 2.5e-5),
    (DPM(order=2, variant="M", sde=True), 128, 2.0, 3.2e-4),
    (DPM(order=3, variant="M", sde=True), 128, 2.0, 2.2e-4),
    (SA(order=1, eta=0.3, corrector=False), 96, 1.0, 3.2e-2),
    (SA(order=1, eta=0.3), 64, 2.0, 2.7e-3),
    (SA(order=2, eta=0.3, corrector=False), 64, 2.0, 1.9e-3),
    (SA(order=3, eta=0.3), 256, 2.0, 1.9e-6),
    (SA(order=3, eta=1.0), 64, 2.0, 8.2e-4),
    (SA(order=2, eta=2.0, corrector=False), 128, 2.0, 6.2e-3),
    (SA(order=3, eta=2.0), 64, 2.0, 1.1e-2),
]


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize(("solver", "steps", "order", "bound"), ORDERS, ids=ids)
def test_weak_order_on_a_gaussian(solver: Solver, line: str, steps: int, order: float, bound: float) -> None:
    errors = [moments(solver, line, n) for n in (steps, 2 * steps)]
    assert slopes([abs(v) for _, v in errors])[-1] == pytest.approx(order, abs=0.15), errors
    assert abs(errors[-1][1]) < bound, errors
    assert all(abs(m) < 1e-3 for m, _ in errors)


def test_numbers_on_a_gaussian() -> None:
    """VP, N(.7, .25), uniform lam, N = 32 .. 256; the published 2M is spec'd 2.8e-2 7.3e-3 1.9e-3 4.6e-4.

    Two-stage SEEDS is better than its order here, third: the remaining terms cancel for Gaussian data.
    """
    for solver, want in (
        (DPMpp(sde=True, published=True), [2.79e-2, 7.35e-3, 1.86e-3, 4.65e-4]),
        (DPMpp(order=3, sde=True), [1.42e-2, 2.74e-3, 6.38e-4, 1.57e-4]),
        (SA(order=2, eta=0.3), [7.43e-3, 9.76e-4, 1.33e-4, 1.96e-5]),
        (DPM(sde=True), [5.50e-3, 4.31e-4, 4.31e-5, 4.81e-6]),
        (DPM(order=3, sde=True), [1.20e-2, 1.93e-3, 3.88e-4, 8.69e-5]),
    ):
        got = [moments(solver, "vp", n)[1] for n in (32, 64, 128, 256)]
        assert got == pytest.approx(want, rel=0.01), solver


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("solver", [DPMpp(order=k, sde=True) for k in (1, 2, 3)] + [SA(2, 0.3), SA(3, 2.0)], ids=ids)
def test_where_the_prediction_is_constant_the_law_is_exact(solver: Solver, line: str) -> None:
    """Data that are one point: x0 is that point everywhere, whatever the step."""
    assert moments(solver, line, 3, (0.7, 1e-13)) == pytest.approx((0.0, 0.0), abs=1e-6)


def test_weak_order_on_a_mixture() -> None:
    """E x^2 against the same noise on 256 steps: order 1 for SEEDS-1 and ancestral sampling, 2 for 2M and 2S."""
    process, n, fine, (begin, end) = VP(), 10_000, 128, (0.9, 0.05)
    oracle, g = mixture(process), torch.Generator().manual_seed(0)
    z = torch.randn(n, 1, dtype=F64, generator=g)
    x = process.alpha(begin) * oracle.sample_data(n, 1) + process.sigma(begin) * z
    dw = torch.randn(fine, n, 1, dtype=F64, generator=g)
    extra = torch.randn(fine, n, 1, dtype=F64, generator=g)

    def final(solver: Solver, steps: int) -> Tensor:
        each = fine // steps

        def draw(i: int, k: int) -> Tensor:  # of the second draw any is good
            part = slice(i * each, (i + 1) * each)
            return (extra if k else dw)[part].sum(0) / math.sqrt(each)

        plan = solver.plan(process, UniformLam().times(process, steps, begin, end, False))
        return execute(plan, oracle, x, draw=draw).square()

    best = final(DPMpp(order=3, sde=True), fine)
    for solver, want in ((DPM(order=1, sde=True), 1.0), (DPMpp(order=1, sde=True), 1.0), (DPMpp(sde=True), 2.0)):
        errors = [abs(float((final(solver, k) - best).mean())) for k in (16, 32)]
        assert slopes(errors) == pytest.approx([want], abs=0.4), errors
    for solver in (DPMpp(variant="S", sde=True), SA(3, 1.0), DPM(order=2, sde=True)):
        assert abs(float((final(solver, 32) - best).mean())) < 4e-3, solver  # 0.059 and 0.0105 at order 1


@pytest.mark.parametrize("solver", [DPMpp(sde=True), SA(), DPMpp(order=2, variant="S", sde=True)], ids=str)
def test_samples_are_refined_at_strong_order_1(solver: Solver) -> None:
    """One path: the increments of W stand for the weighted integrals of the step, at an error of strong order 1.

    Measured 1.20, 1.29 and 1.02; noise that is not one path's gives 0.
    """
    oracle = gaussian(VP(), 0.7, 0.25)
    x = torch.linspace(-2, 2, 200, dtype=F64)[:, None]
    ends = [
        sample(oracle, x=x, solver=solver, grid=UniformLam().times(VP(), n, 0.9, 0.05, False), seed=5, brownian=True)
        for n in (40, 80, 160)
    ]
    errors = [float((a - b).square().mean().sqrt()) for a, b in itertools.pairwise(ends)]
    assert errors[-1] < 0.03 and 0.85 < slopes(errors)[-1] < 1.5, errors


def test_from_alpha_0_the_start_is_forgotten() -> None:
    """Flow from t = 1: the first step is alpha_t x0 + sigma_t z; order 1 there on the data side, noise side refuses."""
    x, z = torch.linspace(-2, 2, 5, dtype=F64)[:, None], torch.linspace(1, -1, 5, dtype=F64)[:, None]
    oracle = gaussian(Flow(), 0.7, 0.25)
    for solver in (DPMpp(sde=True), DPMpp(order=3, variant="S", sde=True), SA(3, 0.3), SA(2, 2.0, False)):
        plan = solver.plan(Flow(), torch.tensor([1.0, 0.6], dtype=F64))
        got = execute(plan, oracle, x, draw=lambda n, k: z)
        assert float((got - 0.4 * 0.7 - 0.6 * z).abs().max()) < 1e-14
        sample(oracle, n=2, solver=solver, steps=4)
    with pytest.raises(ConfigError, match="start at"):
        DPM(sde=True).plan(Flow(), torch.tensor([1.0, 0.6], dtype=F64))


@pytest.mark.parametrize("side", ["data", "noise"])
def test_an_infinite_step_is_the_limit_of_long_ones(side: Any) -> None:
    """Flow to t = 0 (sigma = 0) and from t = 1 (alpha = 0; data side): the coefficient of a constant prediction."""
    for eta in (0.0, 0.4, 1.0):
        pairs = [(0.5, 0.0, 1e-12)] + ([(1.0, 0.5, None)] if side == "data" else [])
        for s, t, near in pairs:
            ends = torch.tensor([[s, t], [s if near else 1 - 1e-12, t if near is None else near]], dtype=F64)
            h = Flow().lam(ends[:, 1]) - Flow().lam(ends[:, 0])
            gain, first = gain_of(Flow(), side, ends[:, 0], ends[:, 1], h, eta)
            assert math.isinf(float(h[0])) and float(gain[0]) == 0.0 and math.isfinite(float(h[1]))
            assert float(first[0]) == pytest.approx(float(first[1]), abs=1e-10) and abs(float(first[0])) > 0.4


def test_evaluations_draws_and_refusals() -> None:
    times = UniformLam().times(VP(), 6, 1.0, 1e-3, True)

    def counts(solver: Solver) -> tuple[int, list[int]]:
        plan: Plan = solver.plan(VP(), times)
        return plan.nfe, [step.draws for step in plan.steps]

    assert counts(DPMpp(sde=True)) == counts(SA()) == (6, [1, 1, 1, 1, 1, 0])
    assert counts(DPM(sde=True)) == (11, [2, 2, 2, 2, 2, 0])
    assert counts(SA(eta=0.0)) == (6, [0] * 6)
    up = torch.tensor([0.1, 0.5], dtype=F64)
    for solver in (DPMpp(sde=True), DPM(sde=True), SA()):
        assert solver.stochastic
        with pytest.raises(ConfigError, match="towards the data only"):
            solver.plan(VP(), up)
    assert not SA(eta=0.0).stochastic and not DPMpp().stochastic
    for wrong in ({"order": 4}, {"order": 0}, {"eta": -0.1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            SA(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("process", [Flow(), Trig()], ids=ids)
def test_no_noise_from_where_alpha_is_zero(process: Process) -> None:
    """eta = 0 at lam = -infinity is the flow's solver; 0 times infinity would be no number."""
    times = UniformLam().times(process, 6, 1.0, 1e-3, True)
    for side in ("data", "noise"):
        assert spread_of(process, side, times[:1], times[1:2], 0.0).tolist() == [0.0]
    oracle, x = mixture(process), quantile_starts(mixture(process), 1.0, 5)
    for corrector in (True, False):
        got = execute(SA(eta=0.0, corrector=corrector).plan(process, times), oracle, x)
        want = execute(UniPC(corrector=corrector).plan(process, times), oracle, x)
        assert torch.isfinite(want).all() and float((got - want).abs().max()) < 1e-12
