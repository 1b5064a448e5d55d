r"""Penalties that are 0 at the exact denoiser, whatever the data: its equations of motion, as options of `Denoising`.

With s the score a denoiser gives, D = (x + sigma^2 s) / alpha its x0, and dx = f x dt + g dw the process,

    (1)  R = d_t s - grad(1/2 g^2 (div s + |s|^2) - f x . s)                     the score's Fokker-Planck equation
    (2)  M = -d_t D + (-f x + g^2 s) . grad D + 1/2 g^2 Lap D                    the rate of E[D] along the reverse SDE

are both 0 for the marginals of one law: (1) is the gradient of the Fokker-Planck equation, (2) says that the denoiser
is a martingale, E[D(x_t, t) | x_s] = D(x_s, s) for t < s. Where s is a gradient M = -(sigma^2 / alpha) R; for other
fields (1) also pulls at the curl. In units of the noise's error per unit of lam,

    (3)  penalty = |sigma R / lam'|^2 / dim,    |alpha M / (sigma lam')|^2 / dim

N(0, v) read with k times its score has 4 k^2 (1 - k)^2 sigma^6 |x|^2 / (V^4 dim), V = alpha^2 v + sigma^2.

With random probes u for the second derivatives the square is the product of two independent estimates, so that its
mean is (3) itself; it can be negative. Sources: Lai et al. 2023 (FP-Diffusion; the equivalence of (1) and (2)); Daras
et al. 2023 (consistency along the reverse SDE, there by sampled steps, whose limit (2) is); book Sec. 11.2, C.1.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from ..calculus import Hutchinson, laplacian, score_residual
from ..component import component
from ..errors import ConfigError
from ..prediction import Denoiser
from ..process import expand

__all__ = ["FokkerPlanckPenalty", "MartingalePenalty", "Regulariser"]


class Regulariser:
    """Base of penalties: `residual` is a field that vanishes at the exact denoiser; see `FokkerPlanckPenalty`."""

    weight: float
    every: int
    probes: int | None

    def residual(self, denoiser: Denoiser, x: Tensor, t: Tensor, cond: Any, probes: Tensor | None) -> Tensor:
        """What is squared in Eq. (3), of the shape of x; probes (K, B, *event), None exact."""
        raise NotImplementedError

    def penalty(
        self,
        denoiser: Denoiser,
        x: Tensor,
        t: Tensor,
        cond: Tensor | None = None,
        *,
        seed: int = 0,
        step: int = 0,
        rows: Tensor | None = None,
    ) -> Tensor:
        """weight times Eq. (3), (B,): `every` times that where position + step is a multiple of it, 0 at other rows.

        In `every` steps each position has its turn, so that stratified times are all looked at alike.

        Args:
            denoiser: whose network is differentiated, twice in x and once in t.
            x: states (B, *event). t: their times (B,), moved into [t_min, t_max]. cond: conditions (B, ...).
            seed, step, rows: key of the probes; rows are the places in the global batch, without gaps.

        Raises:
            ConfigError: a network that knows integer times only, which have no derivative.
        """
        if getattr(denoiser, "time_input", None) == "integer":
            raise ConfigError(
                f"objective.regulariser: {type(self).__name__} differentiates in time, which a network with "
                "denoiser.time='integer' cannot: give it another time, or leave the regulariser out"
            )
        process, rows = denoiser.process, torch.arange(len(x), device=x.device) if rows is None else rows
        turn = (rows + step) % self.every
        chosen = turn.argsort(stable=True)[: math.ceil(len(x) / self.every)]
        index, told = rows[chosen], None if cond is None else cond[chosen]
        at, when = x[chosen], t[chosen].clamp(process.t_min, process.t_max)

        def residual(k: int) -> Tensor:
            if self.probes is None:
                return self.residual(denoiser, at, when, told, None)
            numbers = (step << 8) + torch.arange(k * self.probes, (k + 1) * self.probes, device=x.device)
            probes = Hutchinson(seed=seed).draw(index, x.shape[1:], x.dtype, numbers)
            return self.residual(denoiser, at, when, told, probes)

        first = residual(0)
        product = first * (first if self.probes is None else residual(1))
        value = product.flatten(1).mean(1) * (self.weight * self.every) * (turn[chosen] == 0)
        return torch.zeros(len(x), dtype=value.dtype, device=x.device).index_add(0, chosen, value)


@component
class FokkerPlanckPenalty(Regulariser):
    """The score's Fokker-Planck equation, Eq. (1) and (3); three derivatives of the network and the weights' own.

    Args:
        weight: what multiplies the penalty.
        every: of so many rows of a batch one is looked at, another at each step, for so many times the weight.
        probes: for each of two estimates of the divergence; None is exact, at the cost of the dimension.
    """

    weight: Annotated[float, Field(gt=0)] = 0.1
    every: Annotated[int, Field(ge=1)] = 1
    probes: Annotated[int, Field(ge=1, le=128)] | None = 1

    def residual(self, denoiser: Denoiser, x: Tensor, t: Tensor, cond: Any, probes: Tensor | None) -> Tensor:
        process = denoiser.process

        def score(x: Tensor, t: Tensor) -> Tensor:
            return denoiser(x, t, cond).score

        def drift(x: Tensor, t: Tensor) -> Tensor:
            return expand(process.f(t), x) * x

        def amount(x: Tensor, t: Tensor) -> Tensor:
            return process.g2(t).sqrt()

        found = score_residual(score, drift, amount, x, t, probes=probes)
        return expand(process.sigma(t) / process.d_lam(t), x) * found


@component
class MartingalePenalty(Regulariser):
    """The denoiser as a martingale of its own reverse SDE, Eq. (2) and (3); two derivatives of the network, forward.

    Args:
        weight, every: as in `FokkerPlanckPenalty`.
        probes: for each of two estimates of the Laplacian; None is exact, at the cost of the dimension.
    """

    weight: Annotated[float, Field(gt=0)] = 0.1
    every: Annotated[int, Field(ge=1)] = 1
    probes: Annotated[int, Field(ge=1, le=128)] | None = 1

    def residual(self, denoiser: Denoiser, x: Tensor, t: Tensor, cond: Any, probes: Tensor | None) -> Tensor:
        process, here = denoiser.process, denoiser(x, t, cond)
        g2 = process.g2(t)
        back = expand(g2, x) * here.score - expand(process.f(t), x) * x

        def x0(x: Tensor, t: Tensor) -> Tensor:
            return denoiser(x, t, cond).x0

        carried: Tensor = torch.func.jvp(x0, (x, t), (back, -torch.ones_like(t)))[1]
        found = carried + expand(0.5 * g2, x) * laplacian(x0, x, t, probes=probes).value
        return expand(process.alpha(t) / (process.sigma(t) * process.d_lam(t)), x) * found
