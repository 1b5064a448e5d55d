r"""Normalising flows: data are a bijection of a normal law, so that their log-density is exact.

    (1)  x = F(z) = F_L(... F_1(z)),   z ~ N(0, I)
    (2)  log p(x) = log N(F^{-1}(x); 0, I) + log |det dF^{-1}/dx|,    log |det dF/dz| = sum_k log |det dF_k/dx_{k-1}|
    (3)  the loss is -log p(x) in nats

L layers make L factors (book Sec. 5.1.1 counts K and L, one number). Sources: book Eq. 5.1.1-5.1.4, App. B.1.1.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from .. import noise
from ..component import recorded
from ..errors import ConfigError, MissingExtraError
from .model import Model

__all__ = ["Bijection", "Planar", "RealNVP", "log_normal"]

NEWTON = 16  # steps to a planar layer's root, settled in float64 after 14 for w.u >= -1 + 1e-6 and |r| >= 1e-9


def log_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I) of z (B, d), (B,)."""
    return -0.5 * z.square().sum(1) - 0.5 * z.shape[1] * math.log(2.0 * math.pi)


class Bijection(Model):
    """A bijection of N(0, I), Eqs. (1) to (3). A subclass has `forward` and `inverse`.

    Args:
        shape: of one sample; d numbers, flattened inside.
    """

    likelihood: ClassVar[Literal["exact", "bound", "none"]] = "exact"

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.dim = math.prod(self.shape)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """F(z) (B, *shape) and log |det dF/dz| (B,)."""
        raise NotImplementedError

    def inverse(
        self, x: Tensor, *, seed: int = 0, step: int = 0, indices: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """F^{-1}(x) (B, *shape) and log |det dF^{-1}/dx| (B,); the keys are of what is drawn to estimate it."""
        raise NotImplementedError

    def trajectory(self, z: Tensor) -> Tensor:
        """z and what every layer makes of it, from noise to data, (L + 1, B, *shape)."""
        raise NotImplementedError

    def losses(self, x: Tensor, *, seed: int = 0, step: int = 0, positions: Tensor | None = None) -> Tensor:
        """-log p(x) in nats, (B,)."""
        z, log_det = self.inverse(self.check(x), seed=seed, step=step, indices=positions)
        return -log_normal(z.flatten(1)) - log_det

    def log_prob(self, x: Tensor, *, seed: int = 0, indices: Tensor | None = None) -> Tensor:
        """log p(x) in nats, (B,), Eq. (2)."""
        return -self.losses(x, seed=seed, positions=indices)

    def draw(self, indices: Tensor, seed: int) -> Tensor:
        """F of the normal numbers of samples `indices` (n,), (n, *shape)."""
        weight = next(self.parameters())
        indices = indices.to(weight.device)
        return self.trajectory(noise.normal(seed, indices, self.shape, domain="prior", dtype=weight.dtype))[-1]


@recorded
class RealNVP(Bijection):
    """Coupling layers: half of the coordinates, read by a network, sets a monotone map of every other one.

    affine: z_b = e^{s(x_a)} x_b + m(x_a), |s| < log 1000;   spline: rational-quadratic on [-5, 5], the identity outside

    The halves are the even and the odd coordinates by turns; a new flow of affine layers is the identity. Layers are
    zuko's. Sources: Dinh et al. 2017 (Real NVP); Durkan et al. 2019 (neural spline flows).

    Args:
        shape: of one sample, of two numbers or more.
        layers: coupling layers, >= 1; with two every coordinate has changed.
        width: of the networks' two hidden layers, >= 1.
        transform: "affine" or "spline".
        bins: of a spline, >= 2.

    Raises:
        MissingExtraError: zuko is not installed.
    """

    config: dict[str, object]

    def __init__(
        self,
        shape: tuple[int, ...],
        layers: int = 8,
        width: int = 64,
        transform: Literal["affine", "spline"] = "affine",
        bins: int = 8,
    ) -> None:
        super().__init__(shape)
        check(self, 1, layers=layers, width=width)
        check(self, 2, bins=bins)
        if self.dim < 2:
            raise ConfigError(f"RealNVP.shape: given {self.shape}, must have two numbers or more; for one take 'cnf'")
        try:
            from zuko.flows.coupling import GeneralCouplingTransform
            from zuko.transforms import MonotonicAffineTransform, MonotonicRQSTransform
        except ModuleNotFoundError:
            raise MissingExtraError("zuko", "flows") from None
        if transform == "affine":
            univariate: dict[str, Any] = {"univariate": MonotonicAffineTransform, "shapes": ((), ())}
        else:
            spline = partial(MonotonicRQSTransform, bound=5.0)
            univariate = {"univariate": spline, "shapes": ((bins,), (bins,), (bins - 1,))}
        odd = torch.arange(self.dim) % 2
        self.layers = nn.ModuleList()
        for number in range(layers):
            layer = GeneralCouplingTransform(
                self.dim, mask=odd == number % 2, hidden_features=(width, width), activation=nn.SiLU, **univariate
            )
            nn.init.zeros_(layer.hyper[-1].weight)
            nn.init.zeros_(layer.hyper[-1].bias)
            self.layers.append(layer)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """F(z) and log |det dF/dz|."""
        x = self.trajectory(z)[-1]
        return x, -self.inverse(x)[1]

    def inverse(
        self, x: Tensor, *, seed: int = 0, step: int = 0, indices: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """F^{-1}(x) and its log-determinant; nothing is drawn."""
        z, log_det = x.flatten(1), x.new_zeros(len(x))
        for layer in self.layers:
            z, more = layer().call_and_ladj(z)
            log_det = log_det + more
        return z.view(x.shape), log_det

    def trajectory(self, z: Tensor) -> Tensor:
        """z and what every layer makes of it, (L + 1, B, *shape)."""
        states = [z.flatten(1)]
        for layer in reversed(self.layers):
            states.append(layer().inv(states[-1]))
        return torch.stack(states).view(-1, *z.shape)


@recorded
class Planar(Bijection):
    r"""Planar layers F_k(x) = x + u tanh(w.x + b), each of which bends space along one direction.

    det dF_k/dx = 1 + u.w tanh'(w.x + b),    u = u~ + (softplus(w.u~) - 1 - w.u~) w / |w|^2,  so that w.u > -1

    The inverse needs s = w.x + b alone: with c = w.u, the root of s + c tanh s = r, r = w.y + b, and then
    x = y - u tanh s. That function is odd, and concave or convex on s >= 0, so Newton's method started at the better of
    two bounds of the root, |r| - c and |r| / (1 + c), goes there from one side. Its last two steps carry the graph:
    derivatives up to the third are those of the root (implicit differentiation).
    Source: Rezende & Mohamed 2015, Eq. 10 and App. A.1 (whose text has w.u >= -1).

    Args:
        shape: of one sample.
        layers: how many, >= 1. A new flow is nearly the identity.
    """

    config: dict[str, object]

    def __init__(self, shape: tuple[int, ...], layers: int = 32) -> None:
        super().__init__(shape)
        check(self, 1, layers=layers)
        self.w = nn.Parameter(torch.randn(layers, self.dim))
        # log(e - 1) along w is where w.u = 0.
        along = math.log(math.e - 1.0) / self.w.detach().square().sum(1, keepdim=True)
        self.u = nn.Parameter(along * self.w.detach() + 0.01 * torch.randn(layers, self.dim))
        self.b = nn.Parameter(torch.randn(layers))

    def directions(self) -> tuple[Tensor, Tensor]:
        """u (L, d) and w.u > -1 (L,), invertible whatever the parameters are."""
        given = (self.w * self.u).sum(1)
        product = softplus(given) - 1.0
        return self.u + ((product - given) / self.w.square().sum(1))[:, None] * self.w, product

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """F(z) and log |det dF/dz|."""
        x, log_det = z.flatten(1), z.new_zeros(len(z))
        for w, b, u, c in zip(self.w, self.b, *self.directions(), strict=True):
            bend = torch.tanh(x @ w + b)
            x, log_det = x + bend[:, None] * u, log_det + torch.log1p(c * (1.0 - bend.square()))
        return x.view(z.shape), log_det

    def inverse(
        self, x: Tensor, *, seed: int = 0, step: int = 0, indices: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """F^{-1}(x) and its log-determinant; nothing is drawn."""
        z, log_det = x.flatten(1), x.new_zeros(len(x))
        for w, b, u, c in reversed(list(zip(self.w, self.b, *self.directions(), strict=True))):
            bend = torch.tanh(root(z @ w + b, c))
            z, log_det = z - bend[:, None] * u, log_det - torch.log1p(c * (1.0 - bend.square()))
        return z.view(x.shape), log_det

    def trajectory(self, z: Tensor) -> Tensor:
        """z and what every layer makes of it, (L + 1, B, *shape)."""
        states = [z.flatten(1)]
        for w, b, u in zip(self.w, self.b, self.directions()[0], strict=True):
            states.append(states[-1] + torch.tanh(states[-1] @ w + b)[:, None] * u)
        return torch.stack(states).view(-1, *z.shape)


def root(r: Tensor, c: Tensor) -> Tensor:
    """s with s + c tanh s = r, for c > -1 (see `Planar`); of the shape of r."""

    def newton(s: Tensor, r: Tensor) -> Tensor:
        bend = torch.tanh(s)
        return s - (s + c * bend - r) / (1.0 + c * (1.0 - bend.square()))

    with torch.no_grad():
        far, near = r.abs() - c, r.abs() / (1.0 + c)
        s = torch.where(c > 0, torch.maximum(far, near), torch.minimum(far, near))
        for _ in range(NEWTON):
            s = newton(s, r.abs())
        s = s * r.sign()
    return newton(newton(s, r), r)


def check(model: Model, least: int, **fields: int) -> None:
    """Raise ConfigError for the first field below `least`."""
    for name, value in fields.items():
        if value < least:
            raise ConfigError(f"{type(model).__name__}.{name}: given {value}, must be at least {least}")
