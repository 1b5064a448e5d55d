"""`fokker init [PATH] [-o recipe.yaml]`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml

from ..errors import ConfigError, FileError

__all__ = ["init"]


def init(
    path: Annotated[
        str | None, typer.Argument(help="Your data: a folder of pictures, .npy, .npz, .csv, .tsv, .parquet or .wav.")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The recipe's file; never overwritten.")] = Path(
        "recipe.yaml"
    ),
) -> None:
    """Look at your data and write a commented recipe for it."""
    from rich.console import Console
    from rich.table import Table

    from ..files import write_text
    from ..train.recipe import make
    from ..train.starter import WHAT, look

    if output.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--output: given {str(output)!r}; must end in .yaml")
    if output.exists():
        raise FileError(f"{output} exists and is left as it is; choose another name with -o")
    if path is None:
        if not sys.stdin.isatty():
            raise ConfigError(f"init: say where your data is: fokker init PATH, with PATH {WHAT}")
        path = str(typer.prompt(f"Where is your data ({WHAT})?"))
    found = look(path)
    text = found.recipe(output.stem)
    make(yaml.safe_load(text))  # what is written can be trained
    write_text(output, text)
    table = Table(box=None, show_header=False)
    for what, value in found.seen:
        table.add_row(what, value)
    Console().print(table)
    typer.echo(f"wrote {output}: every choice has a comment")
    typer.echo(f"train it: fokker train {output}")
