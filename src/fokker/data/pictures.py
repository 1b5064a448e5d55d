"""Batches as pictures: a grid for images, a scatter plot for points in the plane."""

from __future__ import annotations

from PIL import Image, ImageDraw
from torch import Tensor

from .samples import grid_image

__all__ = ["picture", "scatter_image"]


def scatter_image(x: Tensor, size: int = 480, limit: float = 2.5) -> Image.Image:
    """Points (N, 2) in the square [-limit, limit]^2, drawn at four times the size and averaged down.

    Points outside are drawn at the border.
    """
    fine = 4 * size
    sheet = Image.new("L", (fine, fine), 255)
    pen = ImageDraw.Draw(sheet)
    radius = fine / 240
    places = ((x.detach().float().cpu().clamp(-limit, limit) / limit * 0.49 + 0.5) * fine).tolist()
    for right, up in places:
        pen.ellipse((right - radius, fine - up - radius, right + radius, fine - up + radius), fill=40)
    return sheet.resize((size, size), Image.Resampling.BOX)


def picture(x: Tensor, columns: int = 8) -> Image.Image | None:
    """The picture of a batch: images (N, 1 or 3, H, W) in a grid, points (N, 2) scattered, anything else None."""
    if x.ndim == 4 and x.shape[1] in (1, 3):
        return grid_image(x, columns)
    return scatter_image(x) if x.ndim == 2 and x.shape[1] == 2 else None
