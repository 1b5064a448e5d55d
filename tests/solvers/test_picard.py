"""Picard: a solver's steps in parallel windows, against the solver itself and against the algorithm written out."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import fokker as fk
from fokker.cli.grids import parse_component
from fokker.component import Array
from fokker.denoiser import NetDenoiser
from fokker.errors import ConfigError
from fokker.noise import normal
from fokker.process import EDM, VP, Flow, Process, Trig
from fokker.registry import build, spec
from fokker.solvers import (
    DDIM,
    DEIS,
    DPM,
    PNDM,
    Ancestral,
    DPMpp,
    Euler,
    EulerMaruyama,
    ExpEuler,
    Heun,
    Picard,
    Plan,
    Solver,
    Stage,
    Step,
    UniformLam,
    UniformT,
    UniPC,
)
from fokker.solvers.base import to_data

from .oracle import F64, Oracle, execute, flow_map, gaussian, mixture, quantile_starts, slopes
from .test_solver_orders import LINES

FORMS = ("x", "rho", "omega")
SOLVERS: list[Solver] = [
    DDIM(),
    Euler(),
    Euler("rho"),
    Euler("lam"),
    ExpEuler(),
    DEIS(3),
    DPM(2, "M"),
    DPMpp(2),
    DPMpp(3),
    PNDM(),
    UniPC(3),
    UniPC(2, side="noise"),
    UniPC(2, corrector=False),
    DDIM(0.7),
    Ancestral(),
    EulerMaruyama(),
]


def draws(x: Tensor) -> Any:
    return lambda step, k: normal(5, torch.arange(len(x)), x.shape[1:], draw=step << 8 | k, dtype=x.dtype)


class Counting:
    """A denoiser that remembers what it was asked: states and times."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.calls = inner, []
        self.process, self.shape, self.reading, self.lam_range = inner.process, inner.shape, inner.reading, (-9.0, 9.0)

    def __call__(self, x: Tensor, s: float | Tensor, cond: Any = None) -> Any:
        self.calls.append((x.clone(), torch.as_tensor(s).clone()))
        return self.inner(x, s, cond)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_at_tol_0_it_is_the_solver(solver: Solver) -> None:
    """In every form, to the data, from noise whatever the denoiser's reading; never in more rounds than steps."""
    for form, reading in zip(FORMS, (None, "noise", "edm"), strict=True):
        oracle = mixture(VP(), reading=reading)
        times = UniformLam().times(oracle.process, 16, 1.0, 1e-3, True)
        x = quantile_starts(oracle, 1.0, 5)
        want = execute(solver.plan(oracle.process, times), oracle, x, draw=draws(x))
        got = Picard(solver, 7, 0.0, form).solve(oracle, x, times, draw=draws(x))
        assert float((got.x - want).abs().max()) < 1e-12 * float(want.abs().max())
        assert int(got.rounds.max()) <= len(times) - 1


@pytest.mark.parametrize("form", FORMS)
def test_ends_where_alpha_or_sigma_is_0(form: str) -> None:
    oracle = mixture(Flow())
    times = UniformT().times(oracle.process, 12, 1.0, 0.01, True)
    assert times[0] == 1.0 and times[-1] == 0.0
    x = torch.linspace(-2, 2, 4, dtype=F64)[:, None]
    for solver in (DDIM(), DPMpp(2)):
        want = execute(solver.plan(oracle.process, times), oracle, x)
        got = Picard(solver, 5, 0.0, form).solve(oracle, x, times)
        assert float((got.x - want).abs().max()) < 1e-12
    for ends in (torch.tensor([1.0, 0.0], dtype=F64), torch.tensor([1.0, 0.5, 0.0], dtype=F64)):
        want = execute(DDIM().plan(oracle.process, ends), oracle, x)
        assert float((Picard(None, 9, 0.0, form).solve(oracle, x, ends).x - want).abs().max()) < 1e-12
    up = times[:-1].flip(0)
    want = execute(DDIM().plan(oracle.process, up), oracle, x)
    assert float((Picard(None, 5, 0.0, form).solve(oracle, x, up).x - want).abs().max()) < 1e-12


