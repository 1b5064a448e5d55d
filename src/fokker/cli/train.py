"""`fokker train RECIPE [key=value ...]`."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["train"]


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (see `fokker recipes`) or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes such as train.steps=400 process=vp run.dir=DIR.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Train a model; the run's folder is runs/NAME unless run.dir=... says otherwise."""
    from ..train import fit, read

    folder = fit(read(recipe, overrides or ()), progress=not quiet)
    typer.echo(f"trained: {folder}  (sample it: fokker sample {folder} -o samples.png)")
