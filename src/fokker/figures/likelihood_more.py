"""Plots of likelihoods and of the appendices' small experiments: Picard, Girsanov, merging, preconditioning, bounds."""

from __future__ import annotations

import math

import torch
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import NullFormatter, ScalarFormatter

from ..process import VP
from . import calculus_numbers
from . import likelihood_numbers as numbers
from .score_numbers import F64
from .style import BLUE, COLOURS, DARK, GREEN, GREY, LIGHT, ORANGE, RED, SKY, new

__all__ = [
    "bounds",
    "error_budget",
    "flow_likelihood",
    "girsanov",
    "merging",
    "picard",
    "preconditioning",
    "probes",
    "stiff",
]


def picard() -> Canvas:
    """Picard iterates along the trajectory, and their errors."""
    found = numbers.picard()
    figure, (left, right) = new(1, 2, (9.0, 3.6))
    for k, colour in zip((0, 1, 2, 3, 5), (LIGHT, SKY, GREEN, ORANGE, RED), strict=True):
        left.plot(found.times, found.iterates[k], "o-", color=colour, ms=2.5, lw=1.1, label=f"iterate {k}")
    left.plot(found.times, found.euler, color=DARK, lw=1.6, label="Euler, step by step")
    left.set(xlabel="t", ylabel="x", title="x' = -x + sin 3t: the start is right first")
    left.legend(ncols=2)
    right.semilogy(found.errors.clamp(min=1e-17), "o-", color=BLUE)
    right.set(xlabel="iteration k", ylabel="largest distance from Euler", ylim=(1e-17, 10.0), xticks=range(0, 21, 5))
    right.set_title("Node j is exact after j iterations, all after 20")
    return figure


def stiff(steps: tuple[int, ...] = (5, 10, 20, 40, 80, 160, 320)) -> Canvas:
    """Orders of convergence: on a stiff equation, its linear part solved exactly or not; of a stochastic solver."""
    figure, (left, right) = new(1, 2, (10.4, 4.2), width_ratios=(3, 2))
    looks = zip(calculus_numbers.stiff_errors(steps).items(), (RED, ORANGE, GREY, SKY, BLUE), strict=True)
    for (name, errors), colour in looks:
        left.loglog(steps, errors, "s-" if name.startswith("exp") else "o--", color=colour, label=name, ms=3.5)
    for order, level in ((1, 2.2e-4), (2, 1.2e-6), (4, 3e-9)):
        left.loglog(steps[3:], [level * (320 / n) ** order for n in steps[3:]], color=LIGHT, lw=1.0, zorder=0)
        left.text(340, level * 0.8, f"slope -{order}", color=GREY, fontsize=8)
    left.set(ylabel="error at t = 2", ylim=(1e-10, 1e9), xlim=(4.5, 720), title="x' = -20 x + sin x + cos 3t")
    means, variances = calculus_numbers.reverse_errors(steps)
    right.loglog(steps, variances, "o-", color=BLUE, label="variance", ms=3.5)
    right.loglog(steps, means, "s-", color=GREEN, label="mean", ms=3.5)
    right.loglog(steps[3:], [0.002 * (320 / n) for n in steps[3:]], color=LIGHT, lw=1.0, zorder=0)
    right.text(340, 0.0018, "slope -1", color=GREY, fontsize=8)
    right.set(ylabel="error at t = 0", xlim=(4.5, 720), title="Euler-Maruyama, reverse SDE to N(2, .25)")
    for axes in (left, right):
        axes.set_xlabel("steps")
        axes.set_xticks(steps)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.legend(loc="upper right")
    return figure


def girsanov() -> Canvas:
    """Girsanov weights of two drifts and their effective number."""
    found = numbers.girsanov()
    figure, (left, right) = new(1, 2, (9.0, 3.6))
    spread = math.sqrt(2.0 * found.kl)
    for drawn, mean, colour, label in (
        (found.denominator, -found.kl, BLUE, "paths of the denominator"),
        (found.numerator, found.kl, ORANGE, "paths of the numerator"),
    ):
        left.hist(drawn.numpy(), bins=60, range=(-7.0, 7.0), density=True, color=colour, alpha=0.5, label=label)
        x = torch.linspace(-7.0, 7.0, 281, dtype=F64)
        left.plot(x, numbers.normal_log_prob((x[:, None] - mean) / spread).exp() / spread, color=DARK, lw=1.2)
    left.plot([], [], color=DARK, label="N(-KL, 2 KL) and N(KL, 2 KL)")
    left.set(xlabel="log dP$_f$ / dP$_g$", ylim=(0.0, 0.44), title=f"Log-weights at T = 2, KL = {found.kl:g} nat")
    left.legend(loc="upper left")
    right.semilogy(found.horizons, found.exact, color=GREY, label="$e^{-\\delta^2 T}$")
    right.semilogy(found.horizons, found.ess, "o", color=BLUE, label=f"{len(found.numerator)} paths")
    right.set(xlabel="horizon T", ylabel="effective paths / paths", title="The longer, the fewer paths count")
    right.set_yticks([0.1, 0.2, 0.5, 1.0])
    right.yaxis.set_major_formatter(ScalarFormatter())
    right.yaxis.set_minor_formatter(NullFormatter())
    right.legend()
    return figure


