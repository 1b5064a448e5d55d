r"""Continuous normalising flows: data and noise joined by the flow of a velocity, trained by maximum likelihood.

    (1)  dx/dt = v(x, t),   x(0) = x data,   x(1) = z ~ N(0, I)          data at t = 0: the book's clock is 1 - t
    (2)  d log p_t(x_t)/dt = -div v along the path (the total derivative),
         log p(x) = log N(x(1); 0, I) + int_0^1 div v dt
    (3)  a(t) = dL/dx(t), b = dL/dl with l = int div v dt:   da/dt = -d/dx (a.v + b div v),
         dL/dphi = int_0^1 d/dphi (a.v + b div v) dt         the adjoint, run back from t = 1 with x beside it

(3) keeps no state of the way there; its gradient is the continuous flow's and differs from the integrator's own by its
error, h^4. Sources: book Eq. 5.1.7-5.1.10 and Lemma 5.1.1; Chen et al. 2018; Grathwohl et al. 2019 (FFJORD).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .. import noise
from ..calculus import Hutchinson, value_and_divergence
from ..component import recorded
from ..likelihood import log_prob
from ..prediction import READINGS, Prediction
from ..process import Flow
from ..sampling import sample
from ..solvers import RK4, Adaptive
from .flows import Bijection, check

__all__ = ["CNF", "Velocity"]

SMALL = 16  # dimensions up to which the divergence is exact
FREQUENCIES = 3
State = tuple[Tensor, ...]
Rate = Callable[[float, State], State]


class Velocity(nn.Module):
    """v(x, t), a perceptron of x and cos, sin of pi k t, k = 1..3; a new one is 0.

    It is a denoiser of the process Flow: `fokker.sample`, `encode` and `log_prob` take it, with every deterministic
    solver.

    Args:
        shape: of one sample.
        width, depth: of the hidden layers.
    """

    reading = READINGS["velocity"]

    def __init__(self, shape: tuple[int, ...], width: int, depth: int) -> None:
        super().__init__()
        self.shape, self.process, self.lam_range = shape, Flow(), (-math.inf, math.inf)
        dim = math.prod(shape)
        sizes = [dim + 2 * FREQUENCIES] + [width] * depth
        hidden = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.SiLU())]
        last = nn.Linear(width, dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(*hidden, last)

    def velocity(self, x: Tensor, t: float | Tensor) -> Tensor:
        """v of x (B, *shape) at a time, a number or (B,)."""
        time = t.to(x) if isinstance(t, Tensor) else x.new_full((), t)
        angle = math.pi * torch.arange(1, FREQUENCIES + 1, device=x.device) * time[..., None]
        features = torch.cat([angle.cos(), angle.sin()], dim=-1).expand(len(x), -1)
        value: Tensor = self.net(torch.cat([x.flatten(1), features], dim=1))
        return value.view(x.shape)

    def forward(self, x: Tensor, s: float | Tensor, cond: Any = None) -> Prediction:
        """The velocity as a prediction."""
        return Prediction(self.process, x, s, velocity=self.velocity(x, s))


def integrate(rate: Rate, state: State, times: list[float]) -> list[State]:
    """The states at the times, by the classical Runge-Kutta method."""
    rows, weights = RK4.tableau
    states = [state]
    for s, t in pairwise(times):
        slopes: list[State] = []
        for row in (*rows, weights):
            moved = tuple(
                x + (t - s) * sum(a * slope[i] for a, slope in zip(row, slopes, strict=True) if a != 0.0)
                for i, x in enumerate(states[-1])
            )
            if row is not weights:
                slopes.append(rate(s + sum(row) * (t - s), moved))
        states.append(moved)
    return states


class _Adjoint(torch.autograd.Function):
    """(x, l) at the last time, with the gradient of Eq. (3)."""

    @staticmethod
    def forward(ctx: Any, rate: Rate, times: list[float], x: Tensor, *parameters: Tensor) -> State:
        end, gained = integrate(rate, (x, x.new_zeros(len(x))), times)[-1]
        ctx.rate, ctx.times = rate, times
        ctx.save_for_backward(end, *parameters)
        return end, gained

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, a: Tensor, b: Tensor) -> Any:
        end, *parameters = ctx.saved_tensors

        def back(t: float, state: State) -> State:
            with torch.enable_grad():
                x = state[0].detach().requires_grad_()
                value, rate = ctx.rate(t, (x,))
                whole = (state[1] * value).sum() + (b * rate).sum()
            slopes = torch.autograd.grad(whole, [x, *parameters], allow_unused=True, materialize_grads=True)
            return (value.detach(), *(-slope for slope in slopes))

        start = (end, a, *(torch.zeros_like(p) for p in parameters))
        _, *found = integrate(back, start, ctx.times[::-1])[-1]
        return None, None, *found


@recorded
class CNF(Bijection):
    """Continuous normalising flow, Eqs. (1) to (3); its divergence is exact up to 16 dimensions.

    Above them it is Hutchinson's, by one sign probe a sample, held along the path: then `log_prob` is right on average.
    The loss integrates by the classical Runge-Kutta method in `steps` steps; `log_prob` and `draw` adaptively. A field
    may learn to profit from errors of integration, most of all where `adjoint` is off (on two moons with steps 4 and a
    learning rate of 1e-2 the loss fell to -8.7 nats, and the density's is 9.0): compare `log_prob`, and give the loss
    more steps or smaller learning rates where the two part. `velocity` is the field, as a denoiser.

    Args:
        shape: of one sample.
        width, depth: of the network's hidden layers, >= 1.
        steps: of the loss, `forward`, `inverse` and `trajectory`, >= 1.
        adjoint: the gradient by Eq. (3), in memory that does not grow with `steps`; False differentiates the
            integrator, which is faster and the exact gradient of the loss.
    """

    config: dict[str, object]

    def __init__(
        self, shape: tuple[int, ...], width: int = 64, depth: int = 3, steps: int = 8, adjoint: bool = True
    ) -> None:
        super().__init__(shape)
        check(self, 1, width=width, depth=depth, steps=steps)
        self.steps, self.adjoint = steps, adjoint
        self.velocity = Velocity(self.shape, width, depth)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """x(0) from x(1) = z, and log |det dx/dz|; the probes are those of seed 0 where the divergence needs them."""
        return self._carry(z, self._times()[::-1], self._probes(z, 0, 0, None))

    def inverse(
        self, x: Tensor, *, seed: int = 0, step: int = 0, indices: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x(1) from x(0) = x, and log |det dz/dx|."""
        return self._carry(x, self._times(), self._probes(x, seed, step, indices))

    def trajectory(self, z: Tensor) -> Tensor:
        """The states at 1 = t_0 > ... > t_N = 0, (N + 1, B, *shape)."""
        states = integrate(lambda t, state: (self.velocity.velocity(state[0], t),), (z,), self._times()[::-1])
        return torch.stack([x for (x,) in states])

    def log_prob(self, x: Tensor, *, seed: int = 0, indices: Tensor | None = None) -> Tensor:
        """log p(x) in nats, (B,), integrated adaptively (rtol = atol = 1e-5); no gradient."""
        probes = None if self.dim <= SMALL else Hutchinson(seed=seed)
        return log_prob(self.velocity, self.check(x), probes=probes, index=indices, grid=[0.0, 1.0]).value.to(x)

    def draw(self, indices: Tensor, seed: int) -> Tensor:
        """x(0) from the normal numbers of samples `indices` (n,), integrated adaptively, (n, *shape)."""
        weight = next(self.parameters())
        z = noise.normal(seed, indices.to(weight.device), self.shape, domain="prior", dtype=weight.dtype)
        return sample(self.velocity, x=z, solver=Adaptive(rtol=1e-4, atol=1e-4))

    def _times(self) -> list[float]:
        return [k / self.steps for k in range(self.steps + 1)]

    def _probes(self, x: Tensor, seed: int, step: int, indices: Tensor | None) -> Tensor | None:
        if self.dim <= SMALL:
            return None
        index = torch.arange(len(x), device=x.device) if indices is None else indices
        return noise.rademacher(seed, index, self.shape, draw=step << 8, dtype=x.dtype)[None]

    def _carry(self, x: Tensor, times: list[float], probes: Tensor | None) -> tuple[Tensor, Tensor]:
        """The state at the last time, and int div v dt on the way."""

        def rate(t: float, state: State) -> State:
            value, rate = value_and_divergence(self.velocity.velocity, state[0], t, probes=probes)
            return value, rate.value

        if self.adjoint:
            end, gained = _Adjoint.apply(rate, times, x, *self.velocity.parameters())  # type: ignore[no-untyped-call]
        else:
            end, gained = integrate(rate, (x, x.new_zeros(len(x))), times)[-1]
        return end, gained
