r"""Laws at a time: the marginal p_t, x_0 given x_t, and the true reverse kernel p(x_t | x_s).

Given x_0, the state x_t on the way from x_s = x is on_x x + on_x0 x_0 + std eps (the bridge, book Eq. 4.4.2), so

    (1)  E[x_t | x_s] = on_x x + on_x0 E[x_0 | x],     Cov[x_t | x_s] = on_x0^2 Cov[x_0 | x] + std^2 I
    (2)  log p(x_t | x_s) = log p_t(x_t) + log N(x; a x_t, b^2 I) - log p_s(x),    (a, b) = transition(t, s)

and x_0 given x is the case on_x = 0, on_x0 = 1, std = 0, (a, b) = (alpha_s, sigma_s).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .. import noise
from ..errors import ConfigError, UndeterminedError
from ..process import Posterior, Process, as_time
from .channel import Channel, Core, MixtureChannel
from .families import lift

__all__ = ["Conditional", "Marginal", "each_chunk", "flat"]

CPU = torch.device("cpu")


def flat(x: Tensor, shape: tuple[int, ...], what: str = "x") -> Tensor:
    """x (B, *shape) as (B, d), at least float32. Raises ConfigError for another shape."""
    if tuple(x.shape[1:]) != shape or x.ndim == 0:
        wanted = ", ".join(["B", *map(str, shape)])
        raise ConfigError(f"{what}: given shape {tuple(x.shape)}, must be ({wanted})")
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return x.reshape(len(x), -1) if x.ndim != 2 else x


def _rows(value: Tensor, part: slice) -> Tensor:
    return value if value.ndim == 0 else value[part]


def each_chunk(
    core: Core,
    x: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    cond: Tensor | None,
    read: Callable[[Channel, slice], tuple[Tensor, ...]],
    share: int = 1,
) -> tuple[Tensor, ...]:
    """`read` of the channels of bounded pieces of the batch, joined: no row's bits depend on where it is cut."""
    core = core.to(x.device, x.dtype)
    rows = max(1, core.rows(x) // share)
    results = []
    for start in range(0, max(1, len(x)), rows):
        part = slice(start, start + rows)
        channel = core.channel(x[part], _rows(alpha, part), _rows(sigma, part), None if cond is None else cond[part])
        results.append(read(channel, part))
    return results[0] if len(results) == 1 else tuple(torch.cat(column) for column in zip(*results, strict=True))


class Marginal:
    """The law p_t of x_t = alpha x_0 + sigma eps: the same words as the data's own law.

    Args (of the methods):
        x: states (B, *event) on any device, float32 or float64; results have its dtype.
        seed, index: sample i depends on (seed, index[i]) only.

    The time may be a number, or (B,), one per row of every x. Made by `law.at(process, t)`; `process=None` is x_0.
    Source: book Sec. 4.1.6; densities and scores of a point mass (sigma = 0 with vanishing variance) do not exist.
    """

    def __init__(self, core: Core, shape: tuple[int, ...], process: Process | None, t: float | Tensor) -> None:
        self.core, self.shape, self.process = core, shape, process
        self.t = as_time(t).double()
        if self.t.ndim > 1:
            raise ConfigError(f"t: given shape {tuple(self.t.shape)}, must be a number or (B,)")
        one = torch.ones((), dtype=torch.float64)
        self.alpha = one if process is None else process.alpha(self.t)
        self.sigma = 0.0 * one if process is None else process.sigma(self.t)
        self._flat_dim = math.prod(shape)

    def _read(self, x: Tensor, read: Callable[[Channel], Tensor], share: int = 1) -> Tensor:
        rows = flat(x, self.shape)
        return each_chunk(self.core, rows, self.alpha, self.sigma, None, lambda c, _: (read(c),), share)[0]

    def log_prob(self, x: Tensor) -> Tensor:
        """log p_t(x) in nats, (B,)."""
        return self._read(x, lambda c: c.log_prob())

    def score(self, x: Tensor) -> Tensor:
        """grad log p_t(x), of the shape of x."""
        return self._read(x, lambda c: c.score()).reshape(x.shape)

    def hessian(self, x: Tensor) -> Tensor:
        """Second derivatives of log p_t, (B, d, d) over the flattened event."""
        return self._read(x, lambda c: c.hessian(), share=self._flat_dim)

    def laplacian(self, x: Tensor) -> Tensor:
        """The divergence of the score, tr Hess log p_t(x), (B,); d x d is never formed."""
        return self._read(x, lambda c: c.laplacian())

    def classify(self, x: Tensor) -> Tensor:
        """p_t(class | x), (B, C). Raises ConfigError without labels."""
        return self._read(x, lambda c: c.classes())

    @property
    def mean(self) -> Tensor:
        """alpha E[x_0], of the event's shape, float64."""
        mean = self.core.moments()[0]
        return (lift(self.alpha, mean, 1) * mean).reshape(*self.alpha.shape, *self.shape)

    @property
    def cov(self) -> Tensor:
        """alpha^2 Cov[x_0] + sigma^2 I, (d, d), float64."""
        cov = self.core.moments()[1]
        eye = torch.eye(len(cov), dtype=torch.float64)
        return lift(self.alpha, cov, 2) ** 2 * cov + lift(self.sigma, cov, 2) ** 2 * eye

    def sample(
        self,
        n: int,
        seed: int = 0,
        *,
        index: Tensor | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """n draws (n, *event): draw i is alpha x_0 + sigma eps with x_0 the data's own sample i of this seed.

        Args:
            n: how many; ignored where `index` (n,) numbers the samples itself.
        """
        index = torch.arange(n, device=device) if index is None else index.to(device)
        core = self.core.to(index.device, dtype)
        pieces, rows = [], max(32, 2**22 // self._flat_dim)
        for start in range(0, max(1, len(index)), rows):
            part = slice(start, start + rows)
            x = core.draw(seed, index[part])
            if self.process is not None:
                eps = noise.normal(seed, index[part], (self._flat_dim,), draw=2, domain="data", dtype=dtype)
                alpha, sigma = (lift(_rows(a, part), x, 1) for a in (self.alpha, self.sigma))
                x = alpha * x + sigma * eps
            pieces.append(x)
        return torch.cat(pieces).reshape(len(index), *self.shape)

    def posterior(self, x: Tensor) -> Conditional:
        """The law of x_0 given x_t = x, one per row. Raises ConfigError for the data's own law."""
        self._process("posterior")
        one, zero = torch.ones_like(self.alpha), torch.zeros_like(self.alpha)
        back = (self.alpha, self.sigma)
        return Conditional(self, x, Marginal(self.core, self.shape, None, 0.0), Posterior(zero, one, zero), back)

    def reverse(self, x: Tensor, t: float | Tensor) -> Conditional:
        """The true reverse kernel p(x_t | x_s = x) from this time s to t <= s, one law per row.

        Raises:
            ConfigError: t > s, or sigma(s) = 0.
        """
        process = self._process("reverse")
        to = as_time(t).double()
        there = Marginal(self.core, self.shape, process, to)
        return Conditional(self, x, there, process.bridge(self.t, to), process.transition(to, self.t))

    def _process(self, what: str) -> Process:
        if self.process is None:
            raise ConfigError(f"{what}: needs an observation: take law.at(process, t).{what}(...)")
        return self.process

    def __repr__(self) -> str:
        return f"Marginal(t={self.t.tolist()}, shape={self.shape}, process={self.process!r})"


class Conditional:
    """The law of x_t given x_s = x (Eqs. 1 and 2), one for each row of x; t = s is a point mass.

    For mixtures it is a mixture again: `weights` (B, K), `means` (B, K, d), `covs` (B, K, d, d).
    """

    def __init__(
        self, here: Marginal, x: Tensor, there: Marginal, bridge: Posterior, forward: tuple[Tensor, Tensor]
    ) -> None:
        self.here, self.there, self.bridge, self.forward = here, there, bridge, forward
        self.x, self.shape = x, here.shape
        self._rows = flat(x, here.shape)

    def _read(self, read: Callable[[Channel, slice], Tensor], share: int = 1) -> Tensor:
        at = self.here
        found = each_chunk(at.core, self._rows, at.alpha, at.sigma, None, lambda c, part: (read(c, part),), share)
        return found[0]

    def _mixture(self, read: Callable[[MixtureChannel], Tensor], share: int) -> Tensor:
        def checked(channel: Channel, _: slice) -> Tensor:
            if not isinstance(channel, MixtureChannel):
                raise ConfigError("a data set's components are its points: ask for mean, cov, sample or log_prob")
            return read(channel)

        return self._read(checked, share)

    def _along(self, x0: Tensor) -> Tensor:
        on_x, on_x0 = (lift(a, x0, x0.ndim - 1) for a in self.bridge[:2])
        rows = self._rows.reshape(len(x0), *(1,) * (x0.ndim - 2), -1)
        return on_x * rows + on_x0 * x0

    def _widen(self, covs: Tensor) -> Tensor:
        _, on_x0, std = (lift(a, covs, covs.ndim - 1) for a in self.bridge)
        return on_x0**2 * covs + std**2 * torch.eye(covs.shape[-1], dtype=covs.dtype, device=covs.device)

    @property
    def weights(self) -> Tensor:
        """Responsibilities of the components, (B, K)."""
        return self._mixture(lambda c: c.weights, 1)

    @property
    def means(self) -> Tensor:
        """The components' means, (B, K, d)."""
        return self._along(self._mixture(lambda c: c.means(), 1))

    @property
    def covs(self) -> Tensor:
        """The components' covariances, (B, K, d, d)."""
        return self._widen(self._mixture(lambda c: c.covs(), math.prod(self.shape)))

    @property
    def mean(self) -> Tensor:
        """E[x_t | x_s = x], of the shape of x."""
        return self._along(self._read(lambda c, _: c.x0())).reshape(self.x.shape)

    @property
    def cov(self) -> Tensor:
        """Cov[x_t | x_s = x], (B, d, d)."""
        return self._widen(self._read(lambda c, _: c.x0_cov(), math.prod(self.shape)))

    def log_prob(self, x_t: Tensor) -> Tensor:
        """log p(x_t | x_s = x) in nats, (B,), row by row; Eq. (2). Raises UndeterminedError for a point mass."""
        a, b = self.forward
        if b.device.type == "cpu" and bool((b == 0).any()):
            raise UndeterminedError("log_prob: x_s determines x_t here (no noise in between), there is no density")
        rows = flat(x_t, self.shape, "x_t")
        miss = (self._rows - lift(a, rows, 1) * rows) / lift(b, rows, 1)
        constant = lift((2.0 * math.pi * b**2).log(), rows, 0)
        channel = -0.5 * (miss.square().sum(-1) + rows.shape[1] * constant)
        return self.there.log_prob(x_t) + channel - self.here.log_prob(self.x)

    def sample(self, seed: int = 0, index: Tensor | None = None, draw: int = 0) -> Tensor:
        """One draw for each row, of the shape of x.

        Args:
            seed, index: row i depends on (seed, index[i], draw) only; index defaults to 0..B-1.
            draw: which draw; give another one at every step of a chain.
        """
        rows = self._rows
        index = torch.arange(len(rows), device=rows.device) if index is None else index.to(rows.device)
        x0 = self._read(lambda c, part: c.pick(seed, index[part], draw))
        word = draw << 8 | 2
        eps = noise.normal(seed, index, (rows.shape[1],), draw=word, domain="sampler", dtype=rows.dtype)
        return (self._along(x0) + lift(self.bridge.std, rows, 1) * eps).reshape(self.x.shape)
