"""Samples as files: pictures, NumPy arrays and tables."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, FileError, MissingExtraError
from ..files import write_whole
from .codec import Codec
from .columns import RowCodec, TableCodec
from .pictures import picture

__all__ = ["EXPORTS", "check_export", "table_rows", "write_samples"]

EXPORTS = (".png", ".npy", ".npz", ".csv", ".csv.gz", ".parquet")


def check_export(path: Path | str, *, overwrite: bool = False) -> str:
    """The suffix of an output file, before an hour is spent on its samples.

    Raises:
        ConfigError: it is not one of `EXPORTS`.
        FileError: the file exists and `overwrite` is not set.
        MissingExtraError: a .parquet without pyarrow.
    """
    path = Path(path)
    suffix = next((suffix for suffix in sorted(EXPORTS, key=len, reverse=True) if path.name.endswith(suffix)), "")
    if not suffix:
        raise ConfigError(f"output: given {str(path)!r}; must end in {', '.join(EXPORTS)}, or be a folder: FOLDER/")
    if path.exists() and not overwrite:
        raise FileError(f"{path} exists and is left as it is; choose another name or give --overwrite")
    if suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise MissingExtraError("pyarrow", "table") from None
    return suffix


def write_samples(
    path: Path | str,
    x: Tensor,
    *,
    codec: Codec | None = None,
    cond: Tensor | None = None,
    classes: tuple[str, ...] | list[str] = (),
    columns: int = 8,
    overwrite: bool = False,
) -> None:
    """Write a model's samples in the user's units.

    Args:
        path: .png is a picture (`picture`); .npy the decoded numbers; .npz these as `x`, with `labels` and `classes` or
            `cond`, and a table's `columns`; .csv, .csv.gz and .parquet (extra `table`) a row a sample, with a header.
        x: (N, *event), as the model gives them.
        codec: decodes them; None leaves them as they are.
        cond: what they were drawn for: labels (N,), a further column of a table, empty for the null class -1; or
            vectors (N, d), which become the columns that a `TableCodec` was conditioned on.
        classes: the labels' names.
        columns: tiles in a row of a picture.
        overwrite: whether an existing file is replaced.

    Raises:
        ConfigError: another suffix, or samples that have no picture or no rows.
        FileError: the file exists or cannot be written.
        MissingExtraError: a .parquet without pyarrow.
    """
    path = Path(path)
    suffix = check_export(path, overwrite=overwrite)
    x = x.detach().cpu()
    if suffix == ".png":
        image = picture(x, columns, codec)
        if image is None:
            raise ConfigError(f"{path}: samples of shape {tuple(x.shape[1:])} have no picture; write a .npy file")
        write_whole(path, lambda temporary: image.save(temporary, format="PNG"))
    elif suffix in (".npy", ".npz"):
        array = (x if codec is None else codec.decode(x)).cpu().numpy()
        extra: dict[str, Any] = {}
        if cond is not None:
            extra["labels" if cond.ndim == 1 else "cond"] = cond.cpu().numpy()
        if classes:
            extra["classes"] = np.array(list(classes))
        if isinstance(codec, RowCodec):
            extra["columns"] = np.array(codec.names)
        write_whole(path, lambda temporary: _write_arrays(temporary, suffix, array, extra))
    else:
        rows = table_rows(x, codec=codec, cond=cond, classes=classes)
        write_whole(path, lambda temporary: _write_table(temporary, suffix, rows))


def table_rows(
    x: Tensor, *, codec: Codec | None = None, cond: Tensor | None = None, classes: tuple[str, ...] | list[str] = ()
) -> list[dict[str, object]]:
    """Samples as rows: a table's own columns; of vectors x0, x1, ...; of signals t0, t1, ... or c0_t0, ....

    Arguments as in `write_samples`; labels are a further column, "label" or the table's own name for it.

    Raises:
        ConfigError: the samples are no rows, such as images.
    """
    if isinstance(codec, RowCodec):
        rows, name = codec.rows(x), codec.label or "label"
    else:
        x, name = x if codec is None else codec.decode(x), "label"
        if x.ndim == 2:
            names = [f"x{i}" for i in range(x.shape[1])]
        elif x.ndim == 3:
            ahead = [""] if x.shape[1] == 1 else [f"c{c}_" for c in range(x.shape[1])]
            names = [f"{start}t{i}" for start in ahead for i in range(x.shape[2])]
        else:
            raise ConfigError(
                f"samples of shape {tuple(x.shape[1:])} are no rows of a table; write a .npy or .png file"
            )
        flat = x.detach().to("cpu", torch.float64).flatten(1).tolist()
        rows = [dict(zip(names, row, strict=True)) for row in flat]
    if cond is not None and cond.ndim == 1:
        for row, label in zip(rows, cond.tolist(), strict=True):
            row[name] = None if label < 0 else classes[label] if classes else label  # -1 is the null class
    elif cond is not None and isinstance(codec, TableCodec) and codec.conditions:
        given = TableCodec(codec.conditions, clip=False).rows(cond)
        rows = [row | told for row, told in zip(rows, given, strict=True)]
    return rows


def _write_arrays(path: Path, suffix: str, array: Any, extra: dict[str, Any]) -> None:
    with path.open("wb") as file:
        if suffix == ".npy":
            np.save(file, array, allow_pickle=False)
        else:
            np.savez(file, x=array, **extra)  # an older NumPy stores allow_pickle=False as an array


def _write_table(path: Path, suffix: str, rows: list[dict[str, object]]) -> None:
    if suffix == ".parquet":
        from pyarrow import Table
        from pyarrow.parquet import write_table

        write_table(Table.from_pylist(rows), path)
        return
    opened: Any = gzip.open if suffix == ".csv.gz" else open
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)
