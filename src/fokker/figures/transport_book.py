"""Plots of the book's Figs. 5.1 to 5.3, A.1, B.1 and B.2: densities that follow maps, flows and noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import ConnectionPatch
from torch import Tensor

from . import transport_numbers as numbers
from .score_book import contours, quiver, square
from .score_numbers import F64
from .style import BLUE, DARK, GREEN, GREY, LIGHT, ORANGE, RED, SKY, arrow, new

__all__ = ["change_of_variables", "deforming", "euler_steps", "flow_stack", "normalizing_flow", "residual_layers"]


def _lines(axes: Any, lines: Tensor, colour: str = LIGHT) -> None:
    for line in lines:
        axes.plot(*line.T, color=colour, lw=0.6)


def _mesh_lines(span: float = 2.4, count: int = 9, points: int = 61) -> Tensor:
    """Lines of a square grid, (2 count, points, 2)."""
    across = torch.cartesian_prod(
        torch.linspace(-span, span, count, dtype=F64), torch.linspace(-span, span, points, dtype=F64)
    ).reshape(count, points, 2)
    return torch.cat([across, across.flip(-1)])


def _images(lines: Tensor) -> list[Tensor]:
    return [moved.reshape(lines.shape) for moved in numbers.push(lines.reshape(-1, 2))]


def normalizing_flow() -> Canvas:
    """Fig. 5.1."""
    z = numbers.normals(900, 2)
    clouds, lines = numbers.push(z), _images(_mesh_lines())
    hue = torch.atan2(z[:, 1], z[:, 0])
    figure, (left, right) = new(1, 2, (8.8, 4.7))
    for axes, cloud, grid in ((left, clouds[0], lines[0]), (right, clouds[-1], lines[-1])):
        _lines(axes, grid)
        axes.scatter(*cloud.T, c=hue, cmap="hsv", s=5, zorder=3)
        square(axes, 6.0)
        axes.grid(False)
    right.tick_params(labelleft=False)
    left.set(title="$z \\sim N(0, I)$")
    right.set(title="x = F(z), four affine couplings")
    for height, ends, colour, text in ((4.8, (left, right), BLUE, "F"), (-4.8, (right, left), RED, "$F^{-1}$")):
        start, stop = (5.0, -5.0) if colour == BLUE else (-5.0, 5.0)
        figure.add_artist(
            ConnectionPatch(
                (start, height), (stop, height), "data", "data", axesA=ends[0], axesB=ends[1], arrowstyle="-|>",
                color=colour, lw=1.8, mutation_scale=14,
            )
        )  # fmt: skip
        left.text(6.2, height + 0.3, text, color=colour, fontsize=12, ha="center")
    return figure


def flow_stack() -> Canvas:
    """Fig. 5.2."""
    clouds, lines = numbers.push(numbers.normals(500, 2)), _images(_mesh_lines())
    axis = torch.linspace(-5.6, 5.6, 121, dtype=F64)
    mesh = torch.cartesian_prod(axis, axis)
    figure, panels = new(2, 5, (12.0, 5.0), sharex=True, sharey=True)
    for k in range(5):
        above, below = panels[:, k]
        _lines(above, lines[k])
        above.plot(*clouds[k].T, ".", color=BLUE, ms=2.0)
        density = numbers.pull(mesh, numbers.STACK[:k]).exp().reshape(121, 121).T
        below.contourf(axis, axis, density, 12, cmap="Blues")
        s = numbers.STACK[k - 1].forward(clouds[k - 1])[1] if k else torch.zeros(1)
        name = "$x_0 = z$" if not k else f"$x_{k} = F_{k - 1}(x_{k - 1})$"
        above.set_title(
            name if not k else f"{name}\nlog|det| {float(s.min()):+.2f} to {float(s.max()):+.2f}",
            loc="center",
            fontsize=9,
        )
        for axes in (above, below):
            square(axes, 5.6)
            axes.grid(False)
    panels[0, 0].set_ylabel("samples and grid")
    panels[1, 0].set_ylabel("density")
    return figure


def residual_layers() -> Canvas:
    """Fig. 5.3."""
    found = numbers.layers()
    figure, (left, right) = new(1, 2, (9.6, 4.0), sharey=True)
    for k in range(found.layers.shape[1]):
        for j in range(len(found.nodes) - 1):
            ends = [(float(found.nodes[i]), float(found.layers[i, k])) for i in (j, j + 1)]
            arrow(left, ends[0], ends[1], BLUE, lw=1.0, mutation_scale=8)
        left.plot(found.nodes, found.layers[:, k], "o", color=BLUE, ms=3.5)
        right.plot(found.u, found.flow[:, k], color=BLUE, lw=1.4)
    for u in found.nodes.tolist():
        left.axvline(u, color=LIGHT, lw=0.8, zorder=0)
    across, up = torch.meshgrid(found.columns, found.x, indexing="xy")
    angle = (0.5 * found.field).atan()
    right.quiver(across, up, angle.cos(), angle.sin(), color=LIGHT, scale=32.0, width=0.004, zorder=0)
    left.set(xlabel="u", ylabel="x", title="Five residual layers, x + v(x, u) / 5")
    right.set(xlabel="u", ylim=(-3.0, 3.0), title="The flow dx/du = v(x, u) over its field")
    for axes in (left, right):
        axes.grid(False)
    return figure


def euler_steps() -> Canvas:
    """Fig. A.1: x' = x cos t, whose solutions are x(0) exp(sin t)."""
    fine, coarse = torch.linspace(0.0, 6.0, 241, dtype=F64), torch.linspace(0.0, 6.0, 9, dtype=F64)
    starts = torch.tensor([-1.2, -0.7, -0.3, 0.3, 0.7, 1.2], dtype=F64)
    exact = starts * fine.sin().exp()[:, None]
    steps = numbers.euler(lambda x, t: x * math.cos(t), starts, coarse)
    across, up = torch.meshgrid(
        torch.linspace(0.15, 5.9, 19, dtype=F64), torch.linspace(-3.2, 3.2, 15, dtype=F64), indexing="xy"
    )
    angle = (up * across.cos()).atan()
    figure, (left, right) = new(1, 2, (10.0, 4.0), sharex=True, sharey=True)
    for axes in (left, right):
        axes.quiver(across, up, angle.cos(), angle.sin(), color=LIGHT, scale=38.0, width=0.0035, zorder=0)
        axes.grid(False)
        axes.set(xlabel="t", ylim=(-3.5, 4.2))
    right.plot(fine, exact, color=BLUE)
    left.plot(fine, exact[:, [1, 4]], color=BLUE)
    for k in (1, 4):
        for j in range(len(coarse) - 1):
            ends = [(float(coarse[i]), float(steps[i, k])) for i in (j, j + 1)]
            arrow(left, ends[0], ends[1], RED, lw=1.2, mutation_scale=9)
        left.plot(coarse, steps[:, k], "o", color=RED, ms=4)
    left.plot([], [], color=BLUE, label="exact")
    left.plot([], [], "o-", color=RED, label="Euler, h = 0.75")
    left.legend(loc="upper center", ncols=2)
    left.set(ylabel="x", title="A solver's steps")
    right.set_title("Exact trajectories never meet")
    return figure


