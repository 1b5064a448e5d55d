"""Classic models in a recipe: trained, resumed to the bit, saved, read back, sampled and measured like denoisers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

import fokker as fk
from fokker.classic import Model
from fokker.component import recorded
from fokker.errors import ConfigError
from fokker.likelihood.pixels import on_levels
from fokker.metrics import nll
from fokker.registry import KINDS
from fokker.train import read
from fokker.train.drawing import settle
from fokker.train.recipe import make

F64 = torch.float64
TOY = {"kind": "toy"}


@recorded
class Toy(Model):
    """N(mean, diag exp(2 log_std)) by maximum likelihood, counting the steps it was trained for."""

    likelihood = "exact"

    def __init__(self, shape: tuple[int, ...], spread: float = 1.0) -> None:
        super().__init__(shape)
        self.mean = nn.Parameter(torch.zeros(shape))
        self.log_std = nn.Parameter(torch.full(shape, math.log(spread)))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def losses(self, x: Tensor, *, seed: int = 0, step: int = 0, positions: Tensor | None = None) -> Tensor:
        if self.training:
            self.seen += 1
        rows = torch.arange(len(x)) if positions is None else positions
        jitter = 1e-3 * fk.noise.normal(seed, rows, self.shape, draw=step << 8, domain="training")
        return -self.log_prob(x + jitter)

    def draw(self, indices: Tensor, seed: int) -> Tensor:
        return self.mean + self.log_std.exp() * fk.noise.normal(seed, indices, self.shape)

    def log_prob(self, x: Tensor, *, seed: int = 0, indices: Tensor | None = None) -> Tensor:
        z = (x - self.mean) * (-self.log_std).exp()
        return (-0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS["model"], "toy", f"{__name__}:Toy")


def recipe(folder: Path, **train: Any) -> Any:
    options = {"steps": 30, "batch": 64, "lr": 0.05, "ema": 0.5, "warmup": 1, "log_every": 10, "checkpoint_every": 10}
    values = {"data": "moons", "model": TOY, "train": options | train, "sampling": {"n": 16}}
    return make(values | {"run": {"dir": str(folder)}})


def test_a_run_is_trained_saved_and_read_back(tmp_path: Path) -> None:
    folder = fk.fit(recipe(tmp_path / "run", steps=300), progress=False)
    model = fk.load(folder)
    x = fk.data.Moons().load("train").take(torch.arange(4096))[0]
    assert isinstance(model, Toy) and not model.training and int(model.seen) == 300
    torch.testing.assert_close(model.mean, x.mean(0), atol=0.05, rtol=0.0)
    torch.testing.assert_close(model.log_std.exp(), x.std(0), atol=0.05, rtol=0.0)
    written = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert written["model"] == {"kind": "toy", "shape": [2], "spread": 1.0} and written["sampling"] == {"n": 16}
    assert not {"process", "net", "denoiser", "objective"} & set(written)
    assert read(folder / "recipe.yaml").model == written["model"]
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert "loss_by_time" not in lines[0] and lines[-1]["loss"] < lines[0]["loss"]
    assert (folder / "samples" / "000300.png").stat().st_size > 1000


def test_a_resumed_run_has_the_bits_of_one_never_stopped(tmp_path: Path) -> None:
    whole = fk.load(fk.fit(recipe(tmp_path / "a"), progress=False))
    fk.fit(recipe(tmp_path / "b", steps=20), progress=False)
    again = fk.load(fk.resume(tmp_path / "b", ["train.steps=30"], progress=False))
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))
    with pytest.raises(ConfigError, match=r"^model\.spread: given 2.0, but this run has 1.0"):
        fk.resume(tmp_path / "b", ["model.spread=2.0"], progress=False)


def test_samples_depend_on_seed_and_number_alone() -> None:
    torch.manual_seed(0)
    model = Toy((2, 3)).double()
    x = model.sample(10, seed=3)
    assert torch.equal(model.sample(indices=[7, 2], seed=3), x[[7, 2]])
    assert torch.equal(model.sample(10, seed=3, batch_size=4, pad=True), x) and len(model.sample()) == 64
    done: list[int] = []
    settle(model)(10, batch_size=4, progress=done.append)
    assert done == [4, 4, 2]
    for given, match in (({"n": 0}, "n: given 0"), ({"n": 2, "batch_size": 0}, "batch_size: given 0")):
        with pytest.raises(ConfigError, match=match):
            model.sample(**given)
    with pytest.raises(ConfigError, match="n: given 3 with 2 indices"):
        model.sample(3, indices=[1, 2])


def test_nll_of_a_classic_model() -> None:
    train, test = fk.data.Moons().load("train"), fk.data.Moons().load("test")
    model = Toy((2,), spread=2.0)
    report = nll(model, train, test, n=100, batch_size=32, seed=1)
    assert [(row.name, row.split, row.n) for row in report.rows] == [
        ("exact", "held out", 100),
        ("exact", "train", 100),
    ]
    rows = fk.noise.permutation(1, len(train), 1)[:100]
    expected = -model.log_prob(train.take(rows)[0])
    assert report.rows[1].value == pytest.approx(expected.mean().item(), rel=1e-6)
    assert report.unit == "nats"
    with pytest.raises(ConfigError, match="steps: given, but the likelihood of Toy takes none"):
        nll(model, train, test, steps=4)
    model.__class__.likelihood, kept = "none", model.likelihood
    try:
        with pytest.raises(ConfigError, match="nll: Toy has no likelihood"):
            nll(model, train, test)
    finally:
        model.__class__.likelihood = kept


def test_bits_per_dim_of_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    train = fk.data.Fashion().load("train")
    model = Toy(train.shape, spread=0.7)
    x = train.take(fk.noise.permutation(0, len(train), 0)[:8])[0]
    found = nll(model, train, n=8).rows[0].value
    spread = fk.likelihood.dequantise(x, levels=256, seed=0)
    nats = -model.log_prob(spread) - x[0].numel() * math.log(2 / 255)
    assert found == pytest.approx(nats.mean().item() / (x[0].numel() * math.log(2)), rel=1e-5)
    for levels in (2, 256):
        monkeypatch.setattr(Toy, "levels", levels)
        if levels == 2:
            with pytest.raises(ConfigError, match="probabilities of 2 levels, and the data has 256 levels"):
                nll(model, train, n=8)
    mass = -model.log_prob(x).mean() / (x[0].numel() * math.log(2))
    assert nll(model, train, n=8).rows[0].value == pytest.approx(mass.item(), rel=1e-5)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    for values, match in (
        ({"data": "moons"}, "recipe: given neither of net"),
        ({"data": "moons", "model": "toy", "net": "mlp"}, "net: given in a recipe with a `model`"),
        ({"data": "moons", "model": "toy", "sampling": {"steps": 3}}, r"sampling\.steps: given in a recipe"),
        ({"data": "moons", "model": "tou"}, "unknown model 'tou': did you mean 'toy'"),
    ):
        with pytest.raises(ConfigError, match=match):
            make(values)
    for change, match in (
        ({"compile": True}, r"train\.compile: given True, which Toy cannot"),
        ({"shard": True}, r"train\.shard: given True, which Toy cannot"),
    ):
        with pytest.raises(ConfigError, match=match):
            fk.fit(recipe(tmp_path / "x", **change), progress=False)
    assert not (tmp_path / "x").exists()
    wrong = make({"data": "moons", "model": TOY | {"shape": [3]}, "run": {"dir": str(tmp_path / "x")}})
    with pytest.raises(ConfigError, match=r"model\.shape: given \(3,\), but the data has \(2,\)"):
        fk.fit(wrong, progress=False)
    for name, value in (("steps", 3), ("guidance", 2.0), ("brownian", True), ("cond", 1)):
        with pytest.raises(ConfigError, match=f"{name}: given, but Toy draws in its own way"):
            settle(Toy((2,)), **{name: value})  # type: ignore[arg-type]


def test_a_law_of_levels_is_not_trained_on_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toy, "levels", 4)
    monkeypatch.setattr(Toy, "log_prob", lambda self, x, **_: on_levels(x, 4))
    monkeypatch.setattr(Toy, "losses", lambda self, x, **_: x.flatten(1).sum(1))
    with pytest.raises(ConfigError, match=r"^model: x: has values that are not one of 4 levels.*model\.levels=0"):
        fk.fit(recipe(tmp_path / "run"), progress=False)


def test_null_takes_a_denoisers_sections_away(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"overrides: process=null net=null objective=null sampling\.solver=null"):
        read("moons", ["model=toy"])
    gone = ["process=null", "net=null", "objective=null", "sampling.solver=null", "sampling.steps=null"]
    found = read("moons", ["model=toy", *gone])
    assert found.model == {"kind": "toy"} and found.sampling.n == 2000
    fk.fit(recipe(tmp_path / "b", steps=2), progress=False)
    with pytest.raises(ConfigError, match=r"^model\.spraed: given 2.0, but this run has no such field"):
        fk.resume(tmp_path / "b", ["model.spraed=2.0"], progress=False)


def test_batches_and_numbers_that_are_none_are_refused() -> None:
    model = Toy((2, 3))
    for x, told in (
        (torch.zeros(4, 3, 2), r"x: given shape \(4, 3, 2\), must be \(B, 2, 3\)"),
        (torch.zeros(()), r"must be \(B, 2, 3\)"),
        (torch.zeros(4, 2, 3, dtype=F64), r"x: given torch.float64 on cpu, but the model is torch.float32 on cpu"),
    ):
        with pytest.raises(ConfigError, match=told):
            model.check(x)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"n": -1}, "n: given -1, must be at least 1"),
        ({"n": "4"}, "n: given '4'"),
        ({"n": True}, "n: given True"),
        ({"batch_size": 2.5}, "batch_size: given 2.5"),
        ({"indices": 3}, "indices: given 3, must be whole numbers"),
        ({"indices": [0.5, 1.7]}, "must be whole numbers"),
        ({"indices": [-1]}, r"indices: must lie in \[0, 2\^32\)"),
    ]
    for given, told in bad:
        with pytest.raises(ConfigError, match=told):
            model.sample(**given)
    x = torch.zeros(3, 2, 3)
    for door in (fk.log_prob, fk.elbo, fk.encode):
        with pytest.raises(ConfigError, match=r"denoiser: given Toy, which is no denoiser: draw from it by its own"):
            door(model, x)  # type: ignore[operator]
    with pytest.raises(ConfigError, match="Toy, which is no denoiser"):
        fk.sample(model, n=2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "model",
    [
        fk.classic.VAE((2,), latent=2, width=4),
        fk.classic.HVAE((2,), latent=(2, 1), width=4),
        fk.classic.Autoregressive((2,), width=4),
        fk.classic.GAN((2,), width=4),
        fk.classic.Energy((2,), width=4, depth=1),
        fk.classic.RealNVP((2,), width=4, layers=2),
        fk.classic.CNF((2,), width=4),
    ],
    ids=lambda model: type(model).__name__,
)
def test_every_model_looks_at_what_it_is_given(model: Model) -> None:
    for x in (torch.zeros(4, 5), torch.zeros(4, 2, 1), torch.zeros(4, 2, dtype=F64)):
        with pytest.raises(ConfigError, match="x: given"):
            model.losses(x, positions=torch.arange(len(x)))
        if model.likelihood != "none":
            with pytest.raises(ConfigError, match="x: given"):
                model.log_prob(x)
