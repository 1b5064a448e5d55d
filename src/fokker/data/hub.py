"""Hub: a data set of Hugging Face's `datasets` library, saved to a folder or in memory."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import BeforeValidator, Field
from torch import Tensor

from ..component import InMemory, component
from ..errors import ConfigError, FileError, MissingExtraError, closest
from .arrays import held_out
from .folders import UNDECODABLE, square
from .samples import Data, Samples, check_split

__all__ = ["Hub"]


def _held(given: Any) -> Any:
    """The path field's value: a path as it is, a data set in memory wrapped."""
    if isinstance(given, (str, InMemory)):
        return given
    some = next(iter(given.values()), None) if isinstance(given, Mapping) else given
    if not hasattr(some, "column_names"):
        raise ValueError(f"needs a folder, a datasets.Dataset or a DatasetDict, not a {type(given).__name__}")
    return InMemory(given, "save it with its save_to_disk(FOLDER) and give that folder")


@component
class Hub(Data):
    """The rows of a `datasets.Dataset` or `DatasetDict`: pictures as bytes, or columns of numbers as float32.

    Pictures (`image`) are cut to the central square and resized; they may be arrays (H, W), (H, W, C) or (C, H, W) of
    integers in 0..255 or floats in [0, 1]. Numbers (`columns`) are taken as they are. A
    DatasetDict must have the splits "train" and "test" (or "validation", where there is no "test"); of a Dataset, row
    i is in the test split if the fractional part of (i + 1) / golden ratio is less than `holdout`.

    Args:
        path: a folder made by `save_to_disk`, which needs the extra `hub`; or the object itself, in memory.
        image: name of the column of pictures; or "" for numbers.
        columns: names of columns of numbers or of sequences of one length; several are joined into one vector.
        label: name of the column of classes (integers, texts or ClassLabel), or "" for none.
        size: height and width of the pictures.
        channels: 1 (grey) or 3 (RGB).
        holdout: fraction of the test split of a Dataset, in [0, 1).
        flip: mirror training pictures left to right with probability 1/2.

    Pictures that cannot be decoded are left out, and one warning counts and numbers them.

    Raises (from load):
        MissingExtraError: a folder was given and `datasets` is not installed.
        FileError: the folder is missing or holds no data set; no picture can be decoded; a number is not finite.
        ConfigError: a column or split is missing or does not fit, a picture's numbers are out of range, or there is a
            single class.
    """

    path: Annotated[str | InMemory, BeforeValidator(_held)]
    image: str = ""
    columns: tuple[str, ...] = ()
    label: str = ""
    size: Annotated[int, Field(ge=1)] = 32
    channels: Literal[1, 3] = 3
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    flip: bool = False

    def load(self, split: Literal["train", "test"] = "train") -> Samples:
        """The rows of a split, in their order."""
        check_split(split)
        if bool(self.image) == bool(self.columns):
            raise ConfigError("Hub: give either image=... (a column of pictures) or columns=... (numbers)")
        table, rows, train = self._rows(split)
        if not len(rows):
            raise ConfigError(f"Hub {self.path}: no row is in the {split} split: change holdout")
        values, good = self._pictures(table, rows) if self.image else (self._numbers(table, rows), rows)
        flip = self.flip and split == "train"
        if not self.label:
            return Samples(values, flip=flip)
        names, labels = self._labels(table, good, train)
        return Samples(values, labels, names, flip=flip)

    def _rows(self, split: str) -> tuple[Any, Tensor, Any]:
        """(table, its rows in the split, the table whose labels count)."""
        given = self.path.value if isinstance(self.path, InMemory) else _read(self.path)
        if isinstance(given, Mapping):
            other = "validation" if split == "test" and "test" not in given and "validation" in given else split
            for name in ("train", other):
                if name not in given:
                    raise ConfigError(f"Hub {self.path}: has no split {name!r}; its splits: {', '.join(given)}")
            table, train = given[other], given["train"]
            rows = torch.arange(len(table))
        else:
            table = train = given
            rows = torch.from_numpy(np.flatnonzero(held_out(len(given), self.holdout) == (split == "test")))
        for name in (self.image, *self.columns, self.label):
            if name and not (name in table.column_names and name in train.column_names):
                raise ConfigError(f"Hub {self.path}: has no column {name!r}: {closest(name, table.column_names)}")
        return table, rows, train

    def _pictures(self, table: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
        only, pictures, good = table.select_columns([self.image]), [], []
        for row in rows.tolist():
            try:
                given = only[row][self.image]
                if not isinstance(given, Image.Image):
                    given = _image(f"Hub {self.path}: {self.image!r} in row {row}", np.asarray(given))
                pictures.append(square(given, self.size, self.channels))
                good.append(row)
            except ConfigError:
                raise
            except UNDECODABLE:
                continue
        if not good:
            raise FileError(f"Hub {self.path}: none of the {len(rows)} pictures in {self.image!r} can be decoded")
        bad = sorted(set(rows.tolist()) - set(good))
        if bad:
            shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
            warnings.warn(
                f"Hub {self.path}: {len(bad)} pictures cannot be decoded and are skipped: rows {shown}", stacklevel=3
            )
        return torch.stack(pictures), torch.tensor(good)

    def _numbers(self, table: Any, rows: Tensor) -> Tensor:
        arrays = []
        for name in self.columns:
            try:
                only = table.select_columns([name]).with_format("numpy")
                array = np.asarray(only[rows.tolist()][name], dtype=np.float32)
            except (ValueError, TypeError):
                raise ConfigError(f"Hub {self.path}: {name!r} is no column of numbers of one shape") from None
            if not np.isfinite(array).all():
                row = int(rows[int(np.argmin(np.isfinite(array).reshape(len(array), -1).all(1)))])
                raise FileError(f"Hub {self.path}: {name!r} is not finite in row {row}")
            arrays.append(array)
        if len(arrays) == 1 and arrays[0].ndim > 1:
            return torch.from_numpy(arrays[0])
        return torch.from_numpy(np.concatenate([a.reshape(len(a), math.prod(a.shape[1:])) for a in arrays], axis=1))

    def _labels(self, table: Any, rows: Tensor, train: Any) -> tuple[tuple[str, ...], Tensor]:
        given, all_of = list(table[self.label]), set(train[self.label])
        names = getattr(train.features[self.label], "names", None)
        if names is None and all(isinstance(value, str) for value in all_of):
            names = sorted(all_of)
            number = {name: label for label, name in enumerate(names)}
            unknown = sorted(set(given) - all_of)
            if unknown:
                raise ConfigError(f"Hub {self.path}: the training split has no {self.label!r} {unknown[0]!r}")
            given = [number[value] for value in given]
        elif not all(isinstance(value, int) and 0 <= value <= 65535 for value in (*all_of, *given)):
            raise ConfigError(f"Hub {self.path}: {self.label!r} must hold texts, or integers in 0..65535")
        if len(all_of) < 2:
            raise ConfigError(f"Hub {self.path}: {self.label!r} holds a single class: leave label empty")
        names = names or [str(label) for label in range(max(all_of) + 1)]
        return tuple(names), torch.tensor(given, dtype=torch.int64)[rows]


def _image(source: str, array: NDArray[Any]) -> Image.Image:
    """A picture from bytes 0..255 or floats in [0, 1]; (H, W), (H, W, C) or (C, H, W). Raises ConfigError."""
    if array.dtype.kind not in "fiu" or array.size == 0:
        raise ValueError("no numbers")
    most = 1 if array.dtype.kind == "f" else 255
    if not (array.min() >= 0 and array.max() <= most):
        raise ConfigError(
            f"{source}: {array.dtype} from {array.min()} to {array.max()}, must be floats in [0, 1] or integers "
            "in 0..255: rescale them"
        )
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray((array * (255 // most)).round().astype(np.uint8))


def _read(path: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("datasets", "hub") from None
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise FileError(f"Hub {path}: does not exist; give a folder made by a data set's save_to_disk(FOLDER)")
    try:
        return datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise FileError(f"Hub {path}: cannot be read ({' '.join(str(error).split())})") from None
