"""Plots of the book's Chapter 3: energies, scores, Langevin dynamics, denoising score matching, noise levels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from matplotlib.figure import Figure as Canvas
from torch import Tensor

from .. import noise
from . import score_numbers as numbers
from .style import BLUE, DARK, GREEN, GREY, LIGHT, ORANGE, RED, SKY, arrow, new

__all__ = [
    "annealing",
    "comparison",
    "conditional_scores",
    "energy_training",
    "langevin_paths",
    "learned_score",
    "mode_weights",
    "score_error",
    "score_field",
]

F64 = torch.float64
LEVELS = (6.0, 3.0, 1.5, 0.8, 0.4, 0.2)


def contours(axes: Any, axis: Tensor, log_prob: Tensor, colour: str = GREY, count: int = 7, alpha: float = 0.7) -> None:
    """Contours of a log-density on a mesh, equally spaced in height down to a hundredth of the top."""
    cells = len(axis)
    height = (log_prob - log_prob.max()).reshape(cells, cells).T
    levels = torch.linspace(-4.6, -0.15, count).tolist()
    axes.contour(axis, axis, height, levels, colors=colour, linewidths=0.8, linestyles="solid", alpha=alpha)


def quiver(axes: Any, points: Tensor, field: Tensor, colour: str, **options: Any) -> None:
    """Arrows whose length is the root of the field's, which keeps weak ones visible."""
    length = field.norm(dim=1, keepdim=True)
    shown = field / length.clamp(min=1e-12).sqrt()
    axes.quiver(*points.T, *shown.T, color=colour, angles="xy", **({"width": 0.004} | options))


def square(axes: Any, span: float) -> None:
    """A frame from -span to span in equal units."""
    axes.set(xlim=(-span, span), ylim=(-span, span), aspect="equal")


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[float], size: tuple[float, float]
) -> Canvas:
    """A table as a picture; `widths` are the columns' shares."""
    figure, axes = new(size=size)
    axes.axis("off")
    drawn = axes.table(
        cellText=rows,
        colLabels=heads,
        colWidths=widths,
        cellLoc="left",
        colLoc="left",
        loc="center",
        edges="horizontal",
    )
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(9)
    drawn.scale(1.0, 1.85)
    for (row, _), cell in drawn.get_celld().items():
        cell.set_edgecolor(LIGHT)
        cell.PAD = 0.03
        if row == 0:
            cell.set_text_props(weight="bold")
    return figure


def energy_training() -> Canvas:
    """Fig. 3.1."""
    recorded = (0, 30, 3000)
    found = numbers.train_energy(recorded)
    figure, panels = new(1, 3, (10.0, 3.4))
    shades = (LIGHT, SKY, BLUE)
    for step, energy, colour in zip(recorded, found.energies, shades, strict=True):
        panels[0].plot(found.x, energy, color=colour, label=f"step {step}")
        panels[1].plot(found.x, (-energy).exp(), color=colour, label=f"step {step}")
    for at in (-3.1, -1.6, 0.0, 1.3, 2.5):
        i = int((found.x - at).abs().argmin())
        before, after = float(found.energies[0, i]), float(found.energies[-1, i])
        arrow(panels[0], (at, before), (at, after), GREEN if after < before else RED, lw=1.4)
    for colour, label in ((GREEN, "falls on data"), (RED, "rises elsewhere")):
        panels[0].plot([], [], color=colour, label=label)
    panels[0].set(xlabel="x", ylabel="energy + log Z", ylim=(0.0, 12.0), xlim=(-4.5, 4.5), title="Energy")
    panels[1].plot(found.x, found.data, color=ORANGE, ls="--", label="data")
    panels[1].set(xlabel="x", ylabel="density", xlim=(-4.5, 4.5), title="Density exp(-energy) / Z")
    panels[2].semilogx(torch.arange(1, len(found.nll)), found.nll[1:], color=BLUE, label="$E_{data}$[-log p]")
    panels[2].axhline(found.entropy, color=ORANGE, ls="--", lw=1.2, label="entropy of the data")
    panels[2].set(xlabel="step", ylabel="nats", title="Negative log-likelihood")
    for axes in panels:
        axes.legend(loc="upper center" if axes is panels[0] else "upper right")
    panels[1].set_ylim(0.0, 0.95)
    return figure