def test_window_1_is_the_solver_call_by_call() -> None:
    oracle = mixture(VP())
    times = UniformLam().times(oracle.process, 15, 1.0, 1e-3, True)
    x = quantile_starts(oracle, 1.0, 4)
    for solver in (DDIM(), DPMpp(3), Euler()):
        states: list[Tensor] = []
        want = execute(solver.plan(oracle.process, times), oracle, x, states=states)
        counting = Counting(oracle)
        got = Picard(solver, window=1).solve(counting, x, times)
        assert float((got.x - want).abs().max()) < 1e-14
        assert got.rounds.tolist() == got.nfe.tolist() == [15] * 4
        for n, (asked, at) in enumerate(counting.calls):
            assert float((asked - states[n]).abs().max()) < 1e-14 and (at == times[n]).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("solver", [DDIM(), DPMpp(3), Ancestral()], ids=str)
def test_node_j_is_exact_after_j_rounds(solver: Solver, form: str) -> None:
    """One window over all: the states asked in round k are exact as far as node k, and not all."""
    oracle = mixture(VP())
    times = UniformLam().times(oracle.process, 12, 1.0, 1e-3, False)
    x, states = quantile_starts(oracle, 1.0, 1), []
    execute(solver.plan(oracle.process, times), oracle, x, draw=draws(x), states=states)
    exact = torch.stack(states)[:12, 0]
    counting = Counting(oracle)
    Picard(solver, 12, 0.0, form).solve(counting, x, times, draw=draws(x))
    for k, (asked, at) in enumerate(counting.calls[:7]):
        left = int((times == at[0]).nonzero()[0])
        wrong = (asked - exact[left:]).abs()[:, 0]
        assert left >= k and float(wrong[0]) < 1e-13
        assert k > 4 or float(wrong[1:].max()) > 1e-9


def written_out(
    oracle: Oracle, times: Tensor, x: Tensor, window: int, tol: float, form: str, euler: bool, printed: bool = False
) -> tuple[float, int]:
    """Algorithm 8 for one sample (one number), from its text: (result, rounds); `printed` with line 9 as it stands."""
    p, M = oracle.process, len(times) - 1
    alpha, sigma = p.alpha(times), p.sigma(times)
    c = {"x": torch.ones_like(times), "rho": alpha, "omega": sigma}[form]
    nodes, left, rounds = x.reshape(1).repeat(M + 1), 0, 0
    while left < M:
        J = min(window, M - left)
        at = torch.arange(left, left + J)
        x0, noise = (value[:, 0] for value in oracle.pair(nodes[at, None], times[at]))
        if euler:
            velocity = p.d_alpha(times[at]) * x0 + p.d_sigma(times[at]) * noise
            step = nodes[at] + (times[at + 1] - times[at]) * velocity
        else:
            step = alpha[at + 1] * x0 + sigma[at + 1] * noise
        sums = (step / c[at + 1] - nodes[at] / c[at]).cumsum(0)
        anchor = nodes[at] / c[at] if printed else nodes[left] / c[left]
        new = c[at + 1] * (anchor + sums)
        wrong = (new - nodes[at + 1]).abs() / (alpha**2 + sigma**2).sqrt()[at + 1]
        failing = [j for j in range(1, J) if wrong[j - 1] > tol]
        stride = failing[0] if failing else J
        nodes[at + 1] = new
        nodes[left + J + 1 : left + J + 1 + stride] = new[-1]
        left, rounds = left + stride, rounds + 1
    return float(nodes[-1]), rounds


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("process", [VP(), EDM()], ids=str)
def test_rounds_and_results_are_the_algorithms(process: Process, form: str) -> None:
    oracle, stop = mixture(process), {"VP": 1e-3, "EDM": 0.01}[type(process).__name__]
    times = UniformLam().times(process, 30, process.T, stop, False)
    x = quantile_starts(oracle, process.T, 4)
    for solver, window, tol in ((DDIM(), 8, 1e-3), (DDIM(), 30, 1e-2), (Euler(), 5, 1e-2)):
        got = Picard(solver, window, tol, form).solve(oracle, x, times)
        for i in range(4):
            value, rounds = written_out(oracle, times, x[i], window, tol, form, solver == Euler())
            assert float(got.x[i]) == pytest.approx(value, abs=1e-10 * float(x.abs().max()))
            assert int(got.rounds[i]) == rounds
    many = Picard(Euler(), 5, 1e-2, form).solve(oracle, x[:, :, None].repeat(1, 2, 3), times)
    assert torch.equal(many.rounds, got.rounds)  # the tolerance is of an entry, however many there are
    assert float((many.x - got.x[:, :, None]).abs().max()) < 1e-12


