"""Signals: windows that do not mix the splits, standardisation and its inverse, every format, and refusals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from fokker.data import Heartbeats, SignalCodec, Signals
from fokker.data.signals import windows
from fokker.errors import ConfigError, FileError
from fokker.registry import build, spec

RNG = np.random.default_rng(0)
SERIES = RNG.normal(size=(1000, 2)) * (3.0, 0.5) + (10.0, -2.0)


def npy(path: Path, array: Any) -> str:
    np.save(path, array)
    return str(path)


def values(source: Signals, split: Any = "train") -> np.ndarray:
    """The signals in the user's units."""
    samples = source.load(split)
    assert samples.codec is not None
    return samples.codec.decode(samples.values).numpy()


@pytest.mark.parametrize(("length", "window", "stride"), [(1000, 20, 20), (1000, 20, 3), (997, 64, 16), (300, 64, 1)])
def test_no_training_window_touches_a_test_window(length: int, window: int, stride: int) -> None:
    covered = {}
    for split in ("train", "test"):
        starts = windows(length, window, stride, 0.3, split)
        assert starts and max(starts) + window <= length
        covered[split] = {i for start in starts for i in range(start, start + window)}
    assert not covered["train"] & covered["test"]
    if stride < window:  # nothing but what a window's stride cannot reach is wasted
        assert len(covered["train"] | covered["test"]) >= length - 2 * 10 * stride
        assert abs(len(covered["test"]) / length - 0.3) < 0.1


def test_the_blocks_are_spread_over_the_series() -> None:
    assert windows(100, 5, 5, 0.2, "test") == [40, 45, 90, 95]  # 20 of 100 hold two windows twice: 2 parts
    assert windows(100, 5, 5, 0.2, "train") == [*range(0, 40, 5), *range(50, 90, 5)]
    assert windows(10000, 5, 5, 0.1, "test")[0] == 900 and len(windows(10000, 5, 100, 0.1, "test")) == 10
    assert windows(100, 5, 95, 0.0, "train") == [0, 95] and windows(100, 5, 5, 0.0, "test") == []
    assert windows(4, 5, 1, 0.0, "train") == []


