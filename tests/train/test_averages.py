"""Several averages at once: the rates by hand, the shadows against the profile's own integral, precision, state."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scipy.integrate import quad
from torch import Tensor, nn

from fokker import noise
from fokker.errors import ConfigError
from fokker.registry import build, spec
from fokker.train import Averages, Constant, Power
from fokker.train.ema import gamma_of

F64 = torch.float64


def trajectory(n: int, dim: int = 3) -> Tensor:
    """Weights after 1..n steps: (n, dim), a random walk with a drift."""
    steps = noise.normal(5, torch.arange(n), (dim,), dtype=F64)
    return 2.0 + steps.cumsum(0) * 0.3 + 0.01 * torch.arange(n)[:, None]


def test_the_constant_rate_ramps_up_to_its_decay() -> None:
    rates = [Constant(0.3).rates(step)[0] for step in range(5)]
    assert np.allclose(rates, [1 - 1 / 10, 1 - 2 / 11, 1 - 3 / 12, 0.7, 0.7], rtol=1e-14)
    assert Constant().decay == 0.999 and Constant().names == ("0.999",)
    assert abs(Constant().rates(8989)[0] - (1 - 8990 / 8999)) < 1e-12 and abs(Constant().rates(10**6)[0] - 1e-3) < 1e-15


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_the_profile_has_the_relative_width_it_is_named_after(width: float) -> None:
    g = gamma_of(width)
    density = lambda x: (g + 1) * x**g  # noqa: E731
    points = [1 - k * width for k in (3, 1, 0.3) if k * width < 1]
    moments = [quad(lambda x, k=k: density(x) * x**k, 0, 1, points=points, epsabs=1e-13)[0] for k in (0, 1, 2)]
    assert math.isclose(moments[0], 1, rel_tol=1e-9)
    assert math.isclose(math.sqrt(moments[2] - moments[1] ** 2), width, rel_tol=1e-6)
    # The discrete weights that the rates make, against the same width, to the discretisation.
    n, rates = 4000, [Power((width,)).rates(step)[0] for step in range(4000)]
    weights = torch.tensor(rates, dtype=F64)
    kept = torch.cat([(1 - weights[1:]).flip(0).cumprod(0).flip(0), torch.ones(1, dtype=F64)])
    p, x = weights * kept, torch.arange(1, n + 1, dtype=F64) / n
    assert rates[0] == 1.0 and math.isclose(p.sum(), 1.0, rel_tol=1e-12)
    spread = float((p * x**2).sum() - (p * x).sum() ** 2) ** 0.5
    assert math.isclose(spread, width, rel_tol=3e-3)


def test_all_shadows_are_the_integral_of_their_profiles() -> None:
    n, widths = 50, (0.05, 0.1, 0.25)
    theta = trajectory(n)
    live = {"a": nn.Parameter(torch.zeros(2, dtype=F64)), "b": nn.Parameter(torch.zeros((), dtype=F64))}
    averages = Averages(live, Power(widths))
    assert averages.ema.names == ("0.050", "0.100", "0.250")
    for step in range(n):
        with torch.no_grad():
            live["a"].copy_(theta[step, :2])
            live["b"].fill_(float(theta[step, 2]))
        averages.update(step)
    edges = torch.arange(n + 1, dtype=F64) / n
    for i, width in enumerate(widths):
        mass = (edges ** (gamma_of(width) + 1)).diff()  # int p over (k - 1, k], where the weights are theta_k
        expected = (mass[:, None] * theta).sum(0)
        got = averages.values(i)
        assert torch.allclose(got["a"], expected[:2], rtol=1e-11, atol=0)
        assert torch.allclose(got["b"], expected[2], rtol=1e-11, atol=0)
    assert list(averages.state()) == [f"{i}/{name}" for i in range(3) for name in "ab"]
    assert averages.state()["1/a"] is averages.values(1)["a"]
    assert all(p.grad is None and p.requires_grad for p in live.values())


def test_a_constant_average_by_hand_starts_from_the_first_weights() -> None:
    live = {"w": torch.tensor([1.0, -2.0], dtype=F64)}
    averages, shadow = Averages(live, Constant(0.3)), torch.tensor([1.0, -2.0], dtype=F64)
    for step, d in enumerate([1 / 10, 2 / 11, 3 / 12, 0.3]):
        live["w"].add_(torch.tensor([0.7, -0.1 * step], dtype=F64))
        shadow = d * shadow + (1 - d) * live["w"]
        averages.update(step)
        assert torch.allclose(averages.values()["w"], shadow, rtol=1e-14, atol=0)


def test_weights_in_bfloat16_are_averaged_in_float32() -> None:
    # 1 and 1 + 2^-7 are neighbours in bf16: their average lies between and only float32 has it.
    live = {"half": torch.ones(3, dtype=torch.bfloat16), "full": torch.ones(2), "wide": torch.ones(2, dtype=F64)}
    averages = Averages(live, Constant(0.75))
    assert {name: value.dtype for name, value in averages.values().items()} == {
        "half": torch.float32,
        "full": torch.float32,
        "wide": F64,
    }
    for value in live.values():
        value.mul_(1 + 2**-7)
    averages.update(10**6)
    for name, value in averages.values().items():
        assert torch.allclose(value.double(), torch.full_like(value, 1 + 2**-9).double(), rtol=1e-7, atol=0), name
    live["half"].fill_(3.0)  # read again at every update
    averages.update(10**6)
    expected = 0.75 * (1 + 2**-9) + 0.75
    assert torch.allclose(averages.values()["half"], torch.tensor(expected), rtol=1e-6)


def test_state_puts_everything_back_and_refuses_another_models() -> None:
    theta = trajectory(9)
    live = {"w": torch.zeros(3)}
    ours, theirs = Averages(live, Power()), Averages(live, Power())
    for step in range(8):
        live["w"].copy_(theta[step])
        ours.update(step)
        if step == 4:
            theirs.load({name: value.clone() for name, value in ours.state().items()})
        if step > 4:
            theirs.update(step)
    for name, value in ours.state().items():
        assert torch.equal(theirs.state()[name], value) and theirs.state()[name] is not value
    before = {name: value.clone() for name, value in ours.state().items()}
    good = {name: torch.ones(3) for name in before}
    cases: tuple[tuple[dict[str, Tensor], str], ...] = (
        ({"0/w": torch.ones(3)}, "'1/w' is missing"),
        (good | {"2/w": torch.ones(3)}, "'2/w' is not known"),
        (good | {"1/w": torch.ones(4)}, r"'1/w' has shape \(4,\), here \(3,\)"),
    )
    for state, says in cases:
        with pytest.raises(ConfigError, match=says):
            ours.load(state)
        assert all(torch.equal(value, before[name]) for name, value in ours.state().items())


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_of_a_sharded_tensor_the_own_shard_is_averaged(group: None) -> None:
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (1,))
    sharded = distribute_tensor(torch.ones(4, 2), mesh, [Shard(0)])
    parameter = nn.Parameter(sharded)
    averages = Averages({"w": parameter}, Constant(0.5))
    with torch.no_grad():
        parameter.mul_(3.0)
    averages.update(10**6)
    got = averages.values()["w"]
    assert not isinstance(got, DTensor) and torch.equal(got, torch.full((4, 2), 2.0))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"kind": "constant", "decay": 1.0}, "decay"),
        ({"kind": "power", "widths": [0.1, 0.3]}, "0.28"),
        ({"kind": "power", "widths": [0.0]}, "widths"),
        ({"kind": "power", "widths": []}, "widths"),
        ({"kind": "power", "widths": [0.1, 0.1001]}, "third decimal"),
        ({"kind": "powr"}, "did you mean 'power'"),
    ],
)
def test_mistakes_are_named(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build("ema", given)


def test_kinds_and_specs() -> None:
    assert build("ema", "constant") == Constant(0.999) and build("ema", "power") == Power((0.05, 0.10))
    for given in (Constant(0.9), Power((0.07,))):
        assert build("ema", spec(given)) == given
