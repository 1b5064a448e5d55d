"""Samples: bytes to numbers and back, and the picture of a batch."""

import numpy as np
import pytest
import torch

from fokker import noise as philox
from fokker.data import Samples, grid_image, to_uint8
from fokker.errors import ConfigError


def test_take_maps_bytes_and_to_uint8_undoes_it() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1)
    samples = Samples(values, torch.arange(256))
    x, labels = samples.take(torch.tensor([255, 0, 51]))
    assert x.dtype == torch.float32 and labels is not None and labels.tolist() == [255, 0, 51]
    assert torch.allclose(x.flatten(), torch.tensor([1.0, -1.0, -0.6]))
    assert torch.equal(to_uint8(samples.take(torch.arange(256))[0]), values)
    assert to_uint8(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]
    assert samples.is_image and samples.shape == (1, 1, 1) and len(samples) == 256


def test_take_leaves_numbers_alone() -> None:
    values = torch.tensor([[3.0, -2.0], [0.5, 9.0]])
    x, labels = Samples(values).take(torch.tensor([1]))
    assert torch.equal(x, values[1:]) and labels is None and not Samples(values).is_image


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (torch.zeros(2, 3, dtype=torch.uint8), None),
        (torch.zeros(2, 3, dtype=torch.float64), None),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(2, 3), torch.zeros(2)),
    ],
)
def test_misfits_are_refused(values: torch.Tensor, labels: torch.Tensor | None) -> None:
    with pytest.raises(ConfigError, match="Samples"):
        Samples(values, labels)


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_places_tiles_with_gaps(channels: int) -> None:
    x = torch.linspace(-0.5, 1, 3).view(3, 1, 1, 1).expand(3, channels, 4, 5)
    sheet = np.asarray(grid_image(x, columns=2))
    assert sheet.shape[:2] == (4 * 2 + 2, 5 * 2 + 2) and sheet.ndim == (2 if channels == 1 else 3)
    assert (sheet[:4, :5] == 64).all() and (sheet[:4, 7:] == 159).all() and (sheet[6:, :5] == 255).all()
    assert (sheet[4:6] == 0).all() and (sheet[:, 5:7] == 0).all() and (sheet[6:, 7:] == 0).all()
    assert grid_image(x, columns=9).size == (5 * 3 + 4, 4)
    with pytest.raises(ConfigError, match="grid_image"):
        grid_image(x[:, :, 0], 2)


def test_flip_mirrors_the_rows_that_the_key_says() -> None:
    values = torch.arange(4000, dtype=torch.uint8).view(1000, 1, 1, 4)
    samples = Samples(values, flip=True)
    x, _ = samples.take(torch.arange(1000))
    positions = torch.arange(1000)
    flipped = samples.augment(x, seed=3, step=5, positions=positions)
    u = philox.uniform(3, positions, (1,), draw=5 << 8, domain="augmentation")[:, 0]
    expected = torch.where((u < 0.5)[:, None, None, None], x[..., [3, 2, 1, 0]], x)
    assert torch.equal(flipped, expected) and 440 < int((u < 0.5).sum()) < 560
    # A row's fate follows its place in the global batch, not its place in this call.
    part = samples.augment(x[600:], seed=3, step=5, positions=positions[600:])
    assert torch.equal(part, flipped[600:])
    for seed, step in ((4, 5), (3, 6)):
        assert not torch.equal(samples.augment(x, seed=seed, step=step, positions=positions), flipped)
    assert Samples(values).augment(x, seed=3, step=5, positions=positions) is x
    with pytest.raises(ConfigError, match=r"Samples\.flip: only images"):
        Samples(torch.zeros(2, 3), flip=True)


@pytest.mark.parametrize("cond", [torch.randn(3, 4), torch.randn(3, 2, 4), torch.arange(6).view(3, 2)])
def test_conditions_are_taken_like_labels(cond: torch.Tensor) -> None:
    values = torch.randn(3, 5)
    x, told = Samples(values, cond=cond).take(torch.tensor([2, 0]))
    assert torch.equal(x, values[[2, 0]]) and told is not None and torch.equal(told, cond[[2, 0]])
    assert told.dtype == cond.dtype


@pytest.mark.parametrize(
    "cond",
    [
        *(torch.zeros(shape) for shape in ((3,), (2, 4), (3, 1, 1, 1))),
        *(torch.zeros(shape, dtype=torch.int64) for shape in ((3,), (3, 2, 2))),
        torch.zeros(3, 2, dtype=torch.float64),
        torch.zeros(3, 2, dtype=torch.int32),
    ],
)
def test_conditions_that_are_refused(cond: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match=r"Samples\.cond: given .* for 3 samples"):
        Samples(torch.zeros(3, 5), cond=cond)
    with pytest.raises(ConfigError, match="one or the other"):
        Samples(torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64), cond=torch.zeros(3, 2))
