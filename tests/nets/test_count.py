"""Parameters and operations: counted by hand, against the published, and as the docstrings' tables say."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fokker.errors import ConfigError
from fokker.nets import DiT, UNet, attention, count
from fokker.nets.attention import SelfAttention
from fokker.registry import build, spec
from fokker.train.recipe import read


class Timeless(nn.Module):
    """A layer as a net that does not mind the time."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y


def test_layers_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    assert count(Timeless(nn.Linear(3, 5)), (3,)) == (3 * 5 + 5, 2 * 3 * 5)
    convolution = nn.Conv2d(2, 7, 3, padding=1, stride=2)
    assert count(Timeless(convolution), (2, 10, 6)) == (2 * 7 * 9 + 7, 2 * 2 * 7 * 9 * 5 * 3)
    n, width = 140, 12  # four projections, then N^2 products with the keys and with the values
    by_hand = 2 * n * width * 4 * width + 2 * 2 * n * n * width
    for fused in (False, True):
        monkeypatch.setattr(attention, "fuses", lambda *_, fused=fused: fused)
        assert count(Timeless(SelfAttention(width, 3)), (n, width)) == (4 * width * (width + 1), by_hand)


def test_frozen_parameters_count() -> None:
    net = Timeless(nn.Linear(3, 5))
    net.layer.weight.requires_grad_(False)
    assert count(net, (3,)) == (3 * 5 + 5, 2 * 3 * 5) and not net.layer.weight.requires_grad


def test_the_net_is_left_as_it_is() -> None:
    net = DiT(1, 4, width=16, depth=1, heads=2).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    counted = count(net, (1, 4, 4))
    assert net.training and all(p.requires_grad and p.grad is None for p in net.parameters())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    with torch.device("meta"):
        assert count(DiT(1, 4, width=16, depth=1, heads=2), (1, 4, 4)) == counted
    assert counted.parameters == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("kind", "embedding"), [({"tokens": 7}, 0), ({"cond_dim": 3}, 2 * 5 * 3 * 16)])
def test_sequences_are_counted_at_full_length(kind: dict[str, int], embedding: int) -> None:
    fields: dict[str, Any] = {"channels": 1, "size": 4, "width": 16, "depth": 3, "heads": 2}
    n, m, width = 4, 1 + 5, 16
    cross = 2 * n * width * width * 2 + 2 * m * width * 2 * width + 2 * 2 * n * m * width
    more = count(DiT(**fields, **kind, cond_length=5), (1, 4, 4)).flops - count(DiT(**fields), (1, 4, 4)).flops
    assert more == 3 * cross + embedding


# Peebles and Xie 2023, tables 1 and 4: multiply-adds ("Gflops") and parameters, at 32 x 32 x 4 and patches of 2.
@pytest.mark.parametrize(
    ("name", "millions", "multiply_adds"),
    [("s", 33, 6.06), ("b", 130, 23.01), ("l", 458, 80.71), ("xl", 675, 118.64)],
)
def test_dit_presets_are_the_published(name: str, millions: float, multiply_adds: float) -> None:
    with torch.device("meta"):
        net = DiT.preset(name, channels=4, size=32, classes=1000, out_channels=8)
    parameters, flops = count(net, (4, 32, 32))
    assert abs(parameters / 1e6 / millions - 1) < 0.005
    assert abs(flops / 2e9 / multiply_adds - 1) < 0.002


def rows(cls: Any) -> dict[str, tuple[str, str]]:
    """preset: (millions of parameters, GFLOP), as the docstring's table says."""
    found = re.findall(r"^ *\| (\w+) \|.*\| ([\d.]+) M \| ([\d.]+) \|$", cls.__doc__, re.MULTILINE)
    return {name: (parameters, flops) for name, parameters, flops in found}


@pytest.mark.parametrize("cls", [UNet, DiT])
def test_the_tables_are_true(cls: Any) -> None:
    table = rows(cls)
    with pytest.raises(ConfigError, match=f"unknown preset 'xxs'.*allowed: {', '.join(sorted(table))}$"):
        cls.preset("xxs")
    more = {"channels": 3} if cls is UNet else {"channels": 4, "classes": 1000, "out_channels": 8}
    for name, said in table.items():
        with torch.device("meta"):
            net = cls.preset(name, size=32, **more)
        for value, text in zip(count(net, net.shape), (said[0] + "e6", said[1] + "e9"), strict=True):
            digits = len(text.split("e")[0].replace(".", "").lstrip("0"))
            assert float(f"{value:.{digits - 1}e}") == float(text), (name, value, text)


def test_a_preset_is_a_shorthand_in_recipes() -> None:
    net = build("net", {"kind": "unet", "preset": "xs", "channels": 3, "size": 28, "width": 16})
    written = spec(net)
    assert "preset" not in written and written["width"] == 16 and written["size"] == 28
    assert written["multipliers"] == [1, 2] and written["attention"] == [14]
    assert written == spec(UNet(3, 16, (1, 2), attention=(14,), size=28))
    with pytest.raises(ConfigError, match="MLP has no field 'preset'"):
        build("net", {"kind": "mlp", "dim": 2, "preset": "s"})
    recipe = read("fashion", ["net={kind: unet, preset: s}"])
    model = recipe.fresh(recipe.data.load("train"))
    found = recipe.resolved(model)["net"]
    assert found == spec(UNet.preset("s", channels=1, size=28, classes=10)) and found["attention"] == [7]
