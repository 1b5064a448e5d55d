"""`fokker evaluate`: the numbers are the library's, nothing is overwritten, one line for every mistake."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fokker as fk
from fokker import noise
from fokker.metrics import evaluate
from fokker.train import load
from fokker.train.drawing import draw
from fokker.train.recipe import Sampling

from .calling import Call


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of moons with two classes, hardly trained."""
    folder = tmp_path_factory.mktemp("runs") / "moons"
    small = ["train.steps=3", "train.batch=8", "net={kind: mlp, width: 8, depth: 1}", "data.n=200", "sampling.n=4"]
    recipe = fk.train.read("moons", [*small, "net.classes=2", "sampling.steps=2", f"run.dir={folder}"])
    fk.fit(recipe, progress=False)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 x 8 pictures with two classes, bright and dark."""
    folder = tmp_path_factory.mktemp("runs")
    labels = torch.arange(200) % 2
    grey = 60 + 120 * labels[:, None, None] + 40 * noise.uniform(0, torch.arange(200), (8, 8))
    np.savez(folder / "data.npz", x=grey.to(torch.uint8).numpy(), y=labels.numpy())
    recipe = {"name": "grey", "net": {"kind": "unet", "width": 8, "multipliers": [1], "attention": []}}
    recipe |= {
        "data": {"kind": "arrays", "path": str(folder / "data.npz"), "key": "x", "label_key": "y", "holdout": 0.3}
    }
    recipe |= {"train": {"steps": 2, "batch": 4}, "sampling": {"steps": 1, "n": 4}, "run": {"dir": str(folder / "run")}}
    fk.fit(fk.train.recipe.make(recipe), progress=False)
    return folder / "run"


def test_fresh_samples_are_judged_as_the_library_judges_them(call: Call, points: Path) -> None:
    result = call("evaluate", points, "--n", 60, "--seed", 3, "--steps", 4, "--metrics", "w2,precision,copied")
    assert result.code == 0 and result.err == ""
    assert "w2[identity]" in result.out and "drawing 60 samples" in result.out
    folder = points / "evaluation"
    assert sorted(path.name for path in folder.iterdir()) == ["evaluation.json", "evaluation.md", "evaluation.png"]
    source = fk.data.Moons(n=200)
    train, test = source.load("train"), source.load("test")
    told = train.labels[noise.permutation(3, 200, 3)[:60]]  # classes as frequent as in the data
    x, _ = draw(
        load(points), Sampling(solver=fk.solvers.Heun(), steps=2), 60, cond=told, seed=3, steps=4, batch_size=64
    )
    report = evaluate(x, train, test, metrics=["w2", "precision", "copied"], seed=3)
    whole = json.loads((folder / "evaluation.json").read_text())
    assert whole["metrics"] == json.loads(report.to_json())["metrics"]
    assert whole["sampling"]["steps"] == 4 and whole["sampling"]["solver"]["kind"] == "heun" and whole["n"] == 60
    assert whole["data"]["kind"] == "moons" and len(whole["model"]) == 64
    assert (folder / "evaluation.md").read_text() == report.markdown()
    with Image.open(folder / "evaluation.png") as image:
        assert image.size == report.picture().size


def test_given_samples_and_numbered_folders(call: Call, points: Path) -> None:
    real = fk.data.Moons(n=200).sample(90, seed=5)
    np.save("x.npy", real.numpy())
    (Path("here")).mkdir()
    for chosen in ("here-2", "here-3"):
        result = call("evaluate", points, "--samples", "x.npy", "-o", "here", "--metrics", "energy,mmd")
        assert result.code == 0 and result.out.endswith(f"90 samples: {chosen}\n"), result
    whole = json.loads(Path("here-2/evaluation.json").read_text())
    assert whole["n"] == 90 and whole["samples"] == "x.npy" and "sampling" not in whole
    assert all(row["low"] < row["floor_train"] < row["high"] for row in whole["metrics"])
    assert not list(Path("here").iterdir())


def test_pictures_go_through_a_classifier_that_is_kept(call: Call, pictures: Path) -> None:
    result = call("evaluate", pictures, "--n", 40, "-o", "first")
    assert result.code == 0 and "training a classifier" in result.out, result
    whole = json.loads(Path("first/evaluation.json").read_text())
    names = [row["name"] for row in whole["metrics"]]
    assert names[:2] == ["frechet[classifier]", "kid[classifier]"] and names[-1] == "agreement[classifier]"
    assert whole["metrics"][-1]["floor_held_out"] == 1.0  # bright and dark are easily told apart
    assert len(list(pictures.glob("classifier-????????.safetensors"))) == 1
    # Real pictures of known classes in a file: bytes become numbers, labels are found.
    with np.load(pictures.parent / "data.npz") as data:
        np.savez("real.npz", x=data["x"], labels=data["y"])
    options = ("--features", "pixels,classifier", "--metrics", "frechet,agreement")
    result = call("evaluate", pictures, "--samples", "real.npz", "-o", "second", *options)
    assert result.code == 0 and "training a classifier" not in result.out, result
    rows = {row["name"]: row for row in json.loads(Path("second/evaluation.json").read_text())["metrics"]}
    assert list(rows) == ["frechet[pixels]", "frechet[classifier]", "agreement[classifier]"]
    assert rows["agreement[classifier]"]["value"] == 1.0
    assert rows["frechet[pixels]"]["value"] < 1.5 * rows["frechet[pixels]"]["floor_train"]


def test_a_folder_of_shards(call: Call, points: Path) -> None:
    call("sample", points, "--n", 80, "--batch-size", 20, "--shard", 40, "-o", "many/")
    result = call("evaluate", points, "--samples", "many", "-o", "e", "--metrics", "sliced")
    assert result.code == 0, result
    whole = json.loads(Path("e/evaluation.json").read_text())
    source = fk.data.Moons(n=200)
    x = fk.shards.read_shards("many")[0]
    expected = evaluate(x, source.load("train"), source.load("test"), metrics=["sliced"])
    assert whole["metrics"][0]["value"] == expected.rows[0].value


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--n", 5], "--n: given 5, and the data has 200 training rows: must be at least 24"),
        (["--features", "inception"], "--features: given 'inception'"),
        (["--features", "classifier"], "'classifier' needs labelled images"),
        (["--features", "efficientnet-lite0/top"], "needs images with 1 or 3 channels"),
        (["--metrics", "fid"], "an FID is 'frechet' over Inception-v3"),
        (["--samples", "none.npy"], "none.npy: does not exist"),
        (["--samples", "none.npz"], "none.npz cannot be read"),
        (["--samples", "x.npy", "--steps", 3, "--solver", "ddim"], "nothing is drawn: leave --solver, --steps"),
        (["--samples", "wrong.npy"], "events (3,), (2,) and (2,)"),
        (["--solver", "hun"], "did you mean 'heun'"),
    ],
)
def test_mistakes_are_one_line(call: Call, points: Path, options: list[object], says: str) -> None:
    np.save("wrong.npy", np.zeros((50, 3), np.float32))
    before = sorted(points.rglob("*"))
    result = call("evaluate", points, *options)
    assert result.code == 2 and says in result.err, result
    assert result.err.startswith("fokker: ") and result.err.count("\n") == 1
    assert sorted(points.rglob("*")) == before


def test_a_model_without_its_data(call: Call, points: Path) -> None:
    fk.save("bare.safetensors", load(points))
    result = call("evaluate", "bare.safetensors")
    assert result.code == 2 and "bare.safetensors: names no data to compare with" in result.err
