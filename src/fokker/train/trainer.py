"""The training loop: a recipe in, a run folder out.

What step k draws (batch, times, noise, dropped conditions) is a function of (seed, k) alone.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from .. import noise as philox
from ..data import Samples, picture
from ..denoiser import NetDenoiser
from ..errors import ConfigError, FileError
from ..files import write_text, write_whole
from ..guidance import CFG
from ..registry import spec
from ..sampling import sample
from ..solvers import Times
from .checkpoint import MODEL, save
from .ema import EMA
from .recipe import Recipe

__all__ = ["batch_rows", "draw_samples", "fit"]


def batch_rows(seed: int, step: int, batch: int, n: int, known: dict[int, Tensor] | None = None) -> Tensor:
    """The rows of the training set in batch `step`: every epoch is one permutation of all n, keyed by (seed, epoch).

    Args:
        seed, step, batch, n: the batch holds places [step batch, (step + 1) batch) of the endless list of epochs.
        known: keeps permutations between calls.
    """
    known = {} if known is None else known
    places = torch.arange(step * batch, (step + 1) * batch)
    epochs = range(int(places[0]) // n, int(places[-1]) // n + 1)
    for epoch in epochs:
        if epoch not in known:
            known[epoch] = philox.permutation(seed, n, epoch)
    for old in [epoch for epoch in known if epoch not in epochs]:
        del known[old]
    return torch.cat([known[e][places[places // n == e] % n] for e in epochs])


def class_count(denoiser: NetDenoiser) -> int:
    """The number of classes a denoiser's network knows; 0 if it is unconditional."""
    config: Any = getattr(denoiser.net, "config", {})
    return int(config.get("classes", 0))


def draw_samples(denoiser: NetDenoiser, recipe: Recipe, n: int | None = None, steps: int | None = None) -> Tensor:
    """The samples a run's pictures show: `sampling.n` of them, classes in turn, always the same noises."""
    options, classes = recipe.sampling, class_count(denoiser)
    n = n or options.n
    if steps is None and not isinstance(options.grid, Times):
        steps = options.steps
    labels = torch.arange(n) % classes if classes else None
    guided = denoiser if labels is None or options.guidance == 1.0 else CFG(denoiser, options.guidance)
    return sample(guided, n=n, solver=options.solver, grid=options.grid, steps=steps, cond=labels, seed=0)


def fit(recipe: Recipe, *, progress: bool = True) -> Path:
    """Train a recipe and return its run folder.

    The folder holds `recipe.yaml` (resolved), `model.safetensors` (averaged weights), `log.jsonl` and `samples/`.

    Raises:
        FileError: the folder holds something already (nothing is overwritten).
        ConfigError: data and network do not fit, or the loss is no longer finite.
    """
    folder = recipe.folder
    taken = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    if taken.exists() and not taken.is_dir():
        raise FileError(f"{taken}: this is a file and is left as it is; choose another folder with run.dir=...")
    if folder.is_dir() and any(folder.iterdir()):
        raise FileError(f"{folder}: this folder is not empty and is left as it is; choose another with run.dir=...")
    samples = recipe.data.load("train")
    with torch.random.fork_rng(devices=[]):  # the caller's generator is left as it was
        return _fit(recipe, samples, folder, progress)


def _fit(recipe: Recipe, samples: Samples, folder: Path, progress: bool) -> Path:
    options = recipe.train
    torch.manual_seed(options.seed)  # initial weights
    denoiser = recipe.model(samples)
    # What cannot be saved, drawn or trained is said before an hour is spent and before a folder is made.
    spec(denoiser, {})
    text = yaml.safe_dump(recipe.resolved(denoiser.net), sort_keys=False)
    _check_fit(recipe, samples, denoiser)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    denoiser.to(device)
    average = EMA(denoiser, options.ema)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "recipe.yaml", text)
    loop = _Loop(recipe, samples, denoiser, average, device)
    with _bar(progress) as bar, (folder / "log.jsonl").open("a", encoding="utf-8") as log:
        task = bar.add_task(recipe.name, total=options.steps, loss=math.nan, rate=0.0)
        for step in range(options.steps):
            record = loop.step(step)
            if record is not None:
                log.write(json.dumps(record) + "\n")
                log.flush()
                bar.update(task, loss=record["loss"], rate=record["samples_per_second"])
            bar.advance(task)
            if options.sample_every and (step + 1) % options.sample_every == 0 and step + 1 < options.steps:
                loop.picture(folder / "samples" / f"{step + 1:06d}.png")
    info = {"classes": list(samples.classes), "recipe": recipe.resolved(denoiser.net), "step": options.steps}
    save(folder / MODEL, average.model, info)
    loop.picture(folder / "samples" / f"{options.steps:06d}.png")
    return folder


