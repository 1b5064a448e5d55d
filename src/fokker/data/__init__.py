"""Data sources: components that load a training or a test split into memory as `Samples`."""

from .arrays import Arrays
from .codec import Codec
from .columns import Category, Number, TableCodec
from .folders import Folder
from .images import Fashion
from .pictures import picture, scatter_image
from .samples import Data, Samples, grid_image, to_uint8
from .signals import Heartbeats, SignalCodec, Signals
from .tables import Diabetes, Table
from .toy import Checkerboard, EightGaussians, Moons, Pinwheel, Spirals, SwissRoll

__all__ = [
    "Arrays",
    "Category",
    "Checkerboard",
    "Codec",
    "Data",
    "Diabetes",
    "EightGaussians",
    "Fashion",
    "Folder",
    "Heartbeats",
    "Moons",
    "Number",
    "Pinwheel",
    "Samples",
    "SignalCodec",
    "Signals",
    "Spirals",
    "SwissRoll",
    "Table",
    "TableCodec",
    "grid_image",
    "picture",
    "scatter_image",
    "to_uint8",
]
