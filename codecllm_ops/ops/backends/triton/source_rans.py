"""The rANS coding in Triton (docs/format.md, sections 4 to 7): everything that is its own.

    table   slot table of the lane's segment, in global memory: 8 values, then 2^scale_bits entries
    begin   index record -> where the lane's words are, its first state and the word ahead
    groups  4 steps -> entries -> coded fields (or literals), undo predictor, OR the raw planes
    ended   state 2^16, all words taken

The steps are those of codec/rans/reference.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import triton
import triton.language as tl

from .arguments import Source
from .planes import with_raw_bits

# An escape's entry has index 31 on top, more than any other: it is the largest, as unsigned.
ESCAPE_ENTRY = tl.constexpr(31 << 27)


@dataclass(frozen=True)
class Code:
    """`FMT.code`.

    Attributes:
        scale_bits: of the tables.
        left: with predictor `left`.
    """

    scale_bits: int
    left: bool


class Table(NamedTuple):
    """Of each lane's segment: slot table, a pointer; window_base in both coded fields."""

    slots: object
    base: object


class Lane(NamedTuple):
    """What a group changes.

    Attributes:
        state: of rANS, uint32.
        ahead: the word at `at`, uint16, fetched when the one before it was taken in: a step waits
            for the slot table only.
        at: position in the tile's words.
        upper, lower: last values of rows g and g + 8, for predictor `left`.
    """

    state: object
    ahead: object
    at: object
    upper: object
    lower: object


class Place(NamedTuple):
    """What stays for a tile.

    Attributes:
        table: Table.
        words: pointer to the tile's first word.
        last: where a lane may be at most before a group: at the padding of the coded plane.
        end: position of the lane's end.
        inside: whether the record names the tile's segment and a place in the coded plane. Lanes of
            other tiles decode something that is surely there.
        raw: the tile's part of the raw plane.
        lane: number in the tile.
    """

    table: object
    words: object
    last: object
    end: object
    inside: object
    raw: object
    lane: object


# ---- table and begin ----------------------------------------------------------------------------


@triton.jit
def table_of(coded, numbers, tiles, FMT: tl.constexpr):
    base = (tl.load(tiles.header).to(tl.uint32, bitcast=True) * 0x10001) << FMT.shift
    return Table((tiles.header + 8).to(tl.pointer_type(tl.uint32)), base)


