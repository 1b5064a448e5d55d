"""`fokker tune`: the times it writes are those the library finds, and `--grid` reads them back."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import fokker as fk
from fokker.guidance import CFG
from fokker.solvers import DDIM, DPMv3, Heun, Karras, Statistics, Times
from fokker.statistics import compute_statistics
from fokker.train import load, read_header
from fokker.tuning import Trial, named_grids, optimise_grid

from .calling import Call

TINY = ["train.steps=3", "train.batch=8", "net={kind: mlp, width: 8, depth: 1}", "data.n=50", "sampling.n=4"]
TINY = [*TINY, "sampling.steps=7", "objective.cond_dropout=0.2", "sampling.solver=heun"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a model with two classes, whose outputs differ."""
    folder = tmp_path_factory.mktemp("runs") / "told"
    fk.fit(fk.train.read("moons", [*TINY, "net.classes=2", f"run.dir={folder}"]), progress=False)
    with torch.no_grad():
        back = load(folder)
        for p in back.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    fk.save(folder / "model.safetensors", back, read_header(folder)[1])
    return folder


QUICK = ("-n", 6, "--trials", 12, "--fine", 8)


def test_tune_then_sample(call: Call, run: Path) -> None:
    result = call("tune", run, "--nfe", 5, "--solver", "ddim:eta=0.0", "--guidance", 2.0, "--seed", 3, *QUICK)
    assert result.code == 0, result.err
    labels = torch.arange(12) % 2
    guided, keys = CFG(load(run), 2.0), {"seed": 3, "fine": 8, "batch_size": 64}
    want = optimise_grid(guided, DDIM(), nfe=5, n=6, trials=12, cond=labels[:6], **keys)
    stored = yaml.safe_load(Path("grid.yaml").read_text())
    assert stored == {"kind": "times", "values": want.values.tolist()}
    # the table: errors on the noises after those tuned on, best first, then the one found
    fresh = Trial(guided, DDIM(), indices=range(6, 12), cond=labels[6:], **keys)
    errors = {name: fresh(times) for name, times in named_grids(fresh, nfe=5).items()} | {
        "found": fresh(want.values.value)
    }
    rows = [line.split() for line in result.out.splitlines() if line.split()[0] in errors]
    assert dict(rows) == {name: f"{value:.4g}" for name, value in errors.items()}
    assert rows[-1][0] == "found"
    named = [errors[name] for name, _ in rows[:-1]]  # t and flow are one grid here, but for rounding
    assert named == pytest.approx(sorted(value for name, value in errors.items() if name != "found"), rel=1e-5)
    least = min(value for name, value in errors.items() if name != "found")
    if errors["found"] < least:
        assert f"{least / errors['found']:.2f} times less error" in result.out
    else:
        assert "no better than" in result.out
    # the command it names draws what the library draws with these times
    told = shlex.split(result.out.split("use it: ")[1])
    assert told == [
        "fokker",
        "sample",
        str(run),
        "--solver",
        "ddim",
        "--grid",
        "grid.yaml",
        "--guidance",
        "2.0",
    ]
    assert call(*told[1:], "-n", 4, "-o", "x.npy").code == 0
    x = fk.sample(guided, n=4, solver=DDIM(), grid=want, cond=labels[:4], batch_size=4, pad=True)
    assert np.array_equal(np.load("x.npy"), x.numpy())
    # into a folder, and measured against the data
    assert call(*told[1:], "-n", 4, "-o", "many/").code == 0
    assert json.loads(Path("many/manifest.json").read_text())["request"]["grid"] == stored


def test_defaults_are_the_recipes_and_json_will_do(call: Call, run: Path) -> None:
    result = call("tune", run, "--steps", 2, "--label", 1, "-o", "out/g.json", *QUICK)
    assert result.code == 0, result.err
    ones = torch.ones(6, dtype=torch.int64)
    want = optimise_grid(load(run), Heun(), 2, n=6, trials=12, cond=ones, fine=8)
    assert json.loads(Path("out/g.json").read_text())["values"] == want.values.tolist() and len(want.values) == 3
    assert "--solver heun --grid out/g.json --label 1" in result.out
    assert "3 evaluations of Heun" in result.out and "on 6 noises not tuned on" in result.out


def test_sample_reads_files_of_times_and_fields(call: Call, run: Path) -> None:
    values = torch.linspace(1, 0, 101, dtype=torch.float64).tolist()  # more than a header would hold inline
    labels, keys = torch.arange(3) % 2, {"n": 3, "solver": DDIM(), "batch_size": 64, "pad": True}
    for name, text in (("a.yaml", yaml.safe_dump(values)), ("b.json", json.dumps({"kind": "times", "values": values}))):
        Path(name).write_text(text)
        assert call("sample", run, "--grid", name, "--solver", "ddim", "-n", 3, "-o", f"{name}.npy").code == 0
        want = fk.sample(load(run), grid=Times(values), cond=labels, **keys)
        assert np.array_equal(np.load(f"{name}.npy"), want.numpy())
    assert call("sample", run, "--grid", "karras:rho=3", "--solver", "ddim", "-n", 3, "-o", "k.npy").code == 0
    want = fk.sample(load(run), grid=Karras(rho=3.0), steps=7, cond=labels, **keys)
    assert np.array_equal(np.load("k.npy"), want.numpy())


