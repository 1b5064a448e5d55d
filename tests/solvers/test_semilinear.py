"""ExpEuler and ExpHeun: the printed formulas, what they equal and what the book says they equal but do not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from fokker.errors import ConfigError
from fokker.process import EDM, VP, Flow, Process, Trig
from fokker.solvers import DDIM, DPM, Euler, ExpEuler, ExpHeun, Heun, Solver
from fokker.solvers.semilinear import integrate

from .oracle import F64, execute, gaussian, gaussian_map, mixture, quantile_starts, slopes
from .test_exponential import Polynomial, bent
from .test_exponential_orders import observed

PROCESSES = [VP(), EDM(), Flow(), Trig()]
IDS = {"ids": lambda c: type(c).__name__}


def close(got: Tensor, want: Tensor) -> None:
    assert float(((got - want).abs() / (1.0 + want.abs())).max()) < 2e-14


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


@pytest.mark.parametrize("back", [False, True], ids=["sample", "encode"])
@pytest.mark.parametrize("process", PROCESSES, **IDS)
def test_the_printed_steps(process: Process, back: bool) -> None:
    """Eq. 9.1.7 with f and g^2 / (2 sigma), its x0 form with sigma' / sigma; Eq. 9.4.14 with c_1, c_2."""
    oracle = mixture(process)
    pair = torch.tensor([0.6, 0.3] if not back else [0.3, 0.6], dtype=F64) * process.T
    s, t = pair
    x, step = quantile_starts(oracle, float(s)), t - s
    a_s, a_t, sig_s, sig_t = process.alpha(s), process.alpha(t), process.sigma(s), process.sigma(t)
    x0, noise = oracle.pair(x, float(s))

    def frozen(rate: Tensor, n: Tensor) -> Tensor:
        return (rate * step).exp() * x + (torch.expm1(rate * step) / rate if float(rate) else step) * n

    close(execute(ExpEuler().plan(process, pair), oracle, x), frozen(process.f(s), process.g2(s) / (2 * sig_s) * noise))
    slope = process.d_sigma(s) / sig_s
    want = frozen(slope, a_s * (process.f(s) - slope) * x0)
    close(execute(ExpEuler("x0").plan(process, pair), oracle, x), want)
    close(execute(ExpEuler("velocity").plan(process, pair), oracle, x), execute(Euler().plan(process, pair), oracle, x))

    h = process.lam(t) - process.lam(s)
    for reading, ratio in (("noise", a_t / a_s), ("x0", sig_t / sig_s)):
        e = ratio.log()
        c1, c2 = ((e.exp() - 1) / e, (e.exp() - 1 - e) / e**2) if float(e) else (1.0, 0.5)
        index, on_s, on_t = (0, a_s, a_t) if reading == "x0" else (1, -sig_s, -sig_t)
        first = on_s * (x0, noise)[index]
        p = ratio * x + h * c1 * first
        want = p + h * c2 * (on_t * oracle.pair(p, float(t))[index] - first)
        got = execute(ExpHeun(reading).plan(process, pair), oracle, x)  # type: ignore[arg-type]
        assert float(((got - want).abs() / (1.0 + want.abs())).max()) < 1e-13
    close(
        execute(ExpHeun("velocity").plan(process, pair), oracle, x), execute(Heun("lam").plan(process, pair), oracle, x)
    )


def test_exp_euler_is_not_ddim() -> None:
    """Eq. 9.1.7 freezes f and g^2 / sigma, DDIM integrates them: a local gap of second order; none where f = 0."""
    vp, oracle = VP(), mixture(VP())
    x = quantile_starts(oracle, 0.5)
    gaps = []
    for step in (0.2, 0.1, 0.05):
        pair = torch.tensor([0.5, 0.5 - step], dtype=F64)
        gaps.append(rms(execute(ExpEuler().plan(vp, pair), oracle, x) - execute(DDIM().plan(vp, pair), oracle, x)))
    assert gaps == pytest.approx([0.1000, 0.0194, 0.0042], rel=0.02)
    edm, oracle = EDM(), mixture(EDM())
    x = quantile_starts(oracle, float(bent(edm)[0]))
    close(execute(ExpEuler().plan(edm, bent(edm)), oracle, x), execute(DDIM().plan(edm, bent(edm)), oracle, x))


