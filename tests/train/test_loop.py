"""One training in progress: bad numbers, parts of a batch, rates, optimisers, precision, and what the log says."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fokker.denoiser import NetDenoiser
from fokker.errors import ConfigError, MissingExtraError
from fokker.train import fit, load, read
from fokker.train.journal import Tally
from fokker.train.loop import Loop
from fokker.train.optim import make_optimiser
from fokker.train.options import Training
from fokker.train.parallel import Team
from fokker.train.recipe import Recipe, make

TINY = ["train.batch=16", "net={kind: mlp, width: 8, depth: 1}", "data.n=60", "sampling.n=4", "sampling.steps=2"]


def recipe(folder: Path, *overrides: str) -> Recipe:
    return read("moons", [*TINY, "train.steps=5", f"run.dir={folder}", *overrides])


def pictures(tmp_path: Path, **sections: Any) -> dict[str, Any]:
    """The values of a recipe for forty little pictures."""
    bits = torch.randint(0, 256, (40, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    np.save(tmp_path / "p.npy", bits.numpy())
    values: dict[str, Any] = {
        "data": {"kind": "arrays", "path": str(tmp_path / "p.npy")},
        "net": {"kind": "unet", "width": 8, "multipliers": [1, 2], "attention": [4]},
        "train": {"steps": 4, "batch": 8, "lr": 1e-3, "warmup": 0, "ema": 0.0},
        "sampling": {"n": 4, "steps": 1},
    }
    return {name: values.get(name, {}) | sections.get(name, {}) for name in {*values, *sections}}


def poison(monkeypatch: pytest.MonkeyPatch, *bad: int) -> None:
    """Let the model's output be infinite in these of its calls in training, the first being 1."""
    inner, calls = NetDenoiser.forward, 0

    def forward(self: NetDenoiser, x: torch.Tensor, s: Any, cond: Any = None) -> Any:
        nonlocal calls
        calls += self.training
        return inner(self, x * math.inf if self.training and calls in bad else x, s, cond)

    monkeypatch.setattr(NetDenoiser, "forward", forward)


@pytest.mark.parametrize("bad", [(3, 4), (1,)], ids=["middle", "first"])
@pytest.mark.parametrize("choice", ["optimiser=AdamW", "optimiser=RAdam", "optimiser=SGD", "precision=fp16"])
def test_a_step_that_is_not_finite_is_left_out_and_counted(
    choice: str, bad: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, *bad)
    momentum = ["train.optimiser_options.momentum=0.9"] if "SGD" in choice else []
    run = recipe(tmp_path / "r", f"train.{choice}", *momentum, "train.ema=0", "train.warmup=0")
    torch.manual_seed(0)
    loop = Loop(run, run.data.load(), run.fresh(run.data.load()), Team())
    before = {k: v.clone() for k, v in loop.module.state_dict().items()}
    for step in range(6):
        loop.step(step)
        entry = loop.record(step)
        now = {k: v.clone() for k, v in loop.module.state_dict().items()}
        moved = any(not torch.equal(now[k], before[k]) for k in now)
        assert moved == (step + 1 not in bad) and all(v.isfinite().all() for v in now.values())
        assert entry["skipped"] == sum(step + 1 >= call for call in bad)
        assert (entry["loss"] is None) == (step + 1 in bad) == (entry["gradient_norm"] is None)
        before = now
    counts = {int(value["step"]) for value in loop.optimiser.state.values() if "step" in value}
    assert counts <= {6 - len(bad)}  # the moments saw only good ones
    assert all(v.isfinite().all() for one in loop.optimiser.state.values() for v in one.values() if v is not None)


def test_ten_bad_steps_in_a_row_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, *range(2, 11), *range(13, 99))  # nine, then ten
    with pytest.raises(ConfigError, match=r"in 10 steps in a row, up to step 22: lower train\.lr \(now 0\.001\)"):
        fit(recipe(tmp_path / "r", "train.steps=50"), progress=False)
    assert not (tmp_path / "r" / "model.safetensors").exists()


def test_a_rate_that_is_too_high_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lower train\.lr \(now 1e\+30\)"):
        fit(recipe(tmp_path / "r", "train.lr=1e30", "train.warmup=0", "train.steps=20"), progress=False)


def test_parts_of_a_batch_add_up_to_it(tmp_path: Path) -> None:
    """Sixteen samples at once, or in parts of 6, 5 and 5: the same steps up to rounding."""
    whole = load(fit(recipe(tmp_path / "a", "train.lr=0.01"), progress=False)).state_dict()
    parts = load(fit(recipe(tmp_path / "b", "train.lr=0.01", "train.accumulate=3"), progress=False)).state_dict()
    assert all(torch.allclose(whole[k], parts[k], rtol=1e-4, atol=1e-6) for k in whole)
    assert any(not torch.equal(whole[k], parts[k]) for k in whole)
    with pytest.raises(ConfigError, match=r"fewer than 1 processes times train\.accumulate=17"):
        fit(recipe(tmp_path / "c", "train.accumulate=17"), progress=False)


