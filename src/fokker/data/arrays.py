"""Arrays: samples in a .npy or .npz file."""

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
from ..errors import ConfigError, FileError
from .samples import Data, Samples, check_split

__all__ = ["Arrays"]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, odd


def held_out(n: int, holdout: float) -> NDArray[np.bool_]:
    """Which of n rows are the test split: row i if the fractional part of (i + 1) / golden ratio is below `holdout`."""
    with np.errstate(over="ignore"):
        fractions = np.arange(1, n + 1, dtype=np.uint64) * GOLDEN
    mask: NDArray[np.bool_] = fractions < holdout * 2.0**64
    return mask


@component
class Arrays(Data):
    """The samples of a NumPy file: numbers (N, *event) as float32, or pictures as bytes.

    uint8 arrays are pictures: (N, H, W), (N, C, H, W) or (N, H, W, C) with C = 1 or 3 (the first reading that fits).
    Floats are taken as they are: standardise them first. Row i is in the test split if the fractional part of
    (i + 1) / golden ratio is less than `holdout`: evenly spread, and adding rows moves no other row.

    Args:
        path: a .npy or .npz file; ~ is expanded. Nothing is unpickled.
        key: name of the array in an .npz; may be empty if it is the only one besides `label_key`.
        label_key: name of integer labels (N,), 0..65535, in an .npz, or empty for none; classes are named "0", "1", ...
        holdout: fraction of the test split, in [0, 1).

    Raises (from load):
        FileError: the file is missing, truncated or of another format, or holds a number that is not finite.
        ConfigError: a key, shape or dtype does not fit, or the split is empty.
    """

    path: str
    key: str = ""
    label_key: str = ""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def load(self, split: Literal["train", "test"] = "train") -> Samples:
        """The rows of a split, in their order."""
        check_split(split)
        array, given = self._read()
        values, labels = self._values(array), None if given is None else self._labels(given, len(array))
        rows = torch.from_numpy(np.flatnonzero(held_out(len(array), self.holdout) == (split == "test")))
        if not len(rows):
            raise ConfigError(
                f"Arrays {self.path}: none of its {len(array)} rows is in the {split} split with "
                f"holdout={self.holdout}: change holdout"
            )
        if labels is None:
            return Samples(values[rows])
        return Samples(values[rows], labels[rows], tuple(str(label) for label in range(int(labels.max()) + 1)))

    def _read(self) -> tuple[NDArray[Any], NDArray[Any] | None]:
        try:
            loaded = np.load(Path(self.path).expanduser(), allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                if self.key or self.label_key:
                    raise ConfigError(f"Arrays {self.path}: holds a single array: leave key and label_key empty")
                return loaded, None
            with loaded as arrays:
                key = self.key or self._only([name for name in arrays.files if name != self.label_key])
                for name in (key, self.label_key):
                    if name and name not in arrays.files:
                        raise ConfigError(
                            f"Arrays {self.path}: has no key {name!r}; its keys: {', '.join(arrays.files)}"
                        )
                return arrays[key], arrays[self.label_key] if self.label_key else None
        except ConfigError:
            raise
        except FileNotFoundError:
            raise FileError(f"Arrays {self.path}: does not exist") from None
        # What NumPy lets through on truncated or foreign files, and on pickled objects.
        except (
            OSError,
            ValueError,
            EOFError,
            zipfile.BadZipFile,
            zlib.error,
            lzma.LZMAError,
            NotImplementedError,
        ) as error:
            raise FileError(
                f"Arrays {self.path}: cannot be read as .npy or .npz without pickles, is it truncated? ({error})"
            ) from None

    def _only(self, names: list[str]) -> str:
        if len(names) != 1:
            raise ConfigError(f"Arrays {self.path}: key must name one of its arrays: {', '.join(names) or '(none)'}")
        return names[0]

    def _values(self, array: NDArray[Any]) -> Tensor:
        shape = array.shape
        if array.dtype == np.uint8:
            if len(shape) == 3:
                array = array[:, None]
            elif len(shape) == 4 and shape[1] not in (1, 3) and shape[3] in (1, 3):
                array = array.transpose(0, 3, 1, 2)
            if array.ndim != 4 or array.shape[1] not in (1, 3) or 0 in shape:
                raise ConfigError(
                    f"Arrays {self.path}: given uint8 {shape}, must be pictures (N, H, W), (N, C, H, W) or "
                    "(N, H, W, C) with C = 1 or 3; store other numbers as float32"
                )
            return torch.from_numpy(np.array(array, order="C"))
        if array.dtype.kind != "f" or len(shape) < 2 or 0 in shape:
            raise ConfigError(
                f"Arrays {self.path}: given {array.dtype} {shape}, must be float (N, *event) or uint8 pictures"
            )
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        finite = np.isfinite(array)
        if not finite.all():
            first = np.unravel_index(int(np.argmin(finite)), shape)
            index = tuple(int(i) for i in first)
            raise FileError(f"Arrays {self.path}: the number at {index} is {array[first]} in float32, must be finite")
        return torch.from_numpy(array)

    def _labels(self, labels: NDArray[Any], n: int) -> Tensor:
        if labels.dtype.kind not in "iu" or labels.shape != (n,) or labels.min() < 0 or labels.max() > 65535:
            raise ConfigError(
                f"Arrays {self.path}: {self.label_key!r} is {labels.dtype} {labels.shape}, "
                f"must be integers 0..65535 of ({n},)"
            )
        return torch.from_numpy(labels.astype(np.int64))
