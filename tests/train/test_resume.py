"""Runs that were killed, stopped or damaged go on to the bits of a run that was not."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fokker.errors import ConfigError, FileError
from fokker.files import write_tensors
from fokker.train import fit, load, read, read_header, resume
from fokker.train.journal import Journal
from fokker.train.state import State, read_state, write_state

SCRIPT = Path(__file__).with_name("killing.py")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
TINY = ["net={kind: mlp, width: 8, depth: 1}", "data.n=60", "train.batch=16", "sampling.n=4", "sampling.steps=2"]


def small(folder: Path, *overrides: str) -> Any:
    return read("moons", [*TINY, "train.steps=12", "train.checkpoint_every=4", f"run.dir={folder}", *overrides])


def same(a: Path, b: Path) -> None:
    """The models, states and snapshots of two runs have the same bits."""
    files = sorted(p.relative_to(a) for p in a.rglob("*.safetensors"))
    assert files == sorted(p.relative_to(b) for p in b.rglob("*.safetensors"))
    assert len(files) >= 2
    for name in files:
        one, two = load_file(a / name), load_file(b / name)
        assert list(one) == list(two)
        assert all(torch.equal(one[key], two[key]) for key in one), name


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of killing.py, left in peace, with the same bits at one thread."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    code = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import killing, pathlib, torch;"
    code += f"torch.set_num_threads(1); killing.start(pathlib.Path({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, env=ENVIRONMENT, timeout=300)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("mode", [["random", "20"], ["fsync"]], ids=["random", "fsync"])
def test_killed_at_any_instant_it_ends_in_the_same_bits(mode: list[str], unbroken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, str(SCRIPT), mode[0], str(folder), *mode[1:]]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout)
    assert len(steps) == (20 if mode[0] == "random" else 16) and steps == sorted(steps)
    assert steps[-1] < 500 and len(set(steps)) > 5  # killed at many places, and before the end
    same(folder, unbroken)
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (folder, unbroken)]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]]
    assert [line["lr"] for line in logs[0]] == [line["lr"] for line in logs[1]]
    for step in (200, 400, 500):
        name = f"samples/{step:06d}.png"
        assert (folder / name).read_bytes() == (unbroken / name).read_bytes()
    assert not [p for p in folder.rglob(".*") if p.name != ".lock"]  # no temporary file is left


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.slow
def test_signals_save_and_say_how_to_go_on(tmp_path: Path) -> None:
    whole = fit(small(tmp_path / "whole", "train.steps=400", "train.checkpoint_every=50"), progress=False)
    folder = tmp_path / "run"
    arguments = ["moons", *TINY, "-q", "train.steps=400", "train.checkpoint_every=50", f"run.dir={folder}"]
    for code, number in ((0, signal.SIGTERM), (130, signal.SIGINT)):
        command = [sys.executable, "-m", "fokker", "train", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
        before = {file.stem for file in (folder / "state").glob("*.safetensors")}
        newest = max((int(stem) for stem in before), default=0)
        wait_for(folder / "state" / f"{(newest // 50 + 1) * 50:08d}.safetensors", process)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == code, err
        step = max(int(file.stem) for file in (folder / "state").glob("*.safetensors"))
        assert newest < step < 400 and out == ""
        assert f"stopped after step {step}, all is saved; go on: fokker train {folder} --resume" in err
        assert "Traceback" not in err and read_header(folder)[1]["step"] == step
        arguments = [str(folder), "--resume", "-q"]
    resume(folder, progress=False)
    for name in ("model.safetensors", "state/00000400.safetensors"):
        one, two = load_file(folder / name), load_file(whole / name)
        assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("damage", ["truncated", "bit", "foreign", "gone", "other run"])
def test_a_bad_state_is_named_and_the_one_before_is_used(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = fit(small(tmp_path / "whole"), progress=False)
    folder = fit(small(tmp_path / "run", "train.steps=8"), progress=False)
    newest = folder / "state" / "00000008.safetensors"
    content = bytearray(newest.read_bytes())
    if damage == "truncated":
        newest.write_bytes(content[: len(content) // 2])
    elif damage == "bit":
        content[-20] ^= 4
        newest.write_bytes(content)
    elif damage == "foreign":
        newest.write_bytes(b"PK\x03\x04" + bytes(300))
    elif damage == "gone":
        newest.unlink()
    else:
        other = fit(small(tmp_path / "other", "train.steps=8", "train.seed=5"), progress=False)
        shutil.copy(other / "state" / newest.name, newest)
        (folder / "state" / "manifest.json").unlink()
    resume(folder, ["train.steps=12"], progress=False)
    err = capsys.readouterr().err
    assert f"{newest}: " in err and "going on from the state of step 4" in err
    same(folder, whole)


def test_without_a_good_state_nothing_is_trained_over(tmp_path: Path) -> None:
    folder = fit(small(tmp_path / "run"), progress=False)
    model = (folder / "model.safetensors").read_bytes()
    for file in (folder / "state").glob("*.safetensors"):
        file.write_bytes(b"nonsense")
    with pytest.raises(FileError, match="no good state is left") as caught:
        resume(folder, progress=False)
    assert all(f"{step:08d}.safetensors" in str(caught.value) for step in (8, 12)) and "\n" not in str(caught.value)
    for file in (folder / "state").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(FileError, match="missing"):  # the manifest remembers them
        resume(folder, progress=False)
    assert (folder / "model.safetensors").read_bytes() == model


@pytest.mark.parametrize("content", [b"", b"{", b'{"states": 3}', b'{"states": [{"file": "x"}]}'])
def test_a_damaged_manifest_costs_nothing(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = fit(small(tmp_path / "whole"), progress=False)
    folder = fit(small(tmp_path / "run", "train.steps=8"), progress=False)
    (folder / "state" / "manifest.json").write_bytes(content)
    resume(folder, ["train.steps=12"], progress=False)
    assert "manifest.json: damaged; going on from the state of step 8" in capsys.readouterr().err
    assert torch.equal(*(next(iter(load(run).parameters())) for run in (folder, whole)))


def test_states_are_whole_checked_and_two(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    assert read_state(folder, "me") == (None, [])
    for step in (3, 6, 9):
        write_state(folder, State(step, {"w": torch.full((3,), float(step))}, {"skipped": step}), "me")
    assert sorted(p.name for p in folder.iterdir()) == ["00000006.safetensors", "00000009.safetensors", "manifest.json"]
    state, wrong = read_state(folder, "me")
    assert state is not None and not wrong
    assert (state.step, state.facts) == (9, {"skipped": 9}) and torch.equal(state.tensors["w"], torch.full((3,), 9.0))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [entry["step"] for entry in manifest["states"]] == [9, 6]
    # A whole file of this run under the name of another step's is not what the manifest names.
    shutil.copy(folder / "00000006.safetensors", folder / "00000009.safetensors")
    state, wrong = read_state(folder, "me")
    assert state is not None and state.step == 6 and "not the file that the manifest names" in wrong[0]
    # Going on from 6, step 7 must not push out the last good one in favour of the bad one.
    write_state(folder, State(7, {"w": torch.zeros(3)}, {}), "me")
    assert [entry["step"] for entry in json.loads((folder / "manifest.json").read_text())["states"]] == [7, 6]
    state, wrong = read_state(folder, "me")  # the file that lies about its step is not listed any more
    assert state is not None and state.step == 7 and "holds the state of step 6" in wrong[0]
    # Written, but the process died before the manifest knew.
    metadata = {"format": "fokker-state-1", "run": "me", "step": "12", "facts": "{}"}
    write_tensors(folder / "00000012.safetensors", {"w": torch.ones(3)}, metadata)
    newest, _ = read_state(folder, "me")
    assert newest is not None and newest.step == 12
    with pytest.raises(FileError, match="the state of another run"):
        read_state(folder, "you")


@pytest.mark.slow
def test_a_full_disk_is_said_and_the_last_state_is_intact(tmp_path: Path) -> None:
    whole = fit(small(tmp_path / "whole"), progress=False)
    folder = fit(small(tmp_path / "run", "train.steps=8"), progress=False)
    before = {p.name: p.read_bytes() for p in (folder / "state").iterdir()}

    def little() -> None:  # a disk on which no file can grow beyond half a state
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        room = len(before["00000008.safetensors"]) // 2
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    command = [sys.executable, "-m", "fokker", "train", str(folder), "--resume", "-q", "train.steps=12"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=ENVIRONMENT | {"PYTHONDONTWRITEBYTECODE": "1"}, preexec_fn=little
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "cannot be written" in done.stderr and "nothing was changed" in done.stderr
    assert {p.name: p.read_bytes() for p in (folder / "state").iterdir()} == before
    resume(folder, ["train.steps=12"], progress=False)
    same(folder, whole)


def test_more_steps_of_a_finished_run_and_what_may_not_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = fit(small(tmp_path / "whole", "train.lr=0.01"), progress=False)
    folder = fit(small(tmp_path / "run", "train.steps=4", "train.lr=0.01"), progress=False)
    resume(folder, ["train.steps=12"], progress=False)
    same(folder, whole)
    assert read(folder / "recipe.yaml").train.steps == 12
    assert capsys.readouterr().err == ""
    resume(folder, progress=False)
    assert "finished already, at step 12" in capsys.readouterr().err
    same(folder, whole)
    for override, name in (
        ("process=vp", "process"),
        ("train.seed=3", "train.seed"),
        ("train.batch=8", "train.batch"),
        ("net.width=9", "net.width"),
        ("objective.stratified=false", "objective.stratified"),
        ("train.ema=0.5", "train.ema.decay"),
        ("denoiser.predict=v", "denoiser.predict"),
        ("train.optimiser_options.amsgrad=true", "train.optimiser_options.*"),
    ):
        with pytest.raises(ConfigError, match=f"^{name}: given .* but this run has .*run.dir"):
            resume(folder, [override], progress=False)
    with pytest.raises(FileError, match="the data has changed since the state of step 12"):
        resume(folder, ["data.n=61"], progress=False)
    with pytest.raises(ConfigError, match="resumed where it is"):
        resume(folder, ["run.dir=elsewhere"], progress=False)
    # A recipe of the run that was changed by hand, and one that an older version wrote.
    text = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(text.replace("process:\n  kind: flow", "process:\n  kind: vp"))
    with pytest.raises(ConfigError, match="^process: given"):
        resume(folder, progress=False)
    (folder / "recipe.yaml").write_text(text.replace("stratified: true", "").replace("  accumulate: 1", ""))
    with pytest.raises(ConfigError, match="^objective.stratified: given"):  # its default is false
        resume(folder, progress=False)


def test_there_must_be_a_run_and_only_one_process(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"no recipe\.yaml in this folder"):
        resume(tmp_path / "nothing", progress=False)
    folder = fit(small(tmp_path / "run"), progress=False)
    with pytest.raises(FileError, match=f"or go on with it: fokker train {folder} --resume"):
        fit(small(folder), progress=False)
    holder = f"import fcntl, time; f = open({str(folder / '.lock')!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
    process = subprocess.Popen(
        [sys.executable, "-c", holder + "print('held', flush=True); time.sleep(60)"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(FileError, match="another process is training here"):
        resume(folder, progress=False)
    process.kill()
    process.wait()
    resume(folder, progress=False)


def test_data_that_changed_is_refused(tmp_path: Path) -> None:
    import numpy as np

    file = tmp_path / "x.npy"
    np.save(file, np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32))
    folder = fit(small(tmp_path / "run", f"data={{kind: arrays, path: {file}}}", "net.classes=0"), progress=False)
    np.save(file, np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32))
    with pytest.raises(FileError, match=r"the data has changed .* then \[45, 2, .* now \[3[67], 2, "):
        resume(folder, ["train.steps=20"], progress=False)


def test_what_a_process_left_that_died_at_once_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    (tmp_path / "run" / ".recipe.yaml.17.tmp").write_text("half")
    (tmp_path / "run" / ".tmppUfAKP").write_text("half, as safetensors leaves it")
    assert load(fit(small(tmp_path / "run"), progress=False)).shape == (2,)
    assert not [file.name for file in (tmp_path / "run").glob(".*") if file.name != ".lock"]


def test_the_log_forgets_what_was_not_saved(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 2}\n{"step": 4}\n{"step": 6}\n{"ste')
    Journal(tmp_path, "x", 4, 9, writes=True, show=False, tensorboard=False)
    assert log.read_text() == '{"step": 2}\n{"step": 4}\n'
