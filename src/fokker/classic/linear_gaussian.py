r"""Chains of linear-Gaussian links, where every quantity of a (hierarchical) VAE has a closed form; in float64.

    (1)  p:  z_L ~ N(0, I),  z_{i-1} | z_i ~ N(A_i z_i + b_i, S_i),  x = z_0
         q:  z_i | z_{i-1} ~ N(B_i z_{i-1} + c_i, R_i)
    (2)  ELBO(x) = E_q[log N(z_L; 0, I)] + sum_i E_q[log p(z_{i-1} | z_i)] + sum_i 1/2 log det(2 pi e R_i)
    (3)  ELBO(x) = E_q[log p(x | z_1)] - KL(q(z_L | x) | N(0, I))
                   - sum_{i >= 2} E_q KL(q(z_{i-1} | z_i, x) | p(z_{i-1} | z_i))
    (4)  KL(p_data(x) q(z | x) | p(x, z)) = KL(p_data | p) + E_data KL(q(z | x) | p(z | x)) >= KL(p_data | p)

With L = 1 and S_1 = s^2 I the chain is the linear VAE, x = W z + m + s eps: log p(x) = log N(x; m, W W^T + s^2 I), the
posterior N(M^{-1} W^T (x - m), s^2 M^{-1}), M = W^T W + s^2 I, is diagonal if and only if W^T W is. The DDPM of
Gaussian data is one with x's own size at every level and an encoder that only adds noise (`ddpm_chain`).

Sources: book Sec. 2.1.2 (4), 2.1.5 (2, 3), 2.2 (DDPM); Tipping and Bishop 1999 (probabilistic PCA).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..calculus import gaussian_divergence
from ..errors import ConfigError
from ..process import DiscreteVP

__all__ = ["Affine", "LinearChain", "Terms", "ddpm_chain", "ppca"]


def _quadratic(S: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
    """E[r^T S^-1 r] of r with mean (B, d) and covariance (d, d): (B,)."""
    root = torch.linalg.cholesky(S)
    pulled: Tensor = torch.linalg.solve_triangular(root, mean.mT, upper=False)
    return pulled.square().sum(0) + torch.cholesky_solve(cov, root).diagonal().sum()


def _expected_log(S: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
    """E log N(r; 0, S) of r with mean (B, d) and covariance (d, d): (B,)."""
    return -0.5 * (_quadratic(S, mean, cov) + torch.logdet(2.0 * math.pi * S))


@dataclass(frozen=True)
class Affine:
    """The link y | u ~ N(weight u + bias, cov).

    Args:
        weight: (d, e).
        bias: (d,), or (B, d) where rows differ.
        cov: (d, d), positive definite.
    """

    weight: Tensor
    bias: Tensor
    cov: Tensor

    def mean(self, u: Tensor) -> Tensor:
        """weight u + bias of u (B, e): (B, d)."""
        return u @ self.weight.mT + self.bias

    def push(self, mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, d) and covariance of y, of u with mean (B, e) and covariance (e, e)."""
        return self.mean(mean), self.weight @ cov @ self.weight.mT + self.cov

    def invert(self, mean: Tensor, cov: Tensor) -> Affine:
        """Bayes: the link u | y, of u ~ N(mean, cov); the covariance as a sum of squares."""
        at, total = self.push(mean, cov)
        gain = torch.linalg.solve(total, self.weight @ cov).mT
        rest = torch.eye(len(cov), dtype=cov.dtype) - gain @ self.weight
        return Affine(gain, mean - at @ gain.mT, rest @ cov @ rest.mT + gain @ self.cov @ gain.mT)


@dataclass(frozen=True)
class Terms:
    """The ELBO in pieces, Eq. (3), each (B,): reconstruction - prior - sum(levels).

    Attributes:
        reconstruction: E_q log p(x | z_1).
        prior: KL(q(z_L | x) | N(0, I)).
        levels: the KL of z_1, ..., z_{L-1}, each given the code above it.
    """

    reconstruction: Tensor
    prior: Tensor
    levels: tuple[Tensor, ...]

    @property
    def elbo(self) -> Tensor:
        """reconstruction - prior - sum(levels), (B,)."""
        return self.reconstruction - self.prior - sum(self.levels, torch.zeros_like(self.prior))


