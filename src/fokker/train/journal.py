"""What a training tells: sums kept on the device, a line of log.jsonl, TensorBoard, and a bar."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ..errors import FileError, MissingExtraError
from ..files import write_text

__all__ = ["Journal", "Tally", "tensorboard_writer"]

BINS = 10
LOG = "log.jsonl"


class Tally:
    """Sums over the steps since the last line of the log, on the device, so that no step waits for its numbers.

    Args:
        device: where the losses are.
        horizon: T; the histogram of the loss has ten equal bins of t / T. None: there are no times.
    """

    def __init__(self, device: torch.device, horizon: float | None) -> None:
        self.device, self.horizon = device, horizon
        self.clear()

    def clear(self) -> None:
        """Forget everything and start the clock."""
        # losses and counts by bin of time; then the loss, and the samples of good steps
        self.sums = torch.zeros(2 * BINS + 2, dtype=torch.float64, device=self.device)
        self.norms = torch.zeros(2, dtype=torch.float64, device=self.device)  # sum, and how many
        self.wait = 0.0
        self.began = time.perf_counter()

    def losses(self, loss: Tensor, error: Tensor, t: Tensor) -> None:
        """Take in a part of a batch: what is minimised, the plainly weighted errors, and the times, (B,) each."""
        loss, error = loss.detach().double(), error.detach().double()
        good = loss.isfinite() & error.isfinite()
        place = (t.to(error.device) / (self.horizon or 1.0) * BINS).long().clamp(0, BINS - 1)
        self.sums.index_add_(0, place, torch.where(good, error, 0.0))
        self.sums.index_add_(0, place + BINS, good.double())
        self.sums[-2:] += torch.stack([torch.where(good, loss, 0.0).sum(), good.sum().double()])

    def norm(self, norm: Tensor) -> None:
        """Take in a step's gradient norm."""
        good = norm.isfinite()
        self.norms += torch.stack([torch.where(good, norm, 0.0), good.to(norm.dtype)]).double()

    def record(self, total: Callable[[Tensor], Tensor], samples: int) -> dict[str, Any]:
        """The numbers of one line; numbers that were never finite are null.

        Args:
            total: the sum of a tensor over the processes.
            samples: seen since the last line, by all processes.
        """
        sums, (norm, steps) = total(self.sums).tolist(), self.norms.tolist()
        elapsed = time.perf_counter() - self.began
        by_time = [_ratio(a, n) for a, n in zip(sums[:BINS], sums[BINS : 2 * BINS], strict=True)]
        return {
            "loss": _ratio(sums[-2], sums[-1]),
            "gradient_norm": _ratio(norm, steps),
            **({} if self.horizon is None else {"loss_by_time": by_time}),
            "samples_per_second": samples / elapsed,
            "data_wait": self.wait / elapsed,
            "memory_mb": _memory(self.device),
        }


def _ratio(value: float, count: float) -> float | None:
    return value / count if count else None


def _memory(device: torch.device) -> float:
    """The most memory this process has held, in MB: the device's, or on the CPU the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


class Journal:
    """The log, TensorBoard and the bar of a run; silent in all but the first process.

    Args:
        folder: the run's folder; lines of log.jsonl after step `start` (of a run that was killed) are dropped.
        start, steps: where the training starts, and how many steps it has.
        writes: whether this process writes.
        show: whether the bar is shown.
        tensorboard: whether TensorBoard's files are written.

    Raises:
        MissingExtraError: TensorBoard is wanted and not installed.
    """

    def __init__(
        self, folder: Path, name: str, start: int, steps: int, *, writes: bool, show: bool, tensorboard: bool
    ) -> None:
        self.file = folder / LOG if writes else None
        self.board: Any = None
        if writes and tensorboard:
            self.board = tensorboard_writer()(str(folder / "tensorboard"), purge_step=start + 1)
        if self.file is not None:
            _cut(self.file, start)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:.0f} samples/s"),
            TimeRemainingColumn(),
            disable=not (show and writes),
        )
        self.task = self.bar.add_task(name, total=steps, completed=start, loss=math.nan, rate=0.0)

    def __enter__(self) -> Journal:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        if self.board is not None:
            self.board.close()

    def advance(self) -> None:
        """One step is done."""
        self.bar.advance(self.task)

    def say(self, text: str) -> None:
        """A line above the bar, on standard error."""
        if self.file is not None:
            print(f"fokker: {text}", file=sys.stderr, flush=True)

    def write(self, record: dict[str, Any]) -> None:
        """Add a line."""
        if self.file is None:
            return
        try:
            with self.file.open("a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")
        except OSError as error:
            raise FileError(f"{self.file}: cannot be written ({error.strerror}); the last state is intact") from None
        loss = math.nan if record["loss"] is None else record["loss"]
        self.bar.update(self.task, loss=loss, rate=record["samples_per_second"])
        if self.board is not None:
            for name, value in record.items():
                if isinstance(value, (int, float)) and name != "step":
                    self.board.add_scalar(name, value, record["step"])
            for i, value in enumerate(record.get("loss_by_time", ())):
                if value is not None:
                    self.board.add_scalar(f"loss_by_time/{i}", value, record["step"])


def tensorboard_writer() -> Any:
    """TensorBoard's writer. Raises MissingExtraError if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtraError("tensorboard", "log") from None
    return SummaryWriter


def _cut(file: Path, start: int) -> None:
    """Drop the lines after step `start`, and a line that was cut short."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= start:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    write_text(file, "".join(kept))
