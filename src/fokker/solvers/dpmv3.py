r"""DPM-Solver-v3 (Zheng et al. 2023; book Sec. 9.7): a parametrisation fitted to the denoiser, integrated exactly.

In y = x / alpha the flow is dy/dlam = -(sigma/alpha) noise. With any functions l, a, b of lam (numbers, or one per
coordinate) and base point s, everything elementwise,

    f = (sigma noise - l x) / alpha,                dy/dlam = -l y - f                                   (1)
    g = e^{-S} f - int_s e^{-S} b,                  g' = e^{-S} (f' - a f - b),     S = int_s a          (2)
    y_t = e^{-L_t} [ y_s - int_s^t e^{L + S} (g + int_s e^{-S} b) dlam ],           L = int_s l          (3)

and the solver puts the polynomial in lam through the newest stored g into (3). (l, a, b) = (0, -1, 0) is multistep
DPM-Solver, (1, 0, 0) multistep DPM-Solver++, both with exact weights; the fitted l, a, b make g' small (`Statistics`).
The book's (9.7.4)-(9.7.15) print +N for -N, E from the wrong end, and the rows of R in another order than its
right-hand side, which do not converge at the stated order, and N without 1/alpha, which spoils the special cases.

Beyond the noisy end of the tables l = 1 and f stays what it is, so that a step may start where alpha = 0. Beyond their
clean end l = 0 and the noise stays: from there the last step, to time 0, is the x0 step every solver takes, and from
earlier it is this method's, of first order.
"""

from __future__ import annotations

import itertools
import math
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from scipy.interpolate import CubicSpline
from torch import Tensor

from ..component import Array, InMemory, component
from ..errors import ConfigError, FileError
from ..files import read_tensors, write_tensors
from ..prediction import Denoiser
from ..process import Process
from .base import Solver
from .multistep import Start
from .plan import Coef, Stage, Step, Term, X

__all__ = ["DPMv3", "Statistics"]

FORMAT = "fokker-statistics"
CELL = 0.125  # in lam; the widest piece on which the integrals are done by one Gauss-Legendre rule
POINTS = 8
MADE = "a file that `fokker tune RUN --statistics FILE.safetensors` measures, or compute_statistics"


@component
class Statistics:
    """The tables l, a, b of DPM-Solver-v3, cubic splines between their points (`fokker.statistics` computes them).

    They depend on lam alone, in coordinates x / alpha, and so serve a denoiser in whatever process it is seen.

    Args:
        lam: (K,), increasing, K >= 2.
        l, a, b: (K,), or (K, *event): one number per coordinate.

    Raises:
        ConfigError: lam does not increase, or shapes that do not agree.
    """

    lam: Array
    l: Array
    a: Array
    b: Array

    def __post_init__(self) -> None:
        lam = self.lam.value
        if lam.ndim != 1 or len(lam) < 2 or not bool((lam[1:] > lam[:-1]).all()):
            raise ConfigError(f"Statistics.lam: given shape {tuple(lam.shape)}, must be K >= 2 increasing numbers")
        for name, table in (("l", self.l), ("a", self.a), ("b", self.b)):
            if table.shape[:1] != lam.shape or table.shape != self.l.shape:
                wanted = "(K,) or (K, *event) with l's event"
                raise ConfigError(
                    f"Statistics.{name}: given shape {tuple(table.shape)}, must be {wanted}, K = {len(lam)}"
                )

    @property
    def shape(self) -> tuple[int, ...]:
        """The event's shape, () for one number for all coordinates."""
        return tuple(self.l.shape[1:])

    @property
    def ends(self) -> tuple[float, float]:
        """The first and the last lam."""
        return float(self.lam.value[0]), float(self.lam.value[-1])

    def l_at(self, lam: float) -> Tensor:
        """l at a lam between the ends, of shape (*event,)."""
        return torch.from_numpy(np.asarray(self.splines[0](lam, 1)))

    @cached_property
    def splines(self) -> tuple[Any, Any, Any]:
        """(int l, int a, b) as functions of lam."""
        l, a, b = (CubicSpline(self.lam.value.numpy(), t.value.numpy(), axis=0) for t in (self.l, self.a, self.b))
        return l.antiderivative(), a.antiderivative(), b

    def save(self, path: str | Path) -> None:
        """Write them to a safetensors file with a checksum. Raises FileError if it exists or cannot be written."""
        path = Path(path).expanduser()
        if path.exists():
            raise FileError(f"{path} exists and is left as it is; choose another name")
        tables = {"lam": self.lam, "l": self.l, "a": self.a, "b": self.b}
        write_tensors(path, {name: table.value for name, table in tables.items()}, {"format": FORMAT})

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read what `save` wrote. Raises FileError for a file that is missing, damaged or of another kind."""
        path = Path(path).expanduser()
        tensors, _ = read_tensors(path, FORMAT)
        try:
            return cls(**{name: Array(value) for name, value in tensors.items()})
        except ConfigError as error:
            raise FileError(f"{path}: {error}") from None


def _held(given: Any) -> Any:
    """The field's value: a path as it is, tables in memory wrapped."""
    if isinstance(given, Statistics):
        return InMemory(given, "write them with statistics.save(path) and give the path of the file")
    if not isinstance(given, (str, Path, InMemory)):
        raise ConfigError(f"DPMv3.statistics: given {given!r}, must be Statistics or the path of their file")
    return str(given) if isinstance(given, Path) else given


