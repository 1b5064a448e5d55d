"""Intervals by half-samples: how far a metric of n points moves from draw to draw, without drawing anew.

Rows drawn with replacement repeat, and a repeated row is its own nearest neighbour: a bootstrap would bias transport
distances, neighbour counts and U-statistics. Half of the rows, drawn without replacement, hold no repetition. A mean of
n/2 rows out of n given ones has the variance (1 - 1/2) s^2 / (n/2) = s^2 / n, that of the mean of n fresh rows; so
the spread of a metric over half-samples is its spread at n, with nothing to rescale. It is the delete-half jackknife;
where a metric's linear part vanishes (equal laws, a U-statistic) it is too wide by up to sqrt(3), never too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import NormalDist

import torch
from torch import Tensor

from .. import noise as philox
from ..errors import ConfigError

__all__ = ["half_sample_interval"]


def half_sample_interval(
    statistic: Callable[..., Sequence[float]],
    rows: Sequence[int],
    values: Sequence[float],
    *,
    halves: int = 30,
    level: float = 0.95,
    seed: int = 0,
) -> list[tuple[float, float]]:
    """An interval for the mean of each statistic over fresh draws of the same size: value +- z sd over half-samples.

    It says how certain the number is at this n. What n points add on average (the bias of a transport or Frechet
    distance) is in the value and in both ends alike; the floors show that.

    Args:
        statistic: from one index tensor per cloud to numbers.
        rows: the size of each cloud; every one is halved apart.
        values: the numbers at full size.
        halves: half-samples drawn, at least 2.
        level: in (0, 1).
        seed: of the halves.

    Returns:
        (low, high) for every value.

    Raises:
        ConfigError: halves, level or a cloud's size is out of range.
    Source: Shao and Wu 1989 (delete-d jackknife); Politis, Romano and Wolf 1999 (Ch. 2).
    """
    if halves < 2 or not 0 < level < 1 or min(rows) < 4:
        raise ConfigError(
            f"half_sample_interval: given halves={halves}, level={level} and {min(rows)} rows, "
            "must be at least 2, in (0, 1) and at least 4"
        )
    number, found = torch.arange(halves), torch.empty(halves, len(values), dtype=torch.float64)
    keys = (philox.uniform(seed, number, (n,), draw=j, domain="order") for j, n in enumerate(rows, 1))
    parts = [key.argsort(dim=1)[:, : key.shape[1] // 2] for key in keys]
    for i, half in enumerate(zip(*parts, strict=True)):
        found[i] = torch.tensor(list(statistic(*half)), dtype=torch.float64)
    reach: Tensor = NormalDist().inv_cdf((1 + level) / 2) * found.std(0)
    return [(value - r, value + r) for value, r in zip(values, reach.tolist(), strict=True)]
