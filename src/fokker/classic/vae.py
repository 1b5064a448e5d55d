r"""The variational autoencoder: a decoder p(x | z) of a normal code z, and an encoder q(z | x) that looks for the code.

    (1)  ELBO(x) = E_q[log p(x | z)] - KL(q(z | x) | N(0, I)) = log p(x) - KL(q(z | x) | p(z | x)) <= log p(x)
    (2)  z = mu(x) + sigma(x) eps,     KL = 1/2 sum_j (mu_j^2 + sigma_j^2 - 1 - log sigma_j^2)
    (3)  IWAE_k(x) = E log 1/k sum_i p(x | z_i) N(z_i; 0, I) / q(z_i | x): the ELBO at k = 1, never falls with k, and
         log p(x) in the limit

Sources: Kingma and Welling 2013; book Sec. 2.1, Eq. 2.1.1; Burda et al. 2015 (3).
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .. import noise
from ..component import recorded
from .coding import Diagonal, expanding, reducing
from .decoders import Decoder, Law, check_options
from .model import Model

__all__ = ["VAE"]


@recorded
class VAE(Model):
    """Codes z ~ N(0, I) of `latent` numbers, decoded by a network; the encoder gives mu(x) and log sigma^2(x).

    Pictures (three axes) have convolutional networks, everything else perceptrons.

    Args:
        shape: of one sample.
        latent: numbers of a code.
        width: of the hidden layers; of pictures the channels at half resolution, doubled by each halving up to four
            times.
        depth: hidden layers, 0 for affine maps; of pictures how often height and width are halved, 1 or more.
        decoder: the law p(x | z) (`fokker.classic.decoders`): "gaussian", a density; "bernoulli", of pictures of two
            levels; "bytes", the probability of the pictures' bytes, which bits per dimension want.
        variance: sigma^2 of the Gaussian decoder; default: learned, one number.
        beta: weight of the KL in the loss (Higgins et al. 2017); densities are always those of beta = 1.
        free_bits: nats of each code number's KL, in every sample, that cost nothing more (after Kingma et al. 2016):
            against collapse. Densities are those of 0.
        samples: above 1, k of the importance-weighted bound (3), which is then the loss and `log_prob`.
        draws: "mean": a draw is the decoder's centre, as pictures are shown; "sample": drawn from p(x | z), which is
            the model's law.

    Raises:
        ConfigError: an argument is out of range, or does nothing with the others.
    """

    config: dict[str, object]
    likelihood: ClassVar[Literal["exact", "bound", "none"]] = "bound"

    def __init__(
        self,
        shape: tuple[int, ...],
        latent: int = 16,
        width: int = 32,
        depth: int = 2,
        decoder: Law = "gaussian",
        variance: float | None = None,
        beta: float = 1.0,
        free_bits: float = 0.0,
        samples: int = 1,
        draws: Literal["mean", "sample"] = "mean",
    ) -> None:
        super().__init__(shape)
        check_options("VAE", decoder, variance, beta, free_bits, samples, latent=latent, width=width)
        self.latent, self.beta, self.free_bits, self.samples, self.draws = latent, beta, free_bits, samples, draws
        self.encoder = reducing(self.shape, 2 * latent, width, depth)
        net = expanding(latent, self.shape, Decoder.parts(decoder), width, depth)
        self.decoder = Decoder(net, decoder, variance)

    @property
    def levels(self) -> int | None:
        """256 where `log_prob` bounds the log-probability of bytes, 2 of two levels, None where it is of a density."""
        return self.decoder.levels

    def encode(self, x: Tensor) -> Diagonal:
        """q(z | x) of x (B, *shape): its means and log-variances, (B, latent)."""
        return Diagonal.of(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        """The decoder's centre (B, *shape) of z (B, latent): its mean, of bytes the logistic law's."""
        return self.decoder.centre(z)

    def reconstruct(self, x: Tensor) -> Tensor:
        """decode(mu(x)), (B, *shape)."""
        return self.decode(self.encode(x).mean)

    def terms(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x | z) at z = mu + sigma eps, (B,), and Eq. (2)'s KL of each code number, (B, latent).

        Args:
            x: data (B, *shape).
            eps: standard normal numbers (B, latent).
        """
        q = self.encode(x)
        return self.decoder.log_prob(x, q.at(eps)), q.kl(Diagonal.standard(eps))

    def elbo(self, x: Tensor, eps: Tensor) -> Tensor:
        """Eq. (1) with its mean over z replaced by the value at mu + sigma eps: (B,), unbiased; as `terms`."""
        reconstruction, kl = self.terms(x, eps)
        return reconstruction - kl.sum(1)

    def log_weight(self, x: Tensor, eps: Tensor) -> Tensor:
        """log p(x | z) p(z) / q(z | x) at z = mu + sigma eps, (B,): the summand of Eq. (3); as `terms`."""
        q = self.encode(x)
        z = q.at(eps)
        return self.decoder.log_prob(x, z) + Diagonal.standard(z).log_prob(z) - q.log_prob(z)

    def importance_bound(self, x: Tensor, k: int, *, seed: int = 0, indices: Tensor | None = None) -> Tensor:
        """Eq. (3) with k codes for each row, (B,): unbiased for the bound, which is below log p(x).

        Args:
            x: data (B, *shape).
            k: how many codes, 1 or more; k = 1 is a noisier estimate of the ELBO than `log_prob`.
            seed, indices: key of the codes, as in `log_prob`.
        """
        return self._weighted(x, k, seed, 0, indices, "probe")

    def _weighted(self, x: Tensor, k: int, seed: int, first: int, indices: Tensor | None, domain: str) -> Tensor:
        logs = [self.log_weight(x, self._noise(x, seed, first + i, indices, domain)) for i in range(k)]
        return torch.stack(logs).logsumexp(0) - math.log(k)

    def _noise(self, x: Tensor, seed: int, draw: int, indices: Tensor | None, domain: str) -> Tensor:
        indices = torch.arange(len(x)) if indices is None else indices
        return noise.normal(seed, indices.to(x.device), (self.latent,), draw=draw, domain=domain, dtype=x.dtype)

    def losses(self, x: Tensor, *, seed: int = 0, step: int = 0, positions: Tensor | None = None) -> Tensor:
        """beta KL - log p(x | z), or minus Eq. (3) where `samples` is above 1, in nats."""
        if self.samples > 1:
            return -self._weighted(x, self.samples, seed, step << 8, positions, "training")
        reconstruction, kl = self.terms(x, self._noise(x, seed, step << 8, positions, "training"))
        return self.beta * kl.clamp(min=self.free_bits).sum(1) - reconstruction

    def log_prob(self, x: Tensor, *, seed: int = 0, indices: Tensor | None = None) -> Tensor:
        """The ELBO by one code for each row, or Eq. (3) with k = `samples`.

        Raises:
            ConfigError: values to which the decoder gives no probability, such as no bytes.
        """
        self.decoder.check(x)
        if self.samples > 1:
            return self.importance_bound(x, self.samples, seed=seed, indices=indices)
        return self.elbo(x, self._noise(x, seed, 0, indices, "probe"))

    def draw(self, indices: Tensor, seed: int) -> Tensor:
        """Decoded codes of the prior; see `draws`."""
        weight = next(self.parameters())
        z = noise.normal(seed, indices.to(weight.device), (self.latent,), domain="prior", dtype=weight.dtype)
        return self.decode(z) if self.draws == "mean" else self.decoder.draw(z, seed, indices.to(weight.device))
