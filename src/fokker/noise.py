"""Randomness keyed by (seed, sample index, draw): Philox4x32-10, the same words on every device.

A draw is a pure function of its key, never of history, batch size or process count:

    key      the 64-bit seed (two 32-bit words)
    counter  (block, sample index, draw = step << 8 | k, domain)

Each counter gives four 32-bit words; two words give two normals by Box-Muller, in the dtype asked for.
Source: Salmon et al. 2011 (Random123); known answer for zero key and counter: 6627e8d5 e169c58d bc57ac4c 9b00dbd8.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import ConfigError

__all__ = [
    "DOMAINS",
    "RESOLUTION",
    "Seed",
    "as_seed",
    "brownian",
    "normal",
    "permutation",
    "philox",
    "rademacher",
    "uniform",
]

Seed = int | Sequence[int] | Tensor
DOMAINS = {
    "prior": 0,
    "sampler": 1,
    "probe": 2,
    "training": 3,
    "order": 4,
    "augmentation": 5,
    "data": 6,
    "brownian": 7,
    "posterior": 8,
    "langevin": 9,
}

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF
_ROUNDS = 10


def _mulhilo(a: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    # The product of two 32-bit words fits into 64 bits as a bit pattern; >> keeps its sign, so the high word is masked.
    product = a * multiplier
    return product >> 32 & _MASK, product & _MASK


def philox(counter: Sequence[Tensor], key: tuple[Tensor | int, Tensor | int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four int64 tensors of 32-bit words from four counters and two key words, broadcast together."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _mulhilo(c0, _MULTIPLIERS[0])
        high1, low1 = _mulhilo(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def as_seed(seed: Seed) -> int | Tensor:
    """A seed as an integer, or as int64 (B,) with the 64 bits of each. Raises ConfigError for anything else."""
    if isinstance(seed, Tensor) and not seed.is_floating_point() and seed.ndim == 1:
        return seed.to(torch.int64)
    try:
        if isinstance(seed, (bool, str, Tensor)):
            raise TypeError
        many: Any = seed
        if isinstance(seed, Sequence) or getattr(seed, "ndim", 0) == 1:
            return torch.tensor([(operator.index(s) + 2**63) % 2**64 - 2**63 for s in many], dtype=torch.int64)
        return operator.index(many)
    except TypeError:
        raise ConfigError(f"seed: given {seed!r}, must be an integer or one integer per sample") from None


def _key(seed: Seed, device: torch.device) -> tuple[Tensor | int, Tensor | int]:
    seed = as_seed(seed)
    if isinstance(seed, int):
        return seed & _MASK, seed >> 32 & _MASK
    seeds = seed.to(device)[:, None]
    return seeds & _MASK, seeds >> 32 & _MASK


def _words(seed: Seed, index: Tensor, count: int, draw: int | Tensor, domain: str) -> Tensor:
    """(B, 4 ceil(count / 4)) 32-bit words, or (M, B, ...) for M draws; word j does not depend on `count`."""
    if index.ndim != 1:
        raise ConfigError(f"index: given shape {tuple(index.shape)}, must be (B,), one number per sample")
    if isinstance(draw, Tensor):
        draw = draw.to(index.device)[:, None, None]
    elif not 0 <= draw < 2**32:
        raise ConfigError(f"draw: given {draw}, must lie in [0, 2^32)")
    device = index.device
    block = torch.arange((count + 3) // 4, device=device, dtype=torch.int64)[None, :]
    rows = index.to(torch.int64)[:, None] & _MASK
    zero = torch.zeros_like(block)
    counter = (block + 0 * rows, rows + zero, zero + draw, zero + DOMAINS[domain])
    return torch.stack(philox(counter, _key(seed, device)), dim=-1).flatten(-2)


def uniform(
    seed: Seed,
    index: Tensor,
    shape: Sequence[int],
    *,
    draw: int = 0,
    domain: str = "sampler",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Uniform numbers strictly inside (0, 1), (B, *shape), for samples `index` (B,) of `seed`."""
    count = math.prod(shape)
    # 23 bits keep the midpoints of a float32 exact, so 0 and 1 cannot be reached by rounding.
    words = _words(seed, index, count, draw, domain)[:, :count]
    value = ((words >> 9).to(dtype) + 0.5) * 2.0**-23 if dtype == torch.float32 else (words.to(dtype) + 0.5) * 2.0**-32
    return value.reshape(len(index), *shape)


