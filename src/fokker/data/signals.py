"""Signals: one-dimensional signals (C, L), or windows of a long one. Heartbeats: one that ships with the library."""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from ..component import component
from ..errors import ConfigError, FileError
from .arrays import as_float32, as_labels, held_out, read_numpy
from .cells import read_numbers, table_suffix
from .codec import Codec
from .samples import Data, Samples, check_split

__all__ = ["Heartbeats", "SignalCodec", "Signals", "read_wav", "windows"]

BLOCKS = 10
HEARTBEATS = "54285832b956a65a84d4b791992edb8ff68a917f2353a9c4b9b7fc968d7c2af8"
Positive = Annotated[float, Field(gt=0)]


@component
class SignalCodec(Codec):
    """v = mean + std x, channel by channel.

    Args:
        mean, std: one number a channel, of the training split.
    """

    mean: tuple[float, ...]
    std: tuple[Positive, ...]

    def decode(self, x: Tensor) -> Tensor:
        """Samples (N, C, L) -> signals (N, C, L) in the user's units."""
        mean, std = self._numbers("decode", x)
        return mean + std * x

    def encode(self, values: Tensor) -> Tensor:
        """Signals (N, C, L) in the user's units -> samples (N, C, L)."""
        mean, std = self._numbers("encode", values.double())
        return ((values - mean) / std).float()

    def _numbers(self, what: str, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.ndim != 3 or x.shape[1] != len(self.mean) or len(self.std) != len(self.mean):
            raise ConfigError(f"SignalCodec.{what}: given {tuple(x.shape)}, must be (N, {len(self.mean)}, L)")
        return x.new_tensor(self.mean)[:, None], x.new_tensor(self.std)[:, None]


def windows(length: int, window: int, stride: int, holdout: float, split: str) -> list[int]:
    """Where the windows of a split begin in one series; no window of one split touches one of the other.

    The series is cut into at most 10 equal parts, fewer if the test windows would not fit twice; in each, the last
    `holdout` is the test split's.

    Args:
        length, window, stride: of the series, a window, and from one window to the next.
        holdout: fraction of the series, in [0, 1).
        split: "train" or "test".
    """
    parts = min(BLOCKS, max(1, int(holdout * length / (2 * window))))
    starts: list[int] = []
    for part in range(parts):
        first, last = part * length // parts, (part + 1) * length // parts
        cut = last - round(holdout * (last - first))
        low, high = (first, cut) if split == "train" else (cut, last)
        starts += range(low, high - window + 1, stride)
    return starts


@component
class Signals(Data):
    """Signals (C, L) of a .npy, .npz, .csv, .tsv or .wav file: float32, every channel standardised in training.

    window = 0: every row is a signal; (N, L) or (N, C, L), and a row of a table is one signal.
    window > 0: one long series, (T,) or time first (T, C), cut into windows: a .wav, a table with a channel a column,
    or an array; (N, C, T) is many series. The test split is contiguous blocks (`windows`), of many series whole ones
    as in `Arrays`, so that no training window overlaps a test window.

    Args:
        path: the file; ~ is expanded; nothing is unpickled.
        window: length of a window, or 0.
        stride: from one window to the next; 0 means `window`.
        columns: the columns of a table that are channels; () for all.
        key, label_key: as in `Arrays`, for an .npz; labels only with window = 0.
        holdout: fraction of the test split, in [0, 1).

    Raises (from load):
        FileError: the file is missing, damaged, or holds a number that is not finite.
        ConfigError: shape or window do not fit, a channel is constant, or the split is empty.
    """

    path: str
    window: Annotated[int, Field(ge=0)] = 0
    stride: Annotated[int, Field(ge=0)] = 0
    columns: tuple[str, ...] = ()
    key: str = ""
    label_key: str = ""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def load(self, split: Literal["train", "test"] = "train") -> Samples:
        """The signals of a split, in their order."""
        check_split(split)
        array, labels = self._read(f"Signals {self.path}")
        return self.of(array, labels, split)

    def of(
        self, array: NDArray[Any], labels: NDArray[Any] | None = None, split: Literal["train", "test"] = "train"
    ) -> Samples:
        """`load`, of an array in memory in place of the file's."""
        check_split(split)
        source = f"Signals {self.path}"
        if array.dtype.kind not in "fiu" or 0 in array.shape:
            raise ConfigError(f"{source}: given {array.dtype} {array.shape}, must be numbers")
        array = as_float32(source, array)
        if self.window == 0:
            if array.ndim not in (2, 3):
                raise ConfigError(
                    f"{source}: given shape {array.shape}, must be (N, L) or (N, C, L); one series needs window"
                )
            array = array[:, None] if array.ndim == 2 else array
        elif array.ndim > 3 or (array.ndim == 2 and array.shape[1] > array.shape[0]):
            raise ConfigError(f"{source}: given shape {array.shape}, with window it must be (T,), (T, C) or (N, C, T)")
        told, names = (None, ()) if labels is None else as_labels(source, self.label_key, labels, len(array))
        train, rows = self._cut(array, "train"), self._cut(array, split)
        if not len(train) or not len(rows):
            raise ConfigError(
                f"{source}: shape {array.shape} gives no {split if len(train) else 'train'} signal with "
                f"window={self.window} and holdout={self.holdout}: change them"
            )
        mean, std = train.mean((0, 2), dtype=np.float64), train.std((0, 2), dtype=np.float64)
        if not (std > 0).all():
            raise ConfigError(f"{source}: channel {int(np.argmin(std))} is constant: leave it out")
        values = ((rows - mean[:, None]) / std[:, None]).astype(np.float32)
        if told is not None:
            test = held_out(len(array), self.holdout)
            told = told[torch.from_numpy(np.flatnonzero(test == (split == "test")))]
        return Samples(torch.from_numpy(values), told, names, SignalCodec(tuple(mean.tolist()), tuple(std.tolist())))

    def _cut(self, array: NDArray[np.float32], split: str) -> NDArray[np.float32]:
        """The signals (N, C, L) of a split."""
        stride = self.stride or self.window
        if self.window and array.ndim < 3:
            series = array.reshape(len(array), -1).T
            starts = windows(len(array), self.window, stride, self.holdout, split)
            cut = [series[:, start : start + self.window] for start in starts]
            return np.stack(cut) if cut else np.empty((0, len(series), self.window), np.float32)
        chosen: NDArray[np.float32] = array[held_out(len(array), self.holdout) == (split == "test")]
        if not self.window:
            return chosen
        starts = list(range(0, array.shape[2] - self.window + 1, stride))
        cut = [one[:, start : start + self.window] for one in chosen for start in starts]
        return np.stack(cut) if cut else np.empty((0, array.shape[1], self.window), np.float32)

    def _read(self, source: str) -> tuple[NDArray[Any], NDArray[Any] | None]:
        suffix = Path(self.path).suffix.casefold()
        if self.label_key and (self.window or suffix != ".npz"):
            raise ConfigError(f"{source}: label_key={self.label_key!r} needs an .npz of whole signals, window=0")
        if suffix in (".npy", ".npz"):
            array, labels = read_numpy(source, self.path, self.key, label_key=self.label_key)
            return array, labels
        if suffix == ".wav":
            return read_wav(source, self.path), None
        if not table_suffix(self.path):
            raise ConfigError(f"{source}: must end in .npy, .npz, .wav, .csv, .tsv, .csv.gz, .tsv.gz or .parquet")
        columns = read_numbers(source, self.path, header=None, only=self.columns)
        return np.stack(list(columns.values()), axis=1), None


def read_wav(source: str, path: str) -> NDArray[Any]:
    """(T,) or (T, C) as stored; whole numbers over their type's range, in [-1, 1)."""
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks it does not know, which are no sound
            _, array = wavfile.read(Path(path).expanduser())
    except FileNotFoundError:
        raise FileError(f"{source}: does not exist") from None
    except (OSError, ValueError, EOFError, struct.error) as error:
        raise FileError(f"{source}: cannot be read as .wav, is it damaged? ({error})") from None
    if array.dtype == np.uint8:
        return np.asarray((array.astype(np.float32) - 128) / 128)
    return np.asarray(array / -float(np.iinfo(array.dtype).min) if array.dtype.kind == "i" else array)


@component
class Heartbeats(Data):
    """Windows of an electrocardiogram: float32 (1, window), millivolts standardised; 5 minutes at 120 samples a second.

    Minutes 19:35 to 24:35 of record 208 (lead MLII) of the MIT-BIH Arrhythmia Database, at a third of its rate: normal
    beats, extrasystoles and some disturbance.

    Args:
        window: length, >= 1; 120 are a second, about two beats.
        stride: from one window to the next.
        holdout: fraction of the test split, in [0, 1).

    Raises (from load):
        FileError: the file is missing or its SHA-256 is not the recorded one.
    Source: Moody and Mark 2001; Goldberger et al. 2000 (PhysioNet); ODC-BY 1.0, in HEARTBEATS_LICENSE beside the file.
    """

    window: Annotated[int, Field(ge=1)] = 128
    stride: Annotated[int, Field(ge=1)] = 16
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.2

    def load(self, split: Literal["train", "test"] = "train") -> Samples:
        """The windows of a split, in the order of time."""
        file = Path(__file__).with_name("heartbeats.npz")
        try:
            content = file.read_bytes()
        except OSError as error:
            raise FileError(f"{file} cannot be read ({error.strerror}): reinstall fokker") from None
        if hashlib.sha256(content).hexdigest() != HEARTBEATS:
            raise FileError(f"{file} is damaged (its SHA-256 differs from the recorded one): reinstall fokker")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            series = arrays["differences"].cumsum(dtype=np.int64) / 200
        return Signals("heartbeats", self.window, self.stride, holdout=self.holdout).of(series, split=split)
