"""The exact denoiser of a law whose every diffusion quantity is known."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..prediction import Prediction, Reading
from ..process import Process, as_time, clocks, readable
from .channel import Core
from .marginal import each_chunk, flat

__all__ = ["ExactDenoiser"]


class ExactDenoiser:
    """x_s -> the pair (E[x_0 | x_s], E[eps | x_s]), exact on all of [0, T], both ends included.

    A row's result has the same bits in any batch. Made by `law.denoiser(process)`.

    Args (of the call):
        x: (B, *event). s: a number, or one time per sample (B,).
        cond: a class or one per sample (B,), for labelled laws; negative is unconditional, like None.
    """

    reading: Reading | None = None

    def __init__(self, core: Core, shape: tuple[int, ...], process: Process, law: object) -> None:
        self.core, self.shape, self.process, self.law = core, tuple(shape), process, law
        self.lam_range = clocks.common_lam_range((-math.inf, math.inf), clocks.lam_range(process))

    def _cond(self, cond: Any, x: Tensor) -> Tensor | None:
        if cond is None:
            return None
        if not self.core.n_classes:
            raise ConfigError(f"cond: given {cond!r}, but this law has no labels: it has no classes to choose from")
        value = torch.as_tensor(cond, device=x.device)
        if value.is_floating_point() or value.ndim > 1 or (value.ndim == 1 and len(value) != len(x)):
            raise ConfigError(f"cond: must be an integer, or one per sample ({len(x)},); given {cond!r}")
        if readable(value) and bool((value >= self.core.n_classes).any()):
            raise ConfigError(f"cond: given {cond!r}; allowed: 0 to {self.core.n_classes - 1}, or -1 for none")
        return value.long().expand(len(x))

    def __call__(self, x: Tensor, s: float | Tensor, cond: Any = None) -> Prediction:
        rows = flat(x, self.shape)
        time = as_time(s).double()
        if time.ndim > 1 or (time.ndim == 1 and len(time) not in (1, len(x))):
            raise ConfigError(f"s: given shape {tuple(time.shape)}, must be a number or ({len(x)},)")
        time = time.reshape(()) if time.ndim == 1 and len(time) != len(x) else time
        alpha, sigma = self.process.alpha(time), self.process.sigma(time)
        x0, noise = each_chunk(self.core, rows, alpha, sigma, self._cond(cond, x), lambda c, _: (c.x0(), c.noise()))
        return Prediction(self.process, x, s, x0=x0.reshape(x.shape), noise=noise.reshape(x.shape))

    def __repr__(self) -> str:
        return f"ExactDenoiser({self.law!r}, {self.process!r})"
