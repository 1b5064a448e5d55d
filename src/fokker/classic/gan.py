r"""Generative adversarial networks: a generator, and a discriminator that tells its samples from data.

    (1)  V(D, G) = E_data log D(x) + E_z log(1 - D(G(z)))                  min over G, max over D
    (2)  the best D = p / (p + q),  p the data's law and q that of G(z);    V there = 2 JS(p, q) - log 4
    (3)  D_f(p, q) >= E_p T - E_q f*(T)  for every T,  with equality at T = f'(p / q)       (f as in Eq. 1.1.4)
    (4)  T = g(v), v = v(x) a network's output without bounds, g into the domain of f*: D ascends (3), G descends it

Eq. (1) is Eq. (3) of f = u log u - (u + 1) log(u + 1), whose T is log D, with g the logarithm of the sigmoid.
Sources: book Sec. 1.2; Goodfellow et al. 2014; Nowozin et al. 2016 (f-GAN, Tables 1 and 2); Mescheder et al. 2018 (R1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import logsigmoid, softplus

from .. import noise
from ..calculus import gradient
from ..component import recorded
from ..errors import ConfigError, closest
from .model import Model

__all__ = ["GAMES", "GAN", "Game", "f_bound", "gan_value", "optimal_discriminator"]

LOG2 = math.log(2.0)


class Game(NamedTuple):
    """One f of Eq. (3). All are functions of tensors, elementwise.

    Args:
        f: convex.
        slope: f', at u = p / q the best T.
        conjugate: f*(T) = sup_u (u T - f(u)).
        real: g, of the network's output v.
        fake: f* after g, in a form that loses no digits.
    """

    f: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    conjugate: Callable[[Tensor], Tensor]
    real: Callable[[Tensor], Tensor]
    fake: Callable[[Tensor], Tensor]


GAMES: dict[str, Game] = {
    "minimax": Game(
        lambda u: u * u.log() - (u + 1.0) * (u + 1.0).log(),
        lambda u: (u / (u + 1.0)).log(),
        lambda t: -torch.log(-torch.expm1(t)),
        logsigmoid,
        softplus,
    ),
    "kl": Game(
        lambda u: u * u.log(),
        lambda u: 1.0 + u.log(),
        lambda t: (t - 1.0).exp(),
        lambda v: v,
        lambda v: (v - 1.0).exp(),
    ),
    "reverse_kl": Game(
        lambda u: -u.log(),
        lambda u: -1.0 / u,
        lambda t: -1.0 - (-t).log(),
        lambda v: -(-v).exp(),
        lambda v: v - 1.0,
    ),
    "js": Game(
        lambda u: 0.5 * (u * u.log() - (u + 1.0) * (0.5 * (u + 1.0)).log()),
        lambda u: 0.5 * (2.0 * u / (u + 1.0)).log(),
        lambda t: -0.5 * (2.0 - (2.0 * t).exp()).log(),
        lambda v: 0.5 * (LOG2 + logsigmoid(v)),
        lambda v: 0.5 * (softplus(v) - LOG2),
    ),
    "tv": Game(
        lambda u: 0.5 * (u - 1.0).abs(),
        lambda u: 0.5 * (u - 1.0).sign(),
        lambda t: t,  # for |t| <= 1/2
        lambda v: 0.5 * v.tanh(),
        lambda v: 0.5 * v.tanh(),
    ),
    "chi2": Game(
        lambda u: (u - 1.0).square(),
        lambda u: 2.0 * (u - 1.0),
        lambda t: t + 0.25 * t.square(),
        lambda v: v,
        lambda v: v + 0.25 * v.square(),
    ),
    "hellinger": Game(
        lambda u: (u.sqrt() - 1.0).square(),
        lambda u: 1.0 - u.rsqrt(),
        lambda t: t / (1.0 - t),
        lambda v: -torch.expm1(-v),
        torch.expm1,
    ),
}
"""Games by name: "minimax" is the GAN's own, the others are named after the divergence that is their value."""


def optimal_discriminator(p: Tensor, q: Tensor) -> Tensor:
    """p / (p + q), Eq. (2), of probabilities or densities p of the data and q of the model; 1/2 where both are 0."""
    return torch.where(p + q > 0.0, p / (p + q), 0.5)


def gan_value(p: Tensor, q: Tensor, d: Tensor | None = None) -> Tensor:
    """E_p log D + E_q log(1 - D), Eq. (1), of probabilities (..., K): (...,).

    Args:
        p, q: of the data and of the model, of sum 1 over the last dimension.
        d: the discriminator's D in [0, 1], (..., K); default the best, which gives 2 JS(p, q) - log 4.
    """
    d = optimal_discriminator(p, q) if d is None else d
    return (torch.xlogy(p, d) + torch.xlogy(q, 1.0 - d)).sum(-1)


