r"""The Fokker-Planck equation on a grid in one or two dimensions, by conservative finite volumes.

    (1)  dp_i / dt = -sum_faces J / h,      J = b p - D dp/dx,   b = f - dD/dx,   D = g^2 / 2,   J = 0 at the border
    (2)  J_{i+1/2} = D / h (B(-w) p_i - B(w) p_{i+1}),   w = b h / D,   B(w) = w / (e^w - 1)
    (3)  (1 - theta dt A) p' = (1 + (1 - theta) dt A) p,   A at the middle of the step

(2) is the flux of Scharfetter & Gummel and of Chang & Cooper: the exact one where b, D and J are constant along the
face's normal, second order in h, upwind as D -> 0. What leaves one cell enters the next, so the sum of p is conserved
to rounding; A has no negative element off its diagonal, so p stays positive while (1 - theta) dt max |A_ii| <= 1.
Sources: book Sec. B.1.3, B.2; Chang & Cooper 1970; Scharfetter & Gummel 1969.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..component import component
from ..errors import ConfigError
from .operators import Field
from .residuals import Noise, amount

__all__ = ["FokkerPlanck", "Grid"]


@component
class Grid:
    """A box in one or two dimensions, cut into equal cells.

    Args:
        low, high: the box's corners, one number for each axis.
        cells: how many cells along each axis, 2 or more.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    cells: tuple[int, ...]

    def __post_init__(self) -> None:
        sizes = {len(self.low), len(self.high), len(self.cells)}
        if sizes not in ({1}, {2}):
            given = f"{len(self.low)}, {len(self.high)} and {len(self.cells)}"
            raise ConfigError(f"Grid: given {given} numbers for low, high and cells, must be 1 or 2 of each")
        if min(self.cells) < 2 or any(not a < b for a, b in zip(self.low, self.high, strict=True)):
            raise ConfigError(f"Grid: given {self}, must have low < high and 2 cells or more along each axis")

    @property
    def widths(self) -> tuple[float, ...]:
        """The cells' lengths h along each axis."""
        return tuple((b - a) / n for a, b, n in zip(self.low, self.high, self.cells, strict=True))

    @property
    def volume(self) -> float:
        """The volume of one cell."""
        return math.prod(self.widths)

    def axis(self, k: int) -> Tensor:
        """The centres along axis k, float64."""
        return self.low[k] + self.widths[k] * (torch.arange(self.cells[k], dtype=torch.float64) + 0.5)

    def centres(self) -> Tensor:
        """The cells' centres (N, d), float64, the last axis fastest."""
        return torch.cartesian_prod(*(self.axis(k) for k in range(len(self.cells)))).reshape(-1, len(self.cells))

    def tabulate(self, log_prob: Callable[[Tensor], Tensor]) -> Tensor:
        """The density exp(log_prob) at the centres, (*cells)."""
        return log_prob(self.centres()).exp().reshape(self.cells)

    def mass(self, density: Tensor) -> Tensor:
        """The integral of densities (..., *cells)."""
        return density.flatten(-len(self.cells)).sum(-1) * self.volume