@lru_cache(maxsize=8)
def _loaded(path: str, stamp: tuple[int, int]) -> Statistics:
    return Statistics.load(path)


def _read(path: str) -> Statistics:
    try:
        stat = Path(path).expanduser().stat()
    except OSError as error:
        raise FileError(f"{path}: the statistics cannot be read ({error.strerror})") from None
    return _loaded(path, (stat.st_mtime_ns, stat.st_size))


@cache
def _rule() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gauss-Legendre on [0, 1]: nodes x_i, weights, and the integrals from 0 to x_i of the polynomials through them."""
    x, w = np.polynomial.legendre.leggauss(POINTS)
    x = 0.5 * (x + 1.0)
    powers = np.arange(POINTS)
    inner = np.linalg.solve(np.vander(x, increasing=True).T, (x[:, None] ** (powers + 1) / (powers + 1)).T).T
    return x, 0.5 * w, inner


def _mesh(table: Statistics, s: float, t: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The quadrature from lam = s to t, which may be the smaller: places (n,), weights (n, *ones), e^S, F, (n, *event).

    F' = a F + b, F_s = 0, and the last entries of e^S and F are those at t (with weight 0).
    """
    cells = max(1, math.ceil(abs(t - s) / CELL))
    x, w, inner = _rule()
    width, ones = (t - s) / cells, (1,) * len(table.shape)
    at = s + width * (np.arange(cells)[:, None] + x)
    _, big_a, b = table.splines
    kick = np.exp(big_a(s) - big_a(at)) * b(at) * width
    after = np.cumsum((kick * w.reshape(-1, *ones)).sum(1), 0)
    within = np.einsum("ij,cj...->ci...", inner, kick)
    within[1:] += after[:-1, None]
    forced = np.concatenate([within.reshape(-1, *table.shape), after[-1:]])
    at = np.append(at, t)
    growth = np.exp(big_a(at) - big_a(s))
    weights = np.append(np.tile(w * width, cells), 0.0).reshape(-1, *ones)
    return at, weights, growth, growth * forced


class _Node(NamedTuple):
    """A stored f as a step from s sees it: where it lies, e^{S}, and F there."""

    lam: float
    growth: Tensor | float = 1.0
    forced: Tensor | float = 0.0

    def seen_after(self, step: _Update) -> _Node:
        """The same node, for the step that starts where `step` ends."""
        return _Node(self.lam, self.growth / step.growth, self.forced - step.forced * (self.growth / step.growth))


class _Update(NamedTuple):
    """y_t = carry y_s - sum_j weights_j f_j - offset, and e^S and F at t."""

    carry: Tensor
    weights: tuple[Tensor, ...]
    offset: Tensor
    growth: Tensor
    forced: Tensor


