"""The user's door: what sample, trajectory and encode promise about seeds, bits, batches, callbacks and values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fokker.denoiser import NetDenoiser, to_process
from fokker.errors import ConfigError
from fokker.prediction import Prediction
from fokker.process import EDM, OU, VE, VP, Cosine, Custom, DiscreteVP, Flow, Linear, Process, SubVP, Trig
from fokker.sampling import encode, sample, trajectory
from fokker.solvers import (
    DDIM,
    RK4,
    Adams,
    Ancestral,
    EDMStochastic,
    Euler,
    EulerMaruyama,
    Heun,
    Karras,
    Shift,
    Solver,
    UniformLam,
    UniformT,
)

from .solvers.oracle import F64, execute, flow_map, gaussian, gaussian_map, mixture, slopes

SHAPE = (2, 3)
PROCESSES: dict[str, Process] = {
    "vp": VP(),
    "sub-vp": SubVP(),
    "ve": VE(),
    "ve-published": VE(published=True),
    "edm": EDM(),
    "flow": Flow(),
    "trig": Trig(),
    "cosine": Cosine(),
    "ou": OU(),
    "ddpm": DiscreteVP(),
    "ddpm-cosine": DiscreteVP(betas="cosine"),
    "ddpm-zero": DiscreteVP(zero_terminal_snr=True),
    "linear": Linear(lambda t: -1.0 + 0.0 * t, lambda t: 1.5 + t, 3.0),
    "custom": Custom(lambda t: 1.0 - t, lambda t: t),
}


# ------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("name", PROCESSES)
def test_every_process_gives_the_data(name: str) -> None:
    """DDIM, 50 steps uniform in lam, final x0: exactly the product of Gaussian multipliers, and near N(.7, .25).

    By default (Adams-Bashforth in the angle, equal steps of flow time) the same starts end far nearer to the exact map.
    """
    process, m, v = PROCESSES[name], 0.7, 0.25
    oracle = gaussian(process, m, v, shape=(2,))
    x = sample(oracle, n=1500, solver="ddim", grid="lam", dtype=F64)
    assert x.shape == (1500, 2) and torch.isfinite(x).all()
    times, states = trajectory(oracle, n=1500, solver="ddim", grid="lam", dtype=F64)
    assert len(times) == 51 and times[0] == process.T and times[-1] == 0.0
    start = states[0]
    assert torch.equal(start, process.prior((2,), n=1500, seed=0, dtype=F64))
    assert abs(float(start.std() / process.prior_std()) - 1) < 4 / math.sqrt(2 * 3000)
    a, s = process.alpha(times[:-1]), process.sigma(times[:-1])
    gain = (a[1:] * a[:-1] * v + s[1:] * s[:-1]) / (a[:-1] ** 2 * v + s[:-1] ** 2)
    last = a[-1] * v / (a[-1] ** 2 * v + s[-1] ** 2)
    want = m + gain.prod() * last * (start - a[0] * m)
    assert float((x - want).abs().max()) < 1e-11
    assert abs(float(x.mean()) - m) < 0.05
    assert 0.17 < float(x.var()) < 0.27  # DDIM under-disperses by O(1 / steps)
    whole = a[0] ** 2 * v + s[0] ** 2
    exact = m + (v / whole).sqrt() * (start - a[0] * m)
    default = sample(oracle, n=1500, dtype=F64)
    assert float((default - exact).square().mean().sqrt()) < 1e-3 < 0.1 * float((x - exact).square().mean().sqrt())
    assert torch.equal(default, sample(oracle, n=1500, solver=Adams(1, "angle"), grid=Shift(1.0), steps=50, dtype=F64))


@pytest.mark.parametrize("final", ["x0", "t_min"])
def test_final(final: str) -> None:
    """x0 ends at 0 by one x0 step; t_min stops at the cleanest time the denoiser supports."""
    vp = VP()
    clean = float(vp.lam(0.01))
    for lam_range, stop in (((-math.inf, math.inf), vp.t_min), ((-math.inf, clean), 0.01)):
        oracle = gaussian(vp, 0.7, 0.25, lam_range=lam_range)
        times, states = trajectory(oracle, n=4, solver="ddim", grid="lam", steps=8, final=final, dtype=F64)
        assert len(times) == 9
        assert float(times[-1 if final == "t_min" else -2]) == pytest.approx(stop, abs=1e-12)
        if final == "x0":
            assert times[-1] == 0.0
            assert torch.equal(states[-1], oracle(states[-2], float(times[-2])).x0)
        assert min(t for t, _ in oracle.calls) >= stop * (1 - 1e-9)
    with pytest.raises(ConfigError, match="final"):
        sample(gaussian(vp), final="t0")  # type: ignore[arg-type]


def test_the_start_is_the_noisiest_supported_time() -> None:
    vp, flow = VP(), Flow()
    noisy = float(vp.lam(0.6))
    oracle = gaussian(vp, 0.7, 0.25, lam_range=(noisy, math.inf))
    times, states = trajectory(oracle, n=3, steps=4, dtype=F64)
    assert float(times[0]) == pytest.approx(0.6, abs=1e-12)
    assert torch.equal(states[0], vp.prior((1,), n=3, dtype=F64))  # unit prior at any time
    edm = gaussian(EDM(), 0.7, 0.25, lam_range=(-math.log(10.0), math.inf))
    times, states = trajectory(edm, n=3, steps=4, dtype=F64)
    assert float(times[0]) == pytest.approx(10.0, rel=1e-12)
    assert float((states[0] - 10.0 * vp.prior((1,), n=3, dtype=F64)).abs().max()) < 1e-10
    # alpha(T) = 0: x0-form solvers start at T, the others at t_max
    for solver, start in ((DDIM(), 1.0), (Heun(), 1.0), (Heun("rho"), flow.t_max), (EulerMaruyama(), flow.t_max)):
        times, _ = trajectory(gaussian(flow, 0.7, 0.25), n=3, steps=4, solver=solver, dtype=F64)
        assert times[0] == start, solver


def test_a_given_start_and_given_times() -> None:
    oracle = mixture(VP())
    x = torch.linspace(-1, 1, 5, dtype=F64)[:, None]
    want = execute(DDIM().plan(VP(), torch.tensor([0.8, 0.5, 0.0], dtype=F64)), oracle, x)
    kept = x.clone()
    for grid in ([0.8, 0.5, 0.0], np.array([0.8, 0.5, 0.0]), torch.tensor([0.8, 0.5, 0.0], dtype=F64)):
        got = sample(oracle, x=x, solver="ddim", grid=grid)
        assert got.dtype == F64 and torch.equal(got, want)
    assert torch.equal(x, kept)
    assert sample(oracle, x=x.half(), grid=[0.8, 0.0]).dtype == torch.float32
    flow = flow_map(oracle, x, 0.8, 0.1)
    assert float((sample(oracle, x=x, grid="t", solver="rk4", steps=64, final="t_min") - x).abs().max()) > 0.1
    times = UniformT().times(VP(), 64, 0.8, 0.1, False)
    assert float((sample(oracle, x=x, grid=times, solver="rk4") - flow).abs().max()) < 1e-6
    with pytest.raises(ConfigError, match="decrease"):
        sample(oracle, x=x, grid=[0.8, 0.9, 0.1])


@pytest.mark.parametrize("solver", ["ddim", "heun", {"kind": "heun", "space": "rho"}, RK4(), "ancestral"], ids=str)
@pytest.mark.parametrize("nfe", [9, 10])
def test_nfe(solver: Any, nfe: int) -> None:
    each = {"ddim": 1, "ancestral": 1}.get(solver if isinstance(solver, str) else "", 4 if solver == RK4() else 2)
    oracle = gaussian(VP(), 0.7, 0.25)
    sample(oracle, n=2, solver=solver, nfe=nfe)
    assert len(oracle.calls) == each * ((nfe - 1) // each) + 1


def test_arguments_that_contradict() -> None:
    oracle = gaussian(VP(), 0.7, 0.25)
    x = torch.ones(3, 1)
    for kwargs, match in (
        ({"steps": 3, "nfe": 3}, "steps or nfe"),
        ({"steps": 0}, "steps"),
        ({"nfe": 0}, "nfe"),
        ({"n": 2, "x": x}, "differ"),
        ({"n": 2, "indices": [0, 1, 2]}, "differ"),
        ({"x": x, "seed": [1, 2]}, "differ"),
        ({"n": 0}, "at least 1"),
        ({"n": 3, "batch_size": 0}, "batch_size"),
        ({"n": 3, "dtype": torch.float16}, "dtype"),
        ({"n": 3, "dtype": torch.bfloat16}, "dtype"),
        ({"n": 3, "solver": "ddmi"}, "ddim"),
        ({"n": 3, "grid": "lambda"}, "lam"),
        ({"n": 3, "cond": torch.zeros(2)}, "cond"),
        ({"n": 3, "solver": "ancestral", "grid": [0.1, 0.5]}, "towards the data"),
        ({"n": 1, "solver": "heun", "nfe": 1, "final": "t_min"}, "given 1"),
    ):
        with pytest.raises(ConfigError, match=match):
            sample(oracle, **kwargs)
    with pytest.raises(ConfigError, match="shape"):
        sample(gaussian(VP(), shape=()), n=2)
    assert sample(gaussian(VP(), shape=()), n=2, shape=(4,), steps=2).shape == (2, 4)


def test_how_many() -> None:
    oracle = gaussian(VP(), 0.7, 0.25)
    assert len(sample(oracle, steps=1)) == 64
    assert len(sample(oracle, steps=1, indices=[5, 6])) == 2
    assert len(sample(oracle, steps=1, seed=[5, 6, 7])) == 3
    assert len(sample(oracle, x=torch.ones(4, 1), steps=1)) == 4


# ------------------------------------------------------------------------------------------------- same seed, same bits


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("solver", [DDIM(), Ancestral()], ids=str)
def test_same_seed_same_bits(solver: Solver, dtype: torch.dtype) -> None:
    """Any batch size, any order of the indices, one at a time or together, one seed per sample, two threads."""
    kwargs: dict[str, Any] = {"solver": solver, "steps": 3, "seed": 11, "dtype": dtype}
    oracle = gaussian(VP(), 0.7, 0.25, shape=SHAPE)
    whole = sample(oracle, n=70, **kwargs)
    assert whole.dtype == dtype and len(torch.unique(whole)) > 400
    for size in (1, 7, 64, 1000):
        assert torch.equal(sample(oracle, n=70, batch_size=size, **kwargs), whole), size
        if size in (7, 64):
            assert torch.equal(sample(oracle, n=70, batch_size=size, pad=True, **kwargs), whole), size
    order = torch.randperm(70, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample(oracle, indices=order, batch_size=7, **kwargs), whole[order])
    assert torch.equal(sample(oracle, indices=[69], **kwargs), whole[69:])
    assert torch.equal(sample(oracle, n=5, **kwargs), whole[:5])
    kwargs.pop("seed")
    assert torch.equal(sample(oracle, seed=[11] * 4, indices=[3, 0, 9, 2], **kwargs), whole[[3, 0, 9, 2]])
    other = sample(oracle, seed=[11, 12], **kwargs)  # one seed per sample: number 0 of each
    assert torch.equal(other[0], whole[0]) and torch.equal(other[1], sample(oracle, n=1, seed=12, **kwargs)[0])
    assert torch.equal(sample(oracle, seed=torch.tensor([11, 12]), **kwargs), other)
    assert torch.equal(sample(oracle, seed=[9, 12, 11], batch_size=2, **kwargs)[1:], other.flip(0))
    assert not torch.equal(sample(oracle, n=70, seed=12, **kwargs), whole)
    torch.set_num_threads(2)
    try:
        assert torch.equal(sample(oracle, n=70, seed=11, **kwargs), whole)
    finally:
        torch.set_num_threads(1)


def test_float32_and_float64_draw_the_same_sample() -> None:
    oracle = gaussian(VP(), 0.7, 0.25, shape=SHAPE)
    for solver in (DDIM(), Ancestral(), EDMStochastic()):
        one, two = (sample(oracle, n=16, solver=solver, steps=8, seed=5, dtype=d) for d in (torch.float32, F64))
        assert float((one - two).abs().max()) < 3e-5


def test_draws_are_independent_of_each_other_and_of_the_prior() -> None:
    """With x0 = 0 known, Ancestral's steps are the noise itself: no draw repeats another, nor the start."""
    oracle = gaussian(VP(), 0.0, 0.0, shape=(1,))
    times, states = trajectory(oracle, n=4000, solver=Ancestral(), grid=[0.9, 0.7, 0.5, 0.3, 0.1], dtype=F64)
    parts = [states[0]]
    for k in range(4):
        a, _, c = (float(v) for v in VP().bridge(times[k], times[k + 1]))
        parts.append((states[k + 1] - a * states[k]) / c)
    corr = torch.corrcoef(torch.cat(parts, 1).T)
    assert float((corr - torch.eye(5, dtype=F64)).abs().max()) < 4 / math.sqrt(4000)
    assert all(abs(float(p.std()) - 1) < 4 / math.sqrt(8000) for p in parts)


