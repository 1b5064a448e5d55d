r"""Normal laws of independent coordinates, given by mean and log sigma^2, and the networks that say them.

(1)  log N(z; m, s^2) = -1/2 sum_j [(z_j - m_j)^2 / s_j^2 + log s_j^2 + log 2 pi]
(2)  KL(N(m, s^2) | N(n, r^2)) = 1/2 sum_j [s_j^2 / r_j^2 + (m_j - n_j)^2 / r_j^2 - 1 - log(s_j^2 / r_j^2)]
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ..errors import ConfigError

__all__ = ["Diagonal", "expanding", "perceptron", "reducing"]


@dataclass(frozen=True)
class Diagonal:
    """N(mean, exp(log_var)), every coordinate by itself.

    Args:
        mean, log_var: of one shape, the last axis the coordinates'.
    """

    mean: Tensor
    log_var: Tensor

    @classmethod
    def of(cls, both: Tensor) -> Diagonal:
        """From (B, 2 d): means first, then log-variances."""
        return cls(*both.chunk(2, dim=-1))

    @classmethod
    def standard(cls, like: Tensor) -> Diagonal:
        """N(0, I) of the shape of `like`."""
        return cls(torch.zeros_like(like), torch.zeros_like(like))

    def at(self, eps: Tensor) -> Tensor:
        """mean + sigma eps: the sample that a standard normal number makes (reparameterisation)."""
        return self.mean + (0.5 * self.log_var).exp() * eps

    def log_prob(self, z: Tensor) -> Tensor:
        """Eq. (1), summed over the last axis."""
        square = (z - self.mean).square() * (-self.log_var).exp()
        return -0.5 * (square + self.log_var + math.log(2.0 * math.pi)).sum(-1)

    def kl(self, other: Diagonal) -> Tensor:
        """KL(self | other), Eq. (2), coordinate by coordinate."""
        ratio = self.log_var - other.log_var
        away = (self.mean - other.mean).square() * (-other.log_var).exp()
        return 0.5 * (torch.expm1(ratio) - ratio + away)


def perceptron(inputs: int, outputs: int, width: int, depth: int) -> nn.Sequential:
    """A perceptron (B, inputs) -> (B, outputs) of `depth` hidden layers and SiLU; depth 0 is an affine map."""
    layers: list[nn.Module] = []
    for a, b in pairwise([inputs] + [width] * depth):
        layers += [nn.Linear(a, b), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(width if depth else inputs, outputs))


class Block(nn.Module):
    """h + C2 silu(C1 silu(h)), the identity at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(channels, channels, 3, padding=1)
        self.outer = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.outer.weight)

    def forward(self, h: Tensor) -> Tensor:
        """h (B, channels, H, W) -> the same shape."""
        y: Tensor = self.outer(silu(self.inner(silu(h))))
        return h + y


def _sizes(shape: tuple[int, ...], width: int, depth: int) -> tuple[list[int], tuple[int, int, int]]:
    """The channels at each halving, the picture's own left out, and the shape of the smallest map."""
    if depth < 1 or shape[1] % 2**depth or shape[2] % 2**depth:
        raise ConfigError(
            f"depth: given {depth} with pictures of {shape[1]} x {shape[2]}, must be at least 1 "
            f"and height and width multiples of 2^depth"
        )
    widths = [width * min(2**level, 4) for level in range(depth)]
    return widths, (widths[-1], shape[1] >> depth, shape[2] >> depth)


def reducing(shape: tuple[int, ...], outputs: int, width: int, depth: int) -> nn.Sequential:
    """A network (B, *shape) -> (B, outputs).

    Of pictures (three axes) `depth` convolutions that halve height and width, each followed by a residual block, and
    an affine map; of everything else the perceptron of `depth` hidden layers.

    Args:
        shape: of one sample.
        outputs: how many numbers come out.
        width: of the hidden layers; of pictures the channels after the first halving, doubled by each up to four times.
        depth: as above.

    Raises:
        ConfigError: height or width is no multiple of 2^depth.
    """
    if len(shape) != 3:
        return nn.Sequential(nn.Flatten(), perceptron(math.prod(shape), outputs, width, depth))
    widths, smallest = _sizes(shape, width, depth)
    layers: list[nn.Module] = []
    for a, b in pairwise([shape[0], *widths]):
        layers += [nn.Conv2d(a, b, 4, stride=2, padding=1), Block(b)]
    return nn.Sequential(*layers, nn.SiLU(), nn.Flatten(), nn.Linear(math.prod(smallest), outputs))


def expanding(inputs: int, shape: tuple[int, ...], parts: int, width: int, depth: int) -> nn.Sequential:
    """A network (B, inputs) -> (B, parts, *shape), `reducing` backwards.

    Raises:
        ConfigError: height or width is no multiple of 2^depth.
    """
    if len(shape) != 3:
        flat = perceptron(inputs, parts * math.prod(shape), width, depth)
        return nn.Sequential(flat, nn.Unflatten(1, (parts, *shape)))
    widths, smallest = _sizes(shape, width, depth)
    layers: list[nn.Module] = [nn.Linear(inputs, math.prod(smallest)), nn.Unflatten(1, smallest)]
    for a, b in pairwise([*reversed(widths), parts * shape[0]]):
        layers += [Block(a), nn.SiLU(), nn.ConvTranspose2d(a, b, 4, stride=2, padding=1)]
    return nn.Sequential(*layers, nn.Unflatten(1, (parts, shape[0])))
