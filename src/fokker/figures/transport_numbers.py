r"""The numbers of the figures of maps and flows: how a density follows its samples (book Sec. 5.1, App. A and B)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .. import noise
from ..calculus import FokkerPlanck, Grid
from ..forward import diffuse
from ..likelihood import log_prob
from ..process import VP, Flow
from ..sampling import trajectory
from ..solvers import RK4
from .likelihood_numbers import normal_log_prob
from .score_numbers import F64, LINE, PLANE

__all__ = ["STACK", "Coupling", "euler", "ladder", "normals", "pull", "push"]


class Coupling(NamedTuple):
    """An affine coupling of the plane: coordinate `of` becomes x_of exp(s) + t, s and t functions of the other.

    s = scale tanh(rate x), t = shift sin(rate x) + move; the log-determinant is s.
    """

    of: int
    scale: float
    shift: float
    rate: float
    move: float

    def coefficients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(s, t) at states (B, 2)."""
        other = x[:, 1 - self.of] * self.rate
        return self.scale * other.tanh(), self.shift * other.sin() + self.move

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(F(x), log|det dF|)."""
        s, t = self.coefficients(x)
        moved = x[:, self.of] * s.exp() + t
        return torch.stack([moved, x[:, 1]] if self.of == 0 else [x[:, 0], moved], dim=1), s

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """(F^{-1}(y), log|det dF^{-1}|)."""
        s, t = self.coefficients(y)
        moved = (y[:, self.of] - t) * (-s).exp()
        return torch.stack([moved, y[:, 1]] if self.of == 0 else [y[:, 0], moved], dim=1), -s


STACK = (
    Coupling(1, 0.5, 1.2, 1.1, 0.0),
    Coupling(0, 0.6, 0.9, 1.0, 0.2),
    Coupling(1, -0.5, -0.9, 0.9, 0.3),
    Coupling(0, 0.3, -1.0, 1.3, -0.2),
)


def push(z: Tensor, layers: Sequence[Coupling] = STACK) -> list[Tensor]:
    """z and its images after every layer."""
    states = [z]
    for layer in layers:
        states.append(layer.forward(states[-1])[0])
    return states


def pull(x: Tensor, layers: Sequence[Coupling] = STACK) -> Tensor:
    """log p(x) of the images of N(0, I) under the layers: log N(z) plus the inverse maps' log-determinants, (B,)."""
    total = torch.zeros(len(x), dtype=x.dtype)
    for layer in reversed(layers):
        x, gained = layer.inverse(x)
        total = total + gained
    return normal_log_prob(x) + total


def normals(n: int, dims: int, seed: int = 0) -> Tensor:
    """n draws of N(0, I), (n, dims)."""
    return noise.normal(seed, torch.arange(n), (dims,), domain="prior", dtype=F64)


def euler(field: Callable[[Tensor, float], Tensor], x: Tensor, times: Tensor) -> Tensor:
    """Euler's states (N+1, n) of x' = field(x, t) from x (n,) at times[0]."""
    states = [x]
    for s, t in pairwise(times.tolist()):
        states.append(states[-1] + (t - s) * field(states[-1], s))
    return torch.stack(states)


class Layers(NamedTuple):
    """Fig. 5.3 in the flow's clock u = 1 - t, noise to data: the field on a mesh, residual layers and the flow.

    nodes (L+1,), layers (L+1, n); u (M,), flow (M, n); field (X, U) over x and `columns`.
    """

    nodes: Tensor
    layers: Tensor
    u: Tensor
    flow: Tensor
    x: Tensor
    columns: Tensor
    field: Tensor


def layers(count: int = 5, n: int = 9, first: float = 0.02) -> Layers:
    """x + v / L, layer by layer, against dx/du = v, on LINE under the Flow process; v is minus its velocity."""
    denoiser, process = LINE.denoiser(Flow()), Flow()

    def field(x: Tensor, u: float) -> Tensor:
        return -denoiser(x[:, None], 1.0 - u).velocity[:, 0]

    start = torch.linspace(-2.0, 2.0, n, dtype=F64)
    nodes, u = torch.linspace(first, 1.0, count + 1, dtype=F64), torch.linspace(first, 1.0, 101, dtype=F64)
    flow = torch.stack([LINE.flow_map(process, start[:, None], 1.0 - first, 1.0 - t)[:, 0] for t in u.tolist()])
    x, columns = torch.linspace(-2.8, 2.8, 15, dtype=F64), torch.linspace(0.05, 0.97, 15, dtype=F64)
    arrows = torch.stack([field(x, t) for t in columns.tolist()], dim=1)
    return Layers(nodes, euler(field, start, nodes), u, flow, x, columns, arrows)


class Level(NamedTuple):
    """One panel of Fig. B.1: samples (n,), and a density along x (M,)."""

    samples: Tensor
    x: Tensor
    density: Tensor


Map = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]
MAPS: tuple[Map, ...] = (
    (lambda x: x + 0.8 * (2.0 * x).tanh(), lambda x: 1.0 + 1.6 / (2.0 * x).cosh() ** 2),
    (lambda x: (0.8 * x).sinh(), lambda x: 0.8 * (0.8 * x).cosh()),
    (lambda x: x + 0.4 * (1.5 * x + 1.0).sin(), lambda x: 1.0 + 0.6 * (1.5 * x + 1.0).cos()),
)
"""Increasing maps of the line with their derivatives."""


