r"""Exponential Runge-Kutta of the semilinear flow x' = L x + N for one prediction (book Eq. 9.1.7, 9.4.14).

reading      L            N, in time                                 L, N in lam
"noise"      alpha'/alpha  (sigma' - sigma alpha'/alpha) noise        both divided by lam': N = -sigma noise
"x0"         sigma'/sigma  (alpha' - alpha sigma'/sigma) x0           N = alpha x0
"velocity"   0             velocity                                   N = velocity / lam'

These freeze N with its coefficient, DDIM and DPM-Solver integrate that: the book's claims that 9.1.7 is DDIM and that
9.4.14 is DPM-Solver-2 hold up to the local error only. `integrate` does the same for an equation of one's own.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..component import component
from ..errors import ConfigError
from ..process import Process
from .base import Solver
from .exponential import phi
from .multistep import gauss_legendre
from .plan import Step, X, evaluate

__all__ = ["ExpEuler", "ExpHeun", "integrate"]

Reading = Literal["noise", "x0", "velocity"]
GROWTH = 80.0  # float32 ends at e^88.7


@component
class ExpEuler(Solver):
    """x_t = e^a x + (t - s) phi_1(a) N(x, s), a = L(s) (t - s): L frozen too. Order 1, one evaluation a step.

    Args:
        reading: whose N is frozen: "noise" (the book's), "x0", or "velocity" (Euler in t).

    Raises (from sampling):
        ConfigError: a step's e^a is too large for float32.
    """

    reading: Reading = "noise"
    open_data = True

    @property
    def order(self) -> int:
        return 1

    @property
    def open_start(self) -> bool:  # type: ignore[override]
        return self.reading == "noise"

    def steps(self, process: Process, s: Tensor, t: Tensor) -> list[Step]:
        h = t - s
        alpha, sigma, d_alpha, d_sigma = process.alpha(s), process.sigma(s), process.d_alpha(s), process.d_sigma(s)
        if self.reading == "noise":
            rate, on_n = d_alpha / alpha, d_sigma - sigma * d_alpha / alpha
        elif self.reading == "x0":
            rate, on_n = d_sigma / sigma, d_alpha - alpha * d_sigma / sigma
        else:
            rate, on_n = torch.zeros_like(h), torch.ones_like(h)
        worst = int((rate * h).argmax())
        if float(rate[worst] * h[worst]) > GROWTH:
            raise ConfigError(
                f"{self}: its factor e^{float(rate[worst] * h[worst]):.3g} from time {float(s[worst]):g} to "
                f"{float(t[worst]):g} leaves float32: take more steps there, or DDIM()"
            )
        table = [c.tolist() for c in (s, t, (rate * h).exp(), h * phi(1, rate * h) * on_n)]
        return [
            Step(start, end, (evaluate(start, self.reading),), ((X, a), (("m", 0), b)))
            for start, end, a, b in zip(*table, strict=True)
        ]


@component
class ExpHeun(Solver):
    """In lam: p = e^a x + h phi_1(a) N(x, s), x_t = p + h phi_2(a) (N(p, t) - N(x, s)), a = int L dlam. Order 2.

    On the EDM process "x0" has constant L and is exact for predictions affine in lam. Two evaluations a step.

    Args:
        reading: "noise", "x0", or "velocity" (Heun in lam).
    """

    reading: Reading = "noise"
    slots: ClassVar[int] = 2
    open_start = True
    open_data = True

    @property
    def order(self) -> int:
        return 2

    def steps(self, process: Process, s: Tensor, t: Tensor) -> list[Step]:
        h = process.lam(t) - process.lam(s)
        if self.reading == "velocity":
            ratio, on_s, on_t = torch.ones_like(h), 1.0 / process.d_lam(s), 1.0 / process.d_lam(t)
        elif self.reading == "x0":
            ratio, on_s, on_t = process.sigma(t) / process.sigma(s), process.alpha(s), process.alpha(t)
        else:
            ratio, on_s, on_t = process.alpha(t) / process.alpha(s), -process.sigma(s), -process.sigma(t)
        one, two = h * phi(1, ratio.log()), h * phi(2, ratio.log())
        table = [c.tolist() for c in (s, t, ratio, one * on_s, (one - two) * on_s, two * on_t)]
        return [
            Step(
                start,
                end,
                (evaluate(start, self.reading), evaluate(end, self.reading, 1, ((X, a), (("m", 0), p)))),
                ((X, a), (("m", 0), b), (("m", 1), c)),
            )
            for start, end, a, p, b, c in zip(*table, strict=True)
        ]


def integrate(
    rate: float | Tensor | Callable[[Tensor], Tensor],
    source: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    times: Tensor,
    order: Literal[1, 2] = 2,
    integral: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """x' = L(t) x + N(x, t) through all `times`, by ExpEuler (order 1) or ExpHeun (order 2): x at the last of them.

    With a = int_s^t L and h = t - s (negative where the times decrease):

        p   = e^a x + h phi_1(a) N(x, s)                 (order 1 stops here)
        x_t = p + h phi_2(a) (N(p, t) - N(x, s))

    Where L is constant, N constant (order 1) or affine in t (order 2) is integrated exactly, and a decay however fast
    is stable at any step. N is asked once a step at order 1, twice at order 2.

    Args:
        rate: L, a number or a diagonal (broadcast against x); or a function of the time, a 0-dim float64 tensor.
        source: N(x, t), of the shape of x.
        x: the state at times[0], floating.
        times: (N + 1,), strictly monotone.
        order: 1 or 2.
        integral: (s, t) -> int_s^t L; default: exact for a constant, else Gauss-Legendre's rule of 32 points.

    Raises:
        ConfigError: another order, or times that are not monotone.
    """
    if order not in (1, 2):
        raise ConfigError(f"order: given {order}, must be 1 (ExpEuler) or 2 (ExpHeun)")
    times = torch.as_tensor(times, dtype=torch.float64)
    gaps = times.diff()
    if times.ndim != 1 or len(times) < 2 or not bool((gaps > 0).all() | (gaps < 0).all()):
        raise ConfigError(f"times: given shape {tuple(times.shape)}, must be at least two and strictly monotone")
    nodes, weights = gauss_legendre()
    for s, t in pairwise(times):
        h = t - s
        if integral is not None:
            a = integral(s, t)
        elif callable(rate):
            a = h * sum((w * rate(s + h * u) for u, w in zip(nodes, weights, strict=True)), torch.zeros_like(h))
        else:
            a = h * rate
        a = torch.as_tensor(a, device=x.device).double()
        step = h.to(x.device)
        now = source(x, s)
        p = a.exp().to(x.dtype) * x + (step * phi(1, a)).to(x.dtype) * now
        x = p if order == 1 else p + (step * phi(2, a)).to(x.dtype) * (source(p, t) - now)
    return x
