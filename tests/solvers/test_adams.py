"""Adams-Bashforth in flow time and in the angle: exact weights, the two ends, order 2 from a first step of order 1."""

from __future__ import annotations

import itertools

import pytest
import torch

from fokker.errors import ConfigError
from fokker.process import EDM, VP, Flow, Process, Trig
from fokker.solvers import DDIM, Adams, Euler, UniformT

from .oracle import F64, execute, mixture, quantile_starts
from .test_exponential import bent
from .test_exponential_orders import observed

ADAMS = [[1.0], [1.5, -0.5], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]


@pytest.mark.parametrize(("process", "space"), [(Flow(), "flow"), (Trig(), "angle")])
def test_weights_on_equal_steps_are_the_classical_ones(process: Process, space: str) -> None:
    grid = UniformT().times(process, 8, 1.0, 0.0, True)
    unit = 1.0 if space == "flow" else torch.pi / 2
    for degree in (0, 1, 2, 3):
        for i, step in enumerate(Adams(degree, space).plan(process, grid).steps):
            newest = min(degree, i)
            assert [register for register, _ in step.out] == [
                ("x", 0),
                *[("m", (i - j) % (degree + 1)) for j in range(newest + 1)],
            ]
            want = [1.0, *(-unit / 8 * c for c in ADAMS[newest])]
            assert [c for _, c in step.out] == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize(("process", "space"), list(itertools.product((VP(), EDM()), ("flow", "angle"))))
def test_exact_on_polynomials_of_the_velocity(process: Process, space: str) -> None:
    # velocities u^p integrate to (u_t^{p+1} - u_s^{p+1}) / (p + 1) on any grid, the last step to 0 included
    grid = torch.cat([bent(process), torch.zeros(1, dtype=F64)])
    alpha, sigma = process.alpha(grid), process.sigma(grid)
    scale = alpha + sigma if space == "flow" else torch.hypot(alpha, sigma)
    u = sigma / scale if space == "flow" else torch.atan2(sigma, alpha)
    for degree in (1, 3):
        for i, step in list(enumerate(Adams(degree, space).plan(process, grid).steps))[degree:]:
            assert step.out[0][1] == pytest.approx(float(scale[i + 1] / scale[i]), rel=1e-14)
            for p in range(degree + 1):
                got = sum(c * float(u[i - j]) ** p for j, (_, c) in enumerate(step.out[1:]))
                want = float(scale[i + 1] * (u[i + 1] ** (p + 1) - u[i] ** (p + 1)) / (p + 1))
                assert got == pytest.approx(want, rel=1e-9, abs=1e-13)


def test_what_it_equals() -> None:
    for process in (VP(), EDM(), Flow(), Trig()):
        oracle, grid = mixture(process), torch.cat([bent(process), torch.zeros(1, dtype=F64)])
        x = quantile_starts(oracle, float(grid[0]))
        want = execute(DDIM().plan(process, grid), oracle, x)
        assert float((execute(Adams(0, "flow").plan(process, grid), oracle, x) - want).abs().max()) < 1e-11
    trig = Trig()
    oracle, grid = mixture(trig), UniformT().times(trig, 6, 1.0, 0.0, True)
    x = quantile_starts(oracle, 1.0)
    want = execute(Euler().plan(trig, grid[:-1]), oracle, x)
    assert float((execute(Adams(0, "angle").plan(trig, grid[:-1]), oracle, x) - want).abs().max()) < 1e-12


@pytest.mark.parametrize(("line", "space"), [("flow", "flow"), ("trig", "angle"), ("vp", "flow"), ("edm", "angle")])
def test_order_is_2(line: str, space: str) -> None:
    slope, last = observed(line, Adams(1, space), 128)
    assert slope == pytest.approx(2.0, abs=0.15), last
    assert observed(line, Adams(2, space), 128)[1] < 0.6 * last
    assert Adams(1, space).order == Adams(3, space).order == 2 and Adams(0, "flow").order == 1


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="Adams.degree"):
        Adams(degree=4)
