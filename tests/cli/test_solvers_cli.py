"""`fokker solvers`, every solver through `fokker sample`, Brownian noise, and nfe wherever steps are."""

import json
import re
import shlex
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import fokker as fk
from fokker.cli.grids import parse_component, written
from fokker.cli.solvers import _table
from fokker.errors import ConfigError
from fokker.registry import KINDS, build
from fokker.solvers import DDIM, DPM, Ancestral, DPMpp, EulerMaruyama, PredictorCorrector, Restart
from fokker.solvers.catalogue import CATALOGUE
from fokker.train import load, read, read_header
from fokker.train.drawing import settle
from fokker.train.options import Sampling

from ..solvers.oracle import gaussian
from .calling import Call

TINY = ["train.steps=3", "train.batch=8", "net={kind: mlp, width: 8, depth: 1, classes: 0}", "data.n=50"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "free"
    recipe = read("moons", [*TINY, "sampling.steps=null", "sampling.nfe=6", f"run.dir={folder}"])
    fk.fit(recipe, progress=False)
    with torch.no_grad():
        back = load(folder)
        for p in back.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    fk.save(folder / "model.safetensors", back, read_header(folder)[1])
    return folder


def test_the_table(call: Call) -> None:
    code, out, err = call("solvers")
    assert code == 0 and err == ""
    lines = out.splitlines()
    rows = {line.split()[0]: line.split() for line in lines[1:-4] if line.startswith("   ")}
    assert len(rows) == len(CATALOGUE)
    assert rows["dpm:order=3"][1:5] == ["3", "3", "noise", "no"]
    assert rows["dpm++:variant=S,published=true"][1:5] == ["2", "2", "x0", "no"]
    assert rows["unipc"][1:5] == ["4", "1", "x0", "no"]
    assert rows["ancestral"][1:5] == ["1", "1", "x0", "yes"]
    assert rows["restart"][1:4] == ["2", "2", "yes"]
    assert rows["lms"][1:3] == ["2", "1"] and rows["dpmv3:statistics=FILE"][1:3] == ["3", "1"]
    for family in {entry.family for entry in CATALOGUE}:
        assert f" {family}" in [line.rstrip() for line in lines]


def test_a_narrow_terminal_keeps_the_advice() -> None:
    for width in (80, 109):
        held = StringIO()
        Console(width=width, file=held).print(_table(CATALOGUE, width))
        lines = held.getvalue().splitlines()
        assert lines[0].split() == ["solver", "order", "NFE", "when", "to", "use", "it"]
        assert max(map(len, lines)) <= width and len(lines) < 2.5 * len(CATALOGUE)
        assert "".join(held.getvalue().split()).count("dpm++:variant=S,published=true") == 1
    held = StringIO()
    Console(width=110, file=held).print(_table(CATALOGUE, 110))
    assert held.getvalue().split()[:5] == ["solver", "order", "NFE", "side", "noise"]


def test_one_solver(call: Call) -> None:
    code, out, _ = call("solvers", "dpm++")
    assert code == 0
    for part in ("DPM-Solver++: data side", "S, M", "a whole number >= 1 and <= 3", "ramp, single", "true, false"):
        assert part in out
    assert "a number > 0 and <= 1, or null" in out
    assert "fokker sample RUN --solver dpm++:variant=S,published=true --nfe 20" in out.splitlines()
    out = call("solvers", "restart").out
    assert "heun:space=rho" in out and "a solver: its kind, or {kind: ..., field: value}" in out
    assert "a list of [a number, a number, a whole number, a whole number]" in out
    for kind, row in (("dpm", ["order", "2, or 3 with nfe"]), ("dpmv3", ["statistics", "must be given"])):
        lines = [re.split(r" {2,}", line.strip()) for line in call("solvers", kind).out.splitlines()]
        found = [line for line in lines if line[0] == row[0] and len(line) == 3]
        assert [line[:2] for line in found] == [row]
        assert found[0][2] in ("a whole number >= 1 and <= 3", "a file (.safetensors)")
    code, out, err = call("solvers", "dpm++:order=9")
    assert code == 2 and out == "" and "give the kind without fields: dpm++\n" in err
    code, out, err = call("solvers", "dpmpp")
    assert code == 2 and out == "" and "unknown solver 'dpmpp'" in err and err.count("\n") == 1


def test_what_a_solver_is_written_as_is_read_back() -> None:
    for solver in (
        DPM(order=3, r1=0.25),
        DPMpp(published=True),
        Restart(solver=DPMpp(order=3), intervals=((0.06, 0.3, 2, 2), (0.5, 1.0, 1, 2))),
        PredictorCorrector(predictor=DDIM(eta=1.0), corrections=2),
    ):
        assert build("solver", parse_component(written(solver), "--solver")) == solver
    assert written(DPMpp(order=3), only=("order",)) == "dpm++:order=3"
    for solver, said in (
        (DDIM(), "ddim"),
        (DPMpp(published=True), "dpm++:published=true"),
        (DPM(), "dpm"),
        (DPM(order=3), "dpm:order=3"),
        (DPM(nfe=9), "dpm:nfe=9"),
        (Restart(), "restart"),
        (PredictorCorrector(predictor=DDIM(eta=1.0)), 'predictor-corrector:predictor={"kind": "ddim", "eta": 1.0}'),
    ):
        assert written(solver) == said and build("solver", parse_component(said, "x")) == solver
    with pytest.raises(ConfigError, match="--solver: given 'ddim:eta=1,eta=1', which has eta twice; give it once"):
        parse_component("ddim:eta=1,eta=1", "--solver")
    with pytest.raises(ConfigError, match="which has kind twice"):
        parse_component("ddim:kind=heun", "--solver")
    nested = "predictor-corrector:predictor={kind: ddim, eta: 1.0}, corrections=2"
    assert build("solver", parse_component(nested, "--solver")) == PredictorCorrector(DDIM(eta=1.0), corrections=2)
    assert build("solver", parse_component("restart:solver=ddim,intervals=[[0.1, 0.3, 1, 2]]", "x")) == Restart(
        DDIM(), ((0.1, 0.3, 1, 2),)
    )


def test_every_example_draws_what_the_library_draws(call: Call, run: Path) -> None:
    commands = [
        line
        for kind in KINDS["solver"]
        for line in call("solvers", kind).out.splitlines()
        if line.startswith("fokker sample RUN")
    ]
    assert len(commands) == len(CATALOGUE)
    commands = [command for command in commands if "FILE" not in command]
    for i, command in enumerate(commands):
        told = [str(run) if word == "RUN" else word for word in shlex.split(command)[1:]]
        if "annealed-langevin" in told:
            told[told.index("20")] = "2"
        result = call(*told, "-n", 3, "--grid", "lam", "-o", f"{i}.npy")
        assert result.code == 0, (command, result.err)
        solver = build("solver", parse_component(told[told.index("--solver") + 1], "x"))
        much = {told[-2].removeprefix("--"): int(told[-1])} if told[-1].isdecimal() else {}
        want = fk.sample(load(run), n=3, solver=solver, grid="lam", batch_size=64, pad=True, **much)
        assert np.array_equal(np.load(f"{i}.npy"), want.numpy()), command


def test_brownian(call: Call, run: Path) -> None:
    keys = {"n": 3, "grid": "lam", "steps": 5, "batch_size": 64, "pad": True}
    args = ("sample", run, "-n", 3, "--grid", "lam", "--steps", 5, "--solver", "ancestral", "--brownian")
    assert call(*args, "-o", "x.npy").code == 0
    want = fk.sample(load(run), solver=Ancestral(), brownian=True, **keys)
    assert np.array_equal(np.load("x.npy"), want.numpy())
    assert not torch.equal(want, fk.sample(load(run), solver=Ancestral(), **keys))
    assert call(*args, "-o", "many/").code == 0
    assert json.loads(Path("many/manifest.json").read_text())["request"]["brownian"] is True
    assert torch.equal(fk.shards.read_shards("many")[0], want) if hasattr(fk, "shards") else True
    # without it, another request: refused
    code, _, err = call(*args[:-1], "-o", "many/")
    assert code == 2 and "brownian" in err
    code, out, err = call("sample", run, "--solver", "ddim", "--brownian")
    assert code == 2 and out == "" and "brownian: given, but DDIM(eta=0.0) draws no noise" in err
    assert not Path("samples.png").exists()
    with pytest.raises(ConfigError, match="draws no noise"):
        settle(load(run), brownian=True)  # sample's own default is deterministic


def test_nfe_in_a_recipe(call: Call, run: Path) -> None:
    assert (Sampling().steps, Sampling().nfe) == (20, None)
    assert (Sampling(nfe=9).steps, Sampling(nfe=9).nfe) == (None, 9)
    with pytest.raises(ConfigError, match=r"sampling: give steps or nfe, not both \(given steps=3, nfe=4"):
        Sampling(steps=3, nfe=4)
    assert read_header(run)[1]["recipe"]["sampling"]["nfe"] == 6
    assert call("sample", run, "-n", 2, "-o", "x.npy").code == 0  # Heun, uniform t: 6 evaluations are 3 steps and x0
    keys = {"n": 2, "solver": "heun", "grid": "t", "batch_size": 64, "pad": True}
    assert np.array_equal(np.load("x.npy"), fk.sample(load(run), nfe=6, **keys).numpy())
    assert call("sample", run, "-n", 2, "--steps", 2, "-o", "y.npy").code == 0
    assert np.array_equal(np.load("y.npy"), fk.sample(load(run), steps=2, **keys).numpy())
    way = settle(load(run), Sampling(nfe=6, grid={"kind": "times", "values": [1.0, 0.0]}))
    assert way.options["nfe"] is None and way.options["steps"] is None
    for solver in ({"kind": "dpm", "nfe": 7}, "adaptive"):  # they have steps of their own
        way = settle(load(run), Sampling(), solver=solver)
        assert way.options["nfe"] is None and way.options["steps"] is None
        assert way(2)[0].isfinite().all()


@pytest.mark.parametrize("nfe", [3, 8])
def test_nfe_everywhere_in_the_library(nfe: int) -> None:
    law = gaussian(fk.VP())
    x = fk.sample(law, n=2)
    for solver, spent in (("heun", 2 * ((nfe - 1) // 2) + 1), ("ddim", nfe)):
        for door in (fk.sample, fk.trajectory):
            law.calls.clear()
            door(law, n=2, solver=solver, nfe=nfe)
            assert len(law.calls) == spent
    for solver, spent in (("heun", 2 * (nfe // 2)), ("ddim", nfe)):
        law.calls.clear()
        fk.encode(law, x, solver=solver, nfe=nfe)
        assert len(law.calls) == spent
    with pytest.raises(ConfigError, match="steps or nfe, not both"):
        fk.encode(law, x, steps=3, nfe=nfe)
    assert EulerMaruyama(eta=0.0).stochastic is False
