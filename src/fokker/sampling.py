"""The user's door to the solvers: sample, trajectory, encode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import noise as philox
from .denoiser import compile_net, innermost, repeat_cond, take_cond
from .errors import ConfigError
from .prediction import Denoiser, check_denoiser
from .registry import build
from .solvers import Adams, FlowTime, Grid, Solver, Times, as_grid, steps_for_nfe
from .solvers.base import count
from .solvers.path import increments
from .solvers.run import AfterStep, Callback, Draw

__all__ = ["as_indices", "device_of", "encode", "encoding_times", "sample", "tracked", "trajectory"]

DEFAULT_STEPS = 50
# Measured (docs/solvers.md): at 5 to 50 evaluations on average within twice the error of the best of ten solvers and
# grids, on every process, and mostly the best on trained networks, guided or not. One for all.
DEFAULT_SOLVER: Solver = Adams()
DEFAULT_GRID: Grid = FlowTime()


def sample(
    denoiser: Denoiser,
    *,
    n: int | None = None,
    shape: Sequence[int] | None = None,
    x: Tensor | None = None,
    indices: Sequence[int] | Tensor | None = None,
    solver: Solver | str | dict[str, Any] | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    grid: Grid | str | dict[str, Any] | Tensor | Sequence[float] | None = None,
    final: Literal["x0", "t_min"] = "x0",
    cond: Any = None,
    seed: philox.Seed = 0,
    batch_size: int | None = None,
    pad: bool = False,
    brownian: bool = False,
    compile: bool = False,  # noqa: A002
    callback: Callback | None = None,
    after_step: AfterStep | None = None,
    progress: bool | Callable[[int], object] = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw samples: from the prior at the noisiest supported time to the data.

    The same (seed, index) gives the same sample for any n, order of generation and process count: for exact denoisers
    always, for networks at one batch size with `pad=True` on one kind of device. Gradients flow if `x` requires them.

    Args:
        denoiser: exact, learned, guided or viewed.
        n: how many samples; default: as many as `indices`, `x` or a sequence of seeds has, else 64.
        shape: the event's shape; default `denoiser.shape`.
        x: states to start from at the grid's first time, (n, *shape), instead of the prior.
        indices: which samples of `seed`, default range(n) (with one seed per sample: all 0).
        solver: a solver, its name or recipe; default `DEFAULT_SOLVER`, second-order Adams-Bashforth.
        steps, nfe: at most one: the number of steps (default 50, or the solver's own), or the most evaluations allowed.
            A solver that chooses its own steps (Adaptive) takes no nfe, and stops `steps` times on the way (default 1).
        grid: "flow" (the default), "t", "lam", "karras", "quadratic", "cosine", "beta", "shift", "leading", "linspace",
            "trailing" or a recipe of one, a grid, or the times themselves, decreasing, which decide where it ends.
        final: "x0" ends at time 0 (whatever sigma(0) is) by one x0 step, Adams and DPMv3 by their own; "t_min" stops at
            the cleanest time supported.
        cond: condition: a value for all, or n rows; any nesting of dict, list and tuple.
        seed: one integer, or one per sample.
        batch_size: samples per call; default all.
        pad: fill the last batch up to batch_size, so that a network sees one shape only (its bits depend on it).
        brownian: read a stochastic solver's noise from one Brownian path per sample, the same for any grid and number
            of steps: with more of them a sample is refined instead of changed. Noise costs about 20 times as much. Of
            single-step solvers that draw within a step too (DPM(sde=True)) only the whole step's noise is the path's.
        compile: compile the denoiser's network, which stays compiled; the first call takes long.
        callback: (step, time, x, prediction) after the first evaluation of each step; True stops that batch there.
            `prediction.x` is the live state: read what you need before returning.
        after_step: (step, x) -> new state or None.
        progress: show a bar; or a function that is told the number of samples of every finished batch.
        device: default: the denoiser's parameters', else the CPU.
        dtype: of the state, float32 or float64; with `x` the wider one of the two.

    Returns:
        (n, *shape).

    Raises:
        ConfigError: contradictory or impossible arguments.
    """
    job = _Job(denoiser, n, shape, x, indices, seed, device, dtype)
    if compile:
        compile_net(denoiser)
    job.settle(job.inward(job.grid_times(solver, steps, nfe, grid, final)), cond, brownian)
    if pad and batch_size is None:
        raise ConfigError("pad: give batch_size, the number to fill up to")
    fill = batch_size if pad else None
    parts = job.parts(batch_size)
    return torch.cat([job.run(part, fill, callback, after_step) for part in tracked(parts, progress)])