@dataclass(frozen=True)
class LinearChain:
    """The chain and its encoder, Eq. (1).

    Args:
        down: p(x | z_1), p(z_1 | z_2), ..., p(z_{L-1} | z_L).
        up: q(z_1 | x), q(z_2 | z_1), ..., q(z_L | z_{L-1}).

    Raises:
        ConfigError: they are not as many, or there are none.
    """

    down: tuple[Affine, ...]
    up: tuple[Affine, ...]

    def __post_init__(self) -> None:
        if not self.down or len(self.down) != len(self.up):
            raise ConfigError(f"LinearChain: given {len(self.down)} links down and {len(self.up)} up, must be as many")

    def _top(self) -> tuple[Tensor, Tensor]:
        eye = torch.eye(self.down[-1].weight.shape[1], dtype=torch.float64)
        return torch.zeros(1, len(eye), dtype=torch.float64), eye

    def marginals(self) -> list[tuple[Tensor, Tensor]]:
        """Means (1, d) and covariances of x, z_1, ..., z_L under p."""
        found = [self._top()]
        for link in reversed(self.down):
            found.insert(0, link.push(*found[0]))
        return found

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), exactly: (B,) of x (B, d)."""
        mean, cov = self.marginals()[0]
        return _expected_log(cov, x - mean, torch.zeros_like(cov))

    def exact(self) -> LinearChain:
        """The same p with its own posterior as the encoder: p(z_1 | x), p(z_2 | z_1), ..."""
        laws = self.marginals()[1:]
        return LinearChain(self.down, tuple(link.invert(*law) for link, law in zip(self.down, laws, strict=True)))

    def codes(self, x: Tensor, cov: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
        """Means (B, d) and covariances of x, z_1, ..., z_L under q, of points x (B, d), or of N(x, cov)."""
        found = [(x, torch.zeros(x.shape[1], x.shape[1], dtype=x.dtype) if cov is None else cov)]
        for link in self.up:
            found.append(link.push(*found[-1]))
        return found

    def elbo(self, x: Tensor) -> Tensor:
        """Eq. (2), the expected log-ratio on the joint law of q: (B,)."""
        laws = self.codes(x)
        mean, cov = laws[-1]
        value = _expected_log(torch.eye(len(cov), dtype=x.dtype), mean, cov)
        for down, up, (m, C), (m_next, C_next) in zip(self.down, self.up, laws, laws[1:], strict=False):
            cross = down.weight @ up.weight @ C  # A Cov(z_i, z_{i-1})
            spread = C + down.weight @ C_next @ down.weight.mT - cross - cross.mT
            value = value + _expected_log(down.cov, m - down.mean(m_next), spread)
            value = value + 0.5 * torch.logdet(2.0 * math.pi * math.e * up.cov)
        return value

    def terms(self, x: Tensor) -> Terms:
        """Eq. (3), of the encoder read from above: the links of `up` turned round by Bayes, given x."""
        laws = self.codes(x)
        mean, cov = laws[1]
        first = self.down[0]
        reconstruction = _expected_log(first.cov, x - first.mean(mean), first.weight @ cov @ first.weight.mT)
        levels = []
        for link, up, law, above in zip(self.down[1:], self.up[1:], laws[1:], laws[2:], strict=False):
            levels.append(_expected_kl(up.invert(*law), link, *above))
        mean, cov = laws[-1]
        eye = torch.eye(len(cov), dtype=x.dtype)
        prior = 0.5 * (_quadratic(eye, mean, cov) - len(cov) - torch.logdet(cov))
        return Terms(reconstruction, prior, tuple(levels))

    def gap(self, x: Tensor) -> Tensor:
        """KL(q(z | x) | p(z | x)) = log p(x) - ELBO(x), summed along the chain: (B,)."""
        return self._gap(self.codes(x))

    def _gap(self, laws: list[tuple[Tensor, Tensor]]) -> Tensor:
        own = self.exact().up
        return torch.stack([_expected_kl(q, p, *law) for q, p, law in zip(self.up, own, laws, strict=False)]).sum(0)

    def information(self, cov: Tensor) -> Tensor:
        """I_q(x; z_1) of data of covariance `cov`: 1/2 log det(B_1 cov B_1^T + R_1) - 1/2 log det R_1, ()."""
        link = self.up[0]
        return 0.5 * (torch.logdet(link.weight @ cov @ link.weight.mT + link.cov) - torch.logdet(link.cov))

    def joint_kl(self, mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Eq. (4) of data N(mean, cov): the joint KL, the modelling error KL(p_data | p) and the inference error.

        The first is of the joint laws of (x, z_1, ..., z_L) as they stand, so that the identity is a check.
        """
        own, joint = self.marginals()[0], _joint(*self._top(), self.down[::-1])
        sizes = [link.weight.shape[1] for link in self.down[::-1]] + [len(cov)]
        order = torch.cat(torch.split(torch.arange(sum(sizes)), sizes)[::-1])  # x first, as the encoder has it
        found, covs = _joint(mean[None], cov, self.up)
        whole = gaussian_divergence(found[0], covs, joint[0][0, order], joint[1][order][:, order])
        return whole, gaussian_divergence(mean, cov, own[0][0], own[1]), self._gap(self.codes(mean[None], cov))[0]