def normal(
    seed: Seed,
    index: Tensor,
    shape: Sequence[int],
    *,
    draw: int | Tensor = 0,
    domain: str = "sampler",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal numbers (B, *shape) for samples `index` (B,) of `seed`, on the device of `index`.

    Args:
        seed: one integer (64 bits are used), or one per sample.
        index: which samples, integers in [0, 2^32).
        shape: the event's shape.
        draw: which draw of a sample: step << 8 | k; M integers (M,) give (M, B, *shape).
        domain: a key of `DOMAINS`; draws of different domains are independent.
        dtype: float32 or float64; the same words serve both.
    """
    count = math.prod(shape)
    words = _words(seed, index, count, draw, domain)
    first, second = words[..., 0::2], words[..., 1::2]
    # u = (w + 1/2) 2^-32 rounds to 1 in float32 for the largest words; there log u is taken as log1p(-(1 - u)).
    near_one = first >= 0x80000000
    small = torch.where(near_one, _MASK - first, first).to(dtype).add_(0.5).mul_(2.0**-32)
    log_u = torch.where(near_one, torch.log1p(-small), small.log())
    radius = log_u.mul_(-2.0).sqrt_()
    angle = second.to(dtype).add_(0.5).mul_(2.0 * math.pi * 2.0**-32)
    pair = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)
    return pair.flatten(-2)[..., :count].reshape(*words.shape[:-1], *shape)


def rademacher(
    seed: Seed,
    index: Tensor,
    shape: Sequence[int],
    *,
    draw: int | Tensor = 0,
    domain: str = "probe",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Fair signs -1 and 1, (B, *shape), for samples `index` (B,) of `seed`; M draws (M,) give (M, B, *shape)."""
    count = math.prod(shape)
    words = _words(seed, index, (count + 31) // 32, draw, domain)
    bits = words[..., None] >> torch.arange(32, device=index.device) & 1
    signs = (2 * bits - 1).flatten(-2)[..., :count]
    return signs.to(dtype).reshape(*words.shape[:-1], *shape)


def permutation(seed: int, n: int, epoch: int = 0) -> Tensor:
    """A permutation of n numbers that depends on (seed, epoch) only, domain "order"."""
    one = torch.full((1,), epoch, dtype=torch.int64)
    words = _words(seed, one, 2 * n, 0, "order")[0]
    return torch.argsort(words[:n] << 20 ^ words[n : 2 * n], stable=True)


_DEPTH = 24
RESOLUTION = 2.0**-_DEPTH


def brownian(
    seed: Seed, index: Tensor, times: Tensor, shape: Sequence[int], *, dtype: torch.dtype = torch.float64
) -> Tensor:
    """One standard Brownian path per sample on [0, 1], read at `times`: (len(times), B, *shape).

    Levy's construction on the dyadic tree of fixed depth 24: W(1) first, then midpoints, each node's normal keyed by
    its place in the tree. Any two calls with the same seed and index read the same path, whatever their times.

    Args:
        seed, index: as in `normal`.
        times: (K,) in [0, 1]; rounded to multiples of `RESOLUTION` = 2^-24.
        shape: the event's shape.
    """
    ticks = (times.double().cpu().clamp(0.0, 1.0) * 2**_DEPTH).round().long().tolist()
    known: dict[int, Tensor] = {0: torch.zeros(len(index), *shape, dtype=dtype, device=index.device)}
    known[2**_DEPTH] = normal(seed, index, shape, draw=1, domain="brownian", dtype=dtype)
    levels: list[set[int]] = [set() for _ in range(_DEPTH + 1)]  # the nodes needed, by distance from their parents
    for tick in ticks:
        levels[min(_trailing(tick), _DEPTH)].add(tick)
    for depth in range(_DEPTH):
        half = 1 << depth
        for tick in levels[depth]:
            for parent in (tick - half, tick + half):
                levels[min(_trailing(parent), _DEPTH)].add(parent)
    for depth in reversed(range(_DEPTH)):
        nodes, half = sorted(levels[depth]), 1 << depth
        if nodes:
            numbers = torch.tensor([(1 << _DEPTH - depth) + (tick >> depth) for tick in nodes])
            draws = normal(seed, index, shape, draw=numbers, domain="brownian", dtype=dtype)
            for tick, draw in zip(nodes, draws.mul_(math.sqrt(0.5 * half / 2**_DEPTH)), strict=True):
                known[tick] = 0.5 * (known[tick - half] + known[tick + half]) + draw
    return torch.stack([known[tick] for tick in ticks])


def _trailing(tick: int) -> int:
    """How many zero bits a number ends with; many for 0."""
    return (tick & -tick).bit_length() - 1 if tick else 64
