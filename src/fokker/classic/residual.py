r"""Residual flows: layers x = z - v(x) with Lip(v) < 1, and the log-determinant of 1 + dv as a power series.

    (1)  F_k^{-1}(x) = x + v_k(x),   its inverse the limit of x <- z - v_k(x): an error shrinks by Lip(v_k) each time
    (2)  log det(1 + J) = sum_{k>=1} (-1)^{k+1} / k tr J^k,     positive, so there is no |.|
    (3)  |sum_{k>n}| <= d c^{n+1} / ((n+1)(1-c)),   c = |J|_2:   what leaving off after n terms may err
    (4)  sum_{k<=N} (-1)^{k+1} / k tr J^k / P(N >= k),   N random: the mean is (2) itself (Russian roulette)
    (5)  tr J^k = E[u^T J^k u],   signs u: k products with J^T per probe

The layer reads from data to noise, so that the density needs no fixed point, only sampling does; the book's F(z) =
z + v(z) is its mirror image. N is geometric beyond n terms, P(N >= k) = c^{2(k-n)}: were survival rarer, the variance
of (4) could be infinite. Sources: book Eq. 5.1.5-5.1.6; Behrmann et al. 2019; Chen et al. 2019.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from .. import noise
from ..calculus import Probes, jacobian
from ..calculus.operators import dot, pulling, trace
from ..component import recorded
from ..errors import ConfigError
from .flows import Bijection, check

__all__ = ["Contraction", "Residual", "log_det_series", "roulette"]

SMALL = 16  # dimensions up to which evaluation takes the determinant itself
STEEPEST = 1.1  # silu' is at most 1.09984


class Contraction(nn.Module):
    """A perceptron of two hidden layers with Lip < c: every weight has the 2-norm c^{1/3} at most, silu is over 1.1.

    The norms are found anew each time, exactly, so that averaged weights keep the bound as well.

    Args:
        dim: d, of input and output.
        width: of the hidden layers.
        lipschitz: c.
    """

    def __init__(self, dim: int, width: int, lipschitz: float) -> None:
        super().__init__()
        sizes = ((dim, width), (width, width), (width, dim))
        self.layers = nn.ModuleList(nn.Linear(*size) for size in sizes)
        self.most = lipschitz ** (1.0 / len(sizes))

    def weights(self) -> list[tuple[Tensor, Tensor]]:
        """(W, b) of every layer, W scaled down to the bound where it exceeds it."""
        pairs = []
        for layer in self.layers:
            W, b = layer.weight, layer.bias
            size = torch.linalg.matrix_norm(W, ord=2)
            pairs.append((W * (self.most / size).clamp(max=1.0), b))
        return pairs  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """v(x), (B, d)."""
        return apply(self.weights(), x)


def apply(weights: list[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    """The perceptron of these weights."""
    for number, (W, b) in enumerate(weights):
        x = torch.addmm(b, silu(x) / STEEPEST if number else x, W.T)
    return x


def log_det_series(v: Callable[[Tensor], Tensor], x: Tensor, weights: Tensor, probes: Probes = None) -> Tensor:
    """sum_k weights_k (-1)^{k+1} / k tr J^k with J = dv/dx at every row, (B,), Eqs. (2), (4), (5).

    Args:
        v: (B, d) -> (B, d), every row alone.
        x: (B, d).
        weights: (n,) or (B, n): ones leave off after n terms, `roulette` gives those of Eq. (4).
        probes: None for exact traces; or as in `calculus.divergence`.
    """
    _, pull = pulling(v, x)
    k = torch.arange(1, weights.shape[-1] + 1, device=x.device, dtype=x.dtype)
    signed = weights.to(x) * torch.where(k % 2 == 1, 1.0, -1.0) / k

    def form(u: Tensor) -> Tensor:
        power, total = u, torch.zeros_like(x[:, 0])
        for weight in signed.unbind(-1):
            power = pull(power)
            total = total + weight * dot(u, power)
        return total

    return trace(form, x, x.shape[1:], probes, None, None).value


def roulette(terms: int, survival: float, seed: int, index: Tensor, draw: int = 0) -> Tensor:
    """1[N >= k] / P(N >= k) for k = 1..max N, (B, max N): N >= `terms`, P(N >= k) = survival^{k - terms} beyond.

    Args:
        terms: always taken, >= 1.
        survival: in (0, 1).
        seed, index, draw: key of N, one per sample.
    """
    u = noise.uniform(seed, index.cpu(), (), draw=draw, domain="probe", dtype=torch.float64)
    more = (u.log() / math.log(survival)).floor()
    k = torch.arange(1, terms + int(more.max()) + 1)
    beyond = (k - terms).clamp(min=0)
    return (beyond <= more[:, None]) * survival ** -beyond.double()


@recorded
class Residual(Bijection):
    """Residual layers, invertible because each is a contraction beside the identity.

    Up to 16 dimensions the log-determinant is that of the Jacobian; above them it is the roulette's, and `log_prob` is
    right on average, with noise. In training it may be chosen.

    Args:
        shape: of one sample, d numbers.
        layers: >= 1, <= 128.
        width: of a layer's two hidden layers, >= 1.
        lipschitz: c, in (0, 1): the bound of every layer's Lipschitz constant. A layer multiplies a length by 1 - c to
            1 + c; sampling takes log(eps / 10) / log c evaluations of it, eps the dtype's.
        log_det: in training: "auto" (as above), "exact" (d products with J^T and a determinant), "roulette" (unbiased)
            or "series" (`terms` alone, biased by Eq. (3)).
        terms: of the series, or of the roulette before chance decides, >= 1.
    """

    config: dict[str, object]

    def __init__(
        self,
        shape: tuple[int, ...],
        layers: int = 8,
        width: int = 64,
        lipschitz: float = 0.9,
        log_det: Literal["auto", "exact", "roulette", "series"] = "auto",
        terms: int = 4,
    ) -> None:
        super().__init__(shape)
        check(self, 1, layers=layers, width=width, terms=terms)
        if layers > 128:
            raise ConfigError(f"Residual.layers: given {layers}, must be at most 128")
        if not 0.0 < lipschitz < 1.0:
            raise ConfigError(f"Residual.lipschitz: given {lipschitz}, must lie in (0, 1)")
        self.lipschitz, self.log_det, self.terms = lipschitz, log_det, terms
        self.layers = nn.ModuleList(Contraction(self.dim, width, lipschitz) for _ in range(layers))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """F(z) and log det dF/dz (of `inverse` at F(z), with its estimator)."""
        x = self.trajectory(z)[-1]
        return x, -self.inverse(x)[1]

    def inverse(
        self, x: Tensor, *, seed: int = 0, step: int = 0, indices: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """F^{-1}(x) and its log-determinant."""
        z, log_det = x.flatten(1), x.new_zeros(len(x))
        index = torch.arange(len(x), device=x.device) if indices is None else indices
        how = self.log_det if self.training else "auto"
        if how == "auto":
            how = "exact" if self.dim <= SMALL else "roulette"
        for number, layer in enumerate(self.layers):
            weights: list[tuple[Tensor, Tensor]] = layer.weights()  # type: ignore[operator]

            def v(x: Tensor, weights: list[tuple[Tensor, Tensor]] = weights) -> Tensor:
                return apply(weights, x)

            if how == "exact":
                log_det = log_det + torch.linalg.slogdet(jacobian(v, z) + torch.eye(self.dim).to(z))[1]
            else:
                draw = step << 8 | number
                u = noise.rademacher(seed, index, (self.dim,), draw=draw, dtype=z.dtype)[None]
                chance = torch.ones(self.terms)
                if how == "roulette":
                    chance = roulette(self.terms, self.lipschitz**2, seed, index, draw + 128)
                log_det = log_det + log_det_series(v, z, chance, u)
            z = z + v(z)
        return z.view(x.shape), log_det

    def trajectory(self, z: Tensor) -> Tensor:
        """z and what every layer makes of it, (L + 1, B, *shape), by the fixed-point steps that c asks for."""
        states = [z.flatten(1)]
        count = math.ceil(math.log(0.1 * torch.finfo(z.dtype).eps) / math.log(self.lipschitz))
        for layer in reversed(self.layers):
            weights: list[tuple[Tensor, Tensor]] = layer.weights()  # type: ignore[operator]
            x = states[-1]
            for _ in range(count):
                x = states[-1] - apply(weights, x)
            states.append(x)
        return torch.stack(states).view(-1, *z.shape)