def score_field() -> Canvas:
    """Fig. 3.2."""
    axis, points = numbers.mesh(3.2, 121)
    law = numbers.clean(numbers.PLANE)
    figure, axes = new(size=(5.4, 5.0))
    axes.contourf(axis, axis, law.log_prob(points).exp().reshape(121, 121).T, 12, cmap="Blues", alpha=0.8)
    arrows = numbers.mesh(3.0, 21)[1]
    quiver(axes, arrows, law.score(arrows), DARK, scale=42.0)
    square(axes, 3.2)
    axes.grid(False)
    axes.set(xlabel="$x_1$", ylabel="$x_2$", title="Score of a mixture over its density")
    return figure


def langevin_paths() -> Canvas:
    """Fig. 3.3."""
    axis, points = numbers.mesh(4.2, 121)
    law = numbers.clean(numbers.PLANE)
    starts = torch.tensor([[-3.6, 3.4], [3.6, 3.2], [3.4, -3.4], [-3.2, -3.6]], dtype=F64)
    paths = numbers.langevin(law.score, starts, 0.01, 300, seed=1)
    many = 3.0 * noise.normal(0, torch.arange(600), (2,), domain="prior", dtype=F64)
    ends = numbers.langevin(law.score, many, 0.02, 400, seed=2)[-1]
    figure, (left, right) = new(1, 2, (9.2, 4.6), sharex=True, sharey=True)
    for axes in (left, right):
        contours(axes, axis, law.log_prob(points))
        square(axes, 4.2)
        axes.set(xlabel="$x_1$")
    arrows = numbers.mesh(3.9, 17)[1]
    quiver(left, arrows, law.score(arrows), LIGHT, scale=60.0)
    for k, colour in enumerate((BLUE, RED, GREEN, ORANGE)):
        left.plot(*paths[:, k].T, color=colour, lw=0.9)
        left.plot(*paths[0, k], "o", color=colour, ms=6)
        left.plot(*paths[-1, k], "s", color=colour, ms=6, mec="white")
    left.set(ylabel="$x_2$", title="Four chains of 300 steps (dot to square)")
    right.plot(*ends.T, ".", color=BLUE, ms=3, alpha=0.6)
    right.set_title("600 chains after 400 steps")
    return figure


def learned_score() -> Canvas:
    """Fig. 3.4."""
    found = numbers.learn_score()
    figure, (left, right) = new(1, 2, (9.6, 4.6), width_ratios=(5, 4))
    contours(left, found.axis, found.log_prob)
    grid = found.points.reshape(61, 61, 2)[::4, ::4].reshape(-1, 2)
    for field, colour, width in ((found.true, LIGHT, 0.007), (found.learned, BLUE, 0.003)):
        some = field.reshape(61, 61, 2)[::4, ::4].reshape(-1, 2)
        quiver(left, grid, some, colour, scale=65.0, width=width)
    for colour, label in ((LIGHT, "true score"), (BLUE, "learned score")):
        left.plot([], [], color=colour, lw=3, label=label)
    square(left, 5.2)
    left.set(xlabel="$x_1$", ylabel="$x_2$", title="Scores at $\\sigma$ = 0.5")
    left.legend(loc="lower right", frameon=True, framealpha=1.0)
    steps = 30 * torch.arange(1, len(found.losses) + 1)
    right.plot(steps, found.losses, color=BLUE, label="denoising loss $E|\\sigma s + \\epsilon|^2$")
    right.axhline(found.floor, color=ORANGE, ls="--", label="its floor, $2 - \\sigma^2 E|s|^2$")
    right.set(xlabel="step", title=f"Loss; $\\sigma^2 E|s - s_{{true}}|^2$ at the end: {found.error:.4f}")
    right.legend()
    return figure


