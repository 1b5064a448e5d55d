r"""What an observation x = alpha x_0 + sigma eps says, for x_0 from a mixture.

With responsibilities r_k = softmax_k(log w_k + log N(x; alpha mu_k, V_k)) and z_k = V_k^{-1} (x - alpha mu_k):

    (1)  score = -sum r_k z_k,                     E[eps | x] = sigma sum r_k z_k
    (2)  E[x_0 | x] = sum r_k m_k,                 m_k = mu_k + alpha Sigma_k z_k
    (3)  Hess log p = sum r_k (z_k z_k^T - V_k^{-1}) - score score^T
    (4)  Cov[x_0 | x] = sum r_k (C_k + (m_k - m)(m_k - m)^T),   C_k = sigma^2 Sigma_k V_k^{-1}

Nothing is divided by alpha or sigma, so (1) right and (2) hold at both ends. Source: book Sec. 4.1.6 (mixture oracle).
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from .. import noise
from ..component import untransformed
from ..errors import ConfigError
from ..noise import Seed
from .families import Family, lift
from .rows import total

__all__ = ["Channel", "Core", "Mixture", "MixtureChannel", "class_table", "pick_one"]


class Channel(Protocol):
    """A batch of observations and all that follows from it; vectors (B, d), matrices (B, d, d)."""

    def log_prob(self) -> Tensor: ...
    def score(self) -> Tensor: ...
    def x0(self) -> Tensor: ...
    def noise(self) -> Tensor: ...
    def hessian(self) -> Tensor: ...
    def laplacian(self) -> Tensor: ...
    def x0_cov(self) -> Tensor: ...
    def classes(self) -> Tensor: ...
    def pick(self, seed: Seed, index: Tensor, draw: int) -> Tensor: ...


class Core(Protocol):
    """A law of x_0 on flat vectors (d,), on one device and in one dtype."""

    dim: int
    n_classes: int

    def to(self, device: torch.device, dtype: torch.dtype) -> Core: ...
    def channel(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Tensor | None = None) -> Channel: ...
    def rows(self, x: Tensor) -> int: ...  # how many rows of x fit into bounded memory
    def draw(self, seed: Seed, index: Tensor) -> Tensor: ...  # x_0, (B, d), and its component's number
    def draw_class(self, seed: Seed, index: Tensor) -> Tensor: ...
    def moments(self) -> tuple[Tensor, Tensor]: ...  # float64 on the CPU


def class_table(labels: Tensor, weights: Tensor) -> Tensor:
    """log p(k | class) for every class, and in the last row log w_k: (C + 1, K)."""
    member = labels == torch.arange(int(labels.max()) + 1, device=labels.device)[:, None]
    inside = torch.where(member, weights, 0.0)
    return torch.cat([inside / inside.sum(-1, keepdim=True), weights[None]]).log()


def pick_one(weights: Tensor, u: Tensor) -> Tensor:
    """The component that u in (0, 1) selects by the cumulative weights (B, K) or (K,): (B,)."""
    below = weights.double().cumsum(-1)
    return (below < u * below[..., -1:]).sum(-1).clamp(max=weights.shape[-1] - 1)


class Mixture:
    """A mixture of normals: weights (K,) float64, a family, and a class for every component or None."""

    def __init__(self, weights: Tensor, family: Family, labels: Tensor | None = None) -> None:
        self.weights, self.family, self.labels = weights, family, labels
        self.dim: int = family.means.shape[1]
        dtype = family.means.dtype
        self.log_weights = weights.log().to(dtype)
        self.n_classes = 0
        if labels is not None:
            self.n_classes = int(labels.max()) + 1
            self.table = class_table(labels, weights).to(dtype)
            self.member = (labels == torch.arange(self.n_classes, device=labels.device)[:, None]).to(dtype)
        self._casts: dict[tuple[torch.device, torch.dtype], Mixture] = {}

    def to(self, device: torch.device, dtype: torch.dtype) -> Mixture:
        key = (device, dtype)
        if key not in self._casts:
            with untransformed():
                labels = None if self.labels is None else self.labels.to(device)
                self._casts[key] = Mixture(self.weights.to(device), self.family.to(device, dtype), labels)
        return self._casts[key]

    def channel(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Tensor | None = None) -> MixtureChannel:
        return MixtureChannel(self, x, alpha, sigma, cond)

    def rows(self, x: Tensor) -> int:
        return max(32, 2**22 // (len(self.weights) * self.dim) // 32 * 32)

    def _chosen(self, k: Tensor, dtype: torch.dtype) -> Tensor:
        return (k[:, None] == torch.arange(len(self.weights), device=k.device)).to(dtype)

    def _component(self, seed: Seed, index: Tensor) -> Tensor:
        u = noise.uniform(seed, index, (1,), draw=0, domain="data", dtype=torch.float64)
        return pick_one(self.weights, u)

    def draw(self, seed: Seed, index: Tensor) -> Tensor:
        k, dtype = self._component(seed, index), self.family.means.dtype
        normal = noise.normal(seed, index, (self.family.width,), draw=1, domain="data", dtype=dtype)
        return self.family.means[k] + self.family.draw(self._chosen(k, dtype), normal)

    def draw_class(self, seed: Seed, index: Tensor) -> Tensor:
        assert self.labels is not None
        return self.labels[self._component(seed, index)]

    def moments(self) -> tuple[Tensor, Tensor]:
        exact = self.to(torch.device("cpu"), torch.float64)
        w, means = exact.weights, exact.family.means
        mean = w @ means
        away = means - mean
        return mean, (w[:, None, None] * exact.family.covs()).sum(0) + (w[:, None] * away).mT @ away


class MixtureChannel:
    """Eqs. (1) to (4) for a batch x (B, d)."""

    def __init__(self, core: Mixture, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Tensor | None = None) -> None:
        self.core, self.x, self.alpha, self.sigma = core, x, alpha, sigma
        self.solved = core.family.solve(x, alpha, sigma)
        log_weights = core.log_weights
        if cond is not None:
            log_weights = core.table[torch.where(cond < 0, core.n_classes, cond)]
        self.logits = log_weights - 0.5 * (self.solved.quad() + self.solved.logdet())
        self.weights = self.logits.softmax(-1)

    def log_prob(self) -> Tensor:
        return self.logits.logsumexp(-1) - 0.5 * self.core.dim * math.log(2.0 * math.pi)

    def score(self) -> Tensor:
        return -self.solved.fold(self.weights, "inverse")

    def noise(self) -> Tensor:
        return self.solved.fold(self.weights, "noise")

    def x0(self) -> Tensor:
        return self._centre(self.weights) + self.solved.fold(self.weights, "gain")

    def _centre(self, weights: Tensor) -> Tensor:
        return total(weights[..., None] * self.core.family.means, 1)

    def laplacian(self) -> Tensor:
        inside = (self.weights * (self.solved.squares() - self.solved.trace())).sum(-1)
        return inside - self.score().square().sum(-1)

    def hessian(self) -> Tensor:
        z, score = self.solved.each("inverse"), self.score()
        weights = self.weights[..., None, None]
        inside = (weights * (z[..., :, None] * z[..., None, :] - self.solved.inverse())).sum(1)
        return inside - score[:, :, None] * score[:, None, :]

    def means(self) -> Tensor:
        """m_k of Eq. (2), (B, K, d)."""
        return self.core.family.means + self.solved.each("gain")

    def covs(self) -> Tensor:
        """C_k of Eq. (4), (B, K, d, d)."""
        covs = lift(self.sigma, self.x, 3) ** 2 * (self.core.family.covs() @ self.solved.inverse())
        return (0.5 * (covs + covs.mT)).expand(len(self.x), *self.core.family.means.shape, self.core.dim)

    def x0_cov(self) -> Tensor:
        away = self.means() - self.x0()[:, None, :]
        return (self.weights[..., None, None] * (self.covs() + away[..., :, None] * away[..., None, :])).sum(1)

    def classes(self) -> Tensor:
        if not self.core.n_classes:
            raise ConfigError("classify: this mixture has no labels: give `labels`, one class per component")
        return (self.weights[:, None, :] * self.core.member).sum(-1)

    def pick(self, seed: Seed, index: Tensor, draw: int) -> Tensor:
        """x_0 given x by Matheron's rule: a draw of the prior, corrected by what it fails to explain of x."""
        core, family = self.core, self.core.family
        u = noise.uniform(seed, index, (1,), draw=draw << 8, domain="posterior", dtype=torch.float64)
        k = pick_one(self.weights, u)
        chosen = core._chosen(k, self.x.dtype)
        size = (family.width + core.dim,)
        normal = noise.normal(seed, index, size, draw=draw << 8 | 1, domain="posterior", dtype=self.x.dtype)
        prior, eps = family.draw(chosen, normal[:, : family.width]), normal[:, family.width :]
        rest = self.x - lift(self.alpha, self.x, 1) * prior - lift(self.sigma, self.x, 1) * eps
        return family.means[k] + prior + family.solve(rest, self.alpha, self.sigma).fold(chosen, "gain")
