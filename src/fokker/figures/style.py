"""How figures look: one set of sizes and colours (Okabe and Ito's, told apart by colour-blind readers)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import rcsetup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

__all__ = [
    "BLUE",
    "COLOURS",
    "DARK",
    "GREEN",
    "GREY",
    "LIGHT",
    "ORANGE",
    "PURPLE",
    "RED",
    "SKY",
    "arrow",
    "new",
    "save",
    "style",
]

BLUE, ORANGE, GREEN, RED, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
GREY, LIGHT, SKY, DARK = "#555555", "#BBBBBB", "#56B4E9", "#222222"
COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, DARK, LIGHT)

_STYLE: dict[str, Any] = {
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.labelcolor": DARK,
    "axes.prop_cycle": rcsetup.cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "svg.hashsalt": "fokker",
    "xtick.color": GREY,
    "ytick.color": GREY,
}


@contextmanager
def style() -> Iterator[None]:
    """The library's look, whatever the user's own settings are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        parameters: Any = matplotlib.rcParams
        parameters.update(_STYLE)
        yield


def new(rows: int = 1, columns: int = 1, size: tuple[float, float] = (6.4, 4.0), **options: Any) -> tuple[Figure, Any]:
    """(figure, axes) without pyplot's global state; axes as `Figure.subplots` gives them."""
    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **options)


def save(figure: Figure, ending: str, path: Path) -> None:
    """Write a figure without the time or version it was made at or by; a PNG in 128 colours, a third of the bytes."""
    if ending != "png":
        figure.savefig(path, format=ending, metadata={"svg": {"Date": None}, "pdf": {"CreationDate": None}}[ending])
        return
    held = BytesIO()
    figure.savefig(held, format="png", dpi=110, metadata={"Software": None})
    Image.open(held).convert("RGB").quantize(128).save(path, format="PNG", optimize=True)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, **options: Any) -> None:
    """An arrow between two points of the data."""
    look = {"arrowstyle": "-|>", "color": colour, "shrinkA": 0.0, "shrinkB": 0.0, "lw": 1.5} | options
    axes.annotate("", xy=end, xytext=start, arrowprops=look)
