"""The training loop: what it draws, what it reaches, what it writes, and what it refuses."""

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from scipy.integrate import quad

from fokker import noise
from fokker.denoiser import NetDenoiser
from fokker.errors import ConfigError, FileError, FokkerError
from fokker.objectives import Denoising
from fokker.sampling import sample
from fokker.train import fit, load, read, read_header
from fokker.train.drawing import class_count, draw
from fokker.train.loop import batch_rows
from fokker.train.recipe import Recipe, make

TINY = ["train.batch=16", "net={kind: mlp, width: 8, depth: 1}", "data.n=60", "sampling.n=4", "sampling.steps=2"]


KEYS = {
    "step",
    "loss",
    "gradient_norm",
    "loss_by_time",
    "samples_per_second",
    "data_wait",
    "memory_mb",
    "lr",
    "skipped",
}


def recipe(folder: Path, *overrides: str) -> Recipe:
    return read("moons", [*TINY, "train.steps=5", f"run.dir={folder}", *overrides])


@pytest.mark.parametrize(("n", "batch"), [(10, 1), (10, 3), (10, 10), (7, 20), (12, 5), (1, 4)])
def test_every_epoch_is_one_permutation_whatever_the_batch(n: int, batch: int) -> None:
    epochs = 4
    known: dict[int, torch.Tensor] = {}
    rows = torch.cat([batch_rows(5, step, batch, n, known) for step in range(max(3, -(-epochs * n // batch)))])
    for epoch in range(epochs):
        assert torch.equal(rows[epoch * n : (epoch + 1) * n], noise.permutation(5, n, epoch))
    assert torch.equal(rows[:n].sort().values, torch.arange(n))
    step = 2  # at any step, without a history
    assert torch.equal(batch_rows(5, step, batch, n), rows[step * batch : (step + 1) * batch])
    assert len(known) <= 1 + -(-batch // n)
    if n >= 7:
        assert not torch.equal(rows[:n], rows[n : 2 * n]) and not torch.equal(noise.permutation(6, n), rows[:n])


def gaussian(tmp_path: Path) -> Path:
    file = tmp_path / "gaussian.npy"
    np.save(file, noise.normal(1, torch.arange(4000), (2,)).numpy() * 0.5)
    return file


def test_thirty_steps_on_a_gaussian_come_near_the_floor(tmp_path: Path) -> None:
    run = make(
        {
            "data": {"kind": "arrays", "path": str(gaussian(tmp_path))},
            "net": {"kind": "mlp", "width": 16, "depth": 1},
            "objective": {"stratified": True},
            "train": {"steps": 30, "batch": 512, "lr": 0.01, "warmup": 3, "ema": 0.0, "log_every": 1},
            "sampling": {"n": 4, "steps": 2},
            "run": {"dir": str(tmp_path / "run")},
        }
    )
    fit(run, progress=False)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    low, s2 = 1e-3, 0.25
    floor = quad(lambda t: s2 / ((1 - t) ** 2 * s2 + t**2), low, 1)[0] / (1 - low)  # pi s / 2, less the first part
    start = 1 + s2  # a new net says 0: E|eps - x0|^2 per dimension
    # A batch of 512 two-dimensional squares: a standard error of some 5 percent of the value at most.
    assert abs(log[0]["loss"] - start) < 0.15 * start
    final = [entry["loss"] for entry in log[-5:]]
    assert floor * 0.85 < sum(final) / 5 < floor + 0.35 * (start - floor)
    x0 = noise.normal(9, torch.arange(4000), (2,)) * 0.5
    trained = float(Denoising(stratified=True)(load(tmp_path / "run"), x0, seed=77).detach())
    assert floor - 0.05 < trained < floor + 0.3 * (start - floor)


def test_the_same_recipe_gives_the_same_bits_and_another_seed_does_not(tmp_path: Path) -> None:
    def weights(name: str, *overrides: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(len(name))  # what was drawn before does not matter
        return load_file(fit(recipe(tmp_path / name, *overrides), progress=False) / "model.safetensors")

    first, second, other = weights("a"), weights("bb"), weights("ccc", "train.seed=1")
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not any(torch.equal(first[k], other[k]) for k in first if first[k].any())
    pictures = [hashlib.sha256((tmp_path / name / "samples/000005.png").read_bytes()).digest() for name in ("a", "bb")]
    assert pictures[0] == pictures[1]


def test_one_step_by_hand(tmp_path: Path) -> None:
    run = recipe(tmp_path / "r", "train.steps=1", "train.warmup=4", "train.lr=0.1", "train.clip=1e-3", "train.ema=0.5")
    samples = run.data.load("train")
    torch.manual_seed(0)
    model = run.fresh(samples)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    rows = noise.permutation(0, 60, 0)[:16]
    loss = run.objective(model, samples.values[rows], None if class_count(model) == 0 else samples.labels[rows])
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1 * 1 / 4, weight_decay=0.0)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    optimiser.step()
    fit(run, progress=False)
    kept = load_file(tmp_path / "r" / "model.safetensors")
    for name, value in model.state_dict().items():  # the average keeps min(.5, 1/10) of the start
        assert torch.allclose(kept[name], 0.1 * start[name] + 0.9 * value, rtol=1e-5, atol=1e-7), name
    (entry,) = (json.loads(line) for line in (tmp_path / "r" / "log.jsonl").read_text().splitlines())
    assert math.isclose(entry["loss"], float(loss.detach()), rel_tol=1e-6)
    assert math.isclose(entry["gradient_norm"], float(norm), rel_tol=1e-5) and entry["lr"] == pytest.approx(0.025)


def test_what_a_run_folder_holds(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    run = recipe(folder, "train.log_every=2", "train.sample_every=2", "train.warmup=10", "train.lr=0.01")
    assert fit(run, progress=False) == folder
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == [
        ".lock",
        "log.jsonl",
        "model.safetensors",
        "recipe.yaml",
        "samples/000002.png",
        "samples/000004.png",
        "samples/000005.png",
        "state/00000005.safetensors",
        "state/manifest.json",
    ]
    written = make(yaml.safe_load((folder / "recipe.yaml").read_text()))
    assert written == read(folder / "recipe.yaml") == replace(run, net=written.net, run=written.run)
    assert written.run.dir == str(folder) and len(written.run.id) == 32
    assert written.net == run.net | {"dim": 2, "classes": 2, "cond_dim": 0}  # the network's own defaults too
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [2, 4, 5]
    for entry in log:
        assert set(entry) == KEYS and entry["skipped"] == 0 and len(entry["loss_by_time"]) == 10
        assert 0 < entry["data_wait"] < 1 and entry["memory_mb"] > 50
        assert entry["lr"] == pytest.approx(0.01 * entry["step"] / 10, rel=1e-12)
        assert entry["samples_per_second"] > 0 and entry["gradient_norm"] > 0 and 0 < entry["loss"] < 10
    with Image.open(folder / "samples/000005.png") as image:
        assert image.format == "PNG" and image.size == (480, 480)
    _, info = read_header(folder)
    assert info == {"classes": ["upper", "lower"], "codec": None, "recipe": written.resolved(), "step": 5}


def test_an_existing_folder_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "kept.txt").write_text("mine")
    with pytest.raises(FileError, match=r"not empty and is left as it is; choose another with run\.dir="):
        fit(recipe(tmp_path / "old"), progress=False)
    assert [(p.name, p.read_text()) for p in (tmp_path / "old").iterdir()] == [("kept.txt", "mine")]
    (tmp_path / "empty").mkdir()
    assert fit(recipe(tmp_path / "empty", "train.steps=1"), progress=False) == tmp_path / "empty"


@pytest.mark.parametrize("place", ["taken", "taken/inside"])
def test_a_file_in_the_folders_place_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(FileError):
        fit(recipe(tmp_path / place), progress=False)


def test_labelled_data_trains_without_classes_and_with(tmp_path: Path) -> None:
    free = load(fit(recipe(tmp_path / "free", "net.classes=0"), progress=False))
    assert class_count(free) == 0 and read_header(tmp_path / "free")[0]["net"]["classes"] == 0
    with pytest.raises(ConfigError, match="without"):
        free(torch.zeros(2, 2), 0.5, torch.tensor([0, 1]))
    told = load(fit(recipe(tmp_path / "told", "objective.cond_dropout=0.5", "sampling.guidance=2"), progress=False))
    assert class_count(told) == 2
    x = torch.ones(2, 2)
    assert not torch.equal(*told(x, 0.5, torch.tensor([0, 1])).value)  # the labels were heard
    options = recipe(tmp_path, "sampling.n=6", "sampling.guidance=2").sampling
    drawn, labels = draw(told, options)
    assert labels is not None and labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert drawn.shape == (6, 2) and torch.equal(drawn, draw(told, options)[0])
    assert not torch.equal(drawn, draw(told, recipe(tmp_path, "sampling.n=6").sampling)[0])


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["net.dim=3"], "must be (B, 3)"),
        (["net=unet", "net.width=8", "net.attention=[]"], ""),
        (["denoiser.time=index"], "needs the process 'ddpm'"),
        (["data={kind: arrays, path: missing.npy}"], "does not exist"),
        (["denoiser.predict=epsilon"], "predict"),
    ],
)
def test_what_does_not_fit_is_said_and_nothing_is_trained(overrides: list[str], why: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, FileError)) as caught:
        fit(recipe(tmp_path / "r", *overrides), progress=False)
    assert why in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "r" / "model.safetensors").exists()


@pytest.mark.parametrize(
    "overrides",
    [
        ["denoiser.learned_variance=true"],
        ["net.dim=3"],
        ["net.classes=1"],
    ],
    ids=["variance", "dim", "classes"],
)
def test_a_recipe_that_cannot_work_is_refused_before_a_folder_is_made(overrides: list[str], tmp_path: Path) -> None:
    with pytest.raises(FokkerError) as caught:
        fit(recipe(tmp_path / "r", *overrides), progress=False)
    assert "\n" not in str(caught.value) and not (tmp_path / "r").exists()


def test_a_table_of_betas_trains_and_is_written_out(tmp_path: Path) -> None:
    betas = [0.02] * 100
    folder = fit(recipe(tmp_path / "r", f"process={{kind: ddpm, steps: 100, betas: {betas}}}"), progress=False)
    assert read(folder / "recipe.yaml").process == load(folder).process
    assert load(folder).process.betas.tolist() == betas


def test_a_noise_prediction_starts_where_it_says_something_of_x0(tmp_path: Path) -> None:
    """At alpha = 0 the noise fixes no x0: the range, and so every default start, ends at t_max."""
    folder = fit(recipe(tmp_path / "r", "denoiser.predict=noise", "objective.weight=sigma2"), progress=False)
    denoiser = load(folder)
    assert denoiser.lam_range[0] == float(denoiser.process.lam(denoiser.process.t_max)) > -math.inf
    assert torch.isfinite(sample(denoiser, n=4, steps=3)).all()


def test_a_picture_that_cannot_be_drawn_does_not_lose_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("fokker.train.loop.picture", broken)
    with pytest.raises(ZeroDivisionError):
        fit(recipe(tmp_path / "r", "train.sample_every=0"), progress=False)
    assert load(tmp_path / "r").shape == (2,)


def test_the_bar_shows(tmp_path: Path, capsys: Any) -> None:
    fit(recipe(tmp_path / "r", "name=shown"), progress=True)
    assert "shown" in capsys.readouterr().out
    fit(recipe(tmp_path / "q", "name=shown"), progress=False)
    assert capsys.readouterr().out == ""


def test_images_make_a_grid(tmp_path: Path) -> None:
    pictures = torch.randint(0, 256, (40, 8, 8), dtype=torch.uint8)
    np.savez(tmp_path / "p.npz", x=pictures.numpy(), y=np.arange(40) % 2)
    run = make(
        {
            "data": {"kind": "arrays", "path": str(tmp_path / "p.npz"), "key": "x", "label_key": "y"},
            "net": {"kind": "unet", "width": 8, "multipliers": [1], "attention": []},
            "train": {"steps": 2, "batch": 4},
            "sampling": {"n": 10, "steps": 2, "guidance": 1.5},
            "run": {"dir": str(tmp_path / "r")},
        }
    )
    fit(run, progress=False)
    with Image.open(tmp_path / "r/samples/000002.png") as image:
        assert image.size == (2 * 8 + 2, 5 * 8 + 4 * 2) and image.mode == "L"
    assert isinstance(load(tmp_path / "r"), NetDenoiser)
