"""The roots: energy models, VAEs, normalising flows, autoregressive models and GANs, on the same data and trainer."""

from .langevin import Gauged, Motion, split_langevin
from .model import Model
from .paths import MixturePath, NormalPath, inverse_cdf, kronecker

__all__ = [
    "Gauged",
    "MixturePath",
    "Model",
    "Motion",
    "NormalPath",
    "inverse_cdf",
    "kronecker",
    "split_langevin",
]