@dataclass(frozen=True)
class FokkerPlanck:
    """d_t p = -div(f p) + 1/2 sum_i d_i^2 (D_ii p) on a grid, no flux through its border.

    Args:
        grid: wide enough that nothing reaches the border, unless a wall is meant.
        drift: f of (x, t), (N, d) -> (N, d).
        noise: G as in `generator`; a matrix must have a diagonal G G^T.
    """

    grid: Grid
    drift: Field
    noise: Noise = 0.0

    def operator(self, t: float) -> Any:
        """A of dp/dt = A p at time t: a scipy sparse matrix (N, N) over the flattened cells; its columns sum to 0."""
        from scipy import sparse  # only who solves on a grid waits for it

        grid, x = self.grid, self.grid.centres()
        diffusivity = self._diffusivity(x, t)
        numbers = np.arange(len(x)).reshape(grid.cells)
        rows, columns, values = [], [], []
        for k, h in enumerate(grid.widths):
            here = np.take(numbers, range(grid.cells[k] - 1), axis=k).reshape(-1)
            there = np.take(numbers, range(1, grid.cells[k]), axis=k).reshape(-1)
            face = 0.5 * (x[here] + x[there])
            D = 0.5 * (diffusivity[here, k] + diffusivity[there, k])
            b = self.drift(face, t)[:, k].double().numpy() - (diffusivity[there, k] - diffusivity[here, k]) / h
            out, back = _rates(b, D, h)
            rows += [here, there, here, there]
            columns += [here, here, there, there]
            values += [-out / h, out / h, back / h, -back / h]
        entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
        return sparse.csc_matrix(entries, shape=(len(x), len(x)))

    def _diffusivity(self, x: Tensor, t: float) -> Any:
        G = amount(self.noise, x, t).double()
        if G.ndim < 2:
            return (0.5 * G**2 * torch.ones_like(x).T).T.numpy()
        D = 0.5 * G @ G.mT
        if bool((D - torch.diag_embed(D.diagonal(dim1=-2, dim2=-1))).abs().max() > 1e-12 * D.abs().max()):
            raise ConfigError("noise: G G^T has elements off its diagonal; the grid solver needs uncorrelated axes")
        return D.diagonal(dim1=-2, dim2=-1).expand(len(x), -1).numpy()

    def positive_step(self, t: float = 0.0, theta: float = 0.5) -> float:
        """The longest step that keeps every density positive, 1 / ((1 - theta) max |A_ii|); inf for theta = 1."""
        fastest = float(-self.operator(t).diagonal().min())
        return math.inf if theta == 1.0 or fastest == 0.0 else 1.0 / ((1.0 - theta) * fastest)

    def solve(
        self, density: Tensor, times: Sequence[float] | Tensor, *, substeps: int = 1, theta: float = 0.5
    ) -> Tensor:
        """The densities at `times`, (K, *cells) float64 on the CPU, from `density` (*cells) at times[0]; Eq. (3).

        Args:
            times: increasing.
            substeps: equal steps in each interval, 1 or more.
            theta: 1/2 (Crank-Nicolson, second order in time, positive below `positive_step`) to 1 (implicit Euler,
                first order, positive at any step).
        """
        from scipy import sparse
        from scipy.sparse.linalg import splu

        moments = torch.as_tensor(times, dtype=torch.float64).tolist()
        if tuple(density.shape) != self.grid.cells:
            raise ConfigError(f"density: given shape {tuple(density.shape)}, must be {self.grid.cells}")
        if not 0.5 <= theta <= 1.0 or substeps < 1:
            raise ConfigError(f"theta must lie in [0.5, 1] and substeps be 1 or more (given {theta} and {substeps})")
        if any(not a < b for a, b in pairwise(moments)):
            raise ConfigError("times: must increase (run a reverse equation on its own clock)")
        p = density.detach().double().reshape(-1).numpy()
        found, known, eye = [p], None, sparse.identity(p.size, format="csc")
        for a, b in pairwise(moments):
            dt = (b - a) / substeps
            for i in range(substeps):
                A = self.operator(a + (i + 0.5) * dt)
                key = (dt, A.data.tobytes())
                if key != known:  # an equation that does not change is factorised once
                    solver, known = splu(eye - theta * dt * A), key
                p = solver.solve(p + (1.0 - theta) * dt * (A @ p))
            found.append(p)
        return torch.from_numpy(np.stack(found)).reshape(-1, *self.grid.cells)


def _rates(b: Any, D: Any, h: float) -> tuple[Any, Any]:
    """D / h B(-w) and D / h B(w) of Eq. (2); their limits max(b, 0) and max(-b, 0) at D = 0."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        w = b * h / D
        back = np.where(w == 0.0, D / h, b / np.expm1(w))
    back = np.where(D > 0.0, back, np.maximum(-b, 0.0))
    return back + b, back
