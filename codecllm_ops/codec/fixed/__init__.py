"""The coding `fixed`: bfloat16 in 12 bits and a list (docs/format.md, section 13).

window.py: which 15 exponents are codes · encode.py: any matrix to this coding · parts.py: slices
and concatenations · reference.py: the coding in plain Python, in the order of the specification.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ...format.errors import CorruptStreamError
from ...format.geometry import TILE_ROWS, ceil_div
from ..tiles import segment_table
from . import parts
from .encode import convert, encode_words

if TYPE_CHECKING:
    from ..coded import CodedMatrix

__all__ = ["check_contents", "convert", "cut", "encode_words", "join", "runtime_table"]

name = "fixed"
concat_keys = parts.CONCAT_KEYS
cut = parts.cut
join = parts.join
runtime_table = segment_table


def check_contents(coded: CodedMatrix) -> None:
    """Looks at index, list and every code. Raises CorruptStreamError."""
    info, grid = coded.info, coded.info.grid
    ends = coded.index.cpu().numpy().astype(np.int64)
    counts = np.diff(ends, prepend=0)
    if (counts < 0).any():
        raise CorruptStreamError(f"index: tile {int(np.argmax(counts < 0))} ends before it begins")
    tiles = [ceil_div(s.rows, TILE_ROWS) * grid.col_tiles for s in info.segments]
    found = [int(part.sum()) for part in np.split(counts, np.cumsum(tiles))[: len(tiles)]]
    for n, (segment, listed) in enumerate(zip(info.segments, found, strict=True)):
        if listed != segment.listed:
            raise CorruptStreamError(
                f"index: segment {n} lists {listed} weights, the head says {segment.listed}"
            )
    tile = int(torch.ops.codecllm._lying_tile(*coded.operand))
    if tile >= 0:
        raise CorruptStreamError(
            f"coded plane or list: tile {tile} has a code of zero with a mantissa, or a list that "
            "is not sorted, leaves the matrix, or names a weight that the plane has as well"
        )
