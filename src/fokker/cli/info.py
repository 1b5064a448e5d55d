"""`fokker info [RUN]`."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["info"]


def info(
    run: Annotated[str | None, typer.Argument(help="A run folder or model file; nothing: the installation.")] = None,
) -> None:
    """Describe a trained model, or the installation and everything it can build."""
    from rich.console import Console
    from rich.table import Table

    console, table = Console(), Table(box=None, show_header=False)
    if run is None:
        import platform

        import torch

        from .. import __version__
        from ..registry import KINDS

        table.add_row("fokker", __version__)
        table.add_row("python, torch", f"{platform.python_version()}, {torch.__version__}")
        table.add_row("device", torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu")
        for family, kinds in KINDS.items():
            table.add_row(family, ", ".join(kinds))
        console.print(table)
        return
    from ..train import load, read_header
    from ..train.checkpoint import model_path

    recipe, extra = read_header(run)
    denoiser = load(run)
    table.add_row("file", str(model_path(run)))
    table.add_row("parameters", f"{sum(p.numel() for p in denoiser.parameters()):,}")
    table.add_row("event", " x ".join(map(str, denoiser.shape)))
    table.add_row("process", str(denoiser.process))
    table.add_row("predicts", denoiser.reading.name)
    table.add_row("lam range", f"{denoiser.lam_range[0]:.3f} to {denoiser.lam_range[1]:.3f}")
    table.add_row("network", ", ".join(f"{k}={v}" for k, v in recipe["net"].items()))
    if extra.get("classes"):
        table.add_row("classes", ", ".join(f"{i} {name}" for i, name in enumerate(extra["classes"])))
    if "step" in extra:
        table.add_row("trained", f"{extra['step']} steps")
    console.print(table)