def _check_fit(recipe: Recipe, samples: Samples, denoiser: NetDenoiser) -> None:
    """Refuse data, network and sampler that do not fit together. Raises ConfigError or UndeterminedError."""
    classes = class_count(denoiser)
    if classes and samples.labels is not None and int(samples.labels.max()) >= classes:
        raise ConfigError(f"net.classes: given {classes}, but the data has labels up to {int(samples.labels.max())}")
    x0, labels = samples.take(torch.arange(min(2, len(samples))))
    denoiser.eval()
    with torch.no_grad():
        recipe.objective(denoiser, x0, labels if classes else None, seed=recipe.train.seed)
    draw_samples(denoiser, recipe, n=1, steps=None if isinstance(recipe.sampling.grid, Times) else 1)
    denoiser.train()


class _Loop:
    """One training in progress."""

    def __init__(
        self, recipe: Recipe, samples: Samples, denoiser: NetDenoiser, average: EMA[NetDenoiser], device: torch.device
    ) -> None:
        self.recipe, self.options = recipe, recipe.train
        self.samples, self.denoiser, self.average, self.device = samples, denoiser, average, device
        self.conditional = class_count(denoiser) > 0
        self.optimiser = torch.optim.AdamW(
            denoiser.parameters(), lr=self.options.lr, weight_decay=self.options.weight_decay
        )
        self.orders: dict[int, Tensor] = {}
        self.since = time.perf_counter()
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []

    def step(self, step: int) -> dict[str, Any] | None:
        """One update; a record for the log every `log_every` steps."""
        options = self.options
        rows = batch_rows(options.seed, step, options.batch, len(self.samples), self.orders)
        x0, labels = self.samples.take(rows)
        x0 = x0.to(self.device, non_blocking=True)
        cond = labels.to(self.device, non_blocking=True) if labels is not None and self.conditional else None
        for group in self.optimiser.param_groups:
            group["lr"] = options.lr * min(1.0, (step + 1) / max(1, options.warmup))
        torch.manual_seed((options.seed << 24 | step) % 2**63)  # dropout's
        loss = self.recipe.objective(self.denoiser, x0, cond, seed=options.seed, step=step)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.norms.append(torch.nn.utils.clip_grad_norm_(self.denoiser.parameters(), options.clip).detach())
        self.optimiser.step()
        self.average.update(self.denoiser, step)
        self.losses.append(loss.detach())
        if (step + 1) % options.log_every and step + 1 != options.steps:
            return None
        mean, norm = float(torch.stack(self.losses).mean()), float(torch.stack(self.norms).mean())
        if not math.isfinite(mean):
            raise ConfigError(f"the loss is not finite at step {step + 1}: lower train.lr={options.lr} or train.clip")
        now = time.perf_counter()
        rate = len(self.losses) * options.batch / (now - self.since)
        self.since = now
        self.losses.clear()
        self.norms.clear()
        lr = self.optimiser.param_groups[0]["lr"]
        return {"step": step + 1, "loss": mean, "gradient_norm": norm, "samples_per_second": rate, "lr": lr}

    def picture(self, path: Path) -> None:
        """Draw the averaged model's samples."""
        began = time.perf_counter()
        classes = class_count(self.average.model)  # one class a column
        image = picture(draw_samples(self.average.model, self.recipe), columns=classes if 0 < classes <= 20 else 8)
        if image is not None:
            write_whole(path, lambda temporary: image.save(temporary, format="PNG"))
        self.since += time.perf_counter() - began  # drawing is not training


def _bar(show: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:.0f} samples/s"),
        TimeRemainingColumn(),
        disable=not show,
    )
