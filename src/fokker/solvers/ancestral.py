r"""Ancestral sampling: draw from p(x_t | x_s, x0) with the predicted x0 (book Eq. 2.2.14, 4.4.8; Ho et al. 2020)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator
from torch import Tensor

from ..component import Array, component
from ..errors import ConfigError, closest
from ..prediction import learned_std
from ..process import Process
from .base import Solver
from .plan import Coef, Registers, Step, Term, X, evaluate

__all__ = ["Ancestral", "ReverseVariance", "optimal_std", "reverse_variance"]

NAMES = ("posterior", "forward", "learned")


def _known(given: object) -> object:
    if isinstance(given, str) and given not in NAMES:
        raise ConfigError(f"variance: given {given!r}, {closest(given, NAMES)}, or a table of `optimal_variance`")
    return given


ReverseVariance = Annotated[Literal["posterior", "forward", "learned"] | Array, BeforeValidator(_known)]


def reverse_variance(given: str | Array | Tensor) -> str | Array:
    """A rule's name, or a table as an `Array` (2, K). Raises ConfigError for what is neither."""
    if isinstance(given, str):
        return str(_known(given))
    table = Array(given)
    if table.value.ndim != 2 or len(table) != 2 or table.shape[1] < 2:
        raise ConfigError(
            f"variance: given a table of shape {tuple(table.shape)}, must be (2, K): lam, variances of x0"
        )
    lam, value = table.value
    if not bool((lam.diff() > 0).all() & (value > 0).all()):
        raise ConfigError("variance: the table's first row, lam, must increase and its second, variances, be positive")
    return table


def optimal_std(table: Array, lam: Tensor, on_x0: Tensor, std: Tensor) -> Tensor:
    """sqrt(std^2 + on_x0^2 v(lam)), v the table's, its logarithm linear in lam and held beyond the ends.

    Args:
        table: (2, K): lam, and Var[x_0 | x] there on average.
        lam: of the level left, (N,).
        on_x0, std: of the posterior.
    """
    knots, value = table.like(lam)
    inside = lam.clamp(knots[0], knots[-1])
    k = torch.searchsorted(knots, inside).clamp(1, len(knots) - 1)
    share = (inside - knots[k - 1]) / (knots[k] - knots[k - 1])
    return (std**2 + on_x0**2 * torch.lerp(value.log()[k - 1], value.log()[k], share).exp()).sqrt()


@component
class Ancestral(Solver):
    """x_t = a x_s + b x0 + c z with the posterior's a, b; weak order 1, one evaluation a step.

    For data that are not a point c is too small ("posterior") or too large ("forward") by O(step).

    Args:
        variance: "posterior", c = sigma_{s|t} sigma_t / sigma_s (DDPM's beta-tilde); "forward", c = sigma_{s|t}
            (DDPM's beta); "learned", log-linear between the two by the network's variance output v in [-1, 1]
            (Nichol & Dhariwal 2021); or a table by `likelihood.optimal_variance`: c is then best for all steps of a
            level together (Bao et al. 2022).
    """

    variance: ReverseVariance = "posterior"
    stochastic = True

    def __post_init__(self) -> None:
        reverse_variance(self.variance)

    @property
    def order(self) -> int:
        return 1

    def steps(self, process: Process, s: Tensor, t: Tensor) -> list[Step]:
        on_x, on_x0, small = process.bridge(s, t)
        large = process.transition(t, s).std
        best = small if isinstance(self.variance, str) else optimal_std(self.variance, process.lam(s), on_x0, small)
        table = [a.tolist() for a in (s, t, on_x, on_x0, small, large, best)]
        steps = []
        for start, end, a, b, low, high, own in zip(*table, strict=True):
            c: Coef = high if self.variance == "forward" else own
            if self.variance == "learned":
                c = _learned_std(low, high)
            out: tuple[Term, ...] = ((X, a), (("m", 0), b), (("z", 0), c))
            steps.append(Step(start, end, (evaluate(start, "x0"),), out, draws=1))
        return steps


def _learned_std(low: float, high: float) -> Coef:
    def std(registers: Registers) -> Tensor:
        return learned_std(registers.variance(0), low, high)

    return std
