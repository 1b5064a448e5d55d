"""Processes from tables, given coefficients or given functions: DDPM's chain, a linear SDE, a schedule of one's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from ..component import Array, component
from ..errors import ConfigError, closest
from .base import Process, Time, as_time, bisect_time

__all__ = ["DDPM", "Custom", "DiscreteVP", "Linear", "Reverse"]

Positive = Annotated[float, Field(gt=0)]
Small = Annotated[float, Field(gt=0, lt=0.5)]
Function = Callable[[Tensor], Tensor]
Beta = Annotated[float, Field(gt=0, lt=1)] | None


def _known(betas: Any) -> Any:
    names = ("linear", "scaled_linear", "cosine", "sigmoid")
    if isinstance(betas, str) and betas not in names:
        raise ConfigError(f"DiscreteVP.betas: given {betas!r}, {closest(betas, names)}, or one number per level")
    return betas


_NAMED = BeforeValidator(_known)


class Reverse(NamedTuple):
    """p(x_{n-1} | x_n, x_0): its coefficient on x_0, its standard deviation `low`, and that of x_n | x_{n-1}, `high`.

    The reverse step of data of any spread has a standard deviation between the two (Ho et al. 2020).
    """

    on_x0: Tensor
    low: Tensor
    high: Tensor


@component
class DiscreteVP(Process):
    """DDPM's chain of `steps` levels as a process: x_n = sqrt(1 - beta_n) x_{n-1} + sqrt(beta_n) eps, n = 1..steps.

    Level n (0-based index n - 1) is the time t = n / steps; log alpha(t) = 1/2 sum_{k <= n} log(1 - beta_k) there and
    linear in between, so every continuous solver applies. beta is a variance (the book writes its square root).
    Sources: Ho et al. 2020 ("linear"), Rombach et al. 2022 ("scaled_linear"), Nichol & Dhariwal 2021 ("cosine"),
    Xu et al. 2022 ("sigmoid"), Lin et al. 2023 (zero terminal SNR).

    Args:
        steps: the number of levels.
        betas: a named schedule, or `steps` numbers in (0, 1).
        beta_start, beta_end: the named schedule's ends, taken as given; by default the published ones for 1000
            levels, scaled by 1000 / steps and clipped to 0.999 so that alpha(T) does not depend on `steps`.
        zero_terminal_snr: shift and scale alpha so that alpha(T) = 0 and alpha(1/steps) is kept.
    """

    steps: Annotated[int, Field(ge=2)] = 1000
    betas: Annotated[Literal["linear", "scaled_linear", "cosine", "sigmoid"] | Array, _NAMED] = "linear"
    zero_terminal_snr: bool = False
    beta_start: Beta = None
    beta_end: Beta = None
    unit_prior = True
    _log_alpha: ClassVar[Array]  # set per instance: log alpha at the levels 0..steps
    _ends_at_zero: ClassVar[bool]

    def __post_init__(self) -> None:
        bare = isinstance(self.betas, Array) or self.betas == "cosine"
        if bare and (self.beta_start, self.beta_end) != (None, None):
            raise ConfigError(
                "DiscreteVP.beta_start and beta_end belong to the named linear, scaled_linear and sigmoid"
            )
        betas = self._given_betas()
        if betas.shape != (self.steps,):
            raise ConfigError(f"DiscreteVP.betas: given shape {betas.shape}, must be ({self.steps},), one per level")
        if not ((betas > 0) & (betas < 1)).all():
            raise ConfigError("DiscreteVP.betas: every beta must lie strictly between 0 and 1")
        log_alpha = np.concatenate([[0.0], 0.5 * np.cumsum(np.log1p(-betas))])
        if self.zero_terminal_snr:
            alpha = np.exp(log_alpha)
            with np.errstate(divide="ignore"):
                log_alpha[1:] = np.log((alpha[1:] - alpha[-1]) * alpha[1] / (alpha[1] - alpha[-1]))
        # The last slope of a chain that ends at alpha = 0 is infinite: there alpha, not log alpha, is linear.
        object.__setattr__(self, "_ends_at_zero", bool(np.isinf(log_alpha[-1])))
        object.__setattr__(self, "_log_alpha", Array(log_alpha))

    def _given_betas(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        if isinstance(self.betas, Array):
            given: np.ndarray[Any, np.dtype[np.float64]] = self.betas.value.numpy()
            return given
        betas: np.ndarray[Any, np.dtype[np.float64]]
        n, published = self.steps, self.beta_start is None and self.beta_end is None
        if self.betas == "cosine":
            cosine = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = np.minimum(1.0 - cosine[1:] / cosine[:-1], 0.999)
            return betas
        default = (0.00085, 0.012) if self.betas == "scaled_linear" else (1e-4, 0.02)
        low = default[0] if self.beta_start is None else self.beta_start
        high = default[1] if self.beta_end is None else self.beta_end
        if self.betas == "linear":
            betas = np.linspace(low, high, n)
        elif self.betas == "scaled_linear":
            betas = np.linspace(low**0.5, high**0.5, n) ** 2
        else:
            betas = low + (high - low) / (1.0 + np.exp(-np.linspace(-6.0, 6.0, n)))
        betas = np.minimum(betas * 1000.0 / n, 0.999) if published else betas
        return betas

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return 1.0 / self.steps

    def level(self, t: Time) -> Tensor:
        """n = t steps in float64: an integer where it is one up to rounding."""
        n = as_time(t).double() * self.steps
        return torch.where((n - n.round()).abs() < 1e-3, n.round(), n)

    def reverse(self, n: Tensor, first: int = 1) -> Reverse:
        """The reverse step from level n to n - 1, and from `first` to the data itself; float64.

        There x_0 given itself is a point (book erratum E7): `low` is that of the level above, as in DDPM's decoder.

        Args:
            n: levels in [first, steps], any shape.
            first: the level that is decoded, below `steps`.
        """
        n = n.double()
        to = torch.where(n < first + 1, 0.0, n - 1.0)
        above = n.clamp(min=first + 1)
        low = self.bridge(above / self.steps, (above - 1.0) / self.steps).std
        on_x0, high = (
            self.bridge(n / self.steps, to / self.steps).on_x0,
            self.transition(to / self.steps, n / self.steps).std,
        )
        return Reverse(on_x0, low, high)

    def _locate(self, t: Time) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(t, log alpha at the knot below, log alpha at the knot above, how far in between), in float64."""
        t = as_time(t)
        table: Tensor = self._log_alpha.to(t.device)
        place = t.double() * self.steps
        knot = place.floor().clamp(0, self.steps - 1).long()
        return t, table[knot], table[knot + 1], place - knot

    def _log(self, t: Time) -> Tensor:
        _, low, high, between = self._locate(t)
        if self._ends_at_zero:
            last = low + torch.log1p(-between)
            return torch.where(torch.isinf(high), last, low + between * (high - low).nan_to_num(neginf=0.0))
        return low + between * (high - low)

    def alpha(self, t: Time) -> Tensor:
        return self._log(t).exp().to(as_time(t).dtype)

    def sigma(self, t: Time) -> Tensor:
        return torch.expm1(2.0 * self._log(t)).abs().sqrt().to(as_time(t).dtype)  # abs: -expm1 would give -0 at 0

    def lam(self, t: Time) -> Tensor:
        log_alpha = self._log(t)
        return (log_alpha - 0.5 * (-torch.expm1(2.0 * log_alpha)).log()).to(as_time(t).dtype)

    def f(self, t: Time) -> Tensor:
        t, low, high, between = self._locate(t)
        slope = torch.where(torch.isinf(high), -1.0 / (1.0 - between), high - low)
        return (slope * self.steps).to(t.dtype)

    def g2(self, t: Time) -> Tensor:
        return -2.0 * self.f(t)

    def d_alpha(self, t: Time) -> Tensor:
        t, low, high, between = self._locate(t)
        inside = (low + between * (high - low)).exp() * (high - low)
        return (torch.where(torch.isinf(high), -low.exp(), inside) * self.steps).to(t.dtype)

    def d_sigma(self, t: Time) -> Tensor:
        return -self.alpha(t) * self.d_alpha(t) / self.sigma(t)

    def time(self, lam: Time) -> Tensor:
        lam = as_time(lam)
        log_alpha = -0.5 * torch.logaddexp(-2.0 * lam.double(), torch.zeros_like(lam, dtype=torch.float64))
        table: Tensor = self._log_alpha.to(lam.device)
        knot = (torch.searchsorted(-table, -log_alpha, right=True) - 1).clamp(0, self.steps - 1)
        low, high = table[knot], table[knot + 1]
        between = torch.where(torch.isinf(high), -torch.expm1(log_alpha - low), (log_alpha - low) / (high - low))
        return ((knot + between.clamp(0.0, 1.0)) / self.steps).to(lam.dtype)