def test_as_printed_line_9_is_wrong() -> None:
    oracle = mixture(VP())
    times = UniformT().times(oracle.process, 200, 1.0, 1e-3, False)
    x = quantile_starts(oracle, 1.0, 2)
    exact = execute(Euler().plan(oracle.process, times), oracle, x)
    for i in range(2):
        right, rounds = written_out(oracle, times, x[i], 50, 1e-3, "x", True)
        wrong, many = written_out(oracle, times, x[i], 50, 1e-3, "x", True, printed=True)
        assert abs(wrong - float(exact[i])) > max(2e-3, 50 * abs(right - float(exact[i])))
        assert many > 100 > 13 > rounds


@pytest.mark.parametrize(
    ("window", "measured"), [(10, (44, 35, 26)), (50, (15, 11, 9)), (200, (9, 7, 6))], ids=["10", "50", "200"]
)
def test_rounds_of_200_euler_steps(window: int, measured: tuple[int, ...]) -> None:
    """The rounds of the slowest sample, measured once for a whole batch in numpy, at tol^2 = 1e-10, 1e-6, 1e-4."""
    oracle = mixture(VP())
    times = UniformT().times(oracle.process, 200, 1.0, 1e-3, False)
    x = quantile_starts(oracle, 1.0)
    exact = execute(Euler().plan(oracle.process, times), oracle, x)
    off = []
    for tol, rounds in zip((1e-5, 1e-3, 1e-2), measured, strict=True):
        got = Picard(Euler(), window, tol).solve(oracle, x, times)
        assert abs(int(got.rounds.max()) - rounds) <= 2
        assert int(got.nfe.max()) <= window * int(got.rounds.max()) and int(got.nfe.min()) >= 200
        off.append(float((got.x - exact).square().mean().sqrt()))
    assert off[0] < 2e-6 and off[1] < 4e-4 and off[2] < 4e-3 and off[0] < 0.1 * off[1] < 0.02 * off[2] * 10


def test_rounds_and_evaluations_are_what_the_denoiser_saw() -> None:
    """Also that with `pad` it sees one shape only, and that the result does not change."""
    oracle = mixture(VP())
    times = UniformLam().times(oracle.process, 20, 1.0, 1e-3, True)
    x = quantile_starts(oracle, 1.0, 6)
    for trapezoid in (False, True):
        one, two = Counting(oracle), Counting(oracle)
        got = Picard(window=6, trapezoid=trapezoid).solve(one, x, times)
        padded = Picard(window=6, trapezoid=trapezoid, pad=True).solve(two, x, times)
        assert len(one.calls) == len(two.calls) == int(got.rounds.max())
        assert sum(len(asked) for asked, _ in one.calls) == int(got.nfe.sum())
        assert {len(asked) for asked, _ in two.calls} == {6 * (7 if trapezoid else 6)}
        assert len({len(asked) for asked, _ in one.calls}) > 1
        assert float((got.x - padded.x).abs().max()) < 1e-14 and (got.nfe == padded.nfe).all()


@pytest.mark.parametrize("picard", [Picard(DPMpp(2), 9, 1e-2), Picard(Ancestral(), 6), Picard(trapezoid=True)], ids=str)
def test_a_sample_has_the_same_bits_alone(picard: Picard) -> None:
    law = fk.exact.GaussianMixture([0.3, 0.7], [[-1.0, 0.0, 0.5], [0.8, 1.0, 0.0]], [0.1, 0.05])
    denoiser = law.denoiser(VP())
    times = UniformLam().times(denoiser.process, 20, 1.0, 1e-3, True)
    x = denoiser.process.prior((3,), n=7, seed=3)
    rounds = []
    whole = picard.solve(denoiser, x, times, draw=draws(x))
    for i in range(7):
        alone = picard.solve(denoiser, x[i : i + 1], times, draw=lambda n, k, i=i: draws(x)(n, k)[i : i + 1])
        assert torch.equal(alone.x[0], whole.x[i])
        assert int(alone.rounds) == int(whole.rounds[i]) and int(alone.nfe) == int(whole.nfe[i])
        rounds.append(int(alone.rounds))
    assert len(set(rounds)) > 1  # windows of their own


