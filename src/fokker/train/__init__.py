"""Training: recipes, the loop, the average of the weights, and model files."""

from .autoencoder import fit_autoencoder
from .checkpoint import load, read_header, save
from .ema import EMA
from .recipe import Recipe, read, recipe_names
from .trainer import fit

__all__ = ["EMA", "Recipe", "fit", "fit_autoencoder", "load", "read", "read_header", "recipe_names", "save"]
