r"""Weights of the denoising loss, each stated for the reading in which it is finite.

Errors of two readings differ by a known factor, m' - m'* = q (m - m*) (Eq. 2 of `prediction`), so a weight on one is a
weight on all (book Eq. 6.3.6, Table 6.1):

| weight             | noise              | x0             | score           | velocity                      |
|--------------------|--------------------|----------------|-----------------|-------------------------------|
| SNR, Sigma2        | 1                  | SNR            | sigma^2         | (2 sigma / g^2)^2             |
| MinSNR             | min(1, gamma/SNR)  | min(SNR,gamma) | ...             | ...                           |
| EDMWeight          | 1 + 1/(SNR d^2)    | SNR + 1/d^2    | ...             | ...                           |
| Likelihood         | g^2 / (2 sigma^2)  | -SNR'/2        | g^2 / 2         | 2 / g^2                       |
| VLB                | its counterpart on the levels of a DDPM chain                                          |
| Sigmoid, EDMMonotone | Likelihood times a w(log SNR) that does not increase with the SNR                        |
| Uncertainty        | another weight over e^u(t), and + u(t), with u learned                                     |

Kingma & Gao (2023) write every loss as 1/2 int w(log SNR) |noise error|^2 d(log SNR) over the FULL log-SNR = 2 lam. As
-d(2 lam)/dt / 2 = g^2 / (2 sigma^2), w = 1 is `Likelihood`, and the integral over time is meant: density="replace"
(with "multiply", uniform times give it too, up to the factor 1 / (T - t_min); other laws multiply w by themselves).
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..component import Array, component
from ..errors import ConfigError
from ..prediction import READINGS, Reading, edm_reading
from ..process import DiscreteVP, Process
from ..registry import resolves
from .learned import LogVariance

__all__ = [
    "SNR",
    "VLB",
    "EDMMonotone",
    "EDMWeight",
    "Likelihood",
    "MinSNR",
    "Sigma2",
    "Sigmoid",
    "Uncertainty",
    "Uniform",
    "Weight",
]


class Weight:
    """Base of weights: `value(process, t)` multiplies the squared error of `of(predict)`."""

    learns: ClassVar[bool] = False
    """Whether `learned` gives a module."""

    def of(self, predict: Reading) -> Reading:
        """The reading whose squared error is weighted; by default the noise."""
        return READINGS["noise"]

    def value(self, process: Process, t: Tensor) -> Tensor:
        """The weight at times t (B,)."""
        return torch.ones_like(t)

    def learned(self, process: Process) -> nn.Module | None:
        """A fresh module of what is learned beside the weight: t (B,) -> u (B,), for the loss w err / e^u + u."""
        return None


@component
class Uniform(Weight):
    """1 on the squared error of the objective's own `predict`."""

    def of(self, predict: Reading) -> Reading:
        return predict


@component
class SNR(Weight):
    """alpha^2 / sigma^2 on x0, which is 1 on the noise (Ho et al. 2020's L_simple; book Eq. 2.2.10)."""


@component
class Sigma2(Weight):
    """sigma^2 on the score, which is 1 on the noise (NCSN's weight; book Eq. 3.4.1)."""


@component
class MinSNR(Weight):
    """min(SNR, gamma) on x0, which is min(1, gamma / SNR) on the noise (Hang et al. 2023).

    Args:
        gamma: where the weight stops growing.
    """

    gamma: Annotated[float, Field(gt=0)] = 5.0

    def value(self, process: Process, t: Tensor) -> Tensor:
        return (self.gamma * (-2.0 * process.lam(t)).exp()).clamp(max=1.0)


@component
class EDMWeight(Weight):
    """(sigma^2 + d^2 alpha^2) / (sigma d)^2 = SNR + 1/d^2 on x0, which is 1 on EDM's F (Karras et al. 2022).

    Args:
        sigma_data: d, the data's standard deviation.
    """

    sigma_data: Annotated[float, Field(gt=0)] = 0.5

    def of(self, predict: Reading) -> Reading:
        return edm_reading(self.sigma_data)


@component
class Likelihood(Weight):
    """g^2 / 2 on the score, which is 2 / g^2 on the velocity: the path-space KL (book Eq. C.2.1; Song et al. 2021).

    With `density="replace"` the loss times the dimension bounds KL(p_0 || model) up to terms free of the model; per
    process it is 1/2 E|score error|^2 (VP, beta = 1), (1/sigma) E|noise error|^2 (EDM), ((1-t)/t) E|velocity error|^2
    (Flow) (Zheng & Lan 2026, Table 6).
    """

    def of(self, predict: Reading) -> Reading:
        return READINGS["velocity"]

    def value(self, process: Process, t: Tensor) -> Tensor:
        return 2.0 / process.g2(t)


