"""Training: a recipe in, a run folder out; and how a run that was stopped or killed goes on exactly.

RUN/recipe.yaml          every default written out
RUN/state/               all that the next step needs (see `state`)
RUN/model.safetensors    the averaged weights
RUN/snapshots/           averages kept for `fokker ema`
RUN/log.jsonl, RUN/samples/
"""

from __future__ import annotations

import fcntl
import json
import operator
import re
import signal
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml

from ..classic import Model
from ..data import Samples
from ..denoiser import NetDenoiser
from ..errors import ConfigError, FileError
from ..files import write_text
from ..registry import spec
from ..solvers import Times
from .checkpoint import MODEL, save
from .drawing import class_count, draw, is_conditional
from .ema import POWER, Power
from .journal import Journal, tensorboard_writer
from .loop import Loop
from .parallel import Team
from .recipe import Recipe, read
from .state import read_state, write_state

__all__ = ["fit", "resume"]

RECIPE = "recipe.yaml"
# What a run is, beside its data. Whatever else a recipe says may change on the way.
_OWN = ("process", "net", "denoiser", "objective", "model")
_OWN_TRAIN = ("batch", "seed", "optimiser", "optimiser_options", "ema")


def fit(recipe: Recipe, *, progress: bool = True) -> Path:
    """Train a recipe and return its run folder. Launched several times over (accelerate, torchrun), train together.

    Args:
        recipe: what to train (`read`).
        progress: show a bar.

    Raises:
        FileError: the folder holds something already (nothing is overwritten), or cannot be written.
        ConfigError: data and network do not fit, or ten steps in a row were not finite.
        KeyboardInterrupt, SystemExit: on SIGINT and SIGTERM, after the step was finished and the state saved.
    """
    _check_free(recipe.folder)
    return _train(recipe, progress, resumed=False)


def resume(folder: Path | str, overrides: Sequence[str] = (), *, progress: bool = True) -> Path:
    """Go on with a run from its newest good state.

    One process on the CPU ends in the bits of a run that was never stopped, at one number of threads; several processes
    and GPUs, whose sums are not made in one order, within rounding of it.

    Args:
        folder: the run's folder.
        overrides: changes such as train.steps=4000 (with a cosine schedule the rates of all steps to come); what the
            run is (process, net, denoiser, objective, batch, seed, optimiser, ema, the data's content) cannot change.
        progress: show a bar.

    Raises:
        FileError: no run is there, or no state of it is good: each bad file is named.
        ConfigError: an override changes what the run is.
    """
    folder = Path(folder)
    if not (folder / RECIPE).is_file():
        named = Path("runs") / folder
        hint = f"; did you mean {named}?" if (named / RECIPE).is_file() else ""
        raise FileError(f"{folder}: no {RECIPE} in this folder, so there is no run to resume{hint}")
    moved = [item for item in overrides if item.partition("=")[0].startswith("run")]
    if moved:
        raise ConfigError(f"{moved[0]}: a run is resumed where it is, in {folder}; leave it out")
    place = f"run.dir={json.dumps(str(folder))}"
    before, recipe = read(folder / RECIPE, [place]), read(folder / RECIPE, [*overrides, place])
    _check_same(_identity(before.resolved()), _identity(recipe.resolved()), operator.eq)
    return _train(recipe, progress, resumed=True)


def _check_free(folder: Path) -> None:
    """Refuse a folder that holds something. Raises FileError."""
    taken = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    if taken.exists() and not taken.is_dir():
        raise FileError(f"{taken}: this is a file and is left as it is; choose another folder with run.dir=...")
    if folder.is_dir() and any(not _scrap(item) for item in folder.iterdir()):
        advice = f", or go on with it: fokker train {folder} --resume" if (folder / RECIPE).is_file() else ""
        raise FileError(
            f"{folder}: this folder is not empty and is left as it is; choose another with run.dir=...{advice}"
        )


