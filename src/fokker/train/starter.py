"""A first recipe for the user's own data: look at the data, choose, and say why.

`look` gives what was seen and the recipe's text, a comment beside every choice. Nothing is written here.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data import Folder, Table
from ..data.arrays import array_names, as_float32, as_values, read_numpy
from ..data.cells import Cells, is_number, read_cells, read_numbers, table_suffix
from ..data.folders import SUFFIXES, UNDECODABLE
from ..data.signals import read_wav
from ..data.tables import MISSING, ColumnError
from ..errors import ConfigError, FileError
from .draft import Line, Look

__all__ = ["look"]

LOOKED = 1000  # pictures that are decoded, evenly over all
SIZES = (8, 12, 16, 20, 24, 28, 32, 48, 64)
WHAT = "a folder of pictures, a .npy or .npz array, a .csv, .tsv or .parquet table, or a .wav sound"


def look(path: Path | str) -> Look:
    """Look at the user's data and choose how to train on it.

    Args:
        path: a folder of pictures, .npy, .npz, .csv, .tsv (also .gz), .parquet or .wav; ~ is expanded.

    Raises:
        FileError: nothing is there, or it cannot be read.
        ConfigError: it is of another kind, or nothing could be learned from it.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        return _folder(file)
    if not file.exists():
        raise FileError(f"{path}: does not exist; give {WHAT}")
    suffix = file.suffix.casefold()
    seeing: dict[str, Callable[[Path], Look]] = {".npy": _numpy, ".npz": _numpy, ".wav": _wav}
    if suffix in seeing:
        return seeing[suffix](file)
    if not table_suffix(file):
        raise ConfigError(f"{path}: this kind of file is not known; give {WHAT}")
    return _table(file)


# ---- pictures


