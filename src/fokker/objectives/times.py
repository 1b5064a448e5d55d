"""Laws of the training time, by quantile, so that any of them can be stratified or importance-sampled.

All are laws on [t_min, T] (truncated there), of `t = quantile(u)` with u uniform on (0, 1).
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..component import component
from ..errors import ConfigError
from ..process import DiscreteVP, Process

__all__ = ["LogNormal", "LogitNormal", "TimeLaw", "UniformTimes"]

_ROOT = math.sqrt(2.0 * math.pi)


class TimeLaw:
    """Base of time laws."""

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        """The time below which a share u (B,) of the law lies; float64."""
        raise NotImplementedError

    def density(self, process: Process, t: Tensor) -> Tensor:
        """The law's density at t (B,)."""
        raise NotImplementedError


@component
class UniformTimes(TimeLaw):
    """Uniform on [t_min, T].

    Args:
        levels: on a DiscreteVP uniform on its levels n / steps, as a network with integer time needs.
    """

    levels: bool = False

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        if self.levels and isinstance(process, DiscreteVP):
            return ((u.double() * process.steps).floor() + 1.0).clamp(max=process.steps) / process.steps
        return process.t_min + (process.T - process.t_min) * u.double()

    def density(self, process: Process, t: Tensor) -> Tensor:
        width = process.T if self.levels and isinstance(process, DiscreteVP) else process.T - process.t_min
        return torch.full_like(t, 1.0 / width)


class _Normal(TimeLaw):
    """A time law whose score z(t) = (h(t) - mean) / std is standard normal, truncated to [z(t_min), z(T)]."""

    mean: float
    std: float

    def _h(self, process: Process, t: Tensor) -> Tensor:
        """The increasing function of t that is normal."""
        raise NotImplementedError

    def _inverse(self, process: Process, h: Tensor) -> Tensor:
        raise NotImplementedError

    def _slope(self, process: Process, t: Tensor) -> Tensor:
        """dh / dt."""
        raise NotImplementedError

    def _ends(self, process: Process) -> tuple[float, float, float]:
        """(side, p, q): side z runs over normal probabilities from p to q; the side keeps the digits of far tails."""
        ends = torch.tensor([process.t_min, process.T], dtype=torch.float64)
        z = (self._h(process, ends) - self.mean) / self.std
        side = -1.0 if bool(z[0] > 0) else 1.0
        p, q = torch.special.ndtr(side * z).tolist()
        if p == q:
            raise ConfigError(f"{self} has no mass on [{process.t_min:g}, {process.T:g}] of {process}: move its mean")
        return side, p, q

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        side, p, q = self._ends(process)
        z = side * torch.special.ndtri(p + (q - p) * u.double())
        return self._inverse(process, self.mean + self.std * z).clamp(process.t_min, process.T)

    def density(self, process: Process, t: Tensor) -> Tensor:
        _, p, q = self._ends(process)
        z = (self._h(process, t) - self.mean) / self.std
        return (-0.5 * z**2).exp() / (_ROOT * self.std * abs(q - p)) * self._slope(process, t)


@component
class LogitNormal(_Normal):
    """logit(t / T) ~ N(mean, std^2) (Esser et al. 2024, for flow matching).

    Args:
        mean, std: of logit(t / T); a positive mean prefers noise.
    """

    mean: float = 0.0
    std: Annotated[float, Field(gt=0)] = 1.0

    def _h(self, process: Process, t: Tensor) -> Tensor:
        return torch.logit(t / process.T)

    def _inverse(self, process: Process, h: Tensor) -> Tensor:
        # Below T itself, where the density would be 0 * inf.
        return torch.sigmoid(h).clamp(max=1.0 - 2.0**-50) * process.T

    def _slope(self, process: Process, t: Tensor) -> Tensor:
        return process.T / (t * (process.T - t))


@component
class LogNormal(_Normal):
    """log(sigma / alpha) = -lam ~ N(mean, std^2) (Karras et al. 2022: EDM's noise level is log-normal).

    Args:
        mean, std: P_mean and P_std.
    """

    mean: float = -1.2
    std: Annotated[float, Field(gt=0)] = 1.2

    def _h(self, process: Process, t: Tensor) -> Tensor:
        return -process.lam(t)

    def _inverse(self, process: Process, h: Tensor) -> Tensor:
        return process.time(-h)

    def _slope(self, process: Process, t: Tensor) -> Tensor:
        return -process.d_lam(t)
