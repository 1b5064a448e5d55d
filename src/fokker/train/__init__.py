"""Training: recipes, the loop, the average of the weights, and model files."""

from .checkpoint import load, read_header, save
from .ema import EMA
from .recipe import Recipe, read, recipe_names
from .starter import look
from .trainer import fit

__all__ = ["EMA", "Recipe", "fit", "load", "look", "read", "read_header", "recipe_names", "save"]
