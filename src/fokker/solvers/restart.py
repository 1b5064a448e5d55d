r"""Restart sampling: a solver that goes back up by fresh noise and down again (Xu et al. 2023, Algorithm 1)."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..component import component
from ..errors import ConfigError
from ..process import Process
from ..registry import resolves
from .base import Solver, plain
from .grid import Karras
from .plan import Plan, Step, X
from .rk import Heun

__all__ = ["Restart"]

Interval = tuple[float, float, int, int]


@component
class Restart(Solver):
    """At the level `low`: noise up to `high` by the forward kernel, solve down, `repeats` times.

    The grid's time next to `low` stands for it if it is nearer than half of the way to `high` (in lam); if none is,
    `low` joins the grid.

    One turn multiplies what was wrong with the law at `low` by about (low / high)^2 on narrow data, where a stochastic
    solver would add its own error at every step; its price is `steps` steps. Levels are rho = sigma / alpha.

    Args:
        solver: what solves, down the grid and down each interval; deterministic as published; its name or recipe.
        intervals: (low, high, repeats, steps) each; steps on Karras' grid. The default is the paper's for CIFAR-10.
    """

    solver: Annotated[Solver, resolves("solver")] = Field(default_factory=lambda: Heun(space="rho"))
    intervals: tuple[Interval, ...] = ((0.06, 0.3, 2, 2),)
    stochastic = True

    def __post_init__(self) -> None:
        plain(self.solver, "Restart.solver")
        if self.solver.fixed_steps(False) is not None:
            raise ConfigError(
                f"Restart.solver: given {self.solver}, whose number of steps is its own; give it without nfe"
            )
        for low, high, repeats, steps in self.intervals:
            if not (0.0 < low < high and repeats >= 1 and steps >= 1):
                given = (low, high, repeats, steps)
                raise ConfigError(f"Restart.intervals: given {given}; must be 0 < low < high, repeats >= 1, steps >= 1")

    @property
    def order(self) -> int:
        return self.solver.order

    @property
    def open_start(self) -> bool:  # type: ignore[override]
        return self.solver.open_start

    def plan(self, process: Process, times: Tensor) -> Plan:
        times, nodes = self._nodes(process, self.checked(process, times))
        steps: list[Step] = []
        begin = 0
        for k, high, repeats, count in sorted(nodes):
            if k > begin:
                steps += self.solver.plan(process, times[begin : k + 1]).steps
            low, begin = float(times[k]), k
            scale, std = (float(c) for c in process.transition(low, high))
            up = Step(low, high, (), ((X, scale), (("z", 0), std)), draws=1)
            down = self.solver.plan(process, Karras().times(process, count, high, low, False)).steps
            steps += [up, *down] * repeats
        if begin < len(times) - 1:
            steps += self.solver.plan(process, times[begin:]).steps
        return Plan(tuple(steps), self.solver.slots)

    def _nodes(self, process: Process, times: Tensor) -> tuple[Tensor, list[tuple[int, float, int, int]]]:
        """The times with the lows they lack; for each interval: where it starts, its upper time, repeats, steps."""
        lam = process.lam(times[times > 0.0])
        noisy, clean = min(float(times[0]), process.t_max), float(times[-1]) or min(float(times[-2]), process.t_min)
        first, last = float(process.lam(noisy)), float(process.lam(clean))
        lacking = set()
        for low, high, _, _ in self.intervals:
            at = -math.log(low)
            if not first < at < last + 1e-9:
                span = f"{math.exp(-last):.3g} to {math.exp(-first):.3g}"
                raise ConfigError(
                    f"Restart.intervals: low={low:g} of sigma/alpha, but the grid spans {span}: give one within it"
                )
            if float((lam - at).abs().min()) > 0.5 * math.log(high / low):
                lacking.add(at)
        more = process.time(torch.tensor(list(lacking), dtype=torch.float64))
        times = torch.cat([times, more]).sort(descending=True).values
        lam = process.lam(times[times > 0.0])
        found = []
        for low, high, repeats, steps in self.intervals:
            top = min(float(process.time(-math.log(high))), process.t_max)
            found.append((int((lam + math.log(low)).abs().argmin()), top, repeats, steps))
        return times, found
