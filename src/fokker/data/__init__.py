"""Data sources: components that load a training or a test split into memory as `Samples`."""

from .arrays import Arrays
from .codec import Codec
from .columns import Category, Number, TableCodec
from .export import check_export, write_samples
from .folders import Folder
from .images import Fashion
from .molecules import Molecules, SmilesCodec
from .pictures import pairs_image, picture, scatter_image, signals_image
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
    "check_export",
    "grid_image",
    "pairs_image",
    "picture",
    "scatter_image",
    "signals_image",
    "to_uint8",
    "write_samples",
]
