"""Closed forms for the solver tests, written from the formulas alone: nothing of the library's conversions is used.

x_t = alpha x_0 + sigma eps,    x_0 ~ sum_k w_k N(m_k, v_k)    (coordinates independent)
V = alpha^2 v + sigma^2,        score = -E_k[(x - alpha m_k) / V_k]
x0 = E_k[m_k + alpha v_k / V_k (x - alpha m_k)],    noise = E_k[sigma / V_k (x - alpha m_k)]
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import log_ndtr, logsumexp
from torch import Tensor

from fokker.prediction import READINGS, Prediction, Reading, edm_reading
from fokker.process import Process
from fokker.solvers import Plan, bind, run

F64 = torch.float64
READING_NAMES = ("x0", "noise", "score", "velocity", "v", "edm")
SIGMA_DATA = 0.5
_EDM = edm_reading(SIGMA_DATA)


def column(c: Tensor, x: Tensor) -> Tensor:
    return c.to(x.dtype).reshape(c.shape + (1,) * (x.ndim - c.ndim)) if c.ndim else c


class Oracle:
    """The exact denoiser of a one-dimensional law applied to every coordinate; `reading` names its one output.

    Args:
        weights, means, variances: of the mixture, one number per component.
        reading: None for the pair (x0, noise), else one of READING_NAMES.
    """

    def __init__(
        self,
        process: Process,
        weights: tuple[float, ...] = (1.0,),
        means: tuple[float, ...] = (0.0,),
        variances: tuple[float, ...] = (1.0,),
        reading: str | None = None,
        shape: tuple[int, ...] = (1,),
        lam_range: tuple[float, float] = (-math.inf, math.inf),
    ) -> None:
        self.process, self.shape, self.lam_range = process, shape, lam_range
        self.weights, self.means, self.variances = weights, means, variances
        self.name = reading
        self.reading: Reading | None = None if reading is None else {**READINGS, "edm": _EDM}[reading]
        self._known: dict[float, tuple[float, float]] = {}
        self.calls: list[tuple[float, tuple[int, ...]]] = []

    def moments(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        """The components' means and variances at time t."""
        a, s = float(self.process.alpha(t)), float(self.process.sigma(t))
        return a * np.array(self.means), a * a * np.array(self.variances) + s * s

    def pair(self, x: Tensor, s: float | Tensor) -> tuple[Tensor, Tensor]:
        """(E[x0 | x], E[eps | x]) at time s."""
        if isinstance(s, float):
            if s not in self._known:
                self._known[s] = (float(self.process.alpha(s)), float(self.process.sigma(s)))
            a, sig = self._known[s]
        else:
            a, sig = (column(c(torch.as_tensor(s, dtype=F64)), x) for c in (self.process.alpha, self.process.sigma))
        if len(self.weights) == 1:  # arithmetic only: the same bits whatever stands beside an element
            gap = (x - a * self.means[0]) / (a * a * self.variances[0] + sig * sig)
            return self.means[0] + a * self.variances[0] * gap, sig * gap
        m, v, w = (torch.tensor(c, dtype=x.dtype) for c in (self.means, self.variances, self.weights))
        a, sig = (c[..., None] if isinstance(c, Tensor) else c for c in (a, sig))
        total = a * a * v + sig * sig
        gap = x[..., None] - a * m
        r = torch.softmax(w.log() - 0.5 * gap * gap / total - 0.5 * total.log(), -1)
        pull = r * gap / total
        return (r * m + a * v * pull).sum(-1), (sig * pull).sum(-1)

    def __call__(self, x: Tensor, s: float | Tensor, cond: Any = None) -> Prediction:
        self.calls.append((s if isinstance(s, float) else math.nan, tuple(x.shape)))
        x0, noise = self.pair(x, s)
        if self.name is None:
            return Prediction(self.process, x, s, x0=x0, noise=noise)
        t = torch.as_tensor(s, dtype=F64)
        p = self.process
        a, sig = column(p.alpha(t), x), column(p.sigma(t), x)
        if self.name == "x0":
            value = x0
        elif self.name == "noise":
            value = noise
        elif self.name == "score":
            value = -noise / sig
        elif self.name == "velocity":
            value = column(p.d_alpha(t), x) * x0 + column(p.d_sigma(t), x) * noise
        elif self.name == "v":
            value = a * noise - sig * x0
        else:  # EDM's F = (x0 - c_skip x) / c_out
            d, root = SIGMA_DATA, a * a * SIGMA_DATA**2 + sig * sig
            value = (x0 - a * d * d / root * x) / (sig * d / root**0.5)
        assert self.reading is not None
        return Prediction(p, x, s, other=(self.reading, value))

    def sample_data(self, n: int, seed: int) -> Tensor:
        """n draws of the data law (n, *shape)."""
        g = torch.Generator().manual_seed(seed)
        k = torch.multinomial(torch.tensor(self.weights, dtype=F64), n * math.prod(self.shape), True, generator=g)
        z = torch.randn(len(k), dtype=F64, generator=g)
        out = torch.tensor(self.means, dtype=F64)[k] + torch.tensor(self.variances, dtype=F64)[k].sqrt() * z
        return out.reshape(n, *self.shape)


def gaussian(process: Process, mean: float = 0.0, var: float = 1.0, **kwargs: Any) -> Oracle:
    return Oracle(process, (1.0,), (mean,), (var,), **kwargs)


def mixture(process: Process, **kwargs: Any) -> Oracle:
    """The harness of the inventory: w = (.3, .7), means (-1, .8), std (.35, .25)."""
    return Oracle(process, (0.3, 0.7), (-1.0, 0.8), (0.35**2, 0.25**2), **kwargs)


