"""Arrays: values unchanged, layouts, stable splits, and files that are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fokker.data import Arrays, Samples
from fokker.errors import ConfigError, FileError

GRID = np.random.default_rng(0).normal(size=(40, 3))


def npz(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return str(path)


def npy(path: Path, array: np.ndarray) -> str:
    np.save(path, array)
    return str(path)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f8"])
def test_floats_are_unchanged(tmp_path: Path, dtype: str) -> None:
    samples = Arrays(npy(tmp_path / "x.npy", GRID.astype(dtype)), holdout=0).load()
    assert np.array_equal(samples.values.numpy(), GRID.astype(dtype).astype(np.float32)) and samples.labels is None


def test_splits_partition_and_do_not_move(tmp_path: Path) -> None:
    def rows(n: int, split: str) -> list[int]:
        path = npy(tmp_path / "x.npy", np.arange(n, dtype=np.float32)[:, None])
        return Arrays(path, holdout=0.2).load(split).values[:, 0].int().tolist()  # type: ignore[arg-type]

    train, test = rows(1000, "train"), rows(1000, "test")
    assert sorted(train + test) == list(range(1000)) and abs(len(test) - 200) <= 3
    assert [row for row in rows(2000, "test") if row < 1000] == test


def test_labels(tmp_path: Path) -> None:
    labels = np.arange(40, dtype=np.uint8) % 3
    path = npz(tmp_path / "x.npz", x=GRID, y=labels)
    samples = Arrays(path, label_key="y").load()
    assert samples.classes == ("0", "1", "2") and samples.labels is not None
    where = {tuple(row): int(label) for row, label in zip(GRID.astype(np.float32).tolist(), labels, strict=True)}
    given = [where[tuple(row)] for row in samples.values.tolist()]
    assert given == samples.labels.tolist() and samples.labels.dtype == torch.int64


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 1, 4, 5), (2, 3, 4, 5), (2, 4, 5, 1), (2, 4, 5, 3)])
def test_pictures(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    samples = Arrays(npy(tmp_path / "x.npy", array), holdout=0).load()
    channels = 3 if 3 in (shape[1], shape[-1]) else 1
    expected = (
        array.transpose(0, 3, 1, 2) if shape[1:3] == (4, 5) and len(shape) == 4 else array.reshape(2, channels, 4, 5)
    )
    assert samples.is_image and np.array_equal(samples.values.numpy(), expected)


def test_flip_is_for_training_on_pictures(tmp_path: Path) -> None:
    images, labels = np.zeros((20, 4, 4), np.uint8), np.arange(20)
    for path, key in ((npy(tmp_path / "x.npy", images), ""), (npz(tmp_path / "x.npz", x=images, y=labels), "y")):
        arrays = Arrays(path, label_key=key, flip=True)
        assert arrays.load().flip and not arrays.load("test").flip and not Arrays(path, label_key=key).load().flip
    with pytest.raises(ConfigError, match=r"flip: only images"):
        Arrays(npy(tmp_path / "f.npy", GRID), flip=True).load()


def test_encrypted_files_are_named(tmp_path: Path) -> None:
    path = Path(npz(tmp_path / "x.npz", x=GRID))
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.find(mark) + offset] |= 1
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"x\.npz: cannot be read as \.npy or \.npz .*encrypted"):
        Arrays(str(path)).load()


@pytest.mark.parametrize("cut", [10, 200, -30])
def test_truncated_files_are_named(tmp_path: Path, cut: int) -> None:
    for path in (tmp_path / "x.npz", tmp_path / "x.npy"):
        npz(path, x=GRID) if path.suffix == ".npz" else npy(path, GRID)
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(FileError, match=rf"{path.name}: cannot be read"):
            Arrays(str(path)).load()


def test_damaged_member_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, x=GRID)
    content = bytearray(path.read_bytes())
    content[300] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(FileError, match="cannot be read"):
        Arrays(str(path)).load()


def load(path: str, **fields: str) -> Samples:
    return Arrays(path, **fields).load()  # type: ignore[arg-type]


def test_refusals_name_the_cause(tmp_path: Path) -> None:
    path = npz(tmp_path / "x.npz", x=GRID, y=np.arange(40), few=np.arange(3), minus=np.arange(40) - 1)
    with pytest.raises(FileError, match=r"gone\.npy: does not exist"):
        load(str(tmp_path / "gone.npy"))
    with pytest.raises(ConfigError, match=r"no key 'z'; its keys: x, y, few, minus"):
        load(path, key="z")
    with pytest.raises(ConfigError, match="key must name one of its arrays: x, few, minus"):
        load(path, label_key="y")
    with pytest.raises(ConfigError, match=r"given int64 \(40,\), must be float"):
        load(path, key="y")
    for key in ("few", "minus", "x"):
        with pytest.raises(ConfigError, match=f"{key!r} is .* must be integers"):
            load(path, key="x", label_key=key)
    with pytest.raises(ConfigError, match="holds a single array"):
        load(npy(tmp_path / "x.npy", GRID), key="x")
    with pytest.raises(ConfigError, match=r"given uint8 \(2, 3\)"):
        load(npy(tmp_path / "b.npy", np.zeros((2, 3), np.uint8)))
    with pytest.raises(ConfigError, match="test split with holdout"):
        Arrays(npy(tmp_path / "x.npy", GRID), holdout=0).load("test")
    pickled = tmp_path / "o.npy"
    np.save(pickled, np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(FileError, match="without pickles"):
        load(str(pickled))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_first_number_that_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    array = GRID.copy()
    array[7, 2] = array[20, 0] = value
    with pytest.raises(FileError, match=r"x\.npy: the number at \(7, 2\) is (nan|inf)"):
        load(npy(tmp_path / "x.npy", array))


@pytest.mark.parametrize(
    "cond",
    [
        GRID,
        GRID.reshape(20, 2, 3).repeat(2, axis=0),
        np.arange(80).reshape(40, 2),
        np.arange(80, dtype=np.uint8).reshape(40, 2),
    ],
)
def test_conditions_follow_their_rows(tmp_path: Path, cond: np.ndarray) -> None:
    source = Arrays(npz(tmp_path / "x.npz", x=np.arange(40.0)[:, None], c=cond), cond_key="c", holdout=0.25)
    for split in ("train", "test"):
        samples = source.load(split)  # type: ignore[arg-type]
        rows = samples.values[:, 0].long().numpy()
        assert samples.cond is not None and samples.labels is None
        assert samples.cond.dtype == (torch.float32 if cond.dtype.kind == "f" else torch.int64)
        assert np.array_equal(samples.cond.numpy(), cond[rows].astype(samples.cond.numpy().dtype))


def test_conditions_that_do_not_fit(tmp_path: Path) -> None:
    path = npz(
        tmp_path / "x.npz", x=GRID, few=GRID[:7], flat=GRID[:, 0], bad=np.where(GRID > 2, np.nan, GRID), y=np.arange(40)
    )
    for key in ("few", "flat"):
        with pytest.raises(ConfigError, match=rf"'{key}' is float64 .*must be float \(40, d\)"):
            load(path, key="x", cond_key=key)
    with pytest.raises(FileError, match=r"x\.npz 'bad': the number at .* is nan"):
        load(path, key="x", cond_key="bad")
    with pytest.raises(ConfigError, match="one or the other"):
        load(path, key="x", cond_key="x", label_key="y")


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    path = str(tmp_path / "x.parquet")
    write_table(pa.table({"a": GRID[:, 0], "y": np.arange(40) % 3, "b": GRID[:, 1].astype(np.float32)}), path)
    held = np.arange(1, 41) * 0.6180339887498949 % 1 < 0.25
    samples = Arrays(path, label_key="y", holdout=0.25).load("test")
    assert np.array_equal(samples.values.numpy(), GRID[held, :2].astype(np.float32))
    assert samples.labels is not None and samples.labels.tolist() == (np.arange(40) % 3)[held].tolist()
    assert Arrays(path).load().shape == (3,)
    with pytest.raises(ConfigError, match="label_key names 'z': allowed: a, b, y"):
        load(path, label_key="z")
    with pytest.raises(ConfigError, match="'a' is float64"):
        load(path, label_key="a")
    with pytest.raises(ConfigError, match="leave key and cond_key empty"):
        load(path, key="a")
