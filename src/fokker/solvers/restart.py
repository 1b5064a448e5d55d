r"""Restart sampling: a solver that goes back up by fresh noise and down again (Xu et al. 2023, Algorithm 1)."""

from __future__ import annotations

import math
from typing import Annotated

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
    """At the time of the grid next to `low`: noise up to `high` by the forward kernel, solve down, `repeats` times.

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
            raise ConfigError(f"Restart.solver: given {self.solver}, whose number of steps is its own; give it without nfe")
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
        times = self.checked(process, times)
        steps: list[Step] = []
        begin = 0
        for k, high, repeats, count in sorted(self._nodes(process, times)):
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

    def _nodes(self, process: Process, times: Tensor) -> list[tuple[int, float, int, int]]:
        """For each interval: where on the grid it starts, its upper time, repeats, steps."""
        lam = process.lam(times[times > 0.0])
        found = []
        for low, high, repeats, steps in self.intervals:
            if not float(lam[0]) < -math.log(low) < float(lam[-1]) + 1e-9:
                least, most = (math.exp(-float(end)) for end in (lam[-1], lam[0]))
                raise ConfigError(f"Restart.intervals: low={low:g}, but the grid spans {least:.3g} to {most:.3g}")
            node = int((lam + math.log(low)).abs().argmin())
            top = min(float(process.time(-math.log(high))), process.t_max)
            if top <= float(times[node]):
                raise ConfigError(
                    f"Restart.intervals: the grid's time next to low={low:g} is not below high={high:g}; use more steps"
                )
            found.append((node, top, repeats, steps))
        return found
