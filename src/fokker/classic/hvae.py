r"""The hierarchical VAE: a Markov chain of codes, z_L -> ... -> z_1 -> x, with an encoder from below or from above.

    (1)  p(x, z) = p(x | z_1) p(z_1 | z_2) ... p(z_{L-1} | z_L) N(z_L; 0, I)
    (2)  bottom-up   q(z | x) = q(z_1 | x) q(z_2 | z_1) ... q(z_L | z_{L-1})
    (3)  top-down    q(z | x) = q(z_L | x) q(z_{L-1} | z_L, x) ... q(z_1 | z_2, x)
    (4)  ELBO = E_q[log p(x, z) - log q(z | x)], all terms at one joint sample of q: of either encoder
    (5)  ELBO = E_q[log p(x | z_1) - sum_i KL(q(z_i | z_{i+1}, x) | p(z_i | z_{i+1}))], z_{L+1} = (): of (3) alone

KL(q(z_i | z_{i-1}) | p(z_i | z_{i+1})) of encoder (2), as the book prints it, makes no (5): there z_i does not come
with its own z_{i+1}, and the sum is a looser bound. With L = 1 this is the VAE; with a fixed encoder of Gaussian noise
and codes of x's size, DDPM (`fokker.classic.ddpm_chain`).

Sources: book Sec. 2.1.5, Eq. 2.1.3; Soenderby et al. 2016 and Vahdat and Kautz 2020 (3), whose encoder says, as here,
what to change in p(z_i | z_{i+1}): nothing to say is no cost.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from .. import noise
from ..component import recorded
from ..errors import ConfigError
from .coded import Coded
from .coding import Diagonal, expanding, perceptron, reducing
from .decoders import Decoder, Law, check_options

__all__ = ["HVAE"]


@recorded
class HVAE(Coded):
    """Codes z_1 to z_L of `latent` numbers each, every conditional a normal law whose moments a network gives.

    Args:
        shape: of one sample.
        latent: sizes of the codes, z_1's first.
        encoder: "top-down" (3) or "bottom-up" (2).
        width: of the hidden layers of vectors' networks; of pictures the channels at half resolution, doubled by each
            halving up to four times.
        hidden: width of the perceptrons between codes, and how many numbers are read off x for them.
        depth: hidden layers, 0 for affine maps; of pictures also how often height and width are halved, 1 or more.
        decoder: the law p(x | z_1), as in `VAE`.
        variance: sigma^2 of the Gaussian decoder; default: learned, one number.
        beta: weight of the codes' costs in the loss; densities are always those of beta = 1.
        free_bits: nats of each level's KL, in every sample, that cost nothing more; top-down only.
        samples: above 1, k of the importance-weighted bound, which is then the loss and `log_prob`.
        draws: "mean": a draw is the decoder's centre; "sample": drawn from p(x | z_1).

    Raises:
        ConfigError: an argument is out of range, or does nothing with the others.
    """

    config: dict[str, object]

    def __init__(
        self,
        shape: tuple[int, ...],
        latent: tuple[int, ...] = (16, 8),
        encoder: Literal["top-down", "bottom-up"] = "top-down",
        width: int = 32,
        hidden: int = 128,
        depth: int = 2,
        decoder: Law = "gaussian",
        variance: float | None = None,
        beta: float = 1.0,
        free_bits: float = 0.0,
        samples: int = 1,
        draws: Literal["mean", "sample"] = "mean",
    ) -> None:
        super().__init__(shape)
        smallest = min(latent, default=0)
        check_options("HVAE", decoder, variance, beta, free_bits, samples, latent=smallest, width=width, hidden=hidden)
        if free_bits and encoder == "bottom-up":
            raise ConfigError(f"HVAE.free_bits: given {free_bits} with encoder='bottom-up', which has no KL of a level")
        self.latent, self.size, self.direction, self.affine = latent, sum(latent), encoder, depth == 0
        self.beta, self.free_bits, self.samples, self.draws = beta, free_bits, samples, draws
        self.reader = reducing(self.shape, hidden, width, depth)
        net = expanding(latent[0], self.shape, Decoder.parts(decoder), width, depth)
        self.decoder = Decoder(net, decoder, variance)
        # prior[i] is p(z_{i+1} | z_{i+2}); encoder[i] is q(z_{i+1} | ...), of x's features and the code it hangs on.
        self.prior = nn.ModuleList(perceptron(above, 2 * size, hidden, depth) for size, above in pairwise(latent))
        inputs = [hidden + above for above in latent[1:]] + [hidden]
        if encoder == "bottom-up":
            inputs = [hidden, *latent[:-1]]
        self.encoder = nn.ModuleList(
            perceptron(size, 2 * mine, hidden, depth) for size, mine in zip(inputs, latent, strict=True)
        )

    def _features(self, x: Tensor) -> Tensor:
        features: Tensor = self.reader(x)
        return features if self.affine else silu(features)

    def _given(self, i: int, z: list[Tensor]) -> Diagonal:
        """p(z_{i+1} | z_{i+2})."""
        return Diagonal.of(self.prior[i](z[i + 1]).to(z[i].dtype)) if i < len(self.prior) else Diagonal.standard(z[i])

    def path(self, x: Tensor, eps: Tensor) -> tuple[list[Tensor], list[Diagonal], list[Diagonal]]:
        """One joint sample of q(z | x): codes z_1 to z_L, their laws under q, and under p, each given its neighbour.

        Args:
            x: data (B, *shape).
            eps: standard normal numbers (B, sum of `latent`), z_1's first.
        """
        features, parts = self._features(x), torch.split(eps, list(self.latent), dim=1)
        z = list(parts)
        q: list[Diagonal] = []
        if self.direction == "bottom-up":
            for i, part in enumerate(parts):
                q.append(Diagonal.of(self.encoder[i](features if i == 0 else z[i - 1]).to(x.dtype)))
                z[i] = q[i].at(part)
            return z, q, [self._given(i, z) for i in range(len(z))]
        p: list[Diagonal] = []
        for i in reversed(range(len(z))):
            p.insert(0, self._given(i, z))
            told = torch.cat([features, *z[i + 1 : i + 2]], dim=1)
            change = Diagonal.of(self.encoder[i](told).to(x.dtype))
            law = Diagonal(p[0].mean + change.mean, p[0].log_var + change.log_var)
            q.insert(0, law)
            z[i] = law.at(parts[i])
        return z, q, p

    def terms(self, x: Tensor, eps: Tensor, *, ratio: bool = False) -> tuple[Tensor, Tensor]:
        """log p(x | z_1), (B,), and what each code costs, (B, L), whose difference is the ELBO in the mean.

        Args:
            x, eps: as in `path`.
            ratio: costs are log q - log p at the sample, Eq. (4), which alone an encoder from below has; otherwise a
                top-down encoder's are the KLs of Eq. (5).
        """
        z, q, p = self.path(x, eps)
        if ratio or self.direction == "bottom-up":
            costs = [mine.log_prob(at) - given.log_prob(at) for at, mine, given in zip(z, q, p, strict=True)]
        else:
            costs = [mine.kl(given).sum(1) for mine, given in zip(q, p, strict=True)]
        return self.decoder.log_prob(x, z[0]), torch.stack(costs, dim=1)

    def log_weight(self, x: Tensor, eps: Tensor) -> Tensor:
        """log p(x, z) - log q(z | x) at one joint sample, (B,); as `path`."""
        reconstruction, costs = self.terms(x, eps, ratio=True)
        return reconstruction - costs.sum(1)

    def reconstruct(self, x: Tensor) -> Tensor:
        """The decoder's centre at the codes' means, each given the mean of its neighbour: (B, *shape)."""
        z, _, _ = self.path(x, x.new_zeros(len(x), self.size))
        return self.decoder.centre(z[0])

    def draw(self, indices: Tensor, seed: int) -> Tensor:
        """z_L of its prior, then z_{L-1} down to z_1, decoded; see `draws`."""
        weight = next(self.parameters())
        indices = indices.to(weight.device)
        eps = noise.normal(seed, indices, (self.size,), domain="prior", dtype=weight.dtype)
        z = list(torch.split(eps, list(self.latent), dim=1))
        for i in reversed(range(len(z))):
            z[i] = self._given(i, z).at(z[i])
        return self.decoder.centre(z[0]) if self.draws == "mean" else self.decoder.draw(z[0], seed, indices)
