r"""How far two laws are apart: f-divergences and the Fisher divergence, exact, by quadrature or by Monte Carlo.

    (1)  D_f(p, q) = int q f(p / q) dx,     f convex, f(1) = 0          (the convention of Eq. 1.1.4: q outside)
    (2)  kl          f = u log u            E_p[log p - log q]
         reverse_kl  f = -log u             E_q[log q - log p]
         js          f = (u log u - (1 + u) log((1 + u) / 2)) / 2       at most log 2
         tv          f = |u - 1| / 2                                    at most 1
    (3)  fisher      E_p |grad log p - grad log q|^2                    (no 1/2; twice the score matching loss)
    (4)  D_f = E_m[q f(p / q) / m],  m = (p + q) / 2                    Monte Carlo, half of it from p, half from q

Source: book Sec. 1.1.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ..errors import ConfigError, closest
from ..exact import Gaussian, Marginal
from .grid import Grid
from .operators import Estimate, gradient

__all__ = ["DIVERGENCES", "Density", "discrete_divergence", "divergence_between", "gaussian_divergence"]

F = str | Callable[[Tensor], Tensor]


class Density(Protocol):
    """What is asked of a law: every law and marginal of `fokker.exact` has it."""

    def log_prob(self, x: Tensor, /) -> Tensor: ...

    def sample(self, n: int, seed: int = 0, *, dtype: torch.dtype = ...) -> Tensor: ...


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    # p log(p / q) is 0 where p is, whatever q.
    return torch.where(log_p == -math.inf, 0.0, log_p.exp() * (log_p - log_q))


def _middle(log_p: Tensor, log_q: Tensor) -> Tensor:
    return torch.logaddexp(log_p, log_q) - math.log(2.0)


def _js(log_p: Tensor, log_q: Tensor) -> Tensor:
    middle = _middle(log_p, log_q)
    return 0.5 * (_kl(log_p, middle) + _kl(log_q, middle))


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl": _kl,
    "reverse_kl": lambda log_p, log_q: _kl(log_q, log_p),
    "js": _js,
    "tv": lambda log_p, log_q: 0.5 * (log_p.exp() - log_q.exp()).abs(),
}
"""q f(p / q) of (log p, log q), by name; safe where either is 0."""


def _integrand(f: F) -> Callable[[Tensor, Tensor], Tensor]:
    if callable(f):
        function = f
        return lambda log_p, log_q: log_q.exp() * function((log_p - log_q).exp())
    if f not in DIVERGENCES:
        raise ConfigError(f"f: unknown divergence {f!r}: {closest(f, [*DIVERGENCES, 'fisher'])}")
    return DIVERGENCES[f]


def discrete_divergence(p: Tensor, q: Tensor, f: F = "kl") -> Tensor:
    """D_f of probabilities p and q (..., K), Eq. (1): (...,). KL is infinite where q is 0 and p is not.

    Args:
        p, q: of sum 1 over the last dimension.
        f: "kl", "reverse_kl", "js", "tv", or a function u -> f(u) of one's own (then q must be positive).

    Raises:
        ConfigError: an unknown name; a function with q = 0 somewhere.
    """
    if callable(f) and bool((q <= 0).any()):
        raise ConfigError("q: has zeros, where f(p / q) is not defined: give a positive q, or a divergence by name")
    return _integrand(f)(p.log(), q.log()).sum(-1)


def gaussian_divergence(mean_p: Tensor, cov_p: Tensor, mean_q: Tensor, cov_q: Tensor, f: str = "kl") -> Tensor:
    """ "kl", "reverse_kl" or "fisher" of N(mean_p, cov_p) from N(mean_q, cov_q), in closed form: ().

    KL = 1/2 (tr(Q^-1 P) - d + log det Q - log det P + |a|^2_{Q^-1}), a = mean_p - mean_q;
    Fisher = tr((Q^-1 - P^-1) P (Q^-1 - P^-1)) + |Q^-1 a|^2.

    Args:
        mean_p, mean_q: (d,). cov_p, cov_q: (d, d), positive definite.
    """
    if f == "reverse_kl":
        return gaussian_divergence(mean_q, cov_q, mean_p, cov_p)
    root = torch.linalg.cholesky(cov_q)
    away = mean_p - mean_q
    if f == "fisher":
        gap: Tensor = torch.cholesky_inverse(root) - torch.cholesky_inverse(torch.linalg.cholesky(cov_p))
        pull: Tensor = torch.cholesky_solve(away[:, None], root)
        spread: Tensor = gap @ cov_p * gap
        return spread.sum() + pull.square().sum()
    if f != "kl":
        raise ConfigError(f"f: {f!r} has no closed form for Gaussians: {closest(f, ['kl', 'reverse_kl', 'fisher'])}")
    root_p = torch.linalg.cholesky(cov_p)
    ratio: Tensor = torch.linalg.solve_triangular(root, torch.cat([root_p, away[:, None]], 1), upper=False)
    logs: Tensor = (root.diagonal().log() - root_p.diagonal().log()).sum()
    return 0.5 * (ratio.square().sum() - len(away)) + logs


def _moments(law: object) -> tuple[Tensor, Tensor] | None:
    """Mean (d,) and covariance of a Gaussian law or marginal, else None."""
    if isinstance(law, Gaussian):
        return law.moments().mean.reshape(-1), law.moments().cov
    if isinstance(law, Marginal) and law.t.ndim == 0 and len(getattr(law.core, "weights", ())) == 1:
        return law.mean.reshape(-1), law.cov
    return None


def divergence_between(
    p: Density, q: Density, f: F = "kl", *, grid: Grid | None = None, n: int | None = None, seed: int = 0
) -> Estimate:
    """D_f(p, q), or the Fisher divergence, of two laws with densities, in nats (where there is a logarithm).

    Args:
        p, q: laws or marginals of `fokker.exact` (or anything with log_prob and sample).
        f: "kl", "reverse_kl", "js", "tv", "fisher", or a convex function u -> f(u) with f(1) = 0.
        grid: quadrature over its cells (1-D and 2-D); for smooth densities that vanish at its border the error falls
            faster than any power of the cells' length. A function of one's own sees only cells where q > 0.
        n: Monte Carlo with n samples, Eq. (4), unbiased with a standard error; "fisher" draws all from p.
        seed: of the samples.

    Returns:
        Estimate, (); without grid and n the closed form, which "kl", "reverse_kl" and "fisher" have for Gaussians.

    Raises:
        ConfigError: neither grid, n nor a closed form; both grid and n; an unknown name.
    """
    if grid is not None and n is not None:
        raise ConfigError("divergence_between: give grid or n, not both")
    if f != "fisher":
        _integrand(f)
    zero = torch.zeros((), dtype=torch.float64)
    if grid is not None:
        return Estimate(_quadrature(p, q, f, grid), zero)
    if n is not None:
        return _monte_carlo(p, q, f, n, seed)
    first, second = _moments(p), _moments(q)
    if first is None or second is None or f not in ("kl", "reverse_kl", "fisher"):
        raise ConfigError(f"divergence_between: no closed form of {f!r} for these laws: give grid=Grid(...) or n=...")
    return Estimate(gaussian_divergence(*first, *second, str(f)), zero)


def _gap(p: Density, q: Density, x: Tensor) -> Tensor:
    gap = gradient(lambda x: p.log_prob(x) - q.log_prob(x), x)
    return gap.flatten(1).square().sum(1)


def _quadrature(p: Density, q: Density, f: F, grid: Grid) -> Tensor:
    x = grid.centres()
    log_p, log_q = p.log_prob(x), q.log_prob(x)
    if f == "fisher":
        return (log_p.exp() * _gap(p, q, x)).sum() * grid.volume
    values = _integrand(f)(log_p, log_q)
    if callable(f):
        values = torch.where(log_q.exp() > 0.0, values, 0.0)
    return values.sum() * grid.volume


def _monte_carlo(p: Density, q: Density, f: F, n: int, seed: int) -> Estimate:
    if n < 4:
        raise ConfigError(f"n: given {n}, must be 4 or more")
    if f == "fisher":
        values = _gap(p, q, p.sample(n, seed, dtype=torch.float64))
        return Estimate(values.mean(), values.std() / math.sqrt(n))
    form, parts = _integrand(f), []
    for law, many, key in ((p, n - n // 2, seed), (q, n // 2, seed + 1)):
        x = law.sample(many, key, dtype=torch.float64)
        log_p, log_q = p.log_prob(x), q.log_prob(x)
        middle = _middle(log_p, log_q)
        # Densities relative to their middle: q f(p / q) / m is homogeneous, and never underflows.
        parts.append(form(log_p - middle, log_q - middle))
    value = 0.5 * (parts[0].mean() + parts[1].mean())
    squared = sum(part.var() / len(part) for part in parts)
    return Estimate(value, 0.5 * torch.as_tensor(squared).sqrt())
