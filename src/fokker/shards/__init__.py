"""Many samples in many files: a folder of shards keyed by sample index, filled by any number of processes."""

from .drawing import Report, Sharding, sample_to
from .folder import Shards, read_shards

__all__ = ["Report", "Sharding", "Shards", "read_shards", "sample_to"]
