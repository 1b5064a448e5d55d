r"""DDIM: the step that keeps x0 and noise, deterministic or with fresh noise (book Sec. 9.2).

    x_t = alpha_t x0 + sqrt(sigma_t^2 - c^2) noise + c z,      c = eta (sigma_t / sigma_s) sigma_{s|t}
        = b x_s + (alpha_t - alpha_s b) x0 + c z,              b = sqrt(sigma_t^2 - c^2) / sigma_s

sigma_{s|t}^2 = sigma_s^2 - (alpha_s / alpha_t)^2 sigma_t^2 (the book's Eq. 9.2.9-9.2.10 swap s and t here, which makes
it negative). eta = 0 is the exponential Euler step of the probability-flow ODE, eta = 1 ancestral sampling.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..component import component
from ..process import Process
from .base import Solver
from .plan import Step, Term, X, evaluate

__all__ = ["DDIM", "ddim_coefficients"]


def ddim_coefficients(process: Process, s: Tensor, t: Tensor, eta: float) -> tuple[Tensor, Tensor, Tensor]:
    """(b, alpha_t - alpha_s b, c): what multiplies x_s, x0 and z in a step from s to t < s."""
    sigma_s, sigma_t = process.sigma(s), process.sigma(t)
    c = eta * process.bridge(s, t).std if eta else torch.zeros_like(sigma_t)
    b = ((sigma_t - c) * (sigma_t + c)).clamp(min=0.0).sqrt() / sigma_s
    return b, process.alpha(t) - process.alpha(s) * b, c


@component
class DDIM(Solver):
    """The DDIM family (Song et al. 2020a; book Sec. 9.2): order 1, one evaluation a step.

    Args:
        eta: 0 deterministic, 1 ancestral (the posterior's variance); in [0, 1].
    """

    eta: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0

    @property
    def order(self) -> int:
        return 1

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.eta > 0.0

    def steps(self, process: Process, s: Tensor, t: Tensor) -> list[Step]:
        if bool(t[0] > s[0]):
            return self._outward(process, s, t)
        table = [a.tolist() for a in (s, t, *ddim_coefficients(process, s, t, self.eta))]
        steps = []
        for start, end, b, on_x0, c in zip(*table, strict=True):
            noise: tuple[Term, ...] = ((("z", 0), c),) if c else ()
            out: tuple[Term, ...] = ((X, b), (("m", 0), on_x0), *noise)
            steps.append(Step(start, end, (evaluate(start, "x0"),), out, draws=1 if c else 0))
        return steps

    def _outward(self, process: Process, s: Tensor, t: Tensor) -> list[Step]:
        """Towards the noise the noise form: x_t = (alpha_t / alpha_s) (x - sigma_s noise) + sigma_t noise."""
        scale = process.alpha(t) / process.alpha(s)
        table = [a.tolist() for a in (s, t, scale, process.sigma(t) - scale * process.sigma(s))]
        return [
            Step(start, end, (evaluate(start, "noise"),), ((X, on_x), (("m", 0), on_noise)))
            for start, end, on_x, on_noise in zip(*table, strict=True)
        ]