def merging() -> Canvas:
    """Discrete data: trajectories that merge as t goes to 0."""
    found = numbers.merging()
    figure, (left, right) = new(1, 2, (9.2, 3.8))
    for k in range(found.states.shape[1]):
        left.semilogx(found.times, found.states[:, k], color=BLUE if found.states[0, k] > 0 else ORANGE, lw=1.1)
    left.axhline(0.0, color=GREY, lw=0.8, ls="--")
    left.invert_xaxis()
    left.set(xlabel="t = $\\sigma$  (noise to data)", ylabel="x", title="All starts on one side end in one point")
    for t, end, colour in zip(found.at, found.ends, (LIGHT, SKY, BLUE, DARK), strict=True):
        right.plot(found.starts, end, color=colour, label=f"t = {t:g}")
    right.set(xlabel="$x_T$", ylabel="$x_t$", title="The map from T = 3 becomes a step")
    right.legend()
    return figure


def preconditioning() -> Canvas:
    """c_skip, c_out and c_in against sigma."""
    sigma = torch.logspace(-3.0, 2.0, 301, dtype=F64)
    figure, axes = new(size=(6.6, 3.8))
    for (name, values), colour in zip(numbers.preconditioning(sigma).items(), COLOURS, strict=False):
        axes.loglog(sigma, values, color=colour, label=f"$c_{{{name}}}$")
    axes.axvline(0.5, color=GREY, ls="--", lw=1.0)
    axes.text(0.56, 1.5e-5, "$\\sigma_{data}$ = 0.5", color=GREY)
    axes.set(xlabel="$\\sigma$", ylim=(1e-5, 5.0), title="EDM: $D = c_{skip} x + c_{out} F(c_{in} x)$")
    axes.legend(loc="lower left")
    return figure


def flow_likelihood() -> Canvas:
    """log p by the probability flow against the exact one along x."""
    found = numbers.flow_likelihood()
    figure, (left, right) = new(1, 2, (9.0, 3.6))
    left.plot(found.x, found.exact, color=LIGHT, lw=4.0, label="exact")
    left.plot(found.x, found.flow, color=BLUE, lw=1.2, label="probability flow")
    left.set(xlabel="x", ylabel="log p(x), nats", title="A mixture on VP")
    left.legend(loc="lower center")
    for values, colour, label in (
        (found.prior, ORANGE, "from N(0, 1): the prior's mismatch"),
        (found.flow, BLUE, "from the exact $p_T$: RK4, 50 steps"),
    ):
        right.semilogy(found.x, (values - found.exact).abs().clamp(min=1e-9), color=colour, label=label)
    right.set(xlabel="x", ylabel="|error|, nats", title="Not all error is the solver's", ylim=(1e-9, 1.0))
    right.legend()
    return figure


def probes() -> Canvas:
    """The error of Hutchinson's estimate against the number of probes."""
    found = numbers.probing()
    figure, axes = new(size=(6.0, 3.8))
    axes.loglog(found.probes, found.error, "o-", color=BLUE, label="RMS error of log p")
    axes.loglog(found.probes, found.stated, "s--", color=ORANGE, label="standard error stated")
    slope = float(found.stated[-1]) * (found.probes / float(found.probes[-1])) ** -0.5 / 1.6
    axes.loglog(found.probes, slope, color=GREY, ls=":", label="slope -1/2")
    axes.set(xlabel="probes", ylabel="nats", title="Hutchinson's divergence in 8 dimensions")
    axes.set_xticks(found.probes.tolist())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend()
    return figure


def bounds() -> Canvas:
    """Variational bounds against log p along x."""
    found = numbers.bounds()
    figure, (left, right) = new(1, 2, (9.2, 3.7))
    left.plot(found.x, found.exact, color=LIGHT, lw=4.0, label="log $p_0$")
    left.plot(found.x, found.tight, color=BLUE, lw=1.2, label="bound, exact score")
    left.plot(found.x, found.loose, color=RED, label="bound, 1.2 times the score")
    left.errorbar(
        found.places, found.estimate, 2.0 * found.stderr, fmt="o", color=DARK, ms=3, lw=1.0, capsize=2,
        label="its estimate, 2 std errors",
    )  # fmt: skip
    left.set(xlabel="x", ylabel="nats", title="log p and what bounds it", ylim=(-18.0, 1.0))
    left.legend(loc="lower center", fontsize=7.5)
    right.plot(found.x, found.exact - found.loose, color=RED, label="1.2 times the score")
    right.plot(found.x, found.exact - found.tight, color=BLUE, label="exact score")
    right.axhline(0.0, color=GREY, lw=0.8, ls="--")
    right.set(xlabel="x", ylabel="log $p_0$ - bound, nats", title="The gap")
    right.legend(loc="upper center")
    return figure


def error_budget() -> Canvas:
    """What prior, score and discretisation add to the divergence between paths."""
    steps, wrong = (50, 100, 200, 400, 800, 1600), (0.0, 0.05, 0.1)
    process = VP(0.1, 2.5)
    figure, panels = new(1, 3, (10.0, 3.6), sharey=True)
    for axes, c in zip(panels, wrong, strict=True):
        found = [numbers.error_budget(c, n, process=process) for n in steps]
        below = torch.zeros(len(steps), dtype=F64)
        for name, colour in (("prior", GREEN), ("score", ORANGE), ("discretisation", BLUE)):
            heights = torch.tensor([getattr(one, name) for one in found], dtype=F64)
            axes.bar(range(len(steps)), heights, bottom=below, color=colour, label=name, width=0.7)
            below = below + heights
        axes.plot(
            [one.marginal for one in found],
            "D",
            color=DARK,
            mec="white",
            ms=5,
            label="KL at t = 0",
            clip_on=False,
            zorder=5,
        )
        axes.set_xticks(range(len(steps)), [str(n) for n in steps])
        axes.set(xlabel="steps", title="exact score" if c == 0.0 else f"{1.0 + c:g} times the score")
        axes.grid(False, axis="x")
    panels[0].set(ylabel="KL, nats")
    panels[2].legend(loc="upper right")
    return figure
