"""Plots of the solvers beyond the book's: orders, errors, grids, guidance, Picard iterates, predictors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import NullFormatter, ScalarFormatter

from ..process import EDM, VP, Flow, Process
from ..solvers import DDIM, DEIS, DPM, PNDM, RK4, Adams, DPMpp, Euler, Heun, Solver, UniPC, as_grid
from . import solver_numbers as numbers
from .style import BLUE, COLOURS, DARK, GREEN, GREY, ORANGE, PURPLE, RED, SKY, new

__all__ = [
    "budgets",
    "concentrated",
    "fans",
    "grid_errors",
    "grids",
    "guidance",
    "orders",
    "picard_residual",
    "predictors",
]

FEW: dict[str, tuple[Solver, str]] = {
    "DDIM": (DDIM(), GREY),
    "Heun": (Heun(), PURPLE),
    "DPM-Solver-2 (published)": (DPM(published=True), RED),
    "DPM-Solver++ 2S (published)": (DPMpp(variant="S", published=True), ORANGE),
    "DPM-Solver++ 2M (published)": (DPMpp(published=True), GREEN),
    "DPM-Solver++ 3M": (DPMpp(order=3), DARK),
    "DEIS-3 in $\\lambda$": (DEIS(degree=3, space="lam"), BLUE),
    "UniPC-3": (UniPC(), SKY),
}
PROCESSES: dict[str, Process] = {"VP": VP(), "EDM": EDM(), "Flow": Flow()}
DEFAULT = "sample's default: Adams, flow time"
KINDS = ("flow", "lam", "t", "karras", "quadratic", "cosine", "beta", "shift")
BUDGETS = (5, 6, 8, 10, 15, 20, 30, 50)


def _lines(axes: Any, along: Any, found: Mapping[str, list[float]], looks: Mapping[str, tuple[Solver, str]]) -> None:
    for name, values in found.items():
        axes.plot(along, values, "o-", color=looks[name][1], label=name, lw=1.3, ms=3)


def _plain(axis: Any, ticks: tuple[float, ...]) -> None:
    """Ticks of a logarithmic axis in plain numbers."""
    axis.set_ticks(ticks)
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_formatter(NullFormatter())


def orders(steps: tuple[int, ...] = (8, 16, 32, 64, 128)) -> Canvas:
    """Error against steps, with the nominal slopes."""
    groups: dict[str, dict[str, Solver]] = {
        "order 1": {"Euler in $\\lambda$": Euler("lam"), "DDIM": DDIM()},
        "order 2": {
            "Heun": Heun(),
            "DPM-2": DPM(),
            "++ 2S": DPMpp(variant="S"),
            "++ 2M": DPMpp(),
            "DEIS-1": DEIS(degree=1, space="lam"),
            "PNDM": PNDM(),
        },
        "order 3": {
            "DPM-3": DPM(order=3),
            "++ 3S": DPMpp(order=3, variant="S"),
            "++ 3M": DPMpp(order=3, start="single"),
            "DEIS-2": DEIS(space="lam", start="single"),
            "UniPC-2": UniPC(order=2, start="single"),
        },
        "order 4": {
            "RK4 in $\\lambda$": RK4(space="lam"),
            "DEIS-3": DEIS(degree=3, space="lam", start="single"),
            "UniPC-3": UniPC(start="single"),
        },
    }
    figure, panels = new(2, 2, (8.0, 6.4), sharex=True, sharey=True)
    for order, (axes, (title, solvers)) in enumerate(zip(panels.flat, groups.items(), strict=True), 1):
        found = numbers.convergence(VP(), solvers, steps)
        for name, values in found.items():
            axes.loglog(steps, values, "o-", label=name, lw=1.2, ms=3)
        level = min(values[-1] for values in found.values()) / 2.5
        axes.loglog(steps[1:], [level * (steps[-1] / n) ** order for n in steps[1:]], color=GREY, ls="--", lw=1.0)
        axes.set_title(f"{title} (dashed: slope -{order})")
        axes.legend()
        _plain(axes.xaxis, steps)
    for axes in panels[1]:
        axes.set(xlabel="steps")
    for axes in panels[:, 0]:
        axes.set(ylabel="RMS error")
    return figure


def budgets(evaluations: tuple[int, ...] = BUDGETS) -> Canvas:
    """Error against the number of evaluations on three processes."""
    solvers = {name: solver for name, (solver, _) in FEW.items()}
    figure, panels = new(1, 3, (10.0, 4.4), sharey=True)
    for axes, (title, process) in zip(panels, PROCESSES.items(), strict=True):
        _lines(axes, evaluations, numbers.by_budget(numbers.SMOOTH, process, solvers, evaluations), FEW)
        own = numbers.by_budget(numbers.SMOOTH, process, {DEFAULT: Adams()}, evaluations, "flow")[DEFAULT]
        axes.plot(evaluations, own, "D--", color="black", label=DEFAULT, lw=1.6, ms=3.5)
        axes.set(xscale="log", yscale="log", xlabel="evaluations", title=title, ylim=(1e-4, 3.0))
        _plain(axes.xaxis, (5, 10, 20, 50))
    panels[0].set(ylabel="RMS error")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def guidance(scales: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0, 8.0, 11.0, 15.0), fine: int = 200) -> Canvas:
    """Error against the scale of guidance at 10 and 20 evaluations, and at 10 with x0 clipped."""
    names = [name for name in FEW if name not in ("Heun", "DPM-Solver++ 3M", "UniPC-3")]
    looks = {name: FEW[name] for name in names} | {"DPM-Solver-3": (DPM(order=3), PURPLE)}
    solvers = {name: solver for name, (solver, _) in looks.items()}
    figure, panels = new(1, 3, (10.0, 3.8), sharey=True)
    tables = numbers.by_guidance(solvers, scales, (10, 20), fine=fine)
    tables += numbers.by_guidance(solvers, scales, (10,), bound=2.0, fine=fine)
    titles = ("10 evaluations", "20 evaluations", "10 evaluations, |x0| clipped to 2")
    for axes, table, title in zip(panels, tables, titles, strict=True):
        _lines(axes, scales, table, looks)
        axes.set(yscale="log", xlabel="guidance scale", title=title)
    panels[0].set(ylabel="RMS error")
    panels[1].legend(loc="upper left")
    return figure


def grids(steps: int = 10) -> Canvas:
    """Where the times of several kinds of grid lie, in t and in lam."""
    figure, panels = new(2, 3, (10.0, 5.4), sharey=True)
    for column, (name, process) in enumerate(PROCESSES.items()):
        start, stop = numbers.ends(process)
        for row, kind in enumerate(KINDS):
            times = as_grid(kind).times(process, steps, start, stop, False)
            for axes, along in ((panels[0, column], times), (panels[1, column], process.lam(times))):
                axes.plot(along, [row] * len(times), "|", ms=11, mew=1.6, color=BLUE)
        panels[0, column].set(title=name, xlabel="t" if name != "EDM" else "t = $\\sigma$ (log axis)")
        if name == "EDM":
            panels[0, column].set_xscale("log")
        panels[1, column].set(xlabel="$\\lambda$")
        panels[0, column].invert_xaxis()
    for axes in panels[:, 0]:
        axes.set_yticks(range(len(KINDS)), KINDS)
        axes.set_ylim(len(KINDS) - 0.5, -0.5)
    return figure


def grid_errors(evaluations: tuple[int, ...] = (5, 8, 10, 15, 20, 30, 50)) -> Canvas:
    """Error of one solver on several kinds of grid."""
    figure, panels = new(1, 3, (10.0, 3.8), sharey=True)
    for axes, (title, process) in zip(panels, PROCESSES.items(), strict=True):
        for kind, colour in zip(KINDS, COLOURS, strict=False):
            solver = {kind: DEIS(degree=3, space="lam")}
            values = numbers.by_budget(numbers.SMOOTH, process, solver, evaluations, kind, to_zero=True)[kind]
            look: dict[str, Any] = (
                {"ls": "--", "marker": "s", "mfc": "none", "ms": 6, "zorder": 3} if kind == "t" else {}
            )
            axes.plot(evaluations, values, **{"marker": "o", "ms": 3, "lw": 1.3, **look}, color=colour, label=kind)
        axes.set(xscale="log", yscale="log", xlabel="evaluations", title=title)
        _plain(axes.xaxis, (5, 10, 20, 50))
    panels[0].set(ylabel="RMS error", ylim=(5e-5, 3.0))
    panels[0].legend(loc="lower left")
    return figure


def picard_residual(steps: int = 50, iterations: int = 25) -> Canvas:
    """Distance of each Picard iterate from the sequential solution."""
    found = numbers.picard_residual(steps, iterations).clamp(min=1e-16).log10()
    figure, axes = new(size=(6.8, 3.8))
    picture = axes.imshow(found.numpy(), aspect="auto", origin="upper", cmap="viridis", vmin=-16, vmax=0)
    axes.plot(range(iterations + 1), range(iterations + 1), color="white", lw=1.0, ls="--")
    axes.text(iterations * 0.12, iterations * 0.85, "node j is exact after j iterations", color="white", fontsize=8)
    axes.set(xlabel="node (noise to data)", ylabel="iteration", title=f"Flow, Euler, {steps} steps in parallel")
    axes.grid(visible=False)
    figure.colorbar(picture, label="log10 distance from the sequential state")
    return figure


def fans(points: int = 120) -> Canvas:
    """Trajectories of equally likely starts by few-step solvers over the exact ones."""
    shown: tuple[tuple[str, Solver, int], ...] = (
        ("DDIM, 6 evaluations", DDIM(), 6),
        ("DPM-Solver-2 (published), 6 evaluations", DPM(published=True), 6),
        ("DEIS-3 in $\\lambda$, 6 evaluations", DEIS(degree=3, space="lam"), 6),
        ("DEIS-3 in $\\lambda$, 12 evaluations", DEIS(degree=3, space="lam"), 12),
    )
    process = VP()
    figure, panels = new(2, 2, (8.4, 6.0), sharex=True, sharey=True)
    for axes, (title, solver, nfe) in zip(panels.flat, shown, strict=True):
        found = numbers.fan(process, solver, nfe, points=points)
        axes.plot(process.lam(found.fine), found.exact, color=GREY, lw=0.8, alpha=0.7)
        axes.plot(process.lam(found.times), found.states, "o-", color=BLUE, lw=0.9, ms=2.5)
        wrong = math.sqrt(float((found.states[-1] - found.exact[-1]).square().mean()))
        axes.set(title=f"{title}: RMS {wrong:.3f}", ylim=(-2.6, 2.6))
    for axes in panels[1]:
        axes.set(xlabel="$\\lambda$  (noise to data)")
    for axes in panels[:, 0]:
        axes.set(ylabel="x")
    return figure


def predictors(points: int = 60) -> Canvas:
    """The noise predictor's second moment against the score's."""
    times = torch.logspace(-4.0, 0.0, points, dtype=numbers.F64)
    figure, (left, right) = new(1, 2, (8.4, 3.6))
    laws = ((numbers.SMOOTH, "std 0.25 and 0.35", BLUE), (numbers.CONCENTRATED, "std 0.02", RED))
    for law, label, colour in laws:
        found = numbers.predictor_sizes(law, times)
        left.semilogx(times, found.noise, color=colour, label=label)
        right.loglog(times, found.score, color=colour, label=label)
    left.axhline(1.0, color=GREY, ls="--", lw=1.0, label="bound 1")
    right.loglog(times, found.bound, color=GREY, ls="--", lw=1.0, label="bound $1 / \\sigma^2$")
    left.set(xlabel="t", title="E|noise|$^2$ stays below 1", ylim=(-0.05, 1.35))
    right.set(xlabel="t", title="E|score|$^2$ grows as the data concentrate")
    for axes in (left, right):
        axes.invert_xaxis()
        axes.legend()
    return figure


def concentrated(evaluations: tuple[int, ...] = BUDGETS) -> Canvas:
    """Where exponential integrators win: modes of std 0.02."""
    looks: dict[str, tuple[Solver, str]] = {
        "Euler in t": (Euler(), RED),
        "Heun in t": (Heun(), PURPLE),
        "RK4 in t": (RK4(), ORANGE),
    }
    looks |= {name: FEW[name] for name in ("DDIM", "DPM-Solver++ 2M (published)", "UniPC-3")}
    solvers = {name: solver for name, (solver, _) in looks.items()}
    shown = (
        ("std 0.25 and 0.35, uniform $\\lambda$", numbers.SMOOTH, "lam"),
        ("std 0.02, uniform $\\lambda$", numbers.CONCENTRATED, "lam"),
        ("std 0.02, uniform t", numbers.CONCENTRATED, "t"),
    )
    figure, panels = new(1, 3, (10.0, 3.8), sharey=True)
    for axes, (title, law, grid) in zip(panels, shown, strict=True):
        _lines(axes, evaluations, numbers.by_budget(law, VP(), solvers, evaluations, grid, median=True), looks)
        axes.set(xscale="log", yscale="log", xlabel="evaluations", title=title)
        _plain(axes.xaxis, (5, 10, 20, 50))
    panels[0].set(ylabel="median error")
    panels[0].legend(loc="lower left")
    return figure