def change_of_variables() -> Canvas:
    """Fig. B.1."""
    rows = numbers.ladder()
    figure, panels = new(4, 4, (11.0, 8.4))
    first = rows[0]
    psi, slope = numbers.MAPS[0]
    x = torch.linspace(-3.4, 3.4, 201, dtype=F64)
    panels[0, 1].plot(x, psi(x), color=RED)
    panels[0, 1].set_title("the map $\\Psi(x)$")
    panels[0, 2].plot(x, 1.0 / slope(x), color=GREEN)
    panels[0, 2].set_title("$|d\\Psi / dx|^{-1}$")
    for axes in panels[0, 1:3]:
        axes.set(xlim=(-3.4, 3.4))
    titles = (
        ("$p_0$", "", "", "$p_1 = p_0 |d\\Psi/dx|^{-1}$"),
        ("$p_0$", "$p_1$", "$p_2$", "$p_3$"),
        ("t = 1", "t = 0.5", "t = 0.25", "t = 0.05"),
        ("t = 0", "t = 0.1", "t = 0.25", "t = 0.6"),
    )
    names = ("1. one bijection", "2. several", "3. ODE: continuity", "4. SDE: Fokker-Planck")
    rows[0] = [first[0], first[0], first[0], first[1]]
    for i, (row, colour) in enumerate(zip(rows, (BLUE, SKY, ORANGE, GREY), strict=True)):
        for j, level in enumerate(row):
            if i == 0 and j in (1, 2):
                continue
            axes = panels[i, j]
            axes.hist(level.samples.numpy(), bins=40, range=(-4.2, 4.2), density=True, color=colour, alpha=0.45)
            axes.plot(level.x, level.density, color=DARK, lw=1.3)
            axes.set(title=titles[i][j], xlim=(-4.2, 4.2), yticks=[])
        panels[i, 0].set_ylabel(names[i])
    return figure


def deforming() -> Canvas:
    """Fig. B.2."""
    found = numbers.deforming()
    figure, panels = new(3, 4, (10.4, 8.0), sharex=True, sharey=True)
    for k, shot in enumerate(found.snapshots):
        field, cloud, density = panels[:, k]
        _lines(field, shot.lines, SKY)
        quiver(field, found.arrows, shot.field, DARK, scale=30.0, width=0.005)
        cloud.plot(*shot.cloud.T, ".", color=BLUE, ms=2.5)
        density.contourf(found.axis, found.axis, shot.log_prob.exp().reshape(len(found.axis), -1).T, 10, cmap="Blues")
        contours(density, found.axis, shot.log_prob, count=5)
        field.set_title(f"t = {shot.t:g}", loc="center")
        for axes in (field, cloud, density):
            square(axes, 3.2)
            axes.grid(False)
    for axes, name in zip(panels[:, 0], ("field and grid", "samples", "density"), strict=True):
        axes.set_ylabel(name)
    return figure
