"""What a step of each solver costs beyond the network, against the least that any step could cost.

    python benchmarks/overhead.py                   # some two minutes; --quick for half a minute
    python benchmarks/overhead.py -o benchmarks/overhead.md

The network is one that answers at once, with a tensor made beforehand; what calling it adds to a pass over memory is
taken off. The floor is one fused multiply-add, `x.add_(raw, alpha=b)`: a pass that reads two arrays and writes one,
which no method can do without. One thread, float32. All runners take turns in every round; reported are the median
time, and the median over the rounds of the ratio to the floor of the same round, which a busy machine blurs less.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fokker import noise
from fokker.prediction import READINGS, Prediction
from fokker.process import EDM, VP, Process
from fokker.solvers import DDIM, DEIS, Ancestral, DPMpp, Heun, Solver, UniformLam, UniPC, bind, run

SHAPES = ((1, 3, 32, 32), (64, 3, 32, 32), (16, 4, 64, 64))
STEPS = 40
SOLVERS: dict[str, Solver] = {
    "DDIM": DDIM(),
    "DPM++ 2M": DPMpp(order=2),
    "UniPC 2": UniPC(order=2),
    "DPM++ 3M": DPMpp(order=3),
    "DEIS 3": DEIS(degree=2),
    "Heun (2 evaluations)": Heun("rho"),
}


class Ready:
    """A denoiser whose answer is there already."""

    def __init__(self, raw: Tensor, name: str, process: Process) -> None:
        self.process, self.shape, self.reading, self.raw = process, tuple(raw.shape[1:]), READINGS[name], raw
        self.lam_range = (-5.0, 5.0)

    def __call__(self, x: Tensor, s: float | Tensor, cond: Any = None) -> Prediction:
        return Prediction(self.process, x, s, other=(self.reading, self.raw))


def runners(shape: tuple[int, ...]) -> dict[str, tuple[Callable[[], object], int, int]]:
    """Name -> (what to time, steps in it, calls of the denoiser in it)."""
    generator = torch.Generator().manual_seed(0)
    x, raw, still = (torch.randn(shape, generator=generator) for _ in range(3))
    index = torch.arange(shape[0])
    made: dict[str, tuple[Callable[[], object], int, int]] = {}

    def floor() -> None:
        for _ in range(STEPS):
            still.add_(raw, alpha=1e-6)

    made["floor"] = floor, STEPS, 0
    denoiser = Ready(raw, "noise", VP())

    def called() -> None:
        for _ in range(STEPS):
            denoiser(x, 0.5)
            still.add_(raw, alpha=1e-6)

    made["floor and a call"] = called, STEPS, 0

    def solver(
        name: str,
        chosen: Solver,
        reading: str,
        draw: Callable[[int, int], Tensor] | None = None,
        process: Process | None = None,
    ) -> None:
        it = Ready(raw, reading, process or VP())
        times = UniformLam().times(it.process, STEPS, it.process.t_max, it.process.t_min, False)
        plan = chosen.plan(it.process, times)
        bound = bind(plan, it, x.device, x.dtype)
        made[name] = (lambda: run(bound, it, x, draw=draw)), STEPS, plan.nfe

    for name, chosen in SOLVERS.items():
        solver(f"{name}, noise", chosen, "noise")
    for name in ("DDIM", "DPM++ 2M"):  # x / alpha is the state: the network's own input scaling takes the scale
        solver(f"{name}, noise, alpha = 1", SOLVERS[name], "noise", process=EDM())
    solver("DDIM, v", DDIM(), "v")
    solver("DPM++ 2M, v", DPMpp(order=2), "v")
    solver("DPM++ 2M, x0", DPMpp(order=2), "x0")
    solver("Ancestral, noise, its draws made beforehand", Ancestral(), "noise", lambda n, k: still)
    solver("Ancestral, noise", Ancestral(), "noise", lambda n, k: noise.normal(0, index, shape[1:], draw=n << 8 | k))
    return made


def measure(shape: tuple[int, ...], rounds: int) -> list[tuple[str, float, float]]:
    """(name, microseconds a step, ratio to the floor) of every runner."""
    made = runners(shape)
    repeats = {name: 1 if name == "Ancestral, noise" else 10 if shape[0] == 1 else 2 for name in made}
    spent: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(rounds + 1):
        took: dict[str, float] = {}
        for name, (work, _, _) in made.items():
            begin = time.perf_counter()
            for _ in range(repeats[name]):
                work()
            took[name] = (time.perf_counter() - begin) / repeats[name]
        if turn:  # the first round warms up
            call = (took["floor and a call"] - took["floor"]) / STEPS
            for name, (_, steps, evaluations) in made.items():
                spent[name].append(1e6 * (took[name] - evaluations * call) / steps)
    floors = spent["floor"]
    return [
        (name, statistics.median(all_), statistics.median(a / b for a, b in zip(all_, floors, strict=True)))
        for name, all_ in spent.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--quick", action="store_true", help="12 rounds")
    parser.add_argument("-o", "--output", type=Path, help="write the table there too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        columns = [measure(shape, 12 if args.quick else args.rounds) for shape in SHAPES]
    heads = "".join(f" {shape} | |" for shape in SHAPES)
    lines = [
        f"torch {torch.__version__}, {platform.machine()}, one thread, float32; microseconds a step, times the floor",
        "",
        f"| step |{heads}",
        "|---|" + "---:|---:|" * len(SHAPES),
    ]
    lines += [
        f"| {rows[0][0]} |" + "".join(f" {each:.1f} | {ratio:.2f} |" for _, each, ratio in rows)
        for rows in zip(*columns, strict=True)
    ]
    table = "\n".join(lines) + "\n"
    print(table)
    if args.output is not None:
        args.output.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
