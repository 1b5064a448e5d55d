"""Several processes train one model: the weights, states and log of one process, up to rounding."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

TINY = ["-q", "net={kind: mlp, width: 8, depth: 1}", "data.n=60", "train.batch=15", "sampling.n=4", "sampling.steps=2"]
MORE = ["train.lr=0.01", "train.warmup=2", "train.log_every=4", "train.sample_every=0", "train.checkpoint_every=6"]
RULE = "objective={weight: uncertainty, times: {kind: adaptive, refresh: 3}, density: replace}"
ARGUMENTS = [*TINY, *MORE, RULE, "train.ema={kind: power, widths: [0.05, 0.1]}"]


def launch(processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    head = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    head = [*head, "--main_process_port", str(port)] if processes > 1 else []
    command = [sys.executable, *head, "-m", "fokker", "train", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)


def near(a: Path, b: Path) -> None:
    for name in ("model.safetensors", "state/00000012.safetensors"):
        one, two = load_file(a / name), load_file(b / name)
        assert list(one) == list(two)
        gaps = {key: float((one[key].double() - two[key].double()).abs().max()) for key in one}
        # Sums in another order: a rounding of 1e-7, grown by Adam's division where gradients are small.
        assert max(gaps.values()) < 2e-5, gaps
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (a, b)]
    for x, y in zip(*logs, strict=True):
        assert x["step"] == y["step"] and x["loss"] == pytest.approx(y["loss"], rel=1e-5)
        assert x["loss_by_time"] == pytest.approx(y["loss_by_time"], rel=1e-4)
        assert x["gradient_norm"] == pytest.approx(y["gradient_norm"], rel=1e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    done = launch(1, "moons", *ARGUMENTS, "train.steps=12", f"run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["false", "true"], ids=["copies", "shards"])
def test_two_processes_reach_the_weights_of_one_and_resume_each_other(shard: str, alone: Path, tmp_path: Path) -> None:
    """Fifteen samples a step, eight and seven of them. Begun by two, gone on with by one, ended by two."""
    folder = tmp_path / "run"
    extra = [f"train.shard={shard}", "train.accumulate=2"]
    done = launch(2, "moons", *ARGUMENTS, *extra, "train.steps=4", f"run.dir={folder}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained: ") == 1
    done = launch(1, str(folder), "--resume", "-q", "train.steps=8")
    assert done.returncode == 0, done.stderr
    done = launch(2, str(folder), "--resume", "-q", "train.steps=12", f"train.shard={shard}")
    assert done.returncode == 0, done.stderr
    near(folder, alone)


@pytest.mark.slow
def test_a_mistake_is_said_and_nobody_waits_for_ever(tmp_path: Path) -> None:
    done = launch(2, "moons", *TINY, "train.batch=1", f"run.dir={tmp_path / 'run'}")
    assert done.returncode != 0
    assert "train.batch: given 1, fewer than 2 processes" in done.stderr and not (tmp_path / "run").exists()


def test_one_process_is_a_team() -> None:
    from fokker.train.parallel import Team, from_shard, shard_of, whole

    team, value = Team(), torch.tensor([1.0, 2.0])
    assert (team.rank, team.size, team.first) == (0, 1, True)
    assert team.sum(value) is value and team.any(value) is value
    assert whole(value) is value and from_shard(value, value) is value and shard_of(value, value) is value