def test_a_series_is_cut_standardised_and_brought_back(tmp_path: Path) -> None:
    source = Signals(npy(tmp_path / "x.npy", SERIES), window=25, stride=10, holdout=0.2)
    samples = source.load()
    starts = windows(1000, 25, 10, 0.2, "train")
    cut = np.stack([SERIES[start : start + 25].T for start in starts])
    assert samples.shape == (2, 25) and samples.values.dtype == torch.float32 and samples.labels is None
    assert torch.allclose(samples.values.double().mean((0, 2)), torch.zeros(2, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(
        samples.values.double().var((0, 2), correction=0), torch.ones(2, dtype=torch.float64), atol=1e-5
    )
    assert np.allclose(values(source), cut, rtol=1e-6, atol=1e-6)
    held = np.stack([SERIES[start : start + 25].T for start in windows(1000, 25, 10, 0.2, "test")])
    assert np.allclose(values(source, "test"), held, rtol=1e-6, atol=1e-6)
    assert source.load("test").codec == samples.codec  # the training split's numbers
    assert np.allclose(samples.codec.mean, cut.mean((0, 2))) and np.allclose(samples.codec.std, cut.std((0, 2)))
    assert build("codec", json.loads(json.dumps(spec(samples.codec)))) == samples.codec


def test_many_signals(tmp_path: Path) -> None:
    many = SERIES.reshape(40, 2, 25)
    held = np.arange(1, 41) * 0.6180339887498949 % 1 < 0.25
    flat = Signals(npy(tmp_path / "x.npy", many[:, 0]), holdout=0.25)
    assert np.allclose(values(flat), many[~held, :1], atol=1e-5)
    assert np.allclose(values(flat, "test"), many[held, :1], atol=1e-5)
    both = Signals(npy(tmp_path / "x.npy", many), holdout=0.25)
    assert np.allclose(values(both), many[~held], atol=1e-5)
    cut = Signals(npy(tmp_path / "x.npy", many), window=10, stride=5, holdout=0.25)
    parts = [one[:, start : start + 10] for one in many[held] for start in (0, 5, 10, 15)]
    assert np.allclose(values(cut, "test"), np.stack(parts), atol=1e-5)


def test_labels(tmp_path: Path) -> None:
    labels = np.arange(40) % 3
    np.savez(tmp_path / "x.npz", x=SERIES.reshape(40, 50), y=labels)
    source = Signals(str(tmp_path / "x.npz"), label_key="y", holdout=0.25)
    held = np.arange(1, 41) * 0.6180339887498949 % 1 < 0.25
    for split, chosen in (("train", ~held), ("test", held)):
        samples = source.load(split)  # type: ignore[arg-type]
        assert samples.labels is not None and samples.labels.tolist() == labels[chosen].tolist()
        assert samples.classes == ("0", "1", "2")


def test_tables(tmp_path: Path) -> None:
    named, bare = tmp_path / "named.csv", tmp_path / "bare.csv"
    lines = [",".join(f"{v!r}" for v in row) for row in SERIES.tolist()]
    named.write_text("\n".join(["left,right", *lines]))
    bare.write_text("\n".join(lines))
    cut = Signals(npy(tmp_path / "x.npy", SERIES), window=25).load()
    for path in (named, bare):
        assert torch.equal(Signals(str(path), window=25).load().values, cut.values)
    right = Signals(str(named), window=25, columns=("right",)).load()
    assert torch.equal(right.values, cut.values[:, 1:])
    rows = Signals(str(bare), holdout=0)  # without a window every line is a signal
    assert np.allclose(values(rows), SERIES[:, None], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "scale", "zero"), [("int16", 2.0**15, 0), ("uint8", 128.0, 128), ("float32", 1.0, 0)]
)
def test_sound(tmp_path: Path, dtype: str, scale: float, zero: int) -> None:
    stored = (SERIES * (5 if dtype == "uint8" else 20) + zero).astype(dtype)
    wavfile.write(tmp_path / "x.wav", 8000, stored)
    given = values(Signals(str(tmp_path / "x.wav"), window=100, holdout=0))
    expected = (stored.astype(np.float64) - zero) / scale
    assert np.allclose(given, expected.reshape(10, 100, 2).transpose(0, 2, 1), rtol=1e-5, atol=1e-6)
    wavfile.write(tmp_path / "x.wav", 8000, stored[:, 0])
    assert Signals(str(tmp_path / "x.wav"), window=100, holdout=0).load().shape == (1, 100)


@pytest.mark.parametrize(
    ("array", "fields", "says"),
    [
        (SERIES, {"window": 400}, "no test signal with window=400"),
        (SERIES, {"window": 2000}, "no train signal with window=2000"),
        (SERIES[:, 0], {}, r"given shape \(1000,\), must be \(N, L\) or \(N, C, L\); one series needs window"),
        (SERIES.T, {"window": 20}, r"given shape \(2, 1000\), with window it must be \(T,\), \(T, C\)"),
        (np.stack([SERIES[:, 0], np.ones(1000)], 1), {"window": 20}, "channel 1 is constant"),
        (np.array([["a", "b"]]), {}, "must be numbers"),
        (np.where(SERIES[7, 1] == SERIES, np.nan, SERIES), {"window": 20}, r"the number at \(7, 1\) is nan"),
        (SERIES, {"label_key": "y"}, "needs an .npz of whole signals"),
        (SERIES, {"holdout": 0.0, "window": 20, "split": "test"}, "no test signal"),
    ],
)
def test_refusals(tmp_path: Path, array: Any, fields: dict[str, Any], says: str) -> None:
    split = fields.get("split", "train" if "no test" not in says else "test")
    fields = {name: value for name, value in fields.items() if name != "split"}
    with pytest.raises((ConfigError, FileError), match=says) as caught:
        Signals(npy(tmp_path / "x.npy", array), **fields).load(split)
    assert "x.npy" in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(b"RIFF\x00")
    (tmp_path / "x.csv").write_text("a,b\n1,2\n3,x\n")
    for name, says in (
        ("x.wav", "cannot be read as .wav"),
        ("gone.wav", "does not exist"),
        ("x.mp3", "must end in"),
        ("x.csv", "column 'b', line 3: 'x' is no number"),
    ):
        with pytest.raises((ConfigError, FileError), match=says):
            Signals(str(tmp_path / name), window=1).load()
    with pytest.raises(ConfigError, match="columns names 'c'"):
        Signals(str(tmp_path / "x.csv"), window=1, columns=("c",)).load()


def test_the_codec_keeps_shape_dtype_and_gradient() -> None:
    codec = SignalCodec((1.0, -2.0), (3.0, 0.5))
    x = torch.randn(4, 2, 5, dtype=torch.float64, requires_grad=True)
    y = codec.decode(x)
    assert torch.equal(y[:, 1], x[:, 1] * 0.5 - 2) and torch.equal(y[:, 0], 1 + 3 * x[:, 0]) and y.requires_grad
    for change in (codec.decode, codec.encode):
        with pytest.raises(ConfigError, match=rf"{change.__name__}: given \(4, 1, 5\), must be \(N, 2, L\)"):
            change(x[:, :1])
    assert torch.allclose(codec.encode(y), x.float(), atol=1e-7) and codec.encode(y).dtype == torch.float32


def test_heartbeats_beat() -> None:
    train, test = Heartbeats().load(), Heartbeats(stride=128).load("test")
    assert train.shape == (1, 128) and len(train) > 1500 and len(test) > 40
    assert isinstance(train.codec, SignalCodec)
    whole = Heartbeats(window=36000, stride=1, holdout=0).load()
    assert isinstance(whole.codec, SignalCodec)
    series = whole.codec.decode(whole.values)[0, 0].double().numpy()
    # What the recording's page says: 5 minutes in mV; its first sample at 360 Hz is (975 - 1024) / 200.
    assert len(series) == 5 * 60 * 120 and -3.6 < series.min() < -2.5 and 2.5 < series.max() < 3.7
    assert abs(series[0] + 0.245) < 0.06
    beats = np.abs(np.fft.rfft(np.diff(series[:7200] - series[:7200].mean()) ** 2))[1:]
    assert 1.0 < np.fft.rfftfreq(7199, 1 / 120)[1:][beats[:180].argmax()] < 2.2  # 60 to 130 beats a minute


def test_a_damaged_recording_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fokker.data.signals.HEARTBEATS", "0" * 64)
    with pytest.raises(FileError, match=r"heartbeats\.npz is damaged"):
        Heartbeats().load()
