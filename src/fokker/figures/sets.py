"""Sets of figures by name, and writing them with their captions into a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, FileError, MissingExtraError, closest
from ..files import trial, write_text, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

__all__ = ["SETS", "Figure", "draw", "figures_of"]

SETS = {
    "roots": "fokker.figures.roots",
    "score": "fokker.figures.score",
    "likelihood": "fokker.figures.likelihood",
    "langevin": "fokker.figures.langevin",
    "solvers": "fokker.figures.solvers",
}
"""The module of every set; its `FIGURES` are drawn, its docstring's first line says what of."""

INDEX = "index.md"
ENDINGS = ("png", "svg", "pdf")


@dataclass(frozen=True)
class Figure:
    """One picture.

    Args:
        name: of its file, without an ending.
        caption: what it shows, and which figure of the book it is.
        plot: makes it.
    """

    name: str
    caption: str
    plot: Callable[[], Canvas]


def figures_of(name: str) -> tuple[Figure, ...]:
    """The figures of a set.

    Raises:
        ConfigError: there is no such set.
        MissingExtraError: matplotlib is not installed (extra `plot`).
    """
    if name not in SETS:
        raise ConfigError(f"no set of figures {name!r}: {closest(name, SETS)}")
    if find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "plot")
    found: tuple[Figure, ...] = import_module(SETS[name]).FIGURES
    return found


def draw(
    name: str,
    folder: Path | str,
    *,
    only: Sequence[str] = (),
    formats: Sequence[str] = ("png",),
    overwrite: bool = False,
    progress: Callable[[str], object] | None = None,
) -> list[Path]:
    """Draw a set into a folder, and list all of the set that is there with its captions in index.md; the new paths.

    Args:
        name: a key of `SETS`.
        folder: made if it is not there.
        only: names of figures; default all.
        formats: "png", "svg" or "pdf".
        overwrite: replace pictures that exist, or an index.md of another origin.
        progress: is told the name of every figure before it is drawn.

    Raises:
        ConfigError: no such set, figure or format.
        FileError: a picture exists, or index.md is not this set's, or they cannot be written; nothing is drawn then.
        MissingExtraError: matplotlib is not installed (extra `plot`).
    """
    figures = figures_of(name)
    names = [figure.name for figure in figures]
    for wanted in only:
        if wanted not in names:
            raise ConfigError(f"no figure {wanted!r} in {name}: {closest(wanted, names)}")
    for ending in formats:
        if ending not in ENDINGS:
            raise ConfigError(f"formats: given {ending!r}; allowed: {', '.join(ENDINGS)}")
    chosen = [figure for figure in figures if not only or figure.name in only]
    folder = Path(folder)
    files = {(figure.name, ending): folder / f"{figure.name}.{ending}" for figure in chosen for ending in formats}
    index, head = folder / INDEX, f"# Figures: {name}\n"
    there = [path for path in files.values() if path.exists()]
    if index.exists() and not (index.is_file() and index.read_bytes().startswith(head.encode())):
        there.append(index)
    if there and not overwrite:
        raise FileError(f"{there[0]} exists and is left as it is; choose another folder, or overwrite")
    with trial(index, "nothing was drawn"):
        pass
    from .style import save, style  # needs matplotlib, which is known to be there by now

    with style():
        for figure in chosen:
            if progress is not None:
                progress(figure.name)
            canvas = figure.plot()
            for ending in formats:
                write_whole(files[figure.name, ending], partial(save, canvas, ending))
    parts = [head]
    for one in figures:
        for ending in (*formats, *ENDINGS):
            if (folder / f"{one.name}.{ending}").exists():
                parts.append(f"## {one.name}\n\n![{one.name}]({one.name}.{ending})\n\n{one.caption}\n")
                break
    write_text(index, "\n".join(parts))
    return list(files.values())