DDPM = DiscreteVP

_NODES, _WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(16))


@component
class Linear(Process):
    """The process of a linear SDE dx = f(t) x dt + g(t) dw with given coefficients, its moments by quadrature.

    alpha = exp(int_0^t f), sigma^2 = alpha^2 J, J = int_0^t g^2 / alpha^2, so lam = -1/2 log J (book Eq. 4.3.3-4.3.4).
    Gauss-Legendre of 16 nodes on 256 cells, in float64; f and g^2 must be smooth and finite on [0, T].

    Args:
        drift: f, a function of a tensor of times.
        diffusion: g, positive on (0, T].
        horizon: T.
    """

    drift: Function
    diffusion: Function
    horizon: Positive = 1.0
    t_min: Small = 1e-3
    _tables: ClassVar[tuple[Array, Array, Array]]  # set per instance: cell edges, log alpha and J at them

    def __post_init__(self) -> None:
        edges = torch.linspace(0.0, self.horizon, 257, dtype=torch.float64)
        zero = torch.zeros(256, dtype=torch.float64)
        log_alpha, J = self._advance(edges[:-1], edges[1:], zero)
        knots = torch.cat([zero[:1], log_alpha.cumsum(0)])
        total = torch.cat([zero[:1], (J * (-2.0 * knots[:-1]).exp()).cumsum(0)])
        given = torch.stack([self._call(self.drift, edges), self._call(self.diffusion, edges)])
        if not bool(torch.isfinite(total).all() & torch.isfinite(given).all()):
            raise ConfigError("Linear: f and g must be finite on [0, T]; for a singular end give Custom(alpha, sigma)")
        object.__setattr__(self, "_tables", (Array(edges), Array(knots), Array(total)))
        self._check_decreasing()

    def _advance(self, low: Tensor, high: Tensor, log_alpha: Tensor) -> tuple[Tensor, Tensor]:
        """int_low^high f, and int_low^high g^2 / alpha^2 where alpha(low) = e^{log_alpha}."""
        nodes, weights = _NODES.to(low.device), _WEIGHTS.to(low.device)
        half = 0.5 * (high - low)[..., None]
        u = low[..., None] + half * (1.0 + nodes)
        inner = 0.5 * (u - low[..., None])[..., None]
        v = low[..., None, None] + inner * (1.0 + nodes)
        log_u = log_alpha[..., None] + (inner * weights * self._call(self.drift, v)).sum(-1)
        rate = self._call(self.diffusion, u) ** 2 * (-2.0 * log_u).exp()
        return (half * weights * self._call(self.drift, u)).sum(-1), (half * weights * rate).sum(-1)

    @staticmethod
    def _call(function: Function, t: Tensor) -> Tensor:
        return torch.as_tensor(function(t), dtype=t.dtype, device=t.device).expand(t.shape)

    def _moments(self, t: Time) -> tuple[Tensor, Tensor]:
        """log alpha and J at t, in float64."""
        u = as_time(t).double()
        edges, knots, total = (table.to(u.device) for table in self._tables)
        cell = (torch.searchsorted(edges, u, right=True) - 1).clamp(0, 255)
        start = knots[cell]
        log_alpha, J = self._advance(edges[cell], u, start)
        return start + log_alpha, total[cell] + J

    @property
    def T(self) -> float:  # noqa: N802
        return self.horizon

    def alpha(self, t: Time) -> Tensor:
        return self._moments(t)[0].exp().to(as_time(t).dtype)

    def sigma(self, t: Time) -> Tensor:
        log_alpha, J = self._moments(t)
        return (log_alpha.exp() * J.sqrt()).to(as_time(t).dtype)

    def lam(self, t: Time) -> Tensor:
        return (-0.5 * self._moments(t)[1].log()).to(as_time(t).dtype)

    def f(self, t: Time) -> Tensor:
        return self._call(self.drift, as_time(t))

    def g2(self, t: Time) -> Tensor:
        return self._call(self.diffusion, as_time(t)) ** 2

    def d_alpha(self, t: Time) -> Tensor:
        return self.f(t) * self.alpha(t)

    def d_sigma(self, t: Time) -> Tensor:
        t = as_time(t)
        sigma, g2 = self.sigma(t), self.g2(t)
        # At t = 0 the slope is infinite like g / (2 sqrt(t)), unless g starts at 0 too: then it is lim sigma / t.
        near = self.sigma(torch.full_like(t, 1e-7 * self.horizon)) / (1e-7 * self.horizon)
        start = torch.where(g2 > 0, torch.full_like(t, math.inf), near)
        inside = 0.5 * g2 / torch.where(sigma > 0, sigma, 1.0) + self.f(t) * sigma
        return torch.where(sigma > 0, inside, start)

    def time(self, lam: Time) -> Tensor:
        lam = as_time(lam)
        return bisect_time(self, lam.double(), 0.0, self.horizon).to(lam.dtype)


