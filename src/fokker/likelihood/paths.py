r"""Likelihood by a change of measure between paths: the reverse chain of a model against the noising of x.

On times T = t_0 > ... > t_N = s the model draws x_T from the prior, every x_t from the Gaussian p(x_t | x_s, x0_hat)
(the ancestral chain), and at last x from N(x_s / alpha, rho^2 I). Noising x and going back by p(x_t | x_s, x_0 = x) =
N(mu, c^2 I), x_t = mu + c eps, gives paths of the data; the ratio of the two laws of a path is

    (1)  log w = log p(x_T) - log p(x_T | x) + log p(x | x_s) + sum 1/2 |eps|^2 - 1/2 |eps + b (x - x0_hat) / c|^2
    (2)  E w = p_chain(x),    E log w <= log p_chain(x),    b = on_x0 of the posterior

The mean of log w is the discrete bound, sum 1/2 (SNR_t - SNR_s) |x - x0_hat|^2 and the ends; `elbo` is its limit. The
book's Eq. C.2.2 integrates x out as well and counts the prior twice; here x is what everything is conditioned on.

    (3)  KL(P || P_model) = KL(p_T || prior) + 1/2 E int g^2 |s - s_model|^2 dt,    1/2 g^2 |s|^2 dt = |eps|^2 d lam

is Girsanov's theorem for two reverse SDEs (book Eq. C.2.1): it is never below KL(p_0 || p_model), and holds for the
SDEs, not for the ODEs. Sources: book Sec. C.2, Eq. C.2.1-C.2.2; Burda et al. 2016 (many paths).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .. import noise
from ..calculus import Estimate
from ..denoiser import repeat_cond, take_cond
from ..errors import ConfigError
from ..prediction import Denoiser
from ..sampling import device_of, encoding_times
from ..solvers import Grid

__all__ = ["Weighted", "path_kl", "weighted_log_prob"]


@dataclass(frozen=True)
class Weighted:
    """What `weighted_log_prob` gives, in nats, float64; all (B,).

    Attributes:
        value: log of the mean weight: below log p_chain(x) on average, and the closer the more paths.
        stderr: its standard error, to first order.
        bound: the mean of log w, an unbiased estimate of the discrete variational bound.
        ess: effective number of paths, (sum w)^2 / sum w^2: few are few, whatever stderr says.
    """

    value: Tensor
    stderr: Tensor
    bound: Tensor
    ess: Tensor


def _square(x: Tensor) -> Tensor:
    return x.double().flatten(1).square().sum(1)


@torch.no_grad()
def weighted_log_prob(
    denoiser: Denoiser,
    x: Tensor,
    *,
    paths: int = 64,
    steps: int | None = None,
    grid: Grid | str | dict[str, Any] | Tensor | Sequence[float] | None = None,
    cond: Any = None,
    seed: int = 0,
    index: Tensor | None = None,
) -> Weighted:
    """log p_chain(x) of the ancestral chain on a grid, by weighted paths, Eq. (1) and (2).

    Args:
        denoiser: learned or exact.
        x: data (B, *event), float32 or float64.
        paths: K, 2 or more; K steps evaluations per sample, all paths at once.
        steps, grid: the chain's times, as in `sample(..., final="t_min")`.
        cond: as in `sample`.
        seed, index: key of the paths; index (B,), default 0..B-1.

    Raises:
        ConfigError: fewer than 2 paths, or impossible times.
    """
    if paths < 2:
        raise ConfigError(f"paths: given {paths}, must be 2 or more")
    process, device = denoiser.process, device_of(denoiser)
    times = encoding_times(denoiser, steps=steps, grid=grid).flip(0).tolist()
    index = (torch.arange(len(x)) if index is None else index).to(device)
    given = take_cond(repeat_cond(cond, len(x)), torch.arange(len(x)).repeat(paths))
    clean = x.to(device, torch.promote_types(x.dtype, torch.float32)).repeat(paths, *(1,) * (x.ndim - 1))
    d = math.prod(x.shape[1:])

    def fresh(step: int) -> Tensor:
        draws = torch.arange(paths) * len(times) + step
        return noise.normal(seed, index, x.shape[1:], draw=draws, domain="probe", dtype=clean.dtype).flatten(0, 1)

    eps = fresh(0)
    state, std = process.perturb(clean, times[0], eps), float(process.prior_std(times[0]))
    log_w = 0.5 * (_square(eps) - _square(state) / std**2) + d * math.log(float(process.sigma(times[0])) / std)
    for step, (s, t) in enumerate(pairwise(times), 1):
        on_x, on_x0, c = (float(value) for value in process.bridge(s, t))
        eps, missed = fresh(step), clean - denoiser(state, s, given).x0
        log_w = log_w + 0.5 * (_square(eps) - _square(eps + on_x0 / c * missed))
        state = on_x * state + on_x0 * clean + c * eps
    alpha, rho = float(process.alpha(times[-1])), math.exp(-float(process.lam(times[-1])))
    log_w = log_w - 0.5 * _square(clean - state / alpha) / rho**2 - d * math.log(math.sqrt(2.0 * math.pi) * rho)
    log_w = log_w.reshape(paths, len(x)).to(x.device)
    value = log_w.logsumexp(0) - math.log(paths)
    w = (log_w - value).exp()
    return Weighted(value, w.std(0) / math.sqrt(paths), log_w.mean(0), paths / w.square().mean(0))


@torch.no_grad()
def path_kl(
    truth: Denoiser,
    model: Denoiser,
    x: Tensor,
    *,
    draws: int = 64,
    cond: Any = None,
    seed: int = 0,
    index: Tensor | None = None,
) -> Estimate:
    """The integral of Eq. (3), int E|eps_hat - eps_hat_model|^2 d lam, in nats: what a model's score loses at most.

    Over the common range of lam of both denoisers inside [t_min, t_max]. KL(p_T || prior) is `process.kl_to_prior`.

    Args:
        truth: the exact denoiser of the law of x, or what takes its place.
        model: another one of the same process.
        x: samples of the data, (B, *event).
        draws: evaluations of both per sample, one in each of as many equal pieces of lam.
        cond, seed, index: as in `weighted_log_prob`.

    Returns:
        Estimate of two numbers, over the samples.

    Raises:
        ConfigError: different processes, or draws < 1.
    """
    process = truth.process
    if model.process != process or draws < 1:
        raise ConfigError(
            f"path_kl: given {process} and {model.process}, draws={draws}: must be one process, 1 or more"
        )
    low = max(truth.lam_range[0], model.lam_range[0], float(process.lam(process.t_max)))
    high = min(truth.lam_range[1], model.lam_range[1], float(process.lam(process.t_min)))
    index = torch.arange(len(x), device=x.device) if index is None else index.to(x.device)
    cond, total = repeat_cond(cond, len(x)), torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for k in range(draws):
        eps = noise.normal(seed, index, x.shape[1:], draw=2 * k, domain="probe", dtype=x.dtype)
        u = noise.uniform(seed, index, (), draw=2 * k + 1, domain="probe", dtype=torch.float64)
        t = process.time(low + (high - low) * (k + u) / draws)
        x_t = process.perturb(x, t, eps)
        total += _square(truth(x_t, t, cond).noise - model(x_t, t, cond).noise)
    rates = (high - low) / draws * total
    return Estimate(rates.mean(), rates.std() / math.sqrt(len(rates)))
