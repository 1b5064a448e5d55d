r"""The statistics of DPM-Solver-v3, measured on a denoiser (Zheng et al. 2023, Sec. 3; book Eq. 9.7.3, 9.7.7, 9.7.8).

In y = x / alpha, with m the prediction of x0 and ' the derivative in lam along the flow y' = m - y, per coordinate

    l = E[diag(sigma dnoise/dx)] = 1 - E[diag(dm/dy)]                  by Hutchinson, E[v * (dm/dy) v], v = +-1
    f = (1 - l) y - m,      f' = (1 - l) (m - y) - l' y - m'
    a = Cov(f, f') / Var(f),        b = E f' - a E f                   the regression of f' on f

Towards the noisy end f becomes constant and its regression all error; there a is held, and 0 for Gaussian data.

Only the moments of (1, y, m, m') and the diagonal are kept, so that one pass serves l, l', a and b.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from . import noise as philox
from .component import Array
from .denoiser import repeat_cond, take_cond
from .errors import ConfigError
from .prediction import Denoiser
from .registry import build
from .sampling import device_of, sample
from .solvers import DPMpp, Solver, Statistics, Times

__all__ = ["compute_statistics"]

FLAT = 1e-4  # from the noisy end to where f has this share of its parts' variance, a is held: there it is all error
CONSTANT = 1e-9  # with less than this share f is taken for constant anywhere
ROUNDING = 1e-13  # and this share of their second moments, which float32 makes of a constant
DELTA = 0.05  # in lam, of the differences in time


def compute_statistics(
    denoiser: Denoiser,
    data: Tensor | None = None,
    *,
    n: int = 1024,
    points: int = 120,
    probes: int = 1,
    per: str = "event",
    solver: Solver | str | dict[str, Any] | None = None,
    steps: int = 200,
    cond: Any = None,
    seed: int = 0,
    shape: Sequence[int] | None = None,
    batch_size: int = 256,
    progress: Callable[[int], object] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Statistics:
    """The tables l, a, b of `DPMv3` for this denoiser, on `points` equal steps of lam over its range.

    The means are over states x = alpha x0 + sigma eps of given data, one eps for all lam, or over states of the flow
    itself, drawn by `solver`. A state of one sample costs 3 to 4 evaluations.

    Args:
        denoiser: exact, learned or guided (for a guided one leave data out: its flow does not carry the data's law).
        data: x0 (N, *shape), the first n are used; default: the flow's own states.
        n: how many samples.
        points: K >= 4, how many lam.
        probes: random signs per state for l.
        per: "event" for one number each, which few samples give well, or "coordinate" for one per coordinate.
        solver, steps: what draws the states, at least in that many steps; default DPMpp(order=2).
        cond: as in `sample`.
        seed: of the noises, the probes and the starts.
        shape: the event's shape; default the denoiser's.
        batch_size: states per call.
        progress: is told the number of samples of every finished batch.
        device, dtype: of the states; tables are float64.

    Raises:
        ConfigError: an argument out of range.
    """
    shape = tuple(data.shape[1:] if data is not None else denoiser.shape if shape is None else shape)
    n = n if data is None else min(n, len(data))
    for name, value, least in (
        ("n", n, 2),
        ("points", points, 4),
        ("probes", probes, 1),
        ("batch_size", batch_size, 1),
    ):
        if value < least:
            raise ConfigError(f"{name}: given {value}, must be at least {least}")
    if per not in ("coordinate", "event"):
        raise ConfigError(f"per: given {per!r}, must be 'coordinate' or 'event'")
    if not shape:
        raise ConfigError("shape: this denoiser does not know the shape of an event; give shape=(...)")
    device = device_of(denoiser) if device is None else torch.device(device)
    found = _Moments(denoiser, shape, points, probes, per, seed, device)
    drawer = DPMpp() if solver is None else build("solver", solver)
    if drawer.stochastic:
        raise ConfigError(f"solver: given {drawer}, which draws noise; the statistics are those of the flow")
    rows, cond = torch.arange(n, device=device), repeat_cond(cond, n)
    way = None if data is not None else _Flow(found, drawer, steps)
    with torch.no_grad():
        for part in torch.split(rows, batch_size):
            told = take_cond(cond, part)
            if way is not None:
                way.measure(part, told, dtype)
            else:
                assert data is not None
                x0 = data[: len(rows)].to(device, dtype)[part]
                eps = philox.normal(seed, part, shape, domain="training", dtype=dtype)
                for k, t in enumerate(found.times.tolist()):
                    found.add(k, denoiser.process.perturb(x0, t, eps), part, told)
            if progress is not None:
                progress(len(part))
    return found.statistics()


class _Flow:
    """States of the flow at the tables' lam: a fine grid that holds all of them."""

    def __init__(self, found: _Moments, solver: Solver, steps: int) -> None:
        self.found, self.solver = found, solver
        points = len(found.lam)
        self.every = -(-steps // (points - 1))
        fine = torch.linspace(0.0, points - 1.0, (points - 1) * self.every + 1, dtype=torch.float64)
        lam = found.lam[0] + fine * (found.lam[1] - found.lam[0])
        times = found.denoiser.process.time(lam)
        times[:: self.every] = found.times
        self.grid = Times(Array(times))

    def measure(self, rows: Tensor, cond: Any, dtype: torch.dtype) -> None:
        """Add the states of these samples."""

        def visit(step: int, t: float, x: Tensor, prediction: Any) -> None:
            if step % self.every == 0:
                self.found.add(step // self.every, x, rows, cond)

        found = self.found
        keys: dict[str, Any] = {"seed": found.seed, "cond": cond, "device": rows.device, "dtype": dtype}
        x = sample(
            found.denoiser, indices=rows, shape=found.shape, solver=self.solver, grid=self.grid, callback=visit, **keys
        )
        found.add(len(found.lam) - 1, x, rows, cond)


class _Moments:
    """Sums over samples of the products of (1, y, m, m') and of the diagonal of dm/dy, at every lam."""

    def __init__(
        self,
        denoiser: Denoiser,
        shape: tuple[int, ...],
        points: int,
        probes: int,
        per: str,
        seed: int,
        device: torch.device,
    ) -> None:
        self.denoiser, self.shape, self.probes, self.seed = denoiser, shape, probes, seed
        process, (noisy, clean) = denoiser.process, denoiser.lam_range
        first = max(noisy, float(process.lam(process.t_max)))
        last = min(clean, float(process.lam(process.t_min)))
        self.lam = torch.linspace(first, last, points, dtype=torch.float64)
        self.times = process.time(self.lam)
        self.pooled = per == "event"
        kept = () if self.pooled else shape
        self.sums = torch.zeros(points, 4, 4, *kept, dtype=torch.float64, device=device)
        self.diagonal = torch.zeros(points, *kept, dtype=torch.float64, device=device)
        self.by_jvp: bool | None = None

    def add(self, k: int, x: Tensor, rows: Tensor, cond: Any) -> None:
        """Count the states x (B, *shape) of the samples `rows` at lam number k."""
        if self.by_jvp is None:
            self.by_jvp = self._time_is_seen(rows, cond, x.dtype)
        alpha = float(self.denoiser.process.alpha(self.times[k]))
        y, time = x / alpha, self.times[k].to(x.device)
        m = self._predict(x, time, cond)
        total = self._slope(x, alpha * m - x, k, cond)
        diagonal = torch.zeros_like(x)
        for probe in range(self.probes):
            words = philox.uniform(self.seed, rows, self.shape, draw=k << 8 | probe, domain="probe", dtype=x.dtype)
            v = torch.where(words < 0.5, -1.0, 1.0).to(x.dtype)
            diagonal += v * self._push(x, v, time, cond) * (alpha / self.probes)
        parts = torch.stack([torch.ones_like(y), y, m, total], 1).double()
        if self.pooled:
            parts, diagonal = parts.flatten(2), diagonal.flatten(1).mean(1)
            self.sums[k] += torch.einsum("nid,njd->ij", parts, parts) / parts.shape[-1]
        else:
            self.sums[k] += torch.einsum("ni...,nj...->ij...", parts, parts)
        self.diagonal[k] += diagonal.double().sum(0)

    def _predict(self, x: Tensor, time: Tensor, cond: Any) -> Tensor:
        return self.denoiser(x, time, cond).x0

    def _push(self, x: Tensor, v: Tensor, time: Tensor, cond: Any) -> Tensor:
        pushed: Tensor = torch.func.jvp(lambda state: self._predict(state, time, cond), (x,), (v,))[1]
        return pushed

    def _slope(self, x: Tensor, v: Tensor, k: int, cond: Any) -> Tensor:
        """m' along y' = v / alpha. Where jvp does not see the time, differences in lam at a fixed y do."""
        process, t = self.denoiser.process, self.times[k]
        if self.by_jvp:
            rate = 1.0 / process.d_lam(t)  # dt / dlam
            drift = float(process.f(t) * rate) * x + v
            at = (x, t.to(x.device)), (drift, rate.to(x.device))
            slope: Tensor = torch.func.jvp(lambda state, time: self._predict(state, time, cond), *at)[1]
            return slope
        return self._push(x, v, t.to(x.device), cond) + self._difference(x, k, cond)

    def _difference(self, x: Tensor, k: int, cond: Any) -> Tensor:
        """The slope of m in lam at a fixed y."""
        process, lam = self.denoiser.process, self.lam
        ends = (lam[k] + torch.tensor([-DELTA, DELTA], dtype=torch.float64)).clamp(lam[0], lam[-1])
        scales = (process.alpha(process.time(ends)) / process.alpha(self.times[k])).tolist()
        low, high = (
            self._predict(x * scale, time.to(x.device), cond)
            for scale, time in zip(scales, process.time(ends), strict=True)
        )
        return (high - low) / float(ends[1] - ends[0])

    def _time_is_seen(self, rows: Tensor, cond: Any, dtype: torch.dtype) -> bool:
        """Whether jvp in time agrees with differences: not where a network or a process rounds or tabulates time."""
        k = int(self.lam.abs().argmin())
        process, t = self.denoiser.process, self.times[k]
        x = philox.normal(self.seed, rows, self.shape, domain="probe", dtype=dtype)
        x = x * float(torch.hypot(process.alpha(t), process.sigma(t)))
        self.by_jvp = True
        fixed = torch.zeros_like(x)
        seen, slope = self._slope(x, fixed, k, cond), self._difference(x, k, cond)
        return bool((seen - slope).norm() <= 0.1 * slope.norm() + 1e-6)

    def statistics(self) -> Statistics:
        """The tables."""
        mean = self.sums / self.sums[:, :1, :1]
        l = 1.0 - self.diagonal / self.sums[:, 0, 0]
        spline = CubicSpline(self.lam.numpy(), l.cpu().numpy(), axis=0)
        d_l = torch.from_numpy(spline(self.lam.numpy(), 1)).to(l)
        zero, one = torch.zeros_like(l), torch.ones_like(l)
        f = torch.stack([zero, 1.0 - l, -one, zero], 1)  # in (1, y, m, m')
        slope = torch.stack([zero, l - 1.0 - d_l, 1.0 - l, -one], 1)
        cov = mean - mean[:, :1].transpose(1, 2) * mean[:, :1]
        spread = torch.einsum("ki...,kij...,kj...->k...", f, cov, f)
        joint = torch.einsum("ki...,kij...,kj...->k...", f, cov, slope)
        noise = torch.stack([zero, one, -one, zero], 1)  # f = (1 - l) y - m = (y - m) - l y
        sizes = (f.square() * torch.diagonal(cov, dim1=1, dim2=2).movedim(-1, 1)).sum(1)
        others = torch.einsum("ki...,kij...,kj...->k...", noise, cov, noise) + l**2 * cov[:, 1, 1]
        rounding = ROUNDING * (f.square() * torch.diagonal(mean, dim1=1, dim2=2).movedim(-1, 1)).sum(1)
        constant = spread <= rounding + CONSTANT * torch.minimum(sizes, others)
        edge = (spread <= rounding + FLAT * torch.minimum(sizes, others)).cumprod(0).bool()  # from the noisy end on
        flat = constant | edge
        a = torch.where(flat, zero, joint / torch.where(flat, one, spread))
        for k in reversed(range(len(a) - 1)):
            a[k] = torch.where(flat[k], a[k + 1], a[k])
        first = mean[:, 0]
        b = (slope * first).sum(1) - a * (f * first).sum(1)
        return Statistics(*(Array(value) for value in (self.lam, l, a, b)))
