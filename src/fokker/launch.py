"""Where this process stands among those that a launcher (accelerate launch, torchrun) has started together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .errors import ConfigError

__all__ = ["Place", "lonely", "place", "together"]


@dataclass(frozen=True)
class Place:
    """This process: number `rank` of `world`, with `device` to compute on."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks for all."""
        return self.rank == 0


def place() -> Place:
    """The place that the launcher's environment tells (RANK, WORLD_SIZE, LOCAL_RANK); without one, alone.

    Nothing is joined yet: what a user did wrong can still be said by each process for itself.

    Raises:
        ConfigError: the environment contradicts itself.
    """
    import torch

    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    texts = [os.environ.get(name) or default for name, default in zip(names, ("0", "1", "0"), strict=True)]
    if not all(text.isdecimal() for text in texts) or not int(texts[0]) < int(texts[1]):
        given = ", ".join(f"{name}={text}" for name, text in zip(names, texts, strict=True))
        raise ConfigError(f"environment: {given}; a launcher sets RANK below WORLD_SIZE; unset them to run alone")
    rank, world, local = map(int, texts)
    if not torch.cuda.is_available() or _cpu_asked():
        return Place(rank, world)
    return Place(rank, world, f"cuda:{local}" if world > 1 else "cuda")


def lonely() -> str:
    """What to say where `accelerate launch` was asked for several processes but has started one, as it does without
    GPUs unless told otherwise; else nothing."""
    env = os.environ
    if "WORLD_SIZE" in env or "ACCELERATE_MIXED_PRECISION" not in env or "MASTER_PORT" not in env:
        return ""
    return "accelerate launch has started one process only: add --multi_gpu (on CPUs, too), or use torchrun"


def _cpu_asked() -> bool:
    """Whether `accelerate launch --cpu` started this process."""
    return os.environ.get("ACCELERATE_USE_CPU", "").casefold() in ("1", "true", "yes")


@contextmanager
def together(here: Place) -> Iterator[Callable[[], None]]:
    """Join the other processes, if there are any; gives the function that waits until all have called it.

    A process that fails inside ends without waiting for the others; its launcher ends them.
    """
    if here.world == 1:
        yield lambda: None
        return
    from accelerate import PartialState

    state = PartialState(cpu=here.device == "cpu")
    yield state.wait_for_everyone
    state.destroy_process_group()
