"""What every net promises: zero at birth, independence of samples, null conditions, exact derivatives, many modes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fokker.errors import ConfigError
from fokker.nets import MLP, DiT, UNet
from fokker.registry import build, spec

Make = Callable[..., Any]


def mlp(**fields: Any) -> Any:
    return MLP(3, **{"width": 16, "depth": 2} | fields)


def unet(**fields: Any) -> Any:
    defaults: dict[str, Any] = {"channels": 2, "width": 8, "multipliers": (1, 2), "attention": (3,), "size": 5}
    return UNet(**defaults | fields)


def dit(**fields: Any) -> Any:
    return DiT(**{"channels": 2, "size": 6, "patch": 3, "width": 16, "depth": 2, "heads": 2} | fields)


def signal_unet(**fields: Any) -> Any:
    return unet(axes=1, **fields)


def signal_dit(**fields: Any) -> Any:
    return dit(axes=1, positions="learned", **fields)


EVENTS = {mlp: (3,), unet: (2, 5, 5), dit: (2, 6, 6), signal_unet: (2, 5), signal_dit: (2, 6)}


def draw(make: Make, n: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = EVENTS[make]
    x = torch.randn(n, *shape, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.rand(n, generator=generator, dtype=torch.float64).to(dtype)


def awake(net: Any) -> Any:
    """The net with its zero layers perturbed."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return net.eval()


every = pytest.mark.parametrize("make", list(EVENTS))
VECTORS = torch.tensor([[0.3, 1.0], [torch.nan, 2.0], [-1.0, 0.0]])
CONDITIONS: dict[str, tuple[dict[str, int], Tensor]] = {
    "none": ({}, torch.empty(0)),
    "labels": ({"classes": 4}, torch.tensor([0, -1, 3])),
    "vectors": ({"cond_dim": 2}, VECTORS),
    "tokens": ({"tokens": 5, "cond_length": 3}, torch.tensor([[0, 4, 2], [-1, -1, -1], [3, 1, -1]])),
    "sequences": ({"cond_dim": 2, "cond_length": 3}, torch.stack([VECTORS, VECTORS.roll(1, 0), 0 * VECTORS])),
}
conditions = pytest.mark.parametrize(
    ("make", "fields", "cond"),
    [
        pytest.param(make, *CONDITIONS[name], id=f"{make.__name__}-{name}")
        for make in EVENTS
        for name in CONDITIONS
        if make is not mlp or name in ("none", "labels", "vectors")
    ],
)


@conditions
def test_fresh_output_is_zero(make: Make, fields: dict[str, int], cond: Tensor) -> None:
    net, (x, time) = make(**fields), draw(make)
    assert (net(x, time, cond if fields else None) == 0).all() and (net(x, torch.tensor(0.3)) == 0).all()


@conditions
def test_samples_are_independent(make: Make, fields: dict[str, int], cond: Tensor) -> None:
    net, (x, time) = awake(make(**fields)), draw(make)
    whole = net(x, time, cond if fields else None)
    singles = [net(x[i : i + 1], time[i : i + 1], cond[i : i + 1] if fields else None) for i in range(3)]
    assert whole.abs().mean() > 0.1 and torch.allclose(whole, torch.cat(singles), atol=1e-5, rtol=1e-5)
    assert torch.equal(net(x, time[0].expand(3)), net(x, time[0]))
    assert not torch.allclose(net(x, time), net(x, time + 0.1), atol=1e-3)


@every
@pytest.mark.parametrize(
    ("fields", "null", "a", "b"),
    [
        ({"classes": 4}, torch.tensor([-1, -7, -1]), torch.zeros(3, dtype=torch.int64), torch.tensor([0, 1, 0])),
        ({"cond_dim": 2}, torch.full((3, 2), torch.nan), torch.zeros(3, 2), torch.tensor([[0.0, 0], [1, 0], [0, 0]])),
    ],
)
def test_null_is_none_and_conditions_matter(make: Make, fields: Any, null: Tensor, a: Tensor, b: Tensor) -> None:
    net, (x, time) = awake(make(**fields)), draw(make)
    assert torch.equal(net(x, time, null), net(x, time))
    changed = (net(x, time, a) - net(x, time, b)).flatten(1).abs().amax(1)
    assert changed[1] > 1e-3 and changed[0] < 1e-6 and changed[2] < 1e-6
    assert (net(x, time, a) - net(x, time)).abs().max() > 1e-3


@conditions
def test_every_parameter_learns(make: Make, fields: dict[str, int], cond: Tensor) -> None:
    net, (x, time) = awake(make(**fields)), draw(make)
    net(x, time, cond if fields else None).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0, name
    if "classes" in fields:
        table = dict(net.named_parameters())["embedding.condition.table.weight"].grad
        assert table is not None and (table.abs().amax(1) > 0).tolist() == [True, False, False, True, True]


@conditions
def test_jvp_is_the_derivative(make: Make, fields: dict[str, int], cond: Tensor) -> None:
    net = awake(make(**fields)).double()
    (x, time), (dx, dtime) = (draw(make, seed=seed, dtype=torch.float64) for seed in (0, 1))
    c = (cond.double() if cond.is_floating_point() else cond) if fields else None

    def function(x: Tensor, time: Tensor) -> Tensor:
        y: Tensor = net(x, time, c)
        return y

    for tangent in ((dx, 0 * dtime), (0 * dx, dtime), (dx, dtime)):
        derivative = torch.func.jvp(function, (x, time), tangent)[1]
        h = 1e-7
        up, down = (function(x + s * h * tangent[0], time + s * h * tangent[1]) for s in (1, -1))
        assert ((up - down) / (2 * h) - derivative).abs().max() < 1e-6 * derivative.abs().max()


