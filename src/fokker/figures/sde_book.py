"""Plots of the book's Chapter 4: noising, reverse SDEs, the probability flow, and what the printed signs would do."""

from __future__ import annotations

import math
from typing import Any

import torch
from matplotlib.figure import Figure as Canvas

from ..process import EDM, VP
from . import sde_numbers as numbers
from .score_book import contours, square, table
from .score_numbers import F64, mesh
from .style import BLUE, DARK, GREEN, GREY, LIGHT, ORANGE, RED, arrow, new

__all__ = [
    "forward_heat",
    "one_step",
    "perturbations",
    "reverse_heat",
    "snapshots",
    "summary",
    "two_ways",
    "wrong_signs",
]


def one_step(x: float = 1.4, t: float = 0.3, dt: float = 0.15) -> Canvas:
    """Fig. 4.1."""
    figure, panels = new(1, 2, (8.4, 3.8), sharey=True)
    for axes, process, title in (
        (panels[0], EDM(), "NCSN: f = 0, $g^2 = d\\sigma^2/dt$"),
        (panels[1], VP(), "DDPM: f = $-\\beta(t) x / 2$, $g^2 = \\beta(t)$"),
    ):
        found = numbers.one_step(process, x, t, dt)
        height = torch.linspace(-2.0, 3.6, 301, dtype=F64)
        for (mean, std), colour, label in (
            (found.exact, LIGHT, "exact kernel"),
            (found.euler, BLUE, "N(x + f dt, $g^2$ dt)"),
        ):
            density = (-0.5 * ((height - mean) / std) ** 2).exp() / (std * math.sqrt(2.0 * math.pi))
            far = t + dt + 0.05 * density
            axes.fill_betweenx(height, t + dt, far, color=colour, alpha=0.25, lw=0)
            axes.plot(far, height, color=colour, lw=1.4, label=label)
        mean, std = found.euler
        arrow(axes, (t, x), (t + dt, mean), RED)
        arrow(axes, (t + dt, mean), (t + dt, mean + std), GREEN)
        axes.plot([], [], color=RED, label="drift f dt")
        axes.plot([], [], color=GREEN, label="noise g $\\sqrt{dt}$ (one std)")
        axes.plot(t, x, "o", color=DARK, ms=6)
        axes.annotate("$x_t$", (t, x), (-16, 6), textcoords="offset points")
        axes.axvline(t, color=LIGHT, lw=0.8)
        axes.axvline(t + dt, color=LIGHT, lw=0.8)
        axes.set(xlim=(t - 0.05, t + dt + 0.12), xlabel="t", title=title)
        axes.legend(loc="upper left")
    panels[0].set(ylabel="x", ylim=(-2.2, 4.4))
    return figure


def _heat(axes: Any, found: numbers.Heat) -> None:
    low, high = float(found.times.min()), float(found.times.max())
    axes.imshow(
        found.density.sqrt().numpy(),
        extent=(low, high, float(found.x[0]), float(found.x[-1])),
        origin="lower",
        aspect="auto",
        cmap="inferno",
        interpolation="bilinear",
    )
    axes.grid(False)
    axes.set(xlabel="t", ylim=(float(found.x[0]), float(found.x[-1])), xlim=(low, high))


def _ends(figure: Canvas, main: Any, found: numbers.Heat, left: Any, right: Any) -> None:
    """The densities at both ends beside the picture."""
    for axes, column, title in ((left, 0, "data"), (right, -1, "noise")):
        axes.fill_betweenx(found.x, 0.0, found.density[:, column], color=ORANGE, alpha=0.5, lw=0)
        axes.set(title=title, xticks=[], ylim=main.get_ylim())
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set_yticks([])
    left.invert_xaxis()


def forward_heat() -> Canvas:
    """Fig. 4.2."""
    found = numbers.forward_paths()
    figure, (left, main, right) = new(1, 3, (8.8, 4.2), width_ratios=(1, 8, 1))
    _heat(main, found)
    assert found.ode is not None
    for k in range(found.sde.shape[1]):
        main.plot(found.times, found.sde[:, k], color="#7FC8FF", lw=0.8)
        main.plot(found.times, found.ode[:, k], color="white", lw=1.6)
    main.plot([], [], color="#7FC8FF", label="forward SDE")
    main.plot([], [], color="white", label="probability flow ODE")
    main.legend(loc="upper right", labelcolor="white")
    main.set(title="$\\sqrt{p_t(x)}$ of VP: one density, two dynamics")
    _ends(figure, main, found, left, right)
    main.set_ylabel("x")
    return figure


