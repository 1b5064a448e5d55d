"""Recipes: names, files, overrides of every form, and the mistakes a user makes in them."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from fokker.data import Fashion, Moons, Samples
from fokker.errors import ConfigError, FileError
from fokker.objectives import Denoising, LogitNormal, MinSNR, UniformTimes
from fokker.process import EDM, VP, Flow
from fokker.registry import KINDS, build
from fokker.solvers import DDIM, Adams, FlowTime, Heun, Karras, UniformT
from fokker.train import Constant, Recipe, fit, read, read_header, recipe_names, resume
from fokker.train.options import Training
from fokker.train.recipe import make, recipes_folder


def test_names_are_the_files_beside_the_package() -> None:
    names = recipe_names()
    assert {"fashion", "moons"} <= set(names)
    assert all(file.parent == recipes_folder() and file.stem == name for name, file in names.items())
    for file in names.values():
        first = file.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# ") and first.endswith("."), "the listing's one line"


@pytest.mark.parametrize("name", sorted(recipe_names()))
def test_every_recipe_is_made_and_reads_back_equal(name: str) -> None:
    recipe = read(name)
    assert recipe.name == name and recipe.folder == Path(f"runs/{name}")
    text = yaml.safe_dump(recipe.resolved(), sort_keys=False)
    assert make(yaml.safe_load(text)) == recipe
    assert read(recipe_names()[name]) == recipe == read(str(recipe_names()[name]))
    # Every field is written out: nothing is left to later defaults.
    written = yaml.safe_load(text)
    assert set(written["train"]) == {field.name for field in fields(Training)}
    assert written["run"] == {"dir": "", "id": ""}
    if recipe.model is None:
        assert written["objective"]["kind"] == "denoising"
    else:  # a classic model has its own loss
        assert written["model"]["kind"] in KINDS["model"] and "objective" not in written
    assert set(written["data"]) == {"kind", *(field.name for field in fields(recipe.data) if field.init)}


def test_moons_by_value() -> None:
    recipe = read("moons")
    assert recipe.data == Moons() and recipe.process == Flow() and recipe.objective == Denoising(stratified=True)
    assert (recipe.train.steps, recipe.train.batch, recipe.train.lr, recipe.train.ema) == (
        2000,
        512,
        1e-3,
        Constant(0.995),
    )
    assert recipe.sampling.solver == Heun() and recipe.sampling.steps == 20
    fashion = read("fashion")
    assert fashion.data == Fashion() and fashion.objective.times == LogitNormal()
    assert fashion.objective.cond_dropout == 0.1 and fashion.sampling.guidance == 2.0
    assert fashion.sampling.grid == UniformT() and fashion.net["multipliers"] == [1, 2, 4]


def test_defaults() -> None:
    recipe = make({"data": "moons", "net": "mlp"})
    assert recipe == Recipe(data=Moons(), net={"kind": "mlp"})
    assert recipe.process == Flow() and recipe.objective == Denoising() and recipe.name == "run"
    assert recipe.denoiser.predict == "velocity" and recipe.train.seed == 0 and recipe.folder == Path("runs/run")
    assert recipe.sampling.solver == Adams() and recipe.sampling.grid == FlowTime() and recipe.sampling.guidance == 1.0


@pytest.mark.parametrize(
    ("overrides", "path", "value"),
    [
        (["train.steps=7"], "train.steps", 7),
        (["train.lr=1e-4"], "train.lr", 1e-4),  # YAML 1.1 reads this as a string
        (["process=vp"], "process", VP()),
        (["process=vp", "process.beta_max=15"], "process", VP(beta_max=15.0)),
        (["process.kind=edm", "process.sigma_max=10"], "process", EDM(sigma_max=10.0)),
        (["process={kind: vp, beta_min: 0.2}"], "process", VP(beta_min=0.2)),
        (["objective.weight=min-snr", "objective.weight.gamma=2"], "objective.weight", MinSNR(2.0)),
        (["objective.times.kind=logit-normal", "objective.times.mean=1"], "objective.times", LogitNormal(1.0)),
        (["objective.times={kind: uniform, levels: true}"], "objective.times", UniformTimes(levels=True)),
        (
            ["net.multipliers=[1, 2]"],
            "net",
            {"kind": "mlp", "width": 128, "depth": 3, "classes": 0} | {"multipliers": [1, 2]},
        ),
        (["net=unet", "net.width=8"], "net", {"kind": "unet", "width": 8}),
        (["data.n=9"], "data", Moons(n=9)),
        (["run.dir=a/b=c"], "folder", Path("a/b=c")),
        (["sampling.solver=ddim", "sampling.solver.eta=0.5"], "sampling.solver", DDIM(0.5)),
        (["sampling.grid=karras"], "sampling.grid", Karras()),
        (["train.steps=3", "train.steps=4"], "train.steps", 4),
        (["name=other"], "folder", Path("runs/other")),
        (["objective.stratified=false"], "objective.stratified", False),
        (["sampling.guidance=2"], "sampling.guidance", 2.0),
    ],
)
def test_overrides(overrides: list[str], path: str, value: Any) -> None:
    found: Any = read("moons", overrides)
    for part in path.split("."):
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["train.step=3"], ["train has no field 'step'", "did you mean 'steps'?"]),
        (["trian.steps=3"], ["recipe has no key 'trian'", "did you mean 'train'?"]),
        (["objective.predictt=x0"], ["did you mean 'predict'?"]),
        (["objective.predict=epsilon"], ["unknown reading 'epsilon'"]),
        (["process=vpp"], ["unknown process 'vpp'", "did you mean 'vp'?"]),
        (["process=ddim"], ["DDIM is a solver"]),
        (["sampling.solver=ddpm"], ["DDPM is a process", "'ancestral'"]),
        (["process=vp", "process.beta_maxx=3"], ["VP has no field 'beta_maxx'", "did you mean 'beta_max'?"]),
        (["net=mlpp"], ["unknown net 'mlpp'", "did you mean 'mlp'?"]),
        (["net={width: 3}"], ["unknown net ''", "mlp, unet"]),
        (["train.steps=many"], ["train.steps: given 'many'", "integer"]),
        (["train.steps=0"], ["train.steps: given 0", "greater than or equal to 1"]),
        (["train.ema=1.0"], ["train.ema: given 1.0", "less than 1"]),
        (["train.lr=.nan"], ["train.lr", "finite"]),
        (["train.seed=-1"], ["train.seed: given -1"]),
        (["train.warmup=2.5"], ["train.warmup: given 2.5"]),
        (["denoiser.precondition=edn"], ["denoiser.precondition", "'edm'"]),
        (["train"], ["override 'train': must be key=value"]),
        (["=3"], ["override '=3': must be key=value"]),
        (["name.x=3"], ["recipe.name"]),
        (["train.steps.x=3"], ["override 'train.steps.x=3'", "'steps' is 2000, which has no keys"]),
        (["train=5"], ["train: given 5, must be a mapping"]),
        (["data=null"], ["data"]),
        (["data={n: 3}"], ["data", "without a kind", "moons"]),
        (["net=null"], ["net"]),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(overrides: list[str], says: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read("moons", overrides)
    text = str(caught.value)
    assert "\n" not in text and all(part in text for part in says), text


@pytest.mark.parametrize("override", ["train={1: 2}", "process={1: 2, kind: vp}", "objective={1: 2}"])
def test_keys_are_words(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read("moons", [override])
    assert "key 1" in str(caught.value) and "\n" not in str(caught.value)


def test_what_yaml_takes_for_an_impossible_date_is_a_word(tmp_path: Path) -> None:
    assert read("moons", ["name=2024-13-45"]).name == "2024-13-45"
    (tmp_path / "d.yaml").write_text("data: moons\nnet: mlp\nname: 2024-13-45\n")
    with pytest.raises(FileError, match="not a readable YAML file"):
        read(tmp_path / "d.yaml")


def test_files(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"no recipe 'mons': did you mean 'moons'\?.*or the path of a YAML file"):
        read("mons")
    with pytest.raises(FileError, match="no recipe"):
        read(tmp_path)
    file = tmp_path / "mine.yaml"
    for content, kind, why in (
        (b"a: [1", FileError, "not a readable YAML file"),
        (b"a: \xff\xfe", FileError, "not a readable YAML file"),
        (b"a: !!python/object:os.system x", FileError, "not a readable YAML file"),
        (b"- 1\n- 2\n", ConfigError, "a recipe is a mapping"),
        (b"", ConfigError, "a recipe is a mapping"),
        (b"data: moons\n", ConfigError, "recipe: given neither of net"),
        (b"net: mlp\n", ConfigError, "recipe.data must be given"),
        (b"1: 2\n", ConfigError, "recipe has no key 1"),
    ):
        file.write_bytes(content)
        with pytest.raises(kind) as caught:
            read(file)
        assert why in str(caught.value) and "\n" not in str(caught.value), content
    file.write_text("data: moons\nnet: mlp\nobjective:\n")
    with pytest.raises(ConfigError):
        read(file)
    file.write_text("data: moons\nnet: mlp\n")
    assert read(file).name == "mine" and read(str(file), ["name=x"]).name == "x"


def test_what_a_recipe_resolves_to_is_equal_after_overrides(tmp_path: Path) -> None:
    recipe = read(
        "fashion",
        [
            "process={kind: ddpm, steps: 4, betas: [0.1, 0.2, 0.3, 0.4]}",
            "objective={predict: x0, weight: {kind: min-snr, gamma: 0.3333333333333333}, density: replace}",
            "sampling.grid={kind: times, values: [1.0, 0.5, 0.0]}",
            "denoiser={predict: edm, precondition: edm, time: integer, sigma_data: 0.31}",
            f"run.dir={tmp_path / 'ü'}",
        ],
    )
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.resolved()), encoding="utf-8")
    assert read(file) == recipe


def test_the_network_takes_its_sizes_from_the_data() -> None:
    labelled = Samples(torch.zeros(4, 1, 8, 6, dtype=torch.uint8), torch.arange(4), ("a", "b", "c", "d"))
    recipe = read("fashion", ["net={kind: mlp, width: 8, depth: 1}", "denoiser.predict=v", "denoiser.time=lam"])
    model = recipe.fresh(Samples(torch.zeros(4, 5), torch.arange(4) % 3, ("a", "b", "c")))
    assert model.net.dim == 5 and model.net.config["classes"] == 3 and model.shape == (5,)
    assert model.reading.name == "v" and model.time_input == "lam" and model.process == Flow()
    given = read("moons", ["net.classes=7"]).fresh(Samples(torch.zeros(4, 2)))
    assert given.net.config["classes"] == 7
    square = Samples(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), labelled.labels, labelled.classes)
    model = read("fashion", ["net={kind: unet, width: 8, multipliers: [1], attention: []}"]).fresh(square)
    assert model.net.config["channels"] == 1 and model.net.config["size"] == 8 and model.net.config["classes"] == 4
    with pytest.raises(ConfigError, match="did you mean 'width'"):
        read("moons", ["net.wdth=3"]).fresh(square)


def test_a_run_knows_its_data_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    np.save("x.npy", np.random.default_rng(0).normal(size=(30, 2)))
    recipe = make({"data": {"kind": "arrays", "path": "./x.npy"}, "net": "mlp"})
    assert recipe.resolved()["data"]["path"] == str(tmp_path / "a" / "x.npy")
    data = {"kind": "latents", "source": {"kind": "folder", "path": "../p", "size": 4}, "encoder": "e.safetensors"}
    written = make({"data": data, "net": "mlp"}).resolved()["data"]
    assert written["encoder"] == str(tmp_path / "a" / "e.safetensors")
    assert written["source"]["path"] == str(tmp_path / "p")
    for path in ("", "~/mnist"):
        assert make({"data": {"kind": "mnist", "path": path}, "net": "unet"}).resolved()["data"]["path"] == path
    options = ["train.steps=1", "train.batch=8", "sampling.n=2", "net.width=8"]
    Path("r.yaml").write_text(yaml.safe_dump(recipe.resolved()))
    folder = fit(read("r.yaml", ["data.path=x.npy", *options]), progress=False).resolve()
    monkeypatch.chdir(tmp_path)
    assert resume(folder, ["train.steps=2"], progress=False) == folder
    assert len(build("data", read_header(folder)[1]["recipe"]["data"]).load("test")) == 3
