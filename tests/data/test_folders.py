"""Folder: crop, resize, classes, stable splits, and trees that are refused."""

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps

from fokker.data import Folder, folders
from fokker.errors import ConfigError, FileError


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def flat(value: int, size: int = 4) -> np.ndarray:
    return np.full((size, size, 3), value, np.uint8)


def test_central_square_is_kept(tmp_path: Path) -> None:
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    save(tmp_path / "a.png", wide)
    samples = Folder(str(tmp_path), size=4, holdout=0).load()
    assert samples.labels is None and samples.classes == ()
    assert torch.equal(samples.values[0], torch.from_numpy(wide[:, 2:6]).permute(2, 0, 1))


def test_resize_averages(tmp_path: Path) -> None:
    checker = ((np.indices((64, 64)).sum(0) % 2) * 255).astype(np.uint8)
    save(tmp_path / "a.png", checker)
    values = Folder(str(tmp_path), size=8, channels=1, holdout=0).load().values
    assert values.shape == (1, 1, 8, 8) and (values.int() - 127).abs().max() <= 3


def test_sixteen_bits_and_transparency(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.full((4, 4), 257 * 100, np.uint16))
    save(tmp_path / "b.png", np.full((4, 4, 4), 50, np.uint8))
    values = Folder(str(tmp_path), size=4, channels=3, holdout=0).load().values
    assert (values[0] == 100).all() and (values[1] == 50).all()


def test_classes_are_sorted_subfolders(tmp_path: Path) -> None:
    for value, name in ((30, "b/x.png"), (10, "a/x.png"), (20, "a/deep/y.png"), (99, ".hidden/z.png")):
        save(tmp_path / name, flat(value))
    (tmp_path / "a/notes.txt").write_text("not a picture")
    samples = Folder(str(tmp_path), size=4, holdout=0).load()
    assert samples.classes == ("a", "b") and samples.labels is not None
    assert dict(zip(samples.values[:, 0, 0, 0].tolist(), samples.labels.tolist(), strict=True)) == {10: 0, 20: 0, 30: 1}


def test_adding_files_moves_no_other(tmp_path: Path) -> None:
    for i in range(100):
        save(tmp_path / f"{i}.png", flat(i, 1))
    folder = Folder(str(tmp_path), size=1, holdout=0.3)
    train, test = (set(folder.load(split).values[:, 0, 0, 0].tolist()) for split in ("train", "test"))
    assert train | test == set(range(100)) and not train & test and 16 <= len(test) <= 44
    for i in range(100, 200):
        save(tmp_path / f"new{i}.png", flat(i, 1))
    again = set(folder.load("test").values[:, 0, 0, 0].tolist())
    assert {i for i in again if i < 100} == test and len(again) > len(test)


def test_corrupt_pictures_are_skipped_and_named(tmp_path: Path) -> None:
    save(tmp_path / "good.png", flat(7))
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    save(tmp_path / "cut.png", noise)
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:3000])
    folder = Folder(str(tmp_path), size=4, holdout=0)
    with pytest.warns(UserWarning, match=r"2 pictures cannot be decoded and are skipped: bad\.png, cut\.png") as caught:
        samples = folder.load()
    assert len(caught) == 1 and len(samples) == 1 and (samples.values == 7).all()
    (tmp_path / "good.png").unlink()
    with warnings.catch_warnings(), pytest.raises(FileError, match="none of the 2 pictures"):
        warnings.simplefilter("ignore")
        folder.load()


def turned(exif: bytes) -> bytes:
    """A JPEG of a dark upper and a bright lower half, with an EXIF note."""
    stream = io.BytesIO()
    Image.fromarray(np.repeat(np.array([20, 220], np.uint8), 8)[:, None].repeat(16, 1)).save(
        stream, "JPEG", exif=b"Exif\0\0" + exif
    )
    return stream.getvalue()


def test_damaged_exif_leaves_the_picture_unturned(tmp_path: Path) -> None:
    entries = b"\x12\x01\x03\0\x01\0\0\0\x03\0\0\0"  # orientation 3: upside down
    unit = b"\x28\x01\x04\0\x01\0\0\0\xff\xff\xff\xff"  # more than the unit of resolution can be
    maker = b"\x0f\x01\x0b\0\x01\0\0\0\x03\0\0\0"  # a camera's name that is a number
    for name, more in (("a", b""), ("b", unit), ("c", maker)):
        exif = b"II*\0\x08\0\0\0" + bytes([1 + bool(more), 0]) + entries + more + b"\0\0\0\0"
        (tmp_path / f"{name}.jpg").write_bytes(turned(exif))
    for name, error in (("b", struct.error), ("c", AttributeError)):
        with Image.open(tmp_path / f"{name}.jpg") as opened, pytest.raises(error):
            ImageOps.exif_transpose(opened)
    values = Folder(str(tmp_path), size=2, channels=1, holdout=0).load().values
    for picture, (dark, bright) in zip(values[:, 0], ((1, 0), (0, 1), (0, 1)), strict=True):
        assert (picture[dark] < 100).all() and (picture[bright] > 150).all()


