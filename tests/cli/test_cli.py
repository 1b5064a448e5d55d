"""The command line: what it does, and one line on standard error for every mistake."""

import os
import re
import shlex
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fokker as fk
from fokker.cli import main
from fokker.guidance import CFG
from fokker.metrics import train_classifier
from fokker.solvers import DDIM, Ancestral
from fokker.train import load, read_header, recipe_names

from .calling import Call, Result

TINY = ["-q", "train.steps=3", "train.batch=8", "net={kind: mlp, width: 8, depth: 1}", "data.n=50", "sampling.n=4"]
TINY = [*TINY, "sampling.steps=2", "objective.cond_dropout=0.2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of a model with classes (told) and of one without (free)."""
    folder = tmp_path_factory.mktemp("runs")
    for name, classes in (("told", "net.classes=2"), ("free", "net.classes=0")):
        values = [item for item in TINY if item != "-q"]
        model = fk.train.read("moons", [*values, classes, f"run.dir={folder / name}", "sampling.guidance=1.5"])
        fk.fit(model, progress=False)
        with torch.no_grad():  # a trained-looking one: every output differs
            back = load(folder / name)
            for p in back.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        fk.save(folder / name / "model.safetensors", back, read_header(folder / name)[1])
    return folder


def mistake(result: Result, *says: str) -> None:
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("fokker: ") and result.err.count("\n") == 1 and result.err.endswith("\n")
    for part in says:
        assert part in result.err, result.err


def subproc(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(Path(fk.__file__).parents[1])}  # PYTHONPATH=src would be relative to cwd
    command = [sys.executable, "-m", "fokker", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=cwd, env=env)


# ---- as a process


def test_version_and_module(tmp_path: Path) -> None:
    done = subproc("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, fk.__version__ + "\n", "")


def test_a_mistake_in_a_real_process(tmp_path: Path) -> None:
    done = subproc("train", "mons", cwd=tmp_path)
    mistake(Result(done.returncode, done.stdout, done.stderr), "no recipe 'mons'", "did you mean 'moons'?")
    assert not list(tmp_path.iterdir())


def test_train_sample_info_in_real_processes(tmp_path: Path) -> None:
    done = subproc("train", "moons", *TINY, "run.dir=r", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("trained: r") and done.stderr == ""
    done = subproc("sample", "r", "--n", "4", "--seed", "3", "-o", "x.npy", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == "4 samples: x.npy\n" and done.stderr == ""
    x = np.load(tmp_path / "x.npy", allow_pickle=False)
    assert x.shape == (4, 2) and x.dtype == np.float32 and np.isfinite(x).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r", "x.npy"]


# ---- sampling


def test_the_numbers_are_the_librarys(call: Call, runs: Path) -> None:
    result = call("sample", runs / "free", "--n", 5, "--seed", 9, "-o", "x.npy")
    assert result == Result(0, "5 samples: x.npy\n", "")
    expected = fk.sample(load(runs / "free"), n=5, seed=9, solver="heun", grid="t", steps=2, batch_size=64, pad=True)
    assert np.array_equal(np.load("x.npy"), expected.numpy())


def test_classes_come_in_turn_and_guidance_from_the_recipe(call: Call, runs: Path) -> None:
    denoiser, keys = load(runs / "told"), {"solver": "heun", "grid": "t", "steps": 2, "batch_size": 64, "pad": True}
    call("sample", runs / "told", "--n", 6, "-o", "all.npy")
    turns = torch.arange(6) % 2
    assert np.array_equal(np.load("all.npy"), fk.sample(CFG(denoiser, 1.5), n=6, cond=turns, **keys).numpy())
    call("sample", runs / "told", "--n", 6, "--guidance", 1, "-o", "one.npy")
    assert np.array_equal(np.load("one.npy"), fk.sample(denoiser, n=6, cond=turns, **keys).numpy())
    call("sample", runs / "told", "--n", 6, "--guidance", 4, "--label", "LOWER", "-o", "low.npy")
    ones = torch.ones(6, dtype=torch.int64)
    assert np.array_equal(np.load("low.npy"), fk.sample(CFG(denoiser, 4.0), n=6, cond=ones, **keys).numpy())
    call("sample", runs / "told", "--n", 6, "--guidance", 4, "--label", "1", "-o", "number.npy")
    assert np.array_equal(np.load("low.npy"), np.load("number.npy"))


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        (["--solver", "ddim:eta=0.5", "--steps", 3], {"solver": DDIM(0.5), "grid": "t", "steps": 3}),
        (["--solver", "ddim", "--grid", "karras"], {"solver": DDIM(), "grid": "karras", "steps": 2}),
        (["--solver", "ancestral", "--grid", "lam"], {"solver": Ancestral(), "grid": "lam", "steps": 2}),
        (["--solver", "heun", "--nfe", 5], {"solver": "heun", "grid": "t", "nfe": 5}),
        (["--solver", "rk4", "--steps", 1], {"solver": "rk4", "grid": "t", "steps": 1}),
        (["--solver", "adaptive:rtol=1e-5"], {"solver": {"kind": "adaptive", "rtol": 1e-5}}),
        (
            ["--solver", "euler_maruyama:eta=0.2", "--steps", 4],
            {"solver": {"kind": "euler-maruyama", "eta": 0.2}, "grid": "t", "steps": 4},
        ),
    ],
)
def test_solvers_grids_and_budgets(options: list[Any], keys: dict[str, Any], call: Call, runs: Path) -> None:
    assert call("sample", runs / "free", "--n", 3, "-o", "x.npy", *options).code == 0
    assert np.array_equal(
        np.load("x.npy"), fk.sample(load(runs / "free"), n=3, batch_size=64, pad=True, **keys).numpy()
    )


def test_the_same_seed_at_any_n_and_nearly_at_any_batch_size(call: Call, runs: Path) -> None:
    def drawn(n: int, batch: int, seed: int = 1) -> Any:
        assert (
            call(
                "sample",
                runs / "told",
                "--n",
                n,
                "--seed",
                seed,
                "--batch-size",
                batch,
                "-o",
                f"{n}-{batch}-{seed}.npy",
            ).code
            == 0
        )
        return np.load(f"{n}-{batch}-{seed}.npy")

    full = drawn(10, 4)
    assert np.array_equal(drawn(7, 4), full[:7])  # same bits for any n at one batch size: the last batch is padded
    assert np.array_equal(drawn(5, 4), full[:5])
    assert np.array_equal(drawn(10, 64), drawn(70, 64)[:10])  # also where n is less than a batch
    for batch in (1, 3, 10):  # other shapes, other rounding: the same samples, not always the same bits
        assert np.allclose(drawn(10, batch), full, rtol=1e-4, atol=1e-5)
    assert not np.isclose(drawn(10, 4, seed=2), full).any()


def test_pictures_and_overwriting(call: Call, runs: Path, tmp_path: Path) -> None:
    assert call("sample", runs / "free", "--n", 9).out == "9 samples: samples.png\n"
    with Image.open("samples.png") as image:
        assert image.format == "PNG" and image.size == (480, 480)
    first = Path("samples.png").read_bytes()
    again = ("sample", runs / "free", "--n", 9, "--seed", 4)
    mistake(call(*again), "samples.png exists and is left as it is", "--overwrite")
    assert Path("samples.png").read_bytes() == first
    assert call(*again, "--overwrite").code == 0 and Path("samples.png").read_bytes() != first
    assert call(*again, "-o", "new/folder/x.png").code == 0 and Path("new/folder/x.png").exists()
    call("sample", runs / "free" / "model.safetensors", "--n", 9, "-o", "file.png")
    assert Path("file.png").read_bytes() == first


SAMPLING: list[tuple[str, list[Any], list[str]]] = [
    ("free", ["--solver", "hein"], ["unknown solver 'hein'", "did you mean 'heun'?"]),
    ("free", ["--solver", "ddpm"], ["DDPM is a process"]),
    ("free", ["--solver", "ddim:et=1"], ["DDIM has no field 'et'", "did you mean 'eta'?"]),
    ("free", ["--solver", "ddim:eta"], ["--solver", "kind:name=value"]),
    ("free", ["--solver", "ddim:eta=much"], ["DDIM.eta: given 'much'"]),
    ("free", ["--solver", "ddim:eta=-1"], ["DDIM.eta: given -1"]),
    ("free", ["--solver", "adaptive", "--nfe", 9], ["nfe: given 9", "leave it out"]),
    ("free", ["--solver", "adaptive:method=rk45"], ["Adaptive.method: given 'rk45'", "dormand-prince"]),
    ("free", ["--solver", ""], ["unknown solver ''"]),
    ("free", ["--grid", "lamb"], ["unknown grid 'lamb'", "did you mean 'lam'?"]),
    ("free", ["--grid", "times"], ["Times.values must be given"]),
    ("free", ["--steps", 2, "--nfe", 3], ["give steps or nfe, not both"]),
    ("free", ["--steps", 0], ["steps: given 0, must be at least 1"]),
    ("free", ["--nfe", 0], ["nfe: given 0, must be at least 1"]),
    ("free", ["--steps", "x"], ["--steps", "fokker sample --help"]),
    ("free", ["--n", 0], ["n: given 0, must be at least 1"]),
    ("free", ["--n", -3], ["n: given -3, must be at least 1"]),
    ("free", ["--batch-size", 0], ["batch_size: given 0, must be at least 1"]),
    ("free", ["--batch-size", -2], ["batch_size: given -2"]),
    ("free", ["--label", 0], ["--label: given '0'", "no classes"]),
    ("free", ["--guidance", 2], ["guidance: given 2.0", "no classes"]),
    ("told", ["--label", 2], ["--label: given '2'", "0 to 1"]),
    ("told", ["--label=-1"], ["--label: given '-1'", "0 to 1"]),
    ("told", ["--label", "uper"], ["did you mean 'upper'?"]),
    ("told", ["--guidance", "nan"], ["scale", "finite"]),
    ("told", ["-o", "x.jpg"], ["output: given 'x.jpg'", ".png, .npy, .npz", "FOLDER/"]),
    ("told", ["--seeds", 3], ["No such option: --seeds", "fokker sample --help"]),
    ("told", ["--seed", 1.5], ["--seed"]),
    ("told", ["more"], ["unexpected extra argument"]),
    ("gone", [], ["no such file or run folder"]),
    (".", [], ["no model.safetensors in this folder"]),
]


@pytest.mark.parametrize(
    ("run", "options", "says"), SAMPLING, ids=lambda v: " ".join(map(str, v)) if isinstance(v, list) else v
)
def test_mistakes_in_sampling(
    run: str, options: list[Any], says: list[str], call: Call, runs: Path, tmp_path: Path
) -> None:
    default = [] if "-o" in options else ["-o", "x.npy"]
    mistake(call("sample", runs / run, *default, *options), *says)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("run", "options"),
    [
        ("told", ["--n", -1]),  # torch.arange(-1)
        ("told", ["--label", "\u00b2"]),  # isdigit() holds of a superscript, int() refuses it
        ("free", ["--solver", "ddim:eta=[0.5"]),  # yaml.YAMLError
        ("free", ["-o", "taken/x.npy"]),  # unlink() of what lies below a file
    ],
)
def test_mistakes_that_others_would_raise(run: str, options: list[Any], call: Call, runs: Path) -> None:
    Path("taken").write_text("mine")
    mistake(call("sample", runs / run, *([] if "-o" in options else ["-o", "x.npy"]), *options))


def test_an_array_without_a_picture_and_a_foreign_file(call: Call, tmp_path: Path) -> None:
    np.save("five.npy", np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32))
    plain = [item for item in TINY if not item.startswith("data")]
    assert call("train", "moons", *plain, "data={kind: arrays, path: five.npy}", "run.dir=r").code == 0
    assert not Path("r/samples").exists()
    mistake(call("sample", "r", "--n", 4), "(5,) have no picture; write a .npy file")
    assert not Path("samples.png").exists()
    for command in ("sample", "info"):
        mistake(call(command, "five.npy"), "five.npy: damaged or not a safetensors file")
    content = Path("r/model.safetensors").read_bytes()
    Path("half.safetensors").write_bytes(content[: len(content) // 2])
    mistake(call("sample", "half.safetensors"), "half.safetensors: damaged")


# ---- training


def test_train_says_where_and_refuses_to_overwrite(call: Call, tmp_path: Path) -> None:
    result = call("train", "moons", *TINY)
    assert result == Result(0, "trained: runs/moons  (sample it: fokker sample runs/moons -o samples.png)\n", "")
    before = {p: p.read_bytes() for p in Path("runs").rglob("*") if p.is_file()}
    mistake(call("train", "moons", *TINY), "runs/moons: this folder is not empty", "run.dir=")
    assert {p: p.read_bytes() for p in Path("runs").rglob("*") if p.is_file()} == before
    Path("mine.yaml").write_text("data: {kind: moons, n: 20}\nnet: {kind: mlp, width: 4, depth: 1}\n")
    assert call("train", "mine.yaml", "-q", "train.steps=1", "sampling.n=2", "sampling.steps=1").code == 0
    assert fk.load("runs/mine").shape == (2,)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["fashon"], ["no recipe 'fashon'", "did you mean 'fashion'?"]),
        (["nope.yaml"], ["no recipe 'nope.yaml'", "YAML file"]),
        (["moons", "train.step=3"], ["train has no field 'step'", "did you mean 'steps'?"]),
        (["moons", "trian.steps=3"], ["did you mean 'train'?"]),
        (["moons", "train.steps=abc"], ["train.steps: given 'abc'"]),
        (["moons", "train.steps=-1"], ["train.steps: given -1"]),
        (["moons", "process=ddim"], ["DDIM is a solver"]),
        (["moons", "steps"], ["override 'steps': must be key=value"]),
        (["moons", "net.widht=4"], ["MLP has no field 'widht'", "did you mean 'width'?"]),
        (["moons", "net.width=abc"], ["MLP.width: given 'abc'"]),
        (["moons", "data={kind: arrays, path: gone.npy}"], ["gone.npy: does not exist"]),
        (["moons", "denoiser.time=integer"], ["needs the process 'ddpm'"]),
        (["moons", "process={kind: vp, beta_min: 3, beta_max: 2}"], ["beta_max: given 2"]),
        (["moons", "--fast"], ["No such option: --fast", "fokker train --help"]),
        ([], ["Missing argument", "fokker train --help"]),
    ],
    ids=lambda v: " ".join(v),
)
def test_mistakes_in_training(args: list[str], says: list[str], call: Call, tmp_path: Path) -> None:
    mistake(call("train", *args), *says)
    assert not list(tmp_path.iterdir())


