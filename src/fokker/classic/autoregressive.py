r"""Autoregressive models: every number given those before it, by one masked network.

    (1)  p(x) = prod_i p(x_i | x_<i)                          log p(x) in one pass, a sample in D of them
    (2)  loss = -E_data sum_i log p(x_i | x_<i)
    (3)  p(x_i | x_<i) = sum_k w_k N(x_i; m_k, s_k^2)         (w, m, s) of x_<i; or softmax over levels of [-1, 1]
    (4)  degrees: input i has i, a hidden unit one of 1..D-1; a weight goes from a degree to an equal or higher one,
         and to output i from those below i only

Sources: book Sec. 1.2 (its left side is p_phi, not p_data; its loss is missing); Germain et al. 2015 (MADE);
Bishop 1994 (mixture density networks).
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, log_softmax, silu, softplus

from .. import noise
from ..component import recorded
from ..errors import ConfigError
from ..likelihood.pixels import on_levels
from .model import Model

__all__ = ["Autoregressive"]

LEAST = 1e-3
"""The smallest standard deviation of a component: without it the density of repeated numbers has no bound."""
SPREAD = 1.5
"""Where the outermost means of a new mixture are."""


class _Masked(nn.Linear):
    """y = (W * mask) x + b with a fixed mask (out, in) of ones and zeros."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in) -> (B, out)."""
        return linear(x, self.weight * self.mask, self.bias)

    def rows(self, x: Tensor, rows: slice) -> Tensor:
        """Some of the outputs alone."""
        return linear(x, self.weight[rows] * self.mask[rows], self.bias[rows])


@recorded
class Autoregressive(Model):
    """p(x) = prod_i p(x_i | x_<i) over the flattened sample, its conditionals read off a masked residual network.

    Args:
        shape: of one sample; D is its product, and the order that of memory (pictures: channel, row, column).
        components: Gaussians in the mixture of every conditional; 1 is a Gaussian.
        levels: 0 for Gaussian conditionals. From 2 on x is one of the levels 2 v / (levels - 1) - 1 (256: bytes), which
            is what the network reads, and the conditional is a softmax over v; `log_prob` is a probability then.
        width: units in a hidden layer; with fewer than D - 1 a conditional may miss the nearest numbers before it.
        depth: hidden layers; 0 makes what a conditional is made of linear in x_<i.

    Raises:
        ConfigError: an argument is out of range; mixtures of levels.
    """

    likelihood: ClassVar = "exact"
    config: dict[str, object]

    def __init__(
        self,
        shape: tuple[int, ...],
        components: int = 1,
        levels: int = 0,
        width: int = 128,
        depth: int = 2,
    ) -> None:
        super().__init__(shape)
        for name, value, least in (("components", components, 1), ("width", width, 1), ("depth", depth, 0)):
            if value < least:
                raise ConfigError(f"Autoregressive.{name}: given {value}, must be at least {least}")
        if levels < 0 or levels == 1:
            raise ConfigError(f"Autoregressive.levels: given {levels}, must be 0 (numbers) or at least 2 (256: bytes)")
        if levels and components != 1:
            raise ConfigError(f"Autoregressive.components: given {components} with levels={levels}, which have 1")
        self._levels = levels
        self.dim = math.prod(self.shape)
        inputs = torch.arange(1, self.dim + 1)
        hidden = 1 + torch.arange(width) * max(1, self.dim - 1) // width if depth else inputs
        self.layers = nn.ModuleList()
        before = inputs
        for _ in range(depth):
            self.layers.append(_Masked((hidden[:, None] >= before).float()))
            before = hidden
        self.numbers = levels or 3 * components  # that make up one conditional
        outputs = inputs.repeat_interleave(self.numbers)
        self.last = _Masked((outputs[:, None] > before).float())
        if components > 1:  # apart from the start: components that start alike learn alike
            with torch.no_grad():
                self.last.bias.view(self.dim, 3, components)[:, 1] = torch.linspace(-SPREAD, SPREAD, components)

    @property
    def levels(self) -> int | None:
        """How many levels `log_prob` gives probabilities of, or None: densities."""
        return self._levels or None

    def _hidden(self, x: Tensor) -> Tensor:
        for k, layer in enumerate(self.layers):
            h: Tensor = silu(layer(x))
            x = x + h if k else h
        return x

    def conditionals(self, x: Tensor) -> Tensor:
        """What every conditional is made of, from all x (B, D) at once: (B, D, numbers), row i of x_<i alone.

        The numbers are a softmax's logits over levels; or logits of the weights, means, and standard deviations before
        LEAST + softplus(.), `components` of each.
        """
        found: Tensor = self.last(self._hidden(x))
        return found.view(-1, self.dim, self.numbers)

    def _mixture(self, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, means, raw = numbers.chunk(3, dim=-1)
        return log_softmax(logits, -1), means, softplus(raw) + LEAST

    def _log_probs(self, x: Tensor) -> Tensor:
        """log p(x_i | x_<i), (B, D)."""
        x = x.flatten(1)
        numbers = self.conditionals(x)
        if self._levels:
            v = ((x + 1.0) * (0.5 * (self._levels - 1))).round().long().clamp(0, self._levels - 1)
            return log_softmax(numbers, -1).gather(-1, v[..., None])[..., 0]
        weights, means, std = self._mixture(numbers)
        z = (x[..., None] - means) / std
        return (weights - 0.5 * z.square() - std.log()).logsumexp(-1) - 0.5 * math.log(2.0 * math.pi)

    def losses(self, x: Tensor, *, seed: int = 0, step: int = 0, positions: Tensor | None = None) -> Tensor:
        """-log p(x), Eq. (2): (B,). Nothing is drawn."""
        return -self._log_probs(self.check(x)).sum(1)

    def log_prob(self, x: Tensor, *, seed: int = 0, indices: Tensor | None = None) -> Tensor:
        """log p(x), exact: a density in nats, or with `levels` the log-probability of the levels (B,).

        Raises:
            ConfigError: with `levels`, numbers that are none of them.
        """
        self.check(x)
        if self._levels:
            on_levels(x, self._levels)
        return self._log_probs(x).sum(1)

    def draw(self, indices: Tensor, seed: int) -> Tensor:
        """Samples number `indices` (n,) of `seed`, number by number: (n, *shape)."""
        like = self.last.bias
        indices = indices.to(like.device)
        options = {"domain": "sampler", "dtype": like.dtype}
        u = noise.uniform(seed, indices, (self.dim,), **options)  # type: ignore[arg-type]
        eps = noise.normal(seed, indices, (self.dim,), draw=1, **options)  # type: ignore[arg-type]
        x = torch.zeros(len(indices), self.dim, dtype=like.dtype, device=like.device)
        for i in range(self.dim):
            numbers = self.last.rows(self._hidden(x), slice(i * self.numbers, (i + 1) * self.numbers))
            logits, means, std = (numbers, None, None) if self._levels else self._mixture(numbers)
            total = logits.softmax(-1).cumsum(-1)[:, :-1]
            chosen = (u[:, i, None] > total).sum(-1)  # by the inverse of the distribution function
            if means is None or std is None:
                x[:, i] = chosen * (2.0 / (self._levels - 1)) - 1.0
            else:
                rows = torch.arange(len(x), device=x.device)
                x[:, i] = means[rows, chosen] + std[rows, chosen] * eps[:, i]
        return x.view(-1, *self.shape)
