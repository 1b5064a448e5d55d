r"""p(x | z): what the numbers a decoder gives say of x, every coordinate by itself.

    (1)  gaussian    N(x; m, sigma^2), one sigma of all coordinates, fixed or learned: a density
    (2)  bernoulli   p log pi + (1 - p) log(1 - pi) with p = (x + 1) / 2, pi = sigmoid(m): the mean over random pictures
                     of two levels, b = 1 with probability p, of log P(b). No density of x, and no probability of bytes
    (3)  bytes       P(v) of 256 levels c = 2 v / 255 - 1, h = 2 / 255: the mass which the logistic law of centre m and
                     scale s has in the level's cell, those of the lowest and the highest reaching to infinity,
                     P = S(a) - S(b),   a = (c + h/2 - m) / s,   b = a - h / s,   S the sigmoid

In (3) the difference keeps its digits as log P = log S(a) + log S(-b) + log(1 - e^{-h/s}). Here -1 and 1 are a byte's 0
and 255, as pictures are given everywhere. Sources: book Sec. 2.1.3 (1); Kingma and Welling 2013 (2); Salimans et al.
2017, PixelCNN++ (3).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from .. import noise
from ..errors import ConfigError
from ..likelihood.pixels import on_levels, width

__all__ = ["Decoder", "Law", "check_options"]

Law = Literal["gaussian", "bernoulli", "bytes"]
LEVELS: dict[str, int | None] = {"gaussian": None, "bernoulli": 2, "bytes": 256}
H = width(256)


class Decoder(nn.Module):
    """A network of z and the law of x that its outputs say.

    Args:
        net: (B, latent) -> (B, parts, *shape), of `Decoder.parts(law)` parts.
        law: "gaussian", "bernoulli" or "bytes".
        variance: sigma^2 of the Gaussian one; None for a learned one.
    """

    def __init__(self, net: nn.Module, law: Law, variance: float | None) -> None:
        super().__init__()
        self.net, self.law, self.variance = net, law, variance
        if law == "gaussian" and variance is None:
            self.log_variance = nn.Parameter(torch.zeros(()))

    @staticmethod
    def parts(law: Law) -> int:
        """How many numbers the law of one coordinate takes."""
        return 2 if law == "bytes" else 1

    @property
    def levels(self) -> int | None:
        """Levels of the pictures whose probability `log_prob` is; None where it is a density."""
        return LEVELS[self.law]

    def log_var(self) -> Tensor:
        """log sigma^2 of the Gaussian law."""
        if self.variance is None:
            return self.log_variance
        return torch.tensor(math.log(self.variance), dtype=torch.float64)  # 0-dim on the CPU: joins any dtype, device

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z) in nats of x (B, *shape), z (B, latent): (B,)."""
        out = self.net(z).to(x.dtype)  # half precision would not tell neighbouring levels apart
        if self.law == "gaussian":
            log_var = self.log_var()
            each = -0.5 * ((x - out[:, 0]).square() * (-log_var).exp() + log_var + math.log(2.0 * math.pi))
        elif self.law == "bernoulli":
            each = 0.5 * (x + 1.0) * out[:, 0] - softplus(out[:, 0])
        else:
            each = _bytes(x, out[:, 0], out[:, 1])
        total: Tensor = each.flatten(1).sum(1)
        return total

    def centre(self, z: Tensor) -> Tensor:
        """E[x | z] of (1) and (2); of (3) the logistic law's centre, within [-1, 1]. (B, *shape)."""
        m: Tensor = self.net(z)[:, 0]
        if self.law == "gaussian":
            return m
        return 2.0 * m.sigmoid() - 1.0 if self.law == "bernoulli" else m.clamp(-1.0, 1.0)

    def draw(self, z: Tensor, seed: int, index: Tensor) -> Tensor:
        """x ~ p(x | z), (B, *shape), keyed by (seed, index)."""
        out = self.net(z)
        m: Tensor = out[:, 0]
        if self.law == "gaussian":
            eps = noise.normal(seed, index, m.shape[1:], dtype=m.dtype)
            return m + (0.5 * self.log_var()).exp() * eps
        u = noise.uniform(seed, index, m.shape[1:], dtype=m.dtype)
        if self.law == "bernoulli":
            return torch.where(u < m.sigmoid(), 1.0, -1.0).to(m.dtype)
        spread = m + _scale(out[:, 1]).exp() * u.logit()
        return (((spread + 1.0) / H).round() * H - 1.0).clamp(-1.0, 1.0)

    def check(self, x: Tensor) -> None:
        """Refuse values which this law gives no probability. Raises ConfigError."""
        if self.law == "bytes":
            on_levels(x, 256)
        elif self.law == "bernoulli" and bool((x.abs() > 1.0 + 1e-6).any()):
            raise ConfigError("x: has values beyond [-1, 1], which the decoder 'bernoulli' reads as probabilities")


def _scale(raw: Tensor) -> Tensor:
    # Below e^-7 all mass lies in one level, and 1 / s would only make gradients that explode; above e^10 it lies in the
    # outermost two, and h / s would come to 0, whose logarithm has no slope.
    return raw.clamp(-7.0, 10.0)


def _bytes(x: Tensor, m: Tensor, raw: Tensor) -> Tensor:
    """Eq. (3), of each coordinate."""
    log_s = _scale(raw)
    inverse = (-log_s).exp()
    a, b = (x + 0.5 * H - m) * inverse, (x - 0.5 * H - m) * inverse
    inside = (-torch.expm1(-H * inverse)).log()
    highest, lowest = x > 1.0 - 0.5 * H, x < -1.0 + 0.5 * H
    left = torch.where(highest, 0.0, logsigmoid(a))
    right = torch.where(lowest, 0.0, logsigmoid(-b))
    return left + right + torch.where(highest | lowest, 0.0, inside)


def check_options(
    owner: str, law: Law, variance: float | None, beta: float, free_bits: float, samples: int, **sizes: int
) -> None:
    """Refuse what VAE and HVAE have in common and cannot do. Raises ConfigError.

    Args:
        owner: the class, for messages.
        law, variance, beta, free_bits, samples: its arguments of those names.
        sizes: what must be 1 or more.
    """
    for name, value in sizes.items():
        if value < 1:
            raise ConfigError(f"{owner}.{name}: given {value}, must be at least 1")
    if variance is not None and law != "gaussian":
        raise ConfigError(f"{owner}.variance: given {variance} with decoder={law!r}; only 'gaussian' has one")
    if variance is not None and not variance > 0:
        raise ConfigError(f"{owner}.variance: given {variance}, must be above 0, or left out to be learned")
    for name, number in (("beta", beta), ("free_bits", free_bits)):
        if not 0 <= number < math.inf:
            raise ConfigError(f"{owner}.{name}: given {number}, must be 0 or above")
    if not 1 <= samples <= 256:
        raise ConfigError(f"{owner}.samples: given {samples}, must lie in 1 to 256")
    if samples > 1 and (beta != 1.0 or free_bits != 0.0):
        raise ConfigError(f"{owner}.samples: given {samples} with beta or free_bits, which have no importance weights")