def _folder(folder: Path) -> Look:
    others = sorted(file.name for file in folder.iterdir() if file.suffix.casefold() in (".npy", ".npz", ".wav"))
    others += sorted(file.name for file in folder.iterdir() if table_suffix(file))
    if others and not any(file.suffix.casefold() in SUFFIXES for file in folder.rglob("*")):
        raise ConfigError(f"{folder}: has no pictures, but {', '.join(others[:5])}: give the path of one of these")
    source = Folder(str(folder), size=1)
    files, classes = source.scan()
    chosen = files[:: -(-len(files) // LOOKED)]
    with ThreadPoolExecutor() as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pillow's, of what it could mend
        found = [seen for seen in pool.map(_glance, chosen) if seen is not None]
    if not found:
        raise FileError(f"{folder}: none of the {len(chosen)} pictures looked at can be decoded")
    test = [source.held_out(file.relative_to(folder)) for file in files]
    sides = np.array([seen[0] for seen in found])
    channels = 3 if np.mean([seen[1] for seen in found]) > 0.02 else 1
    median, bad = int(np.median(sides.min(axis=1))), len(chosen) - len(found)
    size = _size(folder, median)
    seen = [
        ("pictures", f"{len(files):,}" + (f" (looked at {len(chosen):,})" if len(chosen) < len(files) else "")),
        ("cannot be decoded", f"{bad} of those looked at" if bad else "none"),
        ("sides", f"{sides.min()} to {sides.max()}, the median shorter side {median}"),
        ("colour", "yes" if channels == 3 else "no"),
        ("classes", _names(classes) if classes else "none (no sub-folders)"),
    ]
    data: list[Line] = [
        ("kind", "folder", ""),
        ("path", str(folder.resolve()), ""),
        ("size", size, f"pictures are cut to a square and resized; theirs is {median}, and cost grows with its square"),
        ("channels", channels, "colour" if channels == 3 else "all of them are grey"),
        ("holdout", 0.1, "a tenth is kept for testing, chosen by name")
        if 0 < sum(test) < len(test)
        else ("holdout", 0.0, "none is kept for testing, there are so few"),
    ]
    if channels == 3:
        data.append(
            ("flip", True, "mirrored at random: right for photographs, wrong for text, maps, left or right hands")
        )
    return _pictures(seen, data, len(files) - len(files) * bad // len(chosen), size, len(classes))


def _glance(file: Path) -> tuple[tuple[int, int], bool] | None:
    """(a picture's sides, whether it has colour), None if it cannot be decoded."""
    try:
        with Image.open(file) as picture:
            small = np.asarray(picture.convert("RGB").resize((16, 16)), dtype=np.int16)
            return picture.size, bool(np.ptp(small, axis=2).max() > 8)
    except UNDECODABLE:
        return None


def _size(source: Path, side: int) -> int:
    if side < SIZES[0]:
        raise ConfigError(
            f"{source}: its pictures are {side} pixels wide, too small to learn from; at least {SIZES[0]}"
        )
    return max(size for size in SIZES if size <= side)


def _pictures(seen: list[tuple[str, str]], data: list[Line], n: int, size: int, classes: int) -> Look:
    width = 16 if n < 2000 else 32 if n < 50000 else 64
    multipliers = [1, 2] if size < 16 else [1, 2, 2] if size <= 32 else [1, 2, 2, 4]
    inner = -(-size // 2 ** (len(multipliers) - 1))
    net: list[Line] = [
        ("kind", "unet", ""),
        ("width", width, f"for {n:,} pictures; twice the width is four times the work, and learns finer detail"),
        ("multipliers", multipliers, f"channels in units of width; each level halves the side: {size} to {inner}"),
        ("attention", [inner], "self-attention where the side is this"),
    ]
    if n < 2000:
        net.append(("dropout", 0.1, f"{n:,} pictures are few: without it they are learnt by heart"))
    return Look(seen, data, net, n, classes, image=True, large=size > 32)


# ---- arrays


def _numpy(file: Path) -> Look:
    source = str(file)
    names = array_names(source, file)
    arrays = {name: read_numpy(source, source, name)[0] for name in names}
    fit = {
        name: array
        for name, array in arrays.items()
        if array.size and (array.dtype.kind == "f" or (array.dtype == np.uint8 and array.ndim > 2))
    }
    if not fit:
        shapes = ", ".join(f"{name or 'array'} {array.dtype} {array.shape}" for name, array in arrays.items())
        raise ConfigError(f"{file}: has neither floats nor pictures of bytes ({shapes})")
    key = max(fit, key=lambda name: fit[name].size)
    array = fit[key]
    if array.dtype.kind == "f":
        as_float32(source, array)  # says where a number is not finite
        _check_axes(source, array)
    labels = [name for name, other in arrays.items() if name != key and _is_label(other, len(array))]
    label = labels[0] if labels else ""
    classes = int(arrays[label].max()) + 1 if label else 0
    seen = [("array", f"{key + ' ' if key else ''}{array.dtype} {array.shape}")]
    if array.dtype.kind == "f":
        seen.append(
            ("range", f"{array.min():.4g} to {array.max():.4g}, mean {array.mean():.4g}, std {array.std():.4g}")
        )
    seen.append(("labels", f"{label}, {classes} classes" if label else "none"))
    where: list[Line] = [("path", str(file.resolve()), "")]
    where += [("key", key, "")] if len(names) > 1 else []
    told: list[Line] = [("label_key", label, "remove this line to train without classes")] if label else []
    if array.dtype.kind == "f" and (array.ndim in (1, 3) or (array.ndim == 2 and _smooth(array))):
        return _signals(seen, where, told, array, classes)
    data = [("kind", "arrays", ""), *where, *told, ("holdout", 0.1, "a tenth is kept for testing")]
    if array.dtype.kind == "f" and not (abs(array.mean()) < 0.5 and 0.3 < array.std() < 2):
        data.append(
            ("", None, "These numbers are taken as they are: bring them to mean 0 and std 1 (pictures: [-1, 1]) first.")
        )
        seen.append(("advice", "scale the numbers to mean 0 and std 1 before training"))
    if array.ndim == 4 or array.dtype == np.uint8:
        sample = as_values(source, array[:1]).shape[1:]
        if sample[1] != sample[2]:
            raise ConfigError(
                f"{file}: {array.dtype} {array.shape} are pictures of {sample[1]} x {sample[2]} (axes N, channels, "
                "height, width; bytes also N, height, width, channels); cut them to squares first"
            )
        return _pictures(seen, data, len(array), sample[1], classes)
    return Look(seen, data, _mlp(len(array)), len(array), classes)


def _check_axes(source: str, array: NDArray[Any]) -> None:
    """Refuse floats that are pictures as it seems, with axes in another order than N, channels, height, width."""
    shape, given = array.shape, f"{source}: {array.dtype} {array.shape}"
    if array.ndim == 4 and shape[3] in (1, 3) and min(shape[1:3]) > 3:
        raise ConfigError(
            f"{given} has its channels last; pictures of floats are (N, channels, height, width): "
            "store numpy.moveaxis(x, -1, 1)"
        )
    if array.ndim == 3 and shape[1] == shape[2] >= SIZES[0]:
        raise ConfigError(
            f"{given} could be pictures or signals: for pictures store x[:, None], which is (N, channels, height, "
            f"width); for signals of {shape[1]} channels, (N, channels, length), write kind: signals in a recipe"
        )


def _is_label(array: NDArray[Any], n: int) -> bool:
    whole = array.dtype.kind in "iu" and array.shape == (n,)
    return whole and int(array.min()) >= 0 and 1 <= int(array.max()) < min(1000, n)


def _smooth(rows: NDArray[Any]) -> bool:
    """Whether neighbouring columns of (N, L) are much alike, as the times of a signal are."""
    if rows.shape[1] < 16 or len(rows) < 3:
        return False
    centred = rows - rows.mean(axis=0)
    scale = np.sqrt((centred**2).mean(axis=0)) + 1e-30
    return bool(np.median((centred[:, 1:] * centred[:, :-1]).mean(axis=0) / (scale[1:] * scale[:-1])) > 0.7)


def _mlp(n: int) -> list[Line]:
    width, depth = (64, 2) if n < 1000 else (128, 3) if n < 10000 else (256, 4)
    return [
        ("kind", "mlp", ""),
        ("width", width, f"for {n:,} rows; a larger one learns more, and with few rows learns them by heart"),
        ("depth", depth, "residual blocks"),
    ]


# ---- signals


def _wav(file: Path) -> Look:
    array = read_wav(str(file), str(file))
    seen = [("sound", f"{len(array):,} times, {1 if array.ndim == 1 else array.shape[1]} channels")]
    return _signals(seen, [("path", str(file.resolve()), "")], [], array, 0)


def _signals(
    seen: list[tuple[str, str]], where: list[Line], told: list[Line], array: NDArray[Any], classes: int
) -> Look:
    """Signals (N, L) or (N, C, L), or with `window` one series (T,) or (T, C)."""
    data: list[Line] = [("kind", "signals", ""), *where, *told]
    series = array.ndim == 1 or not (array.ndim == 3 or _smooth(array))
    if series:
        length = len(array)
        window = next((w for w in (128, 64, 32, 16) if 40 * w <= length), 0)
        if not window:
            raise ConfigError(f"a series of {length} numbers is too short to learn from: at least 640")
        stride = max(1, min(window // 4, length // 4000))
        n = (length * 9 // 10 - window) // stride
        data += [
            ("window", window, "the length of a sample: long enough for what should be learnt to happen in it"),
            ("stride", stride, f"from one window to the next: about {n:,} windows, which overlap"),
        ]
        seen.append(("read as", f"one series, cut into windows of {window}"))
    else:
        n, window = len(array), array.shape[-1]
        channels = f" in {array.shape[1]} channels (axes N, channels, length)" if array.ndim == 3 else ""
        seen.append(("read as", f"{n:,} signals of length {window}{channels}"))
    data.append(
        (
            "holdout",
            0.1,
            "a tenth is kept for testing" + (", in blocks that no training window touches" if series else ""),
        )
    )
    patch = next((p for p in (8, 4, 2) if window % p == 0 and window // p >= 8), 1)
    if window // patch > 512:
        raise ConfigError(
            f"signals of length {window} are too long for one transformer: cut them with window=128 or so"
        )
    net: list[Line] = [
        ("kind", "dit", "a transformer over patches of the signal"),
        ("axes", 1, "signals, not pictures"),
        ("patch", patch, f"numbers to a token, {window // patch} tokens; smaller is finer and slower"),
        ("width", 128 if n < 20000 else 256, f"for {n:,} signals"),
        ("depth", 4, "blocks"),
        ("heads", 4, ""),
    ]
    return Look(seen, data, net, n, classes)


# ---- tables


def _table(file: Path) -> Look:
    source, where = str(file), [("path", str(file.resolve()), "")]
    cells = read_cells(source, source, MISSING, header=None)
    names = list(cells.columns)
    if names == [str(i) for i in range(len(names))]:  # no header: numbers alone
        array = np.stack(list(read_numbers(source, source, header=None).values()), axis=1)
        return _signals(
            [("table", f"{array.shape[0]:,} lines of {array.shape[1]} numbers, no header")], where, [], array, 0
        )
    kept, lines = _columns(cells)
    numbers = [name for name in kept if all(text is not None and is_number(text) for text in cells.columns[name])]
    if kept == numbers and len(kept) == 1 and len(cells) >= 640:
        array = np.array(cells.columns[kept[0]], dtype=np.float64)
        seen = [("table", f"{len(cells):,} rows, {len(names)} columns"), *lines.items()]
        return _signals(seen, [*where, ("columns", kept, "the only column of numbers")], [], array, 0)
    data: list[Line] = [("kind", "table", ""), *where]
    reasons, choices = ["identifiers, constants and free text"], dict[str, Line]()
    holdout: Line = ("holdout", 0.1, "a tenth is kept for testing")
    while True:  # until both splits load
        if not kept:
            raise ConfigError(f"{file}: no column can be learned from: {'; '.join(lines.values())}")
        gaps = sum(any(cells.columns[name][row] is None for name in kept) for row in range(len(cells)))
        choices.pop("missing", None)
        if gaps:
            few = gaps <= 0.05 * len(cells)
            why = f"{gaps} rows have a gap; " + ("few enough to leave out" if few else "drop would leave them out")
            choices["missing"] = ("missing", "drop" if few else "mean", why)
        fields: dict[str, Any] = {key: value for key, value, _ in (*choices.values(), holdout)}
        table = Table(source, columns=tuple(kept), quantile="heavy", **fields)
        try:
            table.of(cells, "train"), table.of(cells, "test" if table.holdout else "train")
            break
        except ColumnError as error:
            reason = str(error).removeprefix("Table ").removeprefix(f"{source}: ")
            if error.rare:
                choices["rare"] = ("rare", "drop", f"{reason.partition(': give')[0]}: such rows are left out")
                continue
            reasons.append(reason.partition(": leave it out")[0])
            lines[error.column] = f"left out: {reasons[-1]}"
            kept.remove(error.column)
        except ConfigError:
            if not table.holdout:
                raise
            holdout = ("holdout", 0.0, "none is kept for testing, there are so few rows")
    drop = [name for name in names if name not in kept]
    seen = [("table", f"{len(cells):,} rows, {len(names)} columns"), *lines.items()]
    seen += [("rows with gaps", f"{gaps:,}")] if gaps else []
    data += [("drop", drop, "; ".join(reasons))] if drop else []
    data += [
        *choices.values(),
        ("quantile", "heavy", "number columns with long tails are mapped to a normal law; none to switch it off"),
        ("clip", True, "sampled numbers stay within the range seen in training"),
        holdout,
    ]
    groups = [name for name in kept if 2 <= len(set(cells.columns[name]) - {None}) <= 20]
    if groups:
        data.append(
            (
                "",
                None,
                f"label: {json.dumps(groups[-1])}  # take out the first # to draw rows of a class of one's choice",
            )
        )
    return Look(seen, data, _mlp(len(cells)), len(cells))


def _columns(cells: Cells) -> tuple[list[str], dict[str, str]]:
    """(columns to use, what each column is)."""
    kept, lines = [], {}
    for name, column in cells.columns.items():
        texts = [text for text in column if text is not None]
        distinct, number = set(texts), all(map(is_number, texts))
        gaps = f", {len(column) - len(texts)} missing" if len(texts) < len(column) else ""
        if len(distinct) < 2:
            lines[name] = f"constant{gaps}: left out"
        elif number and _counts_up(texts):
            lines[name] = "an identifier, counts up: left out"
        elif number:
            values = [float(text) for text in distinct]
            what = "two numbers, taken as categories" if len(distinct) == 2 else "numbers"
            lines[name] = f"{what}, {min(values):g} to {max(values):g}{gaps}"
            kept.append(name)
        elif len(distinct) > min(100, len(texts) // 4):
            lines[name] = f"text, {len(distinct):,} different{gaps}: left out"
        else:
            lines[name] = f"categories: {_names(tuple(sorted(distinct)))}{gaps}"
            kept.append(name)
    return kept, lines


def _counts_up(texts: list[str]) -> bool:
    return len(texts) > 2 and {float(b) - float(a) for a, b in pairwise(texts)} == {1.0}


def _names(names: tuple[str, ...]) -> str:
    return f"{len(names)}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
