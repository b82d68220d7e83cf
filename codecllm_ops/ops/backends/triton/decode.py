"""Dense words from coded ones in Triton: whole matrices, and single rows."""

from __future__ import annotations

import triton
import triton.language as tl

from .group import group_words
from .lane import locate, rows_of, segment_of, segment_table, whole_lanes

# Numbers that a kernel is not compiled anew for.
_NUMBERS = (
    "count", "rows", "cols", "segments", "segment_steps", "total_words", "record_ints",
    "tile_cols", "tile_rows", "col_tiles", "raw_row", "raw_tile",
)  # fmt: skip


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


@triton.jit
def _store_group(upper_to, lower_to, group, in_upper, in_lower, left,
                 u0, u1, u2, u3, l0, l1, l2, l3,
                 FLIP: tl.constexpr, WORD_BITS: tl.constexpr, EVEN: tl.constexpr):  # fmt: skip
    """The four pairs of a group; `left` of the matrix's columns from this lane's first one on."""
    left -= 16 * group
    upper_to += group * (16 * (WORD_BITS // 8))
    lower_to += group * (16 * (WORD_BITS // 8))
    half: tl.constexpr = 8 * (WORD_BITS // 8)
    in_u, in_l = tl.where(in_upper, left, 0), tl.where(in_lower, left, 0)
    _store(upper_to, u0, l0, in_u, FLIP, WORD_BITS, EVEN)
    _store(lower_to, u1, l1, in_l, FLIP, WORD_BITS, EVEN)
    _store(upper_to + half, u2, l2, in_u - 8, FLIP, WORD_BITS, EVEN)
    _store(lower_to + half, u3, l3, in_l - 8, FLIP, WORD_BITS, EVEN)


@triton.jit(do_not_specialize=_NUMBERS[1:])
def decode_matrix(coded, raw, index, table, out, status,
                  rows, cols, segments, segment_steps, total_words, record_ints, tile_cols,
                  tile_rows, col_tiles, raw_row, raw_tile,
                  BITS: tl.constexpr, SHIFT: tl.constexpr, FLIP: tl.constexpr,
                  PLANES: tl.constexpr, LOW: tl.constexpr, WORD_BITS: tl.constexpr,
                  SCALE_BITS: tl.constexpr, LEFT: tl.constexpr, EVEN: tl.constexpr,
                  T: tl.constexpr, CHECK: tl.constexpr):  # fmt: skip
    """A program takes one column tile of T tile rows. out: bytes [rows, cols * word bytes].

    Args:
        EVEN: cols is even, so that pairs are stored at once.
    """
    block, col_tile = tl.program_id(0) // col_tiles, tl.program_id(0) % col_tiles
    lanes = tl.arange(0, 32 * T)
    lane = lanes % 32
    wanted = (block * T + lanes // 32).to(tl.int64)
    tile_row = tl.minimum(wanted, tile_rows - 1)
    segment = segment_of(table, 8 + (1 << SCALE_BITS), 4, tile_row, segments, segment_steps)
    header, base, slots = segment_table(table, segment, SCALE_BITS, SHIFT)
    words, last, state, ahead, at, end, inside, number, columns, tile_raw, seed = locate(
        coded, raw, index, header, segment, tile_row, col_tile, lane, cols, tile_cols, col_tiles,
        raw_row, raw_tile, total_words, record_ints, True, LEFT,
    )  # fmt: skip
    groups = (columns + 15) // 16
    first, count = rows_of(table, 8 + (1 << SCALE_BITS), tile_row, rows, segments, segment_steps)
    g, t = lane // 4, lane % 4
    in_upper = (wanted < tile_rows) & (g < count)
    in_lower = (wanted < tile_rows) & (g + 8 < count)
    upper_row = tl.where(in_upper, first + g, 0)
    lower_row = tl.where(in_lower, first + g + 8, 0)
    col = col_tile.to(tl.int64) * tile_cols + 2 * t
    upper_to = out + (upper_row * cols + col) * (WORD_BITS // 8)
    lower_to = out + (lower_row * cols + col) * (WORD_BITS // 8)
    upper = seed  # last values of the rows, for predictor `left`
    lower = seed
    for group in range(groups):
        state, ahead, at, upper, lower, u0, u1, u2, u3, l0, l1, l2, l3 = group_words(
            state, ahead, at, upper, lower, words, last, slots, base, tile_raw, lane,
            group, groups, BITS, SHIFT, PLANES, LOW, SCALE_BITS, LEFT,
        )  # fmt: skip
        _store_group(
            upper_to, lower_to, group, in_upper, in_lower, columns - 2 * t,
            u0, u1, u2, u3, l0, l1, l2, l3, FLIP, WORD_BITS, EVEN,
        )  # fmt: skip

    good = inside & (state == (1 << 16)) & (at == end)
    if CHECK:
        tl.atomic_min(status + lane * 0, number, mask=good == 0)
    whole = whole_lanes(good)
    if tl.min(whole, 0) == 0:
        # All ones, a NaN in every float format: never a number that looks right.
        ones = base * 0 + 0xFFFFFFFF
        in_upper &= whole == 0
        in_lower &= whole == 0
        for group in range(groups):
            _store_group(
                upper_to, lower_to, group, in_upper, in_lower, columns - 2 * t,
                ones, ones, ones, ones, ones, ones, ones, ones, 0, WORD_BITS, EVEN,
            )  # fmt: skip


@triton.jit(do_not_specialize=_NUMBERS)
def decode_rows(ids, count, coded, raw, index, table, out, status,
                rows, cols, segments, segment_steps, total_words, record_ints, tile_cols,
                tile_rows, col_tiles, raw_row, raw_tile,
                BITS: tl.constexpr, SHIFT: tl.constexpr, FLIP: tl.constexpr,
                PLANES: tl.constexpr, LOW: tl.constexpr, WORD_BITS: tl.constexpr,
                SCALE_BITS: tl.constexpr, LEFT: tl.constexpr, EVEN: tl.constexpr,
                T: tl.constexpr, CHECK: tl.constexpr):  # fmt: skip
    """A row of a tile belongs to four lanes: a program decodes 8 * T rows of one column tile."""
    block, col_tile = tl.program_id(0) // col_tiles, tl.program_id(0) % col_tiles
    lanes = tl.arange(0, 32 * T)
    t = lanes % 4
    which = block.to(tl.int64) * (8 * T) + lanes // 4
    mine = which < count
    id = tl.load(ids + which, mask=mine, other=0)
    known = (id >= 0) & (id < rows)
    row = tl.where(known, id, 0)
    segment = segment_of(table, 8 + (1 << SCALE_BITS), 2, row, segments, segment_steps)
    header, base, slots = segment_table(table, segment, SCALE_BITS, SHIFT)
    local = row - tl.load(header + 2)
    tile_row = tl.load(header + 4) + local // 16
    # Whatever the table says: what is outside decodes something that is surely there.
    there = (local >= 0) & (local < tl.load(header + 3)) & (tile_row >= 0) & (tile_row < tile_rows)
    local = tl.where(there, local, 0)
    tile_row = tl.where(there, tile_row, 0)
    in_tile = (local % 16).to(tl.int32)
    is_upper = in_tile < 8
    lane = in_tile % 8 * 4 + t
    words, last, state, ahead, at, end, inside, number, columns, tile_raw, seed = locate(
        coded, raw, index, header, segment, tile_row, col_tile, lane, cols, tile_cols, col_tiles,
        raw_row, raw_tile, total_words, record_ints, False, LEFT,
    )  # fmt: skip
    groups = (columns + 15) // 16
    col = col_tile.to(tl.int64) * tile_cols + 2 * t
    to = out + (tl.where(mine, which, 0) * cols + col) * (WORD_BITS // 8)
    upper = seed  # last values of the rows, for predictor `left`
    lower = seed
    half: tl.constexpr = 8 * (WORD_BITS // 8)
    for group in range(groups):
        state, ahead, at, upper, lower, u0, u1, u2, u3, l0, l1, l2, l3 = group_words(
            state, ahead, at, upper, lower, words, last, slots, base, tile_raw, lane,
            group, groups, BITS, SHIFT, PLANES, LOW, SCALE_BITS, LEFT,
        )  # fmt: skip
        left = tl.where(mine, columns - 16 * group - 2 * t, 0)
        offset = group * (16 * (WORD_BITS // 8))
        first, second = tl.where(is_upper, u0, u1), tl.where(is_upper, u2, u3)
        low0, low1 = tl.where(is_upper, l0, l1), tl.where(is_upper, l2, l3)
        _store(to + offset, first, low0, left, FLIP, WORD_BITS, EVEN)
        _store(to + (offset + half), second, low1, left - 8, FLIP, WORD_BITS, EVEN)

    good = known & there & inside & (state == (1 << 16)) & (at == end)
    if CHECK:
        # An id outside is told by a number above every tile's, below "nothing happened".
        tl.atomic_min(status + lane * 0, tl.where(known, number, (1 << 62) - 1),
                      mask=mine & (good == 0))  # fmt: skip
    n: tl.constexpr = lanes.shape[0]
    quads = tl.min(tl.reshape(good.to(tl.int32), (n // 4, 4)), 1)
    whole = tl.reshape(tl.broadcast_to(quads[:, None], (n // 4, 4)), (n,))
    if tl.min(whole, 0) == 0:
        ones = base * 0 + 0xFFFFFFFF
        for group in range(groups):
            left = tl.where(mine & (whole == 0), columns - 16 * group - 2 * t, 0)
            offset = group * (16 * (WORD_BITS // 8))
            _store(to + offset, ones, ones, left, 0, WORD_BITS, EVEN)
            _store(to + (offset + half), ones, ones, left - 8, 0, WORD_BITS, EVEN)
