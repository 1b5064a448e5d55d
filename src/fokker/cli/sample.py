"""`fokker sample RUN`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, FileError, closest
from .grids import GRIDS, parse_component, read_grid

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import Codec
    from ..denoiser import NetDenoiser
    from ..launch import Place
    from ..shards import Sharding
    from ..train.drawing import Drawing

__all__ = ["sample"]


def sample(
    run: Annotated[str, typer.Argument(help="A run folder or a model.safetensors file.")],
    n: Annotated[int | None, typer.Option("-n", "--n", help="How many samples; default 64.")] = None,
    solver: Annotated[
        str | None,
        typer.Option(
            help="A kind, with fields as in ddim:eta=0.5 or restart:solver={kind: ddim}; all of them: fokker solvers."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the solver.")] = None,
    nfe: Annotated[int | None, typer.Option(help="In place of steps: the most network evaluations allowed.")] = None,
    grid: Annotated[str | None, typer.Option(help=GRIDS)] = None,
    brownian: Annotated[
        bool,
        typer.Option(
            "--brownian",
            help="Read a stochastic solver's noise from one Brownian path per sample: more steps refine a sample.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="The same seed gives the same samples.")] = 0,
    indices: Annotated[str | None, typer.Option(help="Only the samples A:B of the seed (B is not drawn).")] = None,
    label: Annotated[str | None, typer.Option(help="A class, by number or name; default: all in turn.")] = None,
    cond: Annotated[
        Path | None, typer.Option(help="A .npy file with rows of conditions, taken in turn by the samples.")
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance scale; 1 is none.")] = None,
    batch_size: Annotated[int, typer.Option(help="Samples per network call.")] = 64,
    output: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            help=".png for a picture; .npy, .npz, .csv or .parquet for values in the data's units; a FOLDER for many "
            "samples: pictures, or the model's own numbers with the codec that decodes them in manifest.json.",
        ),
    ] = "samples.png",
    shard: Annotated[
        int | None,
        typer.Option(help="Samples in a file of a folder, a multiple of the batch size; default about 1000."),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="float32, or uint8 for pictures as bytes in a .npy, a .npz or a folder.")
    ] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file if it exists.")] = False,
) -> None:
    """Draw samples from a trained model: a picture, a file of numbers, or a folder of shards.

    A folder is filled by one process or by several (accelerate launch -m fokker sample ..., or torchrun), and the same
    command goes on where it stopped.
    """
    from ..data import LatentCodec
    from ..files import file_digest
    from ..launch import lonely, place
    from ..registry import build
    from ..shards import Sharding
    from ..train import load, read_header
    from ..train.checkpoint import model_path
    from ..train.drawing import settle
    from ..train.options import Sampling

    target, into_folder = Path(output), _is_folder(output)
    span = _span(n, indices)
    if dtype not in ("float32", "uint8"):
        raise ConfigError(f"--dtype: given {dtype!r}, must be float32 or uint8")
    if into_folder and (indices is not None or overwrite):
        raise ConfigError("--indices, --overwrite: a folder holds all samples from 0 on and is continued; leave them")
    if not into_folder:
        _check_file(target, overwrite, shard, dtype)
    here = place()
    if here.world > 1 and not into_folder:
        raise ConfigError(f"--output: given {output!r}; several processes write into a folder: -o FOLDER")
    if lonely():
        typer.echo(f"fokker: note: {lonely()}", err=True)
    _, info = read_header(run)
    denoiser = load(run).to(here.device)
    defaults = info.get("recipe", {}).get("sampling")
    way = settle(
        denoiser,
        None if defaults is None else Sampling(**defaults),
        cond=_condition(denoiser, info.get("classes", []), label, cond),
        guidance=guidance,
        solver=None if solver is None else parse_component(solver, "--solver"),
        grid=read_grid(grid),
        steps=steps,
        nfe=nfe,
        brownian=brownian,
    )
    codec = build("codec", info["codec"]) if info.get("codec") else None
    if not into_folder:
        shown = {"codec": codec, "names": info.get("classes", []), "overwrite": overwrite}
        _one_file(way, target, span, seed=seed, batch_size=batch_size, dtype=dtype, **shown)
        return
    about = {"model": file_digest(model_path(run)), "guidance": way.guidance}
    keys: dict[str, Any] = {"n": len(span), "seed": seed, "batch_size": batch_size, "shard": shard, "cond": way.cond}
    if isinstance(codec, LatentCodec):
        keys["decode"] = codec
    elif codec is not None:
        about["codec"] = info["codec"]
    _fill(Sharding(target, way.denoiser, about=about, dtype=_dtype(dtype), **keys, **way.options), here)


def _one_file(
    way: Drawing,
    target: Path,
    span: range,
    *,
    seed: int,
    batch_size: int,
    dtype: str,
    codec: Codec | None,
    names: list[str],
    overwrite: bool,
) -> None:
    import torch

    from ..data import LatentCodec, decode_in_batches, to_uint8, write_samples
    from .stopping import stopping

    def write(path: Path, x: Tensor, cond: Tensor | None, size: int) -> None:
        left = codec
        if isinstance(codec, LatentCodec):  # a network: its bits depend on the size of a batch
            x, left = decode_in_batches(codec, x, size), None
        if dtype == "uint8":
            if x.ndim != 4 or x.shape[1] not in (1, 3):
                raise ConfigError(
                    f"--dtype: given uint8 for samples of shape {tuple(x.shape[1:])}, which are no pictures"
                )
            x = to_uint8(x)
        columns = max(1, round(len(x) ** 0.5))
        write_samples(path, x, codec=left, cond=cond, classes=names, columns=columns, overwrite=overwrite)

    with stopping(lambda: "nothing was written"):
        indices = torch.arange(span.start, span.stop)
        _try(target, lambda path: write(path, torch.zeros(1, *way.denoiser.shape), way.rows(indices[:1]), 1))
        x, cond = way(indices=indices, seed=seed, batch_size=batch_size, progress=len(span) > batch_size)
        x = x.cpu()
        finite = bool(torch.isfinite(x).all())
        write(target, x, cond, batch_size)
    if not finite:
        typer.echo("fokker: warning: some samples are not finite", err=True)
    typer.echo(f"{len(span)} samples: {target}")


def _try(target: Path, write: Callable[[Path], None]) -> None:
    """Write one sample beside the target and take it away: what cannot be written is refused before it is drawn."""
    from ..files import trial

    with trial(target, "nothing was drawn") as path:
        path.unlink()
        try:
            write(path)
        except (ConfigError, FileError) as error:
            raise type(error)(str(error).replace(str(path), str(target))) from None


def _fill(job: Sharding, here: Place) -> None:
    """Fill a folder of shards together with the other processes."""
    import sys

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..launch import together
    from .stopping import stopping

    def say(line: str) -> None:
        typer.echo(f"fokker: {line}", err=True)

    def how() -> str:
        return f"{job.done()} of {job.n} samples are in {job.folder}; the same command goes on" if here.first else ""

    before = job.done()
    if here.first and 0 < before < job.n:
        typer.echo(f"going on: {before} of {job.n} samples are in {job.folder}")
    columns = (TextColumn("sampling"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = here.first and sys.stdout.isatty()
    with together(here) as barrier:
        with stopping(how), Progress(*columns, disable=not shown) as bar:
            task = bar.add_task("", total=job.share(here.rank, here.world))
            report = job.run(rank=here.rank, world=here.world, progress=lambda count: bar.advance(task, count), say=say)
        barrier()
        if here.first:
            job.finish()
    if report.not_finite:
        say("warning: some samples are not finite (manifest.json says in which files)")
    if here.first:
        note = "  (all were there, and whole)" if before == job.n and not report.drawn else ""
        typer.echo(f"{job.n} samples in {len(job.files)} shards: {job.folder}{note}")


def _is_folder(output: str) -> bool:
    return output.endswith("/") or not Path(output).suffix or Path(output).is_dir()


def _check_file(path: Path, overwrite: bool, shard: int | None, dtype: str) -> None:
    from ..data import check_export

    if shard is not None:
        raise ConfigError(f"--shard: given {shard}, but {path} is one file; give a folder: -o FOLDER")
    if check_export(path, overwrite=overwrite) not in (".npy", ".npz") and dtype == "uint8":
        raise ConfigError(f"--dtype: given uint8 for {path}; bytes are written to a .npy, a .npz or a folder: leave it")


def _span(n: int | None, indices: str | None) -> range:
    """Which samples of the seed."""
    if indices is None:
        if n is not None and n < 1:
            raise ConfigError(f"--n: given {n}, must be at least 1")
        return range(64 if n is None else n)
    first, colon, stop = indices.partition(":")
    if n is not None or not colon or not (first or "0").isdecimal() or not stop.isdecimal():
        raise ConfigError(f"--indices: given {indices!r}; must be A:B, such as 100:164, and without --n")
    span = range(int(first or "0"), int(stop))
    if span.stop > 2**32:
        raise ConfigError(f"--indices: given {indices!r}; samples are numbered below 2^32 = {2**32}")
    if not span:
        raise ConfigError(f"--indices: given {indices!r}; A:B are the samples from A on, before B: none here")
    return span


def _dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)


def _condition(denoiser: NetDenoiser, names: list[str], label: str | None, file: Path | None) -> Any:
    from ..train.drawing import class_count

    if file is None:
        return _label(label, class_count(denoiser), names)
    if label is not None:
        raise ConfigError("--label, --cond: give one of them")
    import numpy as np
    import torch

    try:
        rows = np.load(file.expanduser(), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FileError(f"{file}: cannot be read as .npy ({error})") from None
    if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "fiu" or rows.ndim < 1 or not len(rows):
        raise FileError(f"{file}: must hold one array of numbers with one row per condition, at least one")
    return torch.from_numpy(rows.astype(np.float32 if rows.dtype.kind == "f" else np.int64))


def _label(label: str | None, count: int, names: list[str]) -> int | None:
    if label is None:
        return None
    if count == 0:
        raise ConfigError(f"--label: given {label!r}, but this model has no classes")
    by_name = {name.casefold(): i for i, name in enumerate(names)}
    if label.casefold() in by_name:
        return by_name[label.casefold()]
    if label.isdecimal() and int(label) < count:
        return int(label)
    numbers = f"0 to {count - 1}"
    raise ConfigError(f"--label: given {label!r}; allowed: {numbers}{'; ' + closest(label, names) if names else ''}")
