"""`fokker evaluate RUN`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, FileError
from .grids import GRIDS, parse_component, read_grid

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import Samples

__all__ = ["evaluate"]


def evaluate(
    run: Annotated[str, typer.Argument(help="A run folder or a model.safetensors file.")],
    n: Annotated[int, typer.Option("-n", "--n", help="Samples; at most half of the training rows.")] = 2000,
    features: Annotated[
        str | None,
        typer.Option(help="classifier, efficientnet-lite0/block10, efficientnet-lite0/top, pixels; several by commas."),
    ] = None,
    metrics: Annotated[str | None, typer.Option(help="Some metrics, by commas; default: by kind of data.")] = None,
    samples: Annotated[
        Path | None, typer.Option(help="Judge these (.npy, .npz, or a folder of shards) in place of fresh samples.")
    ] = None,
    solver: Annotated[str | None, typer.Option(help="As in fokker sample.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the solver.")] = None,
    nfe: Annotated[int | None, typer.Option(help="In place of steps: the most network evaluations allowed.")] = None,
    grid: Annotated[str | None, typer.Option(help=GRIDS)] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance scale; 1 is none.")] = None,
    batch_size: Annotated[int, typer.Option(help="Samples per network call.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the samples, of the rows compared, and of the intervals.")] = 0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The report's folder; default RUN/evaluation, numbered on.")
    ] = None,
) -> None:
    """Measure a model's samples against its data: a table, a JSON file and a picture, each number beside its floors."""
    import torch
    from rich.console import Console

    from .. import __version__
    from ..files import file_digest, write_text, write_whole
    from ..metrics import evaluate as measure
    from ..metrics.report import LEAST, select
    from ..registry import build
    from ..train import load, read_header
    from ..train.checkpoint import model_path
    from ..train.options import Sampling
    from .judges import judges

    chosen = {"--solver": solver, "--steps": steps, "--nfe": nfe, "--grid": grid, "--guidance": guidance}
    if samples is not None and any(value is not None for value in chosen.values()):
        named = ", ".join(name for name, value in chosen.items() if value is not None)
        raise ConfigError(f"--samples: given {str(samples)!r}, so nothing is drawn: leave {named}")
    file = model_path(run)
    _, info = read_header(run)
    recipe = info.get("recipe", {})
    if "data" not in recipe:
        raise ConfigError(f"{file}: names no data to compare with; give a run that `fokker train` made")
    source = build("data", recipe["data"])
    train, test = source.load("train"), _held_out(source)
    wanted = select(None if metrics is None else [name.strip() for name in metrics.split(",")], train)
    if min(n, len(train) // 2) < LEAST:
        need = f"must be at least {LEAST}, with {2 * LEAST} training rows or more"
        raise ConfigError(f"--n: given {n}, and the data has {len(train)} training rows: {need}")
    n = min(n, len(train) // 2)
    keep = file.parent / "classifier.safetensors"
    over, classifier = judges(features, train, keep, typer.echo, agreement="agreement" in wanted)
    about: dict[str, Any] = {"fokker": __version__, "model": file_digest(file), "data": recipe["data"]}
    if samples is None:
        denoiser = load(run).to("cuda" if torch.cuda.is_available() else "cpu")
        defaults = Sampling(**recipe["sampling"]) if "sampling" in recipe else None
        keys = {"guidance": guidance, "grid": read_grid(grid), "steps": steps, "nfe": nfe}
        way = None if solver is None else parse_component(solver, "--solver")
        keys |= {"solver": way, "seed": seed, "batch_size": batch_size}
        x, labels, drawn = _draw(denoiser, defaults, train, n, keys)
        about["sampling"] = drawn
    else:
        x, labels = _given(samples)
        about["samples"] = str(samples)
    judged = {"labels": labels, "features": over, "metrics": None if metrics is None else wanted}
    with _Bar() as advance:
        report = measure(x, train, test, classifier=classifier, seed=seed, progress=advance, **judged)
    folder = _free(output if output is not None else file.parent / "evaluation")
    folder.mkdir(parents=True)
    write_text(folder / "evaluation.json", report.to_json(**about))
    write_text(folder / "evaluation.md", report.markdown())
    image = report.picture()
    write_whole(folder / "evaluation.png", lambda path: image.save(path, format="PNG"))
    Console().print(report.table())
    typer.echo(f"{report.facts['n']} samples: {folder}")


def _held_out(source: Any) -> Samples | None:
    """The test split, None if it is empty."""
    try:
        held: Samples = source.load("test")
    except ConfigError:
        return None
    return held


def _draw(denoiser: Any, defaults: Any, train: Samples, n: int, keys: dict[str, Any]) -> tuple[Tensor, Any, Any]:
    """Samples whose conditions are those of training rows, so that classes are as frequent as in the data."""
    import torch

    from .. import noise as philox
    from ..registry import build, spec
    from ..train.drawing import class_count, draw, settle

    if denoiser.shape != train.shape:
        raise ConfigError(f"the model draws samples of shape {denoiser.shape}, but its data has {train.shape} now")
    told = train.take(philox.permutation(keys["seed"], len(train), 3)[:n])[1]
    if train.labels is not None and not class_count(denoiser):
        told = None
    typer.echo(f"drawing {n} samples ...")
    options = {name: keys[name] for name in ("guidance", "solver", "grid", "steps", "nfe")}
    size = min(keys["batch_size"], n) if keys["batch_size"] > 0 else keys["batch_size"]
    way = settle(denoiser, defaults, cond=told, **options)
    shown = sys.stderr.isatty() and n > size
    x, _ = draw(denoiser, defaults, n, cond=told, seed=keys["seed"], batch_size=size, progress=shown, **options)
    drawn = {"guidance": way.guidance, "steps": way.options["steps"], "nfe": way.options["nfe"]}
    for family in ("solver", "grid"):
        given = way.options[family]
        drawn[family] = None if given is None else spec(build(family, given), inline=2**20)
    labels = told if train.labels is not None and isinstance(told, torch.Tensor) else None
    return x.cpu(), labels, drawn


def _given(path: Path) -> tuple[Tensor, Tensor | None]:
    """Samples, and their labels where the file has them; bytes become numbers in [-1, 1]."""
    import torch

    from ..data import Arrays, Samples
    from ..shards import read_shards

    if path.is_dir():
        x, labels = read_shards(path)
        return Samples(x).take(torch.arange(len(x)))[0], labels
    found: Samples
    if path.suffix == ".npz":
        import numpy as np

        try:
            with np.load(path, allow_pickle=False) as arrays:
                names = set(arrays.files)
        except (OSError, ValueError) as error:
            raise FileError(f"--samples: {path} cannot be read ({error})") from None
        key, label_key = ("x" if "x" in names else ""), ("labels" if "labels" in names else "")
        found = Arrays(str(path), key, label_key, holdout=0.0).load("train")
    else:
        found = Arrays(str(path), holdout=0.0).load("train")
    return found.take(torch.arange(len(found)))


def _free(folder: Path) -> Path:
    """The folder, numbered on if it is there."""
    chosen, number = folder, 1
    while chosen.exists():
        number += 1
        chosen = folder.with_name(f"{folder.name}-{number}")
    return chosen


class _Bar:
    """A progress bar of the report's steps, on a terminal."""

    def __enter__(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        console = Console(stderr=True)
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.bar.__enter__()
        task = self.bar.add_task("")
        return lambda what, done, total: self.bar.update(task, description=what, completed=done, total=total)

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)
