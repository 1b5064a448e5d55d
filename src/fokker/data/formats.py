"""The files that MNIST, its relatives and CIFAR-10 come in: IDX, CIFAR's binary version, pictures of rows; archives.

Everything is read from a folder, a tar, a zip or a Debian package, by the files' own names, without unpickling.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import math
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ConfigError, FileError

__all__ = ["Bytes", "read_cifar", "read_idx", "read_mnist"]

Bytes = NDArray[np.uint8]
# RuntimeError is what an encrypted zip raises, and a compression that is not known (NotImplementedError).
BROKEN = (OSError, EOFError, ValueError, RuntimeError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)
RECORD = 1 + 3 * 32 * 32  # CIFAR's binary version: the label, then red, green and blue, row by row


def read_idx(content: bytes, name: str, dims: int) -> Bytes:
    """An array of bytes from an IDX file: 0, 0, 8 (unsigned bytes), `dims`, the sizes big-endian, then the bytes.

    Raises:
        FileError: another magic number, or a length that is not the header's; names the file.
    Source: the description of the MNIST files by LeCun, Cortes and Burges.
    """
    head = 4 + 4 * dims
    if content[:4] != bytes((0, 0, 8, dims)) or len(content) < head:
        raise FileError(
            f"{name}: no IDX file of bytes in {dims} dimensions, it begins with {content[:4].hex() or 'nothing'}"
        )
    shape = [int(size) for size in np.frombuffer(content, ">u4", dims, 4)]
    if len(content) != head + math.prod(shape) or 0 in shape:
        raise FileError(
            f"{name}: has {len(content)} bytes where its header says {head + math.prod(shape)}: truncated or damaged"
        )
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


def read_mnist(path: Path, split: str) -> tuple[Bytes, Bytes]:
    """A split in MNIST's four IDX files, plain or .gz: pictures (N, 1, H, W) and labels (N,).

    Args:
        path: a folder (looked into one level deep), or a .tar(.gz, .xz), .zip or .deb.
        split: "train" or "test" (whose files are called t10k).

    Raises:
        FileError: a file is missing, truncated or of another format.
        ConfigError: a file is there twice.
    """
    stem = {"train": "train", "test": "t10k"}[split]
    arrays = []
    names = [[f"{stem}-{what}{mark}idx{dims}-ubyte" for mark in "-."] for what, dims in (("images", 3), ("labels", 1))]
    found = _read(path, [name + end for pair in names for name in pair for end in ("", ".gz")])
    for pair, dims in zip(names, (3, 1), strict=True):
        given = [name for name in (*pair, *(f"{name}.gz" for name in pair)) if name in found]
        if not given:
            raise FileError(f"{path}: has no {pair[0]} (or {pair[0]}.gz); found of this split: {_listed(found)}")
        arrays.append(read_idx(_unpacked(path, given[0], found[given[0]]), f"{path}: {given[0]}", dims))
    x, y = arrays
    return _fitting(path, x[:, None], y)


def read_cifar(path: Path, split: str) -> tuple[Bytes, Bytes]:
    """A split of CIFAR-10: pictures (N, 3, 32, 32) and labels (N,).

    From the binary version (data_batch_1.bin to _5.bin, test_batch.bin: records of a label and 3072 bytes), or from
    pictures data_batch_1.png to _5.png, test_batch.png, in which a row of 1024 pixels is one image, with the labels in
    train_lables.json and test_lables.json (so spelt).

    Args:
        path: as for `read_mnist`.
        split: "train" or "test".

    Raises:
        FileError: a file is missing, truncated or of another format.
        ConfigError: the version pickled for Python was given, or a file is there twice.
    Source: Krizhevsky 2009, and the description on the data set's page.
    """
    stems = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    labels = {"train": "train_lables.json", "test": "test_lables.json"}[split]
    found = _read(path, [f"{stem}{end}" for stem in stems for end in (".bin", ".png")] + [labels], pickled=stems)
    for end in (".bin", ".png"):
        names = [stem + end for stem in stems]
        if names[0] not in found:
            continue
        missing = [name for name in (*names, *([labels] if end == ".png" else [])) if name not in found]
        if missing:
            raise FileError(f"{path}: has no {', '.join(missing)}; found of this split: {_listed(found)}")
        if end == ".png":
            x = np.concatenate([_rows(found[name], f"{path}: {name}") for name in names])
            return _fitting(path, x, _label_list(found[labels], f"{path}: {labels}"))
        records = np.concatenate([_records(found[name], f"{path}: {name}") for name in names])
        return _fitting(path, records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0])
    raise FileError(f"{path}: has no {stems[0]}.bin (CIFAR-10 binary version); found of this split: {_listed(found)}")


def _records(content: bytes, name: str) -> Bytes:
    if not content or len(content) % RECORD:
        raise FileError(f"{name}: has {len(content)} bytes, which are no records of {RECORD}: truncated or damaged")
    return np.frombuffer(content, np.uint8).reshape(-1, RECORD)


def _rows(content: bytes, name: str) -> Bytes:
    try:
        with Image.open(io.BytesIO(content)) as opened:
            rows = np.asarray(opened.convert("RGB"))
    except (*BROKEN, SyntaxError, Image.DecompressionBombError) as error:
        raise FileError(f"{name}: cannot be decoded ({_why(error)})") from None
    if rows.shape[1] != 1024:
        raise FileError(f"{name}: is {rows.shape[1]} pixels wide, must be 1024 (a row is one image)")
    return rows.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)


def _label_list(content: bytes, name: str) -> Bytes:
    try:
        return np.array(json.loads(content), dtype=np.uint8)
    except (ValueError, TypeError, OverflowError):
        raise FileError(f"{name}: is no JSON list of labels") from None


def _fitting(path: Path, x: Bytes, y: Bytes) -> tuple[Bytes, Bytes]:
    if y.shape != x.shape[:1]:
        raise FileError(f"{path}: holds {len(x)} pictures but labels of shape {y.shape}")
    if y.max() > 9:
        raise FileError(f"{path}: holds the label {y.max()}, must be 0..9")
    return np.array(x, order="C"), np.array(y)  # copies: views of a file's bytes cannot be written to


def _listed(found: Collection[str]) -> str:
    return ", ".join(sorted(found)) or "nothing"


def _why(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(":")


def _unpacked(path: Path, name: str, content: bytes) -> bytes:
    if not name.endswith(".gz"):
        return content
    try:
        return gzip.decompress(content)
    except BROKEN as error:
        raise FileError(f"{path}: {name}: cannot be unpacked, is it truncated? ({_why(error)})") from None


def _read(path: Path, names: Collection[str], pickled: Collection[str] = ()) -> dict[str, bytes]:
    """The contents of the named files in a folder or archive; `pickled` names files that are seen but not read."""
    found: dict[str, bytes] = {}
    places: dict[str, str] = {}
    refused = False
    try:
        for place, content in _files(path, names, pickled):
            name = PurePosixPath(place).name
            refused |= name in pickled
            if name in found:
                raise ConfigError(f"{path}: holds {places[name]} and {place}: give the path of one data set")
            if name in names:
                found[name], places[name] = content, place
    except (ConfigError, FileError):
        raise
    except FileNotFoundError:
        raise FileError(f"{path}: does not exist") from None
    except BROKEN as error:
        raise FileError(
            f"{path}: cannot be read ({_why(error)}); must be a folder with the files, or a whole .tar, .zip or .deb"
        ) from None
    if refused and not found:
        raise ConfigError(
            f"{path}: is CIFAR-10's Python version, which is pickled and never read here: "
            "take the binary version (cifar-10-binary.tar.gz)"
        )
    return found


def _files(path: Path, names: Collection[str], pickled: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """(place, content) of every file whose name is asked for; the content of pickled ones is left out."""
    if path.is_dir():
        for place in sorted([*path.glob("*"), *path.glob("*/*")]):
            if (place.name in names or place.name in pickled) and place.is_file():
                yield place.relative_to(path).as_posix(), b"" if place.name in pickled else place.read_bytes()
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for stored in archive.namelist():
                name = PurePosixPath(stored).name
                if name in names or name in pickled:
                    yield stored, b"" if name in pickled else archive.read(stored)
    else:
        with path.open("rb") as file, tarfile.open(fileobj=_tar(file), mode="r:*") as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                if member.isfile() and (name in names or name in pickled):
                    inner = tar.extractfile(member)
                    yield member.name, b"" if name in pickled or inner is None else inner.read()


def _tar(file: BinaryIO) -> IO[bytes]:
    """The tar in a Debian package (an ar archive: headers of 60 bytes, contents padded to even), or the file itself."""
    if file.read(8) != b"!<arch>\n":
        file.seek(0)
        return file
    while len(header := file.read(60)) == 60:
        size = int(header[48:58])
        if header.startswith(b"data.tar"):
            return io.BytesIO(file.read(size))
        file.seek(size + size % 2, io.SEEK_CUR)
    raise ValueError("a Debian package without data.tar")
