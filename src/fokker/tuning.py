"""Grids found by trying: the times at which a solver of few steps errs least on a denoiser.

What is minimised is the distance, at the end, from the exact probability-flow ODE (a fine solution) on fixed noises;
Sabour et al. 2024 (align your steps) minimise a bound of the same thing. The search is a pattern search on the inner
times, in lam: each is moved by a fraction of the gap to its neighbour, up or down, and a move that helps is kept and
tried larger, one that does not is tried smaller (Hooke & Jeeves 1961). It draws nothing: the same arguments find the
same grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .component import Array
from .errors import ConfigError
from .noise import Seed
from .prediction import Denoiser
from .registry import build
from .sampling import DEFAULT_SOLVER, DEFAULT_STEPS, sample, trajectory
from .solvers import RK4, Solver, Times, UniformLam, as_grid, steps_for_nfe
from .solvers.base import count

__all__ = ["NAMED", "Trial", "named_grids", "optimise_grid", "refine", "search"]

NAMED = ("flow", "t", "lam", "karras", "quadratic", "cosine", "beta", "shift", "linspace")
"""The kinds of grid that start at the noisiest time, among which the search finds its beginning."""

CLOSEST = 1e-4  # in lam; the search brings no two times closer
SMALLEST = 0.01  # of a gap; when no move this small helps, the search is over


class Trial:
    """How far a solver ends from the exact ODE, as a function of its times: trial(times) -> RMS over all entries.

    The ODE is solved down to `stop`, and where the solver ends at 0 so does it, by one x0 step from there: a denoiser
    says nothing below.

    Args:
        denoiser: exact, learned or guided.
        solver: a deterministic one, its name or recipe; default as in `sample`.
        indices: the noises, numbers of samples of `seed`.
        seed, cond, shape, batch_size, device, dtype: as in `sample`.
        final: where the solver ends, as in `sample`.
        fine: steps of the reference, RK4 at equal steps of lam; four evaluations each.

    Attributes:
        start, stop: the times of the first and of the cleanest evaluation allowed.
        x: the states at `start`, (n, *shape).
        target: where the exact ODE takes them.

    Raises:
        ConfigError: a solver that draws noise, or fewer than 2 fine steps.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        solver: Solver | str | dict[str, Any] | None = None,
        *,
        indices: Sequence[int] | Tensor = range(256),
        seed: Seed = 0,
        cond: Any = None,
        final: Literal["x0", "t_min"] = "x0",
        shape: Sequence[int] | None = None,
        fine: int = 64,
        batch_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.denoiser, self.process = denoiser, denoiser.process
        self.solver: Solver = build("solver", DEFAULT_SOLVER if solver is None else solver)
        if self.solver.stochastic:
            raise ConfigError(
                f"solver: given {self.solver}, which draws noise; a grid is tuned for a deterministic one"
            )
        if self.solver.own_steps:
            raise ConfigError(f"solver: given {self.solver}, which chooses its own times; there is no grid to tune")
        if fine < 2:
            raise ConfigError(f"fine: given {fine}, must be at least 2")
        self.to_zero = final == "x0"
        ends, states = trajectory(
            denoiser,
            indices=indices,
            seed=seed,
            solver=self.solver,
            steps=self.solver.fixed_steps(False) or 1,
            final="t_min",
            cond=cond,
            shape=shape,
            device=device,
            dtype=dtype,
        )
        self.start, self.stop = float(ends[0]), float(ends[-1])
        self.x = states[0]
        self._options: dict[str, Any] = {"cond": cond, "batch_size": batch_size, "device": device, "dtype": dtype}
        self.target = self._end(RK4(), UniformLam().times(self.process, fine, self.start, self.stop, self.to_zero))

    def _end(self, solver: Solver, times: Tensor) -> Tensor:
        return sample(self.denoiser, x=self.x, solver=solver, grid=times, **self._options)

    def __call__(self, times: Tensor) -> float:
        """The RMS error on `times`, which start at `start`; infinite where the solver left the numbers."""
        gap = (self._end(self.solver, times) - self.target).double()
        error = float(gap.square().mean().sqrt())
        return error if math.isfinite(error) else math.inf


