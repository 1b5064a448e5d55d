"""`fokker train RECIPE [key=value ...]`."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["train"]


def train(
    recipe: Annotated[
        str, typer.Argument(help="A recipe's name (see `fokker recipes`) or a YAML file; with --resume a run's folder.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes such as train.steps=400 process=vp run.dir=DIR.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped or killed.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Train a model; the run's folder is runs/NAME unless run.dir=... says otherwise."""
    from .. import train as training
    from ..launch import lonely, place, together

    if lonely():
        typer.echo(f"fokker: note: {lonely()}", err=True)
    changes, here = overrides or (), place()
    read = None if resume else training.read(recipe, changes)
    with together(here):
        if read is None:
            folder = training.resume(recipe, changes, progress=not quiet)
        else:
            folder = training.fit(read, progress=not quiet)
    if here.first:  # of several processes one speaks
        typer.echo(f"trained: {folder}  (sample it: fokker sample {folder} -o samples.png)")
