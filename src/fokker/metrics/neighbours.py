"""What nearest neighbours say: precision, recall, density, coverage, and whether training data were copied."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import Samples
from ..errors import ConfigError
from .pairs import blocks, cloud, clouds, nearest, squared_distances

__all__ = ["Memorisation", "Support", "copied_share", "memorisation", "nearness", "support"]

LEVEL = 0.05  # the share of held-out rows that the threshold of a copy lets through


@dataclass(frozen=True)
class Support:
    """How the supports of two clouds overlap; see `support`."""

    precision: float
    recall: float
    density: float
    coverage: float


def support(x: Tensor, real: Tensor, k: int = 5) -> Support:
    """Precision, recall, density and coverage, from balls B around points out to their k-th nearest neighbour.

        precision  share of x inside some ball of real           recall    share of real inside some ball of x
        density    mean over x of the balls of real it is in, / k   coverage  share of balls of real that hold some x

    For equal laws density is 1 on average, and coverage of N real points by M others is
    1 - (N-1)...(N-k) / ((M+N-1)...(M+N-k)), whatever the law.

    Args:
        x, real: features (M, *event) and (N, *event).
        k: neighbours, less than the smaller cloud has points.

    Raises:
        ConfigError: clouds of different features, or too few points.
    Source: Kynkaanniemi et al. 2019 (Eqs. 1-3); Naeem et al. 2020 (Eqs. 4 and 5, Sec. 3.3).
    """
    a, b = clouds(x, real, "support", 2)
    if not 1 <= k < min(len(a), len(b)):
        raise ConfigError(f"support: given k={k}, must be at least 1 and less than {min(len(a), len(b))} points")
    # A point on the border is inside, also when the two ways to its distance round apart.
    slack = 1e-12 * (b - b.mean(0)).square().sum(1).mean()
    reach_x, reach_real = (nearest(z, z, k, itself=True)[0][:, -1].square() * (1 + 1e-9) + slack for z in (a, b))
    balls = torch.zeros(len(a), dtype=torch.int64, device=a.device)
    inside_x = torch.zeros(len(b), dtype=torch.bool, device=a.device)
    covered = torch.zeros_like(inside_x)
    for rows, columns in blocks(a, b):
        square = squared_distances(a[rows], b[columns])
        held = square <= reach_real[columns]
        balls[rows] += held.sum(1)
        covered[columns] |= held.any(0)
        inside_x[columns] |= (square <= reach_x[rows, None]).any(0)
    shares = [part.double().mean() for part in (balls > 0, inside_x, balls, covered)]
    precision, recall, density, coverage = torch.stack(shares).tolist()
    return Support(precision, recall, density / k, coverage)


@dataclass(frozen=True, eq=False)
class Memorisation:
    """What `memorisation` found.

    Args:
        copied: the estimated share of copies; about 0 for samples independent of the training data.
        nearness: the chance that a sample's ratio is below a held-out row's; 1/2 for independent samples.
        ratio, held_out_ratio: of the samples (N,) and of the held-out rows (H,).
        train, held_out: the row nearest to each sample (N,).
    """

    copied: float
    nearness: float
    ratio: Tensor
    held_out_ratio: Tensor
    train: Tensor
    held_out: Tensor


def memorisation(x: Tensor, train: Samples | Tensor, held_out: Tensor) -> Memorisation:
    """Whether samples lie nearer to training rows than held-out rows do: a search for copies.

    The ratio of a point is its distance to the nearest training row over that to the nearest held-out row (the nearest
    other one, if it is held out itself). Independent samples have the ratios of held-out rows; a copy has a small one,
    while a sample that is merely dull is near to both. With q the 5 % quantile of the held-out ratios,

        copied   = (share of samples with ratio < q - 0.05) / 0.95
        nearness = P(ratio of a sample < ratio of a held-out row), ties counted half

    Training rows that are also held out cannot be told from copies, and give no alarm: both distances are 0, the
    ratio is 1.

    Args:
        x: samples (N, *event), as `Samples.take` gives data.
        train, held_out: the rows the model learned from, and rows (H, *event) it never saw (two or more). `Samples`
            are read in chunks, so that a large training set need not become numbers at once.

    Raises:
        ConfigError: events differ, or there are too few rows.
    Source: distances as in Carlini et al. 2023 (Sec. 4.1); the rank statistic as in Meehan et al. 2020 (Sec. 2).
    """
    event = tuple(train.shape[1:]) if isinstance(train, Tensor) else train.shape
    if not tuple(x.shape[1:]) == event == tuple(held_out.shape[1:]) or len(held_out) < 2:
        given = f"{tuple(x.shape[1:])}, {event} and {tuple(held_out.shape[1:])}"
        raise ConfigError(f"memorisation: given events {given}, must be equal, with two or more held-out rows")
    points, real = (cloud(part.cpu(), "memorisation") for part in (x, held_out))
    to_train, train_index = _nearest_row(points, train)
    to_held, held_index = (part[:, 0] for part in nearest(points, real))
    ratio = _ratio(to_train, to_held)
    held_ratio = _ratio(_nearest_row(real, train)[0], nearest(real, real, itself=True)[0][:, 0])
    return Memorisation(
        copied_share(ratio, held_ratio), nearness(ratio, held_ratio), ratio, held_ratio, train_index, held_index
    )


def _nearest_row(x: Tensor, data: Samples | Tensor, chunk: int = 8192) -> tuple[Tensor, Tensor]:
    """The distance to and the number of the nearest row, read in chunks."""
    best = torch.full((len(x),), torch.inf, dtype=torch.float64)
    index = torch.zeros(len(x), dtype=torch.int64)
    for rows in torch.split(torch.arange(len(data)), chunk):
        y = data[rows].cpu() if isinstance(data, Tensor) else data.take(rows)[0]
        distance, place = (part[:, 0] for part in nearest(x, y.flatten(1)))
        index = torch.where(distance < best, rows[place], index)
        best = torch.minimum(distance, best)
    return best, index


def _ratio(near: Tensor, far: Tensor) -> Tensor:
    tiny = torch.finfo(near.dtype).tiny
    return (near + tiny) / (far + tiny)


def copied_share(ratio: Tensor, held_out_ratio: Tensor) -> float:
    """(share of ratios below the 5 % quantile of the held-out ones - 0.05) / 0.95; see `memorisation`."""
    threshold = held_out_ratio.quantile(LEVEL)
    return float(((ratio < threshold).double().mean() - LEVEL) / (1 - LEVEL))


def nearness(ratio: Tensor, held_out_ratio: Tensor) -> float:
    """P(a ratio < a held-out ratio), ties counted half: the Mann-Whitney statistic; see `memorisation`."""
    ordered = held_out_ratio.sort().values
    below, upto = (torch.searchsorted(ordered, ratio, right=right).double() for right in (False, True))
    return float(1 - (below + upto).mean() / (2 * len(ordered)))
