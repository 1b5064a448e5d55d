"""Computation graphs: boxes for variables, trapezoids for networks, ovals for scalars, arrows from input to output."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.patches import Ellipse, Polygon, Rectangle

from .style import BLUE, DARK, GREY, arrow

__all__ = ["clear", "link", "network", "scalar", "variable"]

NARROW = 0.55
"""The short side of a network's trapezoid over its long one."""


def clear(axes: Axes, width: float, height: float) -> None:
    """Axes of equal units without ticks, from 0 to width and height."""
    axes.set(xlim=(0.0, width), ylim=(0.0, height), aspect="equal")
    axes.axis("off")


def variable(axes: Axes, x: float, y: float, label: str, size: float = 0.62, colour: str = GREY) -> None:
    """A box around (x, y)."""
    axes.add_patch(Rectangle((x - size / 2, y - size / 2), size, size, fc="white", ec=colour, lw=1.2, zorder=2))
    axes.text(x, y, label, ha="center", va="center", fontsize=11, color=DARK, zorder=3)


def network(
    axes: Axes, x: float, y: float, label: str, *, opens: bool = False, size: float = 0.9, colour: str = BLUE
) -> None:
    """A trapezoid around (x, y) that narrows to the right, or opens."""
    short, wide = NARROW * size / 2, size / 2
    left, right = (short, wide) if opens else (wide, short)
    corners = [(x - wide, y - left), (x - wide, y + left), (x + wide, y + right), (x + wide, y - right)]
    axes.add_patch(Polygon(corners, closed=True, fc=colour, alpha=0.18, ec="none", zorder=2))
    axes.add_patch(Polygon(corners, closed=True, fc="none", ec=colour, lw=1.2, zorder=2))
    axes.text(x, y, label, ha="center", va="center", fontsize=11, color=DARK, zorder=3)


def scalar(axes: Axes, x: float, y: float, label: str, width: float = 1.15) -> None:
    """An oval around (x, y)."""
    axes.add_patch(Ellipse((x, y), width, 0.6, fc="white", ec=GREY, lw=1.2, zorder=2))
    axes.text(x, y, label, ha="center", va="center", fontsize=9, color=DARK, zorder=3)


def link(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], bend: float = 0.0, colour: str = GREY
) -> None:
    """An arrow, bent to one side by a part of its length."""
    arrow(axes, start, end, colour, lw=1.2, connectionstyle=f"arc3,rad={bend}")
