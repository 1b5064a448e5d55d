r"""Operators of a field by automatic differentiation, for a batch of states of any shape.

    (1)  tr A = sum_i e_i^T A e_i                       exact: d directions, pushed through together
    (2)  tr A = E[u^T A u],   E[u u^T] = I              Hutchinson: a mean over probes, with its standard error
    (3)  div F = tr J_F,      Lap h = sum_i D^2 h[e_i, e_i] = E[D^2 h[u, u]]

A field is any callable of x (B, *event), or of (x, t), that treats every row alone (no batch statistics, no dropout).
Everything works with autograd on or off and under torch.func, and can itself be differentiated.
Sources: book Sec. 3.3.1 and 5.1.1; Hutchinson 1989.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field as Limit
from torch import Tensor

from .. import noise
from ..component import component
from ..errors import ConfigError

__all__ = [
    "Estimate",
    "Field",
    "Hutchinson",
    "Probes",
    "divergence",
    "gradient",
    "jacobian",
    "jvp",
    "laplacian",
    "lipschitz",
    "lipschitz_along",
    "value_and_divergence",
    "vjp",
]

Field = Callable[..., Tensor]
Mode = Literal["forward", "reverse"]
AT_ONCE = 2**20
"""Numbers of direction pushed through a field together where `chunk` is not given."""


class Estimate(NamedTuple):
    """A value and the standard error of its estimation: 0 where it is exact, NaN where one draw cannot tell."""

    value: Tensor
    stderr: Tensor


@component
class Hutchinson:
    """Random probes for a trace, tr A = E[u^T A u], keyed by (seed, sample index, probe).

    With S the symmetric part of A, one probe has the variance 2 (|S|^2 - sum_i S_ii^2) for signs and 2 |S|^2 for
    normals: signs are never worse, and exact for diagonal A. Source: book Sec. 3.3.1; Hutchinson 1989.

    Args:
        probes: how many, 1 or more; the standard error needs 2.
        law: "rademacher" (signs) or "gaussian".
        seed: 64 bits; another seed gives independent probes.
    """

    probes: Annotated[int, Limit(ge=1)] = 1
    law: Literal["rademacher", "gaussian"] = "rademacher"
    seed: int = 0

    def draw(
        self,
        index: Tensor,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        numbers: Tensor | None = None,
    ) -> Tensor:
        """Probes `numbers` (default all) of samples `index` (B,), as (K, B, *shape): to hold along a trajectory."""
        numbers = torch.arange(self.probes, device=index.device) if numbers is None else numbers
        law = noise.rademacher if self.law == "rademacher" else noise.normal
        return law(self.seed, index, shape, draw=numbers, domain="probe", dtype=dtype)


Probes = Hutchinson | Tensor | None


def at(field: Field, t: float | Tensor | None) -> Callable[[Tensor], Tensor]:
    """x -> field(x), or x -> field(x, t) where a time is given."""
    return field if t is None else lambda x: field(x, t)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> over the event, (B,)."""
    return (a * b).flatten(1).sum(1) if a.ndim > 1 else a * b


