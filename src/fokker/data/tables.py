"""Table: rows of mixed columns from a file. Diabetes: a small one that ships with the library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from ..component import component
from ..errors import ConfigError
from .arrays import held_out
from .cells import Cells, is_number, read_cells
from .columns import Category, Column, Number, TableCodec
from .samples import Data, Samples, check_split

__all__ = ["ColumnError", "Diabetes", "Table"]

Names = tuple[str, ...]
MISSING = ("", "NA", "N/A", "NaN", "null", "None", "?")


class ColumnError(ConfigError):
    """A column that cannot be used as it is.

    Args:
        message: what is wrong, where, and what to do.
        column: its name.
        rare: whether all that is wrong is a category that no training row has.
    """

    def __init__(self, message: str, column: str, rare: bool = False) -> None:
        super().__init__(message)
        self.column, self.rare = column, rare


@component
class Table(Data):
    """The rows of a .csv, .tsv (also .gz) or .parquet table: float32 (N, D), with a `TableCodec` for the way back.

    A column whose cells are all numbers is standardised (or mapped to a normal law); one with two different integers,
    or with text, is a category, one-hot; integers, and decimals of up to 6 digits, come back with the digits they had.
    Which rows are the test split is as in `Arrays`. Means, levels and ranges are those of the training rows.

    Args:
        path: the file; its first line names the columns; ~ is expanded. .parquet needs the extra `table`.
        columns: the columns to use, in this order; () for all.
        drop: columns to leave out.
        label: a column of categories that becomes the class label, and no part of the samples.
        condition: columns that become condition vectors, and no part of the samples; not together with `label`.
        categories, numbers: columns to read as such whatever they look like.
        missing: what to do with rows that have an empty cell or one of `na`: "error"; "mean" fills in the training
            mean (categories: the most common level); "drop" leaves the row out.
        rare: what to do with rows of the test split that have a category which no training row has: "error", or "drop"
            leaves the row out.
        na: texts of missing cells, in any case.
        quantile: which number columns get a quantile map to the normal law: "none", "heavy" (excess kurtosis above
            6) or "all".
        clip: keep decoded numbers within the training rows' range.
        most_levels: the most categories a column may have, >= 2.
        holdout: fraction of the test split, in [0, 1).

    Raises (from load):
        FileError: the file is missing, damaged, or has rows of different lengths.
        ConfigError: a column is unknown, constant, has one or too many categories, a missing cell, or a category that
            only the test split has; or the split is empty. Column and line are named.
        MissingExtraError: a .parquet without pyarrow.
    """

    path: str
    columns: Names = ()
    drop: Names = ()
    label: str = ""
    condition: Names = ()
    categories: Names = ()
    numbers: Names = ()
    missing: Literal["error", "mean", "drop"] = "error"
    rare: Literal["error", "drop"] = "error"
    na: Names = MISSING
    quantile: Literal["none", "heavy", "all"] = "none"
    clip: bool = True
    most_levels: Annotated[int, Field(ge=2)] = 100
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def load(self, split: Literal["train", "test"] = "train") -> Samples:
        """The rows of a split, in their order."""
        check_split(split)
        return self.of(read_cells(f"Table {self.path}", self.path, self.na), split)

    def of(self, cells: Cells, split: Literal["train", "test"] = "train") -> Samples:
        """`load`, of cells in memory in place of the file's."""
        check_split(split)
        names = self._names(cells)
        told = (self.label,) if self.label else self.condition
        used = [*names, *told]
        test = held_out(len(cells), self.holdout)
        whole = self._whole(cells, used)
        train, rows = np.flatnonzero(~test & whole), np.flatnonzero((test == (split == "test")) & whole)
        fitted = {name: self._fit(cells, name, train) for name in used} if len(train) else {}
        rows = self._known(cells, fitted, rows)
        if not len(train) or not len(rows):
            raise ConfigError(
                f"Table {self.path}: none of its {len(cells)} rows is in the {split if len(train) else 'train'} split "
                f"with holdout={self.holdout}, missing={self.missing!r} and rare={self.rare!r}: change them"
            )
        codec = TableCodec(
            tuple(fitted[name] for name in names),
            clip=self.clip,
            label=self.label,
            conditions=tuple(fitted[name] for name in self.condition),
        )
        table = {name: self._filled(cells, fitted[name], train, rows) for name in used}
        values = codec.encode(table)
        if self.label:
            column = fitted[self.label]
            assert isinstance(column, Category)
            return Samples(values, torch.from_numpy(column.index(table[self.label])), column.levels, codec)
        return Samples(values, codec=codec, cond=codec.condition(table) if self.condition else None)

    def _names(self, cells: Cells) -> list[str]:
        """The columns samples consist of."""
        given = {
            "columns": self.columns,
            "drop": self.drop,
            "condition": self.condition,
            "label": (self.label,) if self.label else (),
            "categories": self.categories,
            "numbers": self.numbers,
        }
        for field, fields in given.items():
            for name in fields:
                cells.column(name, field)
        if self.label and self.condition:
            raise ConfigError(f"Table {self.path}: given label={self.label!r} and condition: one or the other")
        out = {*self.drop, *given["label"], *self.condition}
        names = [name for name in self.columns or cells.columns if name not in out]
        if not names:
            raise ConfigError(f"Table {self.path}: no column is left to draw samples of ({', '.join(cells.columns)})")
        return names

    def _whole(self, cells: Cells, used: list[str]) -> NDArray[np.bool_]:
        """Which rows are used. Raises ConfigError at the first missing cell if `missing` is "error"."""
        whole = np.ones(len(cells), dtype=bool)
        for name in used:
            gaps = [row for row, text in enumerate(cells.columns[name]) if text is None]
            if gaps and self.missing == "error":
                raise ColumnError(
                    f"{cells.where(gaps[0], name)}: a missing cell ({len(gaps)} in this column); give missing='mean' "
                    f"or 'drop', or drop=[{name!r}]",
                    name,
                )
            if self.missing == "drop":
                whole[gaps] = False
        return whole

    def _fit(self, cells: Cells, name: str, train: NDArray[np.int64]) -> Column:
        column = cells.columns[name]
        texts = [text for row in train if (text := column[row]) is not None]
        if not texts:
            raise ColumnError(f"Table {self.path}: column {name!r} is empty: leave it out with drop=[{name!r}]", name)
        odd = next((row for row, text in enumerate(column) if text is not None and not is_number(text)), None)
        if name in self.numbers and odd is not None:
            raise ConfigError(f"{cells.where(odd, name)}: {column[odd]!r} is no number")
        distinct = set(texts)
        two = len(distinct) == 2 and not any("." in text or "e" in text.casefold() for text in distinct)
        try:
            if name not in self.numbers and (odd is not None or two or name in {*self.categories, self.label}):
                if len(distinct) > self.most_levels:
                    first = (
                        "" if odd is None else f" (line {cells.lines[odd]} holds {column[odd]!r}, which is no number)"
                    )
                    raise ConfigError(
                        f"column {name!r} has {len(distinct)} different categories{first}, most_levels is "
                        f"{self.most_levels}: mend it, or leave it out with drop=[{name!r}]"
                    )
                return Category.fit(name, texts, name in cells.booleans)
            return Number.fit(name, texts, quantile=self.quantile)
        except ConfigError as error:
            raise ColumnError(f"Table {self.path}: {error}", name) from None

    def _known(self, cells: Cells, fitted: dict[str, Column], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows without those of a category that no training row has."""
        for name, column in fitted.items():
            if isinstance(column, Category):
                texts, known = cells.columns[name], {None, *column.levels}
                odd = [row for row in rows.tolist() if texts[row] not in known]
                if odd and self.rare == "error":
                    raise ColumnError(
                        f"{cells.where(odd[0], name)}: {texts[odd[0]]!r} is in the test split and in no training row: "
                        f"give rare='drop' to leave such rows out ({len(odd)}), or merge it with another category",
                        name,
                        rare=True,
                    )
                rows = np.setdiff1d(rows, odd)
        return rows

    def _filled(self, cells: Cells, column: Column, train: NDArray[np.int64], rows: NDArray[np.int64]) -> list[str]:
        """The cells of some rows, gaps filled in."""
        texts = cells.columns[column.name]
        if isinstance(column, Number):
            fill = repr(column.mean if column.decimals is None else round(column.mean, column.decimals))
        else:
            assert isinstance(column, Category)
            counts = [texts[row] for row in train]
            fill = max(column.levels, key=counts.count)
        return [fill if (text := texts[row]) is None else text for row in rows]


@component
class Diabetes(Data):
    """442 patients: age, sex, bmi, bp, six blood serum measurements s1..s6, and the disease's progress after a year.

    float32 (N, 11): ten numbers and the category sex (1, 2), in a file beside this module. s1..s6 are total
    cholesterol, LDL, HDL, total / HDL, log of triglycerides, and blood sugar.

    Args:
        holdout: fraction of the test split, in [0, 1).
    Source: Efron, Hastie, Johnstone and Tibshirani 2004, Least Angle Regression, section 7; the file as scikit-learn
    ships it (`load_diabetes(scaled=False)`).
    """

    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.2

    def load(self, split: Literal["train", "test"] = "train") -> Samples:
        """The patients of a split, in their order."""
        path = Path(__file__).with_name("diabetes.csv")
        return Table(str(path), holdout=self.holdout).load(split)
