"""Processes in closed form. Every formula is written so that neither end of the clock loses digits."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..component import component
from ..errors import ConfigError
from .base import Process, Time, as_time

__all__ = ["EDM", "OU", "VE", "VP", "Cosine", "Flow", "SubVP", "Trig"]

Positive = Annotated[float, Field(gt=0)]
Small = Annotated[float, Field(gt=0, lt=0.5)]


def _softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) at every x (torch's softplus overflows, or rounds beyond its threshold)."""
    return torch.logaddexp(x, torch.zeros_like(x))


class _BetaClock(Process):
    """B(t) = beta_min t + (beta_max - beta_min) t^2 / 2, shared by VP and SubVP."""

    beta_min: float
    beta_max: float

    def __post_init__(self) -> None:
        if self.beta_max < self.beta_min:
            name = type(self).__name__
            raise ConfigError(f"{name}.beta_max: given {self.beta_max}, must be at least beta_min={self.beta_min}")

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def _integral(self, t: Tensor) -> Tensor:
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def _time_of_integral(self, B: Tensor) -> Tensor:
        slope = self.beta_max - self.beta_min
        return 2.0 * B / (self.beta_min + (self.beta_min**2 + 2.0 * slope * B).sqrt())

    def alpha(self, t: Time) -> Tensor:
        return (-0.5 * self._integral(as_time(t))).exp()

    def d_alpha(self, t: Time) -> Tensor:
        t = as_time(t)
        return -0.5 * self._beta(t) * self.alpha(t)

    def f(self, t: Time) -> Tensor:
        return -0.5 * self._beta(as_time(t))


@component
class VP(_BetaClock):
    """Variance preserving with a linear rate: alpha = e^{-B/2}, sigma = sqrt(1 - e^{-B}), t in [0, 1].

    B(t) = beta_min t + (beta_max - beta_min) t^2 / 2; prior N(0, I). Source: book Sec. 4.3.2; constants of Song et
    al. 2021 (the continuous limit of Ho et al. 2020).

    Args:
        beta_min, beta_max: the rate at 0 and at 1, > 0.
        t_min: where samplers stop if 0 itself is singular for them.
    """

    beta_min: Positive = 0.1
    beta_max: Positive = 20.0
    t_min: Small = 1e-3
    unit_prior = True

    def sigma(self, t: Time) -> Tensor:
        return (-torch.expm1(-self._integral(as_time(t)))).sqrt()

    def d_sigma(self, t: Time) -> Tensor:
        t = as_time(t)
        return 0.5 * self._beta(t) * (-self._integral(t)).exp() / self.sigma(t)

    def g2(self, t: Time) -> Tensor:
        return self._beta(as_time(t))

    def lam(self, t: Time) -> Tensor:
        B = self._integral(as_time(t))
        return -0.5 * (B + (-torch.expm1(-B)).log())

    def time(self, lam: Time) -> Tensor:
        return self._time_of_integral(_softplus(-2.0 * as_time(lam)))


@component
class SubVP(_BetaClock):
    """Sub-VP: alpha = e^{-B/2}, sigma = 1 - e^{-B}; g^2 = beta (1 - e^{-2B}); prior N(0, I).

    Source: Song et al. 2021 (the third type that the book counts and omits); B as in VP.
    """

    beta_min: Positive = 0.1
    beta_max: Positive = 20.0
    t_min: Small = 1e-3
    unit_prior = True

    def sigma(self, t: Time) -> Tensor:
        return -torch.expm1(-self._integral(as_time(t)))

    def d_sigma(self, t: Time) -> Tensor:
        t = as_time(t)
        return self._beta(t) * (-self._integral(t)).exp()

    def g2(self, t: Time) -> Tensor:
        t = as_time(t)
        return self._beta(t) * -torch.expm1(-2.0 * self._integral(t))

    def lam(self, t: Time) -> Tensor:
        B = self._integral(as_time(t))
        return -0.5 * B - (-torch.expm1(-B)).log()

    def time(self, lam: Time) -> Tensor:
        lam = as_time(lam)
        # With E = e^lam, alpha solves E alpha^2 + alpha - E = 0; log alpha is taken from the side that keeps digits.
        E = lam.exp()
        root = torch.hypot(torch.ones_like(E), 2.0 * E)
        rest = (1.0 + 1.0 / (root + 2.0 * E)) / (1.0 + root)  # 1 - alpha
        small = lam + math.log(2.0) - torch.log1p(root)
        log_alpha = torch.where(rest < 0.5, torch.log1p(-rest.clamp(max=0.5)), small)
        return self._time_of_integral(-2.0 * log_alpha)


