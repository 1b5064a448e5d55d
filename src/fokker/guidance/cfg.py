"""Classifier-free guidance: one denoiser pushed away from its own unconditional self (book Sec. 8.3.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..denoiser import null_like, repeat_cond
from ..errors import ConfigError
from ..prediction import Denoiser, Prediction

__all__ = ["CFG"]


class CFG:
    """score = (1 - scale) score(x) + scale score(x | c), and so every reading (book Eq. 8.3.2-8.3.3).

    0 is unconditional, 1 conditional, above 1 emphasised (Ho & Salimans' w is scale - 1). Conditional and
    unconditional run as one batch of twice the size; at 0 and 1 only the one that counts is run. The guided field is
    not the score of any diffused law: do not use it for likelihoods.

    Args:
        denoiser: conditional, with a null condition (label -1, or a row of NaN).
        scale: finite, any sign.
    """

    def __init__(self, denoiser: Denoiser, scale: float) -> None:
        if not torch.isfinite(torch.tensor(float(scale))):
            raise ConfigError(f"CFG.scale: given {scale}, must be finite")
        self.denoiser, self.scale = denoiser, float(scale)
        self.process, self.shape, self.lam_range = denoiser.process, denoiser.shape, denoiser.lam_range
        self.reading = denoiser.reading

    def __call__(self, x: Tensor, s: float | Tensor, cond: Any = None) -> Prediction:
        if cond is None:
            raise ConfigError("CFG: no condition was given; pass cond=..., or sample the denoiser itself")
        labels = repeat_cond(cond, len(x))
        if not isinstance(labels, Tensor):
            raise ConfigError(f"CFG: the condition must be a tensor (given {type(cond).__name__})")
        labels = labels.to(x.device)
        if self.scale == 1.0:
            return self.denoiser(x, s, labels)
        if self.scale == 0.0:
            return self.denoiser(x, s, null_like(labels))
        times = torch.cat([s, s]) if isinstance(s, Tensor) and s.ndim else s
        both = self.denoiser(torch.cat([x, x]), times, torch.cat([labels, null_like(labels)]))

        def guided(value: Tensor) -> Tensor:
            with_cond, without = value.chunk(2)
            return torch.lerp(without, with_cond, self.scale)

        variance = None if both.variance is None else both.variance.chunk(2)[0]
        if both.pair is not None:
            return Prediction(self.process, x, s, x0=guided(both.pair[0]), noise=guided(both.pair[1]))
        return Prediction(self.process, x, s, other=(both.reading, guided(both.value)), variance=variance)
