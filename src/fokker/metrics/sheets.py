"""The picture of a report: samples beside data, the samples most like copies, and every value beside its floors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..data import picture

if TYPE_CHECKING:
    from .report import Report, Row

__all__ = ["sheet"]

MARGIN, LINE, LABEL, BAR = 12, 14, 250, 420
SHARES = ("precision", "recall", "coverage", "copied", "nearness", "agreement")
WORDS = {"low": "lower is better", "high": "higher is better", "half": "best at 1/2", "one": "best at 1"}
INK, OURS, REAL, HELD = (40, 40, 40), (66, 103, 178), (150, 150, 150), (205, 205, 205)


def sheet(report: Report) -> Image.Image:
    """One picture of a report.

    On top some samples and real rows, as `picture` shows them; then, of images and signals, ten samples with the
    smallest memorisation ratio over their nearest training and held-out rows. Below, a bar for each metric (a line
    through its end is the interval), with its floors under it: other training rows (dark grey), held-out rows (light).
    """
    shown: list[Image.Image] = []
    for title, x in (("samples", report.samples), ("real (training)", report.real)):
        made = _titled(title, picture(x[:40] if x.ndim == 4 else x, 8, report.codec))
        shown += [made] if made is not None else []
    tops = [_beside(shown)] if shown else []
    if report.nearest is not None and report.nearest.ndim >= 4:
        rows: Tensor = report.nearest.flatten(0, 1)
        made = _titled(
            "samples nearest to training; their training rows; their held-out rows",
            picture(rows, report.nearest.shape[1], report.codec),
        )
        tops += [made] if made is not None else []
    return _stack([*tops, _bars(report.rows)])


def _titled(title: str, image: Image.Image | None) -> Image.Image | None:
    """The picture under a line of text; small pixels are doubled until they can be seen."""
    if image is None:
        return None
    while image.width < 200:
        image = image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST)
    whole = Image.new("RGB", (max(image.width, 7 * len(title)), image.height + LINE + 4), "white")
    ImageDraw.Draw(whole).text((0, 0), title, fill=INK, font=ImageFont.load_default())
    whole.paste(image.convert("RGB"), (0, LINE + 4))
    return whole


def _beside(images: list[Image.Image]) -> Image.Image:
    width = sum(image.width for image in images) + MARGIN * (len(images) - 1)
    whole, left = Image.new("RGB", (width, max(image.height for image in images)), "white"), 0
    for image in images:
        whole.paste(image, (left, 0))
        left += image.width + MARGIN
    return whole


def _stack(images: list[Image.Image]) -> Image.Image:
    width = max(image.width for image in images) + 2 * MARGIN
    height = sum(image.height + MARGIN for image in images) + MARGIN
    whole, top = Image.new("RGB", (width, height), "white"), MARGIN
    for image in images:
        whole.paste(image, (MARGIN, top))
        top += image.height + MARGIN
    return whole


def _bars(rows: tuple[Row, ...]) -> Image.Image:
    """Each metric on its own scale, from 0 to the largest of its numbers, or to 1 where that is the natural end."""
    step = 3 * LINE
    whole = Image.new("RGB", (LABEL + BAR + 90, step * len(rows) + LINE), "white")
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default()
    for i, row in enumerate(rows):
        top = step * i
        bars = [(row.value, OURS), (row.floor_train, REAL), (row.floor_held_out, HELD)]
        largest = max([row.high, *(value for value, _ in bars if value is not None)])
        largest = max(largest, 1.0) if row.name.partition("[")[0] in SHARES else largest
        scale = BAR / largest if largest > 0 else 0.0  # a negative number has no bar
        pen.text((0, top), row.name, fill=INK, font=font)
        pen.text((0, top + LINE - 2), WORDS[row.better], fill=REAL, font=font)
        for j, (value, colour) in enumerate(bars):
            if value is None:
                continue
            y, length = top + 11 * j, max(value, 0.0) * scale
            pen.rectangle((LABEL, y, LABEL + length, y + 8), fill=colour)
            end = LABEL + length + 4 if j else LABEL + max(row.high, 0.0) * scale + 4
            pen.text((end, y - 2), f"{value:.4g}", fill=INK, font=font)
        low, high = (LABEL + max(value, 0.0) * scale for value in (row.low, row.high))
        pen.line((low, top + 4, high, top + 4), fill=INK)
    text = "blue: samples (line: interval)   dark grey: other training rows   light grey: held-out rows"
    pen.text((0, step * len(rows)), text, fill=INK, font=font)
    return whole
