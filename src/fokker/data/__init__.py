"""Data sources: components that load a training or a test split into memory as `Samples`."""

from .arrays import Arrays
from .codec import Codec, decode_in_batches
from .columns import Category, Number, TableCodec
from .export import check_export, write_samples
from .fetch import DATASETS, cache_folder, fetch_images
from .folders import Folder
from .hub import Hub
from .images import CIFAR10, MNIST, Fashion, FashionMNIST
from .latents import LatentCodec, Latents
from .molecules import Molecules, SmilesCodec
from .pictures import pairs_image, picture, scatter_image, signals_image
from .samples import Data, Samples, grid_image, to_uint8
from .signals import Heartbeats, SignalCodec, Signals
from .tables import Diabetes, Table
from .toy import Checkerboard, EightGaussians, Moons, Pinwheel, Spirals, SwissRoll

__all__ = [
    "CIFAR10",
    "DATASETS",
    "MNIST",
    "Arrays",
    "Category",
    "Checkerboard",
    "Codec",
    "Data",
    "Diabetes",
    "EightGaussians",
    "Fashion",
    "FashionMNIST",
    "Folder",
    "Heartbeats",
    "Hub",
    "LatentCodec",
    "Latents",
    "Molecules",
    "Moons",
    "Number",
    "Pinwheel",
    "Samples",
    "SignalCodec",
    "Signals",
    "SmilesCodec",
    "Spirals",
    "SwissRoll",
    "Table",
    "TableCodec",
    "cache_folder",
    "check_export",
    "decode_in_batches",
    "fetch_images",
    "grid_image",
    "pairs_image",
    "picture",
    "scatter_image",
    "signals_image",
    "to_uint8",
    "write_samples",
]
