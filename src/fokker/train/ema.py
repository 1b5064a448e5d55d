r"""Averages of the weights along training, several at once, and averages made afterwards from stored ones.

With theta_k the weights after k = 1, 2, ... steps, every average is shadow <- shadow + rate (theta_k - shadow).
`Power`'s rate, 1 - (1 - 1/k)^(g + 1), makes the shadow after s steps exactly

    (1)  int_0^s p_{s,g}(x) theta_ceil(x) dx,   p_{s,g}(x) = (g + 1) x^g / s^(g + 1),    (EDM2, Eqs. 1 and 2)

whose relative width, the profile's standard deviation over s, is (EDM2, Alg. 2)

    (2)  (g + 1)^(1/2) (g + 2)^(-1) (g + 3)^(-1/2).

Any average of such form is nearly a sum of stored ones: the sum whose profile is nearest in L2, from the products

    (3)  int p_{s,g} p_{t,h} dx = (g + 1) (h + 1) / (g + h + 1) min(s, t)^(g + h + 1) / (s^(g + 1) t^(h + 1)).

Source: Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models" (EDM2), Sec. 3.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from ..component import component
from ..errors import ConfigError, FileError
from ..files import read_tensors, write_tensors

__all__ = [
    "EMA",
    "Averages",
    "Constant",
    "Power",
    "Reconstruction",
    "Snapshot",
    "fit_error",
    "gamma_of",
    "read_snapshots",
    "reconstruct",
    "solve",
    "write_snapshot",
]

M = TypeVar("M", bound=nn.Module)
FORMAT = "fokker-snapshot-1"
WIDEST = 0.28  # (2) is 12^(-1/2) = 0.2887 at g = 0, a plain mean


@component
class Constant:
    """One average of rate 1 - d, d = min(decay, (1 + step) / (10 + step)); the ramp lets the first steps be forgotten.

    Args:
        decay: d in the long run.
    """

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999

    @property
    def names(self) -> tuple[str, ...]:
        """What each average is called."""
        return (f"{self.decay:g}",)

    def rates(self, step: int) -> tuple[float, ...]:
        """The rate of each average after 0-based step `step`."""
        return (1.0 - min(self.decay, (1.0 + step) / (10.0 + step)),)


@component
class Power:
    """Averages over power functions of the step, one for each width (EDM2): no choice of a decay before training.

    Args:
        widths: relative widths sigma_rel, each in (0, 0.28]; EDM2 keeps 0.05 and 0.10. An average of width w leans on
            about the last 2 w of all steps.
    """

    widths: Annotated[tuple[Annotated[float, Field(gt=0, le=WIDEST)], ...], Field(min_length=1)] = (0.05, 0.10)

    def __post_init__(self) -> None:
        if len(set(self.names)) < len(self.widths):
            raise ConfigError(f"Power.widths: given {self.widths}, must differ in the third decimal")

    @property
    def names(self) -> tuple[str, ...]:
        """What each average is called."""
        return tuple(f"{width:.3f}" for width in self.widths)

    def rates(self, step: int) -> tuple[float, ...]:
        """The rate of each average after 0-based step `step`: 1 after the first."""
        return tuple(1.0 - (step / (step + 1.0)) ** (gamma_of(width) + 1.0) for width in self.widths)


def gamma_of(width: float) -> float:
    """The exponent g of relative width `width` in (0, 0.28]: the root of (2), a cubic in g (EDM2, Alg. 2)."""
    if not 0.0 < width <= WIDEST:
        raise ConfigError(f"width: given {width:g}, must lie in (0, {WIDEST:g}]")
    t = width**-2
    return float(np.roots([1.0, 7.0, 16.0 - t, 12.0 - t]).real.max())