def named_grids(trial: Trial, steps: int | None = None, nfe: int | None = None) -> dict[str, Tensor]:
    """The times of every grid in `NAMED` for `trial`'s solver and ends.

    Args:
        trial: whose solver, process and ends they are for.
        steps, nfe: at most one: the number of steps (default 50), or the most evaluations allowed.
    """
    if steps is not None and nfe is not None:
        raise ConfigError(f"give steps or nfe, not both (given steps={steps}, nfe={nfe})")
    steps, nfe = count("steps", steps), count("nfe", nfe)
    ends = (trial.start, trial.stop, trial.to_zero)
    made = {}
    for name in NAMED:
        grid = as_grid(name)
        number = steps or trial.solver.fixed_steps(trial.to_zero) or DEFAULT_STEPS
        if nfe is not None:
            number = steps_for_nfe(trial.solver, grid, trial.process, nfe, *ends)
        made[name] = grid.times(trial.process, number, *ends)
    return made


def refine(
    trial: Trial, times: Tensor, trials: int = 400, progress: Callable[[int, float], object] | None = None
) -> Times:
    """The grid that the search reaches from `times`: its ends are theirs, its error is at most theirs.

    Args:
        trial: what to minimise.
        times: (N + 1,), decreasing from `trial.start`.
        trials: how many grids may be tried, each for one run of the solver on all noises.
        progress: is told (grids tried, least error so far) after each.
    """
    process, best, tried = trial.process, trial(times), 1
    z = process.lam(times[1:-1]).tolist()
    noisiest, cleanest = float(process.lam(trial.start)), float(process.lam(trial.stop))
    moves = [0.4] * len(z)
    found = times

    def attempt(i: int, place: float) -> bool:
        nonlocal best, tried, found
        low = z[i - 1] if i else noisiest
        high = z[i + 1] - CLOSEST if i + 1 < len(z) else cleanest
        if not low + CLOSEST <= place <= high:
            return False
        inner = process.time(torch.tensor([*z[:i], place, *z[i + 1 :]], dtype=torch.float64))
        candidate = torch.cat([times[:1], inner, times[-1:]])
        value = trial(candidate)
        tried += 1
        if value < best:
            best, found, z[i] = value, candidate, place
        if progress is not None:
            progress(tried, best)
        return found is candidate

    while tried < trials and max(moves, default=0.0) > SMALLEST:
        for i in range(len(z)):
            # where alpha(start) = 0 there is no gap to a lam of -inf: a step of 1, while T - t has bits left
            below = z[i - 1] if i else noisiest if math.isfinite(noisiest) else max(z[0] - 1.0, -15.0)
            above = z[i + 1] if i + 1 < len(z) else cleanest
            places = (z[i] + moves[i] * (above - z[i]), z[i] - moves[i] * (z[i] - below))
            helped = any(tried < trials and attempt(i, place) for place in places)
            moves[i] = min(0.6, 1.5 * moves[i]) if helped else 0.5 * moves[i]
    return Times(Array(found))


def search(
    trial: Trial,
    grids: Mapping[str, Tensor],
    trials: int = 400,
    progress: Callable[[int, float], object] | None = None,
) -> Times:
    """The best three of `grids` refined with a sixth of the trials each, then the best of these with the other half."""
    if trials < 1:
        raise ConfigError(f"trials: given {trials}, must be at least 1")
    best = sorted(grids.values(), key=trial)[:3]
    tries = [refine(trial, times, trials // 6, progress).values.value for times in best]
    return refine(trial, min(tries, key=trial), trials - 3 * (trials // 6), progress)


def optimise_grid(
    denoiser: Denoiser,
    solver: Solver | str | dict[str, Any] | None = None,
    steps: int | None = None,
    *,
    nfe: int | None = None,
    n: int = 256,
    trials: int = 400,
    progress: Callable[[int, float], object] | None = None,
    **options: Any,
) -> Times:
    """The times at which `solver` errs least on `denoiser`: the best grids of `NAMED`, refined (`search`).

    Use it as `sample(denoiser, grid=found, solver=solver)`; it is for this denoiser, solver and number of steps.
    What it is worth other noises tell: `Trial(denoiser, solver, indices=range(n, 2 * n))(found.values.value)`.

    Args:
        denoiser, solver: as in `Trial`.
        steps, nfe: as in `named_grids`.
        n: how many noises, samples 0 to n - 1 of the seed.
        trials, progress: as in `refine`.
        options: of `Trial`: seed, cond, final, shape, fine, batch_size, device, dtype.
    """
    trial = Trial(denoiser, solver, indices=range(n), **options)
    return search(trial, named_grids(trial, steps, nfe), trials, progress)
