"""A first recipe for the user's own data: look at the data, choose, and say why.

`look` gives what was seen and the recipe's text, a comment beside every choice. Nothing is written here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data import Arrays, Folder
from ..data.arrays import read_numpy
from ..data.cells import Cells, is_number, read_cells, read_numbers, table_suffix
from ..data.folders import SUFFIXES
from ..data.signals import read_wav
from ..data.tables import MISSING
from ..errors import ConfigError, FileError

__all__ = ["Look", "look"]

LOOKED = 1000  # pictures that are decoded, evenly over all
SIZES = (8, 12, 16, 20, 24, 28, 32, 48, 64)
WHAT = "a folder of pictures, a .npy or .npz array, a .csv, .tsv or .parquet table, or a .wav sound"
Line = tuple[str, Any, str]  # key, value, why


@dataclass
class Look:
    """What was seen and what follows.

    Args:
        seen: (what, value) for the user to read.
        data, net, train: lines of these sections of a recipe: key, value, why.
        n: number of training samples, about.
        classes: number of classes, 0 for none.
        image: whether samples are pictures (or feature maps).
        large: whether these have more than 32 pixels a side.
    """

    seen: list[tuple[str, str]]
    data: list[Line]
    net: list[Line]
    n: int
    classes: int = 0
    image: bool = False
    large: bool = False

    def recipe(self, name: str) -> str:
        """The commented YAML. `fokker.train.read` accepts it."""
        signals = self.data[0][1] == "signals"
        batch = 64 if signals or self.large else 128 if self.image else 256
        while batch > max(8, self.n):
            batch //= 2
        rounds = 30 if self.image else 60 if signals else 400
        steps = min(20000, max(1000, round(rounds * self.n / batch, -2)))
        rate = 1e-3 if self.image else 5e-4
        train: list[Line] = [
            (
                "steps",
                int(steps),
                f"about {max(1, round(steps * batch / self.n))} times through the data; see samples/",
            ),
            ("batch", batch, "halve it if memory runs out"),
            ("lr", rate, "halve it if the loss jumps"),
            ("ema", 0.999 if steps >= 5000 else 0.995, "the average over the last 1 / (1 - ema) steps is what samples"),
            ("sample_every", max(100, int(steps) // 5), "steps between pictures in samples/"),
        ]
        objective: list[Line] = [
            ("predict", "velocity", "flow matching"),
            ("stratified", True, "times spread evenly over each batch: less noise in the loss"),
        ]
        sampling: list[Line] = [
            ("solver", "heun", "two network calls a step, second order"),
            ("steps", 20, "more is finer and slower"),
            ("n", 64 if self.image or signals else 500, "samples in a picture"),
        ]
        if self.image:
            objective.insert(1, ("times", {"kind": "logit-normal"}, "more training at the middle times"))
        if self.classes:
            objective.append(("cond_dropout", 0.1, "a tenth is trained without its class, which guidance needs"))
            sampling.append(("guidance", 2.0, "above 1: more typical of the class, less varied; 1 is none"))
        parts = [("data", self.data), ("net", self.net), ("objective", objective), ("train", train)]
        lines = [f"# {name}: a first recipe, written after looking at the data. Train it: fokker train FILE"]
        lines += [f"name: {json.dumps(name)}", "process: flow  # straight paths from data to noise"]
        for section, body in [*parts, ("sampling", sampling)]:
            lines += [f"{section}:", *(_line(*line) for line in body)]
        return "\n".join(lines) + "\n"


def _line(key: str, value: Any, why: str) -> str:
    if not key:
        return f"  # {why}"
    return f"  {key}: {json.dumps(value, ensure_ascii=False)}" + (f"  # {why}" if why else "")


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
    files, classes = Folder(str(folder), size=1)._scan()
    chosen = files[:: -(-len(files) // LOOKED)]
    with ThreadPoolExecutor() as pool:
        found = [seen for seen in pool.map(_glance, chosen) if seen is not None]
    if not found:
        raise FileError(f"{folder}: none of the {len(chosen)} pictures looked at can be decoded")
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
        ("holdout", 0.1, "a tenth is kept for testing, chosen by name"),
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
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, Image.DecompressionBombError):  # as in Folder
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
    names = [name.removesuffix(".npy") for name in ZipFile(file).namelist()] if is_zipfile(file) else []
    arrays = {name: read_numpy(source, source, name)[0] for name in names or [""]}
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
        sample = Arrays(str(file), key=key)._values(array[:1]).shape[1:]
        if sample[1] != sample[2]:
            raise ConfigError(f"{file}: its pictures are {sample[1]} x {sample[2]}; cut them to squares first")
        return _pictures(seen, data, len(array), sample[1], classes)
    return Look(seen, data, _mlp(len(array)), len(array), classes)


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
        seen.append(("read as", f"{n:,} signals of length {window}"))
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
    kept, drop, lines = _columns(cells)
    if not kept:
        raise ConfigError(f"{file}: no column can be learned from: {'; '.join(lines.values())}")
    seen = [("table", f"{len(cells):,} rows, {len(names)} columns"), *((name, lines[name]) for name in names)]
    numbers = [name for name in kept if all(text is not None and is_number(text) for text in cells.columns[name])]
    if kept == numbers and len(kept) == 1 and len(cells) >= 640:
        array = np.array(cells.columns[kept[0]], dtype=np.float64)
        return _signals(seen, [*where, ("columns", kept, "the only column of numbers")], [], array, 0)
    data: list[Line] = [("kind", "table", ""), *where]
    if drop:
        data.append(("drop", drop, "identifiers, constants and free text"))
    gaps = sum(any(cells.columns[name][row] is None for name in kept) for row in range(len(cells)))
    if gaps:
        few = gaps <= 0.05 * len(cells)
        why = f"{gaps} rows have a gap; " + ("few enough to leave out" if few else "drop would leave them out")
        data.append(("missing", "drop" if few else "mean", why))
        seen.append(("rows with gaps", f"{gaps:,}"))
    data += [
        ("quantile", "heavy", "number columns with long tails are mapped to a normal law; none to switch it off"),
        ("clip", True, "sampled numbers stay within the range seen in training"),
        ("holdout", 0.1, "a tenth is kept for testing"),
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


def _columns(cells: Cells) -> tuple[list[str], list[str], dict[str, str]]:
    """(columns to use, columns to leave out, what each is)."""
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
    return kept, [name for name in cells.columns if name not in kept], lines


def _counts_up(texts: list[str]) -> bool:
    return len(texts) > 2 and {float(b) - float(a) for a, b in pairwise(texts)} == {1.0}


def _names(names: tuple[str, ...]) -> str:
    return f"{len(names)}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
