"""`fokker evaluate RUN --nll`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import fokker as fk
from fokker import noise
from fokker.cli.nll import measure_nll
from fokker.data import Latents, SignalCodec
from fokker.errors import ConfigError
from fokker.metrics import nll
from fokker.registry import spec
from fokker.train import load

from .calling import Call


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "moons"
    small = ["train.steps=3", "train.batch=8", "net={kind: mlp, width: 8, depth: 1}", "data.n=60", "sampling.n=4"]
    fk.fit(fk.train.read("moons", [*small, "net.classes=2", f"run.dir={folder}"]), progress=False)
    return folder


def test_points_with_their_classes(call: Call, points: Path) -> None:
    for name in ("evaluation", "evaluation-2"):
        result = call("evaluate", points, "--nll", "--n", 10, "--solver", "heun", "--steps", 8, "--seed", 4)
        assert result.code == 0 and result.err == "" and "nats (95 %)" in result.out, result
        assert sorted(path.name for path in (points / name).iterdir()) == ["nll.json", "nll.md"]
    source = fk.data.Moons(n=60)
    way = {"n": 10, "told": True, "solver": "heun", "steps": 8, "seed": 4}
    report = nll(load(points), source.load("train"), source.load("test"), **way)
    whole = json.loads((points / "evaluation" / "nll.json").read_text())
    assert whole["nll"] == json.loads(report.to_json())["nll"] and whole["conditional"] is True
    assert whole["flow"] == {"steps": 8, "nfe": None, "solver": {"kind": "heun", "space": "t"}, "grid": None}
    assert len(whole["model"]) == 64 and (points / "evaluation" / "nll.md").read_text() == report.markdown()
    free = nll(load(points), source.load("train"), source.load("test"), **way | {"told": False})
    assert free.rows != report.rows


def test_pictures_in_bits(call: Call, tmp_path: Path) -> None:
    pixels = (256 * noise.uniform(0, torch.arange(40), (4, 4))).numpy().astype(np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    recipe = {"name": "grey", "net": {"kind": "unet", "width": 8, "multipliers": [1], "attention": []}}
    recipe |= {"data": {"kind": "arrays", "path": str(tmp_path / "x.npy"), "holdout": 0.3}}
    recipe |= {"train": {"steps": 2, "batch": 4}, "sampling": {"steps": 1, "n": 4}, "run": {"dir": "run"}}
    fk.fit(fk.train.recipe.make(recipe), progress=False)
    result = call("evaluate", "run", "--nll", "--n", 4, "--solver", "heun", "--steps", 4, "-o", "here")
    assert result.code == 0 and "bits/dim (95 %)" in result.out, result
    whole = json.loads(Path("here/nll.json").read_text())
    assert [row["n"] for row in whole["nll"]] == [4, 4, 4, 4] and whole["probes"] == 0 and whole["draws"] == 256


def test_a_chain_with_learned_variances(call: Call, tmp_path: Path) -> None:
    pixels = (256 * noise.uniform(0, torch.arange(40), (4, 4))).numpy().astype(np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    net = {"kind": "unet", "width": 8, "multipliers": [1], "attention": [], "out_channels": 2}
    recipe = {"name": "grey", "net": net, "process": {"kind": "ddpm", "steps": 20}, "run": {"dir": "chain"}}
    recipe |= {"data": {"kind": "arrays", "path": str(tmp_path / "x.npy"), "holdout": 0.3}}
    recipe |= {"denoiser": {"predict": "noise", "learned_variance": True}, "train": {"steps": 2, "batch": 4}}
    recipe |= {
        "objective": {"predict": "noise", "variance_weight": 0.001, "times": {"kind": "uniform", "levels": True}}
    }
    recipe |= {"sampling": {"solver": {"kind": "ancestral", "variance": "learned"}, "steps": 2, "n": 4}}
    fk.fit(fk.train.recipe.make(recipe), progress=False)
    result = call("evaluate", "chain", "--nll", "--n", 4, "--solver", "heun", "--steps", 4, "-o", "there")
    assert result.code == 0 and "ddpm, held out" in result.out, result
    whole = json.loads(Path("there/nll.json").read_text())
    assert [row["name"] for row in whole["nll"]] == ["flow", "bound", "ddpm"] * 2 and whole["variance"] == "learned"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--metrics", "w2", "--guidance", 2], "measures the model, not samples: leave --metrics, --guidance"),
        (["--n", 1], "n: given 1, and"),
        (["--solver", "ancestral"], "towards the data only"),
    ],
)
def test_mistakes_are_one_line(call: Call, points: Path, options: list[object], says: str) -> None:
    before = sorted(points.rglob("*"))
    result = call("evaluate", points, "--nll", *options)
    assert result.code == 2 and says in result.err and result.err.count("\n") == 1, result
    assert sorted(points.rglob("*")) == before


class Encoder(torch.nn.Module):
    """An autoencoder that does nothing."""

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return z


def test_numbers_that_are_not_the_datas_are_refused(points: Path) -> None:
    def measure(source: object, info: dict[str, object]) -> None:
        measure_nll(str(points), source, info, {}, Path("unused"), lambda source: None, {})

    with pytest.raises(ConfigError, match="latents: their density says nothing of the pictures"):
        measure(Latents(fk.data.Moons(n=60), Encoder()), {})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="the data has changed since"):
        measure(fk.data.Moons(n=60), {"codec": spec(SignalCodec(mean=(0.0,), std=(1.0,)))})
