r"""Solvers of the reverse-time SDE family (book Eq. 4.1.6, Prop. 6.4.1) and EDM's stochastic sampler.

dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw,    dt < 0,    every eta >= 0 keeps the marginals p_t
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ..component import component
from ..errors import ConfigError
from ..process import Process
from ..process.tables import Function
from .base import Solver
from .plan import Plan, Stage, Step, Term, X, evaluate

__all__ = ["EDMStochastic", "EulerMaruyama"]


@component
class EulerMaruyama(Solver):
    """x_t = x_s + (t - s) [velocity - eta^2/2 g^2 score] + eta g sqrt(s - t) z, coefficients at s; weak order 1.

    velocity = (sigma'/sigma) x + (alpha' - alpha sigma'/sigma) x0 and score = (alpha x0 - x) / sigma^2, from one
    evaluation (book Eq. 4.2.4 at eta = 1, Eq. 4.2.6 at eta = 0).

    Args:
        eta: 0 the probability-flow ODE, 1 Anderson's reverse SDE; any value >= 0, or a function of a tensor of times.
    """

    eta: Annotated[float, Field(ge=0.0)] | Function = 1.0
    open_data = True

    @property
    def order(self) -> int:
        return 1

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return callable(self.eta) or self.eta > 0.0

    @property
    def open_start(self) -> bool:  # type: ignore[override]
        return self.stochastic  # g is infinite where alpha = 0

    def _eta(self, s: Tensor) -> Tensor:
        """eta at times s. Raises ConfigError where a function of them is not a number >= 0."""
        eta = torch.as_tensor(self.eta(s) if callable(self.eta) else self.eta, dtype=s.dtype).expand(s.shape)
        if not bool((eta >= 0.0).all()) or not bool(eta.isfinite().all()):
            raise ConfigError(f"EulerMaruyama.eta: gives {eta.tolist()} at times {s.tolist()}, must be 0 or above")
        return eta

    def steps(self, process: Process, s: Tensor, t: Tensor) -> list[Step]:
        alpha, sigma, h = process.alpha(s), process.sigma(s), t - s
        slope = process.d_sigma(s) / sigma
        on_x, on_x0 = slope, process.d_alpha(s) - alpha * slope
        c = 0.0 * h
        if self.stochastic:
            eta = self._eta(s)
            pull = 0.5 * eta**2 * process.g2(s) / sigma**2
            on_x, on_x0 = on_x + pull, on_x0 - pull * alpha
            c = eta * (process.g2(s) * -h).sqrt()
        table = [a.tolist() for a in (s, t, 1.0 + h * on_x, h * on_x0, c)]
        steps = []
        for start, end, a, b, std in zip(*table, strict=True):
            noise: tuple[Term, ...] = ((("z", 0), std),) if std else ()
            out: tuple[Term, ...] = ((X, a), (("m", 0), b), *noise)
            steps.append(Step(start, end, (evaluate(start, "x0"),), out, draws=len(noise)))
        return steps


@component
class EDMStochastic(Solver):
    """Karras et al. 2022, Algorithm 2, in any process: add noise, then one Heun step in rho = sigma / alpha.

    rho_hat = (1 + gamma) rho, gamma = min(S_churn / N, sqrt(2) - 1) where S_tmin <= rho <= S_tmax, else 0;
    y = x / alpha + S_noise sqrt(rho_hat^2 - rho^2) z; Heun from rho_hat to the next rho; the step to 0 is Euler's.
    Where the process ends before rho_hat, rho_hat is its end. With S_churn = 0 it is Heun(space="rho").

    Args:
        S_churn: overall amount of stochasticity, >= 0.
        S_tmin, S_tmax: the noise levels rho between which noise is added.
        S_noise: scale of the added noise.
    """

    S_churn: Annotated[float, Field(ge=0.0)] = 40.0
    S_tmin: Annotated[float, Field(ge=0.0)] = 0.05
    S_tmax: Annotated[float, Field(gt=0.0)] = 50.0
    S_noise: Annotated[float, Field(gt=0.0)] = 1.003
    slots: ClassVar[int] = 2
    open_start = True
    open_data = True

    @property
    def order(self) -> int:
        return 2 if not self.stochastic else 1

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.S_churn > 0.0

    def plan(self, process: Process, times: Tensor) -> Plan:
        plan = super().plan(process, times)
        if not self.stochastic:
            return plan
        steps = [self._churned(process, step, len(plan.steps)) for step in plan.steps]
        return Plan(tuple(steps), self.slots).pruned()

    def steps(self, process: Process, s: Tensor, t: Tensor) -> list[Step]:
        return [_heun(process, float(a), float(b)) for a, b in zip(s, t, strict=True)]

    def _churned(self, process: Process, step: Step, count: int) -> Step:
        rho = math.exp(-float(process.lam(step.start)))
        gamma = min(self.S_churn / count, math.sqrt(2.0) - 1.0) if self.S_tmin <= rho <= self.S_tmax else 0.0
        if gamma == 0.0:
            return step
        hat = min(float(process.time(-math.log(rho * (1.0 + gamma)))), process.T)
        rho_hat = math.exp(-float(process.lam(hat)))
        alpha_hat = float(process.alpha(hat))
        noise = self.S_noise * math.sqrt(max(rho_hat**2 - rho**2, 0.0))
        lift: tuple[Term, ...] = ((X, alpha_hat / float(process.alpha(step.start))), (("z", 0), alpha_hat * noise))
        return _heun(process, hat, step.end, start=step.start, lift=lift)


def _heun(
    process: Process, s: float, t: float, start: float | None = None, lift: tuple[Term, ...] = ((X, 1.0),)
) -> Step:
    """From the lifted state at time s: Heun in rho to t, or x0 if t = 0."""
    begin, draws = s if start is None else start, int(len(lift) > 1)
    if t == 0.0:
        return Step(begin, t, (evaluate(s, "x0", terms=lift),), ((("m", 0), 1.0),), draws)
    scale = float(process.alpha(t) / process.alpha(s))
    h = float(process.alpha(t) * ((-process.lam(t)).exp() - (-process.lam(s)).exp()))
    stages: tuple[Stage, ...] = (
        evaluate(s, "noise", keep=0, terms=lift),
        evaluate(t, "noise", keep=1, terms=((("y", 0), scale), (("m", 0), h))),
    )
    out: tuple[Term, ...] = ((("y", 0), scale), (("m", 0), 0.5 * h), (("m", 1), 0.5 * h))
    return Step(begin, t, stages, out, draws)
