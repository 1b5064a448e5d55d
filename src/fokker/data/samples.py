"""What every data source gives: all samples in memory, and the way from bytes to numbers and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from .. import noise as philox
from ..errors import ConfigError
from .codec import Codec

__all__ = ["Data", "Samples", "grid_image", "to_uint8"]


@dataclass(frozen=True, eq=False)
class Samples:
    """N samples, their labels and the labels' names, or their conditions.

    Args:
        values: (N, *event); uint8 (N, C, H, W) for images, float32 for everything else.
        labels: (N,) int64, or None.
        classes: the name of every label; empty where there are none.
        codec: what turns samples of a model back into the user's values, or None where they are that already.
        flip: whether training mirrors images left to right, each with probability 1/2 (`augment`).
        cond: what a sample is conditioned on in place of a label: float32 (N, d) vectors, float32 (N, L, d) sequences
            of vectors, or int64 (N, L) sequences of tokens.

    Raises:
        ConfigError: dtypes or lengths do not fit together, or flip without images.
    """

    values: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    codec: Codec | None = None
    flip: bool = False
    cond: Tensor | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.values.shape)
        if self.values.dtype not in (torch.uint8, torch.float32) or (self.is_image and len(shape) != 4):
            raise ConfigError(
                f"Samples.values: given {self.values.dtype} {shape}, must be float32 or uint8 (N, C, H, W)"
            )
        if self.labels is not None and (self.labels.dtype != torch.int64 or self.labels.shape != shape[:1]):
            given = f"{self.labels.dtype} {tuple(self.labels.shape)}"
            raise ConfigError(f"Samples.labels: given {given}, must be int64 of shape {shape[:1]}")
        if self.flip and not self.is_image:
            raise ConfigError("Samples.flip: only images (uint8) can be mirrored; leave flip=False")
        if self.cond is not None:
            given = f"{self.cond.dtype} {tuple(self.cond.shape)}"
            allowed = {torch.float32: (2, 3), torch.int64: (2,)}.get(self.cond.dtype, ())
            if self.cond.ndim not in allowed or len(self.cond) != shape[0]:
                raise ConfigError(
                    f"Samples.cond: given {given} for {shape[0]} samples, must be float32 (N, d) or (N, L, d), "
                    "or int64 (N, L)"
                )
            if self.labels is not None:
                raise ConfigError(f"Samples: given labels and cond ({given}): a model is told one or the other")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.values.shape[1:])

    @property
    def is_image(self) -> bool:
        """Whether the values are pictures, stored as bytes."""
        return self.values.dtype == torch.uint8

    def __len__(self) -> int:
        return len(self.values)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Some samples as numbers: images become v / 127.5 - 1 in [-1, 1], others stay as they are.

        Args:
            indices: (B,) int64.

        Returns:
            x (B, *event) float32, and labels (B,), conditions (B, ...) or None.
        """
        x = self.values[indices]
        x = x.to(torch.float32) / 127.5 - 1 if self.is_image else x
        told = self.cond if self.labels is None else self.labels
        return x, None if told is None else told[indices]

    def augment(self, x: Tensor, *, seed: int, step: int, positions: Tensor) -> Tensor:
        """A training batch, changed at random: with `flip`, row b is mirrored if u(seed, step, positions[b]) < 1/2.

        u is uniform, domain "augmentation": what a row becomes does not depend on the rest of the batch.

        Args:
            x: (B, C, H, W), from `take`.
            seed, step: the training's seed, and which step, in [0, 2^24).
            positions: (B,) int64, the rows' places in the global batch.
        """
        if not self.flip:
            return x
        u = philox.uniform(seed, positions.to(x.device), (1, 1, 1), draw=step << 8, domain="augmentation")
        return torch.where(u < 0.5, x.flip(-1), x)


class Data:
    """Base of data sources: components that `load` one of two disjoint splits into memory."""

    def load(self, split: Literal["train", "test"] = "train") -> Samples:
        """The samples of a split; the same ones at every call.

        Raises:
            FileError: what the source reads is missing or damaged.
            ConfigError: `split` is unknown or empty.
        """
        raise NotImplementedError


def check_split(split: str) -> None:
    """Refuse anything but the two splits. Raises ConfigError."""
    if split not in ("train", "test"):
        raise ConfigError(f"split: given {split!r}, must be 'train' or 'test'")


def to_uint8(x: Tensor) -> Tensor:
    """Bytes of pictures in [-1, 1]: round(127.5 (x + 1)) clamped to 0..255; undoes `Samples.take` exactly.

    Args:
        x: any shape, floating.
    """
    return ((x.detach().to(torch.float32) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def grid_image(x: Tensor, columns: int) -> Image.Image:
    """One picture of a batch, row by row, with black gaps of 2 pixels between the tiles.

    Args:
        x: (N, C, H, W) in [-1, 1], C = 1 or 3, N >= 1.
        columns: tiles in a row, >= 1; a batch smaller than a row makes a shorter row.

    Raises:
        ConfigError: another shape, or columns < 1.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3) or len(x) == 0 or columns < 1:
        raise ConfigError(
            f"grid_image: given shape {tuple(x.shape)} and columns={columns}, must be (N, 1 or 3, H, W), >= 1"
        )
    n, channels, height, width = x.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    sheet = torch.zeros(rows * (height + 2) - 2, columns * (width + 2) - 2, channels, dtype=torch.uint8)
    for i, tile in enumerate(to_uint8(x).permute(0, 2, 3, 1).cpu()):
        top, left = (i // columns) * (height + 2), (i % columns) * (width + 2)
        sheet[top : top + height, left : left + width] = tile
    return Image.fromarray(sheet.squeeze(2).numpy() if channels == 1 else sheet.numpy())