def _update(table: Statistics, begin: float, end: float, nodes: list[_Node], ahead: bool = False) -> _Update:
    """The step (3) from lam = begin to end, either of which may be infinite.

    Args:
        nodes: the newest f first, which is the one at `begin`.
        ahead: the f at `end` is known too, and comes first among the weights.
    """
    low, high = table.ends
    s, t = max(begin, low), min(max(end, low), high)
    at, w, growth, forced = (torch.from_numpy(np.asarray(part)) for part in _mesh(table, s, t))
    big_l, _, _ = table.splines
    level = torch.from_numpy(np.asarray(big_l(at.numpy()) - big_l(t)))  # L - L_t
    closing = _Node(t, growth[-1], forced[-1])
    nodes = [closing, *nodes] if ahead else nodes
    unit = max(abs(node.lam - s) for node in [closing, *nodes]) or 1.0
    powers = torch.arange(len(nodes), dtype=torch.float64)
    u = ((at - s) / unit)[:, None] ** powers  # (n, k)
    weight = w * level.exp()
    moments = torch.einsum("nk,n...->k...", u, weight * growth)
    offset, carry = (weight * forced).sum(0), torch.as_tensor(np.exp(big_l(s) - big_l(t)), dtype=torch.float64)
    if math.isinf(end):  # y_T = y_low + f at the noisy end, y_0 = (1 - l) y_high - f at the clean one
        sign, held = (1.0, 1.0 - table.l_at(high)) if end > 0 else (-1.0, torch.ones(()))
        last = torch.einsum("k,...->k...", u[-1], growth[-1])
        carry, moments, offset = held * carry, held * moments + sign * last, held * offset + sign * forced[-1]
    if math.isinf(begin):  # y_low = y_T - f
        moments[0] += carry
    places = torch.tensor([(node.lam - s) / unit for node in nodes], dtype=torch.float64)
    solved = torch.linalg.solve(places ** powers[:, None], moments.reshape(len(nodes), -1)).reshape(moments.shape)
    for value, node in zip(solved, nodes, strict=True):  # g_j = e^{-S_j} (f_j - F_j)
        value /= node.growth
        offset = offset - value * node.forced
    return _Update(carry, tuple(solved), offset, growth[-1], forced[-1])


def _coef(value: Tensor) -> Coef:
    return float(value) if value.ndim == 0 else Array(value)


@component
class DPMv3(Solver):
    """DPM-Solver-v3: multistep of the fitted parametrisation, one evaluation a step.

    Order 1 without the corrector is the paper's improved DDIM: exact for Gaussian data with the denoiser's statistics.
    Measured on a mixture (docs/solvers.md), order 2 with the corrector is the safest; order 3 errs less at 8 and 10
    evaluations, order 1 nowhere.

    Args:
        statistics: the tables l, a, b, or the path of their file.
        order: 1 to 3, the number of stored evaluations that the polynomial goes through.
        corrector: correct every state by the next evaluation, at no cost (as `UniPC`); not with start="single".
        start: "ramp" or "single" (see `multistep`), the latter without the corrector; it reaches order 3.

    Raises:
        FileError: the file of the statistics is missing or damaged.
        ConfigError (from sampling): the grid leaves the tables' range of lam, or events have another shape.
    """

    statistics: Annotated[str | InMemory, BeforeValidator(_held), Field(description=MADE)]
    order: Annotated[int, Field(ge=1, le=3)] = 2
    corrector: bool = True
    start: Start = "ramp"
    open_data = True
    reaches_zero = True

    def __post_init__(self) -> None:
        if self.corrector and self.start == "single":
            raise ConfigError("DPMv3.start: given 'single' with corrector=True, which begins at full order by itself")
        held: Any = self.statistics
        if isinstance(held, InMemory) and not isinstance(held.value, Statistics):
            raise ConfigError(f"DPMv3.statistics: given {held!r}, must be Statistics or the path of their file")
        _ = self.table

    @property
    def table(self) -> Statistics:
        """The statistics themselves."""
        held: Any = self.statistics
        return held.value if isinstance(held, InMemory) else _read(held)

    @property
    def slots(self) -> int:  # type: ignore[override]
        return self.order + 1

    def prepare(self, denoiser: Denoiser, times: Tensor, device: torch.device, dtype: torch.dtype) -> Any:
        shape = self.table.shape
        if shape and denoiser.shape and shape != tuple(denoiser.shape):
            raise ConfigError(
                f"DPMv3.statistics: made for events of shape {shape}, this denoiser's are {tuple(denoiser.shape)}"
            )
        return super().prepare(denoiser, times, device, dtype)

    def steps(self, process: Process, s: Tensor, t: Tensor) -> list[Step]:
        return _Compiler(self, process, torch.cat([s, t[-1:]])).steps()


