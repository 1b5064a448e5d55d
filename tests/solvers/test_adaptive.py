"""Adaptive steps: tables by their conditions, errors by their tolerance, samples that do not know of each other."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fokker.errors import ConfigError
from fokker.exact import GaussianMixture
from fokker.process import EDM, VE, VP, DiscreteVP, Flow, Process, Trig
from fokker.solvers import DPM, Adaptive
from fokker.solvers.adaptive import METHODS, _Flow
from fokker.solvers.plan import Step

from .oracle import F64, Oracle, flow_map, gaussian, gaussian_map, mixture, quantile_starts, slopes

PROCESSES: list[Process] = [VP(), EDM(), Flow(), Trig()]
ENDS = {"VP": (1.0, 1e-3), "EDM": (80.0, 2e-3), "Flow": (0.999, 1e-3), "Trig": (0.999, 1e-3)}
PAIRS = ("bogacki-shampine", "dormand-prince")
every_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
every_method = pytest.mark.parametrize("method", list(METHODS))


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


# ------------------------------------------------------------------------------------------------- tables


def trees(order: int) -> set[Any]:
    """The rooted trees of that many nodes, each a sorted tuple of its branches."""
    if order == 1:
        return {()}
    found = set()
    for smaller in trees(order - 1):
        found.add(tuple(sorted((*smaller, ()))))
        for i, branch in enumerate(smaller):
            rest = smaller[:i] + smaller[i + 1 :]
            found |= {tuple(sorted((*rest, grown))) for grown in grow(branch)}
    return found


def grow(tree: Any) -> set[Any]:
    """The trees with one leaf more."""
    found = {tuple(sorted((*tree, ())))}
    for i, branch in enumerate(tree):
        found |= {tuple(sorted((*tree[:i], *tree[i + 1 :], grown))) for grown in grow(branch)}
    return found


def nodes_in(tree: Any) -> int:
    return 1 + sum(map(nodes_in, tree))


def density(tree: Any) -> int:
    return nodes_in(tree) * math.prod(map(density, tree))


def weight(a: Tensor, tree: Any) -> Tensor:
    total = torch.ones(len(a), dtype=F64)
    for branch in tree:
        total = total * (a @ weight(a, branch))
    return total


def tableau(method: str) -> tuple[Tensor, Tensor, Tensor]:
    """(a, b, b - b*) read off the coefficients of a step on Trig, where R = 1."""
    u, h = 1.3, -0.9
    angle = 0.5 * math.pi
    table = METHODS[method].table(Trig(), column(u / angle), column((u + h) / angle), column(u), column(h))
    n = len(table.rows) + 1
    a, e = torch.zeros(n, n, dtype=F64), column(*(0.0 if c is None else float(c) / h for c in table.error))
    for j, row in enumerate(table.rows):
        assert float(row[0]) == pytest.approx(1.0, abs=1e-14)
        a[j + 1, : j + 1] = column(*(0.0 if c is None else float(c) / h for c in row[1:]))
    c = (torch.cat([column(u / angle), *table.times]) * angle - u) / h
    assert torch.allclose(a.sum(1), c, atol=1e-13)  # evaluations are where the tableau puts them
    return a, a[-1], e


@pytest.mark.parametrize("method", PAIRS)
def test_the_pairs_satisfy_every_order_condition(method: str) -> None:
    """b phi(tree) = 1 / density(tree) for all rooted trees up to the order; b* up to one below, and no further."""
    assert [len(trees(n)) for n in range(1, 7)] == [1, 1, 2, 4, 9, 20]
    a, b, e = tableau(method)
    order = METHODS[method].order

    def defects(weights: Tensor, n: int) -> list[float]:
        return [abs(float(weights @ weight(a, tree)) - 1.0 / density(tree)) for tree in trees(n)]

    for n in range(1, order + 1):
        assert max(defects(b, n)) < 1e-13
    for n in range(1, order):
        assert max(defects(b - e, n)) < 1e-13
    assert max(defects(b - e, order)) > 1e-4 and max(defects(b, order + 1)) > 1e-4
    published = {"bogacki-shampine": (7 / 24, 1 / 4, 1 / 3, 1 / 8), "dormand-prince": (5179 / 57600, 0.0, 7571 / 16695)}
    assert (b - e)[: len(published[method])].tolist() == pytest.approx(published[method], abs=1e-14)


@every_process
@pytest.mark.parametrize("method", PAIRS)
def test_pairs_on_any_process_are_those_on_trig(method: str, process: Process) -> None:
    """y_j / R_j = x / R_s + h sum a_ji v_i / R_i in the angle, per sample."""
    a, _, e = tableau(method)
    u, h = column(0.3, 1.2), column(0.4, -0.5)

    def at(angle: Tensor) -> tuple[Tensor, Tensor]:
        t = process.time(-angle.tan().log())
        return t, torch.hypot(process.alpha(t), process.sigma(t))

    table = METHODS[method].table(process, at(u)[0], at(u + h)[0], u, h)
    sizes = [at(u + c * h)[1] for c in a.sum(1).tolist()]
    for j, row in enumerate(table.rows):
        assert torch.allclose(row[0], sizes[j + 1] / sizes[0], rtol=1e-12)
        for i, c in enumerate(row[1:]):
            want = sizes[j + 1] * h * a[j + 1, i] / sizes[i]
            assert torch.allclose(torch.zeros(2, dtype=F64) if c is None else c, want, rtol=1e-12)
    for i, c in enumerate(table.error):
        assert torch.allclose(torch.zeros(2, dtype=F64) if c is None else c, h * e[i] / sizes[i], rtol=1e-10)


@every_process
@pytest.mark.parametrize("order", [2, 3])
def test_dpm_12_and_23_are_two_dpm_solvers(order: int, process: Process) -> None:
    """Coefficients of DPM(order) and, with the same first node, DPM(order - 1): the error is their difference / R_t."""
    s, t = column(0.6, 0.3), column(0.45, 0.35)  # one goes up
    low = DPM(order=1) if order == 2 else DPM(order=2, r1=1 / 3)
    high = DPM(order=order).inner_steps(process, s, t, False)
    table = METHODS[f"dpm-{order - 1}{order}"].table(process, s, t, process.lam(s), process.lam(t) - process.lam(s))

    def numbers(terms: Any) -> list[float]:
        found = dict(terms)
        return [found.get(key, 0.0) for key in (("x", 0), ("m", 0), ("m", 1), ("m", 2))]

    def mine(row: Any, n: int) -> list[float]:
        return [0.0 if c is None else float(c[n]) for c in row] + [0.0] * (4 - len(row))

    for n in range(2):
        step: Step = high[n]
        for stage, time, row in zip(step.stages[1:], table.times, table.rows, strict=False):
            assert float(time[n]) == pytest.approx(stage.time, rel=1e-14)
            assert mine(row, n) == pytest.approx(numbers(stage.terms), rel=1e-12)
        assert mine(table.rows[-1], n) == pytest.approx(numbers(step.out), rel=1e-12)
        lower = numbers(low.inner_steps(process, s, t, False)[n].out)
        gap = [a - b for a, b in zip(numbers(step.out), lower, strict=True)]
        size = math.hypot(float(process.alpha(t[n])), float(process.sigma(t[n])))
        assert mine([None, *table.error], n) == pytest.approx([c / size for c in gap], rel=1e-9, abs=1e-15)


@every_method
def test_order(method: Any) -> None:
    """With a tolerance that everything meets and stops on a grid, one step is taken from stop to stop."""
    process, order = VP(), METHODS[method].order
    oracle, solver = mixture(process), Adaptive(method, atol=1e15)
    start, end = 0.8, 0.1
    u, v = (float(METHODS[method].to(process, column(t))) for t in (start, end))
    x = quantile_starts(oracle, start)
    exact, errors = flow_map(oracle, x, start, end), []
    for n in (64, 128) if method == "dpm-12" else (32, 64):
        times = METHODS[method].back(process, torch.linspace(u, v, n + 1, dtype=F64))
        times[0], times[-1] = start, end
        got = solver.solve(oracle, x, times)
        each = {"dormand-prince": 6, "dpm-12": 2}.get(method, 3)
        assert set(got.nfe.tolist()) == {each * n + (method in PAIRS)} and not bool(got.rejected.any())
        errors.append(float((got.x - exact).square().mean().sqrt()))
    assert solver.order == order and abs(slopes(errors)[-1] - order) < 0.15


# ------------------------------------------------------------------------------------------------- control


@every_process
@every_method
def test_errors_follow_the_tolerance(method: Any, process: Process) -> None:
    """RMS errors of at most three times the tolerance, at a cost that is the same in every process."""
    oracle, (start, end) = mixture(process), ENDS[type(process).__name__]
    x = quantile_starts(oracle, start)
    exact = flow_map(oracle, x, start, end)
    tight = {"dpm-12": 1e-4, "dormand-prince": 1e-6}.get(method, 1e-5)
    most = {"bogacki-shampine": (42, 130), "dormand-prince": (32, 82), "dpm-12": (120, 320), "dpm-23": (82, 260)}
    errors = []
    for tol, budget in zip((1e-3, tight), most[method], strict=True):
        got = Adaptive(method, rtol=tol, atol=tol).solve(oracle, x, [start, end])
        errors.append(float((got.x - exact).square().mean().sqrt()))
        assert errors[-1] < 3 * tol
        assert float(got.nfe.double().mean()) < budget and float(got.rejected.double().mean()) < 6
    assert errors[0] / errors[1] > 0.1 * 1e-3 / tight


def test_the_norm_is_each_samples_own() -> None:
    flow = _Flow(Adaptive(rtol=0.1, atol=0.02), gaussian(VP()), torch.zeros(2, 3), None, False)
    before, after = (
        column(1.0, -8.0, 0.0, 0.0, 2.0, 0.1).reshape(2, 3),
        column(-4.0, 2.0, 0.1, 0.1, 0.0, 1.0).reshape(2, 3),
    )
    error = column(0.3, 0.1, -0.04, 0.5, 0.2, 0.0).reshape(2, 3)
    got = flow.ratio(error, (before, column(2.0, 1.0)), (after, column(1.0, 0.5)))
    allowed = ((0.4, 0.4, 0.02), (0.02, 0.2, 0.2))
    want = [
        math.sqrt(sum((float(e) / d) ** 2 for e, d in zip(*row, strict=True)) / 3)
        for row in zip(error, allowed, strict=True)
    ]
    assert got.tolist() == pytest.approx(want, rel=1e-14)


def test_the_next_step() -> None:
    """h clip(0.9 r^{-0.7/q} r_before^{0.4/q}, 0.2, 10) after a step that is kept, h clip(0.9 r^{-1/q}) after another.

    A step cut short by a stop does not count.
    """

    class Told(_Flow):
        def ratio(self, error: Tensor, *states: Any) -> Tensor:
            self.widths.append(self.h.item())
            return column(next(self.say))

    oracle = gaussian(VP())
    for method, q in (("bogacki-shampine", 3), ("dpm-12", 2)):
        said = [0.5, 4.0, 0.1, 1e-9, 1e6, 1.0, 0.0]
        flow = Told(Adaptive(method, rtol=1e-9, atol=1e-9), oracle, torch.zeros(1, 1, dtype=F64), None, False)
        flow.say, flow.widths = iter([*said, *[1e-4] * 1000]), []
        flow.advance(1.0, 0.01)
        before, h = 1.0, 0.5 * 1e-9 ** (1 / q)
        for r, width in zip(said, flow.widths, strict=False):
            assert width == pytest.approx(h, rel=1e-12)
            r = max(r, 1e-4)
            c = 0.9 * (r ** (-0.7 / q) * before ** (0.4 / q) if r <= 1.0 else r ** (-1 / q))
            h, before = h * min(max(c, 0.2), 10.0), r if r <= 1.0 else before
        assert flow.rejected.tolist() == [2]
    flow = Told(Adaptive("dpm-12", atol=1.0), oracle, torch.zeros(1, 1, dtype=F64), None, False)
    flow.say, flow.widths = iter([1.0, 1e-4, 1.0, 1.0]), []
    for s, t in itertools.pairwise(VP().time(column(0.0, 0.5, 0.51, 1.1)).tolist()):
        flow.advance(s, t)
    assert flow.widths == pytest.approx([0.5, 0.5, 0.5, 0.45], rel=1e-9)  # ten times 0.01 is less than it was


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@every_method
def test_a_sample_does_not_depend_on_the_others(method: Any, dtype: torch.dtype) -> None:
    """Bit for bit, states and counts, alone or in a batch that shrinks or keeps its shape."""
    law = GaussianMixture([0.3, 0.7], [[-1.0, 0.0, 0.5], [0.8, 0.2, 0.0]], [[0.1, 0.2, 0.05], [0.06, 0.1, 0.3]])
    tol = {"dpm-12": 1e-2, "dormand-prince": 1e-4}.get(method, 1e-3)
    solver = Adaptive(method, rtol=tol, atol=tol)
    for process in (VP(), VE()) if method in PAIRS else (DiscreteVP(),):
        oracle, times = law.denoiser(process), [process.t_max, 0.4 * process.T, process.t_min, 0.0]
        x = process.prior((3,), n=37, t=process.t_max, dtype=dtype)
        whole = solver.solve(oracle, x, times)
        assert whole.x.dtype == dtype and len(set(whole.nfe.tolist())) > 2
        kept = solver.solve(oracle, x, times, keep_shape=True)
        assert all(torch.equal(getattr(whole, name), getattr(kept, name)) for name in ("x", "nfe", "rejected"))
        for rows in ([0], [36], [20], [5, 1], list(range(3, 20))):
            part = solver.solve(oracle, x[rows], times)
            assert torch.equal(part.x, whole.x[rows]), (process, rows)
            assert torch.equal(part.nfe, whole.nfe[rows]) and torch.equal(part.rejected, whole.rejected[rows])


def test_against_torchdiffeq() -> None:
    """Sample by sample the same solution; as a batch its samples depend on each other, and ours do not."""
    peer = pytest.importorskip("torchdiffeq")
    oracle, end = mixture(VP()), 0.1  # it steps beyond the end and interpolates
    x, times = quantile_starts(oracle, 1.0), column(1.0, end)

    def theirs(x: Tensor, tol: float) -> Tensor:
        slope = lambda t, y: oracle(y, max(float(t), 0.02)).velocity  # noqa: E731
        return peer.odeint(slope, x, times, rtol=tol, atol=tol, method="dopri5")[-1]

    for i in (0, 5, 9):
        got = Adaptive(rtol=1e-8, atol=1e-8).solve(oracle, x[i : i + 1], times).x
        assert float((got - theirs(x[i : i + 1], 1e-8)).abs().max()) < 1e-6
    together, alone = theirs(x, 1e-4), torch.cat([theirs(x[i : i + 1], 1e-4) for i in range(len(x))])
    assert int((together != alone).sum()) == len(x)
    ours = Adaptive().solve(oracle, x, times).x
    assert torch.equal(ours, torch.cat([Adaptive().solve(oracle, x[i : i + 1], times).x for i in range(len(x))]))
    hard, exact = x[5:6], flow_map(oracle, x[5:6], 1.0, end)
    crowd = torch.cat([hard, x[-1:].expand(200, 1)])  # among easy ones its error is averaged away
    apart, among = (float((theirs(start, 1e-3)[0] - exact).abs()) for start in (hard, crowd))
    assert among > 5 * apart
    ours = Adaptive(rtol=1e-3, atol=1e-3).solve(oracle, crowd, times).x[0]
    assert float((ours - exact).abs()) < 0.1 * apart


# ------------------------------------------------------------------------------------------------- solve


@every_method
def test_counts_and_stops(method: Any) -> None:
    """Evaluations as counted; stops lie on the exact flow; up undoes down; 0 is x0 of the state before."""
    oracle, tol = gaussian(VP(), 0.3, 0.25), {"dpm-12": 1e-3, "dpm-23": 1e-4}.get(method, 1e-5)
    solver = Adaptive(method, rtol=tol, atol=tol)
    x, times = quantile_starts(oracle, 1.0), [1.0, 0.6, 0.2, 1e-3]
    x[3] *= 100.0
    states: list[Tensor] = []
    got = solver.solve(oracle, x, times, states=states)
    assert sum(shape[0] for _, shape in oracle.calls) == int(got.nfe.sum())  # who has arrived is not asked again
    assert len({shape for _, shape in oracle.calls}) > 1 and len(set(got.nfe.tolist())) > 1
    assert len(states) == 4 and torch.equal(states[0], x) and torch.equal(states[-1], got.x)
    for t, state in zip(times[1:], states[1:], strict=True):
        assert float(((state - gaussian_map(oracle, x, 1.0, t)).abs() / (1 + state.abs())).max()) < 3 * tol
    oracle.calls.clear()
    kept = solver.solve(oracle, x, times, keep_shape=True)
    assert {shape for _, shape in oracle.calls} == {(13, 1)} and torch.equal(kept.nfe, got.nfe)
    back = solver.solve(oracle, got.x, times[::-1])
    assert float(((back.x - x).abs() / (1 + x.abs())).max()) < 6 * tol
    alone = gaussian(VP(), 0.3, 0.25)
    one = solver.solve(alone, x[:1], [*times, 0.0])
    assert torch.equal(one.x, oracle(got.x, 1e-3).x0[:1]) and one.nfe.tolist() == [len(alone.calls)]
    each = {"dormand-prince": 6, "dpm-12": 2}.get(method, 3)
    assert (int(one.nfe) - 1 - (method in PAIRS)) % each == 0 and int(one.nfe) == int(got.nfe[0]) + 1


def test_from_pure_noise() -> None:
    """alpha(T) = 0: pairs start there, and from sigma = 0 upward; DPM-Solver has no lam there."""
    for process in (Flow(), Trig()):
        oracle = gaussian(process, 0.3, 0.25)
        x = column(-2.0, 0.1, 1.5)[:, None]
        got = Adaptive(rtol=1e-7, atol=1e-7).solve(oracle, x, [1.0, 1e-3]).x
        assert float((got - gaussian_map(oracle, x, 1.0, 1e-3)).abs().max()) < 1e-6
        up = Adaptive(rtol=1e-7, atol=1e-7).solve(oracle, 0.3 + 0.5 * x, [0.0, 1.0]).x
        assert float((up - x).abs().max()) < 1e-6
        for times in ([1.0, 0.1], [0.0, 0.1]):
            with pytest.raises(ConfigError, match="singular"):
                Adaptive("dpm-23").solve(oracle, x, times)


def test_gradients() -> None:
    oracle, exact = gaussian(VP(), 0.3, 0.25), gaussian(VP(), 0.3, 0.25)
    x = quantile_starts(oracle, 1.0)
    slope = float(gaussian_map(exact, x + 1.0, 1.0, 0.01)[0] - gaussian_map(exact, x, 1.0, 0.01)[0])

    def end(x: Tensor) -> Tensor:
        return Adaptive(rtol=1e-6, atol=1e-6).solve(oracle, x, [1.0, 0.01]).x

    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(end(leaf).sum(), leaf)
    assert float((grad - slope).abs().max()) < 1e-5
    _, tangent = torch.func.jvp(end, (x,), (torch.ones_like(x),))
    assert float((tangent - slope).abs().max()) < 1e-5
    with pytest.raises(ConfigError, match="vmap"):
        torch.vmap(end)(x[:, None])


def test_what_is_refused() -> None:
    oracle, x = gaussian(VP()), torch.ones(3, 1)
    with pytest.raises(ConfigError, match=r"max_steps=2 .* loosen rtol"):
        Adaptive(max_steps=2).solve(oracle, x, [1.0, 1e-3])
    for method in ("dormand-prince", "dpm-12"):

        class Broken(Oracle):
            def pair(self, x: Tensor, s: Any) -> tuple[Tensor, Tensor]:
                x0, noise = super().pair(x, s)
                bad = torch.where((x > 5.0) & (torch.as_tensor(s).reshape(-1, 1) < 0.5), math.nan, 1.0)
                return x0 * bad, noise * bad

        with pytest.raises(ConfigError, match=r"sample 1 of the batch.* time 0\.[45].*vanish"):
            Adaptive(method).solve(Broken(VP()), column(1.0, 50.0, 1.0)[:, None], [1.0, 1e-3])
    with pytest.raises(ConfigError, match="no plan"):
        Adaptive().plan(VP(), column(1.0, 0.5))
    with pytest.raises(ConfigError, match="decrease"):
        Adaptive().solve(oracle, x, [1.0, 0.5, 0.7])
    for bad in ({"method": "rk45"}, {"rtol": -1.0}, {"atol": 0.0}, {"max_steps": 0}):
        with pytest.raises(ConfigError):
            Adaptive(**bad)
