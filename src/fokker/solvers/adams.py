r"""Adams-Bashforth on the velocity, in coordinates where the velocity is all there is (cf. book Sec. 4.4.1, Table 5.2).

    space "flow"    y = x / (alpha + sigma),      u = sigma / (alpha + sigma),  dy/du = noise - x0
    space "angle"   y = x / hypot(alpha, sigma),  u = atan(sigma / alpha),      dy/du = v / hypot(alpha, sigma)

Every process is `Flow` in the first and `Trig` in the second, up to scale and clock. Both are regular at the two ends,
alpha = 0 and sigma = 0, so the last step to 0 has the order of the others, where x0-form solvers fall back to DDIM.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..component import component
from ..process import Process
from .base import Solver
from .exponential import interpolation
from .multistep import ring
from .plan import Step

__all__ = ["Adams"]


@component
class Adams(Solver):
    """y_t = y_s + int_{u_s}^{u_t} p(u) du, p through the newest `degree` + 1 velocities, by exact weights on any grid.

    A step has order degree + 1 once the history is full; the first, of order 1, leaves order 2 overall. One evaluation
    a step. Degree 0 in "flow" is DDIM.

    Args:
        degree: of the polynomial, 0 to 3.
        space: "flow" or "angle" (see the module).
    """

    degree: Annotated[int, Field(ge=0, le=3)] = 1
    space: Literal["flow", "angle"] = "angle"
    open_data = True
    reaches_zero = True

    @property
    def order(self) -> int:
        return min(self.degree + 1, 2)

    @property
    def slots(self) -> int:  # type: ignore[override]
        return self.degree + 1

    def steps(self, process: Process, s: Tensor, t: Tensor) -> list[Step]:
        times = torch.cat([s, t[-1:]])
        alpha, sigma = process.alpha(times), process.sigma(times)
        sigma = torch.where(times == 0.0, 0.0, sigma)  # time 0 means x0, whatever sigma(0) is
        if self.space == "flow":
            scale = alpha + sigma
            u, on_x0, on_noise = sigma / scale, -torch.ones_like(scale), torch.ones_like(scale)
        else:
            scale = torch.hypot(alpha, sigma)
            u, on_x0, on_noise = torch.atan2(sigma, alpha), -sigma / scale, alpha / scale
        # noise = (x - alpha x0) / sigma
        velocity = torch.stack([on_noise / sigma, on_x0 - on_noise * alpha / sigma], -1)
        table = torch.zeros(len(s), self.slots, dtype=torch.float64)
        for k in range(1, min(self.slots, len(s)) + 1):
            rows = torch.arange(k - 1, k if k < self.slots else len(s))
            begin, h = u[rows][:, None], (u[rows + 1] - u[rows])[:, None]
            nodes = torch.stack([u[rows - j] for j in range(k)], -1)
            moments = (1.0 / torch.arange(1, k + 1, dtype=torch.float64)).expand(len(rows), k)
            table[rows, :k] = interpolation((nodes - begin) / h, moments) * h * scale[rows + 1][:, None]
        return ring("data", s, t, scale[1:] / scale[:-1], table, self.slots, affine=velocity)
