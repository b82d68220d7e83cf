"""Lanes of tiles in Triton: where their words are, the rANS step, the four pairs of a group.

A tensor has one element per lane of T tiles: [32 * T], lane by lane. In a program of one warp that
is the layout in which a group's pairs are the A fragment of a tensor core (docs/format.md,
section 3), so that decoded weights need not move. The steps are those of codec/reference.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

# An escape's entry has index 31 on top, more than any other: it is the largest, as unsigned.
ESCAPE_ENTRY = tl.constexpr(31 << 27)


# ---- tiles and segments -------------------------------------------------------------------------


@triton.jit
def segment_of(table, stride, field: tl.constexpr, value, segments, steps):
    """The last segment whose header field is at most `value`; steps: ceil(log2(segments))."""
    low = value * 0
    high = low + segments
    for _ in range(steps):
        middle = (low + high) // 2
        more = high - low > 1
        below = tl.load(table + middle * stride + field).to(tl.int64) <= value
        low = tl.where(more & below, middle, low)
        high = tl.where(more & (below == 0), middle, high)
    return low


@triton.jit
def segment_table(table, segment, SCALE_BITS: tl.constexpr, SHIFT: tl.constexpr):
    """Header, window_base in both coded fields, and slot table of a segment."""
    header = table + segment * (8 + (1 << SCALE_BITS))
    base = (tl.load(header).to(tl.uint32, bitcast=True) * 0x10001) << SHIFT
    return header, base, (header + 8).to(tl.pointer_type(tl.uint32))


@triton.jit
def rows_of(table, stride, tile_row, rows, segments, steps):
    """First row of the matrix in a tile row, and how many there are: from the table alone, a
    corrupt index must not move them."""
    header = table + segment_of(table, stride, 4, tile_row, segments, steps) * stride
    local = (tile_row - tl.load(header + 4)) * 16
    first = tl.load(header + 2) + local
    count = tl.minimum(tl.minimum(tl.load(header + 3) - local, rows - first), 16)
    return first, tl.where((local >= 0) & (first >= 0), count, 0)


@triton.jit
def locate(coded, raw, index, header, segment, tile_row, col_tile, lane, cols, tile_cols, col_tiles,
           raw_row, raw_tile, total_words, record_ints,
           IN_ORDER: tl.constexpr, LEFT: tl.constexpr):  # fmt: skip
    """A lane at the beginning of its tile, from the tile index.

    Args:
        header, segment, tile_row: of each lane's tile; tile_row int64.
        IN_ORDER: the lanes of a tile stand together, so that their starts are a prefix sum.

    Returns:
        words: pointer to the tile's first word.
        last: where a lane may be at most before a group: at the padding of the coded plane.
        state, ahead, at: see step.
        end: position of the lane's end.
        inside: whether the record names `segment` and a place in the coded plane. Lanes of other
            tiles decode something that is surely there.
        number, columns: of the tile.
        tile_raw: its part of the raw plane.
        seed: what stands left of it, for predictor `left`.
    """
    number = tile_row * col_tiles + col_tile
    tile_raw = raw + (tile_row * raw_row + (tile_row * 0 + col_tile) * raw_tile)
    columns = tl.minimum(cols - col_tile * tile_cols, tile_cols)
    seed = lane * 0
    if LEFT:
        seed = tl.load(header + 1)
    record = index + number * record_ints
    first = tl.load(record).to(tl.uint32, bitcast=True).to(tl.int64) * 8
    second = tl.load(record + 1).to(tl.uint32, bitcast=True)
    shortest = (second & 0xFFFF).to(tl.int32)
    length = shortest + _delta(record, record_ints - 2, lane)
    if IN_ORDER:
        n: tl.constexpr = lane.shape[0]
        end = tl.reshape(tl.cumsum(tl.reshape(length, (n // 32, 32)), 1), (n,))
    else:
        end = length
        for other in range(31):
            more = shortest + _delta(record, record_ints - 2, lane * 0 + other)
            end += tl.where(other < lane, more, 0)
    inside = (first + end + 8 <= total_words) & ((second >> 16).to(tl.int64) == segment)
    first = tl.where(inside, first, 0)
    at = tl.where(inside, end - length, 0)
    words = coded.to(tl.pointer_type(tl.uint16)) + first
    low = tl.load(words + at).to(tl.uint32)
    high = tl.load(words + (at + 1)).to(tl.uint32)
    ahead = tl.load(words + (at + 2))
    last = tl.minimum(total_words - 8 - first, 1 << 30).to(tl.int32)
    state = (high << 16) | low
    return words, last, state, ahead, at + 2, end, inside, number, columns, tile_raw, seed


@triton.jit
def whole_tiles(good):
    """Per row of T tiles, [16 * T]: whether all lanes of its tile are good."""
    t: tl.constexpr = good.shape[0] // 32
    whole = tl.min(tl.reshape(good.to(tl.int32), (t, 32)), 1)
    return tl.reshape(tl.broadcast_to(whole[:, None], (t, 16)), (16 * t,))


@triton.jit
def whole_lanes(good):
    """The same per lane, [32 * T]."""
    t: tl.constexpr = good.shape[0] // 32
    whole = tl.min(tl.reshape(good.to(tl.int32), (t, 32)), 1)
    return tl.reshape(tl.broadcast_to(whole[:, None], (t, 32)), (32 * t,))


@triton.jit
def _delta(record, len_bits, lane):
    bit = lane * len_bits
    word = bit // 32
    low = tl.load(record + 2 + word).to(tl.uint32, bitcast=True).to(tl.uint64)
    high = tl.load(record + 3 + word, mask=word + 1 < len_bits, other=0).to(tl.uint32, bitcast=True)
    both = (high.to(tl.uint64) << 32) | low
    mask = (1 << len_bits) - 1
    return (both >> (bit % 32).to(tl.uint64)).to(tl.int32) & mask


# ---- the rANS step ------------------------------------------------------------------------------


@triton.jit
def step(state, ahead, at, words, slots, SCALE_BITS: tl.constexpr):
    """One pair. `ahead` is the word at `at`, fetched when the one before it was taken in: a step
    waits for the slot table only."""
    slot = (state & ((1 << SCALE_BITS) - 1)).to(tl.int32)
    entry = tl.load(slots + slot)
    state = ((entry >> 16) & 0x7FF) * (state >> SCALE_BITS) + (entry & 0x7FF)
    need = state < (1 << 16)
    state = tl.where(need, (state << 16) | ahead.to(tl.uint32), state)
    at = tl.where(need, at + 1, at)
    ahead = tl.load(words + at, mask=need, other=ahead)
    return state, ahead, at, entry


@triton.jit
def _fields(entry, base, SHIFT: tl.constexpr):
    """Coded fields of a pair in place: indices stand in bits 11..15 and 27..31 of an entry."""
    tl.static_assert(SHIFT <= 11)
    return ((entry >> (11 - SHIFT)) & (0x001F001F << SHIFT)) + base


@triton.jit
def _literal(fields, entry, ahead, at, last, words,
             SHIFT: tl.constexpr, BITS: tl.constexpr):  # fmt: skip
    escape = entry >= ESCAPE_ENTRY
    mask: tl.constexpr = (1 << BITS) - 1
    word = ahead.to(tl.uint32)
    found = ((word & mask) << SHIFT) | (((word >> 8) & mask) << (SHIFT + 16))
    at = tl.where(escape, at + 1, at)
    fetch = escape & (at < last + 8)
    ahead = tl.load(words + at, mask=fetch, other=ahead)
    return tl.where(escape, found, fields), ahead, at


@triton.jit
def decode_group(state, ahead, at, last, words, slots, base,
                 SCALE_BITS: tl.constexpr, SHIFT: tl.constexpr, BITS: tl.constexpr):  # fmt: skip
    """Coded fields of the four pairs of a group, in place; predictor not undone.

    A group takes at most eight words, and its first stands before the padding of the coded plane
    unless the stream is corrupt: one comparison per group keeps all accesses inside.
    """
    at = tl.minimum(at, last)
    state, ahead, at, e0 = step(state, ahead, at, words, slots, SCALE_BITS)
    state, ahead, at, e1 = step(state, ahead, at, words, slots, SCALE_BITS)
    state, ahead, at, e2 = step(state, ahead, at, words, slots, SCALE_BITS)
    state, ahead, at, e3 = step(state, ahead, at, words, slots, SCALE_BITS)
    f0, f1 = _fields(e0, base, SHIFT), _fields(e1, base, SHIFT)
    f2, f3 = _fields(e2, base, SHIFT), _fields(e3, base, SHIFT)
    # One group in a thousand has literals: the program looks for them together.
    top = tl.max(tl.maximum(tl.maximum(e0, e1), tl.maximum(e2, e3)), 0)
    if top >= ESCAPE_ENTRY:
        f0, ahead, at = _literal(f0, e0, ahead, at, last, words, SHIFT, BITS)
        f1, ahead, at = _literal(f1, e1, ahead, at, last, words, SHIFT, BITS)
        f2, ahead, at = _literal(f2, e2, ahead, at, last, words, SHIFT, BITS)
        f3, ahead, at = _literal(f3, e3, ahead, at, last, words, SHIFT, BITS)
    return state, ahead, at, f0, f1, f2, f3