def trajectory(
    denoiser: Denoiser,
    *,
    n: int | None = None,
    shape: Sequence[int] | None = None,
    x: Tensor | None = None,
    indices: Sequence[int] | Tensor | None = None,
    solver: Solver | str | dict[str, Any] | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    grid: Grid | str | dict[str, Any] | Tensor | Sequence[float] | None = None,
    final: Literal["x0", "t_min"] = "x0",
    cond: Any = None,
    seed: philox.Seed = 0,
    brownian: bool = False,
    callback: Callback | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """`sample` with every state kept: (times (N+1,), states (N+1, n, *shape)); fewer if the callback stopped early.

    Arguments as in `sample`. Solvers that take several steps a grid interval (Langevin, restarts) give as many states.
    """
    job = _Job(denoiser, n, shape, x, indices, seed, device, dtype)
    states: list[Tensor] = []
    job.settle(job.inward(job.grid_times(solver, steps, nfe, grid, final)), cond, brownian)
    job.run(slice(0, job.n), callback=callback, states=states)
    return torch.tensor(job.times[: len(states)], dtype=torch.float64), torch.stack(states)


def encode(
    denoiser: Denoiser,
    x: Tensor,
    *,
    solver: Solver | str | dict[str, Any] | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    grid: Grid | str | dict[str, Any] | Tensor | Sequence[float] | None = None,
    cond: Any = None,
    callback: Callback | None = None,
) -> Tensor:
    """Run the probability-flow ODE from data to noise (book Sec. 4.2.2): the latent at the noisiest time.

    Args:
        denoiser: as in `sample`.
        x: data (n, *shape), taken as the state at the cleanest supported time; the state is at least float32.
        solver: a deterministic one; default as in `sample`.
        steps, nfe, grid, cond, callback: as in `sample`; a given array of times may run either way.
    """
    job = _Job(denoiser, None, None, x, None, 0, None, torch.float32)
    job.settle(job.outward(job.grid_times(solver, steps, nfe, grid, "t_min")), cond)
    return job.run(slice(0, job.n), callback=callback).to(x.device)


def encoding_times(
    denoiser: Denoiser,
    *,
    solver: Solver | str | dict[str, Any] | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    grid: Grid | str | dict[str, Any] | Tensor | Sequence[float] | None = None,
) -> Tensor:
    """The times that `encode` with these arguments passes, increasing, (N + 1,) float64."""
    shape = tuple(denoiser.shape) or (1,)
    job = _Job(denoiser, 1, shape, None, None, 0, None, torch.float32)
    return job.outward(job.grid_times(solver, steps, nfe, grid, "t_min"))


class _Job:
    """One call's settled arguments."""

    def __init__(
        self,
        denoiser: Denoiser,
        n: int | None,
        shape: Sequence[int] | None,
        x: Tensor | None,
        indices: Sequence[int] | Tensor | None,
        seed: philox.Seed,
        device: torch.device | str | None,
        dtype: torch.dtype,
    ) -> None:
        check_denoiser(denoiser)
        self.denoiser, self.process, self.x = denoiser, denoiser.process, x
        self.seed = philox.as_seed(seed)
        if dtype not in (torch.float32, torch.float64):
            raise ConfigError(f"dtype: given {dtype}, must be torch.float32 or torch.float64 (the state's precision)")
        self.dtype = dtype if x is None else torch.promote_types(torch.promote_types(x.dtype, torch.float32), dtype)
        self.device = torch.device(device) if device is not None else device_of(denoiser)
        self.shape = tuple(shape) if shape is not None else tuple(denoiser.shape if x is None else x.shape[1:])
        if x is not None and self.shape != tuple(x.shape[1:]):
            raise ConfigError(
                f"shape: given {self.shape}, but x has events of shape {tuple(x.shape[1:])}; leave it out"
            )
        if not self.shape and x is None:
            raise ConfigError("shape: this denoiser does not know the shape of an event; give shape=(...)")
        many = None if isinstance(self.seed, int) else len(self.seed)
        lengths = {
            "n": count("n", n),
            "x": None if x is None else len(x),
            "indices": None if indices is None else len(indices),
            "seed": many,
        }
        given = {name: length for name, length in lengths.items() if length is not None}
        if len(set(given.values())) > 1:
            raise ConfigError(f"numbers of samples differ: {given}; give one, or equal ones")
        self.n = next(iter(given.values()), 64)
        if self.n < 1:
            raise ConfigError(f"n: given {self.n}, must be at least 1")
        if indices is None:
            numbers = torch.arange(self.n) if many is None else torch.zeros(self.n, dtype=torch.int64)
        else:
            numbers = as_indices(indices)
        self.index = numbers.to(self.device)

    def grid_times(self, solver: Any, steps: int | None, nfe: int | None, grid: Any, final: str) -> Tensor:
        """The plan's times, and the solver it is for."""
        process, (noisy, clean) = self.process, self.denoiser.lam_range
        self.solver: Solver = build("solver", DEFAULT_SOLVER if solver is None else solver)
        if steps is not None and nfe is not None:
            raise ConfigError(f"give steps or nfe, not both (given steps={steps}, nfe={nfe})")
        steps, nfe = count("steps", steps), count("nfe", nfe)
        if not isinstance(self.solver, Solver):
            raise ConfigError(f"solver: given {self.solver!r}, which is no solver")
        if final not in ("x0", "t_min"):
            raise ConfigError(f"final: given {final!r}; allowed: 'x0', 't_min'")
        if nfe is not None and self.solver.own_steps:
            raise ConfigError(f"nfe: given {nfe}, but {self.solver} takes what its tolerances need; leave it out")
        chosen = as_grid(DEFAULT_GRID if grid is None else grid)
        if isinstance(chosen, Times):
            times = chosen.times(process, 0, 0.0, 0.0, False)
            if steps is not None and steps != len(times) - 1:
                raise ConfigError(f"steps: given {steps}, but these times make {len(times) - 1} steps")
            if nfe is not None and self.solver.plan(process, times).nfe > nfe:
                raise ConfigError(f"nfe: given {nfe}, fewer than {self.solver} needs on these times")
            return times
        whole = float(process.lam(process.T))
        start = process.T if noisy <= whole else float(process.time(noisy))
        if self.solver.open_start and bool(process.alpha(start) == 0.0):
            start = process.t_max
        stop = max(process.t_min, float(process.time(clean)))
        to_zero = final == "x0"
        if nfe is not None:
            steps = steps_for_nfe(self.solver, chosen, process, nfe, start, stop, to_zero)
        if self.solver.own_steps:
            times = chosen.times(process, 1 if steps is None else steps, start, stop, False)
            return torch.cat([times, times.new_zeros(1)]) if to_zero else times
        if steps is None:
            steps = self.solver.fixed_steps(to_zero) or DEFAULT_STEPS
        return chosen.times(process, steps, start, stop, to_zero)

    def inward(self, times: Tensor) -> Tensor:
        """The times, if they run towards the data."""
        if times.ndim == 1 and len(times) > 1 and bool(times[-1] > times[0]):
            raise ConfigError("grid: these times increase, but sampling runs towards the data (see encode)")
        return times

    def outward(self, times: Tensor) -> Tensor:
        """The times, turned round if they run towards the data."""
        return times.flip(0) if bool(times[0] > times[-1]) else times

    def parts(self, batch_size: int | None) -> list[slice]:
        size = count("batch_size", batch_size) or self.n
        return [slice(i, min(i + size, self.n)) for i in range(0, self.n, size)]

    def settle(self, times: Tensor, cond: Any, brownian: bool = False) -> None:
        """Compile and bind the plan, once for all parts."""
        self.path = self.solver.plan(self.process, times) if brownian and self.solver.stochastic else None
        self.times, self.carry = self.solver.prepare(self.denoiser, times, self.device, self.dtype)
        self.cond = repeat_cond(cond, self.n)

    def run(
        self,
        part: slice,
        fill: int | None = None,
        callback: Callback | None = None,
        after_step: AfterStep | None = None,
        states: list[Tensor] | None = None,
    ) -> Tensor:
        """The samples of one part; with `fill` the batch is padded to that many by repeating its last sample."""
        rows = torch.arange(part.start, part.stop, device=self.device)
        count = len(rows)
        if fill is not None and count < fill:
            rows = torch.cat([rows, rows[-1:].expand(fill - count)])
        index = self.index[rows]
        seed = self.seed if isinstance(self.seed, int) else self.seed[rows.cpu()]
        if self.x is not None:
            start = self.x.to(self.device, self.dtype)[rows]
        else:
            noisy = self.times[0]
            start = self.process.prior(self.shape, seed=seed, t=noisy, dtype=self.dtype, indices=index)

        def fresh(step: int, k: int) -> Tensor:
            return philox.normal(seed, index, self.shape, draw=step << 8 | k, dtype=self.dtype)

        shape_kept = {"keep_shape": True} if fill is not None and self.solver.own_steps else {}
        draw: Draw = fresh
        if self.path is not None:
            draw = increments(self.path, self.process, seed, index, self.shape, self.dtype, fresh)
        differentiable = start.requires_grad or torch._C._functorch.peek_interpreter_stack() is not None
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            result = self.carry(
                start,
                cond=take_cond(self.cond, rows),
                draw=draw,
                callback=callback,
                after_step=after_step,
                states=states,
                **shape_kept,
            )
        return result[:count]


def as_indices(given: Sequence[int] | Tensor) -> Tensor:
    """Numbers of samples, int64 (n,). Raises ConfigError for what is none."""
    try:
        numbers = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        numbers = torch.empty(0)
    if numbers.ndim != 1 or not len(numbers) or numbers.is_floating_point() or numbers.dtype == torch.bool:
        raise ConfigError(f"indices: given {given!r}, must be whole numbers, at least one, such as [0, 3]")
    if bool((numbers < 0).any() | (numbers >= 2**32).any()):
        raise ConfigError("indices: must lie in [0, 2^32)")
    return numbers.to(torch.int64)


def device_of(model: Denoiser | nn.Module) -> torch.device:
    """Where a model computes: its parameters' device, else the CPU."""
    inner = model if isinstance(model, nn.Module) else innermost(model)
    if isinstance(inner, nn.Module):
        parameter = next(inner.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device
    return torch.device("cpu")


def tracked(parts: list[slice], progress: bool | Callable[[int], object]) -> Iterator[slice]:
    """These parts one after another, a bar or `progress` being told of each that is done."""
    if callable(progress):
        for part in parts:
            yield part
            progress(part.stop - part.start)
    elif progress:
        from rich.progress import track

        yield from track(parts, description="sampling")
    else:
        yield from parts