def reverse_heat() -> Canvas:
    """Fig. 4.3."""
    found = numbers.reverse_paths()
    figure, (left, main, right) = new(1, 3, (8.8, 4.2), width_ratios=(1, 8, 1))
    _heat(main, found)
    for k in range(found.sde.shape[1]):
        main.plot(found.times, found.sde[:, k], color="#7FC8FF", lw=0.8)
        main.plot(1.0, found.sde[0, k], "o", color="white", mec=DARK, ms=4, clip_on=False, zorder=5)
        main.plot(
            float(found.times[-1]), found.sde[-1, k], "s", color="#7FC8FF", mec=DARK, ms=4, clip_on=False, zorder=5
        )
    main.plot([], [], color="#7FC8FF", label="reverse SDE, from right to left")
    main.legend(loc="lower left", labelcolor="white")
    main.set(title="From the prior back to both modes")
    _ends(figure, main, found, left, right)
    main.set_ylabel("x")
    return figure


def snapshots() -> Canvas:
    """Fig. 4.4."""
    times = (0.02, 0.3, 0.8, numbers.SPREAD)
    figure, panels = new(1, 4, (11.0, 3.4), sharex=True, sharey=True)
    axis, points = mesh(4.5, 121)
    for axes, t in zip(panels, times, strict=True):
        law = numbers.PAIR.at(EDM(), t)
        axes.contourf(axis, axis, law.log_prob(points).exp().reshape(121, 121).T, 12, cmap="Blues")
        axes.plot(*law.sample(250, dtype=F64).T, ".", color=DARK, ms=1.5, alpha=0.5)
        square(axes, 4.5)
        axes.grid(False)
        axes.set(title=f"t = {t:g}", xlabel="$x_1$")
    plate = {"fc": "white", "ec": "none", "alpha": 0.8, "pad": 1.5}
    angle = torch.linspace(0.0, 2.0 * math.pi, 100)
    panels[-1].plot(2 * numbers.SPREAD * angle.cos(), 2 * numbers.SPREAD * angle.sin(), color=RED, ls="--", lw=1.0)
    panels[-1].text(0.0, -4.3, "2 std of N(0, $T^2$I)", color=RED, ha="center", fontsize=8, bbox=plate)
    panels[0].set_ylabel("$x_2$")
    return figure


def two_ways() -> Canvas:
    """Fig. 4.5."""
    found = numbers.ways_from_one_start()
    figure, (left, right) = new(1, 2, (9.4, 4.4), width_ratios=(1, 1.1))
    axis, points = mesh(3.4, 121)
    contours(left, axis, numbers.PAIR.at(EDM(), 0.01).log_prob(points), colour=LIGHT, count=4)
    for k in range(5):
        left.plot(*found.sde[:, k].T, color=BLUE, lw=0.7, alpha=0.8)
    left.plot(*found.sde[-1].T, ".", color=BLUE, ms=4)
    left.plot(*found.ode.T, color=RED, lw=2.6, zorder=5)
    left.plot(*found.ode[0], "o", color=DARK, ms=7)
    left.annotate("$x_T$", tuple(found.ode[0].tolist()), (6, 6), textcoords="offset points")
    left.plot([], [], color=BLUE, lw=1.0, label="reverse SDE: five paths, 40 ends")
    left.plot([], [], color=RED, label="probability flow: one path")
    left.set(xlim=(-3.4, 3.4), ylim=(-2.4, 4.4), aspect="equal")
    left.set(xlabel="$x_1$", ylabel="$x_2$", title="One $x_T$, f = 0, g = $\\sqrt{2t}$")
    left.legend(loc="lower right", frameon=True, framealpha=1.0)
    for k in range(12):
        right.semilogx(found.times, found.sde[:, k, 0], color=BLUE, lw=0.7, alpha=0.7)
    right.semilogx(found.times, found.ode[:, 0], color=RED, lw=2.6)
    right.invert_xaxis()
    right.set(xlabel="t  (noise to data)", ylabel="$x_1$", title="The same over time")
    return figure


