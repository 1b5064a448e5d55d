"""Measures of samples against data."""

from .classifier import class_agreement, train_classifier
from .transport import sliced_w2

__all__ = ["class_agreement", "sliced_w2", "train_classifier"]
