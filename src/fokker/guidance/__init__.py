"""Guidance: denoisers that steer other denoisers."""

from .cfg import CFG

__all__ = ["CFG"]
