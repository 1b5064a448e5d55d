"""Hub: pictures, numbers and labels of tables that speak the protocol of `datasets`; the real one where installed."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fokker.data import Hub
from fokker.data.arrays import held_out
from fokker.errors import ConfigError, FileError, MissingExtraError
from fokker.train import Recipe


class Bad:
    """A picture that raises when it is decoded."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise OSError("cannot identify image file")


class Table:
    """What Hub uses of a datasets.Dataset."""

    def __init__(self, columns: dict[str, list[Any]], names: tuple[str, ...] | None = None) -> None:
        self.columns, self.column_names = columns, list(columns)
        self.features = {name: SimpleNamespace(names=names) if names else SimpleNamespace() for name in columns}

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return self.columns[key]
        several = isinstance(key, list)
        return {k: [c[i] for i in key] if several else c[key] for k, c in self.columns.items()}

    def with_format(self, kind: str) -> "Table":
        assert kind == "numpy" and len(self.column_names) == 1  # whole rows would bring the pictures too
        return self

    def select_columns(self, names: list[str]) -> "Table":
        return Table({name: self.columns[name] for name in names})


def flat(value: int) -> Image.Image:
    return Image.fromarray(np.full((6, 9, 3), value, np.uint8))


def hub(path: Any, **fields: Any) -> Hub:
    return Hub(path=path, **fields)


def test_pictures_labels_and_splits_of_one_table() -> None:
    table = Table({"image": [flat(i) for i in range(50)], "kind": [i % 3 for i in range(50)]}, ("a", "b", "c"))
    source = hub(table, image="image", label="kind", size=4, holdout=0.2, flip=True)
    for split in ("train", "test"):
        samples, rows = source.load(split), torch.from_numpy(np.flatnonzero(held_out(50, 0.2) == (split == "test")))  # type: ignore[arg-type]
        assert samples.shape == (3, 4, 4) and samples.classes == ("a", "b", "c")
        assert (samples.values == rows.to(torch.uint8).view(-1, 1, 1, 1)).all()
        assert samples.labels is not None and torch.equal(samples.labels, rows % 3)
        assert samples.flip is (split == "train")
    assert len(source.load()) + len(source.load("test")) == 50 and 8 <= len(source.load("test")) <= 12


def test_arrays_are_pictures_too_and_grey_is_asked_for() -> None:
    table = Table({"x": [np.full((4, 4), 10 * i, np.uint8) for i in range(5)]})
    samples = hub(table, image="x", size=2, channels=1, holdout=0).load()
    assert samples.values[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40] and samples.labels is None


def test_pictures_of_floats_and_of_channels_first() -> None:
    floats = [np.full((4, 4), v) for v in (0.0, 0.2, 1.0)] + [np.full((4, 4, 1), 0.4)]  # fractions of 255
    samples = hub(Table({"x": floats}), image="x", size=2, channels=1, holdout=0).load()
    assert samples.values[:, 0, 0, 0].tolist() == [0, 51, 255, 102]
    colours = np.arange(3, dtype=np.int64)[:, None, None] * 100 + np.zeros((3, 4, 5), np.int64)
    both = Table({"x": [colours, colours.transpose(1, 2, 0), colours.tolist(), (colours / 255).tolist()]})
    assert hub(both, image="x", size=2, holdout=0).load().values[:, :, 1, 1].tolist() == [[0, 100, 200]] * 4
    for bad, says in (
        (np.full((4, 4), 3.0), r"'x' in row 1: float64 from 3\.0 to 3\.0, must be floats in \[0, 1\] or integers in 0"),
        (np.full((4, 4), -0.5), r"float64 from -0\.5 to -0\.5"),
        (np.full((4, 4), 256), "int64 from 256 to 256"),
        (np.full((4, 4), float("nan")), "float64 from nan to nan"),
    ):
        with pytest.raises(ConfigError, match=says):
            hub(Table({"x": [floats[0], bad]}), image="x", size=2, holdout=0).load()


def test_undecodable_pictures_are_skipped_and_numbered() -> None:
    pictures: list[Any] = [flat(i) for i in range(9)]
    for i in (1, 2, 3, 5, 6, 8):
        pictures[i] = Bad()
    table = Table({"image": pictures, "kind": [str(i % 2) for i in range(9)]})
    source = hub(table, image="image", label="kind", size=2, holdout=0)
    with pytest.warns(UserWarning, match=r"6 pictures cannot be decoded and are skipped: rows 1, 2, 3, 5, 6, \.\.\.$"):
        samples = source.load()
    assert samples.values[:, 0, 0, 0].tolist() == [0, 4, 7]
    assert samples.labels is not None and samples.labels.tolist() == [0, 0, 1]
    with pytest.raises(FileError, match="none of the 3 pictures in 'image' can be decoded"):
        hub(Table({"image": [Bad()] * 3}), image="image", holdout=0).load()