def test_exp_heun_is_dpm_solver_2_up_to_third_order() -> None:
    """The book's Observation 9.4.1 says "exactly equivalent": every pair differs, by O(h^3) in one step."""
    vp, oracle = VP(), mixture(VP())
    pairs: list[tuple[Solver, Solver]] = [
        (ExpHeun(), DPM(2, published=True)),
        (ExpHeun(), ExpHeun("x0")),
        (ExpHeun("velocity"), DPM(2, published=True)),
    ]
    printed = [5.04e-3, 7.12e-3, 4.70e-3]
    for (one, two), first in zip(pairs, printed, strict=True):
        gaps = []
        for h in (0.4, 0.2, 0.1, 0.05):
            pair = vp.time(torch.tensor([0.0, h], dtype=F64))
            x = quantile_starts(oracle, float(pair[0]))
            gaps.append(rms(execute(one.plan(vp, pair), oracle, x) - execute(two.plan(vp, pair), oracle, x)))
        assert gaps[0] == pytest.approx(first, rel=0.01)
        assert slopes(gaps)[-1] == pytest.approx(3.0, abs=0.1)


def test_exact_where_l_is_constant() -> None:
    """EDM: x0 has L = -1 in lam, so that affine x0 is integrated exactly; noise has L = 0."""
    edm, x = EDM(), torch.tensor([[0.3], [-1.0]], dtype=F64)
    grid = bent(edm, 3)
    for coefficients, exact in (([0.4, -0.7], True), ([0.4, -0.7, 0.3], False)):
        model = Polynomial(edm, "data", coefficients)
        want = model.solve(x, float(grid[0]), float(grid[-1]))
        gap = float((execute(ExpHeun("x0").plan(edm, grid), model, x) - want).abs().max() / want.abs().max())
        assert gap < 1e-13 if exact else gap > 1e-4


ROWS: list[tuple[str, Any, int]] = [
    *[(line, ExpEuler(), 96) for line in ("vp", "edm", "flow-inner")],
    *[(line, ExpEuler("x0"), 64) for line in ("vp", "trig-inner")],
    *[(line, ExpHeun(), 96) for line in ("vp", "edm", "flow-inner", "trig-inner")],
    *[(line, ExpHeun("x0"), 64) for line in ("vp", "edm", "flow-inner", "trig-inner")],
    ("vp", ExpHeun("velocity"), 96),
]


@pytest.mark.parametrize(("line", "solver", "steps"), ROWS, ids=str)
def test_orders(line: str, solver: Solver, steps: int) -> None:
    slope, last = observed(line, solver, steps)
    assert slope == pytest.approx(solver.order, abs=0.15), last


def test_ends() -> None:
    flow, start = Flow(), torch.tensor([1.0, 0.5, 0.0], dtype=F64)
    for solver in (ExpEuler(), ExpHeun(), ExpHeun("x0")):
        with pytest.raises(ConfigError, match="singular at time 1"):
            solver.plan(flow, start)
    point, x = gaussian(flow, 0.7, 0.0), torch.ones(1, 1, dtype=F64)
    assert float(execute(ExpEuler("x0").plan(flow, start), point, x)) == pytest.approx(0.7, abs=1e-15)
    with pytest.raises(ConfigError, match="singular at time 0"):
        ExpEuler("x0").plan(flow, start.flip(0))
    with pytest.raises(ConfigError, match=r"ExpEuler\.reading"):
        ExpEuler(reading="v")
    vp, oracle = VP(), gaussian(VP(), 0.3, 0.25)
    up = torch.linspace(0.05, 0.9, 200, dtype=F64)
    got = execute(ExpHeun().plan(vp, up), oracle, x)
    assert math.isclose(float(got), float(gaussian_map(oracle, x, 0.05, 0.9)), abs_tol=1e-3)


ONE = torch.tensor([1.3], dtype=F64)


def equal(n: int, start: float = 0.0, stop: float = 0.7) -> Tensor:
    return torch.linspace(start, stop, n + 1, dtype=F64)


def test_an_equation_of_ones_own() -> None:
    """x' = .8 x + cos t from 1.3 at 0 is 3.14958 at .7: orders 1 and 2, by a given L, a function and its integral."""
    variation = quad(lambda u: math.exp(0.8 * (0.7 - u)) * math.cos(u), 0.0, 0.7, epsabs=1e-15)[0]
    exact = math.exp(0.56) * 1.3 + variation
    assert exact == pytest.approx(3.14958, abs=5e-6)

    def source(x: Tensor, t: Tensor) -> Tensor:
        return t.cos().expand_as(x)

    for order in (1, 2):
        errors = []
        for n in (32, 64):
            got = [
                integrate(rate, source, ONE, equal(n), order, integral)
                for rate, integral in (
                    (0.8, None),
                    (torch.tensor([0.8], dtype=F64), None),
                    (lambda t: 0.8 + 0.0 * t, None),
                    (0.0, lambda s, t: 0.8 * (t - s)),
                )
            ]
            assert max(float((one - got[0]).abs()) for one in got) < 1e-13
            errors.append(abs(float(got[0]) - exact))
        assert slopes(errors)[-1] == pytest.approx(order, abs=0.1), errors
    back = integrate(0.8, source, torch.tensor([exact], dtype=F64), equal(200).flip(0))
    assert float(back) == pytest.approx(1.3, abs=2e-6)


