"""Our side: every deterministic solver on every named grid, and solvers on grids that were tuned beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fokker.sampling import sample
from fokker.solvers import DDIM, DEIS, DPM, PNDM, RK4, DPMpp, Euler, ExpHeun, Heun, Solver, Times, UniPC
from fokker.tuning import NAMED, Trial, named_grids, search

from .laws import Problem

__all__ = ["CANDIDATES", "TUNED", "Contestant", "fixed", "tuned"]


@dataclass(frozen=True)
class Contestant:
    """Someone's solver with someone's grid.

    Args:
        library: whose it is.
        name: solver and grid.
        run: (problem, evaluations allowed) -> x at time 0, (n, d); None if that few are not enough.
    """

    library: str
    name: str
    run: Callable[[Problem, int], Tensor | None]


SOLVERS: dict[str, Solver] = {
    "DDIM": DDIM(),
    "DEIS 1 (t)": DEIS(1, "t"),
    "DEIS 2 (t)": DEIS(2, "t"),
    "DEIS 3 (t)": DEIS(3, "t"),
    "DEIS 1 (rho)": DEIS(1, "rho"),
    "DEIS 2 (rho)": DEIS(2, "rho"),
    "DEIS 3 (rho)": DEIS(3, "rho"),
    "DPM 2M": DPM(2, "M"),
    "DPM 3M": DPM(3, "M"),
    "DPM 2S": DPM(2),
    "DPM 3S": DPM(3),
    "DPM++ 2M": DPMpp(2),
    "DPM++ 3M": DPMpp(3),
    "DPM++ 2M published": DPMpp(2, published=True),
    "DPM++ 3M published": DPMpp(3, published=True),
    "DPM++ 2S": DPMpp(2, "S"),
    "DPM++ 3S": DPMpp(3, "S"),
    "UniPC 1": UniPC(1),
    "UniPC 2": UniPC(2),
    "UniPC 2 published": UniPC(2, published=True),
    "UniPC 3": UniPC(3),
    "UniPC 3 noise": UniPC(3, side="noise"),
    "PNDM": PNDM(),
    "Euler (t)": Euler(),
    "Heun (t)": Heun(),
    "Heun (rho)": Heun("rho"),
    "ExpHeun x0": ExpHeun("x0"),
    "RK4 (t)": RK4(),
    "RK4 (lam)": RK4("lam"),
}

CANDIDATES = [(solver, grid) for solver in SOLVERS for grid in NAMED]
TUNED = ("DPM++ 2M published", "DPM++ 3M published", "UniPC 2", "UniPC 3")


def fixed() -> Iterator[Contestant]:
    """Named solvers on named grids."""
    for solver, grid in CANDIDATES:

        def run(problem: Problem, nfe: int, solver: Solver = SOLVERS[solver], grid: str = grid) -> Tensor | None:
            try:
                return sample(problem, n=problem.n, seed=problem.seed, solver=solver, grid=grid, nfe=nfe)
            except ValueError:
                return None  # fewer evaluations than one step needs

        yield Contestant("fokker", f"{solver}, {grid}", run)


def tuned(problem: Problem, nfe: int, trials: int) -> Iterator[Contestant]:
    """The best of `TUNED` on grids found for `nfe`, with noises of another seed; also chosen by those."""
    other = replace(problem, n=256, seed=problem.seed + 1, _known={})
    best: tuple[float, str, Times] | None = None
    for name in TUNED:
        trial = Trial(other, SOLVERS[name], indices=range(other.n), seed=other.seed)
        trial.target = other.truth.float()
        times = search(trial, named_grids(trial, nfe=nfe), trials)
        found = (trial(times.values.value), name, times)
        best = found if best is None else min(best, found, key=lambda item: item[0])
    assert best is not None
    _, name, times = best

    def run(problem: Problem, nfe: int) -> Tensor:
        return sample(problem, n=problem.n, seed=problem.seed, solver=SOLVERS[name], grid=times)

    yield Contestant("fokker", f"{name}, tuned", run)


def lam_of(problem: Problem, times: Tensor) -> str:
    """Times as lam, to be read."""
    return ", ".join(f"{value:.2f}" for value in problem.process.lam(torch.as_tensor(times[:-1])).tolist())
