"""`fokker init`: writes what can be trained, says what it saw, and never overwrites."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fokker.cli import main
from fokker.data import Folder
from fokker.train import look, read

Call = Callable[..., tuple[Any, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["fokker", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, *capsys.readouterr()

    return run


def test_it_writes_what_it_saw(call: Call) -> None:
    np.save("x.npy", np.random.default_rng(0).normal(size=(50, 2)))
    code, out, err = call("init", "x.npy", "-o", "new/mine.yaml")
    assert code == 0 and err == "" and "float64 (50, 2)" in out
    assert out.endswith("train it: fokker train new/mine.yaml\n")
    assert Path("new/mine.yaml").read_text() == look("x.npy").recipe("mine")
    recipe = read("new/mine.yaml")
    assert recipe.name == "mine" and recipe.data.load().shape == (2,)
    code, out, err = call("train", "new/mine.yaml", "-q", "train.steps=2", "sampling.n=2", "run.dir=r")
    assert code == 0 and Path("r/model.safetensors").exists()


def test_it_never_overwrites(call: Call) -> None:
    np.save("x.npy", np.zeros((50, 2)))
    Path("recipe.yaml").write_text("mine")
    code, out, err = call("init", "x.npy")
    assert (code, out) == (2, "") and err.startswith("fokker: recipe.yaml exists and is left as it is")
    assert Path("recipe.yaml").read_text() == "mine"


def test_mistakes_leave_nothing(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for args, says in (
        (["gone"], "gone: does not exist"),
        ([], "say where your data is: fokker init PATH"),
        (["gone", "-o", "x.txt"], "must end in .yaml"),
    ):
        code, out, err = call("init", *args)
        assert (code, out) == (2, "") and err.startswith("fokker: ") and says in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_what_does_not_load_is_not_written(call: Call) -> None:
    rng = np.random.default_rng(0)
    channels = rng.normal(size=(40, 2, 16))
    channels[:, 1] = 3
    for values, says in (
        (channels, "channel 1 is constant"),
        (rng.normal(size=(4, 2)), "none of its 4 rows is in the test split"),  # the training split would load
        (np.array([[1.0, np.nan]] * 50), "the number at (0, 1) is nan in float32, must be finite"),
    ):
        np.save("x.npy", values)
        code, out, err = call("init", "x.npy")
        assert (code, out) == (2, "") and says in err and err.count("\n") == 1 and not Path("recipe.yaml").exists()


def test_many_pictures_are_not_all_decoded(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("p").mkdir()
    for i in range(20):
        Image.new("L", (8, 8), i).save(f"p/{i}.png")
    Path("p/bad.png").write_bytes(b"no picture")
    loaded: list[str] = []
    real = Folder.load
    monkeypatch.setattr(Folder, "load", lambda self, split: loaded.append(split) or real(self, split))
    assert call("init", "p", "-o", "a.yaml")[::2] == (0, "") and loaded == ["train", "test"]
    monkeypatch.setattr("fokker.cli.init.FEW", 5)
    assert call("init", "p", "-o", "b.yaml")[::2] == (0, "") and loaded == ["train", "test"]


def test_it_asks_where_there_is_someone_to_ask(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save("x.npy", np.zeros((50, 2)))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.prompt", lambda question: "x.npy")
    assert call("init")[0] == 0 and Path("recipe.yaml").exists()
