"""`fokker recipes`."""

from __future__ import annotations

from itertools import takewhile

import typer

__all__ = ["recipes"]


def recipes() -> None:
    """List the recipes that come with fokker."""
    from rich.console import Console
    from rich.table import Table

    from ..train.recipe import recipe_names, recipes_folder

    table = Table(box=None)
    for heading in ("recipe", "what it trains"):
        table.add_column(heading)
    for name, file in recipe_names().items():
        lines = takewhile(lambda line: line.startswith("#"), file.read_text(encoding="utf-8").splitlines())
        told = " ".join(line.removeprefix("#").strip() for line in lines)
        table.add_row(name, told.partition(". ")[0].removesuffix(".") + ".")
    Console().print(table)
    typer.echo(f"train one: fokker train NAME; start your own from a copy of a file in {recipes_folder()}")
