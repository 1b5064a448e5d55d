"""Plots of chapter 2: autoencoders and what ails them, and the chains of a DDPM with the exact denoiser."""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from torch import Tensor

from ..data import Fashion
from ..process import VP
from . import roots_numbers as numbers
from .graphs import clear, link, network, variable
from .style import BLUE, COLOURS, DARK, GREY, LIGHT, ORANGE, RED, new

__all__ = ["autoencoders", "blur", "clean", "collapse", "forward", "kernels", "reverse"]

F64 = torch.float64


def autoencoders() -> Canvas:
    """Figs. 2.1 and 2.2."""
    figure, (left, right) = new(1, 2, (10.4, 2.7), width_ratios=(1, 1.75))
    clear(left, 6.4, 3.4)
    clear(right, 11.2, 3.4)
    for axes, title in ((left, "VAE"), (right, "hierarchical VAE")):
        axes.set_title(title)
    for x, label in ((0.45, "$x$"), (3.15, "$z$"), (5.85, "$x'$")):
        variable(left, x, 1.9, label)
    for x, label in ((1.8, "$q_\\theta$"), (4.5, "$p_\\phi$")):
        network(left, x, 1.9, label, opens=label != "$q_\\theta$")
        link(left, (x - 1.04, 1.9), (x - 0.45, 1.9))
        link(left, (x + 0.45, 1.9), (x + 1.04, 1.9))
    left.text(1.8, 1.05, "encoder $q_\\theta(z|x)$", ha="center", fontsize=9, color=GREY)
    left.text(4.5, 1.05, "decoder $p_\\phi(x|z)$", ha="center", fontsize=9, color=GREY)
    places = (0.5, 3.2, 5.9, 10.4)
    for x, label in zip(places, ("$x$", "$z_1$", "$z_2$", "$z_L$"), strict=True):
        variable(right, x, 1.7, label)
    right.text(8.15, 1.7, "...", ha="center", va="center", fontsize=13, color=GREY)
    for a, b in ((0.5, 3.2), (3.2, 5.9)):
        middle = 0.5 * (a + b)
        network(right, middle, 2.45, "$q_\\theta$", size=0.8)
        network(right, middle, 0.95, "$p_\\phi$", size=0.8, colour=RED)
        link(right, (a + 0.31, 1.95), (middle - 0.4, 2.45))
        link(right, (middle + 0.4, 2.45), (b - 0.31, 1.95))
        link(right, (b - 0.31, 1.45), (middle + 0.4, 0.95))
        link(right, (middle - 0.4, 0.95), (a + 0.31, 1.45))
    for a, b in ((6.21, 7.6), (8.7, 10.09)):
        link(right, (a, 1.85), (b, 1.85))
        link(right, (b, 1.55), (a, 1.55))
    right.text(0.5, 3.05, "encoders, bottom-up", fontsize=9, color=BLUE)
    right.text(0.5, 0.1, "decoders, top-down", fontsize=9, color=RED)
    return figure


def _pictures(axes: Axes, rows: Tensor) -> None:
    """A strip (K, 1, H, W) of pictures in [-1, 1], side by side."""
    strip = torch.cat([torch.nn.functional.pad(one[0], (1, 1, 1, 1), value=1.0) for one in rows], 1)
    axes.imshow(np.asarray(strip), cmap="gray_r", vmin=-1.0, vmax=1.0, interpolation="nearest", aspect="equal")
    axes.axis("off")


