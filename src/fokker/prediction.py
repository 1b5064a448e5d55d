r"""Readings: one model output at (x, s), read as whatever is needed.

A reading is the target k(s) m = A(s) x_0 + B(s) eps of one regression; with x = alpha x_0 + sigma eps and
Delta = A sigma - B alpha != 0 it determines both unknowns, and so every other reading m' with (C, D, k'):

    (1)  x_0 = (sigma k m - B x) / Delta,        eps = (A x - alpha k m) / Delta
    (2)  m'  = p x + q m,    p = (A D - B C) / (Delta k'),    q = (C sigma - D alpha) k / (Delta k')

| reading  | A                    | B                      | k     | it is                              |
|----------|----------------------|------------------------|-------|------------------------------------|
| x0       | 1                    | 0                      | 1     | the clean data                     |
| noise    | 0                    | 1                      | 1     | eps                                |
| score    | 0                    | -1                     | sigma | grad log p_t                       |
| velocity | alpha'               | sigma'                 | 1     | dx/dt of the probability-flow ODE  |
| v        | -sigma               | alpha                  | 1     | Salimans & Ho's v                  |
| edm      | sigma / (d sqrt(R))  | -alpha d / sqrt(R)     | 1     | EDM's F: R = alpha^2 d^2 + sigma^2 |

Sources: book Table 6.1, Prop. 6.3.1 and D.6.1; the 2x2 inverse (1) extends the table to any pair. The factor k keeps
the score's row finite at sigma = 0. Where an end of the process leaves a reading undetermined (x0 says nothing of the
noise at sigma = 0, nor the noise of x0 at alpha = 0), asking for it raises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from .errors import ConfigError, UndeterminedError, closest
from .process import Process, as_time, expand, readable

__all__ = ["READINGS", "Denoiser", "Prediction", "Reading", "coefficients", "edm_reading", "learned_std", "reading"]

Row = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Reading:
    """A row of the table: `row(process, t)` gives (A, B, k) with target (A x_0 + B eps) / k."""

    name: str
    row: Callable[[Process, Tensor], Row]


def _x0(process: Process, t: Tensor) -> Row:
    one = torch.ones_like(t)
    return one, torch.zeros_like(t), one


def _noise(process: Process, t: Tensor) -> Row:
    one = torch.ones_like(t)
    return torch.zeros_like(t), one, one


def _score(process: Process, t: Tensor) -> Row:
    return torch.zeros_like(t), -torch.ones_like(t), process.sigma(t)


def _velocity(process: Process, t: Tensor) -> Row:
    return process.d_alpha(t), process.d_sigma(t), torch.ones_like(t)


def _v(process: Process, t: Tensor) -> Row:
    return -process.sigma(t), process.alpha(t), torch.ones_like(t)


def edm_reading(sigma_data: float) -> Reading:
    """EDM's raw output F at any process: x_0 = c_skip x + c_out F with (book Eq. D.6.1, Karras et al. 2022)

    c_skip = alpha d^2 / R, c_out = sigma d / sqrt(R), R = alpha^2 d^2 + sigma^2, d = sigma_data.
    """

    def row(process: Process, t: Tensor) -> Row:
        alpha, sigma = process.alpha(t), process.sigma(t)
        root = torch.hypot(alpha * sigma_data, sigma)
        return sigma / (sigma_data * root), -alpha * sigma_data / root, torch.ones_like(t)

    return Reading(f"edm({sigma_data:g})", row)


READINGS: dict[str, Reading] = {
    name: Reading(name, row)
    for name, row in {"x0": _x0, "noise": _noise, "score": _score, "velocity": _velocity, "v": _v}.items()
}


def reading(given: str | Reading) -> Reading:
    """The reading of that name; a `Reading` of the user's own is returned as it is."""
    if isinstance(given, Reading):
        return given
    if given not in READINGS:
        raise ConfigError(f"unknown reading {given!r}: {closest(given, READINGS)}")
    return READINGS[given]


def coefficients(process: Process, s: float | Tensor, source: Reading, target: Reading) -> tuple[Tensor, Tensor]:
    """(p, q) of Eq. (2): the target reading is p x + q m, where m is the source reading at time s.

    Raises:
        UndeterminedError: at an end of the process where m does not determine the target.
    """
    s = as_time(s)
    if source == target:
        return torch.zeros_like(s), torch.ones_like(s)
    alpha, sigma = process.alpha(s), process.sigma(s)
    A, B, k = source.row(process, s)
    C, D, k_target = target.row(process, s)
    # Readings of one unknown alone (noise and score) determine each other even where that unknown is all of x; and
    # at the clean end x itself is alpha x_0, at the noisy end sigma eps, whatever was predicted.
    alike = (A == 0) & (C == 0)
    whole_x0, whole_noise = target == READINGS["x0"], target == READINGS["noise"]
    settled = (sigma == 0) & whole_x0 | (alpha == 0) & whole_noise
    # Branches not taken divide by one, so that no derivative in s meets 0 * inf.
    one = torch.ones_like(s)
    delta = torch.where(alike | settled, one, A * sigma - B * alpha) * k_target
    p, q = (A * D - B * C) / delta, (C * sigma - D * alpha) * k / delta
    p = torch.where(alike, torch.zeros_like(p), p)
    q = torch.where(alike, D * k / torch.where(alike, B * k_target, one), q)
    whole = torch.where(settled, alpha if whole_x0 else sigma, one)
    p, q = torch.where(settled, one / whole, p), torch.where(settled, torch.zeros_like(q), q)
    _require_finite(p + q, s, sigma, source.name, target.name)
    return p, q