@pytest.mark.parametrize("solver", [DDIM(), DPMpp(2), Ancestral()], ids=str)
def test_it_goes_to_the_solver_with_tol(solver: Solver) -> None:
    oracle = mixture(VP())
    times = UniformLam().times(oracle.process, 40, 1.0, 1e-3, True)
    x = quantile_starts(oracle, 1.0)
    want = execute(solver.plan(oracle.process, times), oracle, x, draw=draws(x))
    off, rounds = [], []
    for tol in (1e-2, 1e-4, 1e-6, 1e-8):
        got = Picard(solver, 12, tol).solve(oracle, x, times, draw=draws(x))
        off.append(float((got.x - want).abs().max()))
        rounds.append(int(got.rounds.max()))
        assert off[-1] < 5 * tol
    assert all(a > 5 * b for a, b in itertools.pairwise(off))
    assert all(a < b for a, b in itertools.pairwise(rounds)) and rounds[0] < 25


# The trapezoid


@pytest.mark.parametrize("form", FORMS)
def test_the_trapezoid_solves_its_equation(form: str) -> None:
    """Eq. (2) at every step, and x0 of the last state where it ends at 0."""
    oracle, p = mixture(VP()), VP()
    x = quantile_starts(oracle, 1.0, 5)
    for final in (True, False):
        times = UniformLam().times(p, 16, 1.0, 1e-3, final)
        states: list[Tensor] = []
        got = Picard(window=6, tol=1e-12, form=form, trapezoid=True).solve(oracle, x, times, states=states)
        assert torch.equal(states[-1], got.x) and torch.equal(states[0], x) and len(states) == 17
        for n in range(15 if final else 16):
            (s, a), (t, b) = ((times[i], states[i]) for i in (n, n + 1))
            (x0, noise), (y0, noisy) = oracle.pair(a, s), oracle.pair(b, t)
            if form == "x":
                left = p.d_alpha(s) * x0 + p.d_sigma(s) * noise
                right = p.d_alpha(t) * y0 + p.d_sigma(t) * noisy
                want = a + 0.5 * (t - s) * (left + right)
            elif form == "rho":
                rho_s, rho_t = (p.sigma(u) / p.alpha(u) for u in (s, t))
                want = p.alpha(t) * (a / p.alpha(s) + 0.5 * (rho_t - rho_s) * (noise + noisy))
            else:
                omega_s, omega_t = (p.alpha(u) / p.sigma(u) for u in (s, t))
                want = p.sigma(t) * (a / p.sigma(s) + 0.5 * (omega_t - omega_s) * (x0 + y0))
            assert float((b - want).abs().max()) < 1e-10
        if final:
            assert float((got.x - oracle.pair(states[-2], times[-2])[0]).abs().max()) < 1e-11


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("line", ["vp", "edm", "trig-inner"])
def test_the_trapezoid_is_of_order_2(line: str, form: str) -> None:
    process, grid, start, stop = LINES[line]
    oracle = mixture(process)
    x = quantile_starts(oracle, start)
    exact = flow_map(oracle, x, start, stop)
    picard = Picard(window=24, tol=1e-7, form=form, trapezoid=True)
    errors = []
    for steps in (48, 96):
        got = picard.solve(oracle, x, grid.times(process, steps, start, stop, False))
        errors.append(float((got.x - exact).square().mean().sqrt()))
    assert slopes(errors)[-1] == pytest.approx(picard.order, abs=0.15), errors
    assert errors[-1] < 2e-3


