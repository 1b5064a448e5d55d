"""The transformer: patches by value, adaLN-zero, its formula, symmetries, refusals, and learning what is known."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, mse_loss

from fokker.denoiser import NetDenoiser
from fokker.errors import ConfigError
from fokker.exact import Gaussian
from fokker.nets import DiT
from fokker.nets.dit import Block, turns
from fokker.objectives import Denoising
from fokker.process import Flow


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("axes", [1, 2])
def test_patches_go_out_where_they_came_in(axes: int) -> None:
    """With the identity at both ends and sleeping blocks the net is a normalisation of every patch."""
    channels, patch, size = 3, 2, 6
    unit = channels * patch**axes
    net = DiT(channels, size, patch, width=unit, depth=1, heads=1, positions="learned", axes=axes).double()
    with torch.no_grad():
        for layer in (net.first, net.last):
            layer.weight.copy_(torch.eye(unit))
            layer.bias.zero_()
        assert net.position is not None
        net.position.zero_()
        net.modulation.bias.copy_(torch.tensor([0.3, 0.5]).repeat_interleave(unit))
    x = normal(2, channels, *[size] * axes)
    y = net(x, torch.tensor(0.3))
    for row in range(0, size, patch):
        for column in range(0, size if axes == 2 else 1, patch):
            place = (slice(None), slice(None), slice(row, row + patch), slice(column, column + patch))[: axes + 2]
            cut = x[place].flatten(1)
            assert torch.allclose(y[place].flatten(1), 0.3 + 1.5 * layer_norm(cut, (unit,), eps=1e-6), atol=1e-7)


def test_a_fresh_block_is_the_identity_and_an_awake_one_its_formula() -> None:
    block = Block(8, 2, 16, 0.0, False).double()
    h, embedding = normal(2, 5, 8), normal(2, 8, seed=1)
    assert torch.equal(block(h, embedding, None, None), h)
    with torch.no_grad():
        block.modulation.weight.copy_(normal(48, 8, seed=2))
        block.modulation.bias.copy_(normal(48, seed=3))
    told = (embedding @ block.modulation.weight.T + block.modulation.bias).reshape(2, 6, 1, 8)
    y = h + told[:, 2] * block.mix((1 + told[:, 1]) * layer_norm(h, (8,), eps=1e-6) + told[:, 0])
    inner = block.inner((1 + told[:, 4]) * layer_norm(y, (8,), eps=1e-6) + told[:, 3])
    y = y + told[:, 5] * block.outer(gelu(inner, approximate="tanh"))
    assert torch.allclose(block(h, embedding, None, None), y, atol=1e-12)


def awake(net: DiT) -> DiT:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return net.double().eval()


def test_positions_alone_break_the_symmetry_of_patches() -> None:
    fields = {"channels": 1, "size": 6, "patch": 2, "width": 16, "depth": 2, "heads": 2}
    learned, rotary = (awake(DiT(**fields, positions=name)) for name in ("learned", "rotary"))
    x, time = normal(1, 1, 6, 6), torch.tensor(0.4)

    def swapped(x: Tensor) -> Tensor:
        """The first and last row of patches exchanged."""
        return torch.cat([x[:, :, 4:], x[:, :, 2:4], x[:, :, :2]], dim=2)

    def gap(net: DiT) -> float:
        return float((net(swapped(x), time) - swapped(net(x, time))).detach().abs().max())

    assert gap(learned) > 1e-2 and gap(rotary) > 1e-2
    assert learned.position is not None and rotary.position is None
    with torch.no_grad():
        learned.position.zero_()
    assert gap(learned) < 1e-12


def test_angles_survive_a_cast_and_stay_out_of_files() -> None:
    net = DiT(1, 8, width=16, depth=1, heads=2)
    angle = turns(2, 4, 8)
    for cast in (net.bfloat16(), net.double()):
        assert cast.turn is not None
        assert torch.equal(cast.turn.view(torch.float32), torch.stack([angle.cos(), angle.sin()]))
    assert not any("turn" in name for name in net.state_dict())


def test_linear_layers_start_after_xavier() -> None:
    net = DiT(1, 4, width=64, depth=2, heads=2)
    for block in net.blocks:
        for layer, ends in ((block.mix.qkv, 256), (block.mix.out, 128), (block.inner, 320), (block.outer, 320)):
            bound = (6 / ends) ** 0.5
            assert 0.95 * bound < layer.weight.abs().max() <= bound and (layer.bias == 0).all()


def test_dropout_only_in_training() -> None:
    net = awake(DiT(1, 4, width=16, depth=1, heads=2, dropout=0.5))
    x, time = normal(2, 1, 4, 4), torch.tensor(0.4)
    assert torch.equal(net(x, time), net(x, time))
    net.train()
    assert not torch.equal(net(x, time), net(x, time))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"size": 28, "patch": 5}, "patch: given 5, must divide size=28: 1, 2, 4, 7, 14, 28"),
        ({"width": 30, "heads": 4}, "width: given 30, must be a multiple of 16 with heads=4 and rotary"),
        ({"width": 24, "heads": 4}, "must be a multiple of 16"),
        ({"width": 30, "heads": 4, "positions": "learned"}, "must be a multiple of 4 with heads=4 and learned"),
        ({"positions": "sines"}, "DiT.positions: given 'sines', must be 'rotary' or 'learned'"),
        ({"axes": 3}, "axes: given 3, must be 1"),
        ({"dropout": 1.0}, "dropout: given 1.0"),
        ({"mlp_ratio": 0.0}, "mlp_ratio: given 0.0"),
        ({"depth": 0}, "depth: given 0"),
    ],
    ids=str,
)
def test_misuse_is_named(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        DiT(**fields)  # type: ignore[arg-type]


def test_it_learns_a_gaussian() -> None:
    """Pixels of known mean and variance: the minimiser is linear in x, and known."""
    mean = torch.linspace(-1, 1, 16)
    law = Gaussian(mean, torch.diag(torch.tensor([0.1, 0.6] * 8).square()))
    net = DiT(1, 4, patch=2, width=32, depth=2, heads=2)
    denoiser = NetDenoiser(net, "flow", shape=(1, 4, 4))
    optimiser = torch.optim.Adam(net.parameters(), lr=4e-3)
    objective = Denoising.cfm(stratified=True)
    data = law.sample(4096, seed=0).float()
    for step in range(200):
        x0 = data[torch.arange(128 * step, 128 * (step + 1)) % 4096].reshape(-1, 1, 4, 4)
        loss = objective(denoiser, x0, seed=0, step=step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    exact, net = law.denoiser(Flow()), net.eval()
    generator = torch.Generator().manual_seed(3)
    for t in (0.2, 0.5, 0.8):
        x0 = law.sample(512, seed=1)
        x = (1 - t) * x0 + t * torch.randn(512, 16, generator=generator, dtype=torch.float64)
        true = exact(x, t).velocity
        found = denoiser(x.float().reshape(-1, 1, 4, 4), t).velocity.flatten(1).double()
        assert mse_loss(found, true) < 0.06 * true.square().mean()


def test_it_learns_what_a_sequence_says() -> None:
    """The level asked for is the order of two tokens, and nothing else tells it: (0, 1) is 1, (1, 0) is -1, null 0."""
    net = DiT(1, 4, width=32, depth=2, heads=2, tokens=2, cond_length=2)
    optimiser = torch.optim.Adam(net.parameters(), lr=4e-3)
    cond = torch.tensor([[0, 1], [1, 0], [-1, -1]]).repeat(8, 1)
    target = torch.tensor([1.0, -1.0, 0.0]).repeat(8).reshape(-1, 1, 1, 1).expand(24, 1, 4, 4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        x, time = torch.randn(24, 1, 4, 4, generator=generator), torch.rand(24, generator=generator)
        loss = mse_loss(net(x, time, cond), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.05
