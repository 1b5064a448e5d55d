"""Laws of the training time, by quantile, so that any of them can be stratified or importance-sampled.

All are laws on [t_min, T] (truncated there), of `t = quantile(u)` with u uniform on (0, 1).
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ..component import component
from ..errors import ConfigError
from ..process import DiscreteVP, Process
from ..registry import resolves
from .learned import AdaptiveLaw, LearnedLaw, StepLaw

__all__ = ["Adaptive", "LearnedTimes", "Levels", "LogNormal", "LogitNormal", "TimeLaw", "UniformTimes"]

_ROOT = math.sqrt(2.0 * math.pi)


class TimeLaw:
    """Base of time laws."""

    learns: ClassVar[bool] = False
    """Whether `learned` gives a module."""

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        """The time below which a share u (B,) of the law lies; float64."""
        raise NotImplementedError

    def density(self, process: Process, t: Tensor) -> Tensor:
        """The law's density at t (B,)."""
        raise NotImplementedError

    def learned(self, process: Process) -> StepLaw | None:
        """A fresh module that bends this law, if it is one that is bent: u (B,) -> (v, q(v)), t = quantile(v)."""
        return None


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


@component
class Levels(TimeLaw):
    """Uniform on L noise levels sigma / alpha in geometric progression, from those of t_min to T (NCSN).

    With `Sigma2` on a process with alpha = 1 the loss is 2 / (L D) sum_l sigma_l^2 L_DSM(sigma_l), the multi-level loss
    of Song & Ermon 2019 (book Eq. 3.4.1). The grid "lam" visits the same levels in sampling. Where alpha(T) = 0 the
    noisiest level is that of t_max.

    Args:
        n: L, 2 or more.
    """

    n: Annotated[int, Field(ge=2)] = 10

    def levels(self, process: Process) -> Tensor:
        """The times of the levels (L,), increasing, float64."""
        ends = process.lam(torch.tensor([process.t_min, min(process.T, process.t_max)], dtype=torch.float64))
        share = torch.linspace(0.0, 1.0, self.n, dtype=torch.float64)
        return process.time(torch.lerp(ends[0], ends[1], share)).clamp(process.t_min, process.T)

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        place = (u.double() * self.n).long().clamp(max=self.n - 1)
        return self.levels(process).to(u.device)[place]

    def density(self, process: Process, t: Tensor) -> Tensor:
        raise ConfigError("times: levels are discrete and have no density: use density='multiply'")


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


class _Bent(TimeLaw):
    """A law that a module bends: quantile and density are the base's, for they define the loss (see `learned`)."""

    base: TimeLaw
    learns: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.base.learns:
            raise ConfigError(f"{type(self).__name__}.base: given {self.base}, must be a law that stays, as 'uniform'")

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        return self.base.quantile(process, u)

    def density(self, process: Process, t: Tensor) -> Tensor:
        return self.base.density(process, t)


@component
class Adaptive(_Bent):
    """Importance sampling: p(t) = p_base(t) q(t), q proportional to sqrt(E[(w err)^2 | t]), which varies least.

    The loss and its minimiser are the base law's: every draw is divided by q. (With density="replace", q is
    proportional to the root of E[(w err / p_base)^2 | t], so p to that of E[(w err)^2 | t].) The module is
    `Denoising.learned(process)["times"]`; the trainer calls `Denoising.observe` and `refresh` at every step.

    Args:
        base: the law that is bent; with density="multiply" part of the weight.
        bins: equal shares of the base law on which q is constant.
        refresh: steps between renewals of q.
        share: of the base law in p, so that no draw weighs more than 1 / share.
        memory: what a renewal leaves of the older statistics.
    """

    base: Annotated[TimeLaw, resolves("times")] = UniformTimes()
    bins: Annotated[int, Field(ge=2)] = 64
    refresh: Annotated[int, Field(ge=1)] = 100
    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    memory: Annotated[float, Field(ge=0, lt=1)] = 0.9

    def learned(self, process: Process) -> AdaptiveLaw:
        return AdaptiveLaw(self.bins, self.share, self.refresh, self.memory)


@component
class LearnedTimes(_Bent):
    """A learned noise schedule: p(t) = p_base(t) q(t), q trained with the network to make the loss vary least.

    As in VDM (Kingma et al. 2021) the schedule leaves the loss as it is and lowers its variance; here the schedule is
    the law of times. The loss's value has no part of q's training in it, only its gradient (`learned.surrogate`).

    Args:
        base, bins: as in `Adaptive`.
        share: of the base law in p.
    """

    base: Annotated[TimeLaw, resolves("times")] = UniformTimes()
    bins: Annotated[int, Field(ge=2)] = 64
    share: Annotated[float, Field(ge=0, lt=1)] = 0.05

    def learned(self, process: Process) -> LearnedLaw:
        return LearnedLaw(self.bins, self.share)
