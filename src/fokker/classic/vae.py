r"""The variational autoencoder: a decoder p(x | z) of a normal code z, and an encoder q(z | x) that looks for the code.

    (1)  ELBO(x) = E_q[log p(x | z)] - KL(q(z | x) | N(0, I)) = log p(x) - KL(q(z | x) | p(z | x)) <= log p(x)
    (2)  z = mu(x) + sigma(x) eps,     KL = 1/2 sum_j (mu_j^2 + sigma_j^2 - 1 - log sigma_j^2)

Sources: Kingma and Welling 2013; book Sec. 2.1, Eq. 2.1.1.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from .. import noise
from ..component import recorded
from .coded import Coded
from .coding import Diagonal, expanding, reducing
from .decoders import Decoder, Law, check_options

__all__ = ["VAE"]


@recorded
class VAE(Coded):
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
        samples: above 1, k of the importance-weighted bound, which is then the loss and `log_prob`.
        draws: "mean": a draw is the decoder's centre, as pictures are shown; "sample": drawn from p(x | z), which is
            the model's law.

    Raises:
        ConfigError: an argument is out of range, or does nothing with the others.
    """

    config: dict[str, object]

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
        self.size, self.beta, self.free_bits, self.samples, self.draws = latent, beta, free_bits, samples, draws
        self.encoder = reducing(self.shape, 2 * latent, width, depth)
        net = expanding(latent, self.shape, Decoder.parts(decoder), width, depth)
        self.decoder = Decoder(net, decoder, variance)

    def encode(self, x: Tensor) -> Diagonal:
        """q(z | x) of x (B, *shape): its means and log-variances, (B, latent)."""
        return Diagonal.of(self.encoder(x).to(x.dtype))

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

    def log_weight(self, x: Tensor, eps: Tensor) -> Tensor:
        """log p(x | z) p(z) / q(z | x) at z = mu + sigma eps, (B,)."""
        q = self.encode(x)
        z = q.at(eps)
        return self.decoder.log_prob(x, z) + Diagonal.standard(z).log_prob(z) - q.log_prob(z)

    def draw(self, indices: Tensor, seed: int) -> Tensor:
        """Decoded codes of the prior; see `draws`."""
        weight = next(self.parameters())
        z = noise.normal(seed, indices.to(weight.device), (self.size,), domain="prior", dtype=weight.dtype)
        return self.decode(z) if self.draws == "mean" else self.decoder.draw(z, seed, indices.to(weight.device))