# ---- the rest


def test_info(call: Call, runs: Path) -> None:
    result = call("info", runs / "told")
    assert result.code == 0 and result.err == ""
    text = " ".join(result.out.split())
    parameters = sum(p.numel() for p in load(runs / "told").parameters())
    for part in (f"parameters {parameters:,}", "event 2", "Flow(t_min=0.001)", "predicts velocity", "kind=mlp"):
        assert part in text
    for part in ("0 upper, 1 lower", "trained 3 steps", "lam range -inf to 6.907"):
        assert part in text
    text = call("info").out
    assert fk.__version__ in text and torch.__version__ in text
    for part in ("process", "ddim", "unet", "likelihood", "swiss-roll"):
        assert part in text
    mistake(call("info", "gone"), "gone: no such file or run folder")
    mistake(call("info", "--gone"), "No such option")
    mistake(call("info", runs / "told", "net.width=9"), "'net.width=9': only a recipe can be changed")


def test_info_counts_operations_and_reads_recipes(call: Call, runs: Path) -> None:
    def operations(width: int, depth: int) -> int:
        """A multiply-add is two: features -> E -> E, first and last layer, and three layers a block."""
        return 2 * (2 * width * width + 2 * 2 * width + depth * (width * 2 * width + 2 * width * width))

    text = " ".join(call("info", runs / "told").out.split())
    assert f"FLOPs {operations(8, 1):,} per sample and forward pass" in text and "recipe" not in text
    result = call("info", "moons", "net={kind: mlp, width: 16, depth: 3}", "data.n=50")
    text = " ".join(result.out.split())
    assert result.code == 0 and f"FLOPs {operations(16, 3):,} per" in text and "trained" not in text
    for part in ("recipe moons", "data 50 samples", "event 2", "kind=mlp, dim=2, width=16", "0 upper, 1 lower"):
        assert part in text
    result = call("info", "moons", "net={kind: dit, preset: sx}")
    mistake(result, "DiT: unknown preset 'sx': did you mean 's'? allowed: b, l, s, xl")
    assert not list(Path.cwd().iterdir())


