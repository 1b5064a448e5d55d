"""What the classic generative models share: a loss of their own, a way to draw, and what they know of their density."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..sampling import as_indices, tracked
from ..solvers.base import count

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
        """The losses of a batch x (B, *shape), sample by sample (B,); their mean is minimised. Calls `check`.

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

    def check(self, x: Tensor) -> Tensor:
        """x itself, if it is a batch (B, *shape) in the model's precision, where the model is. Raises ConfigError."""
        weight = next(self.parameters())
        if tuple(x.shape[1:]) != self.shape or x.ndim == 0:
            wanted = ", ".join(["B", *map(str, self.shape)])
            raise ConfigError(f"x: given shape {tuple(x.shape)}, must be ({wanted})")
        if x.dtype != weight.dtype or x.device != weight.device:
            raise ConfigError(
                f"x: given {x.dtype} on {x.device}, but the model is {weight.dtype} on {weight.device}: "
                "take x.to(model's) or model.to(x's)"
            )
        return x

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
        n, batch_size = count("n", n), count("batch_size", batch_size)
        numbers = torch.arange(64 if n is None else n) if indices is None else as_indices(indices)
        if n is not None and n != len(numbers):
            raise ConfigError(f"n: given {n} with {len(numbers)} indices; leave n out")
        numbers, found = numbers.to(next(self.parameters()).device), []
        size = len(numbers) if batch_size is None else batch_size
        for part in tracked([slice(i, min(i + size, len(numbers))) for i in range(0, len(numbers), size)], progress):
            rows, few = numbers[part], part.stop - part.start
            if pad and few < size:
                rows = torch.cat([rows, rows[-1:].expand(size - few)])
            found.append(self.draw(rows, seed)[:few])
        return torch.cat(found)
