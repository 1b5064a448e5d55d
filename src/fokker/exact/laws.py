"""Laws of data whose every diffusion quantity is known: a Gaussian, and mixtures of Gaussians."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import BeforeValidator
from torch import Tensor

from ..component import Array, component
from ..errors import ConfigError
from ..process import Process
from .channel import Core, Mixture
from .denoisers import ExactDenoiser
from .families import Family, LowRank, Spectral
from .maps import normal_map, quantile_map
from .marginal import Marginal

__all__ = ["Gaussian", "GaussianMixture", "Law", "Moments"]

# torch reads a bare Python float as float32; numpy keeps all its digits.
Numbers = Annotated[Array, BeforeValidator(lambda given: np.float64(given) if isinstance(given, float) else given)]
DENSE = 64
"""Up to this dimension a low-rank covariance is diagonalised whole, which is both faster and solves any diagonal."""


class Moments(NamedTuple):
    """The mean, of the event's shape, and the covariance (d, d) of the flattened event; float64 on the CPU."""

    mean: Tensor
    cov: Tensor


class Law:
    """What every exact law can do."""

    _core: Core
    shape: tuple[int, ...]

    def at(self, process: Process, t: float | Tensor) -> Marginal:
        """The law of x_t = alpha(t) x_0 + sigma(t) eps, with density, score, Hessian, posterior and reverse kernel.

        Args:
            t: a number in [0, T], or (B,): one time for each row of every x that the marginal is given.
        """
        return Marginal(self._core, self.shape, process, t)

    def denoiser(self, process: Process) -> ExactDenoiser:
        """The exact denoiser of this law in `process`."""
        return ExactDenoiser(self._core, self.shape, process, self)

    def sample(
        self,
        n: int,
        seed: int = 0,
        *,
        index: Tensor | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """n draws (n, *event); draw i depends on (seed, i) only, or on (seed, index[i]) if `index` (n,) is given."""
        return self._clean().sample(n, seed, index=index, device=device, dtype=dtype)

    def sample_labels(self, n: int, seed: int = 0, *, index: Tensor | None = None) -> Tensor:
        """The classes (n,) of `sample`'s draws. Raises ConfigError without labels."""
        if not self._core.n_classes:
            raise ConfigError(f"{type(self).__name__} has no labels: give `labels`, one class for each part")
        index = torch.arange(n) if index is None else index
        return self._core.to(index.device, torch.float64).draw_class(seed, index)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) of the data itself in nats, (B,)."""
        return self._clean().log_prob(x)

    def moments(self) -> Moments:
        """The mean and the covariance."""
        mean, cov = self._core.moments()
        return Moments(mean.reshape(self.shape), cov)

    @property
    def n_classes(self) -> int:
        """The number of classes, 0 without labels."""
        return self._core.n_classes

    def _clean(self) -> Marginal:
        return Marginal(self._core, self.shape, None, 0.0)


def _spread(owner: str, means: Tensor, covs: Tensor, factors: Tensor | None = None) -> Family:
    """The family of covariances given as (K, d, d), (K, d) or (K,), with factors (K, d, r) or without."""
    k, d = means.shape
    if covs.shape not in ((k, d, d), (k, d), (k,)):
        allowed = f"({k},) variances, ({k}, {d}) diagonals or ({k}, {d}, {d}) matrices"
        raise ConfigError(f"{owner}: given shape {tuple(covs.shape)}, must be {allowed}")
    values = covs if covs.ndim != 1 else covs[:, None]
    if factors is not None:
        if covs.ndim == 3 or factors.ndim != 3 or factors.shape[:2] != (k, d):
            given = f"factors {tuple(factors.shape)} with covs {tuple(covs.shape)}"
            raise ConfigError(f"{owner}: given {given}, must be ({k}, {d}, r) with ({k},) or ({k}, {d})")
        if d > DENSE and 2 * factors.shape[2] < d:
            _nonnegative(owner, values)
            return LowRank(means, values, factors)
        _nonnegative(owner, values)
        covs = torch.diag_embed(values.expand(k, d)) + factors @ factors.mT
    if covs.ndim < 3:
        _nonnegative(owner, values)
        return Spectral(means, values)
    size = covs.abs().amax((-2, -1)).clamp(min=1e-300)
    skew = (covs - covs.mT).abs().amax((-2, -1))
    if bool((skew > 1e-9 * size).any()):
        raise ConfigError(f"{owner}: matrix {int((skew / size).argmax())} is not symmetric, must be a covariance")
    values, basis = torch.linalg.eigh(0.5 * (covs + covs.mT))
    low = values.amin(-1)
    if bool((low < -1e-9 * size).any()):
        worst = int(low.argmin())
        raise ConfigError(
            f"{owner}: matrix {worst} has the eigenvalue {float(low[worst]):.3g}, must be positive semidefinite"
        )
    return Spectral(means, values.clamp(min=0.0), basis)


def _nonnegative(owner: str, values: Tensor) -> None:
    if bool((values < 0).any()):
        raise ConfigError(f"{owner}: given a variance of {float(values.min()):.6g}, must be 0 or more")


def label_tensor(owner: str, labels: Array | None, n: int) -> Tensor | None:
    """Labels as int64 (n,). Raises ConfigError unless they are 0..C-1 with every class present."""
    if labels is None:
        return None
    value = labels.value
    if value.shape != (n,):
        raise ConfigError(f"{owner}.labels: given shape {tuple(value.shape)}, must be ({n},)")
    numbers = value.long()
    if bool((numbers != value).any()) or int(numbers.min()) < 0:
        raise ConfigError(f"{owner}.labels: must be integers from 0")
    missing = (numbers.bincount() == 0).nonzero().flatten()
    if len(missing):
        raise ConfigError(f"{owner}.labels: class {int(missing[0])} has no member: number the classes 0 to C-1")
    return numbers


@component
class Gaussian(Law):
    """The normal law N(mean, cov).

    Args:
        mean: (d,).
        cov: a variance () shared by all coordinates, variances (d,), or a covariance matrix (d, d); may be singular.

    Raises:
        ConfigError: wrong shapes, a negative variance, a matrix that is not symmetric positive semidefinite.
    """

    mean: Array
    cov: Numbers

    def __post_init__(self) -> None:
        if self.mean.value.ndim != 1 or not len(self.mean):
            raise ConfigError(f"Gaussian.mean: given shape {tuple(self.mean.shape)}, must be (d,)")
        family = _spread("Gaussian.cov", self.mean.value[None], self.cov.value[None])
        object.__setattr__(self, "_core", Mixture(torch.ones(1, dtype=torch.float64), family))
        object.__setattr__(self, "shape", tuple(self.mean.shape))

    def flow_map(self, process: Process, x: Tensor, s: float | Tensor, t: float | Tensor) -> Tensor:
        """The probability-flow ODE from x at time s to time t: m_t + V_t^{1/2} V_s^{-1/2} (x - m_s).

        V_s and V_t share their eigenvectors. Times are numbers or (B,), in any order, ends included.
        Source: book Sec. 4.1.6 (Gaussian testbed II), for full covariances.
        """
        return normal_map(self._core, process, x, s, t)


@component
class GaussianMixture(Law):
    """The mixture sum_k w_k N(mu_k, Sigma_k).

    Args:
        weights: (K,), positive, of sum 1 to 1e-9.
        means: (K, d).
        covs: variances (K,), diagonals (K, d) or matrices (K, d, d); may be singular.
        factors: (K, d, r): Sigma_k = F_k F_k^T + the variances or diagonals `covs`; cheap in any d (Woodbury).
        labels: (K,), the class 0..C-1 of each component, for class-conditional laws.

    Raises:
        ConfigError: wrong shapes or values; the message names the field.
    """

    weights: Array
    means: Array
    covs: Array
    factors: Array | None = None
    labels: Array | None = None

    def __post_init__(self) -> None:
        weights, means = self.weights.value, self.means.value
        if weights.ndim != 1 or not len(weights):
            raise ConfigError(f"GaussianMixture.weights: given shape {tuple(weights.shape)}, must be (K,)")
        if bool((weights <= 0).any()) or abs(float(weights.sum()) - 1.0) > 1e-9:
            raise ConfigError(
                f"GaussianMixture.weights: given least {float(weights.min()):.6g} and sum {float(weights.sum()):.12g}, "
                "must be positive with sum 1 to 1e-9: they are not normalised for you"
            )
        if means.ndim != 2 or len(means) != len(weights) or not means.shape[1]:
            raise ConfigError(f"GaussianMixture.means: given shape {tuple(means.shape)}, must be ({len(weights)}, d)")
        factors = None if self.factors is None else self.factors.value
        family = _spread("GaussianMixture.covs", means, self.covs.value, factors)
        labels = label_tensor("GaussianMixture", self.labels, len(weights))
        object.__setattr__(self, "_core", Mixture(weights, family, labels))
        object.__setattr__(self, "shape", tuple(means.shape[1:]))

    @property
    def mean(self) -> Tensor:
        """sum_k w_k mu_k, (d,), float64."""
        return self.moments().mean

    @property
    def cov(self) -> Tensor:
        """The covariance (d, d), float64."""
        return self.moments().cov

    def given(self, label: int) -> GaussianMixture:
        """The law of one class: its components with their weights renormalised."""
        if not 0 <= label < self.n_classes:
            raise ConfigError(f"given: class {label}; allowed: 0 to {self.n_classes - 1}")
        assert self.labels is not None
        part = self.labels.value == label
        weights = self.weights.value[part]
        factors = None if self.factors is None else Array(self.factors.value[part])
        arrays = (Array(weights / weights.sum()), Array(self.means.value[part]), Array(self.covs.value[part]))
        return GaussianMixture(*arrays, factors=factors)

    def flow_map(self, process: Process, x: Tensor, s: float | Tensor, t: float | Tensor) -> Tensor:
        """The probability-flow ODE from x (B, d) at time s to time t: in one dimension, F_t(x_t) = F_s(x_s).

        Solved to about 1e-12 in float64 on the shorter tail (no digits are lost far out); a mixture of one component
        has its closed form in any dimension. Times are numbers or (B,), in any order, ends included.
        Source: book Sec. 4.1.4 (trajectories keep their quantile).

        Raises:
            ConfigError: several components in more than one dimension, or a point mass at either time.
        """
        if len(self.weights) == 1:
            return normal_map(self._core, process, x, s, t)
        if self.shape != (1,):
            raise ConfigError(f"flow_map: a mixture has a closed form in one dimension only (given d={self.shape[0]})")
        return quantile_map(self._core, process, x, s, t)
