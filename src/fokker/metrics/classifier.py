"""Class agreement: how often a classifier trained on real images sees the class that was asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .. import noise as philox
from ..data import Samples
from ..errors import ConfigError, FileError
from ..files import read_tensors, write_tensors

__all__ = ["agrees", "class_agreement", "kept_classifier", "train_classifier"]

FORMAT = "fokker-classifier-1"


SETTINGS: dict[str, Any] = {"epochs": 4, "batch": 100, "lr": 2e-3, "seed": 0}  # of every kept classifier


def train_classifier(
    samples: Samples, *, epochs: int = 4, batch: int = 100, lr: float = 2e-3, seed: int = 0
) -> nn.Sequential:
    """A small classifier of labelled images: two convolutions, two linear layers, AdamW with cosine decay.

    Args:
        samples: labelled images (N, C, H, W), H and W at least 8.
        epochs, batch, lr, seed: of its training.

    Returns:
        A module from images in [-1, 1] to logits (B, classes), in evaluation mode.

    Raises:
        ConfigError: the samples are no labelled images.
    """
    batch = min(batch, len(samples))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _trained(_fresh(samples), samples, epochs, batch, lr, seed)


def _fresh(samples: Samples) -> nn.Sequential:
    """The classifier of `train_classifier` before training; weights from torch's generator. Raises ConfigError."""
    if not samples.is_image or samples.labels is None or not samples.classes:
        raise ConfigError("train_classifier needs labelled images; these samples are none")
    channels, height, width = samples.shape
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(64 * (height // 4) * (width // 4), 128),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(128, len(samples.classes)),
    )


def kept_classifier(samples: Samples, folder: Path, say: Callable[[str], object] | None = None) -> nn.Sequential:
    """`train_classifier(samples)`, kept in the file FOLDER/classifier-DIGEST.safetensors, and read back from it.

    DIGEST, 8 hexadecimal digits, is that of the data, the network and its training: another data set's has another.

    Args:
        samples: labelled images.
        folder: where it cannot be written nothing is kept.
        say: told before a training.

    Raises:
        ConfigError: the samples are no labelled images.
        FileError: the file is damaged or another's.
    """
    with torch.random.fork_rng(devices=[]):
        net = _fresh(samples)
    assert samples.labels is not None
    facts = (tuple(samples.values.shape), samples.classes, repr(net), SETTINGS)
    digest = hashlib.sha256(repr(facts).encode())
    for part in (samples.values, samples.labels):
        digest.update(part.contiguous().numpy().data)
    name = digest.hexdigest()
    file = folder / f"classifier-{name[:8]}.safetensors"
    if file.exists():
        tensors, texts = read_tensors(file, FORMAT)
        try:
            if texts.get("data") == name:
                net.load_state_dict(tensors)
                return net.eval()
        except RuntimeError:  # tensors of other names or shapes
            pass
        raise FileError(f"{file}: is not the classifier of these images; move it away")
    if say is not None:
        say("training a classifier on the real images ...")
    net = train_classifier(samples, **SETTINGS)
    with suppress(FileError):
        write_tensors(file, net.state_dict(), {"format": FORMAT, "data": name})
    return net


def _trained(net: nn.Sequential, samples: Samples, epochs: int, batch: int, lr: float, seed: int) -> nn.Sequential:
    steps = epochs * (len(samples) // batch)
    optimiser = torch.optim.AdamW(net.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for epoch in range(epochs):
        order = philox.permutation(seed, len(samples), epoch)
        for i in range(len(samples) // batch):
            x, labels = samples.take(order[i * batch : (i + 1) * batch])
            assert labels is not None
            optimiser.zero_grad(set_to_none=True)
            cross_entropy(net(x), labels).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return net.eval()


@torch.no_grad()
def agrees(classifier: nn.Module, x: Tensor, labels: Tensor, batch: int = 500) -> Tensor:
    """Which images (N, C, H, W) the classifier puts into their class (N,): booleans (N,). Raises ConfigError."""
    if len(x) != len(labels) or len(x) == 0:
        raise ConfigError(f"class_agreement: given {len(x)} images and {len(labels)} labels, must be equal and > 0")
    parts = [slice(i, i + batch) for i in range(0, len(x), batch)]
    return torch.cat([classifier(x[part]).argmax(1) == labels[part] for part in parts])


def class_agreement(classifier: nn.Module, x: Tensor, labels: Tensor, batch: int = 500) -> float:
    """The share of images (N, C, H, W) that the classifier puts into their class (N,)."""
    return float(agrees(classifier, x, labels, batch).sum()) / len(x)