@component
class VE(Process):
    """Variance exploding, geometric: alpha = 1, sigma^2 = sigma_min^2 (r^{2t} - 1), r = sigma_max / sigma_min.

    Data is at t = 0 and g^2 = 2 sigma_min^2 r^{2t} log r. `published=True` keeps the literature's sigma = sigma_min
    r^t, which is sigma_min and not 0 at t = 0. Prior N(0, sigma(1)^2 I). Source: book Sec. 4.3.1 (NCSN).
    """

    sigma_min: Positive = 0.01
    sigma_max: Positive = 50.0
    published: bool = False
    t_min: Small = 1e-5

    def __post_init__(self) -> None:
        if self.sigma_max <= self.sigma_min:
            name = type(self).__name__
            raise ConfigError(f"{name}.sigma_max: given {self.sigma_max}, must exceed sigma_min={self.sigma_min}")

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Time) -> Tensor:
        return torch.ones_like(as_time(t))

    def d_alpha(self, t: Time) -> Tensor:
        return torch.zeros_like(as_time(t))

    def sigma(self, t: Time) -> Tensor:
        t = as_time(t)
        if self.published:
            return self.sigma_min * (self._log_ratio * t).exp()
        return self.sigma_min * torch.expm1(2.0 * self._log_ratio * t).sqrt()

    def d_sigma(self, t: Time) -> Tensor:
        return 0.5 * self.g2(t) / self.sigma(t)

    def g2(self, t: Time) -> Tensor:
        return 2.0 * self.sigma_min**2 * self._log_ratio * (2.0 * self._log_ratio * as_time(t)).exp()

    def lam(self, t: Time) -> Tensor:
        return -self.sigma(t).log()

    def time(self, lam: Time) -> Tensor:
        lam = as_time(lam)
        if self.published:
            return (-lam - math.log(self.sigma_min)) / self._log_ratio
        return _softplus(-2.0 * (lam + math.log(self.sigma_min))) / (2.0 * self._log_ratio)


@component
class EDM(Process):
    """alpha = 1, sigma = t on [0, sigma_max]: the clock is the noise level. Prior N(0, sigma_max^2 I).

    Source: Karras et al. 2022; book Sec. D.6.2. `t_min` is sigma_min.
    """

    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0

    def __post_init__(self) -> None:
        if self.sigma_max <= self.sigma_min:
            name = type(self).__name__
            raise ConfigError(f"{name}.sigma_max: given {self.sigma_max}, must exceed sigma_min={self.sigma_min}")

    @property
    def T(self) -> float:  # noqa: N802
        return self.sigma_max

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return self.sigma_min

    def alpha(self, t: Time) -> Tensor:
        return torch.ones_like(as_time(t))

    def d_alpha(self, t: Time) -> Tensor:
        return torch.zeros_like(as_time(t))

    def sigma(self, t: Time) -> Tensor:
        return as_time(t)

    def d_sigma(self, t: Time) -> Tensor:
        return torch.ones_like(as_time(t))

    def g2(self, t: Time) -> Tensor:
        return 2.0 * as_time(t)

    def lam(self, t: Time) -> Tensor:
        return -as_time(t).log()

    def time(self, lam: Time) -> Tensor:
        return (-as_time(lam)).exp()


@component
class Flow(Process):
    """The canonical linear path: alpha = 1 - t, sigma = t on [0, 1]; prior N(0, I).

    Flow matching and rectified flow run the reversed clock 1 - t (see `clocks`). Source: book Sec. 4.4.1, 5.4.
    """

    t_min: Small = 1e-3

    def alpha(self, t: Time) -> Tensor:
        return 1.0 - as_time(t)

    def d_alpha(self, t: Time) -> Tensor:
        return -torch.ones_like(as_time(t))

    def sigma(self, t: Time) -> Tensor:
        return as_time(t)

    def d_sigma(self, t: Time) -> Tensor:
        return torch.ones_like(as_time(t))

    def g2(self, t: Time) -> Tensor:
        t = as_time(t)
        return 2.0 * t / (1.0 - t)

    def lam(self, t: Time) -> Tensor:
        t = as_time(t)
        return torch.log1p(-t) - t.log()

    def time(self, lam: Time) -> Tensor:
        return torch.sigmoid(-as_time(lam))


