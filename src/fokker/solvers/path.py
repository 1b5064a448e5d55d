r"""Noise from one Brownian path per sample, so that other steps or another grid refine a sample instead of changing it.

    z_n = (W(u_{n+1}) - W(u_n)) / sqrt(u_{n+1} - u_n),     u(t) = 1/2 + arctan(lam(t) / 4) / pi

Only a step's whole noise is the path's: of solvers that draw within a step as well (DPM, DPMpp "S" with `sde`, of order
2 and 3) the inner draws are fresh. W is keyed by (seed, index) alone. The clock u is smooth in lam and knows neither
grid nor process: noise of the same seed falls at the same lam everywhere. Increments of disjoint steps are independent,
so the law stays what it was.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import noise as philox
from ..errors import ConfigError
from ..process import Process
from .plan import Plan
from .run import Draw

__all__ = ["clock", "increments"]

READ = 2**18  # numbers held for steps to come


def clock(process: Process, times: Tensor) -> Tensor:
    """u(t) of the module, float64, rounded to the path's resolution 2^-24: 0 where alpha = 0, 1 where sigma = 0."""
    u = 0.5 + (0.25 * process.lam(times)).atan() / math.pi
    return (u / philox.RESOLUTION).round() * philox.RESOLUTION


def increments(
    plan: Plan,
    process: Process,
    seed: philox.Seed,
    index: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    fresh: Draw,
) -> Draw:
    """A source of noise for `run`: the first draw of each step is the path's increment, further ones are `fresh`.

    Raises:
        ConfigError: a step that draws does not go on towards the data (Langevin steps, restarts), or is too short.
    """
    ends = torch.tensor([[step.start, step.end] for step in plan.steps], dtype=torch.float64)
    read = clock(process, ends).tolist()
    for step, (u, v) in zip(plan.steps, read, strict=True):
        if step.draws and not step.end < step.start:
            raise ConfigError(f"brownian: a step stays at, or goes up from, time {step.start:g}; give another solver")
        if step.draws and not u < v:
            raise ConfigError(f"brownian: times {step.start:g} and {step.end:g} are closer than the path's resolution")
    many = max(1, READ // (len(index) * math.prod(shape)))  # steps read at once: the tree is climbed once for all
    known: dict[float, Tensor] = {}

    def draw(step: int, k: int) -> Tensor:
        if k:
            return fresh(step, k)
        u, v = read[step]
        if not {u, v} <= known.keys():
            places = sorted({place for pair in read[step : step + many] for place in pair})
            known.clear()
            at = torch.tensor(places, dtype=torch.float64)
            known.update(zip(places, philox.brownian(seed, index, at, shape, dtype=dtype), strict=True))
        return (known[v] - known[u]) / math.sqrt(v - u)

    return draw
