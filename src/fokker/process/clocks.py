"""Other people's clocks, and the exact map between any two processes.

Every process is the same path seen in another clock and scale: samples agree where lam agrees, and
x_2 / (alpha_2 + sigma_2) = x_1 / (alpha_1 + sigma_1) there (book Prop. 6.3.3; Zheng & Lan 2026, Table 2).

| clock | is | used by |
|---|---|---|
| reversed time | T - t: 0 noise, T data | flow matching, the lecture notes |
| EDM sigma | sigma / alpha = e^{-lam} | Karras et al. |
| index n | t = (n + 1) / steps | DDPM |
| lam | log(alpha / sigma), the HALF log-SNR | DPM-Solver, the book |
| log_snr | log(alpha^2 / sigma^2) = 2 lam | Kingma et al. |
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError
from .base import Process, Time, as_time, expand, readable
from .tables import DiscreteVP

__all__ = [
    "common_lam_range",
    "convert",
    "convert_time",
    "edm_sigma",
    "index",
    "lam_range",
    "log_snr",
    "reversed_time",
    "time_of_edm_sigma",
    "time_of_index",
    "time_of_log_snr",
    "time_of_reversed",
]


def reversed_time(process: Process, t: Time) -> Tensor:
    """Flow matching's clock T - t, which runs from noise (0) to data (T)."""
    return process.T - as_time(t)


def time_of_reversed(process: Process, u: Time) -> Tensor:
    """Our time of flow matching's u: T - u."""
    return process.T - as_time(u)


def edm_sigma(process: Process, t: Time) -> Tensor:
    """EDM's noise level sigma(t) / alpha(t), infinite where alpha = 0."""
    t = as_time(t)
    return process.sigma(t) / process.alpha(t)


def time_of_edm_sigma(process: Process, sigma: Time) -> Tensor:
    """The time at which sigma / alpha has the given value >= 0."""
    return process.time(-as_time(sigma).log())


def index(process: DiscreteVP, t: Time) -> Tensor:
    """DDPM's 0-based index n = steps t - 1, not rounded: -1 is clean data."""
    return as_time(t) * process.steps - 1.0


def time_of_index(process: DiscreteVP, n: Time) -> Tensor:
    """The time (n + 1) / steps of DDPM's 0-based index."""
    return (as_time(n) + 1.0) / process.steps


def log_snr(process: Process, t: Time) -> Tensor:
    """The full log-SNR log(alpha^2 / sigma^2) = 2 lam(t)."""
    return 2.0 * process.lam(t)


def time_of_log_snr(process: Process, value: Time) -> Tensor:
    """The time at which the full log-SNR has the given value."""
    return process.time(0.5 * as_time(value))


def lam_range(process: Process) -> tuple[float, float]:
    """(lam(T), lam(0)): the noisiest and the cleanest end."""
    return float(process.lam(process.T)), float(process.lam(0.0))


def common_lam_range(*ranges: tuple[float, float]) -> tuple[float, float]:
    """The intersection of lam ranges. Raises ConfigError if it is empty."""
    low, high = max(r[0] for r in ranges), min(r[1] for r in ranges)
    if not low < high:
        raise ConfigError(f"lam ranges {ranges} have no common part: these processes never have the same noise level")
    return low, high


def convert_time(t: Time, source: Process, target: Process) -> Tensor:
    """The time of `target` with the lam that `source` has at `t`."""
    t = as_time(t)
    lam = source.lam(t)
    if readable(lam):
        low, high = lam_range(target)
        relative = 1e-9 if lam.dtype == torch.float64 else 4e-6
        slack = torch.where(lam.isfinite(), relative * (1.0 + lam.abs()), 0.0)
        outside = (lam < low - slack) | (lam > high + slack)
        if bool(outside.any()):
            value = float(lam[outside].reshape(-1)[0])
            raise ConfigError(f"lam={value:.6g} is outside {type(target).__name__}'s range [{low:.6g}, {high:.6g}]")
    return target.time(lam).clamp(0.0, target.T)


def convert(x: Tensor, t: Time, source: Process, target: Process) -> tuple[Tensor, Tensor]:
    """A state of `source` at time t as (state, time) of `target`: same lam, same x_0, same eps.

    Args:
        x: (B, *event) at time t of `source`.
        t: a number or (B,), with lam inside both processes' ranges (ConfigError otherwise).
    """
    t = as_time(t)
    u = convert_time(t, source, target)
    return expand(scale(t, u, source, target), x) * x, u


def scale(t: Tensor, u: Tensor, source: Process, target: Process) -> Tensor:
    """x_target / x_source at matched times: (alpha_2 + sigma_2) / (alpha_1 + sigma_1), never 0/0."""
    return (target.alpha(u) + target.sigma(u)) / (source.alpha(t) + source.sigma(t))