def test_mistakes_are_one_line(call: Call, run: Path) -> None:
    Path("mine.yaml").write_text("mine")
    Path("no.yaml").write_text("a: [")
    Path("up.json").write_text('["a", "b"]')
    Path("odd.yaml").write_text("{kind: times, value: [1.0, 0.0]}")
    Path("rising.yaml").write_text("[0.5, 0.9]")
    before = sorted(Path().rglob("*"))
    for args, says in (
        (("tune", run, "--nfe", 5, "--steps", 5), "give one of them"),
        (("tune", run, "--nfe", 0), "nfe: given 0, must be at least 1"),
        (("tune", run, "-n", 0), "--n: given 0"),
        (("tune", run, "--trials", 0), "--trials: given 0"),
        (("tune", run, "--nfe", 2), "--nfe: given 2, which is one step of Heun(space='t') with nothing to tune"),
        (("tune", run, "--steps", 1), "--steps: given 1, which is one step"),
        (("tune", run, "--nfe", 2 * 10**9), "nfe: given 2000000000, must be at most 1000000"),
        (("tune", run, "--steps", 2 * 10**9), "steps: given 2000000000, must be at most 1000000"),
        (("sample", run, "--nfe", 2 * 10**9), "nfe: given 2000000000, must be at most 1000000"),
        (("sample", run, "--steps", 10**6 + 1), "steps: given 1000001, must be at most 1000000"),
        (("tune", run, "--per", "event"), "--per: given 'event', but it is how --statistics measures"),
        (("tune", run, "-o", "/proc/x/g.yaml"), "/proc/x/g.yaml: cannot be written"),
        (("tune", run, "-o", "no.yaml/g.yaml"), "no.yaml/g.yaml: cannot be written"),
        (("tune", run, "--statistics", "/proc/x/s.safetensors"), "/proc/x/s.safetensors: cannot be written"),
        (("tune", run, "--solver", "ancestral"), "which draws noise"),
        (("tune", run, "--label", 7), "--label: given '7'"),
        (("tune", run, "-o", "mine.yaml"), "mine.yaml exists and is left as it is"),
        (("tune", run, "-o", "grid.txt"), "must end in .yaml, .yml, .json"),
        (("tune", "none"), "none"),
        (("sample", run, "--grid", "lamb"), "lam"),
        (("sample", run, "--grid", "karras:rho"), "--grid: given 'karras:rho'"),
        (("sample", run, "--grid", "none.yaml"), "--grid: none.yaml cannot be read (No such file or directory)"),
        (("sample", run, "--grid", "no.yaml"), "not YAML or JSON"),
        (("sample", run, "--grid", "mine.yaml"), "must hold a list of times"),
        (("sample", run, "--grid", "up.json: Times.values"), "up.json: Times.values"),
        (("sample", run, "--grid", "odd.yaml"), "Times has no field 'value': did you mean 'values'?"),
        (("sample", run, "--grid", "rising.yaml"), "these times increase"),
    ):
        code, out, err = call(*args)
        assert code == 2 and out == "" and err.startswith("fokker: ") and err.count("\n") == 1 and says in err, (
            args,
            err,
        )
    assert Path("mine.yaml").read_text() == "mine" and sorted(Path().rglob("*")) == before


def test_statistics_then_sample(call: Call, run: Path) -> None:
    args = ("tune", run, "--statistics", "s.safetensors", "-n", 3, "--guidance", 2.0, "--seed", 3, "--batch-size", 3)
    result = call(*args)
    assert result.code == 0, result.err
    labels = torch.arange(4) % 2
    want = compute_statistics(CFG(load(run), 2.0), cond=labels[:3], n=3, seed=3, batch_size=3)
    found = Statistics.load("s.safetensors")
    assert found == want and found.shape == ()
    assert (
        "statistics of 3 samples at 120 values of lam: s.safetensors" in result.out and not Path("grid.yaml").exists()
    )
    told = shlex.split(result.out.split("use it: ")[1])
    assert told[3:] == ["--solver", "dpmv3:statistics=s.safetensors", "--guidance", "2.0"]
    assert call(*told[1:], "-n", 4, "-o", "x.npy").code == 0
    solver = DPMv3(found, order=2, corrector=True)
    x = fk.sample(CFG(load(run), 2.0), n=4, solver=solver, steps=7, grid="t", cond=labels, batch_size=64, pad=True)
    assert np.array_equal(np.load("x.npy"), x.numpy())
    Path("bad.safetensors").write_bytes(Path("s.safetensors").read_bytes()[:-9])
    for wrong, says in (
        (args, "s.safetensors exists and is left as it is"),
        ((*args[:3], "t.npy"), "must end in .safetensors"),
        ((*args[:3], "t.safetensors", "--nfe", 5), "--nfe: given '5', but --statistics measures"),
        ((*args[:3], "t.safetensors", "-o", "g.yaml"), "--output: given 'g.yaml', but --statistics measures"),
        ((*args[:3], "t.safetensors", "--trials", 300), "--trials: given '300', but"),
        ((*args[:3], "t.safetensors", "--fine", 64), "--fine: given '64', but"),
        ((*args[:3], "t.safetensors", "--per", "pixel"), "per: given 'pixel'"),
        (("sample", run, "--solver", "dpmv3"), "DPMv3.statistics must be given: a file that `fokker tune RUN"),
        (("sample", run, "--solver", "dpmv3:statistics=3"), "statistics: given 3, must be Statistics or the path"),
        (("sample", run, "--solver", "dpmv3:statistics=."), ".: is a folder, must be a safetensors file"),
        (("sample", run, "--solver", "dpmv3:statistics=none.safetensors"), "none.safetensors"),
        (("sample", run, "--solver", "dpmv3:statistics=bad.safetensors"), "bad.safetensors: damaged"),
    ):
        code, out, err = call(*wrong)
        assert code == 2 and out == "" and err.startswith("fokker: ") and err.count("\n") == 1 and says in err, err
        assert "InMemory" not in err and err.count("DPMv3") <= 1
