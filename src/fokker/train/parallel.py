"""Several processes: who is who (accelerate's launch), copies (DDP) or shards (FSDP2) of a module, and whole tensors.

State files are ours and hold whole tensors, so what two processes saved one process resumes, and back.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..launch import place

__all__ = ["Team", "from_shard", "quiet_gradients", "shard_of", "whole"]


class Team:
    """The processes of this training: one, unless `accelerate launch` or `torchrun` started more."""

    def __init__(self) -> None:
        here = place()
        self.rank, self.size, self.device = here.rank, here.world, torch.device(here.device)
        if self.size > 1:
            from accelerate import PartialState

            PartialState(cpu=self.device.type == "cpu")

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()

    def sum(self, value: Tensor) -> Tensor:
        """The sum over the processes, on each of them."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def any(self, flags: Tensor) -> Tensor:
        """Which flags (K,) of zeros and ones are set on any process."""
        if self.size > 1:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return flags

    def wrap(self, module: nn.Module, blocks: list[nn.Module], shard: bool) -> nn.Module:
        """The module as copies that average their gradients, or with its weights split over the processes.

        Args:
            module: what is called in training.
            blocks: parts that are gathered one at a time when split.
            shard: split (FSDP2) rather than copy (DDP); only among several.
        """
        if shard:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(self.device.type, (self.size,))
            for block in blocks:
                fully_shard(block, mesh=mesh)
            return cast(nn.Module, fully_shard(module, mesh=mesh))
        if self.size == 1:
            return module
        # What each process has counted stays its own until it is summed. Recent torch has another word for it.
        copies: Any = nn.parallel.DistributedDataParallel
        words = inspect.signature(copies).parameters
        apart = {"forward_sync_buffers" if "forward_sync_buffers" in words else "broadcast_buffers": False}
        return cast(nn.Module, copies(module, device_ids=None if self.device.type == "cpu" else [self.device], **apart))


@contextmanager
def quiet_gradients(module: nn.Module, last: bool) -> Iterator[None]:
    """Within all but the last part of an accumulated step gradients stay with their process."""
    split: Any = module
    if hasattr(split, "set_requires_gradient_sync"):
        split.set_requires_gradient_sync(last)
        yield
    elif last or not hasattr(split, "no_sync"):
        yield
    else:
        with split.no_sync():
            yield


def whole(value: Tensor, like: Tensor | None = None) -> Tensor:
    """The whole of a tensor that may be split, on every process.

    Args:
        value: a tensor, or the local shard of one.
        like: the split tensor that `value` is a shard in the manner of.
    """
    mine = value if like is None else from_shard(value, like)
    full: Any = getattr(mine, "full_tensor", None)
    return mine if full is None else cast(Tensor, full())


def from_shard(value: Tensor, like: Tensor) -> Tensor:
    """A local shard as the split tensor it belongs to; a tensor that is not split stays as it is."""
    if not hasattr(like, "placements"):
        return value
    from torch.distributed.tensor import DTensor

    split: Any = like
    made = DTensor.from_local(value, split.device_mesh, split.placements, shape=split.shape, stride=split.stride())
    return cast(Tensor, made)


def shard_of(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor split in the manner of `like`; where that is not split, the tensor itself on its device."""
    value = value.to(like.device)
    if not hasattr(like, "placements"):
        return value
    from torch.distributed.tensor import distribute_tensor

    split: Any = like
    return cast(Tensor, distribute_tensor(value, split.device_mesh, split.placements))
