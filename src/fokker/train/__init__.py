"""Training: recipes, the loop, the average of the weights, and model files."""

from .autoencoder import fit_autoencoder
from .checkpoint import load, read_header, save
from .ema import Averages, Constant, Power, read_snapshots, reconstruct, write_snapshot
from .recipe import Recipe, read, recipe_names
from .starter import look
from .trainer import fit, resume

__all__ = [
    "Averages",
    "Constant",
    "Power",
    "Recipe",
    "fit",
    "fit_autoencoder",
    "load",
    "look",
    "read",
    "read_header",
    "read_snapshots",
    "recipe_names",
    "reconstruct",
    "resume",
    "save",
    "write_snapshot",
]
