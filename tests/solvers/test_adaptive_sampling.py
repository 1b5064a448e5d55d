"""Adaptive through the doors of sampling: where it stops, what it takes, one shape of batch, conditions, folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fokker.denoiser import NetDenoiser
from fokker.errors import ConfigError
from fokker.guidance import CFG
from fokker.process import EDM, VP, Flow, Process
from fokker.registry import build, spec
from fokker.sampling import encode, sample, trajectory
from fokker.shards import Sharding, read_shards
from fokker.solvers import Adaptive
from fokker.train.drawing import settle
from fokker.train.options import Sampling
from fokker.tuning import Trial

from .oracle import F64, flow_map, gaussian, gaussian_map, mixture

TIGHT = Adaptive(rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=lambda p: type(p).__name__)
def test_it_stops_at_the_ends_and_where_told(process: Process) -> None:
    oracle = mixture(process)
    keys: dict[str, Any] = {"n": 5, "solver": TIGHT, "dtype": F64}
    x = process.prior((1,), n=5, dtype=F64)
    if not isinstance(process, Flow):  # the closed form needs alpha > 0
        exact = flow_map(oracle, x, process.T, process.t_min)
        got = sample(oracle, final="t_min", **keys)
        assert float((got - exact).abs().max()) < 1e-5
        assert torch.allclose(sample(oracle, **keys), oracle(got, process.t_min).x0, atol=1e-12)
    for grid in (None, "t", "karras"):
        times, states = trajectory(oracle, grid=grid, **keys)
        assert times.tolist() == pytest.approx([process.T, process.t_min, 0.0], rel=1e-12) and len(states) == 3
        assert torch.equal(states[0], x) and torch.equal(states[-1], sample(oracle, grid=grid, **keys))
    times, states = trajectory(oracle, grid="t", steps=4, final="t_min", **keys)
    assert torch.allclose(times, torch.linspace(process.T, process.t_min, 5, dtype=F64)) and len(states) == 5
    for (s, t), (a, b) in zip(zip(times[1:], times[2:]), zip(states[1:], states[2:])):  # noqa: B905, RUF007
        assert float((b - flow_map(oracle, a, float(s), float(t))).abs().max()) < 1e-5 * float(b.abs().max())
    times, states = trajectory(oracle, x=states[2], grid=[0.5, 0.2, 0.0], solver=TIGHT)
    assert times.tolist() == [0.5, 0.2, 0.0] and torch.equal(states[2], oracle(states[1], 0.2).x0)
    for method in ("dpm-12", "dpm-23"):  # starts where lam is finite
        times, states = trajectory(oracle, **keys | {"solver": Adaptive(method, rtol=0.05, atol=0.0078)})
        assert float(times[0]) == process.t_max and bool(torch.isfinite(states).all())


def test_encode_is_the_way_back() -> None:
    oracle = gaussian(VP(), 0.3, 0.25)
    x = torch.linspace(-1.0, 2.0, 7, dtype=F64)[:, None]
    z = encode(oracle, x, solver=TIGHT)
    assert float((z - gaussian_map(oracle, x, VP().t_min, 1.0)).abs().max()) < 1e-5
    assert float((sample(oracle, x=z, solver=TIGHT, final="t_min") - x).abs().max()) < 1e-5


def test_same_seed_same_bits() -> None:
    oracle = gaussian(VP(), 0.7, 0.25, shape=(2, 3))
    keys: dict[str, Any] = {"solver": Adaptive("bogacki-shampine", rtol=1e-3, atol=1e-3), "seed": 4}
    whole = sample(oracle, n=10, **keys)
    for size, pad in ((3, False), (7, True)):
        assert torch.equal(sample(oracle, n=10, batch_size=size, pad=pad, **keys), whole)
    assert torch.equal(sample(oracle, indices=[9, 3], brownian=True, **keys), whole[[9, 3]])


class Net(nn.Module):
    """Depends on its row and on the label; remembers the shapes it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[Any] = set()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        self.shapes.add((tuple(x.shape), tuple(t.shape)))
        label = 0.0 if cond is None else cond.to(x.dtype)[:, None]
        assert cond is None or len(cond) == len(x)
        return x * (self.weight + 0.2 * label) * torch.cos(3.0 * x)


