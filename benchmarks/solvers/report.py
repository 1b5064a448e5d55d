"""The report: tables, what was reached and what was not, the defaults that follow, and the picture."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from .errors import NFES, PROBLEMS, Cell, Result

__all__ = ["defaults", "draw", "tables"]


def best(cell: Cell, side: str, by: str = "rms") -> Result | None:
    """The side's best result."""
    return min((r for r in cell.results if r.side == side), key=lambda r: getattr(r, by), default=None)


def number(r: Result | None) -> str:
    """RMS and median."""
    return "" if r is None else f"{r.rms:.2g} ({r.median:.2g})"


def ratio(ours: Result | None, theirs: Result | None) -> str:
    """Ours over theirs, of the RMS."""
    return "" if ours is None or theirs is None else f"{ours.rms / theirs.rms:.2f}"


def tables(cells: Iterable[Cell]) -> list[str]:
    """A table per problem; cells of RMS (median)."""
    rows: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        rows[cell.problem].append(cell)
    lines: list[str] = []
    for name in (name for name in PROBLEMS if name in rows):
        lines += [
            f"### {name}",
            "",
            "| NFE | best peer | error | our best | error | ratio | our tuned | error | ratio | of medians |",
            "|---:|---|---|---|---|---:|---|---|---:|---|",
        ]
        for cell in sorted(rows[name], key=lambda cell: cell.nfe):
            peer, fixed, tuned = (best(cell, side) for side in ("peer", "fixed", "tuned"))
            low = best(cell, "peer", "median")
            medians = [best(cell, side, "median") for side in ("fixed", "tuned")]
            of = ", ".join(f"{m.median / low.median:.2f}" for m in medians if m is not None and low is not None)
            names = ["" if r is None else r.name for r in (peer, fixed, tuned)]
            lines.append(
                f"| {cell.nfe} | {names[0]} | {number(peer)} | {names[1]} | {number(fixed)} | {ratio(fixed, peer)} | "
                f"{names[2]} | {number(tuned)} | {ratio(tuned, peer)} | {of} |"
            )
        lines.append("")
    return lines


def reached(cells: Iterable[Cell]) -> list[str]:
    """How many cells keep the two promises, and the ones that do not; the same method on the same grid is a tie."""
    lines: list[str] = []
    for side, limit, label in (
        ("fixed", 1.0, "Our best fixed at most the best peer"),
        ("tuned", 0.5, "Tuned at most half of it, NFE 5 to 10"),
    ):
        for by in ("rms", "median"):
            asked = [(c, best(c, side, by), best(c, "peer", by)) for c in cells]
            pairs = [(c, getattr(a, by) / getattr(b, by)) for c, a, b in asked if a is not None and b is not None]
            missed = [f"{c.problem} at {c.nfe} ({r:.2f})" for c, r in pairs if r > limit + 0.005]
            line = f"- {label}, by {'RMS' if by == 'rms' else 'the median'}: {len(pairs) - len(missed)} of {len(pairs)}"
            lines.append(line + (f"; missed: {'; '.join(missed)}." if missed else "."))
    return lines


def defaults(cells: Iterable[Cell], process: str, least: int = 5) -> list[tuple[str, float, float, dict[int, float]]]:
    """Our fixed candidates for one process, best first: (name, mean, worst, by NFE) of the RMS over our best's.

    The mean is geometric, over both laws and all NFE; a default has to be good everywhere.
    """
    scores: dict[str, list[tuple[int, float]]] = defaultdict(list)
    mine = [cell for cell in cells if cell.problem.endswith(f", {process}")]
    for cell in mine:
        low = best(cell, "fixed")
        assert low is not None
        for r in cell.results:
            if r.side == "fixed":
                scores[r.name].append((cell.nfe, r.rms / low.rms))
    found = []
    for name, all_ in scores.items():
        if len(all_) == len(mine):
            by: dict[int, list[float]] = defaultdict(list)
            for nfe, value in all_:
                by[nfe].append(value)
            means = {nfe: mean(values) for nfe, values in sorted(by.items())}
            found.append((name, mean([v for _, v in all_]), max(v for _, v in all_), means))
    return sorted(found, key=lambda item: item[1])


def mean(values: list[float]) -> float:
    """Geometric."""
    return math.exp(sum(math.log(v) if v > 0 else -math.inf for v in values) / len(values))


def default_tables(cells: list[Cell], rows: int = 6) -> list[str]:
    """The best candidates for a default, per process."""
    lines: list[str] = []
    for process in ("VP", "discrete VP-1000", "EDM", "Flow"):
        ranked = defaults(cells, process)
        if not ranked:
            continue
        plain = [item for item in ranked if item[0] in ("DDIM, lam", "DPM++ 2M, lam", "DPM++ 2M, karras")]
        nfes = list(ranked[0][3])
        lines += [
            f"### {process}",
            "",
            "| solver, grid | mean | worst |" + "".join(f" {nfe} |" for nfe in nfes),
            "|---|---:|---:|" + "---:|" * len(nfes),
        ]
        for name, mean_, worst, means in [*ranked[:rows], *plain]:
            lines.append(f"| {name} | {mean_:.2f} | {worst:.1f} |" + "".join(f" {means[n]:.2f} |" for n in nfes))
        lines.append("")
    return lines


def draw(cells: list[Cell], path: Path) -> None:
    """Error against NFE: the best peer, our best fixed, our tuned."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name in PROBLEMS if any(cell.problem == name for cell in cells)]
    width = min(4, len(names))
    figure, axes = pyplot.subplots(
        -(-len(names) // width), width, figsize=(3.4 * width, 5.8), sharex=True, squeeze=False
    )
    for axis, name in zip(axes.flat, names, strict=False):
        mine = sorted((cell for cell in cells if cell.problem == name), key=lambda cell: cell.nfe)
        for side, label, style in (
            ("peer", "best peer", "ks--"),
            ("fixed", "fokker", "C0o-"),
            ("tuned", "fokker, tuned", "C3^-"),
        ):
            points = [(cell.nfe, found.rms) for cell in mine if (found := best(cell, side)) is not None]
            if points:
                axis.loglog(*zip(*points, strict=True), style, label=label, markersize=4, linewidth=1)
        axis.set_title(name, fontsize=9)
        axis.set_xticks(NFES, [str(n) for n in NFES])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("evaluations")
    for row in axes:
        row[0].set_ylabel("RMS error")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
