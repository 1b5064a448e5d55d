"""What every solver is: a component that turns (process, times) into a plan."""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import ConfigError
from ..prediction import Denoiser
from ..process import Process
from .grid import Grid, check_times
from .plan import Plan, Step, to_data
from .run import bind, run

__all__ = ["MOST_STEPS", "Solver", "count", "plain", "steps_for_nfe", "unmapped"]

MOST_STEPS = 1_000_000
"""More steps or evaluations are a slip of the pen, and the plan would not fit into memory."""


class Solver:
    """Base of solvers: a subclass gives `steps`, the coefficients of all steps at once, or `inner_steps`.

    Attributes:
        slots: history slots its plans use.
        stochastic: whether its plans draw noise (then they run towards the data only).
        open_start: whether it cannot start where alpha = 0, because its coefficients are infinite there.
        open_data: the same of an encoding that starts where sigma = 0.
        own_steps: whether it chooses its steps itself: it has no plan, and a grid is only where it stops.
        reaches_zero: whether its own steps end at time 0, in place of the x0 step.
        plain: whether its plan is all of it, so that other solvers can take its steps.
    """

    slots: ClassVar[int] = 1
    stochastic: bool = False
    open_start: bool = False
    open_data: bool = False
    own_steps: bool = False
    reaches_zero: bool = False
    plain: bool = True

    @property
    def order(self) -> int:
        """Global order of convergence (weak order for stochastic solvers)."""
        raise NotImplementedError

    def steps(self, process: Process, s: Tensor, t: Tensor) -> list[Step]:
        """The steps from times s to times t (equal shapes (N,), float64, t > 0)."""
        raise NotImplementedError

    def inner_steps(self, process: Process, s: Tensor, t: Tensor, to_zero: bool) -> list[Step]:
        """`steps`, for a solver to which it matters whether a step to 0 follows them."""
        return self.steps(process, s, t)

    def fixed_steps(self, to_zero: bool) -> int | None:
        """How many steps its plans have, the one to 0 included, where it has a number of its own; None: any."""
        return None

    def checked(self, process: Process, times: Tensor) -> Tensor:
        """The times in float64. Raises ConfigError where the solver cannot run through them."""
        times = torch.as_tensor(times, dtype=torch.float64)
        increasing = check_times(times, process)
        if increasing and self.stochastic:
            raise ConfigError(f"{self} is stochastic and runs towards the data only; encode with DDIM() or Heun()")
        if self.open_start and bool((process.alpha(times) == 0.0).any()):
            raise ConfigError(f"{self} is singular at time {process.T:g}, where alpha = 0: start at {process.t_max:g}")
        if increasing and self.open_data and bool(process.sigma(times[0]) == 0.0):
            raise ConfigError(f"{self} is singular at time 0, where sigma = 0: start at {process.t_min:g}")
        return times

    def plan(self, process: Process, times: Tensor) -> Plan:
        """The plan on `times` (N + 1,): decreasing towards data, or increasing to encode.

        A last time of 0 is reached by `to_data`, unless the solver `reaches_zero` itself. Raises ConfigError for times
        that it cannot use.
        """
        times = self.checked(process, times)
        zero = bool(times[-1] == 0.0) and not self.reaches_zero
        fixed = self.fixed_steps(zero)
        if fixed is not None and len(times) - 1 != fixed:
            end = "with the one to 0" if zero else "to a last time above 0"
            raise ConfigError(f"steps: given {len(times) - 1}, but {self} makes {fixed} ({end}): leave steps out")
        inner = times[:-1] if zero else times
        steps = self.inner_steps(process, inner[:-1], inner[1:], zero) if len(inner) > 1 else []
        if zero:
            steps.append(to_data(float(times[-2])))
        return Plan(tuple(steps), self.slots).pruned()

    def prepare(
        self, denoiser: Denoiser, times: Tensor, device: torch.device, dtype: torch.dtype
    ) -> tuple[tuple[float, ...], Callable[..., Tensor]]:
        """The times of the states it passes, and what carries states through them, called as `run` without a plan."""
        plan = self.plan(denoiser.process, times)
        return plan.times, partial(run, bind(plan, denoiser, device, dtype), denoiser)


def count(name: str, given: Any) -> int | None:
    """A count from 1 to `MOST_STEPS`, of any integer type; None where none is given."""
    if given is None:
        return None
    try:
        number = operator.index(given)
    except TypeError:
        number = 0
    if isinstance(given, bool) or number < 1:
        raise ConfigError(f"{name}: given {given!r}, must be at least 1 (an integer)")
    if number > MOST_STEPS:
        raise ConfigError(f"{name}: given {given}, must be at most {MOST_STEPS}")
    return number


def plain(solver: Solver, field: str) -> None:
    """Refuse a solver within another one, given as `field`, whose plan is not all of it."""
    if not solver.plain:
        raise ConfigError(
            f"{field}: given {solver}, which runs in a way of its own; give a solver of plain plans, DDIM()"
        )


def unmapped(x: Tensor, solver: str) -> None:
    """Refuse a batch hidden by vmap, for a solver that looks at how its samples fare."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        if torch._C._functorch.is_batchedtensor(x):
            raise ConfigError(f"{solver}: its steps depend on the samples, which vmap hides; give a batch")
        x = torch._C._functorch.get_unwrapped(x)


def steps_for_nfe(
    solver: Solver, grid: Grid, process: Process, nfe: int, start: float, stop: float, to_zero: bool
) -> int:
    """The largest number of steps whose plan makes at most `nfe` evaluations. Raises ConfigError if there is none.

    A solver with a number of steps of its own must make exactly `nfe`.
    """
    count("nfe", nfe)
    fixed = solver.fixed_steps(to_zero)

    def cost(steps: int) -> int:
        return solver.plan(process, grid.times(process, steps, start, stop, to_zero)).nfe

    def known(steps: int) -> int:
        """The cost, or 0 where the solver refuses so few steps."""
        try:
            return cost(steps)
        except ConfigError:
            return 0

    if fixed is not None:
        if cost(fixed) != nfe:
            raise ConfigError(f"nfe: given {nfe}, but {solver} makes {cost(fixed)} evaluations: leave nfe out")
        return fixed
    found = bisect_right(range(1, nfe + 1), nfe, key=known)  # every step evaluates at least once
    if found == 0:
        raise ConfigError(f"nfe: given {nfe}, which is less than one step of {solver} needs ({cost(1)})")
    cost(found)  # says why, where it is refused
    return found
