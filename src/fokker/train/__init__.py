"""Training: recipes, the loop, the average of the weights, and model files."""

from .checkpoint import load, read_header, save
from .ema import EMA
from .recipe import Recipe, read, recipe_names
from .trainer import train

__all__ = ["EMA", "Recipe", "load", "read", "read_header", "recipe_names", "save", "train"]
