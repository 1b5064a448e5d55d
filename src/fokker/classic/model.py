"""What the classic generative models share: a loss of their own, a way to draw, and what they know of their density."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..sampling import tracked

__all__ = ["Model"]


class Model(nn.Module):
    """A generative model that is no denoiser: energy, VAE, flow, autoregressive, GAN. A recipe's `model:` names one.

    A subclass has `losses` and `draw`, and `log_prob` unless `likelihood` is "none".

    Args:
        shape: of one sample.
    """

    likelihood: ClassVar[Literal["exact", "bound", "none"]] = "none"
    """What `log_prob` gives: log p(x), a lower bound of it in the mean, or nothing."""

    alone: ClassVar[bool] = False
    """Whether it keeps what only one process can (chains, say), so that one process must train it."""

    @property
    def levels(self) -> int | None:
        """Levels a pixel of the pictures (256: bytes) whose probability `log_prob` is; None where it is a density."""
        return None

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        if not self.shape or min(self.shape) < 1:
            raise ConfigError(
                f"{type(self).__name__}.shape: given {shape}, must be the sizes of one sample, such as (2,)"
            )

    def losses(self, x: Tensor, *, seed: int = 0, step: int = 0, positions: Tensor | None = None) -> Tensor:
        """The losses of a batch x (B, *shape), sample by sample (B,); their mean is minimised.

        What is drawn depends on (seed, step, position in the global batch) alone.

        Args:
            x: data.
            seed, step: keys of the randomness; step < 2^24.
            positions: this part's places in the global batch, default range(B).
        """
        raise NotImplementedError

    def draw(self, indices: Tensor, seed: int) -> Tensor:
        """Samples number `indices` (n,) of `seed`, (n, *shape)."""
        raise NotImplementedError

    def log_prob(self, x: Tensor, *, seed: int = 0, indices: Tensor | None = None) -> Tensor:
        """log p(x) in nats, or a lower bound of it in the mean over draws (`likelihood`), of x (B, *shape): (B,).

        Args:
            x: data.
            seed: of what a bound draws.
            indices: which draws the rows take, default range(B).
        """
        raise ConfigError(f"{type(self).__name__} has no density that can be evaluated")

    @torch.no_grad()
    def sample(
        self,
        n: int | None = None,
        *,
        indices: Sequence[int] | Tensor | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        pad: bool = False,
        progress: bool | Callable[[int], object] = False,
    ) -> Tensor:
        """Samples number `indices` (default range(n)) of `seed`, on the model's device: (n, *shape).

        Args:
            n: how many; default 64, unless `indices` says which.
            indices: sample i is the same whichever others are drawn, up to rounding.
            seed: the same seed gives the same samples.
            batch_size: how many at once; default all.
            pad: fill the last batch up, so that every sample is drawn among as many: the same bits then.
            progress: as in `sample`.

        Raises:
            ConfigError: n or batch_size is below 1, or n differs from the number of indices.
        """
        numbers = torch.arange(64 if n is None else n) if indices is None else torch.as_tensor(indices)
        for name, value in (("n", len(numbers)), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise ConfigError(f"{name}: given {value}, must be at least 1")
        if n is not None and n != len(numbers):
            raise ConfigError(f"n: given {n} with {len(numbers)} indices; leave n out")
        numbers, found = numbers.to(next(self.parameters()).device), []
        size = len(numbers) if batch_size is None else batch_size
        for part in tracked([slice(i, min(i + size, len(numbers))) for i in range(0, len(numbers), size)], progress):
            rows, count = numbers[part], part.stop - part.start
            if pad and count < size:
                rows = torch.cat([rows, rows[-1:].expand(size - count)])
            found.append(self.draw(rows, seed)[:count])
        return torch.cat(found)
