"""Many samples in many files: a folder of shards keyed by sample index, filled by any number of processes.

Shard k holds the samples [k S, (k + 1) S) of one seed, S a multiple of the batch size, so that every network call sees
the same samples whoever makes it. A shard's file names the request it answers and carries a checksum: it is its own
record, so no record can fall behind it, whatever is killed and when. `manifest.json` says what was asked for and, once
all is drawn, lists the shards.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..classic import Model
from ..data.codec import Codec, decode_in_batches
from ..data.samples import to_uint8
from ..errors import ConfigError, FileError
from ..files import read_metadata, read_tensors, write_tensors, write_text
from ..prediction import Denoiser
from ..registry import build, spec
from ..sampling import DEFAULT_GRID, DEFAULT_SOLVER, DEFAULT_STEPS, device_of, sample
from ..solvers import Grid, Solver, Times, as_grid
from .folder import DTYPES, FOLDER_FORMAT, MANIFEST, SHARD_FORMAT, Shard, answers, read_manifest, shards

__all__ = ["Report", "Sharding", "sample_to"]

LEFTOVER = re.compile(r"\.(?:samples-\d+-\d+\.safetensors|manifest\.json)\.(\d+)\.tmp")


class Report(NamedTuple):
    """What one process did: samples drawn now, samples found whole, shards found damaged, samples not finite."""

    drawn: int
    kept: int
    damaged: tuple[str, ...]
    not_finite: int


class Sharding:
    """A request for n samples in a folder: settled and checked at once, drawn by `run`.

    Args:
        folder: new or empty, or one that holds this request's samples already (of the same or a smaller n).
        denoiser: as in `sample`; or a classic model, which takes neither cond nor solver, grid, steps, nfe, final,
            brownian.
        n: how many samples; a folder may grow, and rows that are there keep their bits.
        about: JSON that tells this denoiser from others (its file's digest, its guidance): what a resumed request must
            share beside its own settings. What it calls "codec" is the codec that decodes the samples (`Shards`).
        decode: a codec that decodes the samples before they are written (a `LatentCodec`: the folder holds pictures).
        shard: samples in a file, a multiple of `batch_size`; default the first one from 1000 on.
        batch_size: samples per network call; the last call is filled up.
        dtype: torch.float32, or torch.uint8 for pictures (1 or 3, H, W) in [-1, 1] (see `to_uint8`).
        seed: an integer.
        cond: None, or rows of conditions (m, ...) taken in turn: sample i has row i mod m.
        solver, grid, steps, nfe, final, shape, brownian: as in `sample`.

    Raises:
        ConfigError: impossible arguments, or the folder holds another request's samples (the field is named).
        FileError: the folder holds something else, or cannot be read.
    """

    def __init__(
        self,
        folder: Path | str,
        denoiser: Denoiser | Model,
        *,
        n: int,
        about: Mapping[str, Any] | None = None,
        decode: Codec | None = None,
        shard: int | None = None,
        batch_size: int = 64,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        cond: Tensor | None = None,
        solver: Solver | str | dict[str, Any] | None = None,
        grid: Grid | str | dict[str, Any] | Tensor | Sequence[float] | None = None,
        steps: int | None = None,
        nfe: int | None = None,
        final: Literal["x0", "t_min"] = "x0",
        shape: Sequence[int] | None = None,
        brownian: bool = False,
    ) -> None:
        self.folder, self.denoiser, self.dtype, self.cond, self.decode = Path(folder), denoiser, dtype, cond, decode
        for name, value in (("n", n), ("batch_size", batch_size)):
            if value < 1:
                raise ConfigError(f"{name}: given {value}, must be at least 1")
        size = -(-1000 // batch_size) * batch_size if shard is None else shard
        if size < 1 or size % batch_size:
            raise ConfigError(f"shard: given {size}, must be a multiple of the batch size {batch_size}")
        event = tuple(denoiser.shape if shape is None else shape)
        if dtype not in DTYPES:
            raise ConfigError(f"dtype: given {dtype}, must be torch.float32 or torch.uint8")
        stored = event if decode is None else tuple(decode.decode(torch.zeros(1, *event)).shape[1:])
        if dtype == torch.uint8 and (len(stored) != 3 or stored[0] not in (1, 3)):
            raise ConfigError(f"dtype: given uint8 for samples of shape {stored}; pictures are (1 or 3, H, W)")
        if cond is not None and (cond.ndim < 1 or not len(cond)):
            raise ConfigError(f"cond: given shape {tuple(cond.shape)}, must be rows (m, ...), at least one")
        self.n, self.batch_size, self.shards = n, batch_size, shards(n, size)
        self.keys: dict[str, Any] = {"seed": seed}
        if not isinstance(denoiser, Model):
            method: Solver = build("solver", DEFAULT_SOLVER if solver is None else solver)
            grid = as_grid(DEFAULT_GRID if grid is None else grid)
            if steps is None and nfe is None and not isinstance(grid, Times) and not method.own_steps:
                steps = method.fixed_steps(final == "x0") or DEFAULT_STEPS
            self.keys = {"solver": method, "grid": grid, "steps": steps, "nfe": nfe, "final": final, "seed": seed}
            self.keys |= {"shape": event}
            self.keys |= {"brownian": True} if brownian else {}  # folders without it are as they were
        settings = {name: spec(value, path=name, inline=2**20) for name, value in self.keys.items()} | dict(about or {})
        settings |= {"shape": event, "shard": size, "batch_size": batch_size, "dtype": DTYPES[dtype]}
        settings |= {"cond": _fingerprint(cond), "device": device_of(denoiser).type}
        if decode is not None:
            settings |= {"decode": spec(decode, path="decode", inline=2**20), "stored": stored}
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))  # as they are read back
        self.digest = answers(self.settings)
        self._check_folder()

    @property
    def files(self) -> list[Path]:
        """Every shard's file, there or not."""
        return [self.folder / shard.name for shard in self.shards]

    def done(self) -> int:
        """How many samples are there (their content is checked by `run`)."""
        return sum(shard.count for shard in self.shards if (self.folder / shard.name).exists())

    def share(self, rank: int, world: int) -> int:
        """How many samples process `rank` of `world` has to see to."""
        return sum(shard.count for shard in self.shards[rank::world])

    def run(
        self,
        *,
        rank: int = 0,
        world: int = 1,
        progress: Callable[[int], object] | None = None,
        say: Callable[[str], object] | None = None,
    ) -> Report:
        """Draw what is missing or damaged of the shards k with k mod world = rank.

        Nothing is written before the first shard is drawn. Stopped at any time, run again it goes on.

        Args:
            rank, world: which process of how many; they need not know each other.
            progress: is told the number of samples of every batch drawn or shard found whole.
            say: is told of every damaged shard, in one line.

        Raises:
            FileError: a file cannot be written, or another request's shard is in the way.
        """
        if not 0 <= rank < world:
            raise ConfigError(f"rank: given {rank} of world={world}, must lie in [0, world)")
        advance = progress or (lambda count: None)
        drawn, kept, bad, damaged = 0, 0, 0, []
        for shard in self.shards[rank::world]:
            file, count = self.folder / shard.name, shard.count
            state = self._look(file)
            if isinstance(state, int):
                kept, bad = kept + count, bad + state
                advance(count)
                continue
            if state:
                damaged.append(shard.name)
                (say or (lambda line: None))(f"{state}: drawn again")
            bad += self._draw(shard, file, advance)
            drawn += count
        return Report(drawn, kept, tuple(damaged), bad)

    def finish(self) -> None:
        """List the shards in the manifest and tidy up: for one process, when all have run."""
        self._sweep()
        self._write_manifest([_entry(file) for file in self.files if file.exists()])

    def _check_folder(self) -> None:
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise FileError(f"{self.folder}: this is a file and is left as it is; choose another folder")
        manifest = read_manifest(self.folder)
        if manifest is None:
            if not all(LEFTOVER.fullmatch(file.name) or self._owns(file) for file in self.folder.iterdir()):
                raise FileError(f"{self.folder}: this folder is not empty and has no {MANIFEST}; choose another")
            return
        found = manifest["request"]
        for name in [*self.settings, *sorted(set(found) - set(self.settings))]:
            old, new = found.get(name), self.settings.get(name)
            if old != new:
                raise ConfigError(
                    f"{name}: {self.folder} holds samples drawn with {_short(old)} (given {_short(new)}): "
                    "give the same, or another folder"
                )
        if self.n < manifest["n"]:
            raise ConfigError(f"n: given {self.n}, but {self.folder} is to hold {manifest['n']}; a folder only grows")

    def _look(self, file: Path) -> int | str | None:
        """A shard's count of samples that are not finite if it is whole; else what is wrong, or None if not there."""
        if not file.exists():
            return None
        try:
            _, texts = read_tensors(file, SHARD_FORMAT)
        except FileError as error:
            return str(error)
        if texts.get("request") != self.digest:
            raise FileError(f"{file}: a shard of another request, left as it is; move it away")
        return int(texts["not_finite"])

    def _draw(self, shard: Shard, file: Path, advance: Callable[[int], object]) -> int:
        """Draw and write one shard; returns how many of its samples are not finite."""
        indices = torch.arange(shard.first, shard.stop)
        cond = None if self.cond is None else self.cond[indices % len(self.cond)]
        keys: dict[str, Any] = self.keys | {"indices": indices, "progress": advance, "batch_size": self.batch_size}
        if isinstance(self.denoiser, Model):
            x = self.denoiser.sample(pad=True, **keys).cpu()
        else:
            x = sample(self.denoiser, cond=cond, pad=True, **keys).cpu()
        bad = int((~torch.isfinite(x)).flatten(1).any(dim=1).sum())
        x = x if self.decode is None else decode_in_batches(self.decode, x, self.batch_size)
        tensors = {"x": to_uint8(x) if self.dtype == torch.uint8 else x}
        if cond is not None and cond.ndim == 1 and not cond.is_floating_point():
            tensors["labels"] = cond.to(torch.int64)
        self._write_manifest()
        write_tensors(file, tensors, {"format": SHARD_FORMAT, "request": self.digest, "not_finite": str(bad)})
        return bad

    def _write_manifest(self, entries: list[dict[str, Any]] | None = None) -> None:
        """Write the manifest, if it does not stand there; any process may, all write the same."""
        known = read_manifest(self.folder)
        if known is not None and (known["n"] > self.n or (known["n"] == self.n and entries is None)):
            return
        content: dict[str, Any] = {"format": FOLDER_FORMAT, "n": self.n, "request": self.settings}
        content |= {} if entries is None else {"shards": entries}
        if content != known:
            write_text(self.folder / MANIFEST, json.dumps(content, indent=1) + "\n")

    def _sweep(self) -> None:
        """Remove the temporary files of killed processes, and what was the last shard before the folder grew."""
        for shard in self.shards:
            for old in self.folder.glob(f"samples-{shard.first:08d}-*.safetensors"):
                if old.name < shard.name and (self.folder / shard.name).exists() and self._owns(old):
                    old.unlink()
        for file in self.folder.iterdir():
            match = LEFTOVER.fullmatch(file.name)
            if match and not _alive(int(match[1])):
                file.unlink(missing_ok=True)

    def _owns(self, file: Path) -> bool:
        with suppress(FileError):
            return read_metadata(file, SHARD_FORMAT).get("request") == self.digest
        return False


def sample_to(
    folder: Path | str,
    denoiser: Denoiser | Model,
    *,
    n: int,
    rank: int = 0,
    world: int = 1,
    barrier: Callable[[], None] | None = None,
    progress: Callable[[int], object] | None = None,
    say: Callable[[str], object] | None = None,
    **options: Any,
) -> Report:
    """Draw n samples into a folder of shards, or what is missing there.

    Each of `world` processes draws its share; the bits are those of one process.

    Args:
        folder, denoiser, n, options, rank, world, progress, say: see `Sharding` and `Sharding.run`.
        barrier: waits until every process has come; then the first one lists the shards.
    """
    job = Sharding(folder, denoiser, n=n, **options)
    report = job.run(rank=rank, world=world, progress=progress, say=say)
    if barrier is not None:
        barrier()
    if rank == 0:
        job.finish()
    return report


def _entry(file: Path) -> dict[str, Any]:
    """What the manifest lists of a shard; sha256 is the checksum of its content, the same wherever it was drawn."""
    texts = read_metadata(file, SHARD_FORMAT)
    size, bad = file.stat().st_size, int(texts["not_finite"])
    return {"file": file.name, "sha256": texts["sha256"], "bytes": size, "not_finite": bad}


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (OSError, OverflowError) as error:
        return not isinstance(error, ProcessLookupError)
    return True


def _fingerprint(cond: Tensor | None) -> Any:
    """Conditions in a manifest: few numbers as they are, many by their shape and digest."""
    if cond is None or cond.numel() <= 64:
        return None if cond is None else cond.tolist()
    value = cond.detach().cpu().contiguous()
    digest = hashlib.sha256(value.reshape(-1).view(torch.uint8).numpy().data).hexdigest()
    return {"shape": list(value.shape), "dtype": str(value.dtype), "sha256": digest}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
