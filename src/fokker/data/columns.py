"""Columns of a table as numbers for a model, and back: `Number`, `Category`, and the `TableCodec` that joins them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import ndtri
from torch import Tensor

from ..component import component
from ..errors import ConfigError, closest
from ..registry import resolves
from .cells import is_number
from .codec import Codec

__all__ = ["Category", "Column", "Number", "RowCodec", "TableCodec"]

KNOTS = 1000
MOST_DECIMALS = 6
Floats = NDArray[np.float64]


class Column:
    """One column of a table: `width` numbers of a sample, and one value of the user's."""

    name: str

    @property
    def width(self) -> int:
        """How many numbers of a sample the column takes."""
        raise NotImplementedError

    def encode(self, texts: Sequence[str]) -> Floats:
        """N cells -> (N, width). Raises ConfigError naming the first that does not belong here."""
        raise NotImplementedError

    def decode(self, x: Floats, clip: bool = False) -> Floats:
        """(N, width) -> (N,): numbers, or indices of levels."""
        raise NotImplementedError

    def value(self, code: float) -> object:
        """What the user sees of a decoded number."""
        raise NotImplementedError

    def text(self, code: float) -> str:
        """The cell of a decoded number, for `encode`. Raises ConfigError."""
        return repr(code)


@component
class Number(Column):
    """A column of numbers: z = (v - mean) / std, or piecewise linear through `knots`.

    Args:
        name: of the column.
        mean, std: of the training rows.
        low, high: the training rows' range.
        decimals: digits after the point that decoded numbers are rounded to; 0 for integers, None for no rounding.
        knots: pairs (v, z), both increasing; beyond the ends z goes on with slope 1 / std. () for none.
    """

    name: str
    mean: float
    std: Annotated[float, Field(gt=0)]
    low: float
    high: float
    decimals: Annotated[int, Field(ge=0)] | None = None
    knots: tuple[tuple[float, float], ...] = ()

    @property
    def width(self) -> int:
        """1."""
        return 1

    @classmethod
    def fit(cls, name: str, texts: Sequence[str], *, quantile: str = "none", rounded: bool = True) -> Number:
        """The column that training cells need.

        Args:
            name: of the column.
            texts: the training cells, all numbers.
            quantile: "all" maps midranks (r - 1/2) / n to the normal's quantiles; "heavy" does so where the excess
                kurtosis is above 6 (the Laplace law's is 6); "none" never.
            rounded: round decoded numbers to the digits the cells have, if those are at most 6 in all of them.

        Raises:
            ConfigError: the column is constant, or its integers cannot be told apart in float32.
        """
        v = np.array([float(text) for text in texts])
        low, high = float(v.min()), float(v.max())
        if low == high:
            raise ConfigError(f"column {name!r} is constant ({texts[0]}): leave it out with drop=[{name!r}]")
        with np.errstate(over="ignore"):
            mean, std = float(v.mean()), float(v.std())
        if not (math.isfinite(std) and std > 0):
            raise ConfigError(f"column {name!r}: {low:g} to {high:g} is too wide or too narrow for float64: rescale it")
        heavy = quantile == "heavy" and float((((v - mean) / std) ** 4).mean()) - 3 > 6
        knots = _knots(v) if quantile == "all" or heavy else ()
        found = cls(name, mean, std, low, high, _decimals(texts) if rounded else None, knots)
        if found.decimals is None or np.array_equal(found.decode(found.encode(texts).astype(np.float32)), v):
            return found
        if found.decimals == 0:
            raise ConfigError(
                f"column {name!r}: its integers, {low:g} to {high:g}, cannot be told apart in float32: "
                f"leave it out with drop=[{name!r}] if it is an identifier"
            )
        return cls(name, mean, std, low, high, None, knots)

    def encode(self, texts: Sequence[str]) -> Floats:
        """N cells -> (N, 1)."""
        wrong = next((text for text in texts if not is_number(text)), None)
        if wrong is not None:
            raise ConfigError(f"column {self.name!r}: {wrong!r} is no number")
        v = np.array([float(text) for text in texts])
        return (self._map(v, 0) if self.knots else (v - self.mean) / self.std)[:, None]

    def decode(self, x: Floats, clip: bool = False) -> Floats:
        """(N, 1) -> (N,); `clip` keeps to [low, high]."""
        z = x[:, 0].astype(np.float64)
        v = self._map(z, 1) if self.knots else self.mean + self.std * z
        v = v.clip(self.low, self.high) if clip else v
        return v if self.decimals is None else v.round(self.decimals) + 0.0  # no -0

    def _map(self, a: Floats, source: int) -> Floats:
        known = np.array(self.knots).T
        p, q = known[source], known[1 - source]
        slope = 1 / self.std if source == 0 else self.std
        beyond = (a - a.clip(p[0], p[-1])) * slope
        mapped: Floats = np.interp(a, p, q) + beyond
        return mapped

    def value(self, code: float) -> object:
        """An int if the column holds integers, else a float; None if it is not finite."""
        if not math.isfinite(code):
            return None
        return int(code) if self.decimals == 0 else float(code)


