r"""A process: the Gaussian corruption of data on one clock, t = 0 data, t = T noise.

    (1)  x_t = alpha(t) x_0 + sigma(t) eps,                    eps ~ N(0, I)
    (2)  lam(t) = log(alpha / sigma)                           half the log-SNR, strictly decreasing
    (3)  dx = f x dt + g dw,   f = (log alpha)',   g^2 = (sigma^2)' - 2 f sigma^2 = -2 sigma^2 lam'
    (4)  x_t | x_s     ~ N(alpha_{t|s} x_s, sigma_{t|s}^2 I)   s <= t, alpha_{t|s} = alpha_t / alpha_s,
                                                               sigma_{t|s}^2 = sigma_t^2 (1 - e^{2 (lam_t - lam_s)})
    (5)  x_t | x_s, x_0 ~ N(a x_s + b x_0, c^2 I)              t <= s, a = alpha_{s|t} sigma_t^2 / sigma_s^2,
                                                               b = alpha_t sigma_{s|t}^2 / sigma_s^2,
                                                               c = sigma_{s|t} sigma_t / sigma_s

Sources: the book, Eq. 4.1.4 and 4.4.1-4.4.5, Lemmas 4.4.1 and 4.4.2 (none of which needs alpha^2 + sigma^2 = 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import noise as philox
from ..errors import ConfigError

__all__ = ["Normal", "Posterior", "Process", "Time", "Transition", "as_time", "expand", "readable"]

Time = float | Tensor


def as_time(t: Time) -> Tensor:
    """A number as a 0-dim float64 tensor; a floating tensor as it is, but never below float32."""
    if isinstance(t, Tensor):
        if not t.is_floating_point():
            return t.double()
        return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t
    return torch.tensor(float(t), dtype=torch.float64)


def expand(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient of shape () or (B,) in the dtype of `x`, ready to multiply `x` of shape (B, *event)."""
    if coefficient.ndim == 0:
        return coefficient if coefficient.device.type == "cpu" else coefficient.to(x.dtype)
    return coefficient.to(x.device, x.dtype).reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))


def readable(value: Tensor) -> bool:
    """Whether a value may be looked at: on an accelerator that waits for it, in compile or vmap there is none."""
    if torch.compiler.is_compiling() or value.device.type != "cpu":
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(value)


def _ordered(lower: Tensor, upper: Tensor, law: str) -> None:
    if readable(lower) and readable(upper) and bool((lower > upper).any()):
        low, up = lower.reshape(-1)[:3].tolist(), upper.reshape(-1)[:3].tolist()
        raise ConfigError(f"{law}: the first time must not exceed the second (given {low} and {up})")


class Transition(NamedTuple):
    """x_t = scale x_s + std eps."""

    scale: Tensor
    std: Tensor


class Posterior(NamedTuple):
    """x_t = on_x x_s + on_x0 x_0 + std eps."""

    on_x: Tensor
    on_x0: Tensor
    std: Tensor