@triton.jit
def begin(coded, numbers, table, tiles, col_tile, IN_ORDER: tl.constexpr, FMT: tl.constexpr):
    """From the tile index.

    Args:
        IN_ORDER: the lanes of a tile stand together, so that their starts are a prefix sum.
    """
    lane = tiles.lane
    raw_at = tiles.row * numbers.plane_row + (tiles.row * 0 + col_tile) * numbers.plane_tile
    raw = coded.raw.to(tl.pointer_type(tl.int32)) + raw_at
    seed = lane * 0
    if FMT.code.left:
        seed = tl.load(tiles.header + 1)

    record = coded.index + (tiles.row * numbers.col_tiles + col_tile) * numbers.record_ints
    len_bits = numbers.record_ints - 2
    first = tl.load(record).to(tl.uint32, bitcast=True).to(tl.int64) * 8
    second = tl.load(record + 1).to(tl.uint32, bitcast=True)
    shortest = (second & 0xFFFF).to(tl.int32)
    length = shortest + _delta(record, len_bits, lane)
    if IN_ORDER:
        n: tl.constexpr = lane.shape[0]
        end = tl.reshape(tl.cumsum(tl.reshape(length, (n // 32, 32)), 1), (n,))
    else:
        end = length
        for other in range(31):
            more = shortest + _delta(record, len_bits, lane * 0 + other)
            end += tl.where(other < lane, more, 0)

    fits = first + end + 8 <= numbers.indexed
    inside = fits & ((second >> 16).to(tl.int64) == tiles.segment)
    first = tl.where(inside, first, 0)
    at = tl.where(inside, end - length, 0)
    words = coded.stream.to(tl.pointer_type(tl.uint16)) + first
    low = tl.load(words + at).to(tl.uint32)
    high = tl.load(words + (at + 1)).to(tl.uint32)
    ahead = tl.load(words + (at + 2))
    last = tl.minimum(numbers.indexed - 8 - first, 1 << 30).to(tl.int32)
    return (
        Lane((high << 16) | low, ahead, at + 2, seed, seed),
        Place(table, words, last, end, inside, raw, lane),
    )


@triton.jit
def _delta(record, len_bits, lane):
    """A lane's length above the shortest."""
    bit = lane * len_bits
    word = bit // 32
    low = tl.load(record + 2 + word).to(tl.uint32, bitcast=True).to(tl.uint64)
    high = tl.load(record + 3 + word, mask=word + 1 < len_bits, other=0).to(tl.uint32, bitcast=True)
    both = (high.to(tl.uint64) << 32) | low
    mask = (1 << len_bits) - 1
    return (both >> (bit % 32).to(tl.uint64)).to(tl.int32) & mask


# ---- a group ------------------------------------------------------------------------------------


@triton.jit
def groups_of(lane, place, group, whole, groups, COUNT: tl.constexpr, WORDS: tl.constexpr,
              FMT: tl.constexpr):  # fmt: skip
    tl.static_assert(COUNT == 1)
    lane, f0, f1, f2, f3 = _fields_of(lane, place, FMT)
    if FMT.code.left:
        f0, upper = _undo_left(f0, lane.upper, FMT)
        f1, lower = _undo_left(f1, lane.lower, FMT)
        f2, upper = _undo_left(f2, upper, FMT)
        f3, lower = _undo_left(f3, lower, FMT)
        lane = Lane(lane.state, lane.ahead, lane.at, upper, lower)
    high, low = with_raw_bits(f0, f1, f2, f3, place.raw, place.lane, group, groups, FMT)
    return lane, ((high, low),)


@triton.jit
def ended(lane, place):
    return place.inside & (lane.state == (1 << 16)) & (lane.at == place.end)


@triton.jit
def _fields_of(lane, place, FMT: tl.constexpr):
    """Coded fields of the four pairs of a group, in place; predictor not undone.

    A group takes at most eight words, and its first stands before the padding of the coded plane
    unless the stream is corrupt: one comparison per group keeps all accesses inside.
    """
    state, ahead = lane.state, lane.ahead
    at = tl.minimum(lane.at, place.last)
    state, ahead, at, e0 = _step(state, ahead, at, place, FMT)
    state, ahead, at, e1 = _step(state, ahead, at, place, FMT)
    state, ahead, at, e2 = _step(state, ahead, at, place, FMT)
    state, ahead, at, e3 = _step(state, ahead, at, place, FMT)
    f0, f1 = _field(e0, place, FMT), _field(e1, place, FMT)
    f2, f3 = _field(e2, place, FMT), _field(e3, place, FMT)
    # One group in a thousand has literals: the program looks for them together.
    top = tl.max(tl.maximum(tl.maximum(e0, e1), tl.maximum(e2, e3)), 0)
    if top >= ESCAPE_ENTRY:
        f0, ahead, at = _literal(f0, e0, ahead, at, place, FMT)
        f1, ahead, at = _literal(f1, e1, ahead, at, place, FMT)
        f2, ahead, at = _literal(f2, e2, ahead, at, place, FMT)
        f3, ahead, at = _literal(f3, e3, ahead, at, place, FMT)
    return Lane(state, ahead, at, lane.upper, lane.lower), f0, f1, f2, f3


@triton.jit
def _step(state, ahead, at, place, FMT: tl.constexpr):
    """One pair: its entry of the slot table."""
    slot = (state & ((1 << FMT.code.scale_bits) - 1)).to(tl.int32)
    entry = tl.load(place.table.slots + slot)
    state = ((entry >> 16) & 0x7FF) * (state >> FMT.code.scale_bits) + (entry & 0x7FF)
    need = state < (1 << 16)
    state = tl.where(need, (state << 16) | ahead.to(tl.uint32), state)
    at = tl.where(need, at + 1, at)
    ahead = tl.load(place.words + at, mask=need, other=ahead)
    return state, ahead, at, entry


@triton.jit
def _field(entry, place, FMT: tl.constexpr):
    """Coded fields of a pair in place: indices stand in bits 11..15 and 27..31 of an entry."""
    tl.static_assert(FMT.shift <= 11)
    return ((entry >> (11 - FMT.shift)) & (0x001F001F << FMT.shift)) + place.table.base


@triton.jit
def _literal(field, entry, ahead, at, place, FMT: tl.constexpr):
    escape = entry >= ESCAPE_ENTRY
    mask: tl.constexpr = (1 << FMT.bits) - 1
    word = ahead.to(tl.uint32)
    found = ((word & mask) << FMT.shift) | (((word >> 8) & mask) << (FMT.shift + 16))
    at = tl.where(escape, at + 1, at)
    fetch = escape & (at < place.last + 8)
    ahead = tl.load(place.words + at, mask=fetch, other=ahead)
    return tl.where(escape, found, field), ahead, at


@triton.jit
def _undo_left(fields, previous, FMT: tl.constexpr):
    """Predictor `left` for a pair: sums along the rows, each of which four lanes hold.

    Returns the fields, and the last value of each row.
    """
    mask: tl.constexpr = (1 << FMT.bits) - 1
    half: tl.constexpr = 1 << (FMT.bits - 1)
    n: tl.constexpr = fields.shape[0]
    r0 = ((fields >> FMT.shift) & mask).to(tl.int32) - half
    r1 = ((fields >> (FMT.shift + 16)) & mask).to(tl.int32) - half
    steps = tl.reshape(r0 + r1, (n // 4, 4))
    after = tl.reshape(tl.cumsum(steps, 1), (n,))
    total = tl.reshape(tl.broadcast_to(tl.sum(steps, 1)[:, None], (n // 4, 4)), (n,))
    v0 = (previous + after - r1) & mask
    v1 = (previous + after) & mask
    found = (v0 << FMT.shift) | (v1 << (FMT.shift + 16))
    return found.to(tl.uint32, bitcast=True), (previous + total) & mask


SOURCE = Source(table_of, begin, groups_of, ended)
