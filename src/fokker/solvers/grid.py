"""Grids: the times a sampler visits, t_0 > ... > t_N, in float64. No rounding, no duplicates.

`to_zero` asks for a grid whose last time is 0, reached by one x0 step from the last evaluation. Grids that cannot
place 0 (uniform lam) spend N - 1 steps down to `stop` and the last one from there; Karras' published grid does too.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from ..component import Array, component
from ..errors import ConfigError
from ..process import Process
from ..registry import build

__all__ = ["Grid", "Karras", "Quadratic", "Times", "UniformLam", "UniformT", "as_grid", "check_times"]


class Grid:
    """Base of grids."""

    def times(self, process: Process, steps: int, start: float, stop: float, to_zero: bool) -> Tensor:
        """N + 1 decreasing times from `start` to `stop` (or to 0, see the module).

        Args:
            process: whose clock it is.
            steps: N >= 1.
            start: the noisiest time.
            stop: the cleanest time at which the denoiser is asked.
            to_zero: end at 0 instead.
        """
        if not to_zero:
            return self._pinned(process, steps, start, stop)
        if steps == 1:
            return torch.tensor([start, 0.0], dtype=torch.float64)
        return torch.cat([self._pinned(process, steps - 1, start, stop), torch.zeros(1, dtype=torch.float64)])

    def _pinned(self, process: Process, steps: int, start: float, stop: float) -> Tensor:
        times = self._place(process, torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64), start, stop)
        times[0], times[-1] = start, stop
        return times

    def _place(self, process: Process, u: Tensor, start: float, stop: float) -> Tensor:
        raise NotImplementedError


@component
class UniformT(Grid):
    """Equal steps in t. With `to_zero` straight to 0, as long as the last evaluation is not below `stop`."""

    def times(self, process: Process, steps: int, start: float, stop: float, to_zero: bool) -> Tensor:
        if to_zero and start / steps >= stop * (1.0 - 1e-9):
            return self._pinned(process, steps, start, 0.0)
        return super().times(process, steps, start, stop, to_zero)

    def _place(self, process: Process, u: Tensor, start: float, stop: float) -> Tensor:
        return start + (stop - start) * u


@component
class UniformLam(Grid):
    """Equal steps in lam (book Sec. 9.4.3). Where alpha(start) = 0 the grid is that of t_max, pinned to the start."""

    def _place(self, process: Process, u: Tensor, start: float, stop: float) -> Tensor:
        first = float(process.lam(min(start, process.t_max)))
        last = float(process.lam(stop))
        return process.time(first + (last - first) * u)


@component
class Karras(Grid):
    """Karras et al. 2022: rho^{1/r} in equal steps, rho = sigma/alpha; dense at the clean end (book Sec. D.6).

    Args:
        rho: the exponent r.
    """

    rho: Annotated[float, Field(gt=0)] = 7.0

    def _place(self, process: Process, u: Tensor, start: float, stop: float) -> Tensor:
        first = (-process.lam(min(start, process.t_max)) / self.rho).exp()
        last = (-process.lam(stop) / self.rho).exp()
        return process.time(-self.rho * (first + (last - first) * u).log())


@component
class Quadratic(Grid):
    """Equal steps in sqrt(t) (Song et al. 2020a)."""

    def _place(self, process: Process, u: Tensor, start: float, stop: float) -> Tensor:
        root: Tensor = math.sqrt(start) + (math.sqrt(stop) - math.sqrt(start)) * u
        return root**2


@component
class Times(Grid):
    """Times of one's own, taken as they are; `steps`, the start and the end follow from them."""

    values: Array

    def times(self, process: Process, steps: int, start: float, stop: float, to_zero: bool) -> Tensor:
        return self.values.value.clone()


def as_grid(given: Any) -> Grid:
    """A grid from a name, a recipe, a component or an array of times."""
    if isinstance(given, Grid):
        return given
    if isinstance(given, (Tensor, list, tuple)) or hasattr(given, "__array__"):
        return Times(Array(given))
    grid = build("grid", given)
    if not isinstance(grid, Grid):
        raise ConfigError(f"grid: given {given!r}; give a name, a grid or an array of times")
    return grid


def check_times(times: Tensor, process: Process) -> bool:
    """Refuse times that are not strictly monotone inside [0, T]; whether they increase."""
    if times.ndim != 1 or len(times) < 2 or not bool(torch.isfinite(times).all()):
        raise ConfigError(f"times: given shape {tuple(times.shape)}, must be N + 1 >= 2 finite numbers")
    increasing = bool(times[-1] > times[0])
    gaps = times[1:] - times[:-1]
    wrong = gaps <= 0 if increasing else gaps >= 0
    if bool(wrong.any()):
        n = int(wrong.nonzero()[0])
        order = "increase" if increasing else "decrease"
        raise ConfigError(f"times must strictly {order}: entries {n} and {n + 1} are {times[n]:g} and {times[n + 1]:g}")
    if bool((times < 0).any() | (times > process.T * (1.0 + 1e-12)).any()):
        raise ConfigError(f"times must lie in [0, {process.T:g}] (given {times.min():g} to {times.max():g})")
    return increasing
