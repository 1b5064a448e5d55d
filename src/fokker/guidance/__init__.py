"""Guidance: denoisers that steer other denoisers, or keep them in bounds."""

from .cfg import CFG
from .clipping import Clipped, DynamicThreshold

__all__ = ["CFG", "Clipped", "DynamicThreshold"]
