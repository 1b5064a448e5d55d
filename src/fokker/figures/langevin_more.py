"""Plots of the mathematical overview (Wojtowytsch), and of what laws do not say about paths."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure as Canvas
from torch import Tensor

from ..classic import MixturePath, NormalPath
from ..exact import Gaussian
from ..process import OU
from . import langevin_numbers as numbers
from .langevin_seed import FEW, dots, frame, plane
from .style import BLUE, DARK, GREEN, GREY, LIGHT, ORANGE, PURPLE, RED, new

__all__ = ["decay", "gauge", "joint", "memorisation", "moons", "no_way_back", "paths", "sums"]

FIRST, LAST = (-1.5, 0.4), (1.5, 0.6)
PATHS: dict[str, NormalPath | MixturePath] = {
    "normal: mean and std linear": NormalPath.between(FIRST, LAST),
    "normal: the std swells": NormalPath.between(FIRST, LAST, swell=0.8),
    "mixture: mass is teleported": MixturePath(Gaussian([FIRST[0]], FIRST[1] ** 2), Gaussian([LAST[0]], LAST[1] ** 2)),  # type: ignore[arg-type]
}


def paths(moments: int = 160) -> Canvas:
    """The overview's Fig. 1."""
    figure, panels = new(2, 3, (9.8, 5.4), sharex="col", height_ratios=(1, 1.25))
    x = torch.linspace(-4, 4, 400, dtype=numbers.F64)[:, None]
    shades = (BLUE, PURPLE, GREEN, ORANGE, RED)
    times = torch.linspace(0.001, 0.999, moments, dtype=numbers.F64)
    for column, (name, path) in zip(panels.T, PATHS.items(), strict=True):
        for colour, t in zip(shades, (0.0, 0.25, 0.5, 0.75, 1.0), strict=True):
            column[0].plot(x[:, 0], path.log_prob(x, t).exp(), color=colour, lw=1.3, label=f"t = {t:g}")
        start = FIRST[0] + FIRST[1] * numbers.normal_quantiles(13)
        when = times.repeat_interleave(13)
        lines = path.flow_map(start.repeat(moments, 1), 0.001, when)
        speed = float(path.velocity(lines, when).abs().max())
        lines = lines.reshape(moments, 13)
        column[1].plot(lines, times, color=GREY, lw=0.9)
        column[0].set_title(name)
        column[1].set(xlabel=f"x    (largest speed drawn {speed:.3g})", xlim=(-4, 4))
    panels[0, 0].set_ylabel("density")
    panels[1, 0].set_ylabel("t")
    panels[0, 1].legend(loc="upper right", handlelength=1.2, labelspacing=0.2)
    return figure


def moons(tau: float = 0.01) -> Canvas:
    """The overview's Figs. 2 and 3."""
    data = numbers.moons(1000)
    times = numbers.uniform_times(tau)
    still, loud = (numbers.backward(data, beta, times, 40, seed=1) for beta in (0.0, 1.0))
    figure = new(size=(10.6, 4.0))[0]
    figure.clear()
    panels: Any = figure.subplot_mosaic(
        [["still", "ways", "three"], ["loud", "ways", "three"]], width_ratios=(0.8, 1, 1)
    )
    for axes in panels.values():
        dots(axes, data, LIGHT, 1.6, 0.9)
        axes.set(aspect="equal", xticks=[], yticks=[], xlim=(-2.6, 3.0), ylim=(-2.7, 2.9))
        axes.grid(visible=False)
    for name, states, title in (("still", still, "$\\beta$ = 0"), ("loud", loud, "$\\beta$ = 1")):
        dots(panels[name], states[-1], BLUE, 4.5, 0.9)
        panels[name].set(xlim=(-1.6, 2.6), ylim=(-1.1, 1.5), title=f"40 samples, {title}")
    for path in still.unbind(1):
        panels["ways"].plot(path[:, 0], path[:, 1], color=BLUE, lw=0.7)
        panels["ways"].plot(*path[0], ".", color=RED, ms=3)
    panels["ways"].set_title("their ways, $\\beta$ = 0")
    for colour, path in zip((BLUE, RED, GREEN), loud.unbind(1), strict=False):
        panels["three"].plot(path[:, 0], path[:, 1], color=colour, lw=0.6)
        panels["three"].plot(*path[0], "o", color=colour, ms=6, mec="white", zorder=5)
        panels["three"].plot(*path[-1], "*", color=colour, ms=12, mec="white", zorder=5)
    panels["three"].set_title("three ways, $\\beta$ = 1")
    return figure


def _picture(axes: Any, values: Tensor) -> None:
    axes.imshow(values[0], cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)


def no_way_back(n: int = 6, rows: int = 500) -> Canvas:
    """The overview's Figs. 4 and 5."""
    found = numbers.returns(n, rows)
    said = (
        "picture",
        "noised",
        "back by\nthe flow",
        "back by\nthe SDE",
        "encoded by\nthe flow",
        "decoded by\nthe flow",
    )
    figure, panels = new(6, n, (1.05 * n + 1.2, 6.6))
    for row, states, name in zip(panels, found, said, strict=True):
        scale = 2.5 if name in ("noised", "encoded by\nthe flow") else 1.0
        for axes, values in zip(row, states, strict=True):
            _picture(axes, values / scale)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", color=DARK)
    return figure


