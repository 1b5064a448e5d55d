"""What sample and encode make of the types and shapes they are given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fokker.errors import ConfigError
from fokker.exact import GaussianMixture
from fokker.process import VP
from fokker.sampling import encode, sample

DENOISER = GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [0.8, 0.0]], [0.1, 0.05]).denoiser(VP())
F32, F64 = torch.float32, torch.float64


@pytest.mark.parametrize(
    ("given", "asked", "made"),
    [(F32, F32, F32), (F32, F64, F64), (F64, F32, F64), (torch.float16, F32, F32), (torch.int64, F64, F64)],
)
def test_the_state_has_the_wider_type(given: Any, asked: Any, made: Any) -> None:
    x = torch.tensor([[1.0, -2.0], [0.0, 3.0]]).to(given)
    got = sample(DENOISER, x=x, steps=4, dtype=asked)
    assert got.dtype == made and torch.equal(got, sample(DENOISER, x=x.to(made), steps=4))


@pytest.mark.parametrize("given", [torch.float16, torch.bfloat16, torch.int64, torch.uint8])
def test_data_of_any_type_are_encoded(given: Any) -> None:
    x = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
    got = encode(DENOISER, x.to(given), steps=4)
    assert got.dtype == F32 and torch.equal(got, encode(DENOISER, x, steps=4))
    assert encode(DENOISER, x.double(), steps=4).dtype == F64


def test_shape_and_x_agree() -> None:
    x = torch.ones(3, 2)
    assert torch.equal(sample(DENOISER, x=x, shape=(2,), steps=3), sample(DENOISER, x=x, steps=3))
    with pytest.raises(ConfigError, match=r"shape: given \(1,\), but x has events of shape \(2,\)"):
        sample(DENOISER, x=x, shape=(1,), solver="sa", steps=3)


@pytest.mark.parametrize("name", ["steps", "nfe", "n", "batch_size"])
def test_counts_are_integers_of_any_kind(name: str) -> None:
    options: dict[str, Any] = {"n": 4, "steps": 3}
    if name == "nfe":
        del options["steps"]
    want = sample(DENOISER, **{**options, name: 3})
    for kind in (np.int64, np.uint8, torch.tensor):
        assert torch.equal(sample(DENOISER, **{**options, name: kind(3)}), want)
    for bad in (True, np.True_, 2.0, "2", 0, np.int32(-1)):
        with pytest.raises(ConfigError, match=f"{name}: given .*at least 1"):
            sample(DENOISER, **{**options, name: bad})
