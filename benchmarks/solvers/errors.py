"""What everyone's error is: all contestants on all problems at all numbers of evaluations."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch

from fokker.process import EDM, VP, DiscreteVP, Flow

from .laws import Problem, eight, ten
from .ours import Contestant, fixed, tuned
from .peers import peers

__all__ = ["NFES", "PROBLEMS", "Cell", "Result", "measure_all"]

NFES = (5, 8, 10, 15, 20, 50)
TUNED_UP_TO = 10
PROBLEMS = {
    f"{law().name}, {name}": (law, name, process)
    for law in (eight, ten)
    for name, process in (("VP", VP()), ("discrete VP-1000", DiscreteVP()), ("EDM", EDM()), ("Flow", Flow()))
}


@dataclass(frozen=True)
class Result:
    """One contestant on one problem with one budget; `side` is "peer", "fixed" or "tuned"."""

    side: str
    name: str
    rms: float
    median: float
    calls: int


@dataclass(frozen=True)
class Cell:
    """All results of one problem with one budget, and what could not run (name, why)."""

    problem: str
    nfe: int
    results: tuple[Result, ...]
    failures: tuple[tuple[str, str], ...]


@functools.cache
def problem_of(name: str, n: int) -> Problem:
    """A problem by its name; its truth is computed once per process of the machine."""
    law, process_name, process = PROBLEMS[name]
    return Problem(process_name, law(), process, n)


def measure(name: str, nfe: int, n: int, trials: int) -> Cell:
    """One cell."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    problem = problem_of(name, n)
    results: list[Result] = []
    failures: list[tuple[str, str]] = []
    sides: dict[str, Iterator[Contestant]] = {"peer": peers(problem), "fixed": fixed()}
    if nfe <= TUNED_UP_TO:
        sides["tuned"] = tuned(problem, nfe, trials)
    for side, contestants in sides.items():
        for contestant in contestants:
            full = f"{contestant.library}: {contestant.name}" if side == "peer" else contestant.name
            problem.calls = 0
            try:
                x = contestant.run(problem, nfe)
            except Exception as error:  # what a peer raises is its own affair, and is reported
                failures.append((full, f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"))
                continue
            if x is None:
                continue
            if problem.calls > nfe:
                failures.append((full, f"made {problem.calls} evaluations where {nfe} were allowed"))
                continue
            results.append(Result(side, full, *problem.errors(x), problem.calls))
    return Cell(name, nfe, tuple(results), tuple(failures))


def measure_all(nfes: tuple[int, ...], names: list[str], n: int, trials: int, jobs: int) -> Iterator[Cell]:
    """Every cell, as they come, the dear ones first; the larger law with half the samples."""
    todo = [
        (name, nfe, n // 2 if "64-d" in name else n, trials) for nfe in sorted(nfes, reverse=True) for name in names
    ]
    if jobs == 1:
        yield from (measure(*arguments) for arguments in todo)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(measure, *zip(*todo, strict=True))