def memorisation(n: int = 150, steps: int = 160, taus: tuple[float, ...] = (0.16, 0.08, 0.04, 0.02, 0.01)) -> Canvas:
    """The overview's Sec. 4.4."""
    data = numbers.moons(200)
    fresh = numbers.to_nearest(numbers.moons(2000, seed=1), data)
    t_mins = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)
    figure, (left, right) = new(1, 2, (8.6, 3.5))
    for beta, colour, mark in ((0.0, BLUE, "o-"), (1.0, RED, "s--")):
        ends = [numbers.backward(data, beta, numbers.uniform_times(tau), n)[-1] for tau in taus]
        left.loglog(taus, [numbers.to_nearest(x, data) for x in ends], mark, color=colour, label=f"$\\beta$ = {beta:g}")
        right.loglog(t_mins, numbers.memorised(data, beta, t_mins, n, steps), mark, color=colour)
    for axes in (left, right):
        axes.axhline(fresh, color=GREY, ls=":", lw=1.2)
        axes.invert_xaxis()
    left.text(taus[0], fresh * 1.08, "new draws of the moons", color=GREY, fontsize=8, va="bottom")
    left.set(xlabel="step $\\tau$", ylabel="median distance to the data", title="equal steps, stopped within one of 0")
    right.set(xlabel="$t_{min}$", title="equal steps of log t, then x0 at $t_{min}$")
    left.legend(loc="upper right")
    return figure


def joint(n: int = 5000) -> Canvas:
    """(x_0, x_T) by several dynamics."""
    found = numbers.joint(n)
    figure, panels = new(1, 4, (12.0, 3.2), sharex=True, sharey=True)
    for axes, (name, pairs) in zip(panels, found.items(), strict=True):
        dots(axes, pairs[:1000], BLUE, 2.4, 0.4)
        together = float(torch.corrcoef(pairs.T)[0, 1])
        axes.set(xlabel="$x_0$", title=f"{name}: corr {together:.2f}", xlim=(-2.2, 1.8), ylim=(-3.4, 3.4))
    panels[0].set_ylabel("$x_T$")
    return figure


def gauge() -> Canvas:
    """Two flows of one law."""
    found, few = numbers.gauge(700, strength=0.6), slice(0, 10)
    t = 0.6
    figure, panels = new(1, 4, (12.4, 3.6))
    line = torch.linspace(-2.4, 2.4, 13, dtype=numbers.F64)
    at = torch.cartesian_prod(line, line)
    said = numbers.THREE.denoiser(OU(3.0))(at, t)
    fields = (-said.velocity, -said.velocity + 0.6 * said.score @ numbers.TURN.T)
    for axes, field, title in zip(panels, fields, ("flow", "flow + A score"), strict=False):
        plane(axes, numbers.THREE.at(OU(3.0), t))
        axes.quiver(at[:, 0], at[:, 1], field[:, 0], field[:, 1], color=BLUE, angles="xy", width=0.005)
        axes.set_title(f"{title}, towards the data, t = {t:g}")
    for axes, states, title in ((panels[2], found.plain, "flow"), (panels[3], found.turned, "flow + A score")):
        plane(axes, numbers.THREE.at(OU(3.0), 0.0))
        dots(axes, states[-1], GREY, 1.8, 0.45)
        for k, path in enumerate(states[:, few].unbind(1)):
            axes.plot(path[:, 0], path[:, 1], color=FEW[k % 5], lw=0.8)
            axes.plot(*path[-1], "o", color=FEW[k % 5], ms=4, mec="white")
        axes.set_title(f"{title}: ways and ends")
        frame(axes, 3.3)
    return figure


def sums() -> Canvas:
    """Ito and Stratonovich sums."""
    found = numbers.running_sums(400, seed=3)
    figure, (left, right) = new(1, 2, (9.0, 3.6), width_ratios=(3, 2))
    half = 0.5 * found.path.square()
    left.plot(found.times, found.left, color=BLUE, label="left-point (Ito) sum")
    left.plot(found.times, half - 0.5 * found.times, color="black", ls=":", label="$(w_t^2 - t)/2$")
    left.plot(found.times, found.middle, color=RED, label="midpoint (Stratonovich) sum")
    left.plot(found.times, half, color="black", ls="--", lw=0.9, label="$w_t^2/2$")
    left.set(xlabel="t", title="$\\int w\\,dw$ along one path, 400 steps")
    left.legend(loc="best")
    counts = (16, 64, 256, 1024)
    errors = numbers.sum_errors(counts, 1000)[0]
    right.loglog(counts, errors, "o-", color=BLUE, label="left-point, rms error")
    right.loglog(counts, [0.5 * (2.0 / N) ** 0.5 for N in counts], color=GREY, ls="--", lw=1.0, label="$\\sqrt{2/N}/2$")
    right.set(xlabel="steps N", title="slope 1/2; midpoint: no error at all")
    right.legend()
    return figure


def decay() -> Canvas:
    """Divergences along the forward process."""
    times = torch.cat([torch.zeros(1), torch.logspace(-2.5, 0.4, 28)]).double()
    found = numbers.decay(times)
    figure, (left, right) = new(1, 2, (8.8, 3.5))
    left.semilogy(times, found.to_normal, color=BLUE, label="KL($p_t$, N(0, 1))")
    left.semilogy(
        times, found.to_normal[0] * (-2 * times).exp(), color=GREY, ls="--", lw=1.0, label="$e^{-2t}$ KL($p_0$, N)"
    )
    left.semilogy(times, found.between, color=RED, label="KL($p_t$, $q_t$)")
    left.set(xlabel="t", ylabel="nats", title="information is lost on the way to noise")
    left.legend()
    part = times > 0
    share = (found.rate * times)[part]
    right.fill_between(times[part], share, color=ORANGE, alpha=0.35, lw=0)
    right.semilogx(times[part], share, color=ORANGE)
    right.set(xlabel="t", ylabel="t $L_t$", ylim=(0, None))
    right.set_title(f"$L_t$ = $g^2$/2 Fisher: the area is KL($p_0$, $q_0$) = {float(found.between[0]):.2f}")
    return figure
