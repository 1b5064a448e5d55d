r"""What VAEs of one level and more have in common: losses and bounds on top of what a code costs and what it is worth.

    (1)  loss(x) = beta sum of costs - log p(x | z)                         ELBO(x) = -E loss(x) at beta = 1
    (2)  IWAE_k(x) = E log 1/k sum_i p(x, z_i) / q(z_i | x), z_i ~ q(z | x):  the ELBO at k = 1, never falls with k, and
         log p(x) in the limit

Sources: Kingma and Welling 2013; book Eq. 2.1.1; Burda et al. 2015 (2).
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .. import noise
from .decoders import Decoder
from .model import Model

__all__ = ["Coded"]


class Coded(Model):
    """A model of codes z: a subclass has `terms`, `log_weight` and `draw`, and sets the attributes.

    Attributes:
        decoder: p(x | z).
        size: numbers of all codes of a sample together.
        beta, free_bits, samples: as in `VAE`.
    """

    likelihood: ClassVar[Literal["exact", "bound", "none"]] = "bound"
    decoder: Decoder
    size: int
    beta: float
    free_bits: float
    samples: int

    @property
    def levels(self) -> int | None:
        """256 where `log_prob` bounds the log-probability of bytes, 2 of two levels, None where it is of a density."""
        return self.decoder.levels

    def terms(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x | z) at the code that eps makes, (B,), and what parts of the code cost, (B, parts)."""
        raise NotImplementedError

    def log_weight(self, x: Tensor, eps: Tensor) -> Tensor:
        """log p(x, z) - log q(z | x) at the code that eps makes, (B,): the summand of Eq. (2).

        Args:
            x: data (B, *shape).
            eps: standard normal numbers (B, size).
        """
        raise NotImplementedError

    def elbo(self, x: Tensor, eps: Tensor) -> Tensor:
        """The ELBO by the code that eps makes, (B,): unbiased; arguments as in `log_weight`."""
        reconstruction, costs = self.terms(x, eps)
        return reconstruction - costs.sum(1)

    def importance_bound(self, x: Tensor, k: int, *, seed: int = 0, indices: Tensor | None = None) -> Tensor:
        """Eq. (2) with k codes for each row, (B,): unbiased for that bound.

        Args:
            x: data (B, *shape).
            k: how many codes, 1 or more; k = 1 is a noisier estimate of the ELBO than `log_prob`.
            seed, indices: key of the codes, as in `log_prob`.
        """
        return self._weighted(x, k, seed, 0, indices, "probe")

    def _weighted(self, x: Tensor, k: int, seed: int, first: int, indices: Tensor | None, domain: str) -> Tensor:
        logs = [self.log_weight(x, self._eps(x, seed, first + i, indices, domain)) for i in range(k)]
        return torch.stack(logs).logsumexp(0) - math.log(k)

    def _eps(self, x: Tensor, seed: int, draw: int, indices: Tensor | None, domain: str) -> Tensor:
        indices = torch.arange(len(x)) if indices is None else indices
        return noise.normal(seed, indices.to(x.device), (self.size,), draw=draw, domain=domain, dtype=x.dtype)

    def losses(self, x: Tensor, *, seed: int = 0, step: int = 0, positions: Tensor | None = None) -> Tensor:
        """Eq. (1) in nats, or minus Eq. (2) where `samples` is above 1."""
        self.check(x)
        if self.samples > 1:
            return -self._weighted(x, self.samples, seed, step << 8, positions, "training")
        reconstruction, costs = self.terms(x, self._eps(x, seed, step << 8, positions, "training"))
        costs = costs.clamp(min=self.free_bits) if self.free_bits else costs
        return self.beta * costs.sum(1) - reconstruction

    def log_prob(self, x: Tensor, *, seed: int = 0, indices: Tensor | None = None) -> Tensor:
        """The ELBO by one code for each row, or Eq. (2) with k = `samples`.

        Raises:
            ConfigError: values to which the decoder gives no probability, such as no bytes.
        """
        self.decoder.check(self.check(x))
        if self.samples > 1:
            return self.importance_bound(x, self.samples, seed=seed, indices=indices)
        return self.elbo(x, self._eps(x, seed, 0, indices, "probe"))
