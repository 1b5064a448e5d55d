r"""Two-sided pairs: x_t = alpha x_0 + sigma x_1 with x_0 from a target and x_1 from a source, both mixtures.

For every pair (j, k) of components, with S_j, T_k their covariances and C = alpha^2 S_j + sigma^2 T_k,

    (1)  m_jk = alpha mu_j + sigma nu_k,    r_jk = softmax(log w_j u_k + log N(x; m_jk, C))
    (2)  v(x, t) = sum r_jk [alpha' mu_j + sigma' nu_k + (alpha alpha' S_j + sigma sigma' T_k) C^{-1} (x - m_jk)]

Source: book Sec. 5.2 (flow matching from any source), on our clock: data at 0, source at T.
"""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from ..component import component
from ..errors import ConfigError
from ..process import Process, as_time
from ..registry import resolves
from .channel import Mixture
from .laws import Gaussian, GaussianMixture
from .marginal import flat

__all__ = ["Pair"]

Side = Annotated[Gaussian | GaussianMixture, resolves("exact")]


class _Solved(NamedTuple):
    """(B or 1, P, ...) for P pairs of components: logits, drift of the means, drift times C^{-1} y."""

    logits: Tensor
    means: Tensor
    pull: Tensor


@component
class Pair:
    """Independent coupling of two mixtures, joined by x_t = alpha(t) x_0 + sigma(t) x_1.

    Args:
        source: the law of x_1, at t = T.
        target: the law of x_0, the data, at t = 0; of the same dimension.

    Matrices are dense, d x d for each of the K_source K_target pairs: meant for small d.
    """

    source: Side
    target: Side

    def __post_init__(self) -> None:
        if self.source.shape != self.target.shape:
            given = f"{self.source.shape} and {self.target.shape}"
            raise ConfigError(f"Pair: given events {given}, must be of the same dimension")

    @property
    def shape(self) -> tuple[int, ...]:
        """The event's shape, (d,)."""
        return self.target.shape

    def sample(self, n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """n independent pairs (x_0, x_1), each (n, d); pair i depends on (seed, i) only."""
        index = torch.arange(n)
        # The source's own samples of this seed would use the target's words: another range of numbers is independent.
        return (
            self.target.sample(n, seed, index=index, dtype=dtype),
            self.source.sample(n, seed, index=index + 2**31, dtype=dtype),
        )

    def _solve(self, process: Process, x: Tensor, t: float | Tensor) -> _Solved:
        time = as_time(t).double()

        def table(coefficient: Tensor) -> Tensor:
            return coefficient.to(x.device).reshape(-1, 1, 1)

        alpha, sigma = table(process.alpha(time)), table(process.sigma(time))
        d_alpha, d_sigma = table(process.d_alpha(time)), table(process.d_sigma(time))
        one, two = (self._side(law, x) for law in (self.target, self.source))
        p, q = len(one.weights), len(two.weights)
        mu, nu = one.family.means.repeat_interleave(q, 0), two.family.means.repeat(p, 1)
        S, T = one.family.covs().repeat_interleave(q, 0), two.family.covs().repeat(p, 1, 1)
        log_w = (one.weights.log()[:, None] + two.weights.log()).flatten()
        a, b = alpha[..., None], sigma[..., None]
        cov = a**2 * S + b**2 * T
        rate = a * d_alpha[..., None] * S + b * d_sigma[..., None] * T
        lower = torch.linalg.cholesky_ex(cov).L
        inverse = torch.cholesky_inverse(lower)
        logdet = 2.0 * lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        y = x[:, None, :].double() - (alpha * mu + sigma * nu)
        z = (inverse * y[..., None, :]).sum(-1)
        logits = log_w - 0.5 * ((y * z).sum(-1) + logdet + x.shape[1] * math.log(2.0 * math.pi))
        return _Solved(logits, d_alpha * mu + d_sigma * nu, (rate * z[..., None, :]).sum(-1))

    @staticmethod
    def _side(law: Gaussian | GaussianMixture, x: Tensor) -> Mixture:
        core = law._core.to(x.device, torch.float64)
        assert isinstance(core, Mixture)
        return core

    def log_prob(self, process: Process, x: Tensor, t: float | Tensor) -> Tensor:
        """log p_t(x) in nats, (B,); t is a number or (B,)."""
        return self._solve(process, flat(x, self.shape), t).logits.logsumexp(-1).to(x.dtype)

    def velocity(self, process: Process, x: Tensor, t: float | Tensor) -> Tensor:
        """E[alpha' x_0 + sigma' x_1 | x_t = x], Eq. (2), (B, d): the drift whose flow carries p_t.

        t is a number or (B,), where sigma'(t) is finite and C is not singular.
        """
        solved = self._solve(process, flat(x, self.shape), t)
        weights = solved.logits.softmax(-1)[..., None]
        return (weights * (solved.means + solved.pull)).sum(1).to(x.dtype)
