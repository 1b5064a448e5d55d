"""Transport distances between two clouds of points: exact, sliced and regularised.

All of n points each; W of n points is above W of their laws (by about n^(-1/D) in D dimensions), so it is read beside
its floor: the same distance between two clouds of real data of the same size (`fokker.metrics.evaluate`).
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from .. import noise as philox
from ..errors import ConfigError, MissingExtraError
from .pairs import clouds, squared_distances

__all__ = ["sinkhorn_divergence", "sliced_w2", "wasserstein"]

MISPLACED = 0.01  # the share of a plan's mass at which its cost is no longer believed


def wasserstein(x: Tensor, y: Tensor, p: float = 2.0) -> Tensor:
    """The exact p-Wasserstein distance of two equal clouds: (min over permutations pi of mean |x_i - y_pi(i)|^p)^(1/p).

    Solved as an assignment, O(n^3): a second at n = 2000, and half a minute at 10,000; in one dimension by sorting.

    Args:
        x, y: clouds (N, *event) of equal size and shape.
        p: at least 1.

    Returns:
        A float64 number.

    Raises:
        ConfigError: unequal clouds or p < 1.
    Source: book Sec. 7.2.1; scipy's `linear_sum_assignment` (Crouse 2016).
    """
    from scipy.optimize import linear_sum_assignment

    a, b = clouds(x, y, "wasserstein")
    if len(a) != len(b):
        raise ConfigError(f"wasserstein: given {len(a)} and {len(b)} points, must be equal: take as many of each")
    if not p >= 1:
        raise ConfigError(f"wasserstein: given p={p}, must be at least 1")
    if a.shape[1] == 1:
        distance = (a.sort(dim=0).values - b.sort(dim=0).values).abs()[:, 0]
    else:
        cost = squared_distances(a, b).pow_(p / 2)
        rows, columns = linear_sum_assignment(cost.cpu().numpy())
        distance = (a[torch.from_numpy(rows)] - b[torch.from_numpy(columns)]).norm(dim=1)
    return distance.pow(p).mean().pow(1 / p)


def sliced_w2(x: Tensor, y: Tensor, *, projections: int = 256, seed: int = 0) -> Tensor:
    """The sliced 2-Wasserstein distance sqrt(E_u W2^2(<u, x>, <u, y>)), u uniform on the sphere.

    In one dimension W2 is the distance between sorted values (book Sec. 7.2.1); between clouds of n and m points it is
    the integral of the squared difference of their quantile functions, steps at multiples of 1/n and 1/m.

    Args:
        x, y: clouds (N, *event) and (M, *event).
        projections: directions, at least 1, drawn by `seed`; the standard error falls like its inverse square root.

    Returns:
        A number in the dtype of x.

    Raises:
        ConfigError: clouds of different events, or empty ones; or no projections.
    """
    if projections < 1:
        raise ConfigError(f"sliced_w2: given projections={projections}, must be at least 1")
    if x.shape[1:] != y.shape[1:] or x.ndim < 2 or 0 in (len(x), len(y)):
        given = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ConfigError(f"sliced_w2: given shapes {given}, must be (N, *event) and (M, *event) with one event")
    a, b = x.flatten(1), y.flatten(1)
    rows = torch.arange(projections, device=x.device)
    u = philox.normal(seed, rows, (a.shape[1],), domain="probe", dtype=a.dtype)
    u = u / u.norm(dim=1, keepdim=True)
    first, second = (a @ u.T).sort(dim=0).values, (b @ u.T).sort(dim=0).values
    if len(a) == len(b):
        distance: Tensor = (first - second).square().mean().sqrt()
        return distance
    n, m = len(a), len(b)
    # The steps of both quantile functions as integers over n m; every interval lies in one step of each.
    steps = torch.cat([torch.arange(n, device=x.device) * m, torch.arange(m, device=x.device) * n]).sort().values
    width = torch.diff(steps, append=steps.new_tensor([n * m])).to(a.dtype) / (n * m)
    gap = first[steps // m] - second[steps // n]
    unequal: Tensor = (width @ gap.square()).mean().sqrt()
    return unequal


def sinkhorn_divergence(x: Tensor, y: Tensor, *, epsilon: float = 0.1, iterations: int = 2000) -> Tensor:
    """The debiased Sinkhorn divergence S(x, y) = OT_eps(x, y) - (OT_eps(x, x) + OT_eps(y, y)) / 2, squared cost.

        OT_eps(a, b) = min_P <P, |x - y|^2> + epsilon KL(P | a b) = <a, f> + <b, g> at the optimal potentials

    It runs from W2^2 (epsilon to 0) to |mean x - mean y|^2 (epsilon to infinity), is never negative, and 0 only for
    equal clouds. In the logarithmic domain, so a small epsilon costs iterations but does not underflow.

    Args:
        x, y: clouds (N, *event) and (M, *event).
        epsilon: > 0, in units of squared distance.
        iterations: at most, of each of the three problems; where these are too few, a RuntimeWarning says so.

    Returns:
        A float64 number.

    Raises:
        MissingExtraError: POT is not installed (extra `ot`).
        ConfigError: clouds of different events, or epsilon <= 0.
    Source: Feydy et al. 2019 (Eq. 3); solver: POT's `sinkhorn_log`.
    """
    try:
        from ot.bregman import sinkhorn_log
    except ImportError:
        raise MissingExtraError("POT", "ot") from None
    a, b = clouds(x, y, "sinkhorn_divergence")
    if not epsilon > 0:
        raise ConfigError(f"sinkhorn_divergence: given epsilon={epsilon}, must be > 0")

    def cost(first: Tensor, second: Tensor) -> Tensor:
        matrix = squared_distances(first, second)
        mass = [torch.full((len(part),), 1 / len(part), dtype=a.dtype, device=a.device) for part in (first, second)]
        _, log = sinkhorn_log(*mass, matrix, epsilon, numItermax=iterations, stopThr=1e-7, log=True, warn=False)
        misplaced = float(log["err"][-1]) * len(second) ** 0.5  # at least the L1 norm of what a marginal is off by
        if not misplaced < MISPLACED:
            warnings.warn(
                f"sinkhorn_divergence: after iterations={iterations} up to {misplaced:.1%} of the mass is misplaced: "
                f"raise iterations, or epsilon={epsilon:.3g}",
                RuntimeWarning,
                stacklevel=3,
            )
        f, g = (log[name] - weight.log() for name, weight in zip(("log_u", "log_v"), mass, strict=True))
        total: Tensor = epsilon * (f.mean() + g.mean())
        return total

    return cost(a, b) - (cost(a, a) + cost(b, b)) / 2