# ------------------------------------------------------------------------------------------------- conditions, padding


class Told(nn.Module):
    """A denoiser whose data is N(cond, .25), that remembers what it was given."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process, self.shape, self.lam_range, self.reading = process, SHAPE, (-math.inf, math.inf), None
        self.seen: list[Any] = []

    def forward(self, x: Tensor, s: Any, cond: Any = None) -> Prediction:
        self.seen.append((tuple(x.shape), cond))
        label = cond["label"] if isinstance(cond, dict) else cond
        mean = label.to(x.dtype).reshape(-1, 1, 1)
        assert len(mean) == len(x)
        a, sig = self.process.alpha(s), self.process.sigma(s)
        gap = (x - a * mean) / (0.25 * a**2 + sig**2)
        return Prediction(self.process, x, s, x0=mean + 0.25 * a * gap, noise=sig * gap)


def test_conditions_are_sliced_by_sample() -> None:
    labels = torch.arange(10) % 3
    kwargs: dict[str, Any] = {"n": 10, "steps": 4, "dtype": F64}
    whole = sample(Told(VP()), cond=labels, **kwargs)
    for size in (1, 3, 4, 100):
        for pad in (False, True):
            told = Told(VP())
            assert torch.equal(sample(told, cond=labels, batch_size=size, pad=pad, **kwargs), whole)
            shapes = {shape for shape, _ in told.seen}
            if pad and size == 4:
                assert shapes == {(4, *SHAPE)}  # a network sees one shape only
            if not pad and size == 4:
                assert shapes == {(4, *SHAPE), (2, *SHAPE)}
    tree = {"label": labels, "more": [torch.arange(20).reshape(10, 2), (2.5, None, "word")]}
    told = Told(VP())
    assert torch.equal(sample(told, cond=tree, batch_size=4, pad=True, **kwargs), whole)
    last = told.seen[-1][1]
    assert last["label"].tolist() == [2, 0, 0, 0]
    assert last["more"][0].tolist() == [[16, 17], [18, 19], [18, 19], [18, 19]]
    assert last["more"][1][0].tolist() == [2.5] * 4 and last["more"][1][1:] == (None, "word")
    assert torch.equal(sample(told, cond=2, **kwargs), sample(told, cond=torch.full((10,), 2), **kwargs))
    assert torch.equal(sample(told, cond=labels.numpy(), batch_size=4, **kwargs), whole)


def test_pad_sends_a_network_one_shape_only() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shapes: list[Any] = []
            self.weight = nn.Parameter(torch.tensor(0.5))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            self.shapes.append((tuple(x.shape), tuple(t.shape)))
            return self.weight * x

    net = Net()
    denoiser = NetDenoiser(net, VP(), predict="v", shape=SHAPE)
    whole = sample(denoiser, n=10, steps=3)
    assert not whole.requires_grad
    net.shapes.clear()
    assert torch.equal(sample(denoiser, n=10, steps=3, batch_size=4, pad=True), whole)
    assert set(net.shapes) == {((4, *SHAPE), (4,))}


# ------------------------------------------------------------------------------------------------- trajectories


def test_callback_order_and_early_stop() -> None:
    oracle = gaussian(VP(), 0.7, 0.25)
    times, states = trajectory(oracle, n=4, steps=5, solver=Heun(), dtype=F64)
    seen: list[Any] = []
    kwargs: dict[str, Any] = {"n": 4, "steps": 5, "solver": Heun(), "dtype": F64}
    sample(oracle, callback=lambda *a: seen.append(a), **kwargs)
    assert [a[0] for a in seen] == [0, 1, 2, 3, 4] and [a[1] for a in seen] == times[:-1].tolist()
    for (_, t, x, p), state in zip(seen, states[:-1], strict=True):
        assert torch.equal(x, state) and p.s == t
    stopped = sample(oracle, callback=lambda n, *_: n == 3, **kwargs)
    assert torch.equal(stopped, states[3])
    some, part = trajectory(oracle, callback=lambda n, *_: n == 3, **kwargs)
    assert torch.equal(some, times[:4]) and torch.equal(part, states[:4])
    # batch by batch: only the batch that says so stops
    calls: list[int] = []

    def second(n: int, t: float, x: Tensor, p: Any) -> bool:
        calls.append(n)
        return len(calls) > 5 and n == 1

    mixed = sample(oracle, callback=second, batch_size=2, **kwargs)
    assert calls == [0, 1, 2, 3, 4, 0, 1]
    assert torch.equal(mixed[:2], states[-1][:2]) and torch.equal(mixed[2:], states[1][2:])
    # a callback that scribbles on what it is shown changes nothing
    assert torch.equal(sample(oracle, callback=lambda n, t, x, p: bool(x.zero_().sum() > 0), **kwargs), states[-1])


def test_after_step() -> None:
    oracle = gaussian(VP(), 0.7, 0.25)
    seen: list[int] = []

    def clamp(n: int, x: Tensor) -> Tensor | None:
        seen.append(n)
        return x.clamp(-1.0, 1.0) if n < 2 else None

    keys: Any = {"n": 9, "solver": "ddim", "steps": 4, "dtype": F64}
    got = sample(oracle, after_step=clamp, **keys)
    assert seen == [0, 1, 2, 3]
    times, states = trajectory(oracle, **keys)
    x = states[0]
    for k in range(4):
        x = execute(DDIM().plan(VP(), times[k : k + 2]), oracle, x)
        x = x.clamp(-1.0, 1.0) if k < 2 else x
    assert float((got - x).abs().max()) < 1e-14

    def in_place(n: int, x: Tensor) -> None:
        x.clamp_(-1.0, 1.0) if n < 2 else None

    assert torch.equal(sample(oracle, after_step=in_place, **keys), got)


@pytest.mark.parametrize("solver", [DDIM(), Heun("rho"), Ancestral(), EDMStochastic()], ids=str)
def test_trajectory_is_sample_with_its_states(solver: Solver) -> None:
    oracle = gaussian(EDM(), 0.7, 0.25, shape=SHAPE)
    kwargs: dict[str, Any] = {"n": 6, "steps": 5, "solver": solver, "grid": "karras", "seed": 3}
    times, states = trajectory(oracle, **kwargs)
    assert times.dtype == F64 and times.tolist() == Karras().times(EDM(), 5, 80.0, 0.002, True).tolist()
    assert states.shape == (6, 6, *SHAPE) and states.dtype == torch.float32
    assert torch.equal(states[0], EDM().prior(SHAPE, n=6, seed=3))
    assert torch.equal(states[-1], sample(oracle, **kwargs))
    for k in range(1, 5):  # a run continued from a state of the trajectory, if nothing is drawn
        if not solver.stochastic:
            assert torch.equal(sample(oracle, x=states[k], grid=times[k:], solver=solver), states[-1])


# ------------------------------------------------------------------------------------------------- encoding


@pytest.mark.parametrize("name", ["vp", "edm", "flow", "trig"])
def test_encoding_by_rk4_is_the_closed_form(name: str) -> None:
    """The latent of x at the cleanest time is the exact flow map to the noisiest; that of data is N(0, 1)."""
    process = PROCESSES[name]
    grid = "karras" if name == "edm" else "t" if name in ("flow", "trig") else "lam"
    for oracle, exact in ((gaussian(process, 0.3, 0.25), gaussian_map), (mixture(process), flow_map)):
        x = torch.linspace(-1.4, 1.3, 9, dtype=F64)[:, None]
        z = encode(oracle, x, solver="rk4", steps=72, grid=grid)
        want = exact(oracle, x, process.t_min, process.T)
        assert float((z - want).abs().max()) < 1e-4 * (80 if name == "edm" else 1)
        back = sample(oracle, x=z, solver="rk4", steps=72, grid=grid, final="t_min")
        assert float((back - x).abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("solver", "steps"), [(DDIM(), 64), (Euler(), 64), (Heun(), 48), (Heun("rho"), 48), (RK4(), 32)], ids=str
)
def test_round_trip_error_slope(solver: Solver, steps: int) -> None:
    """The order p; p + 1 for even p, as the way back undoes the leading error term of the way there."""
    oracle = mixture(Flow(), lam_range=(float(Flow().lam(0.95)), float(Flow().lam(0.02))))
    x = torch.linspace(-1.4, 1.3, 13, dtype=F64)[:, None]
    errors = []
    for n in (steps, 2 * steps):
        z = encode(oracle, x, solver=solver, steps=n)
        back = sample(oracle, x=z, solver=solver, steps=n, final="t_min")
        errors.append(float((back - x).square().mean().sqrt()))
    assert slopes(errors) == pytest.approx([solver.order + (solver.order % 2 == 0)], abs=0.15), errors


def test_encode_arguments() -> None:
    oracle = gaussian(VP(), 0.3, 0.25)
    x = torch.linspace(-1, 1, 5, dtype=F64)[:, None]
    kept = x.clone()
    up = [0.1, 0.3, 0.8]
    want = execute(DDIM().plan(VP(), torch.tensor(up, dtype=F64)), oracle, x)
    for grid in (up, up[::-1]):
        assert torch.equal(encode(oracle, x, solver="ddim", grid=grid), want)
    assert torch.equal(x, kept)
    oracle.calls.clear()
    encode(oracle, x, solver="heun", nfe=9)
    assert len(oracle.calls) == 8
    for bad in ("ancestral", EulerMaruyama(), EDMStochastic(), DDIM(eta=0.3)):
        with pytest.raises(ConfigError, match="encode with"):
            encode(oracle, x, solver=bad)
    told = Told(VP())
    rows = torch.ones(3, *SHAPE, dtype=F64)
    assert torch.equal(encode(told, rows, cond=1, steps=3), encode(told, rows, cond=torch.ones(3), steps=3))


def test_a_view_in_another_process_samples_the_same_law() -> None:
    """An EDM denoiser seen in Flow: RK4 on both reaches the same data from matched starts."""
    edm, flow = EDM(), Flow()
    inner = gaussian(edm, 0.3, 0.25, reading="x0")
    view = to_process(inner, flow)
    z = torch.linspace(-2, 2, 5, dtype=F64)[:, None]
    s, t = 0.9, 0.1
    x = flow.sigma(s) * z
    got = sample(view, x=x, grid=UniformLam().times(flow, 48, s, t, False), solver="rk4")
    want = gaussian_map(gaussian(flow, 0.3, 0.25), x, s, t)
    assert float((got - want).abs().max()) < 1e-6


def test_gradients_flow_through_sample_where_the_start_asks_for_them() -> None:
    """d x_0 / d x_T of a Gaussian is the map's slope, by backward; else nothing is recorded."""
    oracle = gaussian(VP(), 0.3, 0.25)
    grid = UniformLam().times(VP(), 200, 1.0, 1e-3, False)
    x = torch.tensor([[0.4], [-1.1]], dtype=F64)

    def end(start: torch.Tensor) -> torch.Tensor:
        return sample(oracle, x=start, solver="rk4", grid=grid)

    tracked = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(end(tracked).sum(), tracked)
    var = [float(VP().alpha(t)) ** 2 * 0.25 + float(VP().sigma(t)) ** 2 for t in (1e-3, 1.0)]
    assert torch.allclose(slope, torch.full_like(x, (var[0] / var[1]) ** 0.5), rtol=1e-6)
    assert not end(x).requires_grad


