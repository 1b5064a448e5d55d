"""IDX, CIFAR's binary version and rows of pictures: exact values, every container, and files that are refused."""

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fokker.data.formats import read_cifar, read_idx, read_mnist
from fokker.errors import ConfigError, FileError

RNG = np.random.default_rng(0)
DIGITS = {"train": RNG.integers(0, 256, (7, 28, 28), np.uint8), "t10k": RNG.integers(0, 256, (3, 28, 28), np.uint8)}
MARKS = {"train": np.arange(7, dtype=np.uint8), "t10k": np.array([9, 0, 4], np.uint8)}


def idx(array: np.ndarray) -> bytes:
    head = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return head + array.tobytes()


def idx_files() -> dict[str, bytes]:
    images = {f"{stem}-images-idx3-ubyte": idx(array) for stem, array in DIGITS.items()}
    return images | {f"{stem}-labels-idx1-ubyte": idx(array) for stem, array in MARKS.items()}


def tar(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(f"package/data/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def put(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def container(kind: str, folder: Path, files: dict[str, bytes]) -> Path:
    file = folder / f"x.{kind}"
    if kind == "folder":
        return put(folder / "x", files)
    if kind == "deeper":
        return put(folder / "x" / "raw", files).parent
    if kind == "gz":
        return put(folder / "x", {f"{name}.gz": gzip.compress(content) for name, content in files.items()})
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in files.items():
                archive.writestr(f"inside/{name}", content)
    elif kind == "deb":
        parts = {"debian-binary": b"2.0", "control.tar.gz": b"odd", "data.tar.xz": tar(files, "w:xz")}
        file.write_bytes(b"!<arch>\n")
        with file.open("ab") as out:
            for name, content in parts.items():
                out.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode())
                out.write(content + b"\n" * (len(content) % 2))
    else:
        file.write_bytes(tar(files, "w" if kind == "tar" else "w:gz"))
    return file


@pytest.mark.parametrize("kind", ["folder", "deeper", "gz", "zip", "deb", "tar", "tgz"])
def test_mnist_from_every_container(tmp_path: Path, kind: str) -> None:
    path = container(kind, tmp_path, idx_files() | {"README": b"not data"})
    for split, stem in (("train", "train"), ("test", "t10k")):
        x, y = read_mnist(path, split)
        assert x.dtype == np.uint8 and np.array_equal(x, DIGITS[stem][:, None]) and np.array_equal(y, MARKS[stem])


def test_idx_is_read_by_its_header() -> None:
    array = RNG.integers(0, 256, (2, 3, 258), np.uint8)  # 258 = 0x0102: the byte order shows
    assert np.array_equal(read_idx(idx(array), "a", 3), array)
    good = idx(array)
    for bad in (good[:-1], good + b"\0", good[:16]):
        with pytest.raises(FileError, match=rf"a: has {len(bad)} bytes where its header says 1564: truncated"):
            read_idx(bad, "a", 3)
    for bad in (b"", good[:10], b"\0\0\x09\3" + good[4:], b"\1" + good[1:], good[:3] + b"\2" + good[4:]):
        with pytest.raises(FileError, match="a: no IDX file of bytes in 3 dimensions, it begins with"):
            read_idx(bad, "a", 3)
    with pytest.raises(FileError, match="truncated or damaged"):
        read_idx(idx(np.zeros((0, 28, 28), np.uint8)), "a", 3)


def test_refused_mnist(tmp_path: Path) -> None:
    files = idx_files()
    with pytest.raises(FileError, match="gone: does not exist"):
        read_mnist(tmp_path / "gone", "train")
    (tmp_path / "x").write_bytes(gzip.compress(files["train-images-idx3-ubyte"]))
    with pytest.raises(FileError, match=r"x: cannot be read .*must be a folder with the files, or a whole"):
        read_mnist(tmp_path / "x", "train")
    only = put(tmp_path / "only", {k: v for k, v in files.items() if "train-l" not in k})
    with pytest.raises(FileError, match=r"has no train-labels-idx1-ubyte .*; found of this split: train-images-idx3"):
        read_mnist(only, "train")
    assert len(read_mnist(only, "test")[0]) == 3  # what the other split lacks does not matter
    cut = put(tmp_path / "cut", {f"{k}.gz": gzip.compress(v)[:-9] for k, v in files.items()})
    with pytest.raises(FileError, match=r"cut: train-images-idx3-ubyte\.gz: cannot be unpacked, is it truncated"):
        read_mnist(cut, "train")
    short = container("tgz", tmp_path, files)
    short.write_bytes(short.read_bytes()[:-2000])
    with pytest.raises(FileError, match=r"x\.tgz: cannot be read"):
        read_mnist(short, "test")
    few = put(tmp_path / "few", files | {"t10k-labels-idx1-ubyte": idx(MARKS["train"])})
    with pytest.raises(FileError, match="holds 3 pictures but labels of shape"):
        read_mnist(few, "test")
    odd = put(tmp_path / "odd", files | {"t10k-labels-idx1-ubyte": idx(np.array([1, 10, 2], np.uint8))})
    with pytest.raises(FileError, match=r"holds the label 10, must be 0\.\.9"):
        read_mnist(odd, "test")
    put(tmp_path / "two/mnist", files), put(tmp_path / "two/fashion", files)
    with pytest.raises(ConfigError, match=r"holds fashion/train-i.* and mnist/train-i.*: give the path of one"):
        read_mnist(tmp_path / "two", "train")


def test_zips_that_cannot_be_opened(tmp_path: Path) -> None:
    content = container("zip", tmp_path, idx_files()).read_bytes()
    for offset, value, says in ((6, 1, "encrypted"), (8, 99, "compression")):  # of a local header; 2 more in the index
        bad = bytearray(content)
        for mark, more in ((b"PK\3\4", 0), (b"PK\1\2", 2)):
            place = bad.find(mark)
            while place >= 0:
                bad[place + offset + more] = value
                place = bad.find(mark, place + 4)
        file = put(tmp_path / says, {"x.zip": bytes(bad)}) / "x.zip"
        with pytest.raises(FileError, match=rf"x\.zip: cannot be read \(.*{says}.*\); must be a folder"):
            read_mnist(file, "train")


PHOTOS = RNG.integers(0, 256, (12, 3, 32, 32), np.uint8)  # two a batch
KINDS = RNG.integers(0, 10, 12, np.uint8)
BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


def binary_files() -> dict[str, bytes]:
    rows = [bytes([label]) + photo.tobytes() for label, photo in zip(KINDS, PHOTOS, strict=True)]
    return {f"{name}.bin": rows[2 * i] + rows[2 * i + 1] for i, name in enumerate(BATCHES)}


def png_files() -> dict[str, bytes]:
    files = {}
    for i, name in enumerate(BATCHES):
        stream = io.BytesIO()
        Image.fromarray(PHOTOS[2 * i : 2 * i + 2].transpose(0, 2, 3, 1).reshape(2, 1024, 3)).save(stream, "PNG")
        files[f"{name}.png"] = stream.getvalue()
    lists = {"train_lables.json": KINDS[:10], "test_lables.json": KINDS[10:]}
    return files | {name: json.dumps(labels.tolist()).encode() for name, labels in lists.items()}


@pytest.mark.parametrize("files", [binary_files(), png_files()], ids=["bin", "png"])
def test_cifar_in_both_forms(tmp_path: Path, files: dict[str, bytes]) -> None:
    for path in (container("tgz", tmp_path, files), container("deeper", tmp_path, files)):
        for split, rows in (("train", slice(0, 10)), ("test", slice(10, 12))):
            x, y = read_cifar(path, split)
            assert np.array_equal(x, PHOTOS[rows]) and np.array_equal(y, KINDS[rows])


def test_refused_cifar(tmp_path: Path) -> None:
    files = binary_files()
    with pytest.raises(ConfigError, match=r"Python version, which is pickled .* take the binary version"):
        read_cifar(put(tmp_path / "py", dict.fromkeys([*BATCHES, "batches.meta"], b"\x80\x02.")), "train")
    with pytest.raises(FileError, match=r"has no data_batch_1\.bin .*found of this split: nothing"):
        read_cifar(put(tmp_path / "none", {}), "train")
    with pytest.raises(FileError, match=r"has no data_batch_3\.bin; found"):
        read_cifar(put(tmp_path / "four", {k: v for k, v in files.items() if "3" not in k}), "train")
    cut = put(tmp_path / "cut", files | {"data_batch_2.bin": files["data_batch_2.bin"][:-1]})
    with pytest.raises(FileError, match=r"data_batch_2\.bin: has 6145 bytes, which are no records of 3073"):
        read_cifar(cut, "train")
    assert len(read_cifar(cut, "test")[0]) == 2
    pictures = png_files()
    bad = put(tmp_path / "png", pictures | {"test_batch.png": pictures["test_batch.png"][:-200]})
    with pytest.raises(FileError, match=r"test_batch\.png: cannot be decoded"):
        read_cifar(bad, "test")
    put(tmp_path / "png", pictures | {"test_lables.json": b"[1, 300]"})
    with pytest.raises(FileError, match=r"test_lables\.json: is no JSON list of labels"):
        read_cifar(bad, "test")
    put(tmp_path / "png", {"test_lables.json": b"[1]"})
    with pytest.raises(FileError, match="holds 2 pictures but labels of shape"):
        read_cifar(bad, "test")
