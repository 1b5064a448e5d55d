r"""A whole step in one pass over memory: the update of a one-stage step is a step of gradient descent with momentum.

    wanted    x' = A x + B raw + C h,   and of m = p x + q raw what the next step needs
    descent   g = raw + w x,   h <- C h + B g,   x <- x - r (g + C h)                        (Nesterov's momentum C)

(1)  w = A / B leaves x' in h; then r = 1 / (w - p / q) leaves in x a combination of m and x' alone,
     m = -(q / r) x - q C x', whose numbers go into the next step's. The two tensors have changed places.
(2)  without h: w = (A - 1) / B, r = -B leaves x' in x.

PyTorch has this as one kernel, for `torch.optim.SGD(fused=True)` (where a version lacks it, steps are carried out term
by term); on a CPU passes over memory are nearly all that a step costs beyond the network. `fuse` finds the numbers for
a bound plan, `Update.apply` calls the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["RAW", "Update", "fits", "fuse", "scalar"]

RAW = "raw"  # the denoiser's own output at the latest evaluation; never held beyond the next one
X = ("x", 0)
AMPLIFIED = 4.0  # how much of the rounding of what (1) leaves may come back, in units of a step's own
LINE = 64  # bytes of a cache line, whole vectors on every machine


def fits(x: Tensor) -> bool:
    """Whether to use the kernel for state x (B, *event): on a CPU, where an event fills whole vectors.

    What is left over at the end of memory is rounded otherwise, and a sample's bits would depend on its batch.
    """
    there = x.device.type == "cpu" and hasattr(torch, "_fused_sgd_") and not torch.compiler.is_compiling()
    return there and math.prod(x.shape[1:]) * x.element_size() % LINE == 0


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

    def apply(self, at: dict[Any, Tensor], raw: Tensor) -> None:
        """The step: registers x and `keep` from x, raw and the history; raw may be the memory of x."""
        x = at[X]
        if raw.shape != x.shape or not raw.is_contiguous() or raw.dtype != x.dtype:  # the kernel checks no shapes
            raw = raw.expand_as(x).to(x.dtype).contiguous()  # and walks memory in order
        if self.h is None and self.keep is None:
            new = x
            if self.on_x == 0.0:
                torch.mul(raw, scalar(self.on_raw, x.dtype), out=x)
            elif abs(self.on_x - 1.0) < 1e-15:  # DDIM where alpha is 1
                x.add_(raw, alpha=self.on_raw)
            elif self.on_x < 0.5:  # (2) would take the difference of nearly equal numbers
                raw = raw.clone() if raw.data_ptr() == x.data_ptr() else raw
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
    return torch.tensor(c, dtype=dtype, device="cpu")


def fuse(steps: Sequence[Any], survivors: Sequence[set[int]], dtype: torch.dtype) -> tuple[Update, ...] | None:
    """The updates of a bound plan whose steps all evaluate once, at their start, with numbers for coefficients.

    Args:
        steps: `run.BoundStep`.
        survivors: for every step, the slots whose contents a later step reads.
        dtype: of the state, in which the kernel rounds its numbers.

    Returns:
        None for any other plan, and for those that draw noise, beside which a pass over memory is nothing.
    """
    wanted: list[tuple[dict[Any, float], tuple[float, float], Any]] = []
    for step in steps:
        if len(step.stages) != 1 or step.draws or not step.stages[0].alias or step.stages[0].time != step.start:
            return None
        stage = step.stages[0]
        if not all(isinstance(c, float) and register != ("one", 0) for register, c in (*stage.formed, *step.out)):
            return None
        numbers: dict[Any, float] = {X: 0.0, RAW: 0.0, **dict(step.out)}
        p, q = stage.scaled
        keep = None if stage.folded else ("m", stage.keep)
        on_m = numbers.pop(keep, 0.0)
        numbers[X], numbers[RAW] = numbers[X] + on_m * p, numbers[RAW] + on_m * q
        wanted.append((numbers, (p, q), keep))
    updates: list[Update] = []
    held: dict[Any, tuple[float, float]] = {}  # a slot's m is the first times its tensor, plus the second times x
    for n, (numbers, (p, q), keep) in enumerate(wanted):
        plain, b = numbers.pop(X), float(scalar(1.0 - (1.0 - numbers.pop(RAW)), dtype))
        a = plain + sum(c * held[register][1] for register, c in numbers.items())
        rest = {register: c * held[register][0] for register, c in numbers.items()}
        h = next((register for register in rest if register[1] not in survivors[n]), None)
        c = 1.0 if h is None else rest.pop(h)
        if b == 0.0 or c == 0.0:  # the kernel divides by the one, and takes the other for no momentum
            return None
        rate = ratio = 0.0
        if keep is not None:
            after = wanted[n + 1][0]
            inverse = a / b - (p / q if q else math.inf)
            error = abs(q * after.get(keep, math.inf)) * (abs(inverse) + abs(a / b) + abs(c))
            once = not rest and keep[1] not in survivors[n + 1]
            if once and abs(inverse) > 1e-12 and error <= AMPLIFIED * min(1.0, abs(plain)) * abs(after[X]):
                rate, held[keep] = 1.0 / inverse, (-q * inverse, -q * c)
            else:
                ratio, held[keep] = (q / p, (p, 0.0)) if abs(p) > 1e-16 * abs(q) else (math.inf, (q, 0.0))
        updates.append(Update(a, b, c, h, keep, rate, ratio, tuple(rest.items())))
    return tuple(updates)