def test_numbers_are_joined_in_the_order_asked_for() -> None:
    table = Table({"a": [1, 2, 3], "b": [[0.5, 1.5], [2.5, 3.5], [4.5, 5.5]]})
    joined = hub(table, columns=("b", "a"), holdout=0).load().values
    assert joined.tolist() == [[0.5, 1.5, 1.0], [2.5, 3.5, 2.0], [4.5, 5.5, 3.0]] and joined.dtype == torch.float32
    assert hub(table, columns=("a",), holdout=0).load().values.tolist() == [[1], [2], [3]]
    signals = Table({"s": np.arange(12.0).reshape(3, 2, 2).tolist()})
    assert hub(signals, columns=("s",), holdout=0).load().values.tolist() == signals["s"]


def test_official_splits_and_the_training_splits_labels() -> None:
    train = Table({"x": [1.0, 2.0, 3.0], "y": ["dog", "ant", "cat"]})
    test = Table({"x": [4.0, 5.0], "y": ["cat", "dog"]})
    for name in ("test", "validation"):
        source = hub({"train": train, name: test}, columns=("x",), label="y")
        samples = source.load("test")
        assert samples.values.flatten().tolist() == [4, 5] and samples.classes == ("ant", "cat", "dog")
        assert samples.labels is not None and samples.labels.tolist() == [1, 2]
        assert source.load().values.flatten().tolist() == [1, 2, 3]
    both = hub({"train": train, "validation": train, "test": test}, columns=("x",))
    assert both.load("test").values.flatten().tolist() == [4, 5]
    with pytest.raises(ConfigError, match="has no split 'test'; its splits: train, dev"):
        hub({"train": train, "dev": test}, columns=("x",)).load("test")
    with pytest.raises(ConfigError, match="has no column 'y'"):
        hub({"train": Table({"x": [1.0]}), "test": test}, columns=("x",), label="y").load("test")
    with pytest.raises(ConfigError, match="the training split has no 'y' 'emu'"):
        hub({"train": train, "test": Table({"x": [1.0], "y": ["emu"]})}, columns=("x",), label="y").load("test")


def test_refusals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = Table({"x": [1.0, float("nan")], "y": [0, 0], "z": [0, -1], "odd": [[1], [1, 2]], "w": ["a", "b"]})
    for fields, says in (
        ({}, "give either image"),
        ({"image": "x", "columns": ("x",)}, "give either image"),
        ({"columns": ("v",)}, "has no column 'v': allowed: odd, w, x, y, z"),
        ({"columns": ("odd",)}, "'odd' is no column of numbers of one shape"),
        ({"columns": ("w",)}, "'w' is no column of numbers of one shape"),
        ({"columns": ("y",), "label": "y"}, "'y' holds a single class: leave label empty"),
        ({"columns": ("y",), "label": "z"}, r"'z' must hold texts, or integers in 0\.\.65535"),
        ({"columns": ("y",), "label": "x"}, "'x' must hold texts"),
    ):
        with pytest.raises(ConfigError, match=says):
            hub(table, holdout=0, **fields).load()
    with pytest.raises(FileError, match="'x' is not finite in row 1"):
        hub(table, holdout=0, columns=("x",)).load()
    with pytest.raises(ConfigError, match="no row is in the test split"):
        hub(table, holdout=0, columns=("y",)).load("test")
    with pytest.raises(ConfigError, match=r"Hub\.path: needs a folder, a datasets\.Dataset .*not a list"):
        hub([1, 2])
    with pytest.raises(
        ConfigError, match=r"data\.path: <Table in memory> cannot be .* save_to_disk\(FOLDER\) and give"
    ):
        Recipe(data=hub(table, columns=("y",)), net={"kind": "mlp"}).resolved()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fokker\[hub\]'"):
        hub(str(tmp_path), columns=("y",)).load()


def test_the_real_library(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    stream = io.BytesIO()
    flat(7).save(stream, "PNG")
    rows = {
        "image": [{"bytes": stream.getvalue(), "path": None}] * 3 + [{"bytes": b"broken", "path": None}],
        "label": [0, 1, 1, 0],
        "x": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]],
    }
    kinds = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features(
        image=datasets.Image(), label=kinds, x=datasets.Sequence(datasets.Value("float64"), length=2)
    )
    table = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(train=table, test=table.select([1, 2])).save_to_disk(str(tmp_path / "d"))
    for path in (str(tmp_path / "d"), datasets.load_from_disk(str(tmp_path / "d"))):
        source = hub(path, image="image", label="label", size=3)
        with pytest.warns(UserWarning, match=r"1 pictures cannot be decoded and are skipped: rows 3$"):
            samples = source.load()
        assert samples.values.shape == (3, 3, 3, 3) and (samples.values == 7).all()
        assert samples.labels is not None and samples.labels.tolist() == [0, 1, 1] and samples.classes == ("cat", "dog")
        numbers = hub(path, columns=("label", "x")).load("test").values
        assert numbers.tolist() == [[1, 3, 4], [1, 5, 6]]
    with pytest.raises(FileError, match="gone: does not exist"):
        hub(str(tmp_path / "gone"), image="image").load()
    with pytest.raises(FileError, match="cannot be read"):
        hub(str(tmp_path), image="image").load()