def test_what_is_integrated_exactly() -> None:
    """Constant L (a diagonal): N constant by both, affine in t by order 2 alone; N = 0 with any L(t)."""
    rate, x = torch.tensor([-2.0, 0.0, 0.5], dtype=F64), torch.tensor([[1.0, -1.0, 0.3]], dtype=F64)
    times = torch.tensor([0.0, 0.4, 0.5, 1.3], dtype=F64)
    for slope in (0.0, 0.7):
        want = []
        for k, c in enumerate(rate.tolist()):
            part = quad(lambda u, c=c, b=slope: math.exp(c * (1.3 - u)) * (0.4 + b * u), 0.0, 1.3, epsabs=1e-15)[0]
            want.append(math.exp(1.3 * c) * float(x[0, k]) + part)

        def source(y: Tensor, t: Tensor, slope: float = slope) -> Tensor:
            return torch.full_like(y, 0.4) + slope * t

        for order in (1, 2):
            gap = float((integrate(rate, source, x, times, order) - torch.tensor([want], dtype=F64)).abs().max())
            assert gap < 1e-14 if slope == 0.0 or order == 2 else gap > 1e-2
    got = integrate(lambda t: t.sin() - t, lambda y, t: 0.0 * y, ONE, times)
    assert float(got) == pytest.approx(1.3 * math.exp(1.0 - math.cos(1.3) - 1.3**2 / 2), rel=1e-14)


def test_the_order_with_a_changing_rate_and_a_source_of_x() -> None:
    """x' = -(1 + t) x + (1 + t) / x: u = x^2 has u' = 2 (1 + t) (1 - u)."""
    exact = math.sqrt(1.0 + (1.3**2 - 1.0) * math.exp(-2.0 * (0.7 + 0.245)))
    for order in (1, 2):
        errors = [
            abs(float(integrate(lambda t: -1.0 - t, lambda x, t: (1.0 + t) / x, ONE, equal(n), order)) - exact)
            for n in (32, 64)
        ]
        assert slopes(errors)[-1] == pytest.approx(order, abs=0.1), errors


def test_a_stiff_decay() -> None:
    """L = -1000 at steps of .1: near the slow solution N / 1000; Euler's and Heun's steps multiply by 99 and 4901."""

    def source(x: Tensor, t: Tensor) -> Tensor:
        return 1e3 * t.cos() + x.sin()

    fine = integrate(-1e3, source, ONE, equal(4000, 0.0, 2.0))
    for order, gap in ((1, 0.1), (2, 1e-3)):
        assert abs(float(integrate(-1e3, source, ONE, equal(20, 0.0, 2.0), order) - fine)) < gap
    x = y = ONE
    for s in equal(20, 0.0, 2.0)[:-1]:
        x = x + 0.1 * (-1e3 * x + source(x, s))
        first = -1e3 * y + source(y, s)
        p = y + 0.1 * first
        y = y + 0.05 * (first - 1e3 * p + source(p, s + 0.1))
    assert abs(float(x)) > 1e30 and abs(float(y)) > 1e60


def test_refusals_of_integrate() -> None:
    for times in ([0.0], [0.0, 0.5, 0.5], [0.0, 1.0, 0.5]):
        with pytest.raises(ConfigError, match="at least two and strictly monotone"):
            integrate(1.0, lambda x, t: x, ONE, torch.tensor(times))
    with pytest.raises(ConfigError, match="order: given 3"):
        integrate(1.0, lambda x, t: x, ONE, equal(2), 3)  # type: ignore[arg-type]
    single = integrate(-1.0, lambda x, t: 0.0 * x, ONE.float(), equal(3))
    assert single.dtype == torch.float32 and float(single) == pytest.approx(1.3 * math.exp(-0.7), rel=1e-6)


def test_a_growth_that_float32_cannot_hold_is_refused() -> None:
    """Flow's noise side at t_max: L = -1 / (1 - t), so that e^{1000 h} over a step of h; e^80 is the limit."""
    at = Flow().t_max
    for h, good in ((0.0799, True), (0.0801, False)):
        times = torch.tensor([at, at - h], dtype=F64)
        if good:
            (step,) = ExpEuler().plan(Flow(), times).steps
            assert step.out[0][1] == pytest.approx(math.exp(1000.0 * h), rel=1e-6)
        else:
            with pytest.raises(ConfigError, match=r"e\^80.1 from time 0.999 to 0.9189 .* more steps there, or DDIM"):
                ExpEuler().plan(Flow(), times)
    ExpEuler("x0").plan(Flow(), torch.tensor([at, 0.01], dtype=F64))  # a decay, however fast, is none
    with pytest.raises(ConfigError, match="more steps"):
        ExpEuler("x0").plan(Flow(), torch.tensor([1e-3, 0.5], dtype=F64))
