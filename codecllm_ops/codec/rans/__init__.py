"""The coding `rans`: exponents entropy-coded, docs/format.md sections 4 to 7.

index.py, parts.py: the tile index; slices and concatenations · tables.py: counts to frequencies to
slot tables, which are what kernels keep at run time · encoder.py: plans a matrix and has a backend
code it · reference.py: the codec in plain Python, in the order of the specification.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...format.errors import CorruptStreamError
from ...format.geometry import STREAM_PAD, TILE_ROWS, ceil_div
from . import parts, tables
from .index import read_index

if TYPE_CHECKING:
    from ..coded import CodedMatrix

name = "rans"
concat_keys = parts.CONCAT_KEYS
cut = parts.cut
join = parts.join
runtime_table = tables.runtime_table


def check_contents(coded: CodedMatrix) -> None:
    """Looks at every index record. Raises CorruptStreamError."""
    info, grid = coded.info, coded.info.grid
    starts, lengths, segments = read_index(coded.index.cpu().numpy(), info.len_bits)
    tiles = [ceil_div(s.rows, TILE_ROWS) * grid.col_tiles for s in info.segments]
    expected = np.repeat(np.arange(len(tiles)), tiles)
    if (segments != expected).any():
        tile = int(np.argmax(segments != expected))
        raise CorruptStreamError(f"index: tile {tile} names segment {segments[tile]}")
    ends = starts + 2 * lengths.sum(axis=1)
    bad = ends > info.stream_bytes - STREAM_PAD
    if bad.any():
        tile = int(np.argmax(bad))
        raise CorruptStreamError(
            f"index: tile {tile} ends at byte {ends[tile]} of {info.stream_bytes - STREAM_PAD}"
        )
    if (lengths < 2).any():
        raise CorruptStreamError("index: a lane has fewer than the two words of its state")


def convert(source: CodedMatrix, **options: Any) -> tuple[torch.Tensor, ...]:
    """The bytes that encoding the original gives."""
    words, like = torch.ops.codecllm.decode(*source.operand), source.info
    scale = None if like.scale is None else torch.from_numpy(like.scale).to(words.device)
    return torch.ops.codecllm.encode(
        words, scale, format=like.fmt.name, allow_stored=False, **options
    )