def blur(stds: tuple[float, ...] = (0.15, 0.45, 1.2)) -> Canvas:
    """Fig. 2.1, continued: the best decoder is an average."""
    data, _ = Fashion().load("train").take(torch.tensor([0, 1, 7, 8, 9]))
    codes = torch.linspace(-2.0, 2.0, 5, dtype=F64)
    z = torch.linspace(-2.0, 2.0, 13, dtype=F64)
    fine = torch.linspace(-3.0, 3.0, 241, dtype=F64)
    figure, panels = new(len(stds), 2, (10.4, 3.9), width_ratios=(4.6, 2))
    for (left, right), std in zip(panels, stds, strict=True):
        _pictures(left, numbers.best_decoder(codes, data.double(), std, z).mean)
        left.set_title(f"encoder's std {std:g}: the best decoder at codes from -2 to 2", fontsize=9)
        found = numbers.best_decoder(codes, codes, std, fine)
        for k, colour in zip(range(5), COLOURS, strict=False):
            right.plot(fine, found.weights[:, k], color=colour, lw=1.0)
        right.plot(fine, found.printed, color=GREY, ls="--", lw=1.0)
        right.set(ylim=(0.0, 1.9), xlim=(-3.0, 3.0), yticks=[0.0, 1.0])
        if std != stds[-1]:
            right.tick_params(labelbottom=False)
    panels[0, 1].set_title("weights of the five; dashed: sum over the prior", fontsize=9)
    panels[-1, 1].set_xlabel("code z")
    return figure


def collapse() -> Canvas:
    """Posterior collapse."""
    eigenvalues = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.25, 0.1], dtype=F64)
    noise = torch.logspace(-2.0, 1.0, 181, dtype=F64)
    found = numbers.collapse(eigenvalues, noise)
    figure, (left, middle, right) = new(1, 3, (10.4, 3.3))
    for k, colour in zip(range(6), COLOURS, strict=False):
        left.semilogx(noise, found.kl[:, k], color=colour)
        left.plot(eigenvalues[k], 0.0, "o", color=colour, ms=5, clip_on=False, zorder=4)
    left.set(xlabel="decoder's variance", ylim=(0.0, 3.1), title="E KL($q(z_j|x)$ | p) in nats")
    left.text(0.13, 2.8, "dots: the data's variance\nalong the dimension", fontsize=8, color=GREY, va="top")
    active = (found.kl > 1e-12).sum(1)
    middle.step(noise, active, where="mid", color=BLUE)
    middle.set(xscale="log", xlabel="decoder's variance", ylabel="active dimensions", title="they collapse one by one")
    other = middle.twinx()
    other.plot(noise, found.elbo, color=ORANGE)
    other.grid(False)
    other.set_ylabel("E log p = ELBO", color=ORANGE)
    other.spines["right"].set_visible(False)
    gain = torch.linspace(0.0, 1.2, 121, dtype=F64)
    split = numbers.rate_split(gain, torch.full_like(gain, 0.5))
    right.stackplot(
        gain, split.information, split.mismatch, colors=(BLUE, ORANGE), alpha=0.55, labels=("I(x; z)", "KL(q(z) | p)")
    )
    right.plot(gain, split.rate, color=DARK, label="E KL(q(z|x) | p)")
    right.set(xlabel="gain a of the encoder N(a x, 1/4)", title="the rate and its two parts", xlim=(0.0, 1.2))
    right.legend(loc="lower right")
    return figure


SHOWN = (0, 50, 100, 200, 300, 400, 500, 700, 1000)


