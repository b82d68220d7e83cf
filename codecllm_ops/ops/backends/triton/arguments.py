"""What the kernels take of a coded matrix: tensors, numbers, and what is known at compile time.

Tuples with names, so that a kernel has one argument for each and hands it on as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import triton
import triton.language as tl

# ---- tensors and numbers ------------------------------------------------------------------------


class Coded(NamedTuple):
    """Tensors of a coded matrix; in a kernel, pointers. What is in them is the coding's business,
    but for the first values of a row of `table` (tiles.py)."""

    stream: object
    raw: object
    index: object
    table: object


class Numbers(NamedTuple):
    """Sizes that a kernel is not compiled anew for.

    Attributes:
        tile_rows, col_tiles: rows and columns of tiles.
        raw_row, raw_tile: 32-bit words of the raw plane in a row of tiles, and in a whole tile.
        stream_words: 16-bit words of the stream.
        record_ints, table_ints: values in a row of the index, and of the table.
        segments, segment_steps: rows of the table, and ceil(log2) of it.
    """

    rows: object
    cols: object
    tile_cols: object
    tile_rows: object
    col_tiles: object
    raw_row: object
    raw_tile: object
    stream_words: object
    record_ints: object
    table_ints: object
    segments: object
    segment_steps: object


def hidden(numbers: Numbers) -> Numbers:
    """As a kernel takes them. Triton compiles anew for arguments that are 1 or divisible by 16, in
    a tuple whatever `do_not_specialize` says: ~2n is never either."""
    return Numbers(*(~(2 * n) for n in numbers))


@triton.jit
def _shown(n):
    return ~n >> 1


@triton.jit
def shown(n):
    """The numbers that were hidden."""
    return Numbers(
        _shown(n.rows), _shown(n.cols), _shown(n.tile_cols), _shown(n.tile_rows),
        _shown(n.col_tiles), _shown(n.raw_row), _shown(n.raw_tile), _shown(n.stream_words),
        _shown(n.record_ints), _shown(n.table_ints), _shown(n.segments), _shown(n.segment_steps),
    )  # fmt: skip


# ---- at compile time ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """`FMT` of the kernels: a weight format, and what a coding adds.

    Attributes:
        word_bits, flip: docs/format.md, section 2.
        bits, shift: the coded field, in the (high) half.
        planes: (mask, bits) of the raw planes one after another, without that of low halves.
        exponent: bits of a float's exponent; 0: words are integers, `flip` above their value.
        mantissa: bits of a float's mantissa.
        has_inf: a float's largest exponent is kept for infinities and NaN; else only all ones is.
        code: what the coding's source wants to know, hashable.
    """

    word_bits: int
    flip: int
    bits: int
    shift: int
    planes: tuple[int, ...]
    exponent: int
    mantissa: int
    has_inf: bool
    code: object


# ---- what a coding supplies ---------------------------------------------------------------------


class Source(NamedTuple):
    """The jit functions of a coding that the kernels call; source_rans.py is the first.

    Attributes:
        table: (coded, numbers, tiles, FMT) -> what lanes keep of their segment.
        begin: (coded, numbers, table, tiles, col_tile, IN_ORDER, FMT) -> lane, place: lanes at the
            beginning of a tile; `lane` changes from group to group, `place` does not.
        group: (lane, place, group, groups, FMT) -> lane, high, low: one group's pairs. Four (high)
            halves without the format's flip, and four low ones (any, unless words have 32 bits).
        ended: (lane, place) -> whether each lane is where the encoder began.
    """

    table: object
    begin: object
    group: object
    ended: object


NO_TILE = tl.constexpr(1 << 62)  # status: no tile was corrupt
BAD_ID = tl.constexpr((1 << 62) - 1)  # a row was asked for that is not there
