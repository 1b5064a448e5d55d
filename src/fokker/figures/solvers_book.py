"""Plots of the book's Figs. 9.1 to 9.7."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from . import solver_numbers as numbers
from .style import BLUE, GREEN, GREY, LIGHT, ORANGE, RED, SKY, arrow, new

__all__ = ["ddim_jump", "deis_extrapolation", "heun_parallelogram", "picard_graphs", "sliding_window"]


def ddim_jump() -> Canvas:
    """Fig. 9.1."""
    s = 0.7
    near = numbers.ddim_jump(s - torch.linspace(0.0, 0.6, 121, dtype=numbers.F64))
    ratio = numbers.ddim_jump(torch.cat([torch.tensor([s]).double(), s - torch.logspace(-2.3, -0.25, 30).double()]))
    figure, (left, right) = new(1, 2, (8.0, 3.6), width_ratios=(3, 2))
    left.plot(near.times, near.exact, color=GREY, label="exact trajectory")
    left.plot(near.times, near.ddim, color=ORANGE, ls=":", lw=1.0)
    for i in (40, 80, 120):
        end = (float(near.times[i]), float(near.ddim[i]))
        arrow(left, (s, float(near.exact[0])), end, ORANGE, lw=1.2)
        left.plot([end[0]] * 2, [end[1], float(near.exact[i])], color=BLUE, lw=2.5)
        left.plot(end[0], float(near.exact[i]), "o", color=GREY)
    left.plot([], [], color=ORANGE, label="one DDIM step")
    left.plot([], [], color=BLUE, lw=2.5, label="its error")
    left.plot(s, near.exact[0], "o", color="black")
    left.annotate("$x_s$", (s, float(near.exact[0])), (-4, 8), textcoords="offset points")
    left.invert_xaxis()
    left.set(xlabel="t  (noise to data)", ylabel="x", title="Flow: a step from s = 0.7 to t")
    left.legend(loc="upper left")
    gap, step = (ratio.exact - ratio.ddim).abs()[1:], s - ratio.times[1:]
    right.loglog(step, gap, color=BLUE, label="error")
    right.loglog(step, gap[0] * (step / step[0]) ** 2, color=GREY, ls="--", lw=1.0, label="$(s - t)^2$")
    right.set(xlabel="s - t", title="it grows as the step squared")
    right.legend()
    return figure


def deis_extrapolation() -> Canvas:
    """Fig. 9.2."""
    anchors, end = (2.0, 1.4, 0.9), 0.4
    found = numbers.deis_extrapolation(anchors, end, 1.0)
    figure, axes = new(size=(6.4, 4.0))
    last = found.times <= anchors[-1]
    axes.plot(found.times, found.exact, color=GREY, lw=2.0, label="noise prediction along the trajectory")
    axes.plot(found.times, found.quadratic, color=ORANGE, ls="--", label="quadratic through the anchors")
    constant = found.said[-1].expand_as(found.exact)
    axes.plot(found.times[last], constant[last], color=RED, ls=":", label="constant (DDIM)")
    part = (found.times[last], found.exact[last])
    axes.fill_between(*part, constant[last], color=RED, alpha=0.12, lw=0)
    axes.fill_between(*part, found.quadratic[last], color=ORANGE, alpha=0.45, lw=0)
    axes.plot(found.anchors, found.said, "o", color="black", ms=5)
    for k, (t, y) in enumerate(zip(found.anchors.tolist(), found.said.tolist(), strict=True)):
        axes.annotate(f"$t_{k + 2}$", (t, y), (0, 9), textcoords="offset points", ha="center")
    axes.axvline(end, color=LIGHT, lw=1.0)
    axes.margins(y=0.12)
    low = axes.get_ylim()[0]
    axes.annotate("$t_5$", (end, low), (4, 6), textcoords="offset points")
    quadratic, flat = (abs(miss) for miss in found.missed)
    axes.set(xlabel="t = $\\sigma$  (noise to data)", ylabel="noise prediction")
    axes.set_title(f"EDM: shaded areas are errors of the step: DEIS {quadratic:.4f}, DDIM {flat:.4f}")
    axes.invert_xaxis()
    axes.legend(loc="best")
    return figure


def heun_parallelogram() -> Canvas:
    """Fig. 9.3."""
    found = numbers.heun_parallelogram(-0.6, 1.5, 0.35)
    figure, axes = new(size=(6.4, 4.2))
    axes.plot(found.lam, found.exact, color=GREY, lw=2.0, label="exact trajectory")
    arrow(axes, found.start, found.predicted, BLUE)
    arrow(axes, found.predicted, found.diagonal, GREEN)
    arrow(axes, found.start, found.diagonal, ORANGE, linestyle="--", lw=1.0)
    arrow(axes, found.start, found.end, ORANGE, lw=2.2)
    across = tuple(a + d - b for a, b, d in zip(found.start, found.predicted, found.diagonal, strict=True))
    for near, far in ((found.start, across), (across, found.diagonal)):
        axes.plot(*zip(near, far, strict=True), color=LIGHT, lw=1.0, ls=":")
    axes.plot(*found.start, "o", color="black")
    axes.plot(*found.end, "o", color=ORANGE, ms=6)
    axes.plot(float(found.lam[-1]), float(found.exact[-1]), "o", color=GREY)
    for colour, label in (
        (BLUE, "predictor $h F(x, \\lambda_s)$"),
        (GREEN, "new slope $h F(x^{mid}, \\lambda_t)$"),
        (ORANGE, "half of their sum: Heun's step"),
    ):
        axes.plot([], [], color=colour, label=label)
    axes.set(xlabel="$\\lambda$ = log($\\alpha / \\sigma$)", ylabel="x", title="VP: Heun's parallelogram in $\\lambda$")
    axes.legend(loc="best")
    return figure


def picard_graphs(nodes: int = 6) -> Canvas:
    """Fig. 9.4."""
    sequential, sweep = numbers.dependencies(nodes)
    figure, (left, right) = new(1, 2, (10.0, 3.4))
    for j in range(1, nodes):
        if bool(sequential[j, j - 1]):
            arrow(left, (j - 1, 0.0), (j, 0.0), BLUE, shrinkA=13, shrinkB=13)
    _nodes(left, nodes, 0.0, "")
    left.set(ylim=(-1.2, 1.2), title="(a) one step after another: each waits for the last")
    for j in range(nodes):
        for i in range(j + 1):
            if bool(sweep[j, i]):
                colour = BLUE if i >= j - 1 else SKY
                arrow(right, (i, 1.0), (j, 0.0), colour, shrinkA=13, shrinkB=13, lw=0.9)
    _nodes(right, nodes, 1.0, "k")
    _nodes(right, nodes, 0.0, "k+1")
    right.set(ylim=(-0.5, 1.5), title="(b) Picard: all nodes at once, from the iterate before")
    for axes in (left, right):
        axes.set(xlim=(-0.5, nodes - 0.5))
        axes.axis("off")
    return figure


def _nodes(axes: Any, count: int, height: float, iterate: str) -> None:
    for j in range(count):
        axes.plot(j, height, "o", ms=26, mfc="white", mec=GREY)
        mark = f"x_{j}" + (f"^{{{iterate}}}" if iterate else "")
        axes.text(j, height, f"${mark}$", ha="center", va="center", fontsize=9 if iterate == "k+1" else 10)


def sliding_window() -> Canvas:
    """Figs. 9.5 to 9.7."""
    times, tolerance = torch.linspace(0.98, 0.02, 11, dtype=numbers.F64), 1e-3
    window = numbers.sliding_window(times, 0.35, 4, tolerance)[2]
    nodes = list(range(window.left, window.left + len(window.moves) + 1))
    figure, panels = new(1, 3, (9.6, 3.4), sharex=True)
    for axes in panels[:2]:
        axes.plot(window.before, "o-", color=LIGHT, lw=1.0, label="states before")
        axes.set(ylabel="x", ylim=(0.25, 0.85))
    for i, move in zip(nodes, window.moves.tolist(), strict=False):
        x = float(window.before[i])
        arrow(panels[0], (i, x), (i + 1, x + move), BLUE, lw=1.4)
    panels[0].plot([], [], color=BLUE, label="their drifts")
    panels[0].set_title("1. drifts, in one batch")
    panels[1].plot(nodes, window.after[nodes], "o-", color=BLUE, label="left end + running sum")
    panels[1].set_title("2. states by their sum")
    colours = [GREEN if i < window.stride else ORANGE if i == window.stride else LIGHT for i in range(1, len(nodes))]
    panels[2].bar(nodes[1:], window.wrong.tolist(), color=colours, width=0.6)
    panels[2].axhline(tolerance, color=GREY, ls="--", lw=1.0)
    panels[2].text(-0.4, tolerance * 1.25, "tolerance", color=GREY, fontsize=8)
    panels[2].set(yscale="log", ylabel="squared change", ylim=(1e-5, 1.0))
    panels[2].set_title(f"3. the window slides by {window.stride}")
    for axes in panels:
        axes.axvspan(nodes[0] - 0.3, nodes[-1] + 0.3, color=SKY, alpha=0.12, lw=0)
        axes.set(xlabel="node")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[2].axvline(nodes[0] + window.stride, color=ORANGE, lw=1.0, ls=":")
    panels[2].text(nodes[0] + window.stride, 0.35, " new left end", color=ORANGE, fontsize=8)
    for axes in panels[:2]:
        axes.legend(loc="upper left")
    return figure