def test_times_of_ones_own_contradict_steps_and_nfe() -> None:
    oracle = gaussian(VP(), 0.3, 0.25)
    grid = [1.0, 0.5, 0.3, 0.0]
    assert sample(oracle, n=2, grid=grid, steps=3).shape == sample(oracle, n=2, grid=grid, nfe=3).shape
    for wrong in ({"steps": 4}, {"nfe": 2}, {"nfe": 4, "solver": "heun"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            sample(oracle, n=2, grid=grid, **wrong)
    for wrong in (
        {"pad": True},
        {"solver": VP()},
        {"indices": [-1]},
        {"indices": [2**32]},
        {"seed": 1.5},
        {"steps": 2.5},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong)).rstrip("s")):
            sample(oracle, **wrong)


def test_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network inside is compiled, once for all calls, whatever stands around it."""
    told: list[Any] = []

    def compiled(net: nn.Module, **keys: Any) -> None:
        told.append((net, keys))
        net._compiled_call_impl = net._call_impl

    monkeypatch.setattr(nn.Module, "compile", compiled)
    net = nn.Bilinear(3, 1, 3)
    net.forward = lambda x, time: x * time[:, None]  # type: ignore[method-assign, assignment]
    denoiser = NetDenoiser(net, Flow(), shape=(3,))
    sample(denoiser, n=5, steps=4)
    assert told == []
    for given in (to_process(denoiser, VP()), denoiser):
        sample(given, n=5, steps=4, compile=True)
    assert told == [(net, {"mode": None})]
    with pytest.raises(ConfigError, match="compile: given True, but Oracle has no network"):
        sample(gaussian(VP()), compile=True)
