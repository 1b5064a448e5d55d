"""`fokker figures [SET ...]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError

__all__ = ["figures"]


def figures(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="SET...", help="Sets, such as solvers; nothing: lists them.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The folder they are written into; a folder for each of several sets."),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="One figure of the set; may be given several times.")] = None,
    formats: Annotated[str, typer.Option("--format", help="png, svg or pdf; several by commas.")] = "png",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace pictures that exist.")] = False,
) -> None:
    """Draw sets of the book's figures and this library's own, with captions, or list what there is (extra `plot`)."""
    from ..figures import SETS, draw, figures_of

    if not names:
        for each in SETS:
            typer.echo(f"{each}: {', '.join(figure.name for figure in figures_of(each))}")
        typer.echo("draw sets: fokker figures SET ... -o FOLDER")
        return
    wanted = list(dict.fromkeys(names))
    total = sum(len(figures_of(name)) for name in wanted)
    if output is None:
        raise ConfigError(f"--output: give the folder that {total} pictures and their captions go into: -o FOLDER")
    if only and len(wanted) > 1:
        raise ConfigError(f"--only chooses from one set; given {', '.join(wanted)}: name one")
    endings = [ending.strip() for ending in formats.split(",")]

    def say(figure: str) -> None:
        typer.echo(f"drawing {figure} ...", err=True)

    for name in wanted:
        folder = output if len(wanted) == 1 else output / name
        made = draw(name, folder, only=only or (), formats=endings, overwrite=overwrite, progress=say)
        typer.echo(f"{len(made)} pictures, captions in index.md: {folder}")
