"""The U-Net's blocks by value: modulation, self-attention and cross-attention over pixels, images and signals."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import group_norm, silu

from fokker.nets import UNet
from fokker.nets.unet import Attention, Block


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def awake(block: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in block.double().parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))


@pytest.mark.parametrize("axes", [1, 2])
def test_a_block_is_its_formula(axes: int) -> None:
    block = Block(4, 8, (axes, 5, 0, 0.0), False)
    awake(block)
    h, embedding = normal(2, 4, *[3] * axes), normal(2, 5, seed=2)
    told = (embedding @ block.modulation.weight.T + block.modulation.bias).reshape(2, 2, 8, *[1] * axes)
    y = block.conv1(silu(group_norm(h, 1, block.norm1.weight, block.norm1.bias)))
    y = group_norm(y, 2, block.norm2.weight, block.norm2.bias) * (1 + told[:, 0]) + told[:, 1]
    y = block.skip(h) + block.conv2(silu(y))
    assert torch.allclose(block(h, embedding, None), y, atol=1e-12)


def test_attention_reads_pixels_then_the_context() -> None:
    layer = Attention(8, 6)
    awake(layer)
    assert layer.cross is not None and layer.cross_norm is not None
    h, tokens, mask = normal(2, 8, 3, 3), normal(2, 4, 6, seed=2), torch.tensor([[True] * 4, [True, False] * 2])

    def pixels(x: Tensor) -> Tensor:
        return torch.stack([x[:, :, i, j] for i in range(3) for j in range(3)], dim=1)

    y = pixels(h) + layer.mix(pixels(layer.norm(h)))
    image = torch.stack([y[:, k] for k in range(9)], dim=2).reshape(2, 8, 3, 3)
    y = y + layer.cross(pixels(layer.cross_norm(image)), (tokens, mask))
    assert torch.allclose(pixels(layer(h, (tokens, mask))), y, atol=1e-12)


def test_a_signal_is_an_image_one_pixel_wide() -> None:
    """With kernels that have nothing beside their middle column the columns of an image are signals."""
    fields = {"channels": 2, "width": 8, "multipliers": (1, 2), "attention": (), "size": 6}
    line, image = UNet(**fields, axes=1), UNet(**fields)
    awake(line)
    with torch.no_grad():
        for (name, p), (_, q) in zip(line.named_parameters(), image.double().named_parameters(), strict=True):
            if p.ndim == 3:
                q.zero_()
                q[..., q.shape[-1] // 2].copy_(p)
            else:
                q.copy_(p)
            assert p.ndim == q.ndim or p.ndim == 3, name
    x, time = normal(2, 2, 6), torch.tensor(0.3)
    y = image(x[..., None].expand(-1, -1, -1, 6), time)
    assert torch.allclose(y, line(x, time)[..., None].expand_as(y), atol=1e-12)
