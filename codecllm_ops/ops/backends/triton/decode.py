"""Dense words from coded ones in Triton: whole matrices, and single rows.

decode_matrix                                     decode_rows
  program: one warp                                 program: one warp
    T tile rows x one tile column                     8 * T ids x one tile column
  lane: one of 32 of its tile                       four lanes: the row of one id; of its
                                                      tile they are 4 * (row % 8) and up
    columns -->  tile column 0, 1, ..
    tile row 0   [ p0 ][ p1 ][..]                   out row 0   [ p0 ][ p1 ][..]
             1   [ p0 ][ p1 ][..]                          ..   [ p0 ][ p1 ][..]
    tile row 2   [ pn ][..    (T = 2)               out row 8T  [ pn ][..

  begin at the tiles                                begin at the tiles of the ids' rows
  for each group of 16 columns:                     for each group of 16 columns:
    decode its pairs, store                           decode its pairs, store the row's
  ended? else the tile becomes all ones             ended? else the row's columns become all ones
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arguments import BAD_ID, shown
from .tiles import (
    FIRST_ROW,
    FIRST_TILE_ROW,
    ROWS,
    Tiles,
    all_of,
    columns_of,
    rows_of,
    segment_of,
    whole_tile_rows,
)

ALL_ONES = tl.constexpr(0xFFFFFFFF)  # NaN in every float format: never a number that looks right


@triton.jit
def decode_matrix(coded, out, status, numbers, source, FMT: tl.constexpr,
                  EVEN: tl.constexpr, T: tl.constexpr):  # fmt: skip
    """A program takes one column tile of T tile rows.

    Args:
        out: bytes [rows, cols * word bytes].
        status: int64 [1], takes the smallest number of a corrupt tile; or None.
        EVEN: pairs are stored at once: cols is even, `out` begins where a pair may.
    """
    numbers = shown(numbers)
    block, col_tile = tl.program_id(0) // numbers.col_tiles, tl.program_id(0) % numbers.col_tiles
    tiles = whole_tile_rows(coded, numbers, block, T)
    to = _cells_of(coded, numbers, tiles, out, block, col_tile, FMT, T)
    table = source.table(coded, numbers, tiles, FMT)
    groups = (columns_of(numbers, col_tile) + 15) // 16

    lane, place = source.begin(coded, numbers, table, tiles, col_tile, True, FMT)
    whole = 0
    if FMT.step > 1:
        whole = groups // FMT.step * FMT.step
        for group in range(0, whole, FMT.step):
            lane = _decode_groups(to, lane, place, group, whole, groups, source, FMT.step, FMT,
                                  EVEN)  # fmt: skip
    for group in range(whole, groups):
        lane = _decode_groups(to, lane, place, group, whole, groups, source, 1, FMT, EVEN)

    good = source.ended(lane, place)
    if source.listed is not None:
        good &= _store_listed(to, coded, numbers, tiles, col_tile, source, FMT)
    if status is not None:
        number = tiles.row * numbers.col_tiles + col_tile
        tl.atomic_min(status + tiles.lane * 0, number, mask=good == 0)
    whole = all_of(good, 32, 32)
    if tl.min(whole, 0) == 0:
        ones = (tiles.lane * 0).to(tl.uint32) + ALL_ONES
        upper, lower, upper_left, lower_left = to
        upper_left = tl.where(whole == 0, upper_left, 0)
        lower_left = tl.where(whole == 0, lower_left, 0)
        damaged = upper, lower, upper_left, lower_left
        for group in range(groups):
            ones4 = ones, ones, ones, ones
            _store_group(damaged, group, ones4, ones4, 0, FMT.word_bits, EVEN)


@triton.jit(do_not_specialize=("count",))
def decode_rows(ids, count, coded, out, status, numbers, source, FMT: tl.constexpr,
                EVEN: tl.constexpr, T: tl.constexpr):  # fmt: skip
    """A row of a tile belongs to four lanes: a program decodes 8 * T rows of one column tile.

    Args:
        ids: int64 [count]; rows that are not there become all ones, and BAD_ID in `status`.
        out: bytes [count, cols * word bytes].
    """
    numbers = shown(numbers)
    block, col_tile = tl.program_id(0) // numbers.col_tiles, tl.program_id(0) % numbers.col_tiles
    lanes = tl.arange(0, 32 * T)
    t = lanes % 4
    which = block.to(tl.int64) * (8 * T) + lanes // 4
    mine = which < count
    id = tl.load(ids + which, mask=mine, other=0)
    known = (id >= 0) & (id < numbers.rows)
    tiles, is_upper, there = _tiles_of_rows(coded, numbers, tl.where(known, id, 0), t)
    table = source.table(coded, numbers, tiles, FMT)
    columns = columns_of(numbers, col_tile)
    groups = (columns + 15) // 16
    col = col_tile.to(tl.int64) * numbers.tile_cols + 2 * t
    to = out + (tl.where(mine, which, 0) * numbers.cols + col) * (FMT.word_bits // 8)
    left = tl.where(mine, columns - 2 * t, 0)

    lane, place = source.begin(coded, numbers, table, tiles, col_tile, False, FMT)
    whole = 0
    if FMT.step > 1:
        whole = groups // FMT.step * FMT.step
        for group in range(0, whole, FMT.step):
            lane = _decode_row(to, left, is_upper, lane, place, group, whole, groups, source,
                               FMT.step, FMT, EVEN)  # fmt: skip
    for group in range(whole, groups):
        lane = _decode_row(to, left, is_upper, lane, place, group, whole, groups, source, 1, FMT,
                           EVEN)  # fmt: skip

    good = known & there & source.ended(lane, place)
    if source.listed is not None:
        cells = to, to, tl.where(is_upper, left, 0), tl.where(is_upper, 0, left)
        good &= _store_listed(cells, coded, numbers, tiles, col_tile, source, FMT)
    if status is not None:
        number = tiles.row * numbers.col_tiles + col_tile
        number = tl.where(known, number, BAD_ID)
        tl.atomic_min(status + tiles.lane * 0, number, mask=mine & (good == 0))
    whole = all_of(good, 4, 4)
    if tl.min(whole, 0) == 0:
        ones = (tiles.lane * 0).to(tl.uint32) + ALL_ONES
        left = tl.where(whole == 0, left, 0)
        for group in range(groups):
            two = ones, ones
            _store_row(to, left, group, two, two, 0, FMT.word_bits, EVEN)


# ---- groups ------------------------------------------------------------------------------------


@triton.jit
def _decode_groups(to, lane, place, group, whole, groups, source, COUNT: tl.constexpr,
                   FMT: tl.constexpr, EVEN: tl.constexpr):  # fmt: skip
    """Stores COUNT groups."""
    lane, found = source.groups(lane, place, group, whole, groups, COUNT, True, FMT)
    for i in tl.static_range(COUNT):
        high, low = found[i]
        _store_group(to, group + i, high, low, FMT.flip, FMT.word_bits, EVEN)
    return lane


@triton.jit
def _decode_row(to, left, is_upper, lane, place, group, whole, groups, source,
                COUNT: tl.constexpr, FMT: tl.constexpr, EVEN: tl.constexpr):  # fmt: skip
    """Stores one row of COUNT groups."""
    lane, found = source.groups(lane, place, group, whole, groups, COUNT, True, FMT)
    for i in tl.static_range(COUNT):
        high, low = found[i]
        _store_row(to, left, group + i, _row_of(is_upper, high), _row_of(is_upper, low),
                   FMT.flip, FMT.word_bits, EVEN)  # fmt: skip
    return lane


@triton.jit
def _store_listed(to, coded, numbers, tiles, col_tile, source, FMT: tl.constexpr):
    """Weights that stand in the list: the lane that stored a zero for one stores it, so that no
    order of the program's stores is needed. Whether all of a tile's entries are inside of it."""
    tl.static_assert(FMT.word_bits == 16)
    upper, lower, upper_left, lower_left = to
    tile = tiles.row * numbers.col_tiles + col_tile
    columns = columns_of(numbers, col_tile)
    g, t = tiles.lane // 4, tiles.lane % 4
    good = tiles.lane == tiles.lane
    first, count = source.listed(coded, numbers, tile, tile + 1)
    for i in range(tl.max(count, 0)):
        there = i < count
        row, col, word, fine = source.entry(coded, numbers, first + i, there, columns)
        good &= fine
        mine = there & fine & (row % 8 == g) & (col % 8 // 2 == t)
        # A store each: Triton 3.6 fails to compile a choice between two pointers for AMD.
        word = (word ^ FMT.flip).to(tl.uint16)
        col -= 2 * t
        _store_word(upper + col * 2, word, mine & (row < 8) & (col < upper_left))
        _store_word(lower + col * 2, word, mine & (row >= 8) & (col < lower_left))
    return good


@triton.jit
def _store_word(to, word, mask):
    tl.store(to.to(tl.pointer_type(tl.uint16)), word, mask=mask)


# ---- where -------------------------------------------------------------------------------------


@triton.jit
def _cells_of(coded, numbers, tiles, out, block, col_tile, FMT: tl.constexpr, T: tl.constexpr):
    """Where lanes store rows g and g + 8 of their tiles, byte pointers, and how many columns the
    matrix has from there on: none in rows that it does not have."""
    wanted = (block * T + tl.arange(0, 32 * T) // 32).to(tl.int64)
    first, count = rows_of(coded, numbers, wanted)
    g, t = tiles.lane // 4, tiles.lane % 4
    left = columns_of(numbers, col_tile) - 2 * t
    in_upper, in_lower = g < count, g + 8 < count
    col = col_tile.to(tl.int64) * numbers.tile_cols + 2 * t
    upper = out + (tl.where(in_upper, first + g, 0) * numbers.cols + col) * (FMT.word_bits // 8)
    lower = out + (tl.where(in_lower, first + g + 8, 0) * numbers.cols + col) * (FMT.word_bits // 8)
    return upper, lower, tl.where(in_upper, left, 0), tl.where(in_lower, left, 0)


@triton.jit
def _tiles_of_rows(coded, numbers, row, t):
    """The lanes that have a row, of which they are number t; whether it is one of their upper rows;
    whether the table has a place for it. Where it has none they stand on the first tile."""
    segment = segment_of(coded, numbers, row, FIRST_ROW)
    header = coded.table + segment * numbers.table_ints
    local = row - tl.load(header + FIRST_ROW)
    tile_row = tl.load(header + FIRST_TILE_ROW) + local // 16
    there = (local >= 0) & (local < tl.load(header + ROWS))
    there = there & (tile_row >= 0) & (tile_row < numbers.tile_rows)
    in_tile = (tl.where(there, local, 0) % 16).to(tl.int32)
    lane = in_tile % 8 * 4 + t
    return Tiles(tl.where(there, tile_row, 0), lane, segment, header), in_tile < 8, there


@triton.jit
def _row_of(is_upper, pairs):
    """The two pairs of a lane's upper row, or of its lower one."""
    upper0, lower0, upper1, lower1 = pairs
    return tl.where(is_upper, upper0, lower0), tl.where(is_upper, upper1, lower1)


