"""Plots of chapter 1: training as a falling divergence, what divergences want, and the families of models."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from torch import Tensor

from ..exact import GaussianMixture
from . import roots_numbers as numbers
from .graphs import clear, link, network, scalar, variable
from .style import BLUE, DARK, GREEN, GREY, LIGHT, ORANGE, RED, new

__all__ = ["blindness", "cover", "families", "fit"]

F64 = torch.float64


def _curve(x: Tensor, law: GaussianMixture) -> Tensor:
    return numbers.on_line(law).log_prob(x).exp()


def fit(n: int = 400, steps: int = 60, shown: tuple[int, ...] = (0, 6, 60)) -> Canvas:
    """Fig. 1.1."""
    data = numbers.BUMPS.sample(n, 0, dtype=F64)[:, 0]
    third = torch.full((3,), 1.0, dtype=F64).softmax(0)
    start = numbers.mixture(third, torch.tensor([-0.5, 0.0, 0.5], dtype=F64), torch.ones(3, dtype=F64))
    found = numbers.model_fit(numbers.BUMPS, start, data, steps)
    x = torch.linspace(-4.0, 4.0, 400, dtype=F64)
    figure, grid = new(1, 4, (10.4, 3.0), width_ratios=(1, 1, 1, 1.25))
    truth = _curve(x, numbers.BUMPS)
    for axes, step in zip(grid, shown, strict=False):
        model = _curve(x, found.models[step])
        axes.fill_between(x, truth, color=LIGHT, alpha=0.6, lw=0, label="$p_{data}$")
        axes.plot(x, model, color=BLUE, label="$p_\\phi$")
        axes.plot(data[:100], torch.full((100,), -0.025), "|", color=GREY, ms=5, mew=0.5, alpha=0.7)
        axes.set(xlabel="x", ylim=(-0.05, 0.42), yticks=[], title=f"after {step} steps")
    grid[0].legend(loc="upper left")
    right = grid[3]
    for (name, values), colour in zip(found.divergences.items(), (BLUE, ORANGE, GREEN), strict=True):
        right.semilogy(values, color=colour, label={"kl": "KL", "js": "Jensen-Shannon", "tv": "total variation"}[name])
    for step in shown:
        right.axvline(step, color=LIGHT, lw=0.8, ls=":", zorder=0)
    right.set(xlabel="steps of the fit", title="D($p_{data}$, $p_\\phi$)", ylim=(1e-3, 1.0))
    right.legend()
    return figure


def cover() -> Canvas:
    """Forward and reverse KL."""
    law = numbers.TWO
    forward = numbers.forward_cover(law)
    modes = [numbers.reverse_cover(law, mean, 0.6) for mean in (1.5, -2.0)]
    x = torch.linspace(-5.5, 5.5, 500, dtype=F64)
    figure, (left, middle, right) = new(1, 3, (10.4, 3.3), width_ratios=(1.25, 1, 1))
    left.fill_between(x, _curve(x, law), color=LIGHT, alpha=0.6, lw=0, label="the data's law p")
    fits = [("argmin KL(p, q): covers both", forward, BLUE)]
    fits += [("argmin KL(q, p): seeks a mode", modes[0], RED), ("a local one", modes[1], ORANGE)]
    for label, one, colour in fits:
        left.plot(x, _curve(x, numbers.gaussian(one.mean, one.std**2)), color=colour, label=label)
    left.set(xlabel="x", yticks=[], ylim=(0.0, 1.28), title="the best Gaussian q")
    left.legend(loc="upper left")
    means, stds = torch.linspace(-3.5, 3.5, 90, dtype=F64), torch.linspace(0.3, 3.0, 80, dtype=F64)
    mean, std = torch.meshgrid(means, stds, indexing="xy")
    levels = [0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0]
    for axes, values, title in (
        (middle, numbers.forward_values(law, mean, std), "KL(p, q)"),
        (right, numbers.reverse_values(law, mean, std), "KL(q, p)"),
    ):
        lines = axes.contour(means, stds, values, levels=levels, colors=GREY, linewidths=0.8)
        axes.clabel(lines, fontsize=7, fmt="%g")
        axes.set(xlabel="mean of q", ylabel="std of q", title=title)
    middle.plot(forward.mean, forward.std, "o", color=BLUE, ms=7)
    for one, colour in zip(modes, (RED, ORANGE), strict=True):
        right.plot(one.mean, one.std, "o", color=colour, ms=7)
    return figure


def blindness() -> Canvas:
    """The Fisher divergence and weights."""
    figure, (left, middle, right) = new(1, 3, (10.4, 3.3))
    p, q = numbers.lopsided(5.0)
    x = torch.linspace(-9.0, 9.0, 600, dtype=F64)
    for law, colour, name in ((p, BLUE, "p"), (q, RED, "q")):
        left.plot(x, _curve(x, law), color=colour, label=name)
        left.plot(x, 0.02 * numbers.on_line(law).score(x) - 0.16, color=colour, lw=1.0, ls="-" if name == "p" else "--")
    left.axhline(-0.16, color=LIGHT, lw=0.6)
    left.text(-9.0, -0.075, "their scores (x .02)", fontsize=8, color=GREY)
    left.set(xlabel="x", yticks=[], title="p = .2 N(-5, 1) + .8 N(5, 1), q swapped")
    left.legend(loc="upper center")
    apart = torch.linspace(0.25, 8.0, 32).tolist()
    table = torch.tensor([numbers.blindness(a) for a in apart])
    middle.semilogy(apart, table[:, 0], color=BLUE, label="KL")
    middle.semilogy(apart, table[:, 1], color=RED, label="Fisher")
    middle.set(xlabel="half the distance of the modes", title="two modes apart", ylim=(1e-14, 30.0))
    middle.legend(loc="lower left")
    sigmas = torch.linspace(0.0, 12.0, 37).tolist()
    table = torch.tensor([numbers.blindness(5.0, sigma) for sigma in sigmas])
    right.semilogy(sigmas, table[:, 0], color=BLUE, label="KL")
    right.semilogy(sigmas, table[:, 1], color=RED, label="Fisher")
    right.set(xlabel="std of noise added to both", title="modes at -5 and 5, noisier", ylim=(1e-5, 3.0))
    right.legend(loc="lower right")
    return figure


FAMILIES = (
    ("energy", "unnormalised", "contrast, or scores", "a long chain"),
    ("autoregressive", "exact", "maximum likelihood", "D passes"),
    ("VAE", "a bound", "ELBO", "one pass"),
    ("normalising flow", "exact", "maximum likelihood", "one pass"),
    ("GAN", "none: implicit", "a game", "one pass"),
    ("diffusion", "a bound", "ELBO, denoising", "L passes"),
)


def families() -> Canvas:
    """Fig. 1.2 and Table 1.1."""
    figure, axes = new(size=(10.4, 6.4))
    clear(axes, 17.2, 10.2)
    columns = (0.0, 10.6, 12.8, 15.3)
    for x, head in zip(columns, ("family", "likelihood", "trained by", "a sample takes"), strict=True):
        axes.text(x, 9.9, head, fontsize=9, color=GREY, va="center")
    axes.plot([0.0, 17.2], [9.55, 9.55], color=LIGHT, lw=0.8)
    for row, words in enumerate(FAMILIES):
        y = 8.75 - 1.6 * row
        for x, word in zip(columns, words, strict=True):
            axes.text(x, y, word, fontsize=9, color=DARK, va="center", weight="bold" if not x else "normal")
        (_energy, _autoregressive, _vae, _flow, _gan, _diffusion)[row](axes, y)
    return figure


def _energy(axes: Axes, y: float) -> None:
    _row(axes, y, "$x$", "$E_\\phi$", "energy")


def _row(axes: Axes, y: float, start: str, net: str, end: str) -> None:
    variable(axes, 3.2, y, start)
    link(axes, (3.51, y), (4.15, y))
    network(axes, 4.6, y, net)
    link(axes, (5.05, y), (5.63, y))
    scalar(axes, 6.2, y, end)


def _autoregressive(axes: Axes, y: float) -> None:
    places = (3.2, 5.0, 6.8, 8.6)
    for i, x in enumerate(places):
        variable(axes, x, y - 0.2, f"$x_{i + 1}$")
        if i:
            link(axes, (places[i - 1] + 0.31, y - 0.2), (x - 0.31, y - 0.2))
        for before in places[: max(0, i - 1)]:
            link(axes, (before + 0.1, y + 0.11), (x - 0.1, y + 0.11), bend=-0.26)


def _two_nets(axes: Axes, y: float, first: str, second: str, opens: bool) -> None:
    for x, label in ((3.2, "$x$"), (6.0, "$z$"), (8.8, "$x'$")):
        variable(axes, x, y, label)
    network(axes, 4.6, y, first)
    network(axes, 7.4, y, second, opens=opens)
    for x in (3.51, 5.05, 6.31, 7.85):
        link(axes, (x, y), (x + 0.63, y))


def _vae(axes: Axes, y: float) -> None:
    _two_nets(axes, y, "$q_\\theta$", "$p_\\phi$", opens=True)


def _flow(axes: Axes, y: float) -> None:
    _two_nets(axes, y, "$f_\\phi$", "$f_\\phi^{-1}$", opens=True)


def _gan(axes: Axes, y: float) -> None:
    variable(axes, 3.2, y, "$z$")
    network(axes, 4.6, y, "$G_\\phi$", opens=True)
    variable(axes, 6.0, y + 0.36, "$x'$", size=0.56)
    variable(axes, 6.0, y - 0.36, "$x$", size=0.56)
    network(axes, 7.4, y, "$D_\\zeta$")
    scalar(axes, 9.0, y, "real?")
    link(axes, (3.51, y), (4.15, y))
    link(axes, (5.05, y), (5.72, y + 0.36))
    link(axes, (6.28, y + 0.36), (6.95, y + 0.12))
    link(axes, (6.28, y - 0.36), (6.95, y - 0.12))
    link(axes, (7.85, y), (8.43, y))


def _diffusion(axes: Axes, y: float) -> None:
    for x, label in ((3.2, "$x_L$"), (5.4, "$x_{L-1}$"), (7.2, "$x_1$"), (9.4, "$x_0$")):
        variable(axes, x, y, label, size=0.74)
    for x in (4.3, 8.3):
        network(axes, x, y, "$p_\\phi$", size=0.7)
        link(axes, (x - 0.73, y), (x - 0.35, y))
        link(axes, (x + 0.35, y), (x + 0.73, y))
        link(axes, (x + 1.0, y - 0.38), (x - 1.0, y - 0.38), bend=-0.2, colour=LIGHT)
    axes.text(6.3, y, "...", ha="center", va="center", fontsize=13, color=GREY)
