r"""K normal laws N(mu_k, Sigma_k) seen through x = alpha x_0 + sigma eps, solved at any (alpha, sigma) of a batch.

With y_k = x - alpha mu_k and V_k = alpha^2 Sigma_k + sigma^2 I every diffusion quantity needs V_k^{-1} y_k only:

    (1)  -grad log N = V^{-1} y,    E[eps | x] = sigma V^{-1} y,    E[x_0 | x] = mu + alpha Sigma V^{-1} y
    (2)  Spectral, Sigma = U diag(v) U^T:        V^{-1} = U diag(1 / c) U^T,   c = alpha^2 v + sigma^2
    (3)  LowRank,  Sigma = D + F F^T (Woodbury): A = alpha^2 D + sigma^2,      M = I + alpha^2 F^T A^{-1} F,
         h = M^{-1} F^T A^{-1} y = F^T V^{-1} y,  V^{-1} y = A^{-1} (y - alpha^2 F h),
         y^T V^{-1} y = |A^{1/2} V^{-1} y|^2 + alpha^2 |h|^2          (a sum of squares: no digits cancel)

Constants are made once in float64; tables in time are computed in float64 and then cast to the dtype of x.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from .rows import Rows, total

__all__ = ["Family", "LowRank", "Solved", "Spectral", "lift"]

What = Literal["inverse", "noise", "gain"]


def lift(coefficient: Tensor, like: Tensor, dims: int, dtype: torch.dtype | None = None) -> Tensor:
    """A coefficient () or (B,) ready to multiply (B, ...) with `dims` trailing dimensions.

    A 0-dim CPU tensor multiplies a tensor on any device without a copy, so it stays where it is.
    """
    if coefficient.ndim == 0:
        return coefficient
    return coefficient.to(like.device, dtype or like.dtype).reshape(-1, *(1,) * dims)


def _floor(dtype: torch.dtype, scale: float | None = None) -> float:
    # Where V itself is 0 (a point mass at sigma = 0) y is 0 as well; the floor makes 0 / 0 the limit 0 and gives all
    # weight to the atom. Rotated coordinates of y are only known to eps * scale, so there the floor is that.
    if scale is not None:
        return (8.0 * torch.finfo(dtype).eps * scale) ** 2
    return 1e-200 if dtype == torch.float64 else 1e-26


class Solved(Protocol):
    """A batch x solved against all K normals; `fold` sums over k with weights (B, K)."""

    def quad(self) -> Tensor: ...  # y^T V^{-1} y, (B, K)
    def logdet(self) -> Tensor: ...  # log det V, (K,) or (B, K)
    def fold(self, weights: Tensor, what: What) -> Tensor: ...  # sum_k weights_k H_k y_k, (B, d), without the mean
    def each(self, what: What) -> Tensor: ...  # H_k y_k, (B, K, d)
    def squares(self) -> Tensor: ...  # |V^{-1} y|^2, (B, K)
    def trace(self) -> Tensor: ...  # tr V^{-1}, (K,) or (B, K)
    def inverse(self) -> Tensor: ...  # V^{-1}, (K, d, d) or (B, K, d, d)


class Family(Protocol):
    """K means and covariances on one device, in one dtype."""

    means: Tensor
    width: int

    def to(self, device: torch.device, dtype: torch.dtype) -> Family: ...
    def solve(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Solved: ...
    def covs(self) -> Tensor: ...  # Sigma, (K, d, d)
    def draw(self, chosen: Tensor, normal: Tensor) -> Tensor: ...  # N(0, Sigma_k) for one-hot (B, K), from (B, width)


class Spectral:
    """Covariances by eigenvalues, Eq. (2).

    Args:
        means: (K, d) float64.
        values: eigenvalues, (K, d), or (K, 1) for multiples of the identity; float64.
        basis: orthonormal columns U, (K, d, d), or None for the axes.
    """

    def __init__(
        self, means: Tensor, values: Tensor, basis: Tensor | None = None, dtype: torch.dtype = torch.float64
    ) -> None:
        self.exact = (means, values, basis)
        self.means, self.values, self.basis = means.to(dtype), values, basis
        self.dim = self.width = means.shape[1]
        self.floor = _floor(dtype)
        if basis is not None:
            centre = means.mean(0)
            away = means - centre
            scale = float((away.abs().amax() + values.amax().sqrt()).clamp(min=1e-30))
            self.floor = _floor(dtype, scale)
            self.centre = centre.to(dtype)
            self.placed = (away[:, None, :] @ basis)[:, 0].to(dtype)
            flat = basis.permute(1, 0, 2).flatten(1).to(dtype)
            self.analyse, self.synthesise = Rows(flat), Rows(flat.mT)
            self.sides = [Rows(side.mT.to(dtype)) for side in basis]

    def to(self, device: torch.device, dtype: torch.dtype) -> Spectral:
        means, values, basis = self.exact
        moved = None if basis is None else basis.to(device)
        return Spectral(means.to(device), values.to(device), moved, dtype)

    def solve(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> SolvedSpectral:
        return SolvedSpectral(self, x, alpha, sigma)

    def covs(self) -> Tensor:
        values = self.values.expand(-1, self.dim)
        dense = torch.diag_embed(values) if self.basis is None else (self.basis * values[:, None, :]) @ self.basis.mT
        return dense.to(self.means.dtype)

    def draw(self, chosen: Tensor, normal: Tensor) -> Tensor:
        scaled = (chosen[..., None] * self.values.sqrt().to(normal.dtype)) * normal[:, None, :]
        return scaled.sum(1) if self.basis is None else self.synthesise(scaled.flatten(1))


class SolvedSpectral:
    """Eq. (2) for a batch."""

    def __init__(self, family: Spectral, x: Tensor, alpha: Tensor, sigma: Tensor) -> None:
        self.family, self.x = family, x
        self.alpha, self.sigma = (lift(a, x, 2, torch.float64) for a in (alpha, sigma))
        self.c = (self.alpha**2 * family.values + self.sigma**2).clamp(min=family.floor)
        scale = lift(alpha, x, 2)
        if family.basis is None:
            self.y = x[:, None, :] - scale * family.means
        else:
            moved = x - lift(alpha, x, 1) * family.centre
            self.y = family.analyse(moved).reshape(len(x), *family.means.shape) - scale * family.placed

    def _row(self, table: Tensor) -> Tensor:
        return table.to(self.x.dtype)

    def quad(self) -> Tensor:
        precision = self._row(1.0 / self.c)
        if precision.shape[-1] == 1:
            return total(self.y.square(), -1) * precision[..., 0]
        return total(self.y.square() * precision, -1)

    def logdet(self) -> Tensor:
        return self._row(self.c.log().sum(-1) * (self.family.dim / self.c.shape[-1]))

    def _table(self, what: What) -> Tensor:
        if what == "inverse":
            return self._row(1.0 / self.c)
        return self._row((self.sigma if what == "noise" else self.alpha * self.family.values) / self.c)

    def fold(self, weights: Tensor, what: What) -> Tensor:
        rows = (weights[..., None] * self._table(what)) * self.y
        return total(rows, 1) if self.family.basis is None else self.family.synthesise(rows.flatten(1))

    def each(self, what: What) -> Tensor:
        rows = self._table(what) * self.y
        if self.family.basis is None:
            return rows
        return torch.stack([side(rows[:, k]) for k, side in enumerate(self.family.sides)], dim=1)

    def squares(self) -> Tensor:
        return (self._table("inverse") * self.y).square().sum(-1)

    def trace(self) -> Tensor:
        return self._row((1.0 / self.c).sum(-1) * (self.family.dim / self.c.shape[-1]))

    def inverse(self) -> Tensor:
        values = (1.0 / self.c).expand(*self.c.shape[:-1], self.family.dim)
        basis = self.family.basis
        return self._row(torch.diag_embed(values) if basis is None else (basis * values[..., None, :]) @ basis.mT)


class LowRank:
    """Covariances D + F F^T, Eq. (3); nothing of size d x d is formed outside `covs` and `inverse`.

    Args:
        means: (K, d) float64.
        diagonal: D, (K, d), or (K, 1) for multiples of the identity; float64, >= 0.
        factors: F, (K, d, r) float64.
    """

    def __init__(
        self, means: Tensor, diagonal: Tensor, factors: Tensor, dtype: torch.dtype = torch.float64, turned: bool = False
    ) -> None:
        self.isotropic = diagonal.shape[1] == 1
        if not self.isotropic:
            # LAPACK's bits depend on where a matrix starts in memory: whole cache lines keep every sample's alike.
            factors = functional.pad(factors, (0, -factors.shape[2] % 8))
        if self.isotropic and not turned:
            # F F^T does not change when F is rotated from the right; with orthogonal columns M is diagonal.
            left, values, _ = torch.linalg.svd(factors, full_matrices=False)
            factors = left * values[:, None, :]
        self.exact = (means, diagonal, factors)
        self.means, self.diagonal, self.factors = means.to(dtype), diagonal, factors
        self.dim, self.rank = factors.shape[1:]
        self.width = self.dim + self.rank
        self.floor = _floor(dtype, float((means.abs().amax() + factors.abs().amax()).clamp(min=1e-30)))
        self.sizes = factors.square().sum(1)
        cast = factors.to(dtype)
        self.down, self.up = [Rows(f) for f in cast], [Rows(f.mT) for f in cast]
        self.synthesise = Rows(cast.permute(0, 2, 1).flatten(0, 1))

    def to(self, device: torch.device, dtype: torch.dtype) -> LowRank:
        means, diagonal, factors = self.exact
        return LowRank(means.to(device), diagonal.to(device), factors.to(device), dtype, turned=True)

    def solve(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> SolvedLowRank:
        return SolvedLowRank(self, x, alpha, sigma)

    def covs(self) -> Tensor:
        dense = torch.diag_embed(self.diagonal.expand(-1, self.dim)) + self.factors @ self.factors.mT
        return dense.to(self.means.dtype)

    def draw(self, chosen: Tensor, normal: Tensor) -> Tensor:
        spread = (chosen[..., None] * self.diagonal.sqrt().to(normal.dtype)) * normal[:, None, : self.dim]
        inside = chosen[..., None] * normal[:, None, self.dim :]
        return spread.sum(1) + self.synthesise(inside.flatten(1))


class SolvedLowRank:
    """Eq. (3) for a batch."""

    def __init__(self, family: LowRank, x: Tensor, alpha: Tensor, sigma: Tensor) -> None:
        self.family, self.x = family, x
        self.alpha, self.sigma = (lift(a, x, 2, torch.float64) for a in (alpha, sigma))
        self.a = (self.alpha**2 * family.diagonal + self.sigma**2).clamp(min=family.floor)
        self._capacitance()
        cast = self._row
        scale = lift(alpha, x, 2)
        y = x[:, None, :] - scale * family.means
        white = y * cast(1.0 / self.a)
        q = torch.stack([down(white[:, k]) for k, down in enumerate(family.down)], dim=1)
        inner = cast(self.m_inverse)
        self.h = q * inner if family.isotropic else (inner * q[..., None, :]).sum(-1)
        self.inside = torch.stack([up(self.h[:, k]) for k, up in enumerate(family.up)], dim=1)
        self.z = cast(1.0 / self.a) * (y - scale**2 * self.inside)

    def _row(self, table: Tensor) -> Tensor:
        return table.to(self.x.dtype)

    def _gram(self, power: int) -> Tensor:
        """F^T A^{-power} F, (K, r, r) or (B, K, r, r): a product of one shape for every sample."""
        factors = self.family.factors
        tables = self.a if self.a.ndim == 3 else self.a[None]
        grams = torch.stack([factors.mT @ (factors / a[..., None] ** power) for a in tables])
        return grams if self.a.ndim == 3 else grams[0]

    def _capacitance(self) -> None:
        if self.family.isotropic:
            m = 1.0 + self.alpha**2 * self.family.sizes / self.a
            self.m_inverse, self.m_logdet = 1.0 / m, m.log().sum(-1)
            return
        square = self.alpha if self.alpha.ndim == 0 else self.alpha[..., None]
        m = torch.eye(self.family.rank, dtype=torch.float64, device=self.x.device) + square**2 * self._gram(1)
        lower = torch.linalg.cholesky_ex(m).L  # cholesky() would wait for the device to check
        self.m_inverse = torch.cholesky_inverse(lower)
        self.m_logdet = 2.0 * lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def quad(self) -> Tensor:
        alpha = self.alpha if self.alpha.ndim == 0 else self._row(self.alpha[..., 0])
        return (self._row(self.a) * self.z.square()).sum(-1) + alpha**2 * self.h.square().sum(-1)

    def logdet(self) -> Tensor:
        return self._row(self.a.log().sum(-1) * (self.family.dim / self.a.shape[-1]) + self.m_logdet)

    def each(self, what: What) -> Tensor:
        if what == "inverse":
            return self.z
        if what == "noise":
            return self._row(self.sigma) * self.z if self.sigma.ndim else self.sigma * self.z
        alpha = self._row(self.alpha) if self.alpha.ndim else self.alpha
        return alpha * (self._row(self.family.diagonal) * self.z + self.inside)

    def fold(self, weights: Tensor, what: What) -> Tensor:
        return (weights[..., None] * self.each(what)).sum(1)

    def squares(self) -> Tensor:
        return self.z.square().sum(-1)

    def trace(self) -> Tensor:
        family = self.family
        if family.isotropic:
            return self._row((family.dim - family.rank + self.m_inverse.sum(-1)) / self.a[..., 0])
        inside = (self.m_inverse * self._gram(2)).sum((-2, -1))
        square = self.alpha**2 if self.alpha.ndim == 0 else self.alpha[..., 0] ** 2
        return self._row((1.0 / self.a).sum(-1) - square * inside)

    def inverse(self) -> Tensor:
        family = self.family
        inner = torch.diag_embed(self.m_inverse) if family.isotropic else self.m_inverse
        side = family.factors / self.a[..., None]
        square = self.alpha**2 if self.alpha.ndim == 0 else self.alpha[..., None] ** 2
        diagonal = torch.diag_embed((1.0 / self.a).expand(*self.a.shape[:-1], family.dim))
        return self._row(diagonal - square * (side @ inner @ side.mT))
