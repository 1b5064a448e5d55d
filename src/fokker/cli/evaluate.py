"""`fokker evaluate RUN`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, FileError
from .bars import Bar, new_folder
from .grids import GRIDS, parse_component, read_grid

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import Codec, Samples
    from ..denoiser import NetDenoiser
    from ..train.drawing import Drawing
    from ..train.options import Sampling

__all__ = ["evaluate"]


def evaluate(
    run: Annotated[str, typer.Argument(help="A run folder or a model.safetensors file.")],
    n: Annotated[
        int | None,
        typer.Option("-n", "--n", help="Samples [2000], at most half of the training rows; with --nll rows [256]."),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(help="classifier, efficientnet-lite0/block10, efficientnet-lite0/top, pixels; several by commas."),
    ] = None,
    metrics: Annotated[str | None, typer.Option(help="Some metrics, by commas; default: by kind of data.")] = None,
    samples: Annotated[
        Path | None,
        typer.Option(
            help="Judge these in place of fresh samples: .npy or .npz in the data's units, or a folder of shards."
        ),
    ] = None,
    solver: Annotated[str | None, typer.Option(help="As in fokker sample.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the solver.")] = None,
    nfe: Annotated[int | None, typer.Option(help="In place of steps: the most network evaluations allowed.")] = None,
    grid: Annotated[str | None, typer.Option(help=GRIDS)] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance scale; 1 is none.")] = None,
    nll: Annotated[
        bool,
        typer.Option("--nll", help="Draw nothing; give the data's negative log-likelihood, in bits/dim or nats."),
    ] = False,
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
    from ..data import Latents
    from ..files import file_digest, write_text, write_whole
    from ..metrics import evaluate as measure
    from ..metrics.report import LEAST, check_possible, over_features, select
    from ..registry import build
    from ..train import load, read_header
    from ..train.checkpoint import model_path
    from ..train.options import Sampling
    from .judges import classifiable, judges
    from .nll import measure_nll

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
    about: dict[str, Any] = {"fokker": __version__, "model": file_digest(file), "data": recipe["data"]}
    folder_name = output if output is not None else file.parent / "evaluation"
    if nll:
        given = {"--samples": samples, "--features": features, "--metrics": metrics, "--guidance": guidance}
        named = ", ".join(name for name, value in given.items() if value is not None)
        if named:
            raise ConfigError(f"--nll: measures the model, not samples: leave {named}")
        ways = {"grid": read_grid(grid), "steps": steps, "nfe": nfe}
        ways["solver"] = None if solver is None else parse_component(solver, "--solver")
        ways |= {"n": 256 if n is None else n, "batch_size": batch_size, "seed": seed}
        measure_nll(run, source, info, about, folder_name, _held_out, ways)
        return
    n = 2000 if n is None else n
    if isinstance(source, Latents):
        source = source.source  # decoded samples are judged against the images
    train, test = source.load("train"), _held_out(source)
    wanted = select(None if metrics is None else [name.strip() for name in metrics.split(",")], train)
    if min(n, len(train) // 2) < LEAST:
        need = f"must be at least {LEAST}, with {2 * LEAST} training rows or more"
        raise ConfigError(f"--n: given {n}, and the data has {len(train)} training rows: {need}")
    n = min(n, len(train) // 2)
    if samples is None:
        denoiser = load(run).to("cuda" if torch.cuda.is_available() else "cpu")
        codec = build("codec", info["codec"]) if info.get("codec") else None
        defaults = Sampling(**recipe["sampling"]) if "sampling" in recipe else None
        options = {"guidance": guidance, "grid": read_grid(grid), "steps": steps, "nfe": nfe}
        options["solver"] = None if solver is None else parse_component(solver, "--solver")
        way, labels = _way(denoiser, codec, defaults, train, n, seed, options)
        about["sampling"] = _told(way)
    else:
        x, labels = _given(samples, train, batch_size)
        about["samples"] = str(samples)
    asked, possible = None if metrics is None else wanted, labels is not None and classifiable(train)
    check_possible(asked, held_out=0 if test is None else len(test), classes=possible)
    keys = {"features": over_features(wanted), "agreement": possible and "agreement" in wanted}
    with new_folder(folder_name) as folder:
        over, classifier = judges(features, train, file.parent, typer.echo, **keys)
        if samples is None:
            typer.echo(f"drawing {n} samples ...")
            x, _ = way(n, seed=seed, batch_size=batch_size, progress=sys.stderr.isatty() and n > batch_size)
            x = _as_data(_leave(x.cpu(), codec, train, batch_size), train)
        judged: dict[str, Any] = {
            "labels": labels,
            "features": over,
            "metrics": asked,
            "classifier": classifier,
            "seed": seed,
        }
        with Bar() as advance:
            report = measure(x, train, test, progress=advance, **judged)
        write_text(folder / "evaluation.json", report.to_json(**about))
        write_text(folder / "evaluation.md", report.markdown())
        image = report.picture()
        write_whole(folder / "evaluation.png", lambda path: image.save(path, format="PNG"))
    Console().print(report.table())
    typer.echo(f"{report.facts['n']} samples: {folder}")


def _held_out(source: Any) -> Samples | None:
    """The test split; None, with a note of the reason, where there is none."""
    try:
        held: Samples = source.load("test")
    except ConfigError as error:
        typer.echo(f"fokker: note: nothing is held out ({error})", err=True)
        return None
    return held


def _way(
    denoiser: NetDenoiser,
    codec: Codec | None,
    defaults: Sampling | None,
    train: Samples,
    n: int,
    seed: int,
    options: dict[str, Any],
) -> tuple[Drawing, Tensor | None]:
    """How to draw, on conditions of n training rows (so that classes are as frequent as in the data); the labels."""
    import torch

    from .. import noise as philox
    from ..train.drawing import class_count, is_conditional, settle

    event = _as_data(_leave(torch.zeros(1, *denoiser.shape), codec, train, 1), train).shape[1:]
    if tuple(event) != train.shape:
        raise ConfigError(f"the model draws samples of shape {tuple(event)}, but its data has {train.shape} now")
    told = train.take(philox.permutation(seed, len(train), 3)[:n])[1]
    if not (is_conditional(denoiser) if train.labels is None else class_count(denoiser)):
        told = None
    return settle(denoiser, defaults, cond=told, **options), None if train.labels is None else told


def _told(way: Drawing) -> dict[str, Any]:
    """A way to draw as JSON; of a classic model, which has but one, nothing."""
    from ..registry import build, spec

    if not way.options:
        return {}
    drawn: dict[str, Any] = {"guidance": way.guidance, "steps": way.options["steps"], "nfe": way.options["nfe"]}
    for family in ("solver", "grid"):
        given = way.options[family]
        drawn[family] = None if given is None else spec(build(family, given), inline=2**20)
    return drawn


def _leave(x: Tensor, codec: Codec | None, train: Samples, batch_size: int) -> Tensor:
    """A model's samples as they leave it: what its codec decodes."""
    from ..data import LatentCodec, decode_in_batches
    from ..data.columns import RowCodec

    if isinstance(codec, LatentCodec):
        return decode_in_batches(codec, x, max(1, batch_size))
    if isinstance(codec, RowCodec) and codec != train.codec:
        raise ConfigError("the data has changed since the model was trained on it: its columns or tokens are others")
    codec = codec or train.codec
    return x if codec is None else codec.decode(x)