def _require_finite(value: Tensor, s: Tensor, sigma: Tensor, source: str, target: str) -> None:
    if not readable(value) or bool(torch.isfinite(value).all()):
        return
    first = int((~torch.isfinite(value)).reshape(-1).nonzero()[0])
    at = float(s.expand_as(value).reshape(-1)[first])
    clean = bool(sigma.expand_as(value).reshape(-1)[first] == 0)
    end, allowed = ("sigma = 0", ["noise", "v"]) if clean else ("alpha = 0", ["velocity", "x0", "v"])
    instead = " or ".join(repr(name) for name in ([target] if target == "score" else allowed) if name != source)
    raise UndeterminedError(
        f"{target} is not determined by a prediction of {source} at time {at:g}, where {end}: "
        f"stop before this end (t_min, t_max) or predict {instead}"
    )


def learned_std(v: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """low^((1 - v) / 2) high^((1 + v) / 2), the standard deviation that a variance v says (Nichol & Dhariwal 2021).

    Args:
        v: `Prediction.variance`, (B, *event), meant to lie in [-1, 1].
        low, high: standard deviations, positive: numbers, or ready to broadcast.
    """
    low, high = (torch.as_tensor(std, dtype=torch.float64).log() for std in (low, high))
    weight = 0.5 * (v + 1.0)
    return (low * (1.0 - weight) + high * weight).exp()


class Prediction:
    """What a model says at state x and time s: one reading, or the pair (x0, noise), readable as any other.

    Args:
        process: the process of x.
        x: the state (B, *event).
        s: where it is: a number or (B,).
        x0, noise, score, velocity, v: exactly one reading of the shape of x, or x0 and noise together.
        other: (reading, value) for a reading of one's own.
        variance: what a network with a learned variance says of it, carried along.

    Raises:
        ConfigError: not exactly one reading, or not the pair.
        UndeterminedError: from a property, at an end of the process where it is not determined.
    """

    __slots__ = ("pair", "process", "reading", "s", "value", "variance", "x")

    def __init__(
        self,
        process: Process,
        x: Tensor,
        s: float | Tensor,
        *,
        x0: Tensor | None = None,
        noise: Tensor | None = None,
        score: Tensor | None = None,
        velocity: Tensor | None = None,
        v: Tensor | None = None,
        other: tuple[Reading, Tensor] | None = None,
        variance: Tensor | None = None,
    ) -> None:
        self.process, self.x, self.s, self.variance = process, x, s, variance
        named = {"x0": x0, "noise": noise, "score": score, "velocity": velocity, "v": v}
        given = {name: value for name, value in named.items() if value is not None}
        self.pair: tuple[Tensor, Tensor] | None = None
        if other is not None and not given:
            self.reading, self.value = other
        elif other is None and len(given) == 1:
            name, self.value = next(iter(given.items()))
            self.reading = READINGS[name]
        elif other is None and x0 is not None and noise is not None and len(given) == 2:
            self.reading, self.value, self.pair = READINGS["x0"], x0, (x0, noise)
        else:
            raise ConfigError(f"Prediction: given {sorted(given)}; give one reading, or x0 and noise together")

    def read(self, target: str | Reading) -> Tensor:
        """The prediction as `target`: Eq. (2), or (C x_0 + D eps) / k' from the pair."""
        wanted = reading(target)
        if wanted == self.reading:
            return self.value
        if self.pair is None:
            p, q = coefficients(self.process, self.s, self.reading, wanted)
            return expand(p, self.x) * self.x + expand(q, self.x) * self.value
        if wanted == READINGS["noise"]:
            return self.pair[1]
        s = as_time(self.s)
        C, D, k = wanted.row(self.process, s)
        _require_finite((C + D) / k, s, self.process.sigma(s), "x0 and noise", wanted.name)
        return expand(C / k, self.x) * self.pair[0] + expand(D / k, self.x) * self.pair[1]

    @property
    def x0(self) -> Tensor:
        """E[x_0 | x_s = x]."""
        return self.read("x0")

    @property
    def noise(self) -> Tensor:
        """E[eps | x_s = x] = -sigma score."""
        return self.read("noise")

    @property
    def score(self) -> Tensor:
        """grad log p_s(x)."""
        return self.read("score")

    @property
    def velocity(self) -> Tensor:
        """alpha' x0 + sigma' eps, the drift of the probability-flow ODE."""
        return self.read("velocity")

    @property
    def v(self) -> Tensor:
        """alpha eps - sigma x0."""
        return self.read("v")

    def __repr__(self) -> str:
        what = "x0 and noise" if self.pair is not None else self.reading.name
        return f"Prediction({what} at s={self.s}, shape={tuple(self.x.shape)})"


@runtime_checkable
class Denoiser(Protocol):
    """A callable (x, s, cond=None) -> Prediction: exact, learned, guided or imported.

    Attributes:
        process: the process whose states it takes.
        shape: the event's shape.
        lam_range: (noisiest, cleanest) lam at which it is trained or supported.
        reading: the reading every Prediction of it carries as `value`, or None for the pair (x0, noise).
    """

    @property
    def process(self) -> Process: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def lam_range(self) -> tuple[float, float]: ...

    @property
    def reading(self) -> Reading | None: ...

    def __call__(self, x: Tensor, s: float | Tensor, cond: Any = None) -> Prediction: ...


def check_denoiser(given: Any) -> None:
    """Raise ConfigError if this is no denoiser, and say what to do with a model that is none."""
    if not all(hasattr(given, name) for name in ("process", "lam_range")) or not callable(given):
        own = ": draw from it by its own .sample(...), and ask .log_prob(x)" if hasattr(given, "log_prob") else ""
        raise ConfigError(f"denoiser: given {type(given).__name__}, which is no denoiser{own}")
