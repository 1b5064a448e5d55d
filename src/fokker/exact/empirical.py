"""A data set as an exact law: the mixture of its points."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..component import Array, component
from ..errors import ConfigError, UndeterminedError
from .laws import Law, label_tensor
from .points import Points

__all__ = ["Empirical", "PointArray"]

CHUNK = 2**20


class PointArray(Array):
    """An `Array` that keeps float32 where float32 holds every number exactly, and float64 otherwise.

    Data sets are float32 or bytes almost always; float64 would only double the memory. The dtype follows from the
    numbers alone, so that equal content means equal digests whatever it was given as.
    """

    def __init__(self, values: Any) -> None:
        values = values.value if isinstance(values, Array) else values
        given = torch.as_tensor(np.asarray(values) if isinstance(values, (list, tuple)) else values).detach().cpu()
        wide = given if given.dtype in (torch.float32, torch.float64) else given.double()
        if wide.dtype == torch.float64 and all(
            bool((part.float().double() == part).all()) for part in torch.split(wide.reshape(-1), CHUNK)
        ):
            wide = wide.float()
        self.value = wide.clone(memory_format=torch.contiguous_format) if wide is given else wide.contiguous()
        digest = hashlib.sha256(f"{tuple(self.value.shape)} {self.value.dtype}".encode())
        digest.update(self.value.numpy().data)
        self.digest = digest.hexdigest()
        self._casts = {}

    @classmethod
    def _validate(cls, values: Any) -> PointArray:
        if isinstance(values, cls):
            return values
        try:
            array = cls(values)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"must be an array of numbers ({error})") from None
        if not all(bool(torch.isfinite(part).all()) for part in torch.split(array.value.reshape(-1), CHUNK)):
            raise ValueError("must be an array of finite numbers")
        return array


@component
class Empirical(Law):
    """The law of a draw from a data set, (1/N) sum_n delta(x_n): the exact answer of a network that memorises.

    Work is O(N d) for each state, memory does not grow with the product of N and the batch.

    Args:
        data: (N, *event), N >= 1; kept in float32 if that loses nothing, read block by block in the dtype of x.
        labels: (N,), the class 0..C-1 of each point, for class-conditional laws.

    Raises:
        ConfigError: wrong shapes or labels.
        UndeterminedError: from `log_prob` of the data itself, which has no density.
    """

    data: PointArray
    labels: Array | None = None

    def __post_init__(self) -> None:
        data = self.data.value
        if data.ndim < 2 or not data.numel():
            raise ConfigError(f"Empirical.data: given shape {tuple(data.shape)}, must be (N, *event)")
        labels = label_tensor("Empirical", self.labels, len(data))
        object.__setattr__(self, "_core", Points(data.flatten(1), labels, torch.float32))
        object.__setattr__(self, "shape", tuple(data.shape[1:]))

    @property
    def mean(self) -> Tensor:
        """The mean of the points, of the event's shape, float64."""
        return self.moments().mean

    @property
    def cov(self) -> Tensor:
        """The covariance of the points (d, d), with 1/N; float64."""
        return self.moments().cov

    def given(self, label: int) -> Empirical:
        """The points of one class."""
        if not 0 <= label < self.n_classes:
            raise ConfigError(f"given: class {label}; allowed: 0 to {self.n_classes - 1}")
        assert self.labels is not None
        return Empirical(PointArray(self.data.value[self.labels.value == label]))

    def log_prob(self, x: Tensor) -> Tensor:
        raise UndeterminedError("Empirical has no density: ask .at(process, t).log_prob(x) with sigma(t) > 0")