def _decimals(texts: Sequence[str]) -> int | None:
    """The most digits after the point (trailing zeros not counted), None if above 6 or written with an exponent."""
    if any("e" in text.casefold() for text in texts):
        return None
    most = max(len(text.partition(".")[2].rstrip("0")) for text in texts)
    return most if most <= MOST_DECIMALS else None


def _knots(v: Floats) -> tuple[tuple[float, float], ...]:
    """At most KNOTS of the values, each with the normal quantile of its midrank."""
    values, counts = np.unique(v, return_counts=True)
    z = ndtri((np.cumsum(counts) - counts / 2) / len(v))
    chosen = np.unique(np.linspace(0, len(values) - 1, min(KNOTS, len(values))).round().astype(int))
    return tuple(zip(values[chosen].tolist(), z[chosen].tolist(), strict=True))


@component
class Category(Column):
    """A column of levels: one-hot in -1 and 1, decoded by the largest; two levels are a single number's sign.

    Args:
        name: of the column.
        levels: the texts, two or more; numbers are in their order, other texts sorted.
        boolean: whether the values are False and True, in this order.
    """

    name: str
    levels: Annotated[tuple[str, ...], Field(min_length=2)]
    boolean: bool = False

    @classmethod
    def fit(cls, name: str, texts: Sequence[str], boolean: bool = False) -> Category:
        """The column that training cells need. Raises ConfigError for a single level."""
        levels = set(texts)
        if len(levels) == 1:
            raise ConfigError(f"column {name!r} has one category, {texts[0]!r}: leave it out with drop=[{name!r}]")
        order = sorted(levels, key=(lambda t: (float(t), t)) if all(map(is_number, levels)) else None)
        return cls(name, tuple(order), boolean)

    @property
    def width(self) -> int:
        """1 for two levels, else their number."""
        return 1 if len(self.levels) == 2 else len(self.levels)

    def index(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """The levels' numbers. Raises ConfigError."""
        known = {level: i for i, level in enumerate(self.levels)}
        wrong = next((text for text in texts if text not in known), None)
        if wrong is not None:
            raise ConfigError(
                f"column {self.name!r}: {wrong!r} is no category of the training rows; {closest(wrong, self.levels)}"
            )
        return np.array([known[text] for text in texts], dtype=np.int64)

    def encode(self, texts: Sequence[str]) -> Floats:
        """N cells -> (N, width)."""
        hot = np.eye(len(self.levels))[self.index(texts)] * 2 - 1
        return hot[:, 1:] if len(self.levels) == 2 else hot

    def decode(self, x: Floats, clip: bool = False) -> Floats:
        """(N, width) -> (N,) indices of levels; NaN where x is not finite."""
        index = x[:, 0] > 0 if len(self.levels) == 2 else x.argmax(axis=1)
        return np.where(np.isfinite(x).all(axis=1), index, np.nan)

    def value(self, code: float) -> object:
        """The level: a bool, an int where all levels are integers, or the text; None for NaN."""
        if math.isnan(code):
            return None
        level = self.levels[int(code)]
        if self.boolean:
            return bool(code)
        return int(level) if all(re.fullmatch(r"[+-]?\d+", text) and is_number(text) for text in self.levels) else level

    def text(self, code: float) -> str:
        """The level of a number. Raises ConfigError."""
        if code not in range(len(self.levels)):
            raise ConfigError(
                f"column {self.name!r}: given {code}, must be a level's number, 0 to {len(self.levels) - 1}"
            )
        return self.levels[int(code)]


class RowCodec(Codec):
    """A codec whose samples are rows of a table."""

    label: str

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names."""
        raise NotImplementedError

    def rows(self, x: Tensor) -> list[dict[str, object]]:
        """Samples -> rows, name to int, float, bool, text, or None."""
        raise NotImplementedError


@component
class TableCodec(RowCodec):
    """Rows of a table from samples (N, D): columns side by side, D the sum of their widths.

    Args:
        columns: what a sample consists of, in order.
        clip: keep decoded numbers within the training rows' range.
        label: name of the column that was taken as the class label, or "".
        conditions: the columns that are given to the model rather than drawn from it.
    """

    columns: tuple[Annotated[Column, resolves("column")], ...]
    clip: bool = True
    label: str = ""
    conditions: tuple[Annotated[Column, resolves("column")], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names."""
        return tuple(column.name for column in self.columns)

    def encode(self, values: Mapping[str, Sequence[object]] | Tensor) -> Tensor:
        """Columns of N values each, or what `decode` gives, (N, columns) -> (N, D) float32; what `decode` undoes.

        Raises:
            ConfigError: a column is missing, or a value does not belong to it.
        """
        if not isinstance(values, Tensor):
            return _encode(self.columns, values)
        if values.ndim != 2 or values.shape[1] != len(self.columns):
            given, names = tuple(values.shape), ", ".join(self.names)
            raise ConfigError(f"TableCodec.encode: given {given}, must be (N, {len(self.columns)}): {names}")
        codes = zip(self.columns, values.double().T.tolist(), strict=True)
        return _encode(self.columns, {column.name: [column.text(code) for code in cells] for column, cells in codes})

    def condition(self, table: Mapping[str, Sequence[object]]) -> Tensor:
        """Values of the columns `conditions` -> condition vectors (N, d) float32, as the model was told in training."""
        if not self.conditions:
            raise ConfigError("TableCodec: this table was loaded without condition columns")
        return _encode(self.conditions, table)

    def decode(self, x: Tensor) -> Tensor:
        """Samples (N, D) -> (N, columns) float64: numbers in the user's units, categories as the level's number."""
        total = sum(column.width for column in self.columns)
        if x.ndim != 2 or x.shape[1] != total:
            raise ConfigError(f"TableCodec.decode: given samples {tuple(x.shape)}, must be (N, {total})")
        array = x.detach().to("cpu", torch.float64).numpy()
        ends = np.cumsum([column.width for column in self.columns])
        parts = np.split(array, ends[:-1], axis=1)
        done = [column.decode(part, self.clip) for column, part in zip(self.columns, parts, strict=True)]
        return torch.from_numpy(np.stack(done, axis=1))

    def rows(self, x: Tensor) -> list[dict[str, object]]:
        """Samples (N, D) -> N rows, name to int, float, bool, text, or None."""
        return [
            {column.name: column.value(code) for column, code in zip(self.columns, row, strict=True)}
            for row in self.decode(x).tolist()
        ]


def _encode(columns: Sequence[Column], table: Mapping[str, Sequence[object]]) -> Tensor:
    missing = [column.name for column in columns if column.name not in table]
    if missing:
        raise ConfigError(f"the table has no column {missing[0]!r}; needed: {', '.join(c.name for c in columns)}")
    parts = [column.encode([str(value) for value in table[column.name]]) for column in columns]
    return torch.from_numpy(np.concatenate(parts, axis=1)).to(torch.float32)