def _check_same(old: dict[str, Any], new: dict[str, Any], same: Callable[[Any, Any], bool]) -> None:
    """Refuse to go on with a run as another. Raises ConfigError."""
    for name, value in old.items():
        if not same(value, new[name]):
            name, was, given = _where(name, value, new[name])
            raise ConfigError(
                f"{name}: given {given}, but this run has {was}; a resumed run keeps it: start another with run.dir=..."
            )


def _where(name: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    """(name, old, new) of the innermost field in which two values differ."""
    if isinstance(old, dict) and isinstance(new, dict) and old.get("kind") == new.get("kind"):
        for key in [*old, *(key for key in new if key not in old)]:
            if key not in old or key not in new:
                return f"{name}.{key}", old.get(key, "no such field"), new.get(key, "nothing")
            if old[key] != new[key]:
                return _where(f"{name}.{key}", old[key], new[key])
    return name, old, new


def _agrees(old: Any, new: Any) -> bool:
    """Whether everything in `old` is in `new`, which may know fields that a later fokker has given defaults."""
    if isinstance(old, dict) and isinstance(new, dict):
        return all(name in new and _agrees(value, new[name]) for name, value in old.items())
    return bool(old == new)


def _identity(values: dict[str, Any]) -> dict[str, Any]:
    """What a resolved recipe says of what the run is."""
    return {name: values[name] for name in _OWN if name in values} | {
        f"train.{name}": values["train"][name] for name in _OWN_TRAIN
    }


# What processes leave that were killed while they wrote: our own files, and those that safetensors writes for them.
SCRAP = re.compile(r"\..+\.tmp|\.tmp\w{6}")


def _scrap(item: Path) -> bool:
    """Whether a file is what a process left that died before it had made anything."""
    return item.name == ".lock" or SCRAP.fullmatch(item.name) is not None


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the run's lock. Raises FileError if another process trains here."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise FileError(f"{folder}: cannot be written ({error.strerror})") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileError(f"{folder}: another process is training here") from None
        except OSError as error:
            raise FileError(f"{folder}: its file system has no locks ({error.strerror})") from None
        for item in folder.rglob(".*"):
            if SCRAP.fullmatch(item.name):
                item.unlink(missing_ok=True)
        yield
        # The file stays: removing it would let two processes lock two files of one name.


class _Signals:
    """SIGINT and SIGTERM as a wish that is asked for between steps; a second SIGINT is obeyed at once."""

    def __init__(self) -> None:
        self.wish: signal.Signals | None = None
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _: FrameType | None) -> None:
        if self.wish is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wish = signal.Signals(number)


def _train(recipe: Recipe, progress: bool, resumed: bool) -> Path:
    team, folder = Team(), recipe.folder
    samples = recipe.data.load("train")
    devices = [torch.cuda.current_device()] if team.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):  # the caller's generator is left as it was
        torch.manual_seed(recipe.train.seed)  # initial weights
        model = recipe.fresh(samples)
        # What cannot be saved, drawn or trained is said before an hour is spent and before a folder is made.
        spec(model, {})
        resolved = recipe.resolved(model)
        resolved["run"]["id"] = (recipe.run.id if resumed else "") or uuid.uuid4().hex
        _check_fit(recipe, samples, model)
        codec = None if samples.codec is None else spec(samples.codec, inline=2**20)
        info = {"classes": list(samples.classes), "codec": codec, "recipe": resolved}
        loop = Loop(recipe, samples, model, team)
        team.wait()
        if not team.first:
            return _run(loop, folder, info, progress=False, resumed=resumed)
        with _only_one(folder):
            if not resumed:  # another may have trained here in the meantime
                _check_free(folder)
            text = yaml.safe_dump(resolved, sort_keys=False)
            if not (resumed and (folder / RECIPE).read_text(encoding="utf-8") == text):
                write_text(folder / RECIPE, text)
            return _run(loop, folder, info, progress=progress, resumed=resumed)


