"""Our side: every deterministic solver on every named grid, and solvers on grids that were tuned beforehand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from fokker.sampling import sample
from fokker.solvers import (
    DDIM,
    DEIS,
    DPM,
    PNDM,
    RK4,
    Angle,
    Beta,
    DPMpp,
    Grid,
    Heun,
    Karras,
    Linspace,
    Quadratic,
    Shift,
    Solver,
    Times,
    UniformLam,
    UniformT,
    UniPC,
)
from fokker.tuning import Trial, named_grids, search

from .laws import Problem

__all__ = ["GRIDS", "SOLVERS", "TUNED", "Contestant", "fixed", "tuned"]


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
    "DEIS 2 (t)": DEIS(2, "t"),
    "DEIS 3 (t)": DEIS(3, "t"),
    "DEIS 1 (rho)": DEIS(1, "rho"),
    "DEIS 2 (rho)": DEIS(2, "rho"),
    "DEIS 3 (rho)": DEIS(3, "rho"),
    "DPM 2M": DPM(2, "M"),
    "DPM 3M": DPM(3, "M"),
    "DPM++ 2M": DPMpp(2),
    "DPM++ 3M": DPMpp(3),
    "DPM++ 2M published": DPMpp(2, published=True),
    "DPM++ 3M published": DPMpp(3, published=True),
    "UniPC 2": UniPC(2),
    "UniPC 3": UniPC(3),
    "UniPC 3 noise": UniPC(3, side="noise"),
    "PNDM": PNDM(),
    "Heun (t)": Heun(),
    "Heun (rho)": Heun("rho"),
    "RK4 (t)": RK4(),
}

GRIDS: dict[str, Grid] = {
    "t": UniformT(),
    "lam": UniformLam(),
    "karras": Karras(),
    "karras 3": Karras(3.0),
    "quadratic": Quadratic(),
    "cosine": Angle(),
    "beta": Beta(),
    "shift 1": Shift(1.0),
    "shift 3": Shift(3.0),
    "linspace": Linspace(),
}
TUNED = ("DPM++ 2M published", "DPM++ 3M published", "UniPC 2", "UniPC 3")


ENDS: tuple[Literal["x0", "t_min"], ...] = ("x0", "t_min")


def fixed() -> Iterator[Contestant]:
    """Named solvers on named grids, with both of `sample`'s ends."""
    for (name, solver), (grid, times), final in itertools.product(SOLVERS.items(), GRIDS.items(), ENDS):

        def run(
            problem: Problem,
            nfe: int,
            solver: Solver = solver,
            times: Grid = times,
            final: Literal["x0", "t_min"] = final,
        ) -> Tensor | None:
            try:
                x = sample(problem, n=problem.n, seed=problem.seed, solver=solver, grid=times, nfe=nfe, final=final)
            except ValueError:
                return None  # fewer evaluations than one step needs
            return x if final == "x0" else x / float(problem.process.alpha(problem.process.t_min))

        yield Contestant("fokker", f"{name}, {grid}" + (", to t_min" if final == "t_min" else ""), run)


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