def _tails(oracle: Oracle, x: float, t: float) -> tuple[float, float]:
    mean, var = oracle.moments(t)
    z, w = (x - mean) / np.sqrt(var), np.array(oracle.weights)
    return float(logsumexp(log_ndtr(z), b=w)), float(logsumexp(log_ndtr(-z), b=w))


def flow_map(oracle: Oracle, x: Tensor, s: float, t: float) -> Tensor:
    """The exact probability-flow map of a one-dimensional law: F_t(x_t) = F_s(x_s), by the smaller log tail."""
    out = []
    mean, var = oracle.moments(t)
    low, high = float((mean - 40 * np.sqrt(var)).min()), float((mean + 40 * np.sqrt(var)).max())
    for value in x.reshape(-1).tolist():
        cdf, sf = _tails(oracle, value, s)
        side = 0 if cdf < sf else 1
        target = (cdf, sf)[side]

        def gap(u: float, side: int = side, target: float = target) -> float:
            return _tails(oracle, u, t)[side] - target

        out.append(brentq(gap, low, high, xtol=1e-15, rtol=1e-15))
    return torch.tensor(out, dtype=F64).reshape(x.shape)


def gaussian_map(oracle: Oracle, x: Tensor, s: float, t: float) -> Tensor:
    (ms, vs), (mt, vt) = oracle.moments(s), oracle.moments(t)
    return float(mt[0]) + math.sqrt(float(vt[0] / vs[0])) * (x - float(ms[0]))


def quantile_starts(oracle: Oracle, t: float, n: int = 13) -> Tensor:
    """n states at time t, spread over the law there, none near the mixture's watershed (-.52 deviations)."""
    mean, var = oracle.moments(t)
    w = np.array(oracle.weights)
    middle = float((w * mean).sum())
    spread = math.sqrt(float((w * (var + mean**2)).sum()) - middle**2)
    return (middle + spread * torch.linspace(-2.2, 2.2, n, dtype=F64))[:, None]


def execute(plan: Plan, denoiser: Any, x: Tensor, **kwargs: Any) -> Tensor:
    """bind and run as `sample` does."""
    with torch.no_grad():
        return run(bind(plan, denoiser, x.device, x.dtype), denoiser, x, **kwargs)


def reference(
    plan: Plan, denoiser: Any, x: Tensor, draw: Callable[[int, int], Tensor] | None = None
) -> tuple[Tensor, list[Tensor]]:
    """A plan carried out by its definition, one term at a time, nothing folded, merged or done in place."""
    file: dict[Any, Any] = {("one", 0): torch.ones_like(x)}
    said: dict[int, Any] = {}

    class View:
        def __getitem__(self, register: Any) -> Tensor:
            return file[register]

        def variance(self, slot: int) -> Tensor:
            return said[slot]

    def value(c: Any) -> Any:
        if isinstance(c, float):
            return c
        if hasattr(c, "value"):
            return c.value.to(x.dtype)
        number = c(View())
        return number.reshape(-1, *[1] * (x.ndim - 1)) if number.ndim == 1 else number

    def total(terms: Any) -> Tensor:
        out = torch.zeros_like(x)
        for register, c in terms:
            out = out + value(c) * file[register]
        return out

    states = [x]
    for n, step in enumerate(plan.steps):
        file["x", 0] = states[-1]
        for k in range(step.draws):
            assert draw is not None
            file["z", k] = draw(n, k)
        for j, stage in enumerate(step.stages):
            file["y", j] = total(stage.terms)
            if stage.time is None:
                continue
            p, q = stage.affine
            prediction = denoiser(file["y", j].clone(), stage.time)
            got = prediction.read(stage.reading).clone()
            said[stage.keep] = prediction.variance
            file["m", stage.keep] = value(p) * file["y", j] + value(q) * got
        states.append(total(step.out))
    return states[-1], states


def law(plan: Plan, oracle: Oracle, mean: float, var: float) -> tuple[float, float]:
    """The exact mean and variance that a plan makes of N(mean, var) at its start, for Gaussian data.

    Every register is an affine function of (1, x_start, all draws): a vector of its coefficients. No sampling.
    """
    draws = sum(step.draws for step in plan.steps)
    size = 2 + draws
    one = np.eye(size)[0]
    file: dict[Any, np.ndarray] = {("one", 0): one, ("x", 0): np.eye(size)[1]}
    m0, v0 = oracle.means[0], oracle.variances[0]
    p, used = oracle.process, 0

    def total(terms: Any) -> np.ndarray:
        return sum((c * file[register] for register, c in terms), np.zeros(size))

    for step in plan.steps:
        for k in range(step.draws):
            file["z", k] = np.eye(1, size, 2 + used)[0]
            used += 1
        for j, stage in enumerate(step.stages):
            y = file["y", j] = total(stage.terms)
            if stage.time is None:
                continue
            t = stage.time
            a, s = float(p.alpha(t)), float(p.sigma(t))
            gap = (y - a * m0 * one) / (a * a * v0 + s * s)
            x0, noise = m0 * one + a * v0 * gap, s * gap
            read = {
                "x0": lambda: x0,  # noqa: B023
                "noise": lambda: noise,  # noqa: B023
                "velocity": lambda: float(p.d_alpha(t)) * x0 + float(p.d_sigma(t)) * noise,  # noqa: B023
                "score": lambda: -gap,  # noqa: B023
            }[stage.reading]()
            file["m", stage.keep] = stage.affine[0] * y + stage.affine[1] * read
        file["x", 0] = total(step.out)
    x = file["x", 0]
    return float(x[0] + x[1] * mean), float(x[1] ** 2 * var + (x[2:] ** 2).sum())


def slopes(errors: list[float]) -> list[float]:
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]
