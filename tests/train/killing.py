"""Run by test_resume: trains in child processes that are killed with SIGKILL, and resumes until the run is done.

    python killing.py random FOLDER KILLS     at random instants
    python killing.py fsync FOLDER            at every fsync of a save in turn, before and after it

Children are forked, so that torch is imported once. Prints JSON: how many were killed, and the steps they had reached.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fokker.train import fit, read, resume

RECIPE = [
    "train.steps=500",
    "train.batch=16",
    "train.checkpoint_every=5",
    "train.snapshot_every=100",
    "train.sample_every=200",
    "train.log_every=7",
    "train.ema={kind: power, widths: [0.05, 0.1]}",
    "net={kind: mlp, width: 16, depth: 1}",
    "objective={weight: uncertainty, times: {kind: adaptive, refresh: 11}, stratified: true}",
    "data.n=100",
    "sampling.n=4",
    "sampling.steps=2",
]


def start(folder: Path) -> None:
    """Begin, or go on where a run is."""
    if (folder / "recipe.yaml").exists():
        resume(folder, progress=False)
    else:
        fit(read("moons", [*RECIPE, f"run.dir={folder}"]), progress=False)


def child(work: Callable[[], None]) -> int:
    """A forked process that does `work`."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return pid


def ended(pid: int) -> bool:
    """Whether a child finished its work; False if it was killed. Anything else is a failure of the test."""
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        return False
    assert os.WEXITSTATUS(status) == 0, status
    return True


def reached(folder: Path) -> int:
    """The step of the newest state."""
    return max((int(file.stem) for file in (folder / "state").glob("*.safetensors")), default=0)


def at_random(folder: Path, kills: int) -> list[int]:
    draw, steps = random.Random(7), []
    while len(steps) < kills:
        pid = child(lambda: start(folder))
        # Up to three saves further, however fast the machine is, then anywhere within or between two saves.
        until, patience = reached(folder) + 5 * draw.randrange(4), time.monotonic() + 60
        while reached(folder) < until and time.monotonic() < patience:
            time.sleep(0.002)
        time.sleep(draw.uniform(0.0, 0.1))
        os.kill(pid, signal.SIGKILL)
        assert not ended(pid), "the run was done before it could be killed as often as asked for"
        steps.append(reached(folder))
    assert ended(child(lambda: start(folder)))
    return steps


def at_fsyncs(folder: Path) -> list[int]:
    real, steps = os.fsync, []

    def run(die_at: int, after: bool) -> None:
        calls = 0

        def fsync(file: int) -> None:
            nonlocal calls
            calls += 1
            if calls == die_at and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            real(file)
            if calls == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

        os.fsync = fsync
        start(folder)

    for die_at in range(1, 9):
        for after in (False, True):
            pid = child(lambda at=die_at, after=after: run(at, after))
            assert not ended(pid)
            steps.append(reached(folder))
    assert ended(child(lambda: start(folder)))
    return steps


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.optim.AdamW([torch.zeros(1)])  # imports much, once for all children
    where = Path(sys.argv[2])
    found = at_random(where, int(sys.argv[3])) if sys.argv[1] == "random" else at_fsyncs(where)
    print(json.dumps(found))
