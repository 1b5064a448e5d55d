"""Fashion: a small, class-balanced part of Fashion-MNIST that ships with the library."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ..component import component
from ..errors import FileError
from .samples import Data, Samples, check_split

__all__ = ["Fashion"]

FILE = Path(__file__).with_name("fashion.npz")
SHA256 = "a74b3b5f4d585e0179d0ebe6ac24486c274e029f11d923447e0335e5621bd8c2"
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@component
class Fashion(Data):
    """12,000 pictures of clothes, uint8 (1, 28, 28), 10 classes: 1000 of each for training, 200 of each for testing.

    The first of each class in Fashion-MNIST's own train and test files, in their order there; sample i has the label
    i mod 10, so the first m of them are balanced to within one. Built by `scripts/build_fashion.py`.

    Raises (from load):
        FileError: the file is missing or its SHA-256 is not the recorded one.
    Source: Xiao, Rasul and Vollgraf 2017; MIT licence, in FASHION_LICENSE beside the file.
    """

    def load(self, split: Literal["train", "test"] = "train") -> Samples:
        """10,000 pictures for training or 2,000 for testing."""
        check_split(split)
        try:
            content = FILE.read_bytes()
        except OSError as error:
            raise FileError(f"{FILE} cannot be read ({error.strerror}): reinstall fokker") from None
        if hashlib.sha256(content).hexdigest() != SHA256:
            raise FileError(f"{FILE} is damaged (SHA-256 differs from the recorded {SHA256[:12]}...): reinstall fokker")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            values = torch.from_numpy(arrays[split])[:, None]
        return Samples(values, torch.arange(len(values)) % 10, CLASSES)