def test_as_printed_the_trapezoid_converges_to_nothing() -> None:
    """Its sum covers one interval too few, so every window lags: the error stays as the steps shrink."""
    oracle = mixture(VP())
    p = oracle.process
    x = quantile_starts(oracle, 1.0, 5)[:, 0]
    exact = flow_map(oracle, x, 1.0, 1e-3)
    errors = []
    for steps in (100, 200):
        times = UniformT().times(p, steps, 1.0, 1e-3, False)
        dt, y = float(times[0] - times[1]), x
        for left in range(0, steps, 10):
            at = times[left : left + 11]
            nodes = y[:, None].repeat(1, 11)
            for _ in range(12):
                flat = at.repeat(len(x))
                x0, noise = (u.reshape(nodes.shape) for u in oracle.pair(nodes.reshape(-1, 1), flat))
                v = p.d_alpha(at) * x0 + p.d_sigma(at) * noise
                middle = torch.cat([torch.zeros_like(v[:, :1]), v[:, 1:].cumsum(1)], 1)  # sum_{i=1}^{j} v_{l+i}
                # x_{l+j+1} = x_l - dt [v_l / 2 + sum_{i=1}^{j-1} v_{l+i} + v_{l+j} / 2]
                total = 0.5 * v[:, :1] + middle[:, :-1] - 0.5 * v[:, :-1]
                total[:, 0] = 0.5 * v[:, 0]
                nodes = torch.cat([nodes[:, :1], y[:, None] - dt * total], 1)
            y = nodes[:, -1]
        errors.append(float((y - exact).square().mean().sqrt()))
    assert min(errors) > 0.02 and slopes(errors)[-1] < 0.3


def test_a_trapezoid_that_does_not_settle_says_so() -> None:
    oracle = Oracle(VP(), variances=(1e-6,))
    times = torch.tensor([0.9, 0.5, 0.01], dtype=F64)
    with pytest.raises(ConfigError, match=r"Picard.tol: given 1e-06, but the state at time 0\.01 .* take more steps"):
        Picard(tol=1e-6, trapezoid=True).solve(oracle, torch.ones(2, 1, dtype=F64), times)


# By the user's door


@pytest.mark.parametrize("brownian", [False, True])
@pytest.mark.parametrize("solver", ["ancestral", "euler-maruyama", {"kind": "ddim", "eta": 1.0}], ids=str)
def test_a_stochastic_solver_of_the_same_seed(solver: Any, brownian: bool) -> None:
    denoiser = mixture(VP(), reading="velocity", lam_range=(-5.0, 4.0))
    keys: dict[str, Any] = {"n": 6, "steps": 18, "seed": 11, "brownian": brownian, "dtype": F64}
    want = fk.sample(denoiser, solver=solver, **keys)
    got = fk.sample(denoiser, solver={"kind": "picard", "solver": solver, "tol": 0.0, "window": 6}, **keys)
    assert float((got - want).abs().max()) < 1e-12
    assert float((fk.sample(denoiser, solver=Picard(), **keys) - want).abs().max()) > 0.1


def test_sample_trajectory_and_encode() -> None:
    denoiser = mixture(VP(), lam_range=(-5.0, 4.0))
    picard = Picard(DPMpp(2), window=5, tol=0.0)
    keys: dict[str, Any] = {"n": 5, "seed": 2, "dtype": F64}
    want = fk.sample(denoiser, solver=DPMpp(2), nfe=13, **keys)
    assert (
        float((fk.sample(denoiser, solver=picard, nfe=13, batch_size=2, pad=True, **keys) - want).abs().max()) < 1e-12
    )
    times, states = fk.trajectory(denoiser, solver=DPMpp(2), steps=13, **keys)
    same, nodes = fk.trajectory(denoiser, solver=picard, steps=13, **keys)
    assert torch.equal(same, times) and float((nodes - states).abs().max()) < 1e-12
    z = fk.encode(denoiser, want, solver=DDIM(), steps=9)
    assert float((fk.encode(denoiser, want, solver=Picard(tol=0.0), steps=9) - z).abs().max()) < 1e-12
    for name in ("callback", "after_step"):
        with pytest.raises(ConfigError, match=f"{name}: Picard takes its steps together"):
            fk.sample(denoiser, solver=picard, n=2, **{name: lambda *a: None})


def test_conditions_go_with_their_samples() -> None:
    law = fk.exact.GaussianMixture([0.5, 0.5], [[-1.0, 0.3], [0.8, 1.0]], [0.1, 0.05], labels=[0, 1])
    denoiser = law.denoiser(Trig())
    keys: dict[str, Any] = {"n": 5, "steps": 12, "cond": torch.tensor([1, 0, 0, 1, -1]), "dtype": F64}
    want = fk.sample(denoiser, solver="ddim", **keys)
    got = fk.sample(denoiser, solver=Picard(window=4, tol=0.0), **keys)
    assert float((got - want).abs().max()) < 1e-12
    x, times = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)), torch.linspace(0.9, 0.1, 9)
    one = Picard(tol=0.0).solve(denoiser, x, times, cond=1).x
    assert float((one - execute(DDIM().plan(Trig(), times), denoiser, x, cond=1)).abs().max()) < 1e-5