def test_recipes(call: Call) -> None:
    result = call("recipes")
    assert result.code == 0 and result.err == "" and all(name in result.out for name in recipe_names())
    assert "Two moons" in result.out and "Class-conditional flow matching" in result.out
    mistake(call("recipes", "x"), "unexpected extra argument")


def test_commands_and_help(call: Call) -> None:
    mistake(call("smaple"), "No such command 'smaple'", "fokker --help")
    mistake(call("--nope"), "No such option: --nope", "fokker --help")
    assert call().code == 2
    for args in ([], ["train"], ["sample"], ["info"], ["recipes"], ["demo"]):
        for flag in ("-h", "--help"):
            result = call(*args, flag)
            assert result.code == 0 and "Usage: " in result.out and result.err == ""
    assert call("--version") == Result(0, fk.__version__ + "\n", "")


def test_interruption(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fokker.train.read", stop)
    assert call("train", "moons") == Result(130, "", "fokker: interrupted\n")


def test_a_bug_is_not_dressed_as_a_mistake(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("fokker.train.read", broken)
    monkeypatch.setattr(sys, "argv", ["fokker", "train", "moons"])
    with pytest.raises(ZeroDivisionError):
        main()


def test_numbers_that_are_not_finite_are_warned_of(call: Call, runs: Path) -> None:
    broken = load(runs / "free")
    with torch.no_grad():
        next(broken.net.last.parameters()).fill_(float("nan"))
    fk.save("bad.safetensors", broken)
    result = call("sample", "bad.safetensors", "--n", 3, "--steps", 2, "-o", "x.npy")
    assert result.code == 0 and result.err == "fokker: warning: some samples are not finite\n"
    assert np.isnan(np.load("x.npy")).all()


@pytest.mark.parametrize("change", ["data=moons", "net.classes=0"])
def test_the_demo_refuses_what_it_cannot_judge_before_training(change: str, call: Call, tmp_path: Path) -> None:
    mistake(call("demo", change), "the demo needs labelled images")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_demo_from_data_to_picture(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fokker.metrics.train_classifier", partial(train_classifier, epochs=1))
    Path("d").mkdir()  # what exists is left alone and the number goes on
    small = ["train.steps=2", "train.batch=8", "net.width=8", "net.attention=[]", "sampling.steps=1", "sampling.n=10"]
    result = call("demo", "--folder", "d", *small)
    assert result.code == 0, result.err
    assert not list(Path("d").iterdir()) and (Path("d-2") / "model.safetensors").exists()
    with Image.open("d-2/demo.png") as image:
        assert image.size == (10 * 28 + 9 * 2, 8 * 28 + 7 * 2)
    said = r"([\d.]+)% of real held-out.*?([\d.]+)% of our samples \(([\d.]+) of real\)"
    (found,) = re.findall(said, " ".join(result.out.split()))
    real, ours, ratio = map(float, found)
    assert 70 < real < 95 and 0 <= ours < 40  # ours: two steps of training teach nothing
    assert abs(ratio - ours / real) < 0.01 and "picture (one class a column): d-2/demo.png" in result.out


# ---- data


def test_data_list_and_fetch(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FOKKER_CACHE", str(tmp_path / "cache"))
    listed = call("data", "list")
    assert listed.code == 0 and "fashion-mnist" in listed.out and listed.out.endswith("(set FOKKER_CACHE to move it)\n")
    mistake(call("data", "fetch", "minst"), "no data set 'minst' to fetch: did you mean 'mnist'?")
    mistake(call("data", "fetch", "mnist", "--from", "gone", "-q"), "gone: does not exist")
    mistake(call("train", "fashion", "data=cifar10"), "run `fokker data fetch cifar10`")


def test_autoencoder_and_training_among_its_latents(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save("x.npy", np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8))
    Path("mine.yaml").write_text("data: {kind: arrays, path: x.npy, holdout: 0.2}\nnet: {kind: mlp, width: 8}\n")
    options = ["--steps", 2, "--latent", 3, "--width", 4, "--levels", 1]
    result = call("data", "autoencoder", "mine.yaml", "-q", "-o", "a.safetensors", *options)
    assert result.code == 0 and result.err == "" and result.out.startswith("trained: a.safetensors  (mean squared")
    mistake(call("data", "autoencoder", "mine.yaml", "-o", "a.safetensors"), "a.safetensors: exists and is left")
    told = shlex.split(result.out.splitlines()[1].removeprefix("use it: fokker "))
    assert told[:2] == ["train", "mine.yaml"]
    model = fk.train.read(told[1], told[2:])
    samples = model.data.load("test")
    assert samples.shape == (3, 4, 4) and samples.codec is not None
    assert samples.codec.decode(samples.values).shape == (len(samples), 1, 8, 8)
    few = ["train.steps=1", "train.batch=8", "sampling.n=2", "sampling.steps=1", "run.dir=run"]
    assert call(*told, *few, "-q").code == 0
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    sampled = call("sample", "../run", "--n", 3, "--steps", 1, "-o", "x.npy")
    assert sampled.code == 0 and sampled.err == "" and np.load("x.npy").shape[0] == 3


def test_a_warning_is_one_line(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warnings.showwarning", warnings.showwarning)  # put back afterwards
    for i in range(12):
        Image.new("L", (8, 8), 20 * i).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_text("no picture")
    small = ["data={kind: folder, path: ., size: 8, channels: 1, holdout: 0}", "net=mlp"]
    result = call("info", "moons", *small)
    assert result.code == 0
    assert result.err == "fokker: warning: Folder .: 1 pictures cannot be decoded and are skipped: broken.png\n"