@component
class VLB(Weight):
    """steps b_n^2 / (2 r_n^2) on x0, DDPM's L_vlb: with r = c it is steps (SNR_{n-1} - SNR_n) / 2 (book Eq. 2.2.11).

    With uniform levels the loss times the dimension is the sum over levels of the bound `likelihood.ddpm_bound`, its
    decoder's squared error included, without terms free of the model. Of the process "ddpm".

    Args:
        variance: r, "posterior" (beta-tilde) or "forward" (beta).
    """

    variance: Literal["posterior", "forward"] = "posterior"

    def of(self, predict: Reading) -> Reading:
        return READINGS["x0"]

    def value(self, process: Process, t: Tensor) -> Tensor:
        if not isinstance(process, DiscreteVP):
            raise ConfigError(f"VLB: given the process {process}, must be a chain of levels, 'ddpm'; or 'likelihood'")
        step = process.reverse(process.level(t))
        std = step.high if self.variance == "forward" else step.low
        return 0.5 * process.steps * (step.on_x0 / std) ** 2


class _OfLogSNR(Weight):
    """Kingma & Gao's w(log SNR) as a weight of the integral over time: w / 2 |d log SNR / dt| on the noise."""

    def of(self, predict: Reading) -> Reading:
        return READINGS["velocity"]  # the weight on the noise is infinite where alpha = 0

    def of_log_snr(self, log_snr: Tensor) -> Tensor:
        """w at the full log-SNR."""
        raise NotImplementedError

    def value(self, process: Process, t: Tensor) -> Tensor:
        return 2.0 * self.of_log_snr(2.0 * process.lam(t)) / process.g2(t)


@component
class Sigmoid(_OfLogSNR):
    """w = 1 / (1 + exp(log SNR - bias)) of the FULL log-SNR: `Likelihood` without the details (Kingma & Gao 2023).

    Monotone: w rises with the noise, so that the loss is an evidence bound of data with Gaussian noise added. Use it
    with density="replace" (the table above).

    Args:
        bias: where w = 1/2; 2 in the paper (64 x 64), lower for more noise in larger images.
    """

    bias: float = 2.0

    def of_log_snr(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(self.bias - log_snr)


@component
class EDMMonotone(_OfLogSNR):
    """EDM's effective weight made monotone: w(l) = max over l' >= l of N(l'; -2 mean, (2 std)^2) (e^-l' + d^2).

    EDM draws log sigma from N(mean, std^2) and weighs x0 by 1 / d^2 + 1 / sigma^2: that is this w without the maximum,
    up to a factor, on the full log-SNR l (Kingma & Gao 2023, "EDM-monotonic"; d = sigma_data). Scaled to 1 at its
    largest. Use it with density="replace" (the table above).

    Args:
        sigma_data: d.
        mean, std: of log sigma, EDM's P_mean and P_std.
    """

    sigma_data: Annotated[float, Field(gt=0)] = 0.5
    mean: float = -1.2
    std: Annotated[float, Field(gt=0)] = 1.2
    _table: ClassVar[Array]  # set per instance: knots of l, and the log of the largest w at or after each

    def __post_init__(self) -> None:
        # Left of the Gaussian's mode times e^-l all is rising, right of the Gaussian's own mode all is falling.
        knots = torch.linspace(self._low, -2.0 * self.mean, 4097, dtype=torch.float64)
        best = self._log_w(knots).flip(0).cummax(0).values.flip(0)
        object.__setattr__(self, "_table", Array(torch.stack([knots, best])))

    @property
    def _low(self) -> float:
        return -2.0 * self.mean - (2.0 * self.std) ** 2

    def _log_w(self, l: Tensor) -> Tensor:
        return -0.5 * ((l + 2.0 * self.mean) / (2.0 * self.std)) ** 2 + (torch.exp(-l) + self.sigma_data**2).log()

    def of_log_snr(self, log_snr: Tensor) -> Tensor:
        l = log_snr.double()
        table: Tensor = self._table.to(l.device)
        knots, best = table
        after = torch.searchsorted(knots, l).clamp(max=len(knots) - 1)
        later = torch.where(l <= knots[-1], best[after], -math.inf)
        log_w: Tensor = torch.maximum(self._log_w(l.clamp(min=self._low)), later) - best[0]
        return log_w.exp().to(log_snr.dtype)


@component
class Uncertainty(Weight):
    """The base weight learned on top: w err / e^u(t) + u(t), so that e^u(t) = E[w err | t] (Karras et al. 2024, EDM2).

    Every time then has the same part in the gradient. The module u is `Denoising.learned(process)["weight"]`; its
    parameters are trained with the network's.

    Args:
        base: w, a weight that learns nothing itself.
        features: cosines of log(sigma / alpha) / 4 that u is made of.
    """

    base: Annotated[Weight, resolves("weight")] = Uniform()
    features: Annotated[int, Field(ge=1)] = 128
    learns: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.base.learns:
            raise ConfigError(f"Uncertainty.base: given {self.base}, must be a weight that learns nothing, as 'edm'")

    def of(self, predict: Reading) -> Reading:
        return self.base.of(predict)

    def value(self, process: Process, t: Tensor) -> Tensor:
        return self.base.value(process, t)

    def learned(self, process: Process) -> nn.Module:
        return LogVariance(process, self.features)