def _run(loop: Loop, folder: Path, info: dict[str, Any], *, progress: bool, resumed: bool) -> Path:
    options, team = loop.options, loop.team
    run, identity = info["recipe"]["run"]["id"], _identity(info["recipe"])
    state, wrong = read_state(folder / "state", run) if resumed else (None, [])
    start = 0 if state is None else state.step
    ends = team.any(torch.tensor([start, -start], device=team.device))
    if int(ends[0]) != -int(ends[1]):
        raise FileError(f"{folder}: its processes have read states of different steps, here {start}; look at state/")
    if state is not None:
        _check_same(state.facts["identity"], identity, _agrees)
        loop.restore(state)
    name, board = loop.recipe.name, options.tensorboard
    journal = Journal(folder, name, start, options.steps, writes=team.first, show=progress, tensorboard=board)

    def keep(step: int) -> None:
        """Save the state and the model; every process takes part."""
        whole, model = loop.state(step), loop.look()
        whole.facts["identity"] = identity
        if team.first:
            write_state(folder / "state", whole, run)
            save(folder / MODEL, model, info | {"step": step})

    def due(every: int, step: int) -> bool:
        return step >= options.steps or bool(every and step % every == 0)

    with journal, _Signals() as signals:
        for line in wrong:
            journal.say(f"{line}; going on from the state of step {start}")
        if start >= options.steps:  # all but the last files may have been written
            journal.say(f"{folder}: finished already, at step {start}; for more steps: train.steps=...")
            keep(start)
        if start and due(options.sample_every, start):
            loop.picture(folder / "samples" / f"{start:06d}.png")
        for step in range(start, options.steps):
            stop, done = loop.step(step, signals.wish is not None), step + 1
            if stop or due(options.log_every, done):
                journal.write(loop.record(step))
            journal.advance()
            if options.snapshot_every and due(options.snapshot_every, done):
                loop.snapshot(folder, done)
            if stop or due(options.checkpoint_every, done):
                keep(done)
            if due(options.sample_every, done):
                loop.picture(folder / "samples" / f"{done:06d}.png")
            if stop and done < options.steps:
                journal.say(f"stopped after step {done}, all is saved; go on: fokker train {folder} --resume")
                raise KeyboardInterrupt if signals.wish is signal.SIGINT else SystemExit(0)
    return folder


def _check_fit(recipe: Recipe, samples: Samples, model: NetDenoiser | Model) -> None:
    """Refuse data, network and sampler that do not fit together. Raises ConfigError or UndeterminedError."""
    if recipe.train.tensorboard:
        tensorboard_writer()
    if isinstance(model, Model):
        x0 = samples.take(torch.arange(min(8, len(samples))))[0]
        model.eval()
        model.losses(x0, seed=recipe.train.seed)
        if model.levels is not None:  # a law of levels says nothing of numbers between them
            try:
                model.log_prob(x0, seed=recipe.train.seed)
            except ConfigError as error:
                raise ConfigError(
                    f"model: {error}; take a law of any numbers (model.decoder=gaussian, model.levels=0), or pictures"
                ) from None
        draw(model, n=1)
        return
    denoiser, classes = model, class_count(model)
    if classes and samples.labels is not None and int(samples.labels.max()) >= classes:
        raise ConfigError(f"net.classes: given {classes}, but the data has labels up to {int(samples.labels.max())}")
    x0, cond = samples.take(torch.arange(min(2, len(samples))))
    denoiser.eval()
    with torch.no_grad():
        learned = recipe.objective.learned(denoiser.process)
        cond = cond if is_conditional(denoiser) else None
        recipe.objective(denoiser, x0, cond, learned=learned, seed=recipe.train.seed)
    steps = None if isinstance(recipe.sampling.grid, Times) else 1
    draw(denoiser, recipe.sampling, n=1, cond=None if classes else cond, steps=steps)
    if recipe.train.snapshot_every and not isinstance(recipe.train.ema, Power):
        raise ConfigError(f"train.snapshot_every: snapshots need {POWER}")
    denoiser.train()
