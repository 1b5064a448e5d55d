"""Grids: the times a sampler visits, t_0 > ... > t_N, in float64. No rounding, no duplicates.

`to_zero` asks for a grid whose last time is 0, reached by one x0 step from the last evaluation. Grids that cannot
place 0 (uniform lam) spend N - 1 steps down to `stop` and the last one from there; Karras' published grid does too.
Those that can (uniform t, trailing, cosine, beta, shift) go to 0 in N steps of their own kind, as long as the last
evaluation is not below `stop`; beyond that they too keep the last step for the way from `stop`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import Field
from scipy.special import betaincinv
from torch import Tensor

from ..component import Array, component
from ..errors import ConfigError
from ..process import Process
from ..registry import build

__all__ = [
    "Angle",
    "Beta",
    "FlowTime",
    "Grid",
    "Karras",
    "Leading",
    "Linspace",
    "Quadratic",
    "Shift",
    "Times",
    "Trailing",
    "UniformLam",
    "UniformT",
    "as_grid",
    "check_times",
]


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


class _Whole(Grid):
    """Base of grids whose coordinate is finite at time 0."""

    def times(self, process: Process, steps: int, start: float, stop: float, to_zero: bool) -> Tensor:
        if to_zero:
            times = self._pinned(process, steps, start, 0.0)
            if bool(times[-2] >= stop * (1.0 - 1e-9)):
                return times
        return super().times(process, steps, start, stop, to_zero)


@component
class UniformT(_Whole):
    """Equal steps in t. With `to_zero` straight to 0, as long as the last evaluation is not below `stop`."""

    def _place(self, process: Process, u: Tensor, start: float, stop: float) -> Tensor:
        return start + (stop - start) * u


@component
class Trailing(UniformT):
    """t_i = start (1 - i / N), DDPM's "trailing" spacing, unrounded: `UniformT` under the name the field gives it.

    Of the three spacings the one to use: its first time is the start, whatever N (Lin et al. 2023, Table 2).
    """


@component
class Linspace(Grid):
    """t_i = start + (stop - start) i / (N - 1), then 0: DDPM's "linspace" spacing (iDDPM's), unrounded.

    Its last evaluation is at `stop` whatever N. Without the step to 0 it is `UniformT`.
    """

    def _place(self, process: Process, u: Tensor, start: float, stop: float) -> Tensor:
        return start + (stop - start) * u


@component
class Leading(Grid):
    """t_i = stop + (N - 1 - i) start / N, then 0: DDPM's "leading" spacing, unrounded.

    For DiscreteVP these are the indices n = (N - 1 - i) steps / N of the published DDIM and DDPM code. The first time
    falls short of the start by start / N - stop, where the prior is not the law of the state (Lin et al. 2023,
    Sec. 3.3): for reproducing published numbers. With more than start / stop steps it is `Linspace`.
    """

    def times(self, process: Process, steps: int, start: float, stop: float, to_zero: bool) -> Tensor:
        evaluations = steps if to_zero else steps + 1
        gap = start / evaluations
        if evaluations > 1:
            gap = min(gap, (start - stop) / (evaluations - 1))
        times = (stop + gap * torch.arange(evaluations - 1, -1, -1, dtype=torch.float64)).clamp(max=start)
        return torch.cat([times, torch.zeros(1, dtype=torch.float64)]) if to_zero else times


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
class Angle(_Whole):
    """Equal steps in the angle atan(sigma / alpha): the cosine schedule's times, in any process.

    Where alpha = cos(pi t / 2), sigma = sin(pi t / 2) (Nichol & Dhariwal 2021; Salimans & Ho 2022) it is uniform t.
    """

    def _place(self, process: Process, u: Tensor, start: float, stop: float) -> Tensor:
        first, last = (math.atan2(float(process.sigma(t)), float(process.alpha(t))) for t in (start, stop))
        return process.time(-(first + (last - first) * u).tan().log())


@component
class Beta(_Whole):
    """t = stop + (start - stop) F^{-1}(1 - u), u in equal steps, F the law Beta(a, b) (Lee et al. 2024).

    Below 1 the times crowd at the ends: a at the clean one, b at the noisy one; a = b = 1 is uniform t.

    Args:
        a, b: in [0.3, 100] (below, neighbouring times would be equal in float64).
    """

    a: Annotated[float, Field(ge=0.3, le=100.0)] = 0.6
    b: Annotated[float, Field(ge=0.3, le=100.0)] = 0.6

    def _place(self, process: Process, u: Tensor, start: float, stop: float) -> Tensor:
        return start - (start - stop) * torch.from_numpy(betaincinv(self.b, self.a, u.numpy()))


def _flow_times(process: Process, u: Tensor, start: float, stop: float, shift: float) -> Tensor:
    """Equal steps in sigma / (alpha + sigma), then lam less by log shift, with the ends where they are."""

    def tau(t: float) -> float:
        sigma = float(process.sigma(t))
        return sigma / (sigma + shift * float(process.alpha(t)))

    first, last = tau(start), tau(stop)
    at = first + (last - first) * u
    return process.time(torch.log1p(-at) - at.log() - math.log(shift))


@component
class FlowTime(_Whole):
    """Equal steps in flow time tau = sigma / (alpha + sigma), the time of `Flow` with the same lam; `sample`'s default.

    One grid for every process, on `Flow` `UniformT`. Measured with `Adams` it is the best of the named grids for
    networks, and never far from it for exact denoisers (docs/solvers.md).
    """

    def _place(self, process: Process, u: Tensor, start: float, stop: float) -> Tensor:
        return _flow_times(process, u, start, stop, 1.0)


@component
class Shift(_Whole):
    """Equal steps in flow time, then shifted: tau -> m tau / (1 + (m - 1) tau) (Esser et al. 2024, SD3, Eq. 23).

    tau = sigma / (alpha + sigma) is the time of `Flow` with the same lam, so that the grid is one for every process;
    shifting subtracts log m from lam. SD3 takes m = 3, or sqrt(pixels / pixels of the training).

    Args:
        shift: m; 1 is `FlowTime`, above 1 spends more steps at the noisy end.
    """

    shift: Annotated[float, Field(gt=0)] = 3.0

    def _place(self, process: Process, u: Tensor, start: float, stop: float) -> Tensor:
        return _flow_times(process, u, start, stop, self.shift)


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