def score_error() -> Canvas:
    """Fig. 3.6."""
    found = numbers.learn_score()
    figure, (left, right) = new(1, 2, (9.8, 4.4))
    wrong = (found.learned - found.true).norm(dim=1)
    size = (0.5 * wrong).clamp(1e-2, 0.999e1).log10().reshape(61, 61).T
    levels = torch.linspace(-2.0, 1.0, 13).tolist()
    picture = left.contourf(found.axis, found.axis, size, levels, cmap="viridis")
    contours(left, found.axis, found.log_prob, colour="white", count=4, alpha=0.9)
    bar = figure.colorbar(picture, ax=left, shrink=0.85)
    bar.set_ticks([-2, -1, 0, 1], labels=["0.01", "0.1", "1", "10"])
    square(left, 5.0)
    left.grid(False)
    left.set(xlabel="$x_1$", ylabel="$x_2$", title="Error of the noise prediction, $\\sigma |s - s_{true}|$")
    order = found.log_prob.argsort()
    right.plot(found.log_prob[order], wrong[order], ".", color=SKY, ms=2, alpha=0.5, label="points of the mesh")
    bins = torch.linspace(-40.0, -2.0, 20, dtype=F64)
    middle, typical = [], []
    for low, high in pairwise(bins.tolist()):
        inside = (found.log_prob > low) & (found.log_prob <= high)
        if int(inside.sum()) > 5:
            middle.append(0.5 * (low + high))
            typical.append(float(wrong[inside].median()))
    right.semilogy(middle, typical, "o-", color=RED, label="median")
    right.set(xlim=(-40.0, 0.0), ylim=(1e-2, 30.0), xlabel="log p(x)", ylabel="|learned - true score|")
    right.set_title("The rarer a place, the worse its score")
    right.legend(loc="lower left")
    return figure


def conditional_scores(sigma: float = 0.95) -> Canvas:
    """Fig. 3.5."""
    points, noisy = numbers.POINTS, torch.tensor([1.8, 1.5], dtype=F64)
    chosen = points[2]
    figure, (left, right) = new(1, 2, (9.4, 5.0), sharex=True, sharey=True)
    cloud = chosen + sigma * noise.normal(5, torch.arange(24), (2,), domain="training", dtype=F64)
    for x in cloud:
        tip = x + 0.5 * (chosen - x) / sigma**2
        arrow(left, tuple(x.tolist()), tuple(tip.tolist()), SKY, lw=1.1)
    left.plot(*cloud.T, "o", color=BLUE, ms=4, label="$\\tilde x = x + \\sigma\\epsilon$")
    left.plot(*chosen, "*", color=RED, ms=14, label="one clean point x")
    left.set(xlabel="$x_1$", ylabel="$x_2$", title="Targets $(x - \\tilde x)/\\sigma^2$ (half their length)")
    found = numbers.conditional_scores(noisy, sigma)
    for point, step, weight in zip(points, found.arrows, found.weights.tolist(), strict=True):
        tip = noisy + 0.5 * step
        arrow(right, tuple(noisy.tolist()), tuple(tip.tolist()), SKY, lw=0.6 + 7.0 * weight, alpha=0.8)
        right.annotate(f"{weight:.2f}", tuple(point.tolist()), (6, 6), textcoords="offset points", fontsize=8)
    arrow(right, tuple(noisy.tolist()), tuple((noisy + 0.5 * found.mean).tolist()), RED, lw=2.6, zorder=5)
    right.plot(*points.T, "*", color=DARK, ms=10, label="data, with p(x | $\\tilde x$)")
    right.plot(*noisy, "o", color=BLUE, ms=6, label="one noisy $\\tilde x$")
    right.plot([], [], color=SKY, lw=3, label="its conditional scores (width: weight)")
    right.plot([], [], color=RED, lw=3, label="their mean = marginal score")
    right.set(xlabel="$x_1$", title="At one place: the mean of what is asked (half)")
    for axes in (left, right):
        axes.set(xlim=(-2.1, 3.3), ylim=(-1.9, 3.1), aspect="equal")
        axes.legend(loc="upper left")
    return figure