def test_learning_rates_by_hand() -> None:
    def rates(steps: list[int], **values: Any) -> list[float]:
        return [Training(lr=2.0, steps=110, warmup=10, **values).rate(step) for step in steps]

    assert rates([0, 4, 9, 10, 109]) == pytest.approx([0.2, 1.0, 2.0, 2.0, 2.0], rel=1e-12)
    cosine = [1.0, 2.0, 1 + 0.5**0.5, 1.0, 0.0]
    assert rates([4, 10, 35, 60, 110], schedule="cosine") == pytest.approx(cosine, abs=1e-12)
    assert rates([4, 9, 39, 999], schedule="inverse-sqrt") == pytest.approx([1.0, 2.0, 1.0, 0.2], rel=1e-12)
    assert rates([19, 79], schedule="inverse-sqrt", reference=20) == pytest.approx([2.0, 1.0], rel=1e-12)
    assert rates([60, 110], schedule="cosine", lr_end=0.5) == pytest.approx([1.25, 0.5], rel=1e-12)
    with pytest.raises(ConfigError, match=r"train\.reference: given 0 with warmup=0"):
        Training(schedule="inverse-sqrt", warmup=0)


def test_optimisers_by_name_with_their_options(tmp_path: Path) -> None:
    weights = [torch.nn.Parameter(torch.ones(3))]
    made = make_optimiser("adamw", weights, 0.1, 0.2, {"betas": [0.8, 0.9]})
    assert isinstance(made, torch.optim.AdamW)
    assert made.defaults["betas"] == (0.8, 0.9) and made.defaults["weight_decay"] == 0.2 and made.defaults["fused"]
    assert isinstance(make_optimiser("SGD", weights, 0.1, 0.0, {"momentum": 0.9}), torch.optim.SGD)
    for name, options, why in (
        ("adamz", {}, "did you mean 'Adam"),
        ("LBFGS", {}, "allowed: "),
        ("adamw", {"beta": 1}, "has no 'beta': did you mean 'betas'"),
        ("adamw", {"betas": [2.0, 0.9]}, "refuses these options"),
    ):
        with pytest.raises(ConfigError, match=why):
            make_optimiser(name, weights, 0.1, 0.0, options)
    with pytest.raises(ConfigError, match=r"train\.optimiser: given 'adamz'"):
        recipe(tmp_path, "train.optimiser=adamz")
    folder = fit(recipe(tmp_path / "r", "train.optimiser=sgd", "train.optimiser_options.momentum=0.5"), progress=False)
    assert load(folder).shape == (2,)


def test_dropout_is_keyed_by_the_step(tmp_path: Path) -> None:
    """Two runs of one seed agree though what came between differs: other pictures, other states, other draws."""

    def weights(name: str, every: int, dropout: float = 0.5) -> dict[str, torch.Tensor]:
        train = {"steps": 6, "lr": 0.01, "sample_every": every, "checkpoint_every": every}
        torch.manual_seed(every)
        values = pictures(
            tmp_path,
            data={"flip": True},
            net={"dropout": dropout, "multipliers": [1], "attention": []},
            train=train,
            sampling={"solver": "ancestral", "steps": 2},
            run={"dir": str(tmp_path / name)},
        )
        return load(fit(make(values), progress=False)).state_dict()

    first, second, other = weights("a", 0), weights("b", 2), weights("c", 0, dropout=0.0)
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_precision_and_memory_format(tmp_path: Path) -> None:
    """bf16 comes near float32 and is not it; channels_last is float32 up to rounding; weights stay float32."""

    def weights(name: str, **train: Any) -> dict[str, torch.Tensor]:
        values = pictures(tmp_path, train=train, run={"dir": str(tmp_path / name)})
        return load(fit(make(values), progress=False)).state_dict()

    def gap(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
        return max(float((a[k] - b[k]).abs().max()) for k in a)

    plain = weights("plain")
    assert gap(plain, weights("last", channels_last=True)) < 1e-4
    half = weights("bf16", precision="bf16")
    assert 0 < gap(plain, half) < 9e-3  # Adam moves by about lr = 1e-3 a step, whatever the gradient
    assert all(value.dtype == torch.float32 for value in half.values())


@pytest.mark.slow
def test_a_compiled_network_trains_to_the_same_weights(tmp_path: Path) -> None:
    plain = load(fit(recipe(tmp_path / "a", "train.lr=0.01"), progress=False)).state_dict()
    fast = load(fit(recipe(tmp_path / "b", "train.lr=0.01", "train.compile=true"), progress=False)).state_dict()
    assert list(plain) == list(fast) and all(torch.allclose(plain[k], fast[k], rtol=1e-3, atol=1e-5) for k in plain)


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            assert folder == str(tmp_path / "r" / "tensorboard") and purge_step == 1

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def close(self) -> None:
            written.append(("closed", 0.0, 0))

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    fit(recipe(tmp_path / "r", "train.tensorboard=true", "train.log_every=5"), progress=False)
    (entry,) = (json.loads(line) for line in (tmp_path / "r" / "log.jsonl").read_text().splitlines())
    assert ("loss", entry["loss"], 5) in written and written[-1][0] == "closed"
    assert ("loss_by_time/3", entry["loss_by_time"][3], 5) in written
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fokker\[log\]'"):
        fit(recipe(tmp_path / "q", "train.tensorboard=true"), progress=False)
    assert not (tmp_path / "q").exists()


def test_the_histogram_of_the_loss_by_time() -> None:
    tally = Tally(torch.device("cpu"), 2.0)
    t = torch.tensor([0.05, 0.15, 1.99, 2.0, 0.7])
    loss = torch.tensor([1.0, 3.0, 5.0, 7.0, math.nan])
    tally.losses(2 * loss, loss, t)
    tally.norm(torch.tensor(4.0))
    tally.norm(torch.tensor(math.inf))
    entry = tally.record(lambda value: value, 50)
    assert entry["loss"] == 8.0 and entry["gradient_norm"] == 4.0
    assert entry["loss_by_time"] == [2.0, *[None] * 8, 6.0]
