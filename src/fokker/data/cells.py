"""Tables as they lie in files: columns of text cells, from .csv, .tsv (also .gz) or .parquet."""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, FileError, MissingExtraError, closest

__all__ = ["Cells", "is_number", "read_cells", "read_numbers", "table_suffix"]

SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Cells:
    """A table of text.

    Args:
        source: how messages name the table.
        columns: name to cells, all of one length; None is a missing cell.
        lines: the line (of a .parquet: the row, from 1) every row is found at.
        booleans: names of the columns that hold truth values, "False" and "True".
    """

    source: str
    columns: dict[str, list[str | None]]
    lines: list[int]
    booleans: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.lines)

    def column(self, name: str, field: str) -> list[str | None]:
        """A column that the user's `field` names. Raises ConfigError that names the closest one."""
        if name not in self.columns:
            raise ConfigError(f"{self.source}: {field} names {name!r}: {closest(name, self.columns)}")
        return self.columns[name]

    def where(self, row: int, name: str) -> str:
        """A cell, for messages."""
        return f"{self.source}: column {name!r}, line {self.lines[row]}"


def is_number(text: str) -> bool:
    """Whether a cell is a finite decimal number; 007 is a code, not a number."""
    found = NUMBER.fullmatch(text)
    return found is not None and re.match(r"[+-]?0\d", text) is None and abs(float(text)) < float("inf")


def table_suffix(path: Path | str) -> str:
    """The suffix of a table's name among `SUFFIXES`, or ""."""
    name = Path(path).name.casefold()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def read_cells(source: str, path: str, missing: tuple[str, ...] = ("",), header: bool | None = True) -> Cells:
    """Read a table.

    Args:
        source: how messages name it.
        path: .csv, .tsv, either with .gz, or .parquet (extra `table`); ~ is expanded. The delimiter of a .csv is the
            one of , ; | and tab that its first line has most of.
        missing: texts of missing cells, in any case.
        header: whether the first line names the columns; None: unless it is all numbers, and then names are 0, 1, ...

    Raises:
        FileError: the file is missing, damaged, empty, not UTF-8, or has a row of another length.
        ConfigError: another suffix, or a header with no, empty or repeated names.
        MissingExtraError: a .parquet without pyarrow.
    """
    suffix = table_suffix(path)
    if not suffix:
        raise ConfigError(f"{source}: given path={path!r}, must end in one of {', '.join(SUFFIXES)}")
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileError(f"{source}: {'is not a file' if file.exists() else 'does not exist'}")
    none = {text.casefold() for text in missing}
    cells = _parquet(source, file) if suffix == ".parquet" else _text(source, file, suffix, header)
    for name, column in cells.columns.items():
        cells.columns[name] = [None if text is None or text.casefold() in none else text for text in column]
    if not cells.columns or not len(cells):
        raise FileError(f"{source}: has {'a header but no rows' if cells.columns else 'no columns'}")
    return cells


def read_numbers(
    source: str, path: str, header: bool | None = True, only: tuple[str, ...] = ()
) -> dict[str, NDArray[np.float64]]:
    """Columns of numbers, by name; arguments as in `read_cells`.

    Args:
        only: the columns wanted, in order; () for all.

    Raises:
        ConfigError: there is no such column, or a cell is missing or no number; column and line are named.
    """
    cells = read_cells(source, path, header=header)
    columns = {name: cells.column(name, "columns") for name in only or cells.columns}
    for name, column in columns.items():
        for row, text in enumerate(column):
            if text is None or not is_number(text):
                raise ConfigError(
                    f"{cells.where(row, name)}: {'a missing cell' if text is None else repr(text) + ' is no number'}"
                )
    return {name: np.array(column, dtype=np.float64) for name, column in columns.items()}


def _text(source: str, file: Path, suffix: str, header: bool | None) -> Cells:
    try:
        opened: Any = gzip.open if suffix.endswith(".gz") else open
        with opened(file, "rt", encoding="utf-8-sig", newline="") as stream:
            first = stream.readline()
            stream.seek(0)
            delimiter = "\t" if suffix.startswith(".tsv") else max(",;\t|", key=first.count)
            reader = csv.reader(stream, delimiter=delimiter, strict=True)
            rows = [([cell.strip() for cell in row], reader.line_num) for row in reader if row]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise FileError(f"{source}: cannot be read as a UTF-8 table, is it damaged? ({error})") from None
    if not rows:
        raise FileError(f"{source}: is empty")
    names = rows[0][0]
    numbers = all(is_number(name) for name in names)
    if header is None and numbers:
        names = [str(i) for i in range(len(names))]
    else:
        rows = rows[1:]
        if numbers:
            raise ConfigError(f"{source}: its first line is all numbers: add a line with the columns' names above it")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or "" in names:
        raise ConfigError(
            f"{source}: the header "
            + (
                f"names {repeated[0]!r} twice"
                if repeated and repeated[0]
                else f"has no name for column {names.index('') + 1}"
            )
            + ": name every column once"
        )
    for row, line in rows:
        if len(row) != len(names):
            raise FileError(f"{source}: line {line} has {len(row)} cells, the first line has {len(names)}: mend it")
    columns: dict[str, list[str | None]] = {name: [row[i] for row, _ in rows] for i, name in enumerate(names)}
    return Cells(source, columns, [line for _, line in rows])


def _parquet(source: str, file: Path) -> Cells:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError:
        raise MissingExtraError("pyarrow", "table") from None
    try:
        table = read_table(file)
    except (OSError, ArrowException) as error:
        raise FileError(f"{source}: cannot be read as parquet, is it damaged? ({error})") from None
    columns = {
        name: [None if value is None else str(value).strip() for value in column.to_pylist()]
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    booleans = frozenset(field.name for field in table.schema if str(field.type) == "bool")
    return Cells(source, columns, list(range(1, table.num_rows + 1)), booleans)