@pytest.mark.parametrize(
    "error", [struct.error, zlib.error, TypeError, KeyError, OverflowError, ZeroDivisionError, SyntaxError, IndexError]
)
def test_whatever_a_decoder_raises_is_one_picture_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    for i in range(3):
        save(tmp_path / f"{i}.png", flat(i, 1 + i))
    real = ImageFile.ImageFile.load

    def load(self: Any) -> Any:
        if self.size == (2, 2):
            raise error("damaged")
        return real(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.warns(UserWarning, match=r"1 pictures cannot be decoded and are skipped: 1\.png$"):
        samples = Folder(str(tmp_path), size=1, holdout=0).load()
    assert samples.values[:, 0, 0, 0].tolist() == [0, 2]


def test_what_pillow_mends_is_not_said(tmp_path: Path) -> None:
    save(tmp_path / "a.png", flat(7))
    beyond = b"II*\0\x08\0\0\0\x01\0\x0f\x01\x02\0\x63\0\0\0\xff\xff\0\0\0\0\0\0"  # a text where the file has ended
    (tmp_path / "b.jpg").write_bytes(turned(beyond))
    with pytest.warns(UserWarning, match="Tag data larger than file"), Image.open(tmp_path / "b.jpg"):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(Folder(str(tmp_path), size=2, holdout=0).load()) == 2


def test_refused_trees(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="gone: does not exist"):
        Folder(str(tmp_path / "gone"), size=4).load()
    with pytest.raises(FileError, match="has no pictures"):
        Folder(str(tmp_path), size=4).load()
    save(tmp_path / "only/x.png", flat(1))
    with pytest.raises(ConfigError, match=r"single class, 'only'.*without labels, or add a second class"):
        Folder(str(tmp_path), size=4).load()
    save(tmp_path / "loose.png", flat(1))
    with pytest.raises(ConfigError, match="1 loose pictures beside the sub-folders only"):
        Folder(str(tmp_path), size=4).load()
    with pytest.raises(ConfigError, match="none of its 1 pictures fell into the test split"):
        Folder(str(tmp_path / "only"), size=4, holdout=0).load("test")


def test_flip_is_for_training(tmp_path: Path) -> None:
    for i in range(20):
        save(tmp_path / f"a/{i}.png", flat(i)), save(tmp_path / f"b/{i}.png", flat(i))
    for path in (tmp_path / "a", tmp_path):
        for flip in (False, True):
            folder = Folder(str(path), size=4, holdout=0.4, flip=flip)
            assert folder.load().flip is flip and not folder.load("test").flip


def test_cached_pictures_are_mapped_and_follow_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOKKER_CACHE", str(tmp_path / "cache"))
    for i in range(6):
        save(tmp_path / f"x/{'ab'[i % 2]}/{i}.png", flat(10 * i))
    (tmp_path / "x/a/bad.png").write_bytes(b"not a picture")
    fields = {"path": str(tmp_path / "x"), "size": 4, "holdout": 0}
    plain, cached = Folder(**fields), Folder(**fields, cache=True)  # type: ignore[arg-type]

    def same(calls: int) -> None:
        decoded = []
        with monkeypatch.context() as patch:
            patch.setattr(folders, "square", lambda *args: decoded.append(1) or square(*args))
            with pytest.warns(UserWarning, match=r"1 pictures cannot be decoded and are skipped: a/bad\.png"):
                samples = cached.load()
        with pytest.warns(UserWarning, match="1 pictures cannot be decoded"):
            expected = plain.load()
        assert torch.equal(samples.values, expected.values) and len(decoded) == calls
        assert samples.labels is not None and expected.labels is not None
        assert torch.equal(samples.labels, expected.labels)

    square, folder = folders.square, tmp_path / "cache/folders"
    same(6), same(0)
    assert len(list(folder.iterdir())) == 2
    data = next(folder.glob("*.bytes"))
    assert data.stat().st_size == 6 * 48
    data.write_bytes(data.read_bytes()[:-1])  # cut short: made again
    same(6), same(0)
    save(tmp_path / "x/a/0.png", flat(99))  # another content
    save(tmp_path / "x/a/new.png", flat(98))
    same(7), same(0)
    (tmp_path / "x/a/bad.png").unlink()
    assert torch.equal(Folder(**fields | {"size": 2}, cache=True).load().values[0], torch.full((3, 2, 2), 99).byte())
    (tmp_path / "y").mkdir()
    (tmp_path / "y/bad.png").write_bytes(b"not a picture")
    for _ in range(2):
        with warnings.catch_warnings(), pytest.raises(FileError, match="none of the 1 pictures"):
            warnings.simplefilter("ignore")
            Folder(str(tmp_path / "y"), size=4, holdout=0, cache=True).load()
