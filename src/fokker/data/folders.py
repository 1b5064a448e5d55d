"""Folder: pictures on disk, with sub-folders as classes."""

from __future__ import annotations

import hashlib
import json
import struct
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import Field
from torch import Tensor

from ..component import component
from ..errors import ConfigError, FileError
from ..files import write_text, write_whole
from .fetch import cache_folder
from .samples import Data, Samples, check_split

__all__ = ["SUFFIXES", "UNDECODABLE", "Folder", "square"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


@component
class Folder(Data):
    """The pictures of a folder, cut to the central square, resized and held as bytes.

    Sub-folders are classes, in sorted order, with all pictures below them; without sub-folders there are no labels.
    A picture belongs to the test split if the SHA-256 of its path below `path`, as a fraction, is less than
    `holdout`: adding files moves no other file. Names that begin with a dot are left out.

    Args:
        path: the folder; ~ is expanded.
        size: height and width of the samples.
        channels: 1 (grey) or 3 (RGB); transparency is dropped, animations give their first frame.
        holdout: expected fraction of the test split, in [0, 1).
        flip: mirror training pictures left to right with probability 1/2.
        cache: keep the decoded pictures in a file of the cache folder (see `fokker data list`) and map it into
            memory: later starts decode nothing, and a folder may be larger than the memory. A picture that is added,
            removed or changed makes a new file.

    Pictures that cannot be decoded are left out, and one warning counts and names them.

    Raises (from load):
        FileError: the folder is missing, or has no (readable) picture.
        ConfigError: pictures both loose and in sub-folders, a single class, or an empty split.
    """

    path: str
    size: Annotated[int, Field(ge=1)]
    channels: Literal[1, 3] = 3
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    flip: bool = False
    cache: bool = False

    def load(self, split: Literal["train", "test"] = "train") -> Samples:
        """The pictures of a split, in the order of their paths."""
        check_split(split)
        files, classes = self.scan()
        root = Path(self.path).expanduser()
        names = [file.relative_to(root) for file in files]
        chosen = [
            (file, name) for file, name in zip(files, names, strict=True) if self.held_out(name) == (split == "test")
        ]
        if not chosen:
            raise ConfigError(
                f"Folder {self.path}: none of its {len(files)} pictures fell into the {split} split with "
                f"holdout={self.holdout}: add pictures or change holdout"
            )
        paths = [file for file, _ in chosen]
        values, kept = self._mapped(paths) if self.cache else self._in_memory(paths)
        good = [chosen[row][1] for row in kept]
        bad = [chosen[row][1].as_posix() for row in sorted(set(range(len(chosen))) - set(kept))]
        if bad:
            shown = ", ".join(bad[:5]) + (", ..." if len(bad) > 5 else "")
            warnings.warn(
                f"Folder {self.path}: {len(bad)} pictures cannot be decoded and are skipped: {shown}", stacklevel=2
            )
        if not good:
            raise FileError(f"Folder {self.path}: none of the {len(bad)} pictures of the {split} split can be decoded")
        pictures = torch.from_numpy(values)
        flip = self.flip and split == "train"
        if not classes:
            return Samples(pictures, flip=flip)
        index = {name: label for label, name in enumerate(classes)}
        return Samples(pictures, torch.tensor([index[name.parts[0]] for name in good]), classes, flip=flip)

    def _decoded(self, files: list[Path]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """(number of the file, picture), in order, without the files that cannot be decoded."""
        with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter's lock
            for start in range(0, len(files), 1024):
                with warnings.catch_warnings():  # Pillow's, of what it could mend
                    warnings.simplefilter("ignore", UserWarning)
                    some = list(pool.map(self._decode, files[start : start + 1024]))
                for i, picture in enumerate(some, start):
                    if picture is not None:
                        yield i, picture

    def _in_memory(self, files: list[Path]) -> tuple[NDArray[np.uint8], list[int]]:
        values = np.empty((len(files), self.channels, self.size, self.size), np.uint8)
        kept: list[int] = []
        for i, picture in self._decoded(files):
            values[len(kept)] = picture
            kept.append(i)
        return values[: len(kept)], kept

    def _mapped(self, files: list[Path]) -> tuple[NDArray[np.uint8], list[int]]:
        """The pictures through a file of the cache folder, named by all that it depends on."""
        shape = (self.channels, self.size, self.size)
        facts = [(str(file.resolve()), file.stat().st_mtime_ns, file.stat().st_size) for file in files]
        key = hashlib.sha256(json.dumps([shape, facts]).encode()).hexdigest()[:32]
        data = cache_folder() / "folders" / f"{key}.bytes"
        index = data.with_suffix(".json")  # written last: where it is, the pictures are whole
        kept: list[int] = []

        def fill(temporary: Path) -> None:
            with temporary.open("wb") as out:  # not through a map: that a disk is full would kill the process
                for i, picture in self._decoded(files):
                    out.write(picture.tobytes())
                    kept.append(i)

        for _ in range(2):
            with suppress(OSError, ValueError):  # not there, or cut short
                kept = json.loads(index.read_text(encoding="utf-8"))
                if kept:
                    return np.memmap(data, np.uint8, "c", shape=(len(kept), *shape)), kept
                return np.empty((0, *shape), np.uint8), kept
            kept = []
            for left in data.parent.glob(f".{data.name}.*.tmp"):  # by a run killed while it wrote
                left.unlink(missing_ok=True)
            write_whole(data, fill)
            write_text(index, json.dumps(kept))
        raise FileError(f"{data}: cannot be read back; set cache=False")

    def scan(self) -> tuple[list[Path], tuple[str, ...]]:
        """(the pictures of both splits, the classes), from the names alone. Raises as `load` does."""
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise FileError(f"Folder {self.path}: {'is not a folder' if root.exists() else 'does not exist'}")
        files = sorted(
            file
            for file in root.rglob("*")
            if file.suffix.lower() in SUFFIXES
            and file.is_file()
            and not any(part.startswith(".") for part in file.relative_to(root).parts)
        )
        if not files:
            raise FileError(f"Folder {self.path}: has no pictures ({', '.join(SUFFIXES)})")
        loose = [file for file in files if file.parent == root]
        classes = sorted({file.relative_to(root).parts[0] for file in files if file.parent != root})
        if loose and classes:
            raise ConfigError(
                f"Folder {self.path}: holds {len(loose)} loose pictures beside the sub-folders "
                f"{', '.join(classes[:5])}: move them into sub-folders (classes), "
                "or all pictures out of them (no labels)"
            )
        if len(classes) == 1:
            raise ConfigError(
                f"Folder {self.path}: has a single class, {classes[0]!r}: give "
                f"path={(root / classes[0]).as_posix()!r} to load it without labels, or add a second class"
            )
        return files, tuple(classes)

    def held_out(self, name: Path) -> bool:
        """Whether the picture of this path below `path` is in the test split."""
        digest = hashlib.sha256(name.as_posix().encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.holdout * 2**64

    def _decode(self, file: Path) -> NDArray[np.uint8] | None:
        try:
            with Image.open(file) as opened:
                return square(opened, self.size, self.channels).numpy()
        except UNDECODABLE:
            return None


# What Pillow raises on damaged files: its decoders have no common error of their own.
UNDECODABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    ZeroDivisionError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def square(opened: Image.Image, size: int, channels: int) -> Tensor:
    """The central square of a picture, turned upright and resized: uint8 (channels, size, size)."""
    opened.load()
    try:
        picture = ImageOps.exif_transpose(opened)
    except (*UNDECODABLE, AttributeError):  # the note on how the camera was held is damaged, the picture is not
        picture = opened
    if picture.mode.startswith("I"):  # 16 bits of grey: converting would clip at 255
        picture = Image.fromarray((np.asarray(picture) / 257).round().clip(0, 255).astype(np.uint8))
    picture = ImageOps.fit(picture.convert("L" if channels == 1 else "RGB"), (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).view(size, size, -1).permute(2, 0, 1).contiguous()