def pulling(field: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """F(x) and w -> J^T w."""
    result: Any = torch.func.vjp(field, x)
    return result[0], lambda w: result[1](w)[0]


def _directions(
    probes: Probes, index: Tensor | None, x: Tensor, shape: Sequence[int], chunk: int | None
) -> Iterator[Tensor]:
    """Pieces (k, B, *shape) of the basis of `shape`, or of the probes."""
    width = math.prod(shape)
    if isinstance(probes, Tensor) and (not probes.numel() or tuple(probes.shape[1:]) != (len(x), *shape)):
        wanted = ", ".join(["K", str(len(x)), *map(str, shape)])
        raise ConfigError(f"probes: given shape {tuple(probes.shape)}, must be ({wanted}) with K >= 1")
    if chunk is not None and chunk < 1:
        raise ConfigError(f"chunk: given {chunk}, must be 1 or more")
    count = width if probes is None else len(probes) if isinstance(probes, Tensor) else probes.probes
    rows = chunk or max(1, AT_ONCE // max(1, len(x) * width))
    index = torch.arange(len(x), device=x.device) if index is None else index
    for start in range(0, count, rows):
        numbers = torch.arange(start, min(start + rows, count), device=x.device)
        if isinstance(probes, Tensor):
            yield probes[start : start + rows].to(x)
        elif probes is None:
            basis = torch.nn.functional.one_hot(numbers, width).to(x.dtype)
            yield basis.reshape(-1, 1, *shape).expand(-1, len(x), *shape)
        else:
            yield probes.draw(index, shape, x.dtype, numbers)


def each(form: Callable[[Tensor], Tensor], pieces: Iterator[Tensor]) -> Tensor:
    """`form` of every direction, (K, *result); pieces of one direction do without vmap."""
    return torch.cat([form(u[0])[None] if len(u) == 1 else torch.vmap(form)(u) for u in pieces])


def trace(
    form: Callable[[Tensor], Tensor],
    x: Tensor,
    shape: Sequence[int],
    probes: Probes,
    index: Tensor | None,
    chunk: int | None,
) -> Estimate:
    """Eq. (1) or (2) from the quadratic form u -> u^T A u, for directions u (B, *shape)."""
    values = each(form, _directions(probes, index, x, shape, chunk))
    if probes is None:
        whole = values.sum(0)
        return Estimate(whole, torch.zeros_like(whole))
    mean = values.mean(0)
    if len(values) == 1:
        return Estimate(mean, torch.full_like(mean, math.nan))
    return Estimate(mean, values.std(0) / math.sqrt(len(values)))


def jvp(field: Field, x: Tensor, direction: Tensor, t: float | Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(F(x), J u): the field and its derivative along `direction` (B, *event), in forward mode."""
    result: Any = torch.func.jvp(at(field, t), (x,), (direction,))
    return result[0], result[1]


def vjp(field: Field, x: Tensor, covector: Tensor, t: float | Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(F(x), J^T w): the field and its gradient against `covector`, of the shape of F(x), in reverse mode."""
    value, pull = pulling(at(field, t), x)
    return value, pull(covector)


def gradient(h: Field, x: Tensor, t: float | Tensor | None = None) -> Tensor:
    """grad h of a function h: (B, *event) -> (B,); of the shape of x."""
    value, pull = pulling(at(h, t), x)
    return pull(torch.ones_like(value))


def jacobian(field: Field, x: Tensor, t: float | Tensor | None = None, *, chunk: int | None = None) -> Tensor:
    """J_ij = d F_i / d x_j over the flattened events, (B, d_out, d).

    The curl of a learned score is J - J^T: 0 for a gradient field.
    """
    value, pull = pulling(at(field, t), x)
    rows = each(pull, _directions(None, None, value, value.shape[1:], chunk))
    return rows.flatten(2).movedim(0, 1)


def divergence(
    field: Field,
    x: Tensor,
    t: float | Tensor | None = None,
    *,
    probes: Probes = None,
    index: Tensor | None = None,
    chunk: int | None = None,
    mode: Mode = "reverse",
) -> Estimate:
    """div F = sum_i d F_i / d x_i at every row, (B,), exact or by Hutchinson's estimator, Eqs. (1) to (3).

    Args:
        field: (B, *event) -> (B, *event); called as field(x, t) where t is given.
        x: states (B, *event), float32 or float64.
        t: a number or (B,), or None.
        probes: None is exact (d directions); `Hutchinson(...)`; or the probes themselves, (K, B, *event).
        index: the samples' numbers (B,) that key the probes; default 0..B-1.
        chunk: directions pushed through together, 1 for the least memory; default by the size of x.
        mode: "reverse" (J^T u: one forward pass for all directions) or "forward" (J u: no graph is kept; under an
            outer gradient only one derivative in reverse mode is asked of the network).

    Returns:
        Estimate(value, stderr), both (B,): stderr 0 if exact, NaN for one probe.

    Raises:
        ConfigError: probes of another shape, an unknown mode, chunk < 1.
    """
    return _divergence(at(field, t), x, probes, index, chunk, mode)[1]


def value_and_divergence(
    field: Field,
    x: Tensor,
    t: float | Tensor | None = None,
    *,
    probes: Probes = None,
    index: Tensor | None = None,
    chunk: int | None = None,
    mode: Mode = "reverse",
) -> tuple[Tensor, Estimate]:
    """(F(x), div F(x)): what a likelihood ODE needs, from one forward pass in reverse mode; see `divergence`."""
    function = at(field, t)
    value, result = _divergence(function, x, probes, index, chunk, mode)
    return function(x) if value is None else value, result


def _divergence(
    field: Callable[[Tensor], Tensor],
    x: Tensor,
    probes: Probes,
    index: Tensor | None,
    chunk: int | None,
    mode: Mode,
) -> tuple[Tensor | None, Estimate]:
    if mode == "reverse":
        value, pull = pulling(field, x)
        if value.shape != x.shape:
            raise ConfigError(f"field: given {tuple(x.shape)} it returns {tuple(value.shape)}, must be the same shape")

        return value, trace(lambda u: dot(u, pull(u)), x, x.shape[1:], probes, index, chunk)
    if mode == "forward":
        pushed = lambda u: dot(u, torch.func.jvp(field, (x,), (u,))[1])  # noqa: E731
        return None, trace(pushed, x, x.shape[1:], probes, index, chunk)
    raise ConfigError(f"mode: given {mode!r}, must be 'reverse' or 'forward'")


def curvature(h: Callable[[Tensor], Tensor], x: Tensor, u: Tensor) -> Tensor:
    """D^2 h(x)[u, u], of the shape of h(x)."""
    with torch.enable_grad():  # without it torch has no second derivative of SiLU in forward mode
        second: Tensor = torch.func.jvp(lambda x: torch.func.jvp(h, (x,), (u,))[1], (x,), (u,))[1]
    return second


def laplacian(
    h: Field,
    x: Tensor,
    t: float | Tensor | None = None,
    *,
    probes: Probes = None,
    index: Tensor | None = None,
    chunk: int | None = None,
) -> Estimate:
    """Lap h = sum_i d^2 h / d x_i^2 of h: (B, *event) -> (B, *out), component by component, (B, *out).

    Arguments and standard error as in `divergence`. Source: book Sec. C.1.3.
    """
    function = at(h, t)
    return trace(lambda u: curvature(function, x, u), x, x.shape[1:], probes, index, chunk)


def lipschitz(
    field: Field,
    x: Tensor,
    t: float | Tensor | None = None,
    *,
    iterations: int = 20,
    seed: int = 0,
    index: Tensor | None = None,
) -> Tensor:
    """|J|_2 at every row, (B,): the field's local Lipschitz constant, by power iteration on J^T J.

    Never above the true norm; with the two largest singular values s_1 > s_2 the relative error falls like
    (s_2 / s_1)^(4 iterations). Source: book Thm A.1.1 (its constant, estimated).

    Args:
        field, x, t: as in `divergence`.
        iterations: 1 or more; each costs one product with J and one with J^T.
        seed, index: key of the starting vectors.
    """
    if iterations < 1:
        raise ConfigError(f"iterations: given {iterations}, must be 1 or more")
    function = at(field, t)
    _, pull = pulling(function, x)
    index = torch.arange(len(x), device=x.device) if index is None else index
    u = noise.normal(seed, index, x.shape[1:], domain="probe", dtype=x.dtype)
    image = u
    for _ in range(iterations):
        length = dot(u, u).sqrt().clamp(min=torch.finfo(x.dtype).tiny)
        image = torch.func.jvp(function, (x,), (u / length.reshape(-1, *(1,) * (x.ndim - 1)),))[1]
        u = pull(image)
    return dot(image, image).sqrt()


def lipschitz_along(
    field: Field, times: Tensor, states: Tensor, *, iterations: int = 20, seed: int = 0, index: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Lip(t) of field(x, t) along paths, (N+1, B), and int Lip dt by the trapezoid, (B,), whatever the clock's sense.

    exp(int Lip dt) bounds how far neighbouring trajectories part; where the integral diverges uniqueness is lost.

    Args:
        times: (N+1,), as `fokker.trajectory` returns them.
        states: (N+1, B, *event).
        iterations, seed, index: as in `lipschitz`.
    """
    if len(times) != len(states):
        raise ConfigError(f"states: given {len(states)} for {len(times)} times, must be as many")
    pairs = zip(states, times, strict=True)
    rates = torch.stack([lipschitz(field, x, t, iterations=iterations, seed=seed, index=index) for x, t in pairs])
    steps = times.to(rates).diff().abs()[:, None]
    return rates, (0.5 * (rates[1:] + rates[:-1]) * steps).sum(0)
