"""Plots of the Langevin perspective: Figs. 1 to 7 of Zheng & Lan."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure as Canvas
from torch import Tensor

from ..exact import Marginal
from ..process import OU
from . import langevin_numbers as numbers
from .style import BLUE, DARK, GREEN, GREY, LIGHT, ORANGE, PURPLE, RED, arrow, new

__all__ = ["cycle", "forward_clouds", "forward_step", "identity", "ladder", "one_point", "plane", "split"]

FEW = (BLUE, RED, GREEN, ORANGE, PURPLE)


def plane(axes: Any, law: Marginal, reach: float = 3.0, levels: int = 7) -> None:
    """Contours of a density in the plane, and axes of equal scale."""
    line = torch.linspace(-reach, reach, 80, dtype=numbers.F64)
    x, y = torch.meshgrid(line, line, indexing="xy")
    density = law.log_prob(torch.stack([x.flatten(), y.flatten()], 1)).exp().reshape(80, 80)
    axes.contour(x, y, density, levels=levels, colors=LIGHT, linewidths=0.8)
    frame(axes, reach)


def frame(axes: Any, reach: float) -> None:
    """Equal scales, no ticks."""
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
    axes.grid(visible=False)


def dots(axes: Any, x: Tensor, colour: str = DARK, size: float = 2.0, alpha: float = 0.35) -> None:
    """A cloud."""
    axes.plot(x[:, 0], x[:, 1], "o", color=colour, ms=size, alpha=alpha, mew=0)


def identity() -> Canvas:
    """Fig. 1."""
    states = numbers.langevin_path(2.0, 400, 500)
    figure, panels = new(1, 3, (9.6, 3.5))
    chosen = (0, 3, 7, 12, 20)
    for axes, step, title in zip(panels, (0, 20, 400), ("0", "0.1", "2"), strict=True):
        plane(axes, numbers.THREE.at(numbers.HALF, 0.0))
        dots(axes, states[step])
        for colour, i in zip(FEW, chosen, strict=True):
            past = states[: step + 1, i]
            axes.plot(past[:, 0], past[:, 1], color=colour, lw=0.6, alpha=0.7)
            axes.plot(*states[step, i], "o", color=colour, ms=6, mec="white")
        axes.set_title(f"after $\\tau$ = {title}")
    return figure


def forward_clouds(levels: tuple[float, ...] = (0.0, 0.5, 1.0, 4.0)) -> Canvas:
    """Fig. 2."""
    clouds = numbers.forward_clouds(levels, 700)
    names = (("x: VP", clouds.x, 3.0), ("z: VE", clouds.z, 12.0), ("r: rectified flow", clouds.r, 3.0))
    figure, panels = new(3, len(levels), (2.1 * len(levels), 6.4))
    for row, (name, states, reach) in zip(panels, names, strict=True):
        for k, axes in enumerate(row):
            frame(axes, reach)
            dots(axes, states[k])
            for colour, i in zip(FEW, range(5), strict=True):
                axes.plot(states[: k + 1, i, 0], states[: k + 1, i, 1], color=colour, lw=0.9)
                axes.plot(*states[k, i], "o", color=colour, ms=5, mec="white")
        row[0].set_ylabel(f"{name} (to $\\pm${reach:g})", color=DARK)
    for axes, rho in zip(panels[0], levels, strict=True):
        axes.set_title(f"$\\sigma/\\alpha$ = {rho:g}")
    return figure


def forward_step() -> Canvas:
    """Fig. 3."""
    t, h, points = 0.1, 0.4, ((-1.9, 0.7), (1.7, 1.5), (0.9, -1.9))
    found = [numbers.halves(x, t, h, 300).forward for x in points]
    figure, (left, right) = new(1, 2, (7.6, 3.9))
    plane(left, numbers.THREE.at(numbers.HALF, t))
    plane(right, numbers.THREE.at(numbers.HALF, t + h))
    for colour, x, ends in zip(FEW, points, found, strict=False):
        mean = ((1.0 - 0.5 * h) * x[0], (1.0 - 0.5 * h) * x[1])
        left.plot(*x, "o", color=colour, ms=6)
        right.plot(*x, "o", color=colour, ms=6)
        arrow(left, x, mean, colour)
        dots(right, ends, colour)
        circle = torch.linspace(0, 2 * torch.pi, 100)
        left.plot(mean[0] + h**0.5 * circle.cos(), mean[1] + h**0.5 * circle.sin(), color=colour, ls="--", lw=1.0)
    left.set_title(f"at t = {t:g}: shrink by 1 - h/2, then noise of std $\\sqrt{{h}}$")
    right.set_title(f"300 draws each; contours of t = {t + h:g}")
    return figure


def split() -> Canvas:
    """Fig. 4."""
    x, t, h = (1.0, 0.2), 0.2, 0.1
    found = numbers.halves(x, t, h, 1500)
    figure, panels = new(1, 4, (12.0, 3.2), width_ratios=(1, 1, 1, 1.15))
    steps = ((found.forward, "forward: noise", BLUE), (found.both, "then reverse: denoise", GREEN))
    for axes, (cloud, title, colour) in zip(panels, (*steps, (found.whole, "one Langevin step", RED)), strict=False):
        plane(axes, numbers.THREE.at(numbers.HALF, t), 2.4)
        dots(axes, cloud, colour, alpha=0.25)
        axes.plot(*x, "o", color="black", ms=5)
        mean = cloud.mean(0)
        axes.plot(*mean, "x", color="black", ms=7, mew=1.5)
        values, vectors = torch.linalg.eigh(cloud.T.cov())
        turn = torch.linspace(0, 2 * torch.pi, 100, dtype=numbers.F64)
        ring = 2.0 * (vectors * values.sqrt()) @ torch.stack([turn.cos(), turn.sin()])
        axes.plot(mean[0] + ring[0], mean[1] + ring[1], color="black", lw=0.9)
        axes.set_title(title)
    sizes = torch.logspace(-3, -1, 9, dtype=numbers.F64)
    gap = numbers.split_errors(sizes.tolist())
    panels[3].loglog(sizes, gap, "o-", color=BLUE, label="change of variance")
    panels[3].loglog(sizes, gap[0] * (sizes / sizes[0]) ** 2, color=GREY, ls="--", lw=1.0, label="$h^2$")
    panels[3].set(xlabel="step h", title="the halves cancel to second order")
    panels[3].legend()
    return figure


def one_point(steps: int = 300) -> Canvas:
    """Fig. 5."""
    eps = torch.tensor([[1.6, -1.0], [-1.2, 1.1], [-0.7, -1.5], [0.4, 1.7]], dtype=numbers.F64)
    point = (1.1, 0.5)
    found = numbers.towards_one_point(point, eps, steps)
    figure, panels = new(1, 4, (11.6, 3.3))
    for axes, (name, course) in zip(panels, found.items(), strict=True):
        reach = 6.6 if name == "VE-Karras" else 3.2
        for colour, path in zip(FEW, course.states.unbind(1), strict=False):
            axes.plot(path[:, 0], path[:, 1], color=colour, lw=1.0)
            axes.plot(*path[0], "o", color=colour, ms=5, mec="white")
        axes.plot(*point, "*", color="black", ms=11, mec="white")
        frame(axes, reach)
        axes.set_title(f"{name}: chord / length {float(course.straightness.median()):.2f}")
    return figure


def cycle() -> Canvas:
    """Fig. 6."""
    top, steps = 1.5, 250
    found = numbers.cycle(top, steps, 5)
    figure, axes = new(size=(9.0, 3.8))
    ink, place = found.density.sqrt().T, torch.arange(2 * steps + 1) / steps  # the root shows the tails
    dark = 1.3 * float(ink.max())
    axes.pcolormesh(place, found.x, ink, cmap="Greys", shading="nearest", vmin=0.0, vmax=dark, rasterized=True)
    for colour, path in zip(FEW, found.paths.unbind(1), strict=True):
        axes.plot(place, path, color=colour, lw=1.0)
    axes.axvline(1.0, color=GREY, lw=1.0, ls="--")
    axes.grid(visible=False)
    levels = (0.0, 0.05, 0.2, 0.5, 1.0, top)
    ticks = [(t / top) ** 0.5 for t in levels]
    names = ["data", *(f"{t:g}" for t in levels[1:-1]), "noise"]
    axes.set_xticks([*ticks, *(2.0 - u for u in ticks[-2::-1])], [*names, *names[-2::-1]])
    axes.set(ylabel="x", xlabel="t, forward and back", ylim=(-3.2, 3.2))
    axes.set_title(f"forward SDE to t = {top:g}, and the reverse SDE back: the law returns, the sample does not")
    return figure


def ladder(levels: tuple[float, ...] = (0.0, 0.05, 0.2, 0.6, 1.6)) -> Canvas:
    """Fig. 7."""
    found = numbers.ladder(levels, 4000)
    figure, panels = new(2, len(levels), (2.3 * len(levels), 4.3), sharex=True, sharey="col")
    x = torch.linspace(-3.2, 3.2, 300, dtype=numbers.F64)[:, None]
    for k, t in enumerate(levels):
        exact = numbers.LINE.at(OU(2.0), t).log_prob(x).exp()
        for axes, states, colour in zip(panels[:, k], (found.up, found.down), (BLUE, GREEN), strict=True):
            axes.hist(states[k].numpy(), bins=50, range=(-3.2, 3.2), density=True, color=colour, alpha=0.55)
            axes.plot(x[:, 0], exact, color="black", lw=1.1)
            axes.set(yticks=[])
        panels[0, k].set_title(f"t = {t:g}")
        panels[1, k].set_xlabel("x")
    panels[0, 0].set_ylabel("forward chain $\\longrightarrow$")
    panels[1, 0].set_ylabel("reverse chain $\\longleftarrow$")
    return figure
