r"""Denoisers whose x0 is kept in bounds: what they say of the noise follows from the state, x = alpha x0 + sigma eps.

For data with known bounds (pixels), not for latents; most useful around `CFG`, whose x0 leaves the data's range as the
scale grows (Saharia et al. 2022, Sec. 2.3). A transformed x0 is not the posterior mean of any law: no likelihoods.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..prediction import READINGS, Denoiser, Prediction

__all__ = ["Clipped", "DynamicThreshold"]


class _Bounded:
    """A denoiser with another x0: same state, so that the noise is (x - alpha x0) / sigma of the new one."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.process, self.shape, self.lam_range = denoiser.process, denoiser.shape, denoiser.lam_range
        self.reading = READINGS["x0"]

    def __call__(self, x: Tensor, s: float | Tensor, cond: Any = None) -> Prediction:
        p = self.denoiser(x, s, cond)
        return Prediction(self.process, x, s, x0=self._bounded(p.x0), variance=p.variance)

    def _bounded(self, x0: Tensor) -> Tensor:
        raise NotImplementedError


class Clipped(_Bounded):
    """x0 <- min(max(x0, low), high), entry by entry: the static thresholding of DDPM's samplers.

    Args:
        denoiser: what to bound, guided or not.
        low, high: finite, low < high; of data scaled to [-1, 1] by default.
    """

    def __init__(self, denoiser: Denoiser, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(denoiser)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ConfigError(f"Clipped: given low={low}, high={high}; must be finite, low below high")
        self.low, self.high = float(low), float(high)

    def _bounded(self, x0: Tensor) -> Tensor:
        return x0.clamp(self.low, self.high)


class DynamicThreshold(_Bounded):
    """x0 <- clip(x0, -q, q) bound / q, q = max(bound, the percentile of |x0| over the entries of that sample).

    Imagen's dynamic thresholding (Saharia et al. 2022, Sec. 2.3; book Sec. 9.5.2): an x0 within the bound is left as it
    is, one that is saturated is scaled back as a whole, so that its contrast is kept.

    Args:
        denoiser: what to bound, guided or not.
        percentile: in (0, 1], a fraction; between two entries linear, as `torch.quantile`.
        bound: of the data, greater than 0.
    """

    def __init__(self, denoiser: Denoiser, percentile: float = 0.995, bound: float = 1.0) -> None:
        super().__init__(denoiser)
        if not 0.0 < percentile <= 1.0:
            raise ConfigError(f"DynamicThreshold.percentile: given {percentile}, must lie in (0, 1], such as 0.995")
        if not (bound > 0.0 and math.isfinite(bound)):
            raise ConfigError(f"DynamicThreshold.bound: given {bound}, must be finite and greater than 0")
        self.percentile, self.bound = float(percentile), float(bound)

    def _bounded(self, x0: Tensor) -> Tensor:
        size = x0.abs().flatten(1)
        place = self.percentile * (size.shape[1] - 1)
        below = math.floor(place)
        # torch.quantile refuses large batches, and sorts; the few largest entries are all that is needed
        top = size.topk(size.shape[1] - below, dim=1).values
        quantile = torch.lerp(top[:, -1], top[:, max(top.shape[1] - 2, 0)], place - below)
        limit = quantile.clamp(min=self.bound).reshape(-1, *(1,) * (x0.ndim - 1))
        return torch.maximum(torch.minimum(x0, limit), -limit) * (self.bound / limit)
