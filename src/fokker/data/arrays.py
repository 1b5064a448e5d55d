"""Arrays: samples in a .npy, .npz or .parquet file."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from ..component import component
from ..errors import ConfigError, FileError, closest
from .cells import read_numbers, table_suffix
from .samples import Data, Samples, check_split

__all__ = ["Arrays", "array_names", "as_float32", "as_labels", "as_values", "held_out", "read_numpy"]

# What NumPy lets through on truncated, encrypted or foreign files, and on pickled objects.
BROKEN = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, odd


def held_out(n: int, holdout: float) -> NDArray[np.bool_]:
    """Which of n rows are the test split: row i if the fractional part of (i + 1) / golden ratio is below `holdout`."""
    with np.errstate(over="ignore"):
        fractions = np.arange(1, n + 1, dtype=np.uint64) * GOLDEN
    mask: NDArray[np.bool_] = fractions < holdout * 2.0**64
    return mask


def read_numpy(source: str, path: str, key: str = "", **others: str) -> list[Any]:
    """The array `key` of a .npy or .npz file, then those that `others` name (None for an empty name).

    Args:
        source: how messages name the file.
        path: ~ is expanded. Nothing is unpickled.
        key: may be empty if it is the only array besides the others.
        others: the field's name to the array's.

    Raises:
        FileError: the file is missing, truncated or of another format.
        ConfigError: there is no such array.
    """
    try:
        loaded = np.load(Path(path).expanduser(), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            if key or any(others.values()):
                raise ConfigError(f"{source}: holds a single array: leave {', '.join(['key', *others])} empty")
            return [loaded, *(None for _ in others)]
        with loaded as arrays:
            names = [name for name in arrays.files if name not in others.values()]
            if not key and len(names) != 1:
                raise ConfigError(f"{source}: key must name one of its arrays: {', '.join(names) or '(none)'}")
            wanted = [key or names[0], *others.values()]
            for name in wanted:
                if name and name not in arrays.files:
                    raise ConfigError(f"{source}: has no key {name!r}; its keys: {', '.join(arrays.files)}")
            return [arrays[name] if name else None for name in wanted]
    except ConfigError:
        raise
    except FileNotFoundError:
        raise FileError(f"{source}: does not exist") from None
    except BROKEN as error:
        raise _broken(source, error) from None


def array_names(source: str, path: Path | str) -> list[str]:
    """The names of the arrays in an .npz; [""] for a .npy. Raises FileError as `read_numpy` does."""
    file = Path(path).expanduser()
    try:
        if not zipfile.is_zipfile(file):
            return [""]
        with zipfile.ZipFile(file) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except BROKEN as error:
        raise _broken(source, error) from None


def _broken(source: str, error: Exception) -> FileError:
    return FileError(f"{source}: cannot be read as .npy or .npz without pickles, is it truncated? ({error})")


def as_float32(source: str, array: NDArray[Any]) -> NDArray[np.float32]:
    """The array in float32. Raises FileError that names the first number that is not finite."""
    with np.errstate(over="ignore"):
        given = array.astype(np.float32)
    finite = np.isfinite(given)
    if not finite.all():
        first = np.unravel_index(int(np.argmin(finite)), array.shape)
        index = tuple(int(i) for i in first)
        raise FileError(f"{source}: the number at {index} is {given[first]} in float32, must be finite")
    return given


def as_values(source: str, array: NDArray[Any]) -> Tensor:
    """The values of `Samples` from an array, read as `Arrays` says. Raises ConfigError, FileError."""
    shape = array.shape
    if array.dtype == np.uint8:
        if len(shape) == 3:
            array = array[:, None]
        elif len(shape) == 4 and shape[1] not in (1, 3) and shape[3] in (1, 3):
            array = array.transpose(0, 3, 1, 2)
        if array.ndim != 4 or array.shape[1] not in (1, 3) or 0 in shape:
            raise ConfigError(
                f"{source}: given uint8 {shape}, must be pictures (N, H, W), (N, C, H, W) or "
                "(N, H, W, C) with C = 1 or 3; store other numbers as float32"
            )
        return torch.from_numpy(np.array(array, order="C"))
    if array.dtype.kind != "f" or len(shape) < 2 or 0 in shape:
        raise ConfigError(f"{source}: given {array.dtype} {shape}, must be float (N, *event) or uint8 pictures")
    return torch.from_numpy(as_float32(source, array))


def as_labels(source: str, name: str, labels: NDArray[Any], n: int) -> tuple[Tensor, tuple[str, ...]]:
    """(labels (N,) int64, the classes' names "0", "1", ...). Raises ConfigError unless they are integers 0..65535."""
    if labels.dtype.kind not in "iu" or labels.shape != (n,) or labels.min() < 0 or labels.max() > 65535:
        raise ConfigError(f"{source}: {name!r} is {labels.dtype} {labels.shape}, must be integers 0..65535 of ({n},)")
    return torch.from_numpy(labels.astype(np.int64)), tuple(str(label) for label in range(int(labels.max()) + 1))


@component
class Arrays(Data):
    """The samples of a NumPy file: numbers (N, *event) as float32, or pictures as bytes; or the numbers of a .parquet.

    uint8 arrays are pictures: (N, H, W), (N, C, H, W) or (N, H, W, C) with C = 1 or 3 (the first reading that fits).
    Floats are taken as they are: standardise them first. Row i is in the test split if the fractional part of
    (i + 1) / golden ratio is less than `holdout`: evenly spread, and adding rows moves no other row.

    Args:
        path: a .npy or .npz file, or a .parquet (extra `table`) whose columns are numbers, (N, columns); ~ is
            expanded. Nothing is unpickled. A table of mixed columns is read by `Table`.
        key: name of the array in an .npz; may be empty if it is the only one besides the labels and conditions.
        label_key: name of integer labels (N,), 0..65535, in an .npz (of a column in a .parquet), or empty for none;
            classes are named "0", "1", ...
        cond_key: name of conditions in an .npz, or empty for none: vectors float (N, d), sequences of vectors
            float (N, L, d), or sequences of tokens, integers (N, L); not together with `label_key`.
        holdout: fraction of the test split, in [0, 1).
        flip: mirror training pictures left to right with probability 1/2; only for pictures.

    Raises (from load):
        FileError: the file is missing, truncated or of another format, or holds a number that is not finite.
        ConfigError: a key, shape or dtype does not fit, or the split is empty.
    """

    path: str
    key: str = ""
    label_key: str = ""
    cond_key: str = ""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    flip: bool = False

    def load(self, split: Literal["train", "test"] = "train") -> Samples:
        """The rows of a split, in their order."""
        check_split(split)
        array, labels, cond = self._read()
        values, n = as_values(f"Arrays {self.path}", array), len(array)
        told, names = (None, ()) if labels is None else as_labels(f"Arrays {self.path}", self.label_key, labels, n)
        conditions = None if cond is None else self._cond(cond, n)
        rows = torch.from_numpy(np.flatnonzero(held_out(len(array), self.holdout) == (split == "test")))
        if not len(rows):
            raise ConfigError(
                f"Arrays {self.path}: none of its {len(array)} rows is in the {split} split with "
                f"holdout={self.holdout}: change holdout"
            )
        return Samples(
            values[rows],
            None if told is None else told[rows],
            names,
            flip=self.flip and split == "train",
            cond=None if conditions is None else conditions[rows],
        )

    def _read(self) -> tuple[NDArray[Any], NDArray[Any] | None, NDArray[Any] | None]:
        """(the samples, the labels, the conditions)."""
        source = f"Arrays {self.path}"
        if table_suffix(self.path) == ".parquet":
            if self.key or self.cond_key:
                raise ConfigError(f"{source}: a .parquet has columns, not arrays: leave key and cond_key empty")
            columns = read_numbers(source, self.path)
            labels = columns.pop(self.label_key, None)
            if self.label_key and labels is None:
                raise ConfigError(f"{source}: label_key names {self.label_key!r}: {closest(self.label_key, columns)}")
            if not columns:
                raise ConfigError(f"{source}: has no column besides the labels")
            whole = labels if labels is None or (labels % 1).any() else labels.astype(np.int64)
            return np.stack(list(columns.values()), axis=1), whole, None
        array, labels, cond = read_numpy(source, self.path, self.key, label_key=self.label_key, cond_key=self.cond_key)
        return array, labels, cond

    def _cond(self, cond: NDArray[Any], n: int) -> Tensor:
        if (
            len(cond) != n
            or cond.dtype.kind not in "fiu"
            or cond.ndim not in ((2,) if cond.dtype.kind != "f" else (2, 3))
        ):
            raise ConfigError(
                f"Arrays {self.path}: {self.cond_key!r} is {cond.dtype} {cond.shape}, must be float ({n}, d) or "
                f"({n}, L, d), or integers ({n}, L)"
            )
        if cond.dtype.kind != "f":
            return torch.from_numpy(cond.astype(np.int64))
        return torch.from_numpy(as_float32(f"Arrays {self.path} {self.cond_key!r}", cond))