# ---- store -------------------------------------------------------------------------------------


@triton.jit
def _store_group(to, group, high, low, FLIP: tl.constexpr, WORD_BITS: tl.constexpr,
                 EVEN: tl.constexpr):  # fmt: skip
    """The four pairs of a group."""
    upper, lower, upper_left, lower_left = to
    u0, l0, u1, l1 = high
    u0_low, l0_low, u1_low, l1_low = low
    upper_high, upper_low = (u0, u1), (u0_low, u1_low)
    lower_high, lower_low = (l0, l1), (l0_low, l1_low)
    _store_row(upper, upper_left, group, upper_high, upper_low, FLIP, WORD_BITS, EVEN)
    _store_row(lower, lower_left, group, lower_high, lower_low, FLIP, WORD_BITS, EVEN)


@triton.jit
def _store_row(to, left, group, high, low, FLIP: tl.constexpr, WORD_BITS: tl.constexpr,
               EVEN: tl.constexpr):  # fmt: skip
    """A lane's two pairs of one row; `left` columns are the matrix's, from the tile's first pair
    of this lane on."""
    first, second = high
    first_low, second_low = low
    left -= 16 * group
    to += group * (16 * (WORD_BITS // 8))
    _store(to, first, first_low, left, FLIP, WORD_BITS, EVEN)
    _store(to + WORD_BITS, second, second_low, left - 8, FLIP, WORD_BITS, EVEN)  # 8 words on


@triton.jit
def _store(to, high, low, words, FLIP: tl.constexpr, WORD_BITS: tl.constexpr, EVEN: tl.constexpr):
    """A pair at byte pointers `to`; `words` of its two are inside."""
    high ^= FLIP * 0x10001
    if WORD_BITS == 8:
        first, second = high & 0xFF, (high >> 16) & 0xFF
        both = (first | (second << 8)).to(tl.uint16)
        dtype: tl.constexpr = tl.uint8
        two: tl.constexpr = tl.uint16
    elif WORD_BITS == 16:
        first, second = high & 0xFFFF, high >> 16
        both = high
        dtype: tl.constexpr = tl.uint16
        two: tl.constexpr = tl.uint32
    else:
        first, second = (high << 16) | (low & 0xFFFF), (high & 0xFFFF0000) | (low >> 16)
        both = first.to(tl.uint64) | (second.to(tl.uint64) << 32)
        dtype: tl.constexpr = tl.uint32
        two: tl.constexpr = tl.uint64
    if EVEN:
        tl.store(to.to(tl.pointer_type(two)), both, mask=words >= 2)
    else:
        to = to.to(tl.pointer_type(dtype))
        tl.store(to, first.to(dtype), mask=words >= 1)
        tl.store(to + 1, second.to(dtype), mask=words >= 2)