@every
def test_jvp_trains(make: Make) -> None:
    net, (x, time) = awake(make(classes=4)), draw(make)
    cond = torch.tensor([0, 1, -1])
    derivative = torch.func.jvp(lambda t: net(x, t, cond), (time,), (torch.ones_like(time),))[1]
    derivative.square().mean().backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for n, p in net.named_parameters() if "last.bias" not in n
    )


@every
def test_bf16_autocast_is_close_and_keeps_time_exact(make: Make) -> None:
    net, (x, time) = awake(make(classes=4)), draw(make)
    reference = net(x, time)
    with torch.autocast("cpu", torch.bfloat16):
        given = net(x, time)
    assert given.dtype == x.dtype and (given - reference).norm() < 0.05 * reference.norm()
    features = net.to(torch.bfloat16).embedding.features(time)
    assert features.dtype == torch.float32
    angle = 1000 * time.double()[:, None]
    assert torch.allclose(features[:, :1].double(), angle.cos(), atol=1e-4)


def test_channels_last_gives_the_same_numbers() -> None:
    net, (x, time) = awake(unet(classes=4)), draw(unet)
    reference = net(x, time)
    net = net.to(memory_format=torch.channels_last)
    given = net(x.to(memory_format=torch.channels_last), time)
    assert torch.allclose(given, reference, atol=1e-5, rtol=1e-5)


@every
def test_time_features_are_as_stated(make: Make) -> None:
    net = make()
    dim = net.embedding.features.dim
    time = torch.tensor([0.0, 0.123], dtype=torch.float64)
    k = torch.arange(dim // 2, dtype=torch.float64)
    angle = 1000 * time[:, None] / 10000 ** (2 * k / dim)
    features = net.embedding.features(time)
    assert torch.allclose(features, torch.cat([angle.cos(), angle.sin()], 1), atol=1e-12)


@conditions
def test_round_trip_through_the_registry(make: Make, fields: dict[str, int], cond: Tensor) -> None:
    net = make(**fields)
    again = build("net", spec(net))
    assert type(again) is type(net) and spec(again) == spec(net)
    again.load_state_dict(net.state_dict())


@every
def test_misuse_is_named(make: Make) -> None:
    x, time = draw(make)
    with pytest.raises(ConfigError, match="set its field classes=K or cond_dim=d"):
        make()(x, time, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ConfigError, match="labels or vectors, not both"):
        make(classes=2, cond_dim=2)
    for fields, cond in (({"classes": 2}, torch.zeros(3)), ({"cond_dim": 2}, torch.zeros(3, 1))):
        with pytest.raises(ConfigError, match="cond: given"):
            make(**fields)(x, time, cond)
    with pytest.raises(ConfigError, match="time: given shape"):
        make()(x, time[:2])
    with pytest.raises(ConfigError, match="given x of shape"):
        make()(x[:, :1], time)
    with pytest.raises(ConfigError, match="must be an integer >= "):
        make(width=0)
    with pytest.raises(ConfigError, match="has no field 'widht': did you mean 'width'"):
        make(widht=8)


@pytest.mark.parametrize("size", [1, 7, 10, 28])
def test_every_size_works(size: int) -> None:
    net = awake(unet(size=size, multipliers=(1, 2, 2), attention=(), blocks=2, out_channels=3))
    x = torch.randn(2, 2, size, size)
    assert net(x, torch.rand(2)).shape == (2, 3, size, size)


def test_unknown_attention_height_is_refused() -> None:
    with pytest.raises(ConfigError, match="have heights 32, 16, 8"):
        UNet(size=32)


def test_dropout_only_in_training() -> None:
    net, (x, time) = awake(unet(dropout=0.5)), draw(unet)
    assert torch.equal(net(x, time), net(x, time))
    net.train()
    assert not torch.equal(net(x, time), net(x, time))


@every
def test_attention_and_depth_reach_everywhere(make: Make) -> None:
    net, (x, time) = awake(make()), draw(make, n=1)
    jacobian = torch.func.jacrev(lambda x: net(x, time).flatten())(x)
    assert (jacobian.abs() > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("make", [mlp, unet])
def test_compiles_whole(make: Make) -> None:
    net, (x, time) = awake(make(classes=4)), draw(make)
    compiled: Any = torch.compile(net, fullgraph=True)
    for cond in (None, torch.tensor([0, 1, -1])):
        assert torch.allclose(compiled(x, time, cond), net(x, time, cond), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "wrong", [{"dropout": "abc"}, {"multipliers": 3}, {"attention": 7}, {"width": 1.5}, {"channels": "two"}], ids=str
)
def test_arguments_of_the_wrong_type_are_named(wrong: dict[str, object]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"UNet.{name}: given"):
        UNet(**wrong)  # type: ignore[arg-type]
    assert UNet(width=4, multipliers=[1, 2], attention=[], dropout="1e-1").middle.dropout.p == 0.1  # type: ignore[arg-type]
