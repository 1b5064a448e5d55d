"""Codecs: the way back from a model's samples to what the data was."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError

__all__ = ["Codec", "decode_in_batches"]


class Codec:
    """What turns a model's samples back into what the data was: a component, stored with the model."""

    def decode(self, x: Tensor) -> Tensor:
        """Samples (N, *event) of the model -> values in the user's units."""
        raise NotImplementedError

    def encode(self, values: Tensor) -> Tensor:
        """What `decode` gives -> samples (N, *event), float32, which decode to it.

        Raises:
            ConfigError: the values do not fit, or this codec has no way back.
        """
        raise ConfigError(f"{type(self).__name__}: decoded values cannot be encoded again; give a folder of shards")


def decode_in_batches(codec: Codec, x: Tensor, size: int) -> Tensor:
    """`codec.decode(x)` in batches filled up to `size`: what a sample becomes does not depend on how many there are."""
    parts = []
    for part in torch.split(x, size):
        full = torch.cat([part, part[-1:].expand(size - len(part), *part.shape[1:])])
        parts.append(codec.decode(full)[: len(part)])
    return torch.cat(parts)
