"""Sequences as conditions: padding, null, order, guidance and what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fokker.denoiser import NetDenoiser, null_like
from fokker.errors import ConfigError
from fokker.guidance import CFG
from fokker.nets import MLP, Context, DiT, UNet
from fokker.objectives import Denoising

TOKENS = torch.tensor([[2, 0, 1], [4, -1, -1], [-1, -1, -1]])


def build(kind: str, **fields: Any) -> Any:
    """A small net with every number perturbed, in float64."""
    if kind == "dit":
        net: Any = DiT(channels=2, size=4, width=16, depth=2, heads=2, **fields)
    else:
        net = UNet(channels=2, width=8, multipliers=(1, 2), attention=(4, 2), size=4, **fields)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return net.double().eval()


def given() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64)
    return x, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)


def vectors() -> Tensor:
    table = torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    cond = table[TOKENS.clamp(min=0)]
    cond[TOKENS < 0] = torch.nan
    return cond


SEQUENCES = [({"tokens": 5, "cond_length": 6}, TOKENS), ({"cond_dim": 3, "cond_length": 6}, vectors())]
both = pytest.mark.parametrize("kind", ["dit", "unet"])
sequences = pytest.mark.parametrize(("fields", "cond"), SEQUENCES, ids=["tokens", "vectors"])


@both
@sequences
def test_padding_is_not_seen(kind: str, fields: dict[str, int], cond: Tensor) -> None:
    net, (x, time) = build(kind, **fields), given()
    reference = net(x, time, cond)
    longer = torch.cat([cond, null_like(cond)], 1)
    assert (net(x, time, longer) - reference).abs().max() < 1e-12 * reference.abs().max()
    alone = net(x[1:2], time[1:2], cond[1:2, :1])
    assert (alone - reference[1:2]).abs().max() < 1e-12 * reference.abs().max()
    if cond.is_floating_point():  # one NaN hides the whole vector, whatever else is in it
        partly = torch.where(cond.isnan(), 7.0, cond)
        partly[..., 1] = cond[..., 1]
        assert torch.equal(net(x, time, partly), reference)


@both
@sequences
def test_null_is_none_and_order_matters(kind: str, fields: dict[str, int], cond: Tensor) -> None:
    net, (x, time) = build(kind, **fields), given()
    null, scale = net(x, time), net(x, time, cond).abs().max()
    assert (net(x, time, null_like(cond)) - null).abs().max() < 1e-12 * scale
    change = (net(x, time, cond) - null).flatten(1).abs().amax(1) / scale
    assert change[2] < 1e-12 and (change[:2] > 1e-3).all()
    assert (net(x, time, cond.roll(1, 1))[0] - net(x, time, cond)[0]).abs().max() > 1e-3 * scale


@sequences
def test_gradients_reach_what_is_there_only(fields: dict[str, int], cond: Tensor) -> None:
    net, (x, time) = build("dit", **fields), given()
    net(x, time, cond).square().sum().backward()
    context = net.embedding.context
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert (context.position.grad.abs().amax(1) > 0).tolist() == [True] * 3 + [False] * 3
    if "tokens" in fields:
        assert (context.embed.weight.grad.abs().amax(1) > 0).tolist() == [True, True, True, False, True]


def test_a_sequence_by_value() -> None:
    context = Context(4, 3, tokens=5)
    tokens, shown = context(TOKENS[:2], 2)
    embedded = torch.nn.functional.layer_norm(context.embed.weight[[2, 0, 1]] + context.position, (4,))
    assert torch.allclose(tokens[0], torch.cat([context.null[None], embedded]), atol=1e-6)
    assert shown.tolist() == [[True] * 4, [True, True, False, False]]


@both
def test_guidance_and_training_drop_sequences(kind: str) -> None:
    denoiser = NetDenoiser(build(kind, tokens=5, cond_length=6), "flow", shape=(2, 4, 4))
    x, s = given()
    with_cond, without = denoiser(x, s, TOKENS).velocity, denoiser(x, s).velocity
    guided = CFG(denoiser.requires_grad_(False), 3.0)(x, s, TOKENS).velocity
    assert torch.allclose(guided, 3 * with_cond - 2 * without, atol=1e-11 * float(guided.abs().max()))
    losses = [Denoising(cond_dropout=p).terms(denoiser, x, c, seed=1).loss for p, c in ((0.999, TOKENS), (0.0, None))]
    assert torch.allclose(*losses, rtol=1e-10)


@pytest.mark.slow
def test_compiles_whole_with_the_fused_kernel_and_with_tangents() -> None:
    net = DiT(1, 24, width=16, depth=1, heads=2, tokens=5, cond_length=3)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn(p.shape))
    x, time = torch.randn(3, 1, 24, 24), torch.rand(3)
    dx = torch.randn_like(x)

    def derivative(x: Tensor, time: Tensor, cond: Tensor) -> Tensor:
        change: Tensor = torch.func.jvp(lambda x: net(x, time, cond), (x,), (dx,))[1]
        return change

    for function in (net, derivative):
        compiled: Any = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert torch.allclose(compiled(x, time, TOKENS), function(x, time, TOKENS), atol=1e-4, rtol=1e-4)


def test_misuse_is_named() -> None:
    x, time = given()
    net = build("dit", tokens=5, cond_length=3)
    for cond in (TOKENS.double(), TOKENS[:2], TOKENS[:, 0], torch.cat([TOKENS, TOKENS], 1), TOKENS[..., None]):
        with pytest.raises(ConfigError, match=r"must be int64 of \(3, L\), L <= cond_length = 3"):
            net(x, time, cond)
    with pytest.raises(ConfigError, match=r"given the token 5; allowed: -1 \(padding\) to 4"):
        net(x, time, TOKENS + 1)
    with pytest.raises(ConfigError, match=r"must be float of \(3, L, 3\), L <= cond_length = 6"):
        build("unet", **SEQUENCES[1][0])(x, time, vectors()[..., :2])
    for fields, says in (
        ({"tokens": 5}, "tokens=5 without cond_length"),
        ({"cond_length": 5}, "cond_length: given 5 without tokens=V or cond_dim=d"),
        ({"tokens": 5, "cond_dim": 2, "cond_length": 3}, "given cond_dim=2 and tokens=5: a net takes"),
        ({"classes": 5, "cond_length": 3}, "a label is no sequence"),
        ({"tokens": 5, "classes": 2, "cond_length": 3}, "given classes=2 and tokens=5"),
        ({"tokens": -5, "cond_length": 3}, "net.tokens: given -5, must be an integer >= 0"),
    ):
        with pytest.raises(ConfigError, match=says):
            build("unet", **fields)
    with pytest.raises(ConfigError, match="cond_length=3 is read there: name a height"):
        UNet(tokens=5, cond_length=3, attention=())
    with pytest.raises(ConfigError, match="MLP has no field 'tokens'"):
        MLP(2, tokens=5)  # type: ignore[call-arg]