@component
class Trig(Process):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2) on [0, 1]; prior N(0, I). Source: book Table 5.2."""

    t_min: Small = 1e-3
    unit_prior = True

    def alpha(self, t: Time) -> Tensor:
        return (0.5 * math.pi * (1.0 - as_time(t))).sin()

    def d_alpha(self, t: Time) -> Tensor:
        return -0.5 * math.pi * self.sigma(t)

    def sigma(self, t: Time) -> Tensor:
        return (0.5 * math.pi * as_time(t)).sin()

    def d_sigma(self, t: Time) -> Tensor:
        return 0.5 * math.pi * self.alpha(t)

    def g2(self, t: Time) -> Tensor:
        return math.pi * self.sigma(t) / self.alpha(t)

    def time(self, lam: Time) -> Tensor:
        return (-as_time(lam)).exp().atan() * (2.0 / math.pi)


@component
class Cosine(Process):
    """alpha = cos(phi) / cos(phi_0), phi = (t + s)/(1 + s) pi/2, sigma = sqrt(1 - alpha^2); prior N(0, I).

    sigma^2 = sin(phi - phi_0) sin(phi + phi_0) / cos^2(phi_0). Source: Nichol & Dhariwal 2021.
    """

    s: Annotated[float, Field(gt=0, lt=1)] = 0.008
    t_min: Small = 1e-3
    unit_prior = True

    @property
    def _rate(self) -> float:
        return 0.5 * math.pi / (1.0 + self.s)

    def alpha(self, t: Time) -> Tensor:
        return (self._rate * (1.0 - as_time(t))).sin() / math.cos(self._rate * self.s)

    def d_alpha(self, t: Time) -> Tensor:
        return -self._rate * (self._rate * (as_time(t) + self.s)).sin() / math.cos(self._rate * self.s)

    def sigma(self, t: Time) -> Tensor:
        t = as_time(t)
        product = (self._rate * t).sin() * (self._rate * (t + 2.0 * self.s)).sin()
        return product.sqrt() / math.cos(self._rate * self.s)

    def d_sigma(self, t: Time) -> Tensor:
        t = as_time(t)
        return -self.alpha(t) * self.d_alpha(t) / self.sigma(t)

    def g2(self, t: Time) -> Tensor:
        return -2.0 * self.f(t)  # alpha^2 + sigma^2 = 1

    def time(self, lam: Time) -> Tensor:
        lam = as_time(lam)
        cosine, sine = math.cos(self._rate * self.s), math.sin(self._rate * self.s)
        up = (sine**2 + cosine**2 * torch.sigmoid(-2.0 * lam)).sqrt()
        phi = torch.atan2(up, cosine * torch.sigmoid(2.0 * lam).sqrt())
        return (phi / self._rate - self.s).clamp(min=0.0)


@component
class OU(Process):
    """Ornstein-Uhlenbeck dx = -x dt + sqrt(2) dw: alpha = e^{-t}, sigma = sqrt(1 - e^{-2t}) on [0, T]; prior N(0, I).

    Source: book Sec. 7.5.1; the mathematical overview, Sec. 4.1.

    Args:
        horizon: the final time T; e^{-T} of the data is still there.
    """

    horizon: Positive = 5.0
    t_min: Small = 1e-3
    unit_prior = True

    @property
    def T(self) -> float:  # noqa: N802
        return self.horizon

    def alpha(self, t: Time) -> Tensor:
        return (-as_time(t)).exp()

    def d_alpha(self, t: Time) -> Tensor:
        return -self.alpha(t)

    def sigma(self, t: Time) -> Tensor:
        return (-torch.expm1(-2.0 * as_time(t))).sqrt()

    def d_sigma(self, t: Time) -> Tensor:
        t = as_time(t)
        return (-2.0 * t).exp() / self.sigma(t)

    def g2(self, t: Time) -> Tensor:
        return torch.full_like(as_time(t), 2.0)

    def f(self, t: Time) -> Tensor:
        return torch.full_like(as_time(t), -1.0)

    def lam(self, t: Time) -> Tensor:
        t = as_time(t)
        return -t - 0.5 * (-torch.expm1(-2.0 * t)).log()

    def time(self, lam: Time) -> Tensor:
        return 0.5 * _softplus(-2.0 * as_time(lam))
