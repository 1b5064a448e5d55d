"""Batches as pictures: images in a grid, points scattered, signals as lines, tables column against column."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from .codec import Codec
from .columns import Category, Column, Number, RowCodec, TableCodec
from .samples import grid_image

__all__ = ["pairs_image", "picture", "scatter_image", "signals_image"]

FINE = 4  # drawn at this many times the size and averaged down
INK = 40
CELL, MARGIN = 150, 8
TILE = (160, 100)


def scatter_image(x: Tensor, size: int = 480, limit: float = 2.5) -> Image.Image:
    """Points (N, 2) in the square [-limit, limit]^2, drawn at four times the size and averaged down.

    Points outside are drawn at the border.
    """
    fine = FINE * size
    sheet = Image.new("L", (fine, fine), 255)
    pen = ImageDraw.Draw(sheet)
    radius = fine / 240
    places = ((x.detach().float().cpu().clamp(-limit, limit) / limit * 0.49 + 0.5) * fine).tolist()
    for right, up in places:
        pen.ellipse((right - radius, fine - up - radius, right + radius, fine - up + radius), fill=INK)
    return sheet.resize((size, size), Image.Resampling.BOX)


def signals_image(x: Tensor, columns: int = 8) -> Image.Image:
    """The first 64 signals of (N, C, L) as lines, a tile each, left to right in time.

    All tiles have one vertical scale, from the smallest finite number to the largest; later channels are paler; what
    is not finite is left out.
    """
    shown = x.detach()[:64].double().cpu()
    count, channels, length = shown.shape
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    finite = shown[shown.isfinite()]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    width, height = (FINE * side for side in TILE)
    sheet = Image.new("L", (columns * width, rows * height), 255)
    pen = ImageDraw.Draw(sheet)
    right = torch.linspace(0.03, 0.97, length) * width
    up = (0.05 + 0.9 * (shown - low) / ((high - low) or 1.0)) * height
    for i in range(count):
        left, top = i % columns * width, i // columns * height
        pen.rectangle((left, top, left + width, top + height), outline=220, width=FINE)
        for channel in reversed(range(channels)):
            line: list[tuple[float, float]] = []
            for across, over in [*zip(right.tolist(), up[i, channel].tolist(), strict=True), (0.0, math.nan)]:
                if math.isfinite(over):
                    line.append((left + across, top + height - over))
                elif line:
                    pen.line(line if len(line) > 1 else line * 2, fill=min(INK + 60 * channel, 200), width=FINE)
                    line = []
    return sheet.resize((columns * TILE[0], rows * TILE[1]), Image.Resampling.BOX)


def pairs_image(x: Tensor, codec: TableCodec) -> Image.Image:
    """Samples (N, D) of a table: the first 4 columns against each other, each one's histogram on the diagonal.

    Column j runs to the right in the picture's column j and up in its row j, over the training rows' range; levels of a
    category stand side by side, the points of a level spread. Numbers outside the range are at the border.
    """
    chosen = codec.columns[:4]
    values = codec.decode(x).numpy()[:, : len(chosen)]
    unit = np.stack([_unit(values[:, j], column) for j, column in enumerate(chosen)], axis=1)
    unit = unit[np.isfinite(unit).all(axis=1)]
    step, inner = FINE * (CELL + MARGIN), FINE * CELL
    sheet = Image.new("L", (len(chosen) * step, len(chosen) * step), 255)
    pen = ImageDraw.Draw(sheet)
    for row in range(len(chosen)):
        for column in range(len(chosen)):
            left, base = column * step + FINE * MARGIN // 2, row * step + FINE * MARGIN // 2 + inner
            pen.rectangle((left, base - inner, left + inner, base), outline=200, width=FINE)
            if row == column:
                kind = chosen[row]
                bins = len(kind.levels) if isinstance(kind, Category) else 20
                counts = np.histogram(unit[:, row], bins, (0, 1))[0]
                for k, count in enumerate(counts / max(1, counts.max())):
                    if count:
                        edges = (left + k * inner / bins, left + (k + 1) * inner / bins - FINE)
                        pen.rectangle((edges[0], base - 0.8 * count * inner, edges[1], base), fill=150)
            else:
                for a, b in (0.03 + 0.94 * unit[:, [column, row]]) * inner:
                    place = (left + a - FINE, base - b - FINE, left + a + FINE, base - b + FINE)
                    pen.ellipse(place, fill=INK)
    small = sheet.resize((sheet.width // FINE, sheet.height // FINE), Image.Resampling.BOX)
    for j, kind in enumerate(chosen):
        corner = float(j * (CELL + MARGIN) + MARGIN)
        ImageDraw.Draw(small).text((corner, corner), kind.name[:22], fill=0)
    return small


def _unit(values: NDArray[np.float64], column: Column) -> NDArray[np.float64]:
    """Values in [0, 1] over the range; a level in the middle of its share, spread evenly over half of it."""
    if isinstance(column, Number):
        return ((values - column.low) / (column.high - column.low)).clip(0, 1)
    assert isinstance(column, Category)
    spread = (np.arange(len(values)) * 0.6180339887 % 1 - 0.5) * 0.5
    unit: NDArray[np.float64] = (values + 0.5 + spread) / len(column.levels)
    return unit


def picture(x: Tensor, columns: int = 8, codec: Codec | None = None) -> Image.Image | None:
    """The picture of a batch of samples, or None.

    Args:
        x: images (N, 1 or 3, H, W) are shown in a grid, signals (N, C, L) as lines, points (N, 2) scattered.
        columns: tiles in a row.
        codec: what decodes the samples first; a table's rows are shown column against column.
    """
    if isinstance(codec, TableCodec):
        return pairs_image(x, codec)
    if isinstance(codec, RowCodec):
        return None
    x = x if codec is None else codec.decode(x)
    if x.ndim == 4 and x.shape[1] in (1, 3):
        return grid_image(x, columns)
    if x.ndim == 3 and 0 not in x.shape:
        return signals_image(x, columns)
    return scatter_image(x) if x.ndim == 2 and x.shape[1] == 2 else None