def test_networks_guided_or_seen_in_another_process() -> None:
    torch.manual_seed(0)
    net = fk.nets.MLP(2, width=16, depth=1, classes=3).double()
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    inner = NetDenoiser(net, "ddpm", predict="v", time="integer", shape=(2,))
    for denoiser in (fk.guidance.CFG(inner, 2.0), inner.to_process(Trig()), fk.guidance.Clipped(inner)):
        keys: dict[str, Any] = {"n": 4, "steps": 12, "cond": torch.tensor([1, 0, 2, 1]), "dtype": F64}
        want = fk.sample(denoiser, solver=DPMpp(2), **keys)
        got = fk.sample(denoiser, solver=Picard(DPMpp(2), window=4, tol=0.0), **keys)
        assert float((got - want).abs().max()) < 1e-11 * float(want.abs().max())
        assert float((want - fk.sample(denoiser, solver=DPMpp(2), **(keys | {"cond": 0}))).abs().max()) > 1e-3


def test_gradients_are_the_solvers() -> None:
    oracle = mixture(VP())
    times = UniformLam().times(oracle.process, 10, 1.0, 1e-3, True)
    grads = []
    for picard in (DPMpp(2), Picard(DPMpp(2), window=4, tol=0.0)):
        x = quantile_starts(oracle, 1.0, 4).requires_grad_()
        fk.sample(oracle, x=x, solver=picard, grid=times).square().sum().backward()
        assert x.grad is not None
        grads.append(x.grad)
    assert float((grads[0] - grads[1]).abs().max()) < 1e-12 and float(grads[0].abs().min()) > 1e-3


class Table(Solver):
    """A multistep plan of everything a plan may hold: arrays over the event, a bias, several draws, an affine m."""

    stochastic = True

    def __init__(self, rule: bool = False) -> None:
        self.rule = rule

    def plan(self, process: Process, times: Tensor) -> Plan:
        steps = []
        for n, (s, t) in enumerate(itertools.pairwise(times.tolist())):
            tilt = Array([0.3 + 0.1 * n, -0.2])
            stage = Stage((((("x", 0)), 1.0),), s, "noise", (tilt, Array([0.9, 0.8])), n % 2)
            out: list[Any] = [
                (("x", 0), 0.5),
                (("y", 0), 0.25),
                (("m", n % 2), tilt),
                (("one", 0), Array([0.1 * n, 1.0])),
            ]
            out += [(("m", 1 - n % 2), 0.2)] if n else []
            out += [(("z", 0), 0.1), (("z", 1), tilt)] if n != 2 else []
            out += [(("x", 0), lambda registers: registers["x", 0][:, 0])] if self.rule else []
            steps.append(Step(s, t, (stage,), tuple(out), draws=2))
        return Plan((*steps, to_data(float(times[-1]))), 2)


def test_plans_of_arrays_biases_and_several_draws() -> None:
    oracle = mixture(VP(), shape=(2,))
    times = torch.tensor([0.9, 0.7, 0.5, 0.35, 0.2], dtype=F64)
    x = torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    want = execute(Table().plan(VP(), times), oracle, x, draw=draws(x))
    for form in FORMS:
        got = Picard(Table(), 3, 0.0, form).solve(oracle, x, times, draw=draws(x))
        assert float((got.x - want).abs().max()) < 1e-12
    with pytest.raises(ConfigError, match="coefficients depend on the state"):
        Picard(Table(rule=True)).solve(oracle, x, times, draw=draws(x))
    with pytest.raises(ConfigError, match="draw: this solver is stochastic"):
        Picard(Ancestral()).solve(oracle, x, times)


