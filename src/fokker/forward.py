"""Forward paths: the process's own diffusion, or an equation of one's own, from data to noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from . import noise as philox
from .errors import ConfigError
from .process import Process, expand
from .solvers.grid import check_times

__all__ = ["diffuse"]


def diffuse(
    process: Process,
    x0: Tensor,
    times: Tensor | Sequence[float],
    *,
    seed: philox.Seed = 0,
    indices: Tensor | Sequence[int] | None = None,
    method: Literal["exact", "euler", "milstein"] = "exact",
    drift: Callable[[Tensor, float], Tensor] | None = None,
    noise: Callable[[Tensor, float], Tensor] | None = None,
) -> Tensor:
    """Forward paths from data, read at `times`: (len(times), n, *shape).

    All methods are driven by the increments of one Brownian path w per sample on [0, T], keyed by (seed, index), so
    finer times refine the same path. "exact" uses the transition kernels (right in law at every time, whatever the
    spacing); "euler" is Euler-Maruyama on dx = f x dt + g dw, strong order 1 in the spacing (book Sec. 4.1.1). Other
    equations dx = a(x, t) dt + b(x, t) dw are Ito's; where b depends on x, "euler" has strong order 1/2 and "milstein",
    x + a h + b dw + b db/dx (dw^2 - h) / 2, has strong order 1 (Kloeden & Platen 1992, Eq. 10.3.1); both weak order 1.

    Args:
        process: whose forward SDE it is.
        x0: data (n, *shape) at time times[0].
        times: increasing, in [0, T]; the first is where x0 is.
        seed, indices: which paths; default one seed, numbers range(n).
        method: "exact", "euler", or "milstein" for a noise of one's own.
        drift: a drift a(x, t) -> tensor in place of f(t) x; "exact" does not apply then.
        noise: a coefficient b(x, t) -> tensor of x's shape in place of g(t), each entry a function of x's entry there
            and of t, which torch.func can differentiate; "exact" does not apply then.
    """
    if method not in ("exact", "euler", "milstein"):
        raise ConfigError(f"method: given {method!r}; allowed: 'exact', 'euler', 'milstein'")
    if method == "milstein" and noise is None:
        raise ConfigError("method: given 'milstein' without noise, b(x, t); with the process's own g(t) use 'euler'")
    grid = torch.as_tensor(times, dtype=torch.float64)
    if not check_times(grid, process):
        raise ConfigError(f"times must increase, from data to noise (given {grid[0]:g} to {grid[-1]:g})")
    if method == "exact" and (drift is not None or noise is not None):
        own = "drift" if noise is None else "noise"
        raise ConfigError(f"method: given 'exact' with a {own} of one's own, whose kernel is unknown; use 'euler'")
    index = torch.arange(len(x0)) if indices is None else torch.as_tensor(indices)
    index, seed = index.to(x0.device), philox.as_seed(seed)
    many = len(x0) if isinstance(seed, int) else len(seed)
    if len(index) != len(x0) or many != len(x0):
        raise ConfigError(f"numbers of samples differ: {len(x0)} in x0, {len(index)} indices, {many} seeds")
    read = (grid / process.T / philox.RESOLUTION).round() * philox.RESOLUTION
    path = philox.brownian(seed, index, read, x0.shape[1:], dtype=x0.dtype)
    between = (read[1:] - read[:-1]).tolist()
    if min(between) == 0.0:
        raise ConfigError("times lie closer together than T 2^-24, the resolution of the Brownian path")
    gaps = (grid[1:] - grid[:-1]).tolist()
    states = [x0]
    for k, gap in enumerate(gaps):
        s, t, x = float(grid[k]), float(grid[k + 1]), states[-1]
        unit = (path[k + 1] - path[k]) / between[k] ** 0.5  # a standard normal
        if method == "exact":
            scale, std = process.transition(s, t)
            states.append(expand(scale, x) * x + expand(std, x) * unit)
        else:
            slope = drift(x, s) if drift is not None else expand(process.f(s), x) * x
            if noise is None:
                states.append(x + gap * slope + float(process.g2(s)) ** 0.5 * gap**0.5 * unit)
                continue
            b, dw = noise(x, s), gap**0.5 * unit
            if b.shape != x.shape:
                raise ConfigError(f"noise: gives shape {tuple(b.shape)}, must be x's, {tuple(x.shape)}")
            x = x + gap * slope + b * dw
            if method == "milstein":
                x = x + 0.5 * _along(noise, states[-1], s, b) * (dw**2 - gap)
            states.append(x)
    return torch.stack(states)


def _along(b: Callable[[Tensor, float], Tensor], x: Tensor, t: float, direction: Tensor) -> Tensor:
    """db/dx times a direction."""
    product: Tensor = torch.func.jvp(lambda y: b(y, t), (x,), (direction,))[1]
    return product
