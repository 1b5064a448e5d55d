r"""Score matching of the noised marginals without a target: `Denoising` with its regression integrated by parts.

With n = -sigma s the noise a denoiser predicts, Stein's identity E[eps . n] = sigma E[div n] gives

    E |n - eps|^2 = E[|n|^2 - 2 sigma div n] + D

so that what is in the brackets has the minimiser of `Denoising`, at every time, and asks x_t alone (it is Hyvarinen's
loss, 2 sigma^2 (div s + |s|^2 / 2)). Sources: Hyvarinen 2005; Song et al. 2020; book Prop. 3.2.1, Sec. 3.3.1.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..calculus import Hutchinson, value_and_divergence
from ..calculus.operators import dot
from ..component import component
from ..errors import ConfigError
from ..prediction import READINGS, Denoiser, coefficients, reading
from ..process import expand
from ..registry import resolves
from .denoising import Denoising
from .weighting import Sigma2, Weight

__all__ = ["ScoreMatching"]


@component
class ScoreMatching(Denoising):
    """Implicit or sliced score matching of p_t: the loss of `Denoising` with the same fields, less its mean weight.

    Its networks must have two derivatives. The divergence costs a backward pass (one a probe, or the dimension), and
    the loss varies more than `Denoising`'s; it can be negative.

    Args:
        predict, weight: as in `Denoising`, by default `Denoising.dsm`'s.
        form: "implicit" (exact divergence), "sliced" (u^T J u and (u . n)^2), "sliced-vr" (u^T J u and |n|^2).
        probes: signs u for each sample, of the sliced forms.

    Raises:
        ConfigError: a weight that learns, which needs a loss above 0; or a variance, which needs x0.
    """

    predict: str = "score"
    weight: Annotated[Weight, resolves("weight")] = Sigma2()
    form: Literal["implicit", "sliced", "sliced-vr"] = "sliced-vr"
    probes: Annotated[int, Field(ge=1, le=256)] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight.learns:
            raise ConfigError(
                f"ScoreMatching.weight: given {self.weight}, must be one that learns nothing, as 'sigma2': "
                "this loss can be negative, and 1 / e^u of it has no minimum in u"
            )
        if self.variance_weight:
            raise ConfigError(
                f"ScoreMatching.variance_weight: given {self.variance_weight}, must be 0: a variance is learned from "
                "clean data; take objective.kind=denoising"
            )

    def _squared(
        self,
        denoiser: Denoiser,
        x: Tensor,
        t: Tensor,
        cond: Tensor | None,
        x0: Tensor,
        eps: Tensor,
        keys: tuple[int, int, Tensor],
    ) -> tuple[Tensor, Tensor, None]:
        """w and (|n|^2 - 2 sigma div n) / D; neither x0 nor eps is looked at."""
        process, (seed, step, rows) = denoiser.process, keys
        u = None
        if self.form != "implicit":
            numbers = (step << 8) + torch.arange(self.probes, device=x.device)
            u = Hutchinson(seed=seed).draw(rows, x.shape[1:], x.dtype, numbers)
        n, spread = value_and_divergence(lambda x: denoiser(x, t, cond).noise, x, probes=u)
        square = dot(n, n)
        if u is not None and self.form == "sliced":
            square = (u * n).flatten(2).sum(2).square().mean(0)
        weighed = self.weight.of(reading(self.predict))
        weight = self.weight.value(process, t) * coefficients(process, t, READINGS["noise"], weighed)[1] ** 2
        return weight, (square - 2.0 * expand(process.sigma(t), square) * spread.value) / x[0].numel(), None
