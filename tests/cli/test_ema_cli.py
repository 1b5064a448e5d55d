"""`fokker ema RUN --width 0.1`: the model it writes, the table, and one line for every mistake."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fokker as fk
from fokker.cli import main
from fokker.train import Averages, Power, load, read_header, save, write_snapshot

STEPS, EVERY = 64, 8


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose weights after step k are all k / 64 of their last value, with snapshots; and its model file."""
    folder = tmp_path / "run"
    denoiser = fk.NetDenoiser(fk.nets.MLP(dim=2, width=8, depth=1), fk.Flow(), shape=(2,))
    with torch.no_grad():
        for i, p in enumerate(denoiser.parameters()):
            p.copy_(torch.linspace(1, 2 + i, p.numel()).reshape(p.shape))
    last = {name: p.detach().clone() for name, p in denoiser.named_parameters()}
    averages = Averages(dict(denoiser.named_parameters()), Power((0.05, 0.1)))
    for step in range(STEPS):
        with torch.no_grad():
            for name, p in denoiser.named_parameters():
                p.copy_(last[name] * (step + 1) / STEPS)
        averages.update(step)
        if (step + 1) % EVERY == 0:
            write_snapshot(folder, step + 1, averages)
    save(folder / "model.safetensors", denoiser, {"classes": ["a"], "step": STEPS})
    return folder


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: object) -> tuple[Any, str, str]:
    monkeypatch.setattr(sys, "argv", ["fokker", "ema", *map(str, args)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code, *capsys.readouterr()


def mean_step(width: float) -> float:
    mass = ((torch.arange(STEPS + 1).double() / STEPS) ** (fk.train.ema.gamma_of(width) + 1)).diff()
    return float((mass * torch.arange(1, STEPS + 1)).sum()) / STEPS


def test_the_model_of_another_width_is_written_beside_the_run(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(monkeypatch, capsys, run, "--width", 0.1)
    assert code == 0 and err == ""
    made, original = load(run / "model-width0.100.safetensors"), load(run)
    for (name, p), last in zip(made.named_parameters(), original.parameters(), strict=True):
        assert torch.allclose(p, last * mean_step(0.1), rtol=1e-6), name  # a stored one: exact
    info = read_header(run / "model-width0.100.safetensors")[1]
    assert info == {"classes": ["a"], "step": STEPS, "ema_width": 0.1}
    assert "8 after 8 to 64 steps, widths 0.05, 0.1" in out and "model-width0.100.safetensors" in out
    assert "width 0.1 after 64 steps" in out
    code, out, err = call(monkeypatch, capsys, run, "--width", 0.07, "-o", run / "x.safetensors")
    assert code == 0
    for p, last in zip(load(run / "x.safetensors").parameters(), original.parameters(), strict=True):
        assert torch.allclose(p, last * mean_step(0.07), rtol=1e-3)
    error = float(out.split("relative error")[1].split()[0])
    assert 1e-4 < error < 0.1
    code, out, _ = call(monkeypatch, capsys, run, "--width", 0.05, "--step", 32)
    assert code == 0 and (run / "model-width0.050-step32.safetensors").is_file()
    for p, last in zip(load(run / "model-width0.050-step32.safetensors").parameters(), original.parameters()):  # noqa: B905
        assert (p <= 0.5 * last).all() and (p >= 0.45 * last).all()


def test_mistakes_are_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (run / "model-width0.050.safetensors").write_bytes(b"mine")
    (tmp_path / "bare").mkdir()
    save(tmp_path / "bare" / "model.safetensors", load(run))
    other = tmp_path / "other"
    save(other / "model.safetensors", fk.NetDenoiser(fk.nets.MLP(dim=2, width=9, depth=1), fk.Flow(), shape=(2,)))
    (other / "snapshots").symlink_to(run / "snapshots")
    before = sorted(tmp_path.rglob("*"))
    for args, says in (
        ((run, "--width", 0.3), "width: given 0.3, must lie in (0, 0.28]"),
        ((run, "--width", 0.05), "exists and is left as it is"),
        ((run, "--width", 0.1, "--step", 65), "step: given 65, must be from 1 to 64"),
        ((tmp_path / "bare", "--width", 0.1), "train.ema={kind: power, widths: [0.05, 0.1]}"),
        ((tmp_path / "none", "--width", 0.1), "no such run folder"),
        ((other, "--width", 0.1), "of another network"),
        ((run,), "--width"),
    ):
        code, out, err = call(monkeypatch, capsys, *args)
        assert code == 2 and out == "" and err.startswith("fokker: ") and err.count("\n") == 1 and says in err, err
    assert (run / "model-width0.050.safetensors").read_bytes() == b"mine" and sorted(tmp_path.rglob("*")) == before


def test_a_damaged_snapshot_is_named_and_left_out(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = run / "snapshots" / "00000032.safetensors"
    bad.write_bytes(bad.read_bytes()[:-5])
    code, out, err = call(monkeypatch, capsys, run, "--width", 0.1)
    assert code == 0 and "7 after 8 to 64 steps" in out
    assert err.startswith("fokker: warning: ") and str(bad) in err and err.count("\n") == 1 and "left out" in err
