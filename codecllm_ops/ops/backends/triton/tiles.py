"""Tiles, segments and lanes in Triton: what is the same for every coding.

A tensor has one element per lane of T tiles: [32 * T], lane by lane. In a program of one warp that
is the layout in which a group's pairs are the A fragment of a tensor core (docs/format.md,
section 3), so that decoded weights need not move.

Every coding's table has a row per segment that begins with two values of its own and then: first
row of the matrix, rows, first tile row.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

FIRST_ROW = tl.constexpr(2)
ROWS = tl.constexpr(3)
FIRST_TILE_ROW = tl.constexpr(4)


class Tiles(NamedTuple):
    """Where lanes are, whatever the column.

    Attributes:
        row: tile row of each lane, int64, inside the matrix.
        lane: number in the tile.
        segment: of the tile row.
        header: that segment's row of the table, a pointer.
    """

    row: object
    lane: object
    segment: object
    header: object


@triton.jit
def segment_of(coded, numbers, value, FIELD: tl.constexpr):
    """The last segment whose FIELD is at most `value`."""
    low = value * 0
    high = low + numbers.segments
    for _ in range(numbers.segment_steps):
        middle = (low + high) // 2
        more = high - low > 1
        found = tl.load(coded.table + middle * numbers.table_ints + FIELD)
        below = found.to(tl.int64) <= value
        low = tl.where(more & below, middle, low)
        high = tl.where(more & (below == 0), middle, high)
    return low


@triton.jit
def whole_tile_rows(coded, numbers, block, T: tl.constexpr):
    """The lanes of T tile rows. Those below the matrix stand on its last tile row."""
    lanes = tl.arange(0, 32 * T)
    row = tl.minimum(block * T + lanes // 32, numbers.tile_rows - 1).to(tl.int64)
    segment = segment_of(coded, numbers, row, FIRST_TILE_ROW)
    return Tiles(row, lanes % 32, segment, coded.table + segment * numbers.table_ints)


@triton.jit
def rows_of(coded, numbers, tile_row):
    """First row of the matrix in a tile row, and how many there are: from the table alone, a
    corrupt index must not move them. None in tile rows below the matrix."""
    inside = tile_row < numbers.tile_rows
    tile_row = tl.minimum(tile_row, numbers.tile_rows - 1)
    segment = segment_of(coded, numbers, tile_row, FIRST_TILE_ROW)
    header = coded.table + segment * numbers.table_ints
    local = (tile_row - tl.load(header + FIRST_TILE_ROW)) * 16
    first = tl.load(header + FIRST_ROW) + local
    count = tl.minimum(tl.minimum(tl.load(header + ROWS) - local, numbers.rows - first), 16)
    return first, tl.where(inside & (local >= 0) & (first >= 0), count, 0)


@triton.jit
def columns_of(numbers, col_tile):
    """Columns of a tile, without padding."""
    return tl.minimum(numbers.cols - col_tile * numbers.tile_cols, numbers.tile_cols)


@triton.jit
def all_of(good, LANES: tl.constexpr, EACH: tl.constexpr):
    """Whether all of LANES neighbours are good, for EACH of as many: [.., LANES] to [.. * EACH]."""
    n: tl.constexpr = good.shape[0] // LANES
    whole = tl.min(tl.reshape(good.to(tl.int32), (n, LANES)), 1)
    return tl.reshape(tl.broadcast_to(whole[:, None], (n, EACH)), (EACH * n,))