def _joint(mean: Tensor, cov: Tensor, links: Sequence[Affine]) -> tuple[Tensor, Tensor]:
    """Mean (1, d) and covariance of u_0 ~ N(mean, cov) and what `links` make of it, one after the other."""
    size = len(cov)
    for link in links:
        cross = link.weight @ cov[-size:]
        own = cross[:, -size:] @ link.weight.mT + link.cov
        mean = torch.cat([mean, link.mean(mean[:, -size:])], 1)
        cov = torch.cat([torch.cat([cov, cross.mT], 1), torch.cat([cross, own], 1)])
        size = len(own)
    return mean, cov


def _expected_kl(q: Affine, p: Affine, mean: Tensor, cov: Tensor) -> Tensor:
    """E KL(q(. | u) | p(. | u)) over u with mean (B, e) and covariance (e, e): (B,)."""
    apart = q.weight - p.weight
    moved = _quadratic(p.cov, mean @ apart.mT + (q.bias - p.bias), apart @ cov @ apart.mT + q.cov)
    return 0.5 * (moved - len(q.cov) + torch.logdet(p.cov) - torch.logdet(q.cov))


def ppca(mean: Tensor, cov: Tensor, latent: int) -> Affine:
    """The linear VAE of largest likelihood on data of this mean and covariance: p(x | z) of probabilistic PCA.

    W = U (Lambda - s^2)^{1/2} of the `latent` largest eigenvalues, s^2 the mean of the others; W^T W is diagonal.

    Args:
        mean: (D,). cov: (D, D).
        latent: d, in 1 to D - 1.

    Raises:
        ConfigError: latent is out of range.
    """
    if not 1 <= latent < len(mean):
        raise ConfigError(f"latent: given {latent}, must lie in 1 to {len(mean) - 1}")
    values, vectors = torch.linalg.eigh(cov)
    noise = values[:-latent].mean()
    weight = vectors[:, -latent:] * (values[-latent:] - noise).sqrt()
    return Affine(weight, mean, noise * torch.eye(len(mean), dtype=cov.dtype))


def ddpm_chain(process: DiscreteVP, mean: float, variance: float, *, reverse: str = "exact") -> LinearChain:
    """DDPM on data N(mean, variance) in one dimension, as a hierarchical VAE whose codes are x_1, ..., x_L.

    The encoder is the process, which is never trained; p(x_{i-1} | x_i) has the exact mean E[x_{i-1} | x_i]. Its
    ELBO falls short of log p_data by the prior's mismatch, KL(p(x_L) | N(0, 1)) in the mean, if its variances are
    exact, too.

    Args:
        process: the chain of L levels.
        mean, variance: of the data.
        reverse: "exact" variances, Var(x_{i-1} | x_i) (Analytic-DPM's); "posterior", those of
            p(x_{i-1} | x_i, x_0), which neglect what is unknown of x_0 (x_1 keeps the exact one: there they are 0).

    Raises:
        ConfigError: another `reverse`.
    """
    if reverse not in ("exact", "posterior"):
        raise ConfigError(f"reverse: given {reverse!r}, must be 'exact' or 'posterior'")
    times = torch.arange(process.steps + 1, dtype=torch.float64) / process.steps
    alpha, sigma = process.alpha(times), process.sigma(times)
    scale, std = process.transition(times[:-1], times[1:])
    zero = torch.zeros(1, dtype=torch.float64)
    up, down = [], []
    for i in range(process.steps):
        link = Affine(scale[i].reshape(1, 1), zero, (std[i] ** 2).reshape(1, 1))
        back = link.invert((alpha[i] * mean).reshape(1), (alpha[i] ** 2 * variance + sigma[i] ** 2).reshape(1, 1))
        if reverse == "posterior" and i > 0:
            fixed = (std[i] * sigma[i] / sigma[i + 1]) ** 2
            back = Affine(back.weight, back.bias, fixed.reshape(1, 1))
        up.append(link)
        down.append(back)
    return LinearChain(tuple(down), tuple(up))
