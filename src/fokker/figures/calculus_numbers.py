r"""The numbers of the appendices' calculus: solvers of a stiff equation, and both stochastic sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from ..calculus import bracket, ito_sum, stratonovich_sum, wiener
from ..solvers.semilinear import integrate
from .score_numbers import F64

__all__ = ["Sums", "stiff_errors", "stochastic_sums"]

Rate = Callable[[Tensor, Tensor], Tensor]


def _source(x: Tensor, t: Tensor) -> Tensor:
    return x.sin() + (3.0 * t).cos()


def _runge_kutta(v: Rate, x: Tensor, times: Tensor, order: int) -> Tensor:
    """Euler, Heun or the classical method: x at the last time."""
    for s, t in pairwise(times):
        h, k1 = t - s, v(x, s)
        if order == 1:
            x = x + h * k1
        elif order == 2:
            x = x + 0.5 * h * (k1 + v(x + h * k1, t))
        else:
            k2 = v(x + 0.5 * h * k1, s + 0.5 * h)
            k3 = v(x + 0.5 * h * k2, s + 0.5 * h)
            x = x + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + v(x + h * k3, t))
    return x


def stiff_errors(steps: Sequence[int], rate: float = -20.0, end: float = 2.0) -> dict[str, list[float]]:
    """|x - exact| at `end` of x' = rate x + sin x + cos 3t, x(0) = 1, by five solvers at each number of steps."""
    reference = solve_ivp(
        lambda t, x: rate * x + _source(torch.from_numpy(x), torch.tensor(t)).numpy(),
        (0.0, end), [1.0], method="DOP853", rtol=1e-13, atol=1e-14,
    )  # fmt: skip
    exact, x = float(reference.y[0, -1]), torch.ones(1, dtype=F64)

    def v(x: Tensor, t: Tensor) -> Tensor:
        return rate * x + _source(x, t)

    found: dict[str, list[float]] = {}
    for name, order in (("Euler", 1), ("Heun", 2), ("RK4", 4)):
        runs = [_runge_kutta(v, x, torch.linspace(0.0, end, n + 1, dtype=F64), order) for n in steps]
        found[name] = [abs(float(run) - exact) for run in runs]
    for name, exponent in (("exponential Euler", 1), ("exponential Heun", 2)):
        runs = [
            integrate(rate, _source, x, torch.linspace(0.0, end, n + 1, dtype=F64), order=exponent)  # type: ignore[arg-type]
            for n in steps
        ]
        found[name] = [abs(float(run) - exact) for run in runs]
    return found


class Sums(NamedTuple):
    """int w dw over [0, 1] along one path at finer and finer steps, both ways, and its limits; the bracket, too."""

    steps: tuple[int, ...]
    left: Tensor
    middle: Tensor
    variation: Tensor
    end: float


def stochastic_sums(finest: int = 12, seed: int = 1) -> Sums:
    """Left-point (Ito) and midpoint (Stratonovich) sums of one Wiener path, read at 2 to 2^finest steps."""
    times = torch.linspace(0.0, 1.0, 2**finest + 1, dtype=F64)
    steps = wiener(seed, torch.arange(1), times, ())
    path = torch.cat([torch.zeros(1, 1, dtype=F64), steps.cumsum(0)])
    strides = [2 ** (finest - k) for k in range(1, finest + 1)]
    left, middle, variation = (
        torch.cat([how(path[::stride], path[::stride]) for stride in strides])
        for how in (ito_sum, stratonovich_sum, bracket)
    )
    return Sums(tuple(2**finest // stride for stride in strides), left, middle, variation, float(path[-1]))