def annealing() -> Canvas:
    """Fig. 3.7."""
    clouds = numbers.annealed(LEVELS)
    figure, panels = new(2, 6, (12.0, 4.1))
    for k, sigma in enumerate(LEVELS):
        span = 2.9 + 2.3 * sigma
        axis, points = numbers.mesh(span, 81)
        log_prob = numbers.clean(numbers.PLANE, sigma).log_prob(points)
        above, below = panels[:, k]
        above.contourf(axis, axis, log_prob.exp().reshape(81, 81).T, 10, cmap="Blues")
        contours(below, axis, log_prob, colour=LIGHT, count=4)
        below.plot(*clouds[k].T, ".", color=BLUE, ms=2.5, alpha=0.6)
        if k:
            below.plot(*clouds[k - 1].T, ".", color=ORANGE, ms=1.5, alpha=0.35, zorder=0)
        above.set_title(f"$\\sigma_{{{6 - k}}}$ = {sigma:g}", loc="center")
        for axes in (above, below):
            square(axes, span)
            axes.grid(False)
            axes.tick_params(labelsize=7)
    panels[0, 0].set_ylabel("density $p_\\sigma$")
    panels[1, 0].set_ylabel("Langevin's end")
    return figure


def comparison() -> Canvas:
    """Table 3.1."""
    methods = numbers.comparison()
    data = numbers.LINE.moments()
    heads = ("", "NCSN: 10 levels", "DDPM: 100 levels")
    rows = [
        [
            "one step",
            r"$x_{i+1} = x_i + (\sigma_{i+1}^2 - \sigma_i^2)^{1/2} \epsilon$",
            r"$x_{i+1} = \alpha_{i+1} x_i + \beta_{i+1} \epsilon$",
        ],
        [
            "all at once",
            r"$x_i = x + \sigma_i \epsilon$",
            r"$x_i = \bar\alpha_i x + (1 - \bar\alpha_i^2)^{1/2} \epsilon$",
        ],
        ["loss", r"$|s(x_i, \sigma_i) + \epsilon / \sigma_i|^2$", r"$|\epsilon_\phi(x_i, i) - \epsilon|^2$"],
        ["sampling", "Langevin at every level", r"$p(x_{i-1} | x_i)$, one step a level"],
        ["std of $x_L$: steps / at once / exact"]
        + [f"{one.stepwise:.3f} / {one.direct:.3f} / {one.exact:.3f}" for one in methods],
        ["std of the prior"] + [f"{one.prior:.3f}" for one in methods],
        [r"$E|\epsilon_\phi - \epsilon|^2$ of the exact score, level 2"] + [f"{one.loss:.3f}" for one in methods],
        ["evaluations to sample"] + [f"{one.evaluations}" for one in methods],
        [f"mean, std of samples (data {float(data.mean):.3f}, {float(data.cov.sqrt()):.3f})"]
        + [f"{one.mean:.3f}, {one.std:.3f}" for one in methods],
    ]
    return table(heads, rows, (0.4, 0.32, 0.28), (9.0, 3.7))


def mode_weights() -> Canvas:
    """Langevin on two far modes, plain and annealed."""
    found = numbers.mode_weights()
    figure, panels = new(1, 3, (10.4, 3.6), width_ratios=(1, 1, 1.3))
    for axes, cloud, share, title in (
        (panels[0], found.plain_end, found.plain[-1], "Plain"),
        (panels[1], found.annealed_end, found.annealed[-1], "Annealed"),
    ):
        heavy = cloud.sum(1) > 0
        axes.plot(*cloud[heavy].T, ".", color=BLUE, ms=2.5)
        axes.plot(*cloud[~heavy].T, ".", color=ORANGE, ms=2.5)
        square(axes, 9.0)
        axes.set(title=f"{title}: {100 * float(share):.1f} % heavy", xlabel="$x_1$")
    panels[0].set_ylabel("$x_2$")
    panels[2].plot(found.plain, color=RED, label="plain, $\\eta$ = 0.05")
    panels[2].plot(found.annealed, color=BLUE, label="ten levels, $\\sigma$ from 20 to 0.1")
    panels[2].axhline(0.8, color=GREY, ls="--", lw=1.0, label="the data's share, 80 %")
    panels[2].set(xlabel="step", ylabel="share of the heavy mode", ylim=(0.4, 0.95), title="Weight of the heavy mode")
    panels[2].legend(loc="upper right")
    return figure
