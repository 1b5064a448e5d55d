r"""A whole step in one pass over memory: the update of a one-stage step is a step of gradient descent with momentum.

    wanted    x' = A x + B raw + C h,   and of m = p x + q raw what the next step needs
    descent   g = raw + w x,   h <- C h + B g,   x <- x - r (g + C h)                        (Nesterov's momentum C)

(1)  w = A / B leaves x' in h; then r = 1 / (w - p / q) leaves in x a combination of m and x' alone,
     m = -(q / r) x - q C x', whose numbers go into the next step's. The two tensors have changed places.
(2)  without h: w = (A - 1) / B, r = -B leaves x' in x.

PyTorch has this as one kernel, for `torch.optim.SGD(fused=True)`; on a CPU passes over memory are all that a step
costs beyond the network. `fuse` finds the numbers for a bound plan, `Update.apply` calls the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["RAW", "Update", "available", "fuse", "scalar"]

RAW = "raw"  # the denoiser's own output at the latest evaluation; never held beyond the next one
X = ("x", 0)
AMPLIFIED = 4.0  # by how much (1) may multiply the rounding of what it leaves


def available(device: torch.device) -> bool:
    """Whether to use the kernel on this device."""
    return device.type == "cpu" and hasattr(torch, "_fused_sgd_") and not torch.compiler.is_compiling()


@dataclass(frozen=True)
class Update:
    """The numbers of one step, x' = A x + B raw + C h + more.

    Args:
        on_x, on_raw, on_h: A, B, C.
        h: the register whose tensor is used up and becomes x'; None: x's own, or a new one if x's is kept.
        keep: the history slot that x's tensor goes to, or None.
        rate: r of (1); 0 leaves x as it is.
        ratio: then what is kept is x + ratio raw; 0 as it is, infinite raw alone.
        more: further registers and their numbers.
    """

    on_x: float
    on_raw: float
    on_h: float = 1.0
    h: Any = None
    keep: Any = None
    rate: float = 0.0
    ratio: float = 0.0
    more: tuple[tuple[Any, float], ...] = ()

    def apply(self, at: dict[Any, Tensor]) -> None:
        """The step: registers x and `keep` from x, raw and the history."""
        x, raw = at[X], at[RAW]
        if not raw.is_contiguous() or raw.dtype != x.dtype:  # the kernel walks memory in order
            raw = raw.to(x.dtype).contiguous()
        if self.h is None and self.keep is None:
            new = x
            if self.on_x == 0.0:
                torch.mul(raw, scalar(self.on_raw, x.dtype), out=x)
            elif self.on_x < 0.5:  # (2) would take the difference of nearly equal numbers
                x.mul_(scalar(self.on_x, x.dtype)).add_(raw, alpha=self.on_raw)
            else:
                _descend(x, raw, [], (self.on_x - 1.0) / self.on_raw, -self.on_raw, 0.0, 0.0)
        else:
            new = torch.zeros_like(x) if self.h is None else at.pop(self.h)
            _descend(x, raw, [new], self.on_x / self.on_raw, self.rate, self.on_h, 1.0 - self.on_raw)
        for register, c in self.more:
            new.add_(at[register], alpha=c)
        if self.keep is not None:
            if self.ratio:
                x = x.copy_(raw) if math.isinf(self.ratio) else x.add_(raw, alpha=self.ratio)
            at[self.keep] = x
        at[X] = new


def _descend(
    x: Tensor, raw: Tensor, h: list[Tensor], decay: float, rate: float, momentum: float, dampening: float
) -> None:
    torch._fused_sgd_(
        [x],
        [raw],
        h,
        weight_decay=decay,
        momentum=momentum,
        lr=rate,
        dampening=dampening,
        nesterov=True,
        maximize=False,
        is_first_step=False,
    )


@lru_cache(maxsize=4096)
def scalar(c: float, dtype: torch.dtype) -> Tensor:
    """A number as a tensor of no dimension, by which a product costs less than by a Python number."""
    return torch.tensor(c, dtype=dtype)


def fuse(steps: Sequence[Any], survivors: Sequence[set[int]]) -> tuple[Update, ...] | None:
    """The updates of a bound plan whose steps all evaluate once, at their start, with numbers for coefficients.

    Args:
        steps: `run.BoundStep`.
        survivors: for every step, the slots whose contents a later step reads.

    Returns:
        None for any other plan, and for those that draw noise, beside which a pass over memory is nothing.
    """
    updates: list[Update] = []
    held: dict[Any, tuple[float, float]] = {}  # a slot's m is the first times its tensor, plus the second times x
    for n, step in enumerate(steps):
        if len(step.stages) != 1 or step.draws or not step.stages[0].alias or step.stages[0].time is None:
            return None
        stage = step.stages[0]
        if not all(isinstance(c, float) and register != ("one", 0) for register, c in (*stage.formed, *step.out)):
            return None
        numbers: dict[Any, float] = dict(step.out)
        (p, q), keep = stage.scaled, None if stage.folded else ("m", stage.keep)
        on_m = numbers.pop(keep, 0.0)
        a, b = numbers.pop(X, 0.0) + on_m * p, numbers.pop(RAW, 0.0) + on_m * q
        for register in numbers:
            times, beside = held[register]
            a, numbers[register] = a + numbers[register] * beside, numbers[register] * times
        if b == 0.0:
            return None
        h = next((register for register in numbers if register[1] not in survivors[n]), None)
        c = 1.0 if h is None else numbers.pop(h)
        rate = ratio = 0.0
        if keep is not None:
            inverse = a / b - (p / q if q else math.inf)
            soon = abs(q * dict(steps[n + 1].out).get(keep, math.inf))
            once = not numbers and keep[1] not in survivors[n + 1]
            if once and inverse and soon * (abs(inverse) + abs(a / b) + abs(c)) <= AMPLIFIED:
                rate, held[keep] = 1.0 / inverse, (-q * inverse, -q * c)
            else:
                ratio, held[keep] = (q / p, (p, 0.0)) if p else (math.inf, (q, 0.0))
        updates.append(Update(a, b, c, h, keep, rate, ratio, tuple(numbers.items())))
    return tuple(updates)
