"""A folder of shards, as files: its manifest, its shards' names, and what they hold."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..component import component
from ..data.arrays import held_out
from ..data.samples import Data, Samples, check_split
from ..errors import ConfigError, FileError
from ..files import read_tensors
from ..registry import build

__all__ = ["Shards", "answers", "read_manifest", "read_shards", "shards"]

MANIFEST = "manifest.json"
FOLDER_FORMAT, SHARD_FORMAT = "fokker-shards-1", "fokker-shard-1"
DTYPES = {torch.float32: "float32", torch.uint8: "uint8"}


@dataclass(frozen=True)
class Shard:
    """The samples [first, stop)."""

    first: int
    stop: int

    @property
    def count(self) -> int:
        """How many they are."""
        return self.stop - self.first

    @property
    def name(self) -> str:
        """The file's name."""
        return f"samples-{self.first:08d}-{self.stop - 1:08d}.safetensors"


def shards(n: int, size: int) -> list[Shard]:
    """The shards of n samples, `size` in each but the last."""
    return [Shard(first, min(first + size, n)) for first in range(0, n, size)]


def answers(request: dict[str, Any]) -> str:
    """The digest of a manifest's request, which every shard that answers it carries."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def read_shards(folder: Path | str) -> tuple[Tensor, Tensor | None]:
    """(x, labels) of a folder that is whole: x (n, *event) as stored, float32 or uint8; labels int64 (n,) or None.

    Raises:
        FileError: no such folder, or a shard is missing, damaged or of another request (it is named).
    """
    folder = Path(folder)
    manifest = _whole(folder)
    n, request, digest = manifest["n"], manifest["request"], answers(manifest["request"])
    try:
        dtypes = {name: dtype for dtype, name in DTYPES.items()}
        x = torch.empty(n, *request.get("stored", request["shape"]), dtype=dtypes[request["dtype"]])
        parts = shards(n, request["shard"])
    except (LookupError, TypeError, ValueError, RuntimeError):
        raise _unreadable(folder) from None
    labels: Tensor | None = None
    for shard in parts:
        file, place = folder / shard.name, slice(shard.first, shard.stop)
        if not file.exists():
            raise FileError(f"{file}: not drawn yet; run the command that fills the folder again")
        tensors, texts = read_tensors(file, SHARD_FORMAT)
        given = tensors.get("x", x[:0])
        if texts.get("request") != digest or given.shape != x[place].shape or given.dtype != x.dtype:
            raise FileError(
                f"{file}: a shard of another request; move it away and run the command of this folder again"
            )
        x[place] = given
        if "labels" in tensors:
            labels = torch.empty(len(x), dtype=torch.int64) if labels is None else labels
            labels[place] = tensors["labels"]
    return x, labels


@component
class Shards(Data):
    """The samples of a folder that `fokker sample -o FOLDER` (or `sample_to`) has filled, as data.

    Which rows are held out is decided as in `Arrays`. A codec that the manifest names decodes the samples.

    Args:
        path: the folder; ~ is expanded.
        holdout: fraction of the test split, in [0, 1).

    Raises (from load):
        FileError: the folder is not whole, or holds samples that are not finite.
        ConfigError: the split is empty.
    """

    path: str
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def load(self, split: Literal["train", "test"] = "train") -> Samples:
        """The rows of a split, in their order."""
        check_split(split)
        folder = Path(self.path).expanduser()
        x, labels = read_shards(folder)
        bad = int((~torch.isfinite(x)).flatten(1).any(dim=1).sum())
        if bad:
            raise FileError(
                f"Shards {self.path}: {bad} of its {len(x)} rows are not finite; {MANIFEST} says in which files"
            )
        named = _whole(folder)["request"].get("codec")
        codec = None if named is None else build("codec", named)
        rows = torch.from_numpy(np.flatnonzero(held_out(len(x), self.holdout) == (split == "test")))
        if not len(rows):
            raise ConfigError(
                f"Shards {self.path}: none of its {len(x)} rows is in the {split} split: change holdout={self.holdout}"
            )
        if labels is None:
            return Samples(x[rows], codec=codec)
        return Samples(x[rows], labels[rows], tuple(str(label) for label in range(int(labels.max()) + 1)), codec)


def _whole(folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder)
    if manifest is None:
        raise FileError(f"{folder}: no {MANIFEST} here; give a folder that `fokker sample -o FOLDER` has filled")
    return manifest


def _unreadable(folder: Path) -> FileError:
    return FileError(f"{folder / MANIFEST}: not a readable manifest of samples; move it away and draw again")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """A folder's manifest, None if it has none. Raises FileError if it is damaged or foreign."""
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if manifest["format"] != FOLDER_FORMAT:
            raise FileError(f"{file}: not a {FOLDER_FORMAT} file (its format is {manifest['format']!r})")
        if not isinstance(manifest["n"], int) or not isinstance(manifest["request"], dict):
            raise TypeError
    except FileNotFoundError:
        return None
    except FileError:
        raise
    except (OSError, ValueError, LookupError, TypeError):
        raise _unreadable(folder) from None
    return manifest  # type: ignore[no-any-return]
