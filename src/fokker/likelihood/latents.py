r"""From one datum to another through the latents of the probability-flow ODE.

    slerp(a, b, w) = (sin((1 - w) theta) a + sin(w theta) b) / sin theta,      cos theta = <a, b> / (|a| |b|)

Latents of many dimensions lie near a sphere, which straight lines leave and great circles do not. Sources: book
Sec. 4.2.2 (encoding); Song et al. 2020a, Sec. 5.3 (interpolation).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..calculus.operators import dot
from ..errors import ConfigError
from ..prediction import Denoiser
from ..process import expand
from ..sampling import encode, encoding_times, sample
from ..solvers import Adaptive, Grid, Solver

__all__ = ["interpolate", "slerp"]


def slerp(a: Tensor, b: Tensor, w: float | Tensor) -> Tensor:
    """Spherical interpolation of every sample, (B, *event); the straight line where a and b are nearly parallel.

    Args:
        a, b: (B, *event), at w = 0 and w = 1.
        w: a number, or (B,).
    """
    w = torch.as_tensor(w, dtype=torch.float64, device=a.device)
    cos = dot(a.double(), b.double()) / (dot(a.double(), a.double()) * dot(b.double(), b.double())).sqrt()
    theta = cos.clamp(-1.0, 1.0).acos()
    straight = ~(theta.sin() > 1e-6)  # also where one of them is 0
    safe = torch.where(straight, 1.0, theta)
    on_a = torch.where(straight, 1.0 - w, ((1.0 - w) * safe).sin() / safe.sin())
    on_b = torch.where(straight, w, (w * safe).sin() / safe.sin())
    return expand(on_a, a) * a + expand(on_b, b) * b


def interpolate(
    denoiser: Denoiser,
    a: Tensor,
    b: Tensor,
    n: int = 8,
    *,
    solver: Solver | str | dict[str, Any] | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    grid: Grid | str | dict[str, Any] | Tensor | Sequence[float] | None = None,
    cond: Any = None,
) -> Tensor:
    """n states from a to b, both ends included, as (n, B, *event): encoded, interpolated by `slerp`, decoded.

    Args:
        denoiser: as in `encode`.
        a, b: data (B, *event), taken as states at the cleanest supported time, where the results are again.
        n: 2 or more.
        solver: a deterministic one; default Adaptive(rtol=1e-5, atol=1e-5). The ends come back as exactly as it is.
        steps, nfe, grid: as in `encode`; the way back takes the same times.
        cond: of the samples, for both ways.
    """
    if n < 2 or a.shape != b.shape:
        raise ConfigError(f"interpolate: given n={n} and shapes {tuple(a.shape)}, {tuple(b.shape)}: 2 or more, equal")
    solver = Adaptive(rtol=1e-5, atol=1e-5) if solver is None else solver
    times = encoding_times(denoiser, solver=solver, steps=steps, nfe=nfe, grid=grid)
    first, last = (encode(denoiser, x, solver=solver, grid=times, cond=cond) for x in (a, b))
    back: dict[str, Any] = {"solver": solver, "grid": times.flip(0), "cond": cond}
    return torch.stack([sample(denoiser, x=slerp(first, last, k / (n - 1)), **back).to(a.device) for k in range(n)])
