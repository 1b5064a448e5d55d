"""Dequantisation and bits per dimension."""

import math

import pytest
import torch

import fokker as fk
from fokker.data import Samples, to_uint8
from fokker.errors import ConfigError
from fokker.likelihood import bits_per_dim, dequantise, log_prob


def test_cells_are_those_that_rounding_makes() -> None:
    values = torch.arange(256, dtype=torch.uint8).repeat(16).reshape(4, 1, 32, 32)
    x, _ = Samples(values).take(torch.arange(4))
    spread = dequantise(x, seed=3)
    assert torch.equal(to_uint8(spread), values)
    u = (spread - x) * 127.5
    assert float(u.min()) < -0.49 and float(u.max()) > 0.49  # whole cells, and no more
    assert abs(float(u.mean())) < 4.0 / math.sqrt(12 * 4096) and abs(float(u.square().mean()) - 1 / 12) < 4.0 * 0.0012
    assert torch.equal(dequantise(x[2:], seed=3, index=torch.tensor([2, 3])), spread[2:])
    assert not torch.equal(dequantise(x), spread)


def test_a_uniform_density_is_k_bits() -> None:
    # Density 1 / 2 on [-1, 1] spread to the outer half cells: every level has the mass of its cell.
    for bits in (1, 3, 8):
        levels = 2**bits
        h = 2.0 / (levels - 1)
        density = torch.tensor([-12.0 * math.log(levels * h)])
        assert abs(float(bits_per_dim(density, (3, 2, 2), levels=levels)) - bits) < 1e-6
    assert abs(float(bits_per_dim(torch.tensor([-6.0 * math.log(2.0)]), (3, 1, 1))) - 2.0) < 1e-6


def test_dequantised_densities_never_exceed_the_probability_and_come_close() -> None:
    # A Gaussian rounded to 8 levels; by Jensen E_u log p(c + h u) + log h <= log P(c), closer where h is small.
    process, law = fk.Flow(), fk.exact.Gaussian([0.1], [0.3])
    for levels, most in ((8, 0.02), (64, 3e-4)):
        h = 2.0 / (levels - 1)
        c = torch.arange(levels).double() * h - 1.0
        inner = torch.special.ndtr(((c[:, None] + torch.tensor([-h, h]) / 2) - 0.1) / math.sqrt(0.3)).diff()[:, 0].log()
        x = c[:, None].repeat(200, 1)
        spread = dequantise(x, levels=levels)
        found = log_prob(law.denoiser(process), spread, grid=torch.linspace(0.0, 1.0, 41), solver="rk4")
        nats = -math.log(2.0) * bits_per_dim(found.value, (1,), levels=levels).reshape(200, levels)
        gap = inner - nats.mean(0)
        error = nats.std(0) / math.sqrt(200)
        assert float((gap / error).min()) > -4.0 and float((gap - 4.0 * error).max()) < most


def test_what_is_no_level_is_refused() -> None:
    with pytest.raises(ConfigError, match="not one of 256 levels"):
        dequantise(torch.tensor([[0.1]]))
    with pytest.raises(ConfigError, match="not one of 4 levels"):
        dequantise(torch.tensor([[5.0 / 3.0]]), levels=4)
    for odd in (math.nan, math.inf, -math.inf):
        with pytest.raises(ConfigError, match="not one of 256 levels"):
            dequantise(torch.tensor([[1.0], [odd]]))
    with pytest.raises(ConfigError, match="levels: given 1, must be at least 2"):
        dequantise(torch.tensor([[0.0]]), levels=1)