def test_a_network_sees_one_shape_when_padded_and_fewer_samples_otherwise() -> None:
    net = Net()
    denoiser = NetDenoiser(net, VP(), predict="v", shape=(3,))
    keys: dict[str, Any] = {"n": 10, "solver": Adaptive(), "seed": 1}
    whole = sample(denoiser, **keys)
    assert not whole.requires_grad and len(net.shapes) > 1
    net.shapes.clear()
    padded = sample(denoiser, batch_size=4, pad=True, **keys)
    assert net.shapes == {((4, 3), (4,))} and torch.allclose(padded, whole, atol=1e-6)


@pytest.mark.parametrize(("predict", "method"), [("v", "dormand-prince"), ("noise", "dpm-23"), ("x0", "dpm-12")])
def test_a_network_may_reuse_its_output(predict: str, method: Any) -> None:
    class Reusing(Net):
        def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            self.out = getattr(self, "out", torch.empty_like(x))
            return self.out.copy_(super().forward(x, t, cond))

    keys: dict[str, Any] = {"n": 8, "solver": Adaptive(method, rtol=1e-2, atol=1e-2), "batch_size": 4, "pad": True}
    nets = (Net(), Reusing())
    got = [sample(NetDenoiser(net, VP(), predict=predict, shape=(3,)), **keys) for net in nets]
    assert torch.equal(*got)


@pytest.mark.parametrize("pad", [False, True])
def test_conditions_follow_their_samples(pad: bool) -> None:
    """Labels of samples that are under way stay with them, also doubled by guidance."""
    denoiser = NetDenoiser(Net(), VP(), predict="v", shape=(3,))
    labels = torch.tensor([0, 3, 1, 5, 2, 0, 4])
    for guided in (denoiser, CFG(denoiser, 1.5)):
        keys: dict[str, Any] = {"solver": Adaptive(), "dtype": F64}
        with torch.no_grad():
            denoiser.double()
            got = sample(guided, n=7, cond=labels, batch_size=7, pad=pad, **keys)
            one_by_one = [sample(guided, indices=[i], cond=int(label), **keys) for i, label in enumerate(labels)]
        assert torch.allclose(got, torch.cat(one_by_one), atol=1e-12)


def test_what_is_refused() -> None:
    oracle = gaussian(VP(), 0.7, 0.25)
    for kwargs, match in (
        ({"nfe": 20}, r"nfe: given 20, but Adaptive.* leave it out"),
        ({"nfe": 20, "grid": [0.9, 0.1]}, "nfe: given 20"),
        ({"steps": 0}, "steps"),
        ({"callback": lambda *_: None}, "callback: Adaptive"),
        ({"after_step": lambda *_: None}, "after_step: Adaptive"),
        ({"grid": [0.1, 0.9]}, "increase"),
        ({"solver": {"kind": "restart", "solver": "adaptive"}}, "plain plans"),
    ):
        with pytest.raises(ConfigError, match=match):
            sample(oracle, **{"n": 2, "solver": "adaptive", **kwargs})
    with pytest.raises(ConfigError, match="no grid to tune"):
        Trial(oracle, "adaptive", indices=range(2))


def test_recipes_and_folders_leave_its_steps_to_it(tmp_path: Path) -> None:
    """A recipe's number of steps is for solvers of fixed steps; one that is asked for is stops."""
    assert build("solver", spec(TIGHT)) == TIGHT
    net = NetDenoiser(Net(), VP(), predict="v", shape=(3,))
    for options, given in ((Sampling(steps=7), "adaptive"), (Sampling(solver=Adaptive(), steps=7), None)):
        assert settle(net, options, solver=given).options["steps"] is None
        assert settle(net, options, solver=given, steps=3).options["steps"] == 3
        assert settle(net, options, solver="ddim").options["steps"] == 7
    oracle = gaussian(VP(), 0.7, 0.25, shape=(3,))
    job = Sharding(tmp_path / "many", oracle, n=6, batch_size=4, shard=4, solver="adaptive", seed=2)
    assert job.keys["steps"] is None
    job.run()
    job.finish()
    x, _ = read_shards(tmp_path / "many")
    assert torch.equal(x, sample(oracle, n=6, solver="adaptive", seed=2))
