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
        plane_row, plane_tile: 32-bit words of the coding's planes of constant size (rans: the raw
            plane; fixed: the only one) in a row of tiles, and in a whole tile.
        indexed: how many there are of what the index counts (rans: 16-bit words of the stream;
            fixed: entries of the list).
        record_ints, table_ints: values in a row of the index, and of the table.
        segments, segment_steps: rows of the table, and ceil(log2) of it.
        tile_steps: ceil(log2) of col_tiles.
    """

    rows: object
    cols: object
    tile_cols: object
    tile_rows: object
    col_tiles: object
    plane_row: object
    plane_tile: object
    indexed: object
    record_ints: object
    table_ints: object
    segments: object
    segment_steps: object
    tile_steps: object


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
        _shown(n.col_tiles), _shown(n.plane_row), _shown(n.plane_tile), _shown(n.indexed),
        _shown(n.record_ints), _shown(n.table_ints), _shown(n.segments), _shown(n.segment_steps),
        _shown(n.tile_steps),
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
        step: groups that the coding decodes at once; what is left of a tile, one by one.
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
    step: int
    code: object


# ---- what a coding supplies ---------------------------------------------------------------------


class Source(NamedTuple):
    """The jit functions of a coding that the kernels call.

    Attributes:
        table: (coded, numbers, tiles, FMT) -> what lanes keep of their segment.
        begin: (coded, numbers, table, tiles, col_tile, IN_ORDER, FMT) -> lane, place: lanes at the
            beginning of a tile; `lane` changes from group to group, `place` does not.
        groups: (lane, place, group, whole, groups, COUNT, WORDS, FMT) -> lane, COUNT times high,
            low: the pairs of COUNT groups from `group` on. Four (high) halves without the format's
            flip, and four low ones (any, unless words have 32 bits). COUNT is FMT.step for groups
            before `whole`, a multiple of it, and 1 from there on. Without WORDS `factor` is missing
            in them.
        ended: (lane, place) -> whether the bytes of each lane's tile were an encoder's.
        factor: (coded, numbers, tile_row) -> what sums of products with groups without WORDS are
            multiplied by, float32; or None: with nothing.
        listed: (coded, numbers, first, last) -> first, count: entries of the list that belong to
            tiles `first` to `last` - 1, which stand in a row; or None: there is no list. Weights in
            the list are zeros in the groups.
        entry: (coded, numbers, at, mask, columns) -> row, column, word, fine: of an entry; column 0
            where it is not `fine`, not inside a tile of so many columns.
        tile_of: (coded, numbers, at, first, last) -> the tile, of `first` to `last` - 1, of an
            entry.
    """

    table: object
    begin: object
    groups: object
    ended: object
    factor: object = None
    listed: object = None
    entry: object = None
    tile_of: object = None


NO_TILE = tl.constexpr(1 << 62)  # status: no tile was corrupt
BAD_ID = tl.constexpr((1 << 62) - 1)  # a row was asked for that is not there