@component
class Custom(Process):
    """A process from its own alpha(t) and sigma(t); derivatives by forward-mode autodiff, time(lam) by bisection.

    Args:
        alpha_of, sigma_of: functions of a tensor of times in [0, T], differentiable; lam must decrease.
        horizon: T.
        unit_prior: True if data of unit variance keeps unit variance, so that the prior is N(0, I).
    """

    alpha_of: Function
    sigma_of: Function
    horizon: Positive = 1.0
    unit_prior: bool = False
    t_min: Small = 1e-3

    def __post_init__(self) -> None:
        self._check_decreasing()

    @property
    def T(self) -> float:  # noqa: N802
        return self.horizon

    @staticmethod
    def _value(function: Function, t: Tensor) -> Tensor:
        return torch.as_tensor(function(t), dtype=t.dtype, device=t.device).expand(t.shape)

    def _derivative(self, function: Function, t: Tensor) -> Tensor:
        result = torch.func.jvp(lambda u: self._value(function, u), (t,), (torch.ones_like(t),))
        slope: Tensor = result[1]
        return slope

    def alpha(self, t: Time) -> Tensor:
        return self._value(self.alpha_of, as_time(t))

    def sigma(self, t: Time) -> Tensor:
        return self._value(self.sigma_of, as_time(t))

    def d_alpha(self, t: Time) -> Tensor:
        return self._derivative(self.alpha_of, as_time(t))

    def d_sigma(self, t: Time) -> Tensor:
        return self._derivative(self.sigma_of, as_time(t))

    def time(self, lam: Time) -> Tensor:
        lam = as_time(lam)
        return bisect_time(self, lam.double(), 0.0, self.horizon).to(lam.dtype)
