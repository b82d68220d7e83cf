"""The coded matrix on the wire: docs/format.md in Python. Knows nothing of torch kernels."""

from .errors import CorruptStreamError, UnsupportedFormatError
from .geometry import GROUP_COLS, LANES, TILE_ROWS, Grid
from .head import Head, Segment
from .weight_formats import FORMATS, Plane, WeightFormat, by_dtype, by_id

__all__ = [
    "FORMATS",
    "GROUP_COLS",
    "LANES",
    "TILE_ROWS",
    "CorruptStreamError",
    "Grid",
    "Head",
    "Plane",
    "Segment",
    "UnsupportedFormatError",
    "WeightFormat",
    "by_dtype",
    "by_id",
]
