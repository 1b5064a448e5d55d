"""Our side: every deterministic solver on every named grid, and solvers on grids that were tuned beforehand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from torch import Tensor

from fokker.process import Process
from fokker.sampling import sample
from fokker.solvers import (
    DDIM,
    DEIS,
    DPM,
    PNDM,
    RK4,
    Adams,
    Angle,
    Beta,
    DPMpp,
    DPMv3,
    FlowTime,
    Grid,
    Heun,
    Karras,
    Leading,
    Linspace,
    Quadratic,
    Shift,
    Solver,
    Statistics,
    Times,
    UniformLam,
    UniformT,
    UniPC,
)
from fokker.statistics import compute_statistics
from fokker.tuning import Trial, named_grids, search

from .laws import Mixture, Problem

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
    "Adams 1 (angle)": Adams(1),
    "Adams 1 (flow)": Adams(1, "flow"),
    "Adams 2 (flow)": Adams(2, "flow"),
    "Adams 3 (flow)": Adams(3, "flow"),
    "Adams 2 (angle)": Adams(2, "angle"),
    "Adams 3 (angle)": Adams(3, "angle"),
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
    "quadratic": Quadratic(),
    "cosine": Angle(),
    "beta": Beta(),
    "flow": FlowTime(),
    "shift 3": Shift(3.0),
    "linspace": Linspace(),
    "leading": Leading(),
}
COSTS = {"Heun (t)": 2, "Heun (rho)": 2, "RK4 (t)": 4}  # evaluations a step, where they are not one
TUNED = ("Adams 2 (angle)", "Adams 2 (flow)")
End = Literal["x0", "t_min"]
ENDS: tuple[End, ...] = ("x0", "t_min")


def fixed() -> Iterator[Contestant]:
    """Named solvers on named grids, with both of `sample`'s ends."""
    for (name, solver), (grid, times), final in itertools.product(SOLVERS.items(), GRIDS.items(), ENDS):

        def run(
            problem: Problem,
            nfe: int,
            solver: Solver = solver,
            cost: int = COSTS.get(name, 1),
            times: Grid = times,
            final: End = final,
        ) -> Tensor | None:
            # a last step to 0 costs one evaluation whatever the solver
            steps = (nfe + cost - 1) // cost if final == "x0" else nfe // cost
            if steps < 1:
                return None
            x = sample(problem, n=problem.n, seed=problem.seed, solver=solver, grid=times, steps=steps, final=final)
            return x if final == "x0" else x / float(problem.process.alpha(problem.process.t_min))

        yield Contestant("fokker", f"{name}, {grid}" + (", to t_min" if final == "t_min" else ""), run)


@cache
def statistics(law: Mixture, process: Process) -> Statistics:
    """DPM-Solver-v3's tables, from data of the law that no problem is about."""
    denoiser = law.law().denoiser(process)
    return compute_statistics(denoiser, data=denoiser.law.sample(512, seed=99), n=512, points=80, seed=99)


def tuned(problem: Problem, nfe: int, trials: int) -> Iterator[Contestant]:
    """The best of `TUNED` and DPM-Solver-v3 on grids found for `nfe`, with noises of another seed and by those."""
    other = replace(problem, n=512, seed=problem.seed + 1, _known={})
    table = statistics(problem.law, problem.process)
    solvers = {name: SOLVERS[name] for name in TUNED}
    solvers |= {f"DPM-v3 {order}": DPMv3(table, order, corrector=True) for order in (1, 2, 3)}
    found: list[tuple[float, str, End, Times]] = []
    for name, final in itertools.product(solvers, ENDS):
        trial = Trial(other, solvers[name], indices=range(other.n), seed=other.seed, final=final)
        trial.target = other.truth.float() * float(problem.process.alpha(0.0 if final == "x0" else trial.stop))
        times = search(trial, named_grids(trial, steps=nfe), trials)
        found.append((trial(times.values.value), name, final, times))
    _, name, final, times = min(found, key=lambda item: item[0])

    def run(problem: Problem, nfe: int) -> Tensor:
        x = sample(problem, n=problem.n, seed=problem.seed, solver=solvers[name], grid=times)
        return x / float(problem.process.alpha(times.values.value[-1]))

    yield Contestant("fokker", f"{name}, tuned" + (", to t_min" if final == "t_min" else ""), run)
