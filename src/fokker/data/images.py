"""Image data sets: MNIST, Fashion-MNIST and CIFAR-10 whole, and Fashion, a small part that ships with the library."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ..component import component
from ..errors import FileError
from .fetch import DATASETS, load_cached
from .samples import Data, Samples, check_split

__all__ = ["CIFAR10", "MNIST", "Fashion", "FashionMNIST"]

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
THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


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


def _load(name: str, path: str, split: Literal["train", "test"], classes: tuple[str, ...], flip: bool) -> Samples:
    check_split(split)
    if path:
        x, y = (torch.from_numpy(array) for array in DATASETS[name].read(Path(path).expanduser(), split))
    else:
        x, y = load_cached(name, split)
    return Samples(x, y.long(), classes, flip=flip and split == "train")


@component
class MNIST(Data):
    """70,000 handwritten digits, uint8 (1, 28, 28), 10 classes, in the official splits of 60,000 and 10,000.

    Args:
        path: "" for what `fokker data fetch mnist` has put into the cache; or the folder, tar, zip or .deb that holds
            the four IDX files (train-images-idx3-ubyte, ...; .gz or plain).

    Raises (from load):
        FileError: not fetched yet, or a file is missing, truncated or of another format.
    Source: LeCun, Bottou, Bengio and Haffner 1998.
    """

    path: str = ""

    def load(self, split: Literal["train", "test"] = "train") -> Samples:
        """60,000 pictures for training or 10,000 for testing."""
        return _load("mnist", self.path, split, tuple("0123456789"), False)


@component
class FashionMNIST(Data):
    """70,000 pictures of clothes, uint8 (1, 28, 28), 10 classes, in the official splits of 60,000 and 10,000.

    Args:
        path: "" for what `fokker data fetch fashion-mnist` has put into the cache; or IDX files as for `MNIST`.
        flip: mirror training pictures left to right with probability 1/2.

    Raises (from load):
        FileError: not fetched yet, or a file is missing, truncated or of another format.
    Source: Xiao, Rasul and Vollgraf 2017.
    """

    path: str = ""
    flip: bool = False

    def load(self, split: Literal["train", "test"] = "train") -> Samples:
        """60,000 pictures for training or 10,000 for testing."""
        return _load("fashion-mnist", self.path, split, CLASSES, self.flip)


@component
class CIFAR10(Data):
    """60,000 photographs, uint8 (3, 32, 32), 10 classes, in the official splits of 50,000 and 10,000.

    Args:
        path: "" for what `fokker data fetch cifar10` has put into the cache; or the folder, tar, zip or .deb that
            holds the binary version (data_batch_1.bin, ...). The version for Python is pickled and refused.
        flip: mirror training pictures left to right with probability 1/2.

    Raises (from load):
        FileError: not fetched yet, or a file is missing, truncated or of another format.
        ConfigError: the pickled version was given.
    Source: Krizhevsky 2009.
    """

    path: str = ""
    flip: bool = False

    def load(self, split: Literal["train", "test"] = "train") -> Samples:
        """50,000 pictures for training or 10,000 for testing."""
        return _load("cifar10", self.path, split, THINGS, self.flip)
