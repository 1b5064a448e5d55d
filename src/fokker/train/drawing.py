"""How samples of a trained model are drawn: its recipe's solver, its classes in turn, its guidance, unless told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..classic import Model
from ..denoiser import NetDenoiser
from ..errors import ConfigError
from ..guidance import CFG
from ..prediction import Denoiser
from ..registry import build
from ..sampling import DEFAULT_SOLVER, sample
from ..solvers import Grid, Solver, Times, as_grid
from .options import Sampling

__all__ = ["Drawing", "class_count", "draw", "is_conditional", "settle"]


def class_count(model: NetDenoiser | Model) -> int:
    """The number of classes a denoiser's network knows; 0 if it is unconditional, as every classic model is."""
    config: Any = {} if isinstance(model, Model) else getattr(model.net, "config", {})
    return int(config.get("classes", 0))


def is_conditional(model: NetDenoiser | Model) -> bool:
    """Whether a denoiser's network takes conditions: labels, vectors or token sequences."""
    config: Any = {} if isinstance(model, Model) else getattr(model.net, "config", {})
    return any(config.get(name) for name in ("classes", "cond_dim", "tokens"))


@dataclass(frozen=True)
class Drawing:
    """A settled way to draw from a model.

    Args:
        denoiser: a `Denoiser`, guided if it is to be; or a classic `Model`.
        cond: rows of conditions taken in turn (sample i has row i mod m), or None.
        guidance: the scale; 1 is none.
        options: solver, grid, steps, nfe and brownian for `sample`.
    """

    denoiser: Any
    cond: Tensor | None
    guidance: float
    options: dict[str, Any]

    def rows(self, indices: Tensor) -> Tensor | None:
        """The conditions of samples `indices` (n,)."""
        return None if self.cond is None else self.cond[indices % len(self.cond)]

    def __call__(
        self,
        n: int | None = None,
        *,
        indices: Sequence[int] | Tensor | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        progress: bool | Callable[[int], object] = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(samples, their conditions) of numbers `indices`, default range(n); padded to `batch_size`, if given."""
        if n is not None and n < 1:
            raise ConfigError(f"n: given {n}, must be at least 1")
        numbers = torch.arange(64 if n is None else n) if indices is None else torch.as_tensor(indices)
        cond, pad = self.rows(numbers), batch_size is not None
        if isinstance(self.denoiser, Model):
            keys: dict[str, Any] = {"batch_size": batch_size, "pad": pad, "progress": progress}
            return self.denoiser.sample(n, indices=numbers, seed=seed, **keys), None
        x = sample(
            self.denoiser,
            n=n,
            indices=numbers,
            cond=cond,
            seed=seed,
            batch_size=batch_size,
            pad=pad,
            progress=progress,
            **self.options,
        )
        return x, cond


def settle(
    denoiser: NetDenoiser | Model,
    options: Sampling | None = None,
    *,
    cond: Tensor | int | None = None,
    guidance: float | None = None,
    solver: Solver | str | dict[str, Any] | None = None,
    grid: Grid | str | dict[str, Any] | Tensor | Sequence[float] | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    brownian: bool = False,
) -> Drawing:
    """How to draw from a model: what is given here, else what `options` say, else `sample`'s defaults.

    Args:
        denoiser: a trained one, or a classic model, which draws in its own way.
        options: the `sampling` section of its recipe.
        cond: a label for all, or rows of labels, vectors or token sequences (m, ...) taken in turn; default every
            class in turn, if there are classes.
        guidance: classifier-free guidance's scale, where there is a condition.
        solver, grid, steps, nfe: as in `sample`.
        brownian: as in `sample`, but of a stochastic solver only.

    Raises:
        ConfigError: guidance without anything to be guided to, a Brownian path for a solver that draws no noise, or
            any of these for a classic model.
    """
    if isinstance(denoiser, Model):
        given = {"cond": cond, "guidance": guidance, "solver": solver, "grid": grid, "steps": steps, "nfe": nfe}
        for name, value in (given | {"brownian": brownian or None}).items():
            if value is not None:
                raise ConfigError(f"{name}: given, but {type(denoiser).__name__} draws in its own way; leave it out")
        return Drawing(denoiser, None, 1.0, {})
    classes = class_count(denoiser)
    if cond is None:
        rows = torch.arange(classes) if classes else None
    else:
        rows = torch.tensor([cond]) if isinstance(cond, int) else cond
    if rows is None and guidance is not None and guidance != 1.0:
        raise ConfigError(f"guidance: given {guidance}, but this model has no classes to be guided to; give cond")
    scale = guidance if guidance is not None else 1.0 if options is None or rows is None else options.guidance
    if options is not None:
        solver = options.solver if solver is None else solver
        grid = options.grid if grid is None else grid
        chosen: Solver = build("solver", solver)
        own = chosen.own_steps or chosen.fixed_steps(to_zero=True) is not None
        if steps is None and nfe is None and not own and not isinstance(as_grid(grid), Times):
            steps, nfe = options.steps, options.nfe
    if brownian:
        chosen = build("solver", DEFAULT_SOLVER if solver is None else solver)
        if not chosen.stochastic:
            raise ConfigError(f"brownian: given, but {chosen} draws no noise; leave it, or give a stochastic solver")
    guided: Denoiser = denoiser if rows is None or scale == 1.0 else CFG(denoiser, scale)
    keys = {"solver": solver, "grid": grid, "steps": steps, "nfe": nfe, "brownian": brownian}
    return Drawing(guided, rows, float(scale), keys)


def draw(
    denoiser: NetDenoiser | Model,
    options: Sampling | None = None,
    n: int | None = None,
    *,
    indices: Sequence[int] | Tensor | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool | Callable[[int], object] = False,
    **changes: Any,
) -> tuple[Tensor, Tensor | None]:
    """(samples, their conditions or None) of a model: `settle(denoiser, options, **changes)`, then called.

    `n` is `options.n` by default. Samples are on the denoiser's device.
    """
    if n is None and indices is None and options is not None:
        n = options.n
    way = settle(denoiser, options, **changes)
    return way(n, indices=indices, seed=seed, batch_size=batch_size, progress=progress)
