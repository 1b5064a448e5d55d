"""Shared by all tests: one thread and a fixed global seed, so that a failure is the same failure everywhere."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
