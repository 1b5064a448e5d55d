"""`fokker ema RUN --width 0.1`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from ..errors import FileError

__all__ = ["ema"]


def ema(
    run: Annotated[Path, typer.Argument(help="A run folder with snapshots.")],
    width: Annotated[float, typer.Option("--width", help="Relative width of the average, in (0, 0.28].")],
    step: Annotated[
        int | None, typer.Option("--step", help="Where it ends, best a snapshot's; default: the last.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Default: RUN/model-width0.100.safetensors.")
    ] = None,
) -> None:
    """Make the model of another average of the weights, from a run's snapshots, after training."""
    from rich.console import Console
    from rich.table import Table

    from ..train import load, read_header, read_snapshots, reconstruct, save
    from ..train.ema import gamma_of

    gamma_of(width)  # a width out of range is said before anything is read
    ending = "" if step is None else f"-step{step}"
    output = run / f"model-width{width:.3f}{ending}.safetensors" if output is None else output
    if output.exists():
        raise FileError(f"{output} exists and is left as it is; choose another name with -o")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        snapshots = read_snapshots(run)
    for warning in caught:
        typer.echo(f"fokker: warning: {warning.message}", err=True)
    made = reconstruct(snapshots, width, step)
    denoiser, info = load(run), read_header(run)[1]
    weights = dict(denoiser.named_parameters())
    if {name: value.shape for name, value in weights.items()} != {n: v.shape for n, v in made.values.items()}:
        raise FileError(f"{run}: its snapshots are of another network than its model.safetensors")
    denoiser.load_state_dict(made.values, strict=False)  # buffers stay
    save(output, denoiser, info | {"step": made.step, "ema_width": width})
    table = Table(box=None, show_header=False)
    widths = sorted({known for snapshot in snapshots for known in snapshot.widths})
    steps = f"after {snapshots[0].step} to {snapshots[-1].step} steps, widths {', '.join(f'{w:g}' for w in widths)}"
    table.add_row("snapshots", f"{len(snapshots)} {steps}")
    table.add_row("average", f"width {width:g} after {made.step} steps")
    table.add_row("fit's relative error", f"{made.error:.2e}")
    Console().print(table)
    typer.echo(f"model: {output}")