class Normal(NamedTuple):
    """An isotropic Gaussian N(mean, std^2 I)."""

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std * noise."""
        return self.mean + self.std * noise


class Process:
    """Base of all processes: a subclass gives `alpha`, `sigma`, their derivatives, `lam` and `time`.

    Times are numbers or tensors of any shape with entries in [0, T]; results have the shape and dtype of the time
    (numbers give 0-dim float64). In float32 alpha and sigma are right to 2e-6 relative, exactly 0 where they are 0,
    and lam to 2e-6 (1 + |lam|).
    """

    @property
    def T(self) -> float:  # noqa: N802  (the field's name)
        """The final time."""
        return 1.0

    t_min: float = 1e-3
    """The smallest time at which a network is asked: where to stop when 0 itself is singular."""

    unit_prior: bool = False
    """True where data of unit variance keeps unit variance (variance-preserving): the prior is N(0, I)."""

    def alpha(self, t: Time) -> Tensor:
        """The signal's coefficient in (1)."""
        raise NotImplementedError

    def sigma(self, t: Time) -> Tensor:
        """The noise's coefficient in (1)."""
        raise NotImplementedError

    def d_alpha(self, t: Time) -> Tensor:
        """d alpha / dt."""
        raise NotImplementedError

    def d_sigma(self, t: Time) -> Tensor:
        """d sigma / dt; infinite at t = 0 where sigma starts like sqrt(t)."""
        raise NotImplementedError

    def lam(self, t: Time) -> Tensor:
        """log(alpha / sigma), half the log-SNR: +inf where sigma = 0, -inf where alpha = 0."""
        t = as_time(t)
        return self.alpha(t).log() - self.sigma(t).log()

    def time(self, lam: Time) -> Tensor:
        """The time at which `lam` is reached, the inverse of `lam`: 0 at +inf."""
        raise NotImplementedError

    def f(self, t: Time) -> Tensor:
        """The drift's coefficient in (3): (log alpha)'; -inf where alpha = 0."""
        t = as_time(t)
        return self.d_alpha(t) / self.alpha(t)

    def g2(self, t: Time) -> Tensor:
        """The squared diffusion coefficient in (3); infinite where alpha = 0."""
        t = as_time(t)
        sigma = self.sigma(t)
        return 2.0 * sigma * (self.d_sigma(t) - self.f(t) * sigma)

    def d_lam(self, t: Time) -> Tensor:
        """d lam / dt = alpha'/alpha - sigma'/sigma < 0."""
        t = as_time(t)
        return self.f(t) - self.d_sigma(t) / self.sigma(t)

    @property
    def regular_at_0(self) -> bool:
        """Whether x_0 is the data itself: sigma(0) = 0."""
        return bool(self.sigma(0.0) == 0.0)

    @property
    def t_max(self) -> float:
        """The largest time with a finite lam at a distance: T, or T - t_min where alpha(T) = 0."""
        return self.T if bool(self.alpha(self.T) > 0.0) else self.T - self.t_min

    def perturb(self, x0: Tensor, t: Time, noise: Tensor) -> Tensor:
        """x_t = alpha(t) x_0 + sigma(t) noise, Eq. (1).

        Args:
            x0: clean data (B, *event).
            t: a number, or one time per sample (B,).
            noise: standard normal, of the shape of `x0`.
        """
        t = as_time(t)
        return expand(self.alpha(t), x0) * x0 + expand(self.sigma(t), x0) * noise

    def transition(self, s: Time, t: Time) -> Transition:
        """The forward kernel p(x_t | x_s), s <= t, Eq. (4): its scale and standard deviation."""
        s, t = as_time(s), as_time(t)
        _ordered(s, t, "transition(s, t)")
        return self._transition(s, t)

    def _transition(self, s: Tensor, t: Tensor) -> Transition:
        alpha_s, alpha_t, sigma_t = self.alpha(s), self.alpha(t), self.sigma(t)
        scale = torch.where(s == t, torch.ones_like(alpha_t / alpha_s), alpha_t / alpha_s)
        gap = torch.where(s == t, torch.zeros_like(scale), self.lam(t) - self.lam(s))
        return Transition(scale, sigma_t * (-torch.expm1(2.0 * gap)).sqrt())

    def bridge(self, s: Time, t: Time) -> Posterior:
        """The coefficients of p(x_t | x_s, x_0), t <= s, Eq. (5); at sigma(t) = 0 they are (0, alpha_t, 0)."""
        s, t = as_time(s), as_time(t)
        _ordered(t, s, "posterior(x, x0, s, t)")
        scale, std = self._transition(t, s)
        sigma_s, sigma_t = self.sigma(s), self.sigma(t)
        if readable(sigma_s) and bool((sigma_s == 0.0).any()):
            raise ConfigError(f"posterior: sigma is 0 at s={s.tolist()}: x_s is the data already, choose s > 0")
        ratio = sigma_t / sigma_s
        return Posterior(scale * ratio**2, self.alpha(t) * (std / sigma_s) ** 2, std * ratio)

    def posterior(self, x: Tensor, x0: Tensor, s: Time, t: Time) -> Normal:
        """p(x_t | x_s = x, x_0), t <= s, Eq. (5): its mean and standard deviation.

        Args:
            x: the state at time s, (B, *event).
            x0: clean data of the same shape.
            s: where x is; t: where to go; numbers or (B,).
        """
        on_x, on_x0, std = self.bridge(s, t)
        return Normal(expand(on_x, x) * x + expand(on_x0, x) * x0, expand(std, x))

    def prior_std(self, t: Time | None = None) -> Tensor:
        """The standard deviation of the prior drawn at time t (default T): 1 if variance-preserving, else sigma(t)."""
        t = as_time(self.T if t is None else t)
        return torch.ones_like(t) if self.unit_prior else self.sigma(t)

    def prior(
        self,
        shape: Sequence[int],
        n: int = 64,
        seed: philox.Seed = 0,
        t: float | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        indices: Tensor | None = None,
    ) -> Tensor:
        """n draws of the prior N(0, prior_std(t)^2 I) of event `shape`; draw i depends on (seed, i) only.

        `indices` (int64, (B,)) are the draws to make instead, on their device.
        """
        index = torch.arange(n, device=device) if indices is None else indices
        draw = philox.normal(seed, index, tuple(shape), domain="prior", dtype=dtype)
        return draw * self.prior_std(t).to(dtype).item()

    def kl_to_prior(self, mean: Time = 0.0, var: Time = 1.0, t: float | None = None) -> Tensor:
        """What is forgotten at T: KL(p_T || prior) in nats for a coordinate of data with law N(mean, var).

        1/2 (r - 1 - log r + alpha^2 mean^2 / p^2) with r = (alpha^2 var + sigma^2) / p^2 and p the prior's std.
        `var=0` gives the prior loss of a data point of value `mean` (the ELBO's first term, book Thm 2.2.3).
        """
        t_ = as_time(self.T if t is None else t)
        mean, var = as_time(mean), as_time(var)
        alpha2, sigma2, p2 = self.alpha(t_) ** 2, self.sigma(t_) ** 2, self.prior_std(t_) ** 2
        excess = (alpha2 * var + (sigma2 - p2)) / p2
        return 0.5 * (excess - torch.log1p(excess) + alpha2 * mean**2 / p2)

    def _check_decreasing(self, points: int = 1025) -> None:
        """Refuse a schedule whose lam does not decrease (then g^2 < 0 somewhere, Lemma 4.4.1)."""
        t = torch.linspace(0.0, self.T, points, dtype=torch.float64)
        alpha, sigma, lam = self.alpha(t), self.sigma(t), self.lam(t)
        name = type(self).__name__
        if not bool((alpha[:-1] > 0).all() & (sigma[1:] > 0).all() & (alpha[-1] >= 0) & (sigma[0] >= 0)):
            raise ConfigError(f"{name}: alpha must be positive before T and sigma after 0, on [0, {self.T}]")
        bad = ~(lam[1:] < lam[:-1])
        if bool(bad.any()):
            where = float(t[1:][bad][0])
            raise ConfigError(f"{name}: lam = log(alpha/sigma) must decrease in t, and does not near t={where:.4g}")


def bisect_time(process: Process, lam: Tensor, low: float, high: float) -> Tensor:
    """Invert `process.lam` by bisection on [low, high] to the last float64 bit; +-inf give the ends."""
    below = torch.full_like(lam, low)
    above = torch.full_like(lam, high)
    steps = 60 + max(0, math.ceil(math.log2(max(high - low, 1.0))))
    for _ in range(steps):
        middle = 0.5 * (below + above)
        early = process.lam(middle) > lam  # still too much signal: the time is later
        below, above = torch.where(early, middle, below), torch.where(early, above, middle)
    return torch.where(lam == math.inf, torch.full_like(lam, low), 0.5 * (below + above))