def _strips(rows: list[tuple[str, Tensor]], heads: list[str], size: tuple[float, float]) -> Canvas:
    """Rows of pictures (K, 1, H, W) with a heading over each column."""
    figure, panels = new(len(rows), len(heads), size)
    for (name, states), line in zip(rows, panels, strict=True):
        for k, axes in enumerate(line):
            axes.imshow(np.asarray(states[k, 0]), cmap="gray_r", vmin=-1.3, vmax=1.3, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            for spine in axes.spines.values():
                spine.set_visible(False)
        line[0].set_ylabel(name, fontsize=9, color=DARK)
    for axes, head in zip(panels[0], heads, strict=True):
        axes.set_title(head, fontsize=9, loc="center")
    return figure


def forward() -> Canvas:
    """Figs. 2.3 and 2.4."""
    states, process = numbers.noised_pictures(SHOWN, 3), numbers.ddpm()
    heads = []
    for level in SHOWN:
        alpha = float(process.alpha(level / numbers.LEVELS))
        heads.append(f"$x_{{{level}}}$\n$\\bar\\alpha$ = {alpha:.2g}")
    return _strips([("", states[:, k]) for k in range(3)], heads, (10.4, 4.1))


def reverse() -> Canvas:
    """Fig. 2.5."""
    levels = (0, 100, 200, 400, 600, 1000)
    there, back = numbers.cloud_chain(levels)
    figure, panels = new(2, len(levels), (10.4, 4.0), sharex=True, sharey=True)
    for row, (states, colour) in enumerate(((there, GREY), (back, BLUE))):
        for axes, cloud, level in zip(panels[row], states, levels, strict=True):
            axes.plot(cloud[:, 0], cloud[:, 1], ".", ms=1.6, color=colour)
            axes.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal", xticks=[], yticks=[])
            if not row:
                axes.set_title(f"$p_{{{level}}}$", loc="center")
    panels[0, 0].set_ylabel("forward: $i = 0 \\to L$")
    panels[1, 0].set_ylabel("reverse: $i = L \\to 0$")
    return figure


def clean(size: int = 200, stride: int = 10) -> Canvas:
    """Fig. 2.6."""
    chain = numbers.picture_chain(SHOWN, 3, size, stride, seed=2)
    order = list(range(len(SHOWN)))[::-1]
    rows = []
    for k in range(3):
        rows += [("state $x_i$", chain.states[order, k]), ("clean $x_\\phi$", chain.clean[order, k])]
    heads = [f"i = {SHOWN[k]}" for k in order]
    figure = _strips(rows, heads, (9.4, 6.7))
    for k in range(3):
        for axes, i in zip(figure.axes[(2 * k + 1) * len(SHOWN) :], order, strict=False):
            axes.set_xlabel(f"of {float(chain.choices[i, k]):.3g}", fontsize=8, labelpad=2)
    return figure


def kernels(state: float = 0.0, s: float = 0.3) -> Canvas:
    """The true reverse kernel against its Gaussians."""
    law, process = numbers.TWO, VP()
    figure, panels = new(1, 4, (10.4, 3.0), width_ratios=(1, 1, 1, 1.35))
    for axes, beta2 in zip(panels, (0.55, 0.3, 0.02), strict=False):
        found = numbers.reverse_kernel(law, process, state, s, numbers.step_of(process, s, beta2))
        axes.fill_between(found.x, found.true, color=LIGHT, alpha=0.7, lw=0, label="true")
        axes.plot(found.x, found.matched, color=BLUE, label="equal moments")
        axes.plot(found.x, found.fixed, color=RED, lw=1.2, ls="--", label="DDPM's variance")
        seen = found.x[found.true + found.matched > 1e-3 * float(found.true.max())]
        axes.set(xlim=(float(seen[0]), float(seen[-1])), yticks=[], xlabel="$x_{i-1}$")
        axes.set(ylim=(0.0, 1.5 * float(torch.maximum(found.true, found.matched).max())))
        axes.set_title(f"$\\beta^2$ = {beta2:g}: KL {found.kl_matched:.1g}")
    panels[2].legend(loc="upper left", fontsize=7)
    betas2 = torch.logspace(math.log10(0.003), math.log10(0.6), 24).tolist()
    gaps = torch.tensor(numbers.kernel_gaps(law, process, state, s, betas2), dtype=F64)
    last = panels[3]
    for k, (colour, power, away, label) in enumerate(((BLUE, 3, 0.3, (0.05, 3e-7)), (RED, 2, 4.0, (0.012, 3e-2)))):
        last.loglog(betas2, gaps[:, k], color=colour)
        guide = [float(gaps[0, k]) * away * (b / betas2[0]) ** power for b in betas2]
        last.loglog(betas2, guide, color=GREY, ls=":", lw=1.0)
        last.text(*label, f"slope {power}", fontsize=8, color=GREY)
    last.set(xlabel="$\\beta^2$, the step's variance", title="KL(true, Gaussian)", ylim=(1e-9, 1e3))
    return figure