def f_bound(p: Tensor, q: Tensor, game: str, v: Tensor | None = None) -> Tensor:
    """E_p T - E_q f*(T), Eq. (3), of probabilities (..., K): (...,), at most D_f(p, q).

    Args:
        p, q: of the data and of the model, positive, of sum 1 over the last dimension.
        game: a key of `GAMES`.
        v: a discriminator's outputs (..., K), T = g(v); default the best T, f'(p / q), which gives D_f(p, q).

    Raises:
        ConfigError: an unknown game.
    """
    rules = _game("game", game)
    if v is not None:
        return (p * rules.real(v) - q * rules.fake(v)).sum(-1)
    best = rules.slope(p / q)
    return (p * best - q * rules.conjugate(best)).sum(-1)


def _game(field: str, name: str, *more: str) -> Game:
    if name not in GAMES:
        raise ConfigError(f"{field}: unknown {name!r}: {closest(name, [*GAMES, *more])}")
    return GAMES[name]


class _Perceptron(nn.Sequential):
    """SiLU layers from `inputs` to `outputs` numbers, `depth` of them hidden."""

    def __init__(self, inputs: int, outputs: int, width: int, depth: int) -> None:
        layers: list[nn.Module] = []
        for k in range(depth):
            layers += [nn.Linear(width if k else inputs, width), nn.SiLU()]
        super().__init__(*layers, nn.Linear(width, outputs))


@recorded
class GAN(Model):
    """x = G(z), z ~ N(0, I), with G trained against a discriminator v; both in one loss, Eqs. (3) and (4).

    losses = -g(v(x)) + f*(g(v(G(z))))              with G(z) held: moves the discriminator alone
             + r1 / 2 |grad_x v(x)|^2
             - f*(g(v(G(z)))), or -log sigmoid v(G(z))     with v held: moves the generator alone

    Args:
        shape: of one sample.
        latent: numbers in z.
        game: what the generator descends: "non-saturating" (-log D(G(z)), against the discriminator of "minimax"), or
            a key of `GAMES`.
        r1: weight of the squared slope of v at data, 0 for none; it makes the game settle.
        width: units in a hidden layer.
        depth: hidden layers, of either network.

    Raises:
        ConfigError: an argument is out of range.
    """

    likelihood: ClassVar = "none"
    config: dict[str, object]

    def __init__(
        self,
        shape: tuple[int, ...],
        latent: int = 2,
        game: str = "non-saturating",
        r1: float = 0.0,
        width: int = 128,
        depth: int = 3,
    ) -> None:
        super().__init__(shape)
        for name, value in (("latent", latent), ("width", width), ("depth", depth)):
            if value < 1:
                raise ConfigError(f"GAN.{name}: given {value}, must be at least 1")
        if not 0.0 <= r1 < math.inf:
            raise ConfigError(f"GAN.r1: given {r1}, must be 0 or more")
        self.saturates = game != "non-saturating"
        if self.saturates:
            _game("GAN.game", game, "non-saturating")
        self.game, self.latent, self.r1 = game, latent, r1
        dim = math.prod(self.shape)
        self.generator = _Perceptron(latent, dim, width, depth)
        self.discriminator = _Perceptron(dim, 1, width, depth)

    @property
    def rules(self) -> Game:
        """The game by its name, which alone can be pickled."""
        return GAMES[self.game if self.saturates else "minimax"]

    def generate(self, z: Tensor) -> Tensor:
        """G(z), z (B, latent): (B, *shape)."""
        x: Tensor = self.generator(z)
        return x.view(-1, *self.shape)

    def judge(self, x: Tensor) -> Tensor:
        """v(x), the discriminator's output without bounds (its logit), of x (B, *shape): (B,)."""
        v: Tensor = self.discriminator(x.flatten(1))
        return v[:, 0]

    def _judge_held(self, x: Tensor) -> Tensor:
        held = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        v: Tensor = functional_call(self.discriminator, held, (x.flatten(1),))
        return v[:, 0]

    def players(
        self, x: Tensor, *, seed: int = 0, step: int = 0, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The discriminator's losses and the generator's, (B,) each; a gradient of one reaches no weight of the other.

        Args:
            x, seed, step, positions: as in `losses`.
        """
        self.check(x)
        positions = torch.arange(len(x), device=x.device) if positions is None else positions.to(x.device)
        z = noise.normal(seed, positions, (self.latent,), draw=step << 8, domain="training", dtype=x.dtype)
        made = self.generate(z)
        told = self.rules.fake(self.judge(made.detach())) - self.rules.real(self.judge(x))
        if self.r1:
            told = told + 0.5 * self.r1 * gradient(self.judge, x).flatten(1).square().sum(1)
        v = self._judge_held(made)
        return told, -self.rules.fake(v) if self.saturates else -self.rules.real(v)

    def losses(self, x: Tensor, *, seed: int = 0, step: int = 0, positions: Tensor | None = None) -> Tensor:
        told, fooled = self.players(x, seed=seed, step=step, positions=positions)
        return told + fooled

    def draw(self, indices: Tensor, seed: int) -> Tensor:
        weight = next(self.parameters())
        indices = indices.to(weight.device)
        return self.generate(noise.normal(seed, indices, (self.latent,), domain="prior", dtype=weight.dtype))
