"""Data sources: components that load a training or a test split into memory as `Samples`."""

from .arrays import Arrays
from .codec import Codec
from .fetch import DATASETS, cache_folder, fetch_images
from .folders import Folder
from .hub import Hub
from .images import CIFAR10, MNIST, Fashion, FashionMNIST
from .latents import LatentCodec, Latents
from .pictures import picture, scatter_image
from .samples import Data, Samples, grid_image, to_uint8
from .toy import Checkerboard, EightGaussians, Moons, Pinwheel, Spirals, SwissRoll

__all__ = [
    "CIFAR10",
    "DATASETS",
    "MNIST",
    "Arrays",
    "Checkerboard",
    "Codec",
    "Data",
    "EightGaussians",
    "Fashion",
    "FashionMNIST",
    "Folder",
    "Hub",
    "LatentCodec",
    "Latents",
    "Moons",
    "Pinwheel",
    "Samples",
    "Spirals",
    "SwissRoll",
    "cache_folder",
    "fetch_images",
    "grid_image",
    "picture",
    "scatter_image",
    "to_uint8",
]