def perturbations() -> Canvas:
    """Fig. 4.6."""
    found = numbers.perturbed()
    figure, panels = new(1, 2, (8.6, 3.6), sharex=True, sharey=True)
    for axes, drawn, colour, title in (
        (panels[0], found.stepwise, BLUE, "20 steps $p(x_{t+dt} | x_t)$"),
        (panels[1], found.direct, GREEN, "one draw of $p_t(x_t | x_0)$"),
    ):
        axes.hist(
            drawn.numpy(),
            bins=90,
            range=(-3.5, 3.5),
            density=True,
            color=colour,
            alpha=0.6,
            label=f"{len(drawn)} draws",
        )
        axes.plot(found.x, found.density, color=DARK, label="$p_t$")
        axes.set(xlabel="$x_t$", title=f"{title}: std {float(drawn.std()):.3f}")
        axes.legend()
    panels[0].set_ylabel("density")
    return figure


def summary() -> Canvas:
    """Table 4.1."""
    found = numbers.kernels((0.5, 1.0))
    variance = "variance at t = {}: stepped / closed"
    rows = [
        ["f(x, t)", "0", r"$-\beta(t)\, x / 2$", r"$-\beta(t)\, x / 2$"],
        ["$g^2(t)$", r"$d\sigma^2 / dt$", r"$\beta(t)$", r"$\beta(t)\, (1 - e^{-2B(t)})$"],
        ["mean of $p_t(x_t | x_0)$", "$x_0$", "$e^{-B(t)/2} x_0$", "$e^{-B(t)/2} x_0$"],
        ["its variance", r"$\sigma^2(t) - \sigma^2(0)$", "$1 - e^{-B(t)}$", "$(1 - e^{-B(t)})^2$"],
        ["prior", r"$N(0, \sigma^2(T) I)$", "N(0, I)", "N(0, I)"],
        ["drawn for", r"$\sigma(t) = .01 \cdot 5000^t$", r"$\beta(t) = .1 + 19.9\, t$", r"$\beta(t) = .1 + 19.9\, t$"],
        ["scale at t = 0.5: stepped / closed", *(f"{one[0].scale:.9f} / {one[0].closed_scale:.9f}" for one in found)],
        *(
            [variance.format(t), *(f"{one[k].var:.9g} / {one[k].closed_var:.9g}" for one in found)]
            for k, t in enumerate((0.5, 1))
        ),
    ]
    return table(("", "VE", "VP", "sub-VP"), rows, (0.26, 0.25, 0.25, 0.25), (10.0, 3.7))


def wrong_signs() -> Canvas:
    """The reverse SDE of Thm 4.1.1(ii), corrected and as printed."""
    found = numbers.clock_moments()
    labels = {
        "right": "$[-f + g^2 s_{T-u}]\\,du$",
        "unflipped": "$[f - g^2 s_{T-u}]\\,du$: sign not flipped",
        "printed": "$[f - g^2 s_u]\\,du$: as printed",
    }
    looks = {"right": (BLUE, "-"), "unflipped": (ORANGE, "-"), "printed": (RED, "-")}
    figure, (left, right) = new(1, 2, (9.2, 3.8))
    left.plot(found.u, found.law_mean, color=GREY, lw=4.0, alpha=0.4, label="the law's own")
    right.semilogy(found.u, found.law_var, color=GREY, lw=4.0, alpha=0.4, label="the law's own")
    for kind in numbers.SIGNS:
        colour, style = looks[kind]
        mean, var = found.mean[kind], found.var[kind]
        left.plot(found.u, mean, color=colour, ls=style, label=f"{labels[kind]} (ends at {float(mean[-1]):.1f})")
        right.semilogy(found.u, var, color=colour, ls=style, label=f"ends at {float(var[-1]):.4g}")
    left.set(xlabel="u = T - t  (noise to data)", title="Mean of the reverse SDE", ylim=(-32.0, 14.0))
    right.set(xlabel="u = T - t", title="Its variance")
    for axes in (left, right):
        axes.legend(loc="upper left")
    return figure
