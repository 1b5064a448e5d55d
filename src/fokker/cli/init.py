"""`fokker init [PATH] [-o recipe.yaml]`."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer
import yaml

from ..errors import ConfigError, FileError

__all__ = ["init"]

FEW = 200  # pictures of a folder, which are all decoded


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

    from ..data import Folder
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
    source = make(yaml.safe_load(text)).data
    if not (isinstance(source, Folder) and found.n > FEW):  # of many pictures a thousand were decoded
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the table below says how many pictures cannot be decoded
            for split in ("train", "test") if getattr(source, "holdout", 0) else ("train",):
                source.load(split)  # what is written can be trained
    write_text(output, text)
    table = Table(box=None, show_header=False)
    for what, value in found.seen:
        table.add_row(what, value)
    Console().print(table)
    typer.echo(f"wrote {output}: every choice has a comment")
    typer.echo(f"train it: fokker train {output}")
