r"""Runge-Kutta on the probability-flow ODE, in one of three coordinates (book Sec. 9.1, 9.4.5, App. A.1.4).

space "t"     dx/dt   = velocity
space "lam"   dx/dlam = velocity / lam'
space "rho"   d(x/alpha)/drho = noise,  rho = sigma / alpha     (Euler here is DDIM, Heun here is EDM's sampler)

y_j = x + h sum_{i<j} a_ji k_i,    x <- x + h sum_j b_j k_j
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..component import component
from ..process import Process
from .base import Solver
from .plan import Stage, Step, Term, X, evaluate

__all__ = ["RK4", "Euler", "Heun", "Tableau"]

Space = Literal["t", "lam", "rho"]
Tableau = tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]  # rows a_j (their sums are the nodes c_j), weights b


class _RungeKutta(Solver):
    space: Space
    tableau: ClassVar[Tableau]

    @property
    def order(self) -> int:
        return len(self.tableau[1])

    @property
    def open_start(self) -> bool:  # type: ignore[override]
        return self.space != "t"

    @property
    def open_data(self) -> bool:  # type: ignore[override]
        return self.space != "t"

    def steps(self, process: Process, s: Tensor, t: Tensor) -> list[Step]:
        rows, _ = self.tableau
        nodes = torch.tensor([sum(row) for row in rows], dtype=torch.float64)
        if self.space == "t":
            u, times = s, s[:, None] + nodes * (t - s)[:, None]
            h = t - s
        else:
            u = process.lam(s) if self.space == "lam" else (-process.lam(s)).exp()
            end = process.lam(t) if self.space == "lam" else (-process.lam(t)).exp()
            h = end - u
            inside = u[:, None] + nodes * h[:, None]
            times = process.time(inside if self.space == "lam" else -inside.log())
        times = torch.where(nodes == 0.0, s[:, None], torch.where(nodes == 1.0, t[:, None], times))
        if self.space == "rho":
            scale = process.alpha(times) / process.alpha(s)[:, None]  # y_j = scale_j x + alpha_j h sum a k
            gain = process.alpha(times) * h[:, None]
            last, last_gain = process.alpha(t) / process.alpha(s), process.alpha(t) * h
            rate, reading = torch.ones_like(times), "noise"
        else:
            scale, gain = torch.ones_like(times), h[:, None].expand_as(times)
            last, last_gain = torch.ones_like(h), h
            rate = 1.0 / process.d_lam(times) if self.space == "lam" else torch.ones_like(times)
            reading = "velocity"
        table = [c.tolist() for c in (s, t, times, scale, gain, rate, last, last_gain)]
        return [self._step(reading, *row) for row in zip(*table, strict=True)]

    def _step(
        self,
        reading: str,
        s: float,
        t: float,
        times: list[float],
        scale: list[float],
        gain: list[float],
        rate: list[float],
        last: float,
        last_gain: float,
    ) -> Step:
        rows, weights = self.tableau
        stages: list[Stage] = []
        for j, row in enumerate(rows):
            terms: list[Term] = [(X, scale[j])]
            terms += [(("m", i), gain[j] * rate[i] * a) for i, a in enumerate(row) if a != 0.0]
            stages.append(evaluate(times[j], reading, keep=j, terms=tuple(terms)))
        out: list[Term] = [(X, last)]
        out += [(("m", j), last_gain * rate[j] * b) for j, b in enumerate(weights) if b != 0.0]
        return Step(s, t, tuple(stages), tuple(out))


@component
class Euler(_RungeKutta):
    """Euler's method, order 1. In space "rho" it is DDIM; in "t" it is DDIM only where alpha, sigma are affine in t.

    Args:
        space: the coordinate of the steps: "t", "lam" or "rho" (see the module).
    """

    space: Space = "t"
    tableau: ClassVar[Tableau] = (((),), (1.0,))


@component
class Heun(_RungeKutta):
    """Heun's method (trapezoidal predictor-corrector), order 2, two evaluations a step.

    Args:
        space: "t", "lam" or "rho"; "rho" on the EDM process is the deterministic sampler of Karras et al. 2022.
    """

    space: Space = "t"
    slots: ClassVar[int] = 2
    tableau: ClassVar[Tableau] = (((), (1.0,)), (0.5, 0.5))


@component
class RK4(_RungeKutta):
    """The classical Runge-Kutta method, order 4, four evaluations a step.

    Args:
        space: "t", "lam" or "rho".
    """

    space: Space = "t"
    slots: ClassVar[int] = 4
    tableau: ClassVar[Tableau] = (((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))
