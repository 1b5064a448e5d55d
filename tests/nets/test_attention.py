"""Attention by value: torch's own, both ways of computing it, rotary positions, masks and derivatives."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fokker.errors import ConfigError
from fokker.nets import attend, attention
from fokker.nets.attention import CrossAttention, SelfAttention, fuses, rotate
from fokker.nets.dit import turns


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def inputs(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    return normal(2, 2, n, 4), normal(2, 2, m, 4, seed=1), normal(2, 2, m, 4, seed=2)


@pytest.mark.parametrize("masked", [False, True])
def test_both_ways_are_the_formula(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (x.requires_grad_() for x in inputs(5, 7))
    mask = torch.tensor([[True, False, True, True, False, True, False], [False] * 6 + [True]]) if masked else None
    direction, results = normal(2, 2, 5, 4, seed=3), []
    for way in (True, False):
        monkeypatch.setattr(attention, "fuses", lambda *_, way=way: way)
        y = attend(q, k, v, mask)
        results.append([y, *torch.autograd.grad((y * direction).sum(), (q, k, v))])
    for fused, written in zip(*results, strict=True):
        assert (fused - written).abs().max() < 1e-12 * written.abs().max()
    for b, h, i in ((0, 1, 2), (1, 0, 4)):
        seen = [j for j in range(7) if mask is None or mask[b, j]]
        weight = torch.stack([(q[b, h, i] @ k[b, h, j] / 2).exp() for j in seen])  # sqrt(d) = 2
        expected = sum(w * v[b, h, j] for w, j in zip(weight / weight.sum(), seen, strict=True))
        assert torch.allclose(results[1][0][b, h, i], expected, atol=1e-13)


def test_the_fused_kernel_is_for_many_tokens_and_never_for_tangents() -> None:
    few, many = torch.zeros(1, 1, 128, 4), torch.zeros(1, 1, 129, 4)
    assert not fuses(few, few, few) and fuses(many, many, many) and not fuses(many, few[:, :, :9], few[:, :, :9])
    half, huge = many.bfloat16(), torch.zeros(1, 1, 1025, 4, dtype=torch.bfloat16)
    assert not fuses(half, half, half) and fuses(huge, huge, huge)
    seen: list[bool] = []

    def look(q: Tensor, k: Tensor) -> Tensor:
        seen.append(fuses(q, k, k))
        return q + k

    torch.func.jvp(lambda q: look(q, many), (many,), (many,))
    torch.func.jvp(lambda k: look(many, k), (many,), (many,))
    torch.func.jvp(lambda q: look(many, many) + q, (many,), (many,))  # a tangent elsewhere is no matter
    assert seen == [False, False, True]


def test_derivatives_where_the_kernel_is_fused() -> None:
    q, k, v = inputs(130, 130)
    dq, dk, dv = (normal(*q.shape, seed=seed) for seed in (4, 5, 6))
    derivative = torch.func.jvp(attend, (q, k, v), (dq, dk, dv))[1]
    h = 1e-6
    up, down = (attend(q + s * dq, k + s * dk, v + s * dv) for s in (h, -h))
    assert ((up - down) / (2 * h) - derivative).abs().max() < 1e-7 * derivative.abs().max()
    with sdpa_kernel(SDPBackend.MATH):  # what the docstring says of second derivatives
        assert fuses(q, k, v)
        x = q[:1, :1].clone().requires_grad_()
        (first,) = torch.autograd.grad(attend(x, k[:1, :1], v[:1, :1]).square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad((first * dq[:1, :1]).sum(), x)

        def gradient(x: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            return torch.autograd.grad(attend(x, k[:1, :1], v[:1, :1]).square().sum(), x)[0]

        numeric = (gradient(x + h * dq[:1, :1]) - gradient(x - h * dq[:1, :1])) / (2 * h)
    assert (second - numeric).abs().max() < 1e-6 * second.abs().max()


def reference(layer: Any, width: int, context: int | None = None) -> nn.MultiheadAttention:
    """torch's module with a layer's weights."""
    theirs = nn.MultiheadAttention(width, layer.heads, kdim=context, vdim=context, batch_first=True).double()
    with torch.no_grad():
        if context is None:
            weights, bias = [layer.qkv.weight], layer.qkv.bias
            theirs.in_proj_weight.copy_(weights[0])
        else:
            key, value = layer.kv.weight.chunk(2)
            theirs.q_proj_weight.copy_(layer.q.weight)
            theirs.k_proj_weight.copy_(key)
            theirs.v_proj_weight.copy_(value)
            bias = torch.cat([layer.q.bias, layer.kv.bias])
        theirs.in_proj_bias.copy_(bias)
        theirs.out_proj.load_state_dict(layer.out.state_dict())
    return theirs


def test_the_layers_are_torchs() -> None:
    h, tokens = normal(2, 5, 12), normal(2, 4, 6, seed=1)
    mask = torch.tensor([[True, True, False, True], [True, False, False, False]])
    own = SelfAttention(12, 3).double()
    assert torch.allclose(own(h), reference(own, 12)(h, h, h)[0], atol=1e-13)
    cross = CrossAttention(12, 3, 6).double()
    assert (cross(h, (tokens, mask)) == 0).all()
    nn.init.normal_(cross.out.weight)
    nn.init.normal_(cross.out.bias)
    expected = reference(cross, 12, 6)(h, tokens, tokens, key_padding_mask=~mask)[0]
    assert torch.allclose(cross(h, (tokens, mask)), expected, atol=1e-13)
    with pytest.raises(ConfigError, match="heads: given 5, must divide the width 12"):
        SelfAttention(12, 5)


def test_rotary_angles_and_turns_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    angle = turns(1, 5, 6)
    assert torch.allclose(angle[3], 3 * 10000.0 ** -torch.tensor([0.0, 1 / 3, 2 / 3]), rtol=1e-6)
    angle = turns(2, 4, 8)  # row 2, column 3 of 4 x 4: two frequencies for each
    assert torch.allclose(angle[2 * 4 + 3], torch.tensor([2.0, 0.2, 3.0, 0.3]), rtol=1e-6)
    x, turn = normal(3, 16, 2, 5, 8), (angle.double().cos(), angle.double().sin())
    y, a, b = rotate(x, turn), x[2, 11, 1, 3, 6], x[2, 11, 1, 3, 7]
    cos, sin = torch.tensor(0.3).cos(), torch.tensor(0.3).sin()
    expected = torch.stack([a * cos - b * sin, b * cos + a * sin])
    assert torch.allclose(y[2, 11, 1, 3, 6:], expected, atol=1e-6) and torch.equal(y[:, 0], x[:, 0])
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert torch.allclose(rotate(x, turn), y, atol=1e-13)
    half = rotate(x.bfloat16(), (angle.cos(), angle.sin()))
    assert half.dtype == torch.bfloat16 and torch.allclose(half.double(), y, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("axes", [1, 2])
def test_rotary_logits_depend_on_relative_positions_only(axes: int) -> None:
    grid, dim = 6, 8
    angle = turns(axes, grid, dim).double()
    q, k = normal(dim), normal(dim, seed=1)
    at_every_place = [rotate(x.repeat(1, grid**axes, 1), (angle.cos(), angle.sin()))[0] for x in (q, k)]
    logits = (at_every_place[0] @ at_every_place[1].T).reshape([grid] * (2 * axes))
    if axes == 1:
        logits = logits[:, None, :, None]
    rows, columns = logits.shape[:2]
    by_offset: dict[tuple[int, int], list[float]] = {}
    for i, j, m, n in torch.cartesian_prod(*(torch.arange(s) for s in logits.shape)).tolist():
        by_offset.setdefault((m - i, n - j), []).append(float(logits[i, j, m, n]))
    assert len(by_offset) == (2 * rows - 1) * (2 * columns - 1)
    assert all(max(values) - min(values) < 1e-5 for values in by_offset.values())  # angles are float32
    means = sorted(values[0] for values in by_offset.values())
    assert min(b - a for a, b in pairwise(means)) > 1e-5  # and no two offsets are alike
    assert abs(by_offset[0, 0][0] - float(q @ k)) < 1e-12
