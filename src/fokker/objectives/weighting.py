r"""Weights of the denoising loss, each stated for the reading in which it is finite.

Errors of two readings differ by a known factor, m' - m'* = q (m - m*) (Eq. 2 of `prediction`), so a weight on one is a
weight on all (book Eq. 6.3.6, Table 6.1):

| weight             | noise              | x0             | score           | velocity                      |
|--------------------|--------------------|----------------|-----------------|-------------------------------|
| SNR, Sigma2        | 1                  | SNR            | sigma^2         | (2 sigma / g^2)^2             |
| MinSNR             | min(1, gamma/SNR)  | min(SNR,gamma) | ...             | ...                           |
| EDMWeight          | 1 + 1/(SNR d^2)    | SNR + 1/d^2    | ...             | ...                           |
| Likelihood         | g^2 / (2 sigma^2)  | -SNR'/2        | g^2 / 2         | 2 / g^2                       |
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..component import component
from ..prediction import READINGS, Reading, edm_reading
from ..process import Process

__all__ = ["SNR", "EDMWeight", "Likelihood", "MinSNR", "Sigma2", "Uniform", "Weight"]


class Weight:
    """Base of weights: `value(process, t)` multiplies the squared error of `of(predict)`."""

    def of(self, predict: Reading) -> Reading:
        """The reading whose squared error is weighted; by default the noise."""
        return READINGS["noise"]

    def value(self, process: Process, t: Tensor) -> Tensor:
        """The weight at times t (B,)."""
        return torch.ones_like(t)


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
