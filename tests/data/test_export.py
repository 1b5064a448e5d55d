"""Exports: the numbers in every format are the decoded ones, labels and names with them."""

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fokker.data import Category, Diabetes, Number, SignalCodec, Table, TableCodec, picture, write_samples
from fokker.data.export import table_rows
from fokker.errors import ConfigError, FileError

CODEC = TableCodec(
    (Number("n", 10.0, 2.0, 5.0, 15.0, decimals=0), Category("c", ("a", "b,\n", "d")), Category("s", ("0", "1"))),
    label="kind",
)
X = torch.tensor([[0.3, -0.2, 0.9, 0.8, -0.1], [9.0, 3.0, 0.0, -1.0, 0.2]])
SIGNALS, AFFINE = torch.randn(3, 2, 4), SignalCodec((1.0, -1.0), (2.0, 0.5))


def read(path: Path) -> list[dict[str, str]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
def test_tables(tmp_path: Path, name: str) -> None:
    write_samples(tmp_path / name, X, codec=CODEC, cond=torch.tensor([1, 0]), classes=("low", "high"))
    assert read(tmp_path / name) == [
        {"n": "11", "c": "b,\n", "s": "0", "kind": "high"},
        {"n": "15", "c": "a", "s": "1", "kind": "low"},
    ]


def test_a_table_that_was_written_can_be_read(tmp_path: Path) -> None:
    train = Diabetes().load()
    write_samples(tmp_path / "d.csv", train.values, codec=train.codec)
    again = Table(str(tmp_path / "d.csv"), holdout=0).load()
    assert again.codec == train.codec and torch.equal(again.values, train.values)


def test_vectors_and_signals_as_tables(tmp_path: Path) -> None:
    write_samples(tmp_path / "v.csv", X, cond=torch.tensor([4, 5]))
    rows = read(tmp_path / "v.csv")
    assert list(rows[0]) == ["x0", "x1", "x2", "x3", "x4", "label"] and [row["label"] for row in rows] == ["4", "5"]
    assert np.array_equal(np.array([[float(row[f"x{i}"]) for i in range(5)] for row in rows], np.float32), X.numpy())
    write_samples(tmp_path / "s.csv", SIGNALS, codec=AFFINE)
    rows = read(tmp_path / "s.csv")
    assert list(rows[0])[:5] == ["c0_t0", "c0_t1", "c0_t2", "c0_t3", "c1_t0"]
    assert np.isclose(float(rows[2]["c1_t3"]), float(SIGNALS[2, 1, 3]) * 0.5 - 1)
    write_samples(tmp_path / "one.csv", SIGNALS[:, :1])
    assert list(read(tmp_path / "one.csv")[0]) == ["t0", "t1", "t2", "t3"]


def test_arrays(tmp_path: Path) -> None:
    write_samples(tmp_path / "x.npy", SIGNALS, codec=AFFINE)
    assert np.array_equal(np.load(tmp_path / "x.npy"), AFFINE.decode(SIGNALS).numpy())
    write_samples(tmp_path / "plain.npy", SIGNALS)
    assert np.array_equal(np.load(tmp_path / "plain.npy"), SIGNALS.numpy())
    write_samples(tmp_path / "x.npz", X, codec=CODEC, cond=torch.tensor([1, 0]), classes=["low", "high"])
    with np.load(tmp_path / "x.npz", allow_pickle=False) as arrays:
        assert arrays["x"].tolist() == [[11.0, 1.0, 0.0], [15.0, 0.0, 1.0]] and arrays["labels"].tolist() == [1, 0]
        assert arrays["columns"].tolist() == ["n", "c", "s"] and arrays["classes"].tolist() == ["low", "high"]


def test_the_null_class_is_an_empty_cell(tmp_path: Path) -> None:
    write_samples(tmp_path / "x.csv", X, codec=CODEC, cond=torch.tensor([-1, 0]), classes=("low", "high"))
    assert [row["kind"] for row in read(tmp_path / "x.csv")] == ["", "low"]
    assert [row["label"] for row in table_rows(X, cond=torch.tensor([-1, 7]))] == [None, 7]


def test_nothing_but_arrays_is_given_to_savez(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # An older NumPy knows no keywords: every one is an array.
    seen: dict[str, object] = {}
    monkeypatch.setattr(np, "savez", lambda file, **arrays: seen.update(arrays))
    write_samples(tmp_path / "x.npz", X, cond=torch.tensor([1, 0]))
    assert sorted(seen) == ["labels", "x"]


def test_conditions(tmp_path: Path) -> None:
    file = Path(__file__).parents[2] / "src/fokker/data/diabetes.csv"
    samples = Table(str(file), condition=("sex", "target"), holdout=0).load()
    write_samples(tmp_path / "x.csv", samples.values, codec=samples.codec, cond=samples.cond)
    rows, given = read(tmp_path / "x.csv"), read(file)
    assert list(rows[0])[-2:] == ["sex", "target"] and [{k: float(v) for k, v in row.items()} for row in rows] == [
        {k: float(v) for k, v in row.items()} for row in given
    ]
    write_samples(tmp_path / "x.npz", samples.values, codec=samples.codec, cond=samples.cond)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as arrays:
        assert samples.cond is not None and np.array_equal(arrays["cond"], samples.cond.numpy())
        assert "labels" not in arrays.files


def test_pictures(tmp_path: Path) -> None:
    write_samples(tmp_path / "x.png", SIGNALS, codec=AFFINE, columns=2)
    expected = picture(SIGNALS, 2, AFFINE)
    with Image.open(tmp_path / "x.png") as image:
        assert expected is not None and image.tobytes() == expected.tobytes()
    with pytest.raises(ConfigError, match=r"\(5,\) have no picture; write a .npy file"):
        write_samples(tmp_path / "y.png", X)


def test_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    x = torch.cat([X, torch.full((1, 5), float("nan"))])
    write_samples(tmp_path / "x.parquet", x, codec=CODEC, cond=torch.tensor([1, 0, 1]))
    assert parquet.read_table(tmp_path / "x.parquet").to_pydict() == {
        "n": [11, 15, None],
        "c": ["b,\n", "a", None],
        "s": [0, 1, None],
        "kind": [1, 0, 1],
    }


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_text("mine")
    with pytest.raises(FileError, match=r"x\.npy exists and is left as it is; choose another name or give --overwrite"):
        write_samples(path, X)
    assert path.read_text() == "mine"
    write_samples(path, X, overwrite=True)
    assert np.array_equal(np.load(path), X.numpy())


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"x\.jpg'; must end in .png, .npy"):
        write_samples(tmp_path / "x.jpg", X)
    with pytest.raises(ConfigError, match="are no rows of a table"):
        write_samples(tmp_path / "x.csv", torch.zeros(2, 1, 4, 4))
    assert not list(tmp_path.iterdir())