def _as_data(values: Tensor, train: Samples) -> Tensor:
    """Values in the data's units as numbers like `train.take`'s: pictures through bytes, others through its codec."""
    from ..data import to_uint8
    from ..metrics.pairs import cloud

    cloud(values, "samples")
    if train.is_image:
        return to_uint8(values).float() / 127.5 - 1
    return values.float() if train.codec is None else train.codec.encode(values)


def _given(path: Path, train: Samples, batch_size: int) -> tuple[Tensor, Tensor | None]:
    """The samples of a file, in the data's units, or of a folder of shards; and their labels where they are known."""
    import torch

    from ..data import Arrays
    from ..data.arrays import as_labels, read_numpy
    from ..shards import Shards

    if path.is_dir():
        found = Shards(str(path), holdout=0.0).load()
        x, labels = found.take(torch.arange(len(found)))
        return _as_data(_leave(x, found.codec, train, batch_size), train), labels
    names: list[str] = []
    if path.suffix == ".npz":
        import zipfile

        import numpy as np

        try:
            with np.load(path, allow_pickle=False) as arrays:
                names = arrays.files
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise FileError(f"--samples: {path} cannot be read ({error})") from None
    key, label_key = ("x" if "x" in names else ""), ("labels" if "labels" in names else "")
    if train.codec is None:
        found = Arrays(str(path), key, label_key, holdout=0.0).load("train")
        x, labels = found.take(torch.arange(len(found)))
        return _as_data(x, train), labels
    array, told = read_numpy(f"--samples: {path}", str(path), key, label_key=label_key)
    if array.dtype.kind not in "fiu" or array.ndim < 2:
        raise ConfigError(f"--samples: {path} holds {array.dtype} {array.shape}, must be numbers (N, ...)")
    values = torch.from_numpy(array.astype("float64" if array.dtype.kind == "f" else "int64"))
    labels = None if told is None else as_labels(f"--samples: {path}", "labels", told, len(values))[0]
    return _as_data(values, train), labels