def composed(maps: Sequence[Map], n: int) -> list[Level]:
    """N(0, 1) and its images: p_{k+1}(Psi(x)) = p_k(x) / |Psi'(x)|, followed along a grid's own images."""
    samples, x = normals(n, 1)[:, 0], torch.linspace(-4.2, 4.2, 421, dtype=F64)
    density = normal_log_prob(x[:, None]).exp()
    found = [Level(samples, x, density)]
    for psi, slope in maps:
        samples, density, x = psi(samples), density / slope(x).abs(), psi(x)
        found.append(Level(samples, x, density))
    return found


def flowing(times: Sequence[float], n: int) -> list[Level]:
    """Noise to data by the flow of LINE on VP: log p_t along trajectories by its divergence (`fokker.log_prob`)."""
    last = LINE.at(VP(), times[0])
    start = last.sample(n, seed=3, dtype=F64)
    found = []
    for t in times:
        x = torch.linspace(-3.4, 3.4, 121, dtype=F64)[:, None]
        density = last.log_prob(x)
        if t != times[0]:
            grid = torch.linspace(math.sqrt(t), math.sqrt(times[0]), 25, dtype=F64).square()
            density = log_prob(LINE.denoiser(VP()), x, solver=RK4(), grid=grid, prior=last.log_prob).value
        found.append(Level(LINE.flow_map(VP(), start, times[0], t)[:, 0], x[:, 0], density.exp()))
    return found


def diffusing(times: Sequence[float], n: int) -> list[Level]:
    """Data to noise by the SDE of VP: paths of Euler-Maruyama, and the Fokker-Planck equation on a grid."""
    process, grid = VP(), Grid((-4.5,), (4.5,), (300,))
    fine = torch.cat(
        [torch.linspace(a, b, 21, dtype=F64)[:-1] for a, b in pairwise(times)] + [torch.tensor([times[-1]])]
    )
    paths = diffuse(process, LINE.sample(n, seed=5, dtype=F64), fine, method="euler", seed=5)[::20, :, 0]
    equation = FokkerPlanck(
        grid, lambda x, t: float(process.f(t)) * x, lambda x, t: float(process.g2(t)) ** 0.5 * torch.ones(())
    )
    densities = equation.solve(grid.tabulate(LINE.log_prob), times, substeps=20)
    return [Level(path, grid.axis(0), density) for path, density in zip(paths, densities, strict=True)]


def ladder(n: int = 1000) -> list[list[Level]]:
    """Fig. B.1: one bijection, several, a velocity field, and noise: samples and densities at every level."""
    return [
        composed(MAPS[:1], n),
        composed(MAPS, n),
        flowing((1.0, 0.5, 0.25, 0.05), n),
        diffusing((0.0, 0.1, 0.25, 0.6), n),
    ]


class Snapshot(NamedTuple):
    """Fig. B.2 at one time: the field at the mesh of arrows, grid lines, cloud, and log p on the mesh of contours."""

    t: float
    field: Tensor
    lines: Tensor
    cloud: Tensor
    log_prob: Tensor


class Deforming(NamedTuple):
    """Fig. B.2: where the arrows are (A, 2), the axis of the contours' mesh, and the snapshots."""

    arrows: Tensor
    axis: Tensor
    snapshots: list[Snapshot]


def deforming(times: Sequence[float] = (0.98, 0.6, 0.35, 0.1), n: int = 400, cells: int = 33) -> Deforming:
    """The flow of PLANE under the Flow process, noise to data; densities by the likelihood ODE back to the first time.

    Grid lines are (2 x 11, 41, 2): eleven each way, moved point by point.
    """
    process, first = Flow(), PLANE.at(Flow(), times[0])
    denoiser = PLANE.denoiser(process)
    ticks, along = torch.linspace(-2.5, 2.5, 11, dtype=F64), torch.linspace(-2.5, 2.5, 41, dtype=F64)
    across = torch.cartesian_prod(ticks, along).reshape(11, 41, 2)
    lines = torch.cat([across, across.flip(-1)])
    x = torch.cat([lines.reshape(-1, 2), first.sample(n, seed=2, dtype=F64)])
    pieces = [torch.linspace(a, b, 13, dtype=F64)[:-1] for a, b in pairwise(times)]
    fine = torch.cat([*pieces, torch.tensor([times[-1]], dtype=F64)])
    states = trajectory(denoiser, x=x, solver=RK4(), grid=fine, dtype=F64)[1][::12]
    axis = torch.linspace(-3.2, 3.2, cells, dtype=F64)
    mesh, points = torch.cartesian_prod(axis, axis), torch.linspace(-2.8, 2.8, 13, dtype=F64)
    arrows = torch.cartesian_prod(points, points)
    found = []
    for t, state in zip(times, states, strict=True):
        value = first.log_prob(mesh)
        if t != times[0]:
            grid = torch.linspace(t, times[0], 17, dtype=F64)
            value = log_prob(denoiser, mesh, solver=RK4(), grid=grid, prior=first.log_prob).value
        moved = state[: 22 * 41].reshape(22, 41, 2)
        found.append(Snapshot(t, -denoiser(arrows, t).velocity, moved, state[22 * 41 :], value))
    return Deforming(arrows, axis, found)
