"""Figures of the book and of this library, drawn from code: the same command draws the same picture.

A set is a module with `FIGURES`, a tuple of `Figure`; it is listed in `SETS` by name.
"""

from .sets import SETS, Figure, draw, figures_of

__all__ = ["SETS", "Figure", "draw", "figures_of"]
