"""Distances between the points of two clouds, in float64 and in blocks, so that no metric holds more than one block.

|x - y|^2 = |x|^2 + |y|^2 - 2 <x, y>,  both clouds moved by the mean of y first, against cancellation.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import ConfigError

__all__ = ["BLOCK", "blocks", "cloud", "clouds", "nearest", "squared_distances"]

BLOCK = 2048  # rows of a block: 32 MB of float64 against as many columns


def cloud(x: Tensor, name: str, least: int = 1) -> Tensor:
    """A cloud (N, *event) as float64 (N, D).

    Raises:
        ConfigError: fewer than `least` points, no event, or a number that is not finite.
    """
    if x.ndim < 2 or len(x) < least:
        raise ConfigError(f"{name}: given shape {tuple(x.shape)}, must be (N, *event) with N >= {least}")
    flat = x.detach().flatten(1).to(torch.float64)
    if not bool(torch.isfinite(flat).all()):
        bad = int((~torch.isfinite(flat)).any(1).sum())
        raise ConfigError(f"{name}: {bad} of {len(x)} points are not finite; no metric is defined for them")
    return flat


def clouds(x: Tensor, y: Tensor, name: str, least: int = 1) -> tuple[Tensor, Tensor]:
    """Two clouds of points of one dimension, each as `cloud`. Raises ConfigError."""
    a, b = cloud(x, name, least), cloud(y, name, least)
    if x.shape[1:] != y.shape[1:]:
        raise ConfigError(f"{name}: given points of shape {tuple(x.shape[1:])} and {tuple(y.shape[1:])}, must be equal")
    return a, b


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2 (N, M) of float64 clouds (N, D) and (M, D), never negative."""
    centre = y.mean(0)
    a, b = x - centre, y - centre
    square = torch.addmm(b.square().sum(1)[None, :], a, b.T, alpha=-2.0) + a.square().sum(1)[:, None]
    return square.clamp_(min=0.0)


def blocks(x: Tensor, y: Tensor) -> Iterator[tuple[slice, slice]]:
    """The places of all blocks of the matrix of pairs."""
    for i in range(0, len(x), BLOCK):
        for j in range(0, len(y), BLOCK):
            yield slice(i, i + BLOCK), slice(j, j + BLOCK)


def nearest(x: Tensor, y: Tensor, k: int = 1, *, itself: bool = False) -> tuple[Tensor, Tensor]:
    """The k nearest points of y to every point of x: distances and indices, each (N, k), nearest first.

    Args:
        x, y: clouds (N, D) and (M, D).
        k: neighbours, 1 to M.
        itself: x is y, and no point is its own neighbour (k at most M - 1).

    Raises:
        ConfigError: y has too few points.
    """
    if not 1 <= k <= len(y) - itself:
        raise ConfigError(f"nearest: given k={k} and {len(y)} points, must be between 1 and {len(y) - itself}")
    found = []
    for rows in range(0, len(x), BLOCK):
        a = x[rows : rows + BLOCK].double()
        best = torch.full((len(a), k), torch.inf, dtype=torch.float64, device=x.device)
        index = torch.zeros(len(a), k, dtype=torch.int64, device=x.device)
        for start in range(0, len(y), BLOCK):
            square = squared_distances(a, y[start : start + BLOCK].double())
            if itself:
                place = torch.arange(rows, rows + len(a), device=x.device) - start
                inside = (place >= 0) & (place < square.shape[1])
                square[inside, place[inside]] = torch.inf
            here = torch.arange(start, start + square.shape[1], device=x.device).expand_as(square)
            best, choice = torch.cat([best, square], 1).topk(k, largest=False, sorted=True)
            index = torch.cat([index, here], 1).gather(1, choice)
        # Computed again from the difference: a copy is at distance 0 exactly.
        exact = torch.stack([(a - y[column].double()).norm(dim=1) for column in index.T], 1)
        found.append((exact, index))
    distance, order = torch.cat([d for d, _ in found]).sort(dim=1, stable=True)
    return distance, torch.cat([i for _, i in found]).gather(1, order)
