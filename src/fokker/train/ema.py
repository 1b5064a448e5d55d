"""The exponential moving average of a model's weights."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["EMA"]

M = TypeVar("M", bound=nn.Module)


class EMA(Generic[M]):
    """shadow <- shadow + (1 - d) (weights - shadow), d = min(decay, (1 + step) / (10 + step)).

    The ramp lets the first steps be forgotten. Buffers are copied.

    Args:
        model: whose weights are averaged.
        decay: d in the long run, in [0, 1).
    """

    def __init__(self, model: M, decay: float) -> None:
        self.model: M = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    def rate(self, step: int) -> float:
        """1 - d after step `step` (0-based)."""
        return 1.0 - min(self.decay, (1.0 + step) / (10.0 + step))

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after step `step`."""
        shadow: list[Tensor] = [p.detach() for p in self.model.parameters()]
        torch._foreach_lerp_(shadow, [p.detach() for p in model.parameters()], self.rate(step))
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
