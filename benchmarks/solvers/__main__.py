"""Solvers beside their peers.

    make bench-solvers                          # installs the peers; some eight minutes on two cores
    python -m benchmarks.solvers --quick        # some two minutes; nothing is written unless -o says where

(a) Error against the exact probability-flow ODE at equal numbers of evaluations, from equal noises; (b) time per step
beyond the network. The report is written to FILE.md and the picture beside it, FILE.png.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from pathlib import Path

import torch

from .errors import NFES, PROBLEMS, Cell, measure_all
from .overhead import overhead
from .peers import LIBRARIES, installed
from .report import default_tables, draw, reached, tables

INTRO = """\
Error at time 0 against the exact probability-flow ODE of an exact denoiser, from the same noises: RMS over all entries,
and in brackets the median over samples of a sample's RMS, which says more in 64 dimensions, where one sample that ends
in another mode is worth {jump:.3f} of RMS. "Best" is the least RMS; the last column compares the least medians. Ours:
{fixed} fixed triples of a solver, a grid and an end (`final="x0"` or "t_min"), and a few solvers on grids tuned on
noises of another seed. Theirs: every scheduler or sampler that takes a deterministic step, on every grid on offer.

States are float32 on both sides; so are the times of diffusers and k-diffusion, while azula's and ours are float64.
The truth is RK4 of 500 steps in float64. On VP diffusers' models are told the noise level that the state has; on the
discrete chain they are told the integer that the scheduler names.
"""


def main() -> None:
    """Parse, measure, print; write only where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="NFE 5, 10 and 20, fewer noises, short tuning")
    parser.add_argument("--only", help="problems whose name contains this")
    parser.add_argument("--nfe", type=int, nargs="+", help=f"default {' '.join(map(str, NFES))}")
    parser.add_argument("-n", type=int, help="noises (default 384)")
    parser.add_argument("--trials", type=int, help="grids tried per tuned solver (default 150)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--part", choices=("errors", "overhead"), help="one of the two parts")
    parser.add_argument("-o", dest="out", type=Path, help="write the report to this file, the picture beside it")
    options = parser.parse_args()
    nfes = tuple(options.nfe or ((5, 10, 20) if options.quick else NFES))
    n, trials = options.n or (128 if options.quick else 384), options.trials or (60 if options.quick else 150)
    names = [name for name in PROBLEMS if options.only is None or options.only in name]
    began = time.perf_counter()
    missing = [name for name in LIBRARIES if name not in installed()]
    versions = ", ".join(f"{name} {version}" for name, version in installed().items())
    lines = [
        f"torch {torch.__version__}, {platform.machine()}; {versions}"
        + (f"; not installed: {', '.join(missing)}" if missing else ""),
        "",
    ]
    cells: list[Cell] = []
    if options.part != "overhead":
        for cell in measure_all(nfes, names, n, trials, options.jobs):
            cells.append(cell)
            done = f"{len(cells)}/{len(nfes) * len(names)}"
            say(f"{time.perf_counter() - began:5.0f} s  {done}  {cell.problem}, NFE {cell.nfe}")
        fixed = len({r.name for cell in cells for r in cell.results if r.side == "fixed"})
        lines += ["## Error", "", INTRO.format(fixed=fixed, jump=5.0 / (64 * n) ** 0.5), *reached(cells), ""]
        lines += tables(cells)
        lines += ["## Defaults", "", "RMS over that of our best in the same cell, geometric means over both laws.", ""]
        lines += default_tables(cells)
        failures = sorted({f"{name.split(',')[0]}: {why}" for cell in cells for name, why in cell.failures})
        if failures:
            lines += ["## Could not run", "", *(f"- {line}" for line in failures), ""]
    if options.part != "errors":
        lines += ["## Time per step", "", *overhead(quick=options.quick, say=say), ""]
    print("\n".join(lines))
    if options.out is not None:
        if cells:
            draw(cells, options.out.with_suffix(".png"))
            lines[2:2] = [f"![error against evaluations]({options.out.with_suffix('.png').name})", ""]
        options.out.write_text("\n".join(["# Solvers beside their peers", "", *lines]), encoding="utf-8")


def say(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
