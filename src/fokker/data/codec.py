"""Codecs: the way back from a model's samples to what the data was."""

from __future__ import annotations

from torch import Tensor

__all__ = ["Codec"]


class Codec:
    """What turns a model's samples back into what the data was: a component, stored with the model."""

    def decode(self, x: Tensor) -> Tensor:
        """Samples (N, *event) of the model -> values in the user's units."""
        raise NotImplementedError
