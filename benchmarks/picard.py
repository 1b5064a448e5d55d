"""Wall time of solvers taken one step after another and in Picard's windows, in the same run.

    python benchmarks/picard.py                     # some three minutes
    python benchmarks/picard.py --device cuda -o benchmarks/picard.md

A small MLP is fitted to eight Gaussians on a ring, and samples are drawn from it with and without `Picard`. Two
networks: the MLP as it is, whose calls cost mostly their overhead while the batch is small, and the MLP behind a fixed
latency a call (a sleep: what a remote or launch-bound model looks like), where a batch is nearly free. Both ways take
turns; times are medians, and speed is the median of the ratios within a turn, which a busy machine blurs less.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import fokker as fk
from fokker.data import EightGaussians
from fokker.denoiser import NetDenoiser
from fokker.nets import MLP
from fokker.objectives import Denoising
from fokker.solvers import DDIM, Ancestral, DPMpp, Picard, Solver, UniformLam


class Late(nn.Module):
    """A network that answers after a fixed time, however many rows it is asked."""

    def __init__(self, net: nn.Module, seconds: float) -> None:
        super().__init__()
        self.net, self.seconds = net, seconds

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time.sleep(self.seconds)
        out: Tensor = self.net(x, t)
        return out


def fitted(steps: int) -> MLP:
    """An MLP that regresses the velocity of a flow to the ring."""
    torch.manual_seed(0)
    net = MLP(2, width=128, depth=3)
    denoiser, objective = NetDenoiser(net, "flow", shape=(2,)), Denoising.cfm()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    data = EightGaussians().sample(2**15, seed=0).float()
    for step in range(steps):
        optimiser.zero_grad()
        objective(denoiser, data[torch.randint(len(data), (256,))], step=step).backward()
        optimiser.step()
    return net


def timed(device: str, solver: Solver, denoiser: NetDenoiser, n: int, steps: int) -> tuple[float, Tensor]:
    """(seconds, samples)."""
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    x = fk.sample(denoiser, n=n, solver=solver, steps=steps)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, x


def row(name: str, denoiser: NetDenoiser, solver: Solver, n: int, window: int, options: argparse.Namespace) -> str:
    """One comparison: the solver, and Picard of it."""
    picard, steps = Picard(solver, window=window, tol=options.tol), options.steps
    turns = []
    for turn in range(options.turns + 1):
        one, two = (timed(options.device, s, denoiser, n, steps) for s in (solver, picard))
        turns += [(one[0], two[0])] if turn else []  # the first warms up
    gap = float((one[1] - two[1]).square().mean().sqrt())
    times = UniformLam().times(denoiser.process, steps, denoiser.process.T, denoiser.process.t_min, True)
    index = torch.arange(n, device=options.device)
    found = picard.solve(
        denoiser,
        denoiser.process.prior((2,), n=n, seed=0, t=float(times[0])).to(options.device),
        times,
        draw=lambda step, k: fk.noise.normal(0, index, (2,), draw=step << 8 | k),
    )
    before, after = (1000 * statistics.median(column) for column in zip(*turns, strict=True))
    ratio = statistics.median(a / b for a, b in turns)
    rounds, nfe = int(found.rounds.max()), found.nfe.double().mean()
    label = f"{type(solver).__name__}{f'({solver.order})' if isinstance(solver, DPMpp) else ''}"
    return (
        f"| {name} | {n} | {label} | {window} | {before:.0f} | {after:.0f} | {ratio:.1f} | {rounds} | {nfe:.0f} "
        f"| {gap:.1e} |"
    )


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=100, help="of the sequential solver")
    parser.add_argument("--tol", type=float, default=1e-3)
    parser.add_argument("--latency", type=float, default=5.0, help="of the late network, in ms")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--fit", type=int, default=2000, help="training steps of the MLP")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    net = fitted(options.fit).to(options.device).eval()
    late = Late(net, options.latency / 1000)
    lines = [
        "# Solvers in parallel windows",
        "",
        f"torch {torch.__version__}, {options.device}, {platform.machine()}; one thread; {options.steps} steps; "
        f"tol {options.tol:g}; medians of {options.turns} turns",
        "",
        "| net | samples | solver | window | one by one, ms | Picard, ms | speed | rounds | evaluations | RMS gap |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, module in (("MLP", net), (f"MLP + {options.latency:g} ms", late)):
        denoiser = NetDenoiser(module, "flow", shape=(2,))
        for solver in (DDIM(), DPMpp(2), Ancestral()):
            for n, window in ((1, 16), (1, options.steps), (16, 16), (16, options.steps)):
                lines.append(row(name, denoiser, solver, n, window, options))
                print(lines[-1], flush=True)
    lines += [
        "",
        f"Rounds are calls one after another (one by one: {options.steps}), of the slowest sample; evaluations are per",
        "sample. The gap is to the solver's own result of the same seed.",
    ]
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
