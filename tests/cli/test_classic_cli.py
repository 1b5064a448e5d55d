"""Classic models at the command line: info, train, sample, evaluate, and what only denoisers can do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import fokker as fk
from fokker.shards import Shards

from .calling import Call

SMALL = ("model={kind: autoregressive, components: 2, width: 16, depth: 1}", "train.steps=30", "train.batch=64")
RECIPE = "autoregressive-moons"


def test_a_classic_model_at_the_command_line(call: Call, tmp_path: Path) -> None:
    done = call("info", RECIPE, *SMALL)
    assert done.code == 0 and "autoregressive" in done.out and "log-likelihood" in done.out, done
    assert call("train", RECIPE, *SMALL, "run.dir=run").code == 0
    model = fk.load("run")
    assert "exact" in call("info", "run").out
    done = call("sample", "run", "-n", 10, "--seed", 5, "--batch-size", 4, "-o", "x.npy")
    assert done.code == 0, done
    torch.testing.assert_close(torch.from_numpy(np.load("x.npy")), model.sample(10, seed=5), atol=1e-5, rtol=0.0)
    done = call("sample", "run", "-n", 10, "--batch-size", 4, "--shard", 8, "-o", "shards")
    assert done.code == 0, done
    drawn = Shards("shards", holdout=0.0).load().take(torch.arange(10))[0]
    assert torch.equal(drawn, model.sample(10, batch_size=4, pad=True))
    again = call("sample", "run", "-n", 10, "--batch-size", 4, "--shard", 8, "-o", "shards")
    assert again.code == 0 and "all were there" in again.out
    done = call("evaluate", "run", "--nll", "-n", 50, "-o", "nll")
    assert done.code == 0, done
    rows = json.loads((tmp_path / "nll" / "nll.json").read_text())["nll"]
    assert [(row["name"], row["split"]) for row in rows] == [("exact", "held out"), ("exact", "train")]
    done = call("evaluate", "run", "-n", 60, "--metrics", "energy", "-o", "evaluation")
    assert done.code == 0, done
    assert json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["sampling"] == {}
    assert call("train", "run", "--resume", "train.steps=35").code == 0
    assert not torch.equal(fk.load("run").sample(4), model.sample(4))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("sample", "run", "--steps", 3, "-o", "y.npy"), "steps: given, but GAN draws in its own way"),
        (("sample", "run", "--solver", "ddim", "-o", "y.npy"), "solver: given, but GAN draws in its own way"),
        (("tune", "run", "-o", "g.json"), "run: holds a model of class GAN; give a denoiser's run"),
        (("evaluate", "run", "--nll"), "GAN has no likelihood that can be evaluated"),
        (("train", "run", "--resume", "model.r1=2.0"), "but this run has"),
        (("train", "gan-moons", "train.compile=true", "run.dir=b"), "train.compile: given True, which GAN cannot"),
        (("train", "gan-moons", "model.hight=3", "run.dir=b"), "GAN has no field 'hight'"),
        (("train", "gan-moons", "net=mlp", "run.dir=b"), "net: given in a recipe with a `model`"),
        (("train", "gan-moons", "model=gna", "run.dir=b"), "did you mean 'gan'"),
    ],
)
def test_what_it_cannot_do_is_said_in_one_line(call: Call, words: tuple[object, ...], told: str) -> None:
    small = ("model={kind: gan, width: 8, depth: 1}", "train.steps=2", "train.batch=8", "sampling.n=8")
    assert call("train", "gan-moons", *small, "run.dir=run").code == 0
    done = call(*words)
    said = [line for line in done.err.splitlines() if not line.startswith("fokker: note")]
    assert done.code == 2 and told in done.err and len(said) == 1, done
