"""The commands, one thin function each; work is done by the library."""

from __future__ import annotations

from importlib import import_module

import typer

__all__ = ["app"]

app = typer.Typer(
    name="fokker",
    help="Train and sample diffusion, score and flow models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for _name in ("init", "train", "sample", "evaluate", "tune", "ema", "info", "solvers", "figures", "recipes", "demo"):
    app.command(_name)(getattr(import_module(f".{_name}", __package__), _name))
app.add_typer(import_module(".data", __package__).data, name="data")


def version(show: bool) -> None:
    """Print the version and stop."""
    if show:
        from .. import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    show_version: bool = typer.Option(False, "--version", callback=version, is_eager=True, help="Show the version."),
) -> None:
    """Train and sample diffusion, score and flow models."""
