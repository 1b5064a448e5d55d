r"""Exact log-likelihood by the probability-flow ODE, run from data to noise with log p beside it.

    (1)  dx/dt = velocity,   d log p_t(x_t)/dt = -div velocity           along the trajectory, t from s to T
    (2)  d(x/R)/du = v/R,    d log p(x/R)/du   = -div v,                 u = arctan(sigma/alpha), R = |(alpha, sigma)|
    (3)  log p_s(x) = log p_T(x_T) + d log(R_T/R_s) + l_T,               dl/du = div v,  l_s = 0

(2) is (1) in the angle, which no process makes singular. A state with the entry R l beside x, whose prediction of v has
R div v beside that of x, obeys (2) entry by entry: so every deterministic solver, plan or adaptive, integrates the pair
as it integrates x. With Hutchinson's probes there is one l per probe, and their spread is the standard error.
Source: book Eq. 4.2.7 and Lemma 5.1.1 (the total derivative); Song et al. 2021, App. D.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..calculus import Hutchinson, Probes, value_and_divergence
from ..calculus.operators import dot, each, pulling
from ..denoiser import repeat_cond, take_cond
from ..errors import ConfigError
from ..prediction import READINGS, Denoiser, Prediction, check_denoiser
from ..process import as_time, expand
from ..sampling import device_of, encode, encoding_times
from ..solvers import Adaptive, Grid, Solver

__all__ = ["LogProb", "log_prob", "parts"]


@dataclass(frozen=True)
class LogProb:
    """What `log_prob` gives.

    Attributes:
        value: log p_s(x) in nats, (B,), float64.
        stderr: its standard error, (B,): 0 if the divergence is exact, NaN for one probe.
        latent: the states at the noisiest time, of the shape of x.
    """

    value: Tensor
    stderr: Tensor
    latent: Tensor


class _Flow:
    """A denoiser of rows (x, R l_1, ..., R l_K), flat; conditions are {"given": ..., "probes": (B, K, *event) | None}.

    Args:
        denoiser: of x.
        event: the shape of x.
        columns: K.
    """

    reading = READINGS["v"]

    def __init__(self, denoiser: Denoiser, event: Sequence[int], columns: int) -> None:
        self.denoiser, self.process, self.lam_range = denoiser, denoiser.process, denoiser.lam_range
        self.event, self.dim = tuple(event), math.prod(event)
        self.shape = (self.dim + columns,)

    def __call__(self, x: Tensor, s: float | Tensor, cond: Any = None) -> Prediction:
        given, probes = cond["given"], cond["probes"]

        def v(inner: Tensor) -> Tensor:
            return self.denoiser(inner, s, given).v

        inner = x[:, : self.dim].reshape(len(x), *self.event)
        if probes is None:
            value, exact = value_and_divergence(v, inner)
            rates = exact.value[:, None]
        else:
            value, pull = pulling(v, inner)
            rates = each(lambda u: dot(u, pull(u)), iter([probes.movedim(1, 0)])).T
        size = self.process.alpha(as_time(s)).hypot(self.process.sigma(as_time(s)))
        return Prediction(self.process, x, s, v=torch.cat([value.flatten(1), expand(size, rates) * rates], dim=1))


def log_prob(
    denoiser: Denoiser,
    x: Tensor,
    *,
    probes: Probes = None,
    solver: Solver | str | dict[str, Any] | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    grid: Grid | str | dict[str, Any] | Tensor | Sequence[float] | None = None,
    prior: Callable[[Tensor], Tensor] | None = None,
    cond: Any = None,
    index: Tensor | None = None,
    batch_size: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> LogProb:
    """log p_s(x) under the probability-flow ODE of a denoiser, Eq. (3).

    s is the first time of the grid, by default the cleanest one supported (t_min for networks): x is taken as the state
    there, so this is the log-density of what `sample(..., final="t_min")` draws with an exact solver. It is the ODE's
    density, not the reverse SDE's, for which there is `elbo`. Where the denoiser is defined at 0, `grid=[0.0, T]` gives
    log p_0 itself. A guided denoiser's field is no density's flow of anything trained, yet its own density is found.

    Args:
        denoiser: of a network in evaluation mode (no dropout).
        x: (B, *event), float32 or float64.
        probes: None takes the exact divergence, d products with the Jacobian's transpose per evaluation;
            `Hutchinson(K)` K of them, unbiased; or the probes, (K, B, *event). They are held along a trajectory.
        solver: a deterministic one; default Adaptive(rtol=1e-5, atol=1e-5).
        steps, nfe, grid: as in `encode`.
        prior: log-density of the state at the last time, (B, *event) -> (B,); default that of N(0, prior_std^2 I).
        cond: as in `sample`.
        index: the samples' numbers (B,) that key the probes; default 0..B-1.
        batch_size: samples at once; default all.
        progress: called with the number of samples done after each batch.

    Raises:
        ConfigError: stochastic solvers, times the solver cannot use, probes of another shape.
    """
    solver = Adaptive(rtol=1e-5, atol=1e-5) if solver is None else solver
    columns = 1 if probes is None else probes.probes if isinstance(probes, Hutchinson) else len(probes)
    if isinstance(probes, Tensor) and tuple(probes.shape[1:]) != tuple(x.shape):
        wanted = ", ".join(["K", *map(str, x.shape)])
        raise ConfigError(f"probes: given shape {tuple(probes.shape)}, must be ({wanted})")
    check_denoiser(denoiser)
    flow = _Flow(denoiser, x.shape[1:], columns)
    times = encoding_times(flow, solver=solver, steps=steps, nfe=nfe, grid=grid)
    index = torch.arange(len(x)) if index is None else index.cpu()
    cond, pieces = repeat_cond(cond, len(x)), []
    for rows in parts(len(x), batch_size):
        part = x[rows].to(device_of(denoiser), torch.promote_types(x.dtype, torch.float32))
        directions: Tensor | None = None
        if probes is not None:
            if isinstance(probes, Hutchinson):
                directions = probes.draw(index[rows], x.shape[1:], part.dtype)
            else:
                directions = probes[:, rows]
            directions = directions.to(part).movedim(0, 1)
        given = take_cond(cond, rows)
        start = torch.cat([part.flatten(1), part.new_zeros(len(part), columns)], dim=1)
        end = encode(flow, start, solver=solver, grid=times, cond={"given": given, "probes": directions})
        pieces.append(_finish(flow, end, times, prior, probes is None))
        if progress is not None:
            progress(len(rows))
    value, stderr, latent = (torch.cat(column).to(x.device) for column in zip(*pieces, strict=True))
    return LogProb(value, stderr, latent.to(torch.promote_types(x.dtype, torch.float32)))


def parts(n: int, size: int | None) -> Iterator[Tensor]:
    """Rows 0..n-1 in pieces of `size`. Raises ConfigError for a size below 1."""
    if size is not None and size < 1:
        raise ConfigError(f"batch_size: given {size}, must be at least 1")
    return iter(torch.split(torch.arange(n), max(n, 1) if size is None else size))


def _finish(
    flow: _Flow, end: Tensor, times: Tensor, prior: Callable[[Tensor], Tensor] | None, exact: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. (3): value, standard error and latent."""
    process, (s, t) = flow.process, times[[0, -1]].tolist()
    before, after = (float(process.alpha(at).hypot(process.sigma(at))) for at in (s, t))
    latent = end[:, : flow.dim].reshape(len(end), *flow.event)
    gained = end[:, flow.dim :].double() / after
    if prior is None:
        std = float(process.prior_std(t))
        square = latent.double().flatten(1).square().sum(1)
        last = -0.5 * square / std**2 - flow.dim * (math.log(std) + 0.5 * math.log(2.0 * math.pi))
    else:
        last = prior(latent).double()
    value = last + flow.dim * math.log(after / before) + gained.mean(1)
    few = torch.full_like(value, 0.0 if exact else math.nan)
    count = gained.shape[1]
    return value, few if count == 1 else gained.std(1) / math.sqrt(count), latent