class _Compiler:
    """The coefficients of one plan."""

    def __init__(self, solver: DPMv3, process: Process, times: Tensor) -> None:
        self.solver, self.process, self.times, self.table = solver, process, times, solver.table
        low, high = self.table.ends
        lam = torch.where(times == 0.0, math.inf, process.lam(times))
        finite, slack = lam[torch.isfinite(lam)], 1e-6 * (1.0 + high - low)
        if bool(((finite < low - slack) | (finite > high + slack)).any()):
            raise ConfigError(
                f"DPMv3.statistics: their lam runs from {low:.4g} to {high:.4g}, this grid's from "
                f"{float(finite.min()):.4g} to {float(finite.max()):.4g}: compute them for all of it"
            )
        if bool((lam == -math.inf).any()) and bool((self.table.l_at(low) < 0.99).any()):
            raise ConfigError("DPMv3.statistics: l is below 0.99 at the noisy end, so that alpha = 0 cannot be reached")
        self.lam = [value if math.isinf(value) else min(max(value, low), high) for value in lam.tolist()]
        self.place = [min(max(value, low), high) for value in self.lam]
        self.scale = process.alpha(times).tolist()  # of y = x / scale
        for i, value in enumerate(self.lam):
            if value == -math.inf:
                self.scale[i] = float(process.sigma(times[i])) * math.exp(low)
            elif value == math.inf:
                self.scale[i] = 1.0

    def stage(self, time: float, lam: float, scale: float, slot: int, terms: tuple[Term, ...] = ((X, 1.0),)) -> Stage:
        """f = (1 - l) y - x0, which is (sigma noise - l x) / alpha; l = 1 where alpha = 0."""
        on_x = 0.0 if math.isinf(lam) else _coef((1.0 - self.table.l_at(lam)) / scale)
        return Stage(terms, time, "x0", (on_x, -1.0), slot)

    def terms(self, update: _Update, scale: float, to: float, slots: list[int]) -> tuple[Term, ...]:
        """x_t of an update of y."""
        found = [(X, update.carry * (to / scale))]
        found += [(("m", slot), value * -to) for slot, value in zip(slots, update.weights, strict=True)]
        found.append((("one", 0), update.offset * -to))
        return tuple((register, _coef(value)) for register, value in found if bool((value != 0.0).any()))

    def steps(self) -> list[Step]:
        """All of them."""
        order, corrector, table = self.solver.order, self.solver.corrector, self.table
        singles = 2 if self.solver.start == "single" and order == 3 else 0
        times, slots, steps = self.times.tolist(), order + 1, []
        past: list[_Node] = []  # nodes before the step's own
        due: tuple[Tensor, ...] | None = None  # what the corrector adds to y: per node, newest first, and the offset
        for i, (begin, end) in enumerate(itertools.pairwise(self.lam)):
            here = self.stage(times[i], begin, self.scale[i], i % slots)
            nodes = [_Node(self.place[i]), *past][: 1 if end == math.inf else order]
            still = abs(self.place[i + 1] - self.place[i]) < 1e-9
            if i < singles and not still:
                steps.append(self.single(i, here))
                update = _update(table, begin, end, nodes[:1])
            else:
                update = _update(table, begin, end, nodes)
                whole = update
                if due is not None:
                    extra = [value * update.carry for value in due[:-1]]
                    added = [w + e for w, e in itertools.zip_longest(update.weights, extra, fillvalue=torch.zeros(()))]
                    whole = update._replace(weights=tuple(added), offset=update.offset + due[-1] * update.carry)
                used = [(i - j) % slots for j in range(len(whole.weights))]
                out = self.terms(whole, self.scale[i], self.scale[i + 1], used)
                steps.append(Step(times[i], times[i + 1], (here,), out))
            due = None
            if corrector and not still and not math.isinf(end):
                better = _update(table, begin, end, nodes, ahead=True)
                first, *rest = better.weights
                gaps = (b - w for b, w in zip(rest, update.weights, strict=True))
                due = (first, *gaps, better.offset - update.offset)
            past = [] if still else [node.seen_after(update) for node in [_Node(self.place[i]), *past][:order]]
        return steps

    def single(self, i: int, here: Stage) -> Step:
        """A step of order 2 with a second evaluation in the middle."""
        table, begin, end = self.table, self.lam[i], self.lam[i + 1]
        middle = 0.5 * (self.place[i] + self.place[i + 1])
        time = float(self.process.time(middle))
        scale, own, spare = float(self.process.alpha(time)), i % 4, 3
        half = _update(table, begin, middle, [_Node(self.place[i])])
        there = self.stage(time, middle, scale, spare, self.terms(half, self.scale[i], scale, [own]))
        update = _update(table, begin, end, [_Node(self.place[i]), _Node(middle, half.growth, half.forced)])
        out = self.terms(update, self.scale[i], self.scale[i + 1], [own, spare])
        return Step(float(self.times[i]), float(self.times[i + 1]), (here, there), out)