def test_recipes_and_the_command_lines_text() -> None:
    given = Picard(DPMpp(3), window=8, tol=0.01, form="omega")
    assert build("solver", spec(given)) == given
    assert build("solver", {"kind": "picard", "solver": {"kind": "ddim", "eta": 0.5}}) == Picard(DDIM(0.5))
    assert build("solver", parse_component("picard:solver=deis,window=4,form=rho", "--solver")) == Picard(
        DEIS(), window=4, form="rho"
    )
    assert build("solver", parse_component("picard:solver={kind: ancestral}", "--solver")) == Picard(Ancestral())
    assert Picard().order == 1 and Picard(DPMpp(3)).order == 3 and Picard(trapezoid=True).order == 2
    assert Picard(Ancestral()).stochastic and not Picard().stochastic
    assert Picard(DPM(2, "M")).open_start and not Picard().open_start
    assert Picard(form="rho", trapezoid=True).open_start and Picard(form="omega", trapezoid=True).open_data


def test_refusals() -> None:
    times = torch.tensor([0.9, 0.5, 0.1], dtype=F64)
    for solver in (Heun(), DPMpp(2, "S"), DPMpp(3, start="single")):
        with pytest.raises(ConfigError, match="Picard.solver: given .* once a step at its start; give DDIM"):
            Picard(solver).plan(VP(), times)
    with pytest.raises(ConfigError, match=r"Picard.solver: given Euler.* but trapezoid=True is the rule itself"):
        Picard(Euler(), trapezoid=True)
    with pytest.raises(ConfigError, match="Picard.tol: given 0, but the trapezoid is implicit"):
        Picard(tol=0.0, trapezoid=True)
    for field in ({"window": 0}, {"tol": -1.0}, {"form": "lam"}, {"tol": math.inf}):
        with pytest.raises(ConfigError, match=f"Picard.{next(iter(field))}"):
            Picard(**field)
    with pytest.raises(ConfigError, match="has no plan: give steps, not nfe"):
        fk.sample(mixture(VP(), lam_range=(-5.0, 4.0)), n=2, solver=Picard(trapezoid=True), nfe=5)
    with pytest.raises(ConfigError, match="singular at time 1, where alpha = 0"):
        Picard(form="rho", trapezoid=True).solve(mixture(Flow()), torch.ones(1, 1), torch.tensor([1.0, 0.5, 0.1]))


def test_under_torch_func() -> None:
    """Forwards and backwards through the rounds, whose tables belong to no transform; vmap hides who has settled."""
    oracle = gaussian(VP(), 0.3, 0.25)
    times = UniformLam().times(VP(), 8, 1.0, 1e-3, False)
    x = quantile_starts(oracle, 1.0, 4)

    def end(x: Tensor) -> Tensor:
        return Picard(window=3, tol=0.0).solve(oracle, x, times).x

    slope = execute(DDIM().plan(VP(), times), oracle, x + 1.0) - execute(DDIM().plan(VP(), times), oracle, x)
    gradient = torch.func.grad(lambda x: end(x).sum())(x)
    assert float((gradient - slope).abs().max()) < 1e-12
    _, tangent = torch.func.jvp(end, (x,), (torch.ones_like(x),))
    assert float((tangent - slope).abs().max()) < 1e-12
    jacobian = torch.func.jacfwd(end)(x)
    assert float((jacobian.sum((2, 3)) - slope).abs().max()) < 1e-12
    for mapped in (torch.vmap(end), torch.vmap(torch.func.grad(lambda x: end(x).sum()))):
        with pytest.raises(ConfigError, match="Picard: .*vmap"):
            mapped(x[:, None])


@pytest.mark.parametrize("process", [VP(), Flow(), EDM()], ids=lambda p: type(p).__name__)
def test_where_the_trapezoid_settles(process: Process) -> None:
    """The divisor that is large where a step starts settles on the default grid, however few the steps."""
    oracle = mixture(process)
    for steps in (3, 12):
        assert fk.sample(oracle, n=3, solver=Picard(form="omega", trapezoid=True), steps=steps).abs().max() < 3.0
        latent = fk.encode(oracle, torch.ones(1, 1), solver=Picard(form="rho", trapezoid=True), steps=steps)
        assert torch.isfinite(latent).all()
    with pytest.raises(ConfigError, match="form='omega' towards the data and 'rho' from them"):
        fk.sample(oracle, n=3, solver=Picard(form="rho", trapezoid=True), steps=12)
