"""The fixed coding in Triton (docs/format.md, section 13): everything that is its own.

    table   window_base of the lane's segment
    begin   where the lane's containers are: computed; where the tile's list is: its ends
    groups  three quads -> four groups; behind the last four, a container at a time
    ended   the tile's entries lie inside the list
    factor  what a power of two lacked
    listed, entry, tile_of: the list

A code is an exponent above window_base, or 0 for zero. So a half with its code in place is, as a
number, the weight times 2^-window_base, and one multiplication of two halves makes them weights,
zeros too. Words are made by adding, which takes five instructions, for zeros must stay zeros; but
where words are wanted the compiler does not multiply two at once.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from triton.language.target_info import cuda_capability_geq

from ....format.fixed import (
    FIXED_CODE,
    FIXED_CONTAINERS,
    FIXED_PLACE,
    FIXED_PLANE_BITS,
    FIXED_SPREAD,
    MAX_FIXED_BASE,
)
from .arguments import Source
from .planes import container_at, containers
from .tiles import FIRST_TILE_ROW, segment_of

BITS = tl.constexpr(FIXED_PLANE_BITS[0])  # of a weight in the plane
GROUP_CONTAINERS = tl.constexpr(FIXED_CONTAINERS)
CODES = tl.constexpr(FIXED_CODE)  # of both halves
IN_PLACE = tl.constexpr(FIXED_PLACE)
# Of the fourth pair in each container; shifted by 4 and 8, and rotated by 12.
SPREAD_0, SPREAD_1, SPREAD_2 = (tl.constexpr(mask) for mask, _ in FIXED_SPREAD)
BIAS = tl.constexpr(127)
MAX_BASE = tl.constexpr(MAX_FIXED_BASE)
# It has no arithmetic on bfloat16, whatever the device.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


class Table(NamedTuple):
    """Of each lane's segment: window_base, in place of an exponent, and of 2^window_base as much as
    bfloat16 has, as float32."""

    base: object
    scale: object


class Lane(NamedTuple):
    """Where the lane's next quads are."""

    at: object


class Place(NamedTuple):
    """What stays for a tile.

    Attributes:
        table: Table.
        mask: IN_PLACE, uint32.
        inside: whether the tile's entries lie inside the list.
        lane: number in the tile.
    """

    table: object
    mask: object
    inside: object
    lane: object


# ---- table and begin ----------------------------------------------------------------------------


@triton.jit
def table_of(coded, numbers, tiles, FMT: tl.constexpr):
    base = _base_of(tiles.header)
    return Table(base.to(tl.uint32) << 7, _power_of_two(tl.minimum(base, BIAS)))


@triton.jit
def _base_of(header):
    return tl.minimum(tl.maximum(tl.load(header), 0), MAX_BASE)


@triton.jit
def _above(base):
    """What bfloat16 has no power of two for: windows of weights above 4 only."""
    return tl.maximum(base - BIAS, 0)


@triton.jit
def _power_of_two(n):
    """float32, n from 0 to 127."""
    return ((n + BIAS) << 23).to(tl.float32, bitcast=True)


@triton.jit
def begin(coded, numbers, table, tiles, col_tile, IN_ORDER: tl.constexpr, FMT: tl.constexpr):
    tile = tiles.row * numbers.col_tiles + col_tile
    first, last = _ends(coded, tile, tile + 1)
    inside = (first >= 0) & (first <= last) & (last <= numbers.indexed)
    # All tiles begin at 128 bytes, which is not to be seen in the numbers.
    row, column = numbers.plane_row // 32 * 32, numbers.plane_tile // 32 * 32
    at = tiles.row * row + (tiles.row * 0 + col_tile) * column
    plane = coded.stream.to(tl.pointer_type(tl.uint32)) + at
    # tile_cols % 16 is 0. LLVM does not know: it would take a constant mask apart by halves, which
    # the tensor core wants together, and put them together again: 6 instructions a group.
    mask = (numbers.tile_cols % 16).to(tl.uint32) | IN_PLACE
    return Lane(plane + 4 * tiles.lane), Place(table, mask, inside, tiles.lane)


@triton.jit
def _ends(coded, first, last):
    """Where entries of the tiles from `first` to `last` - 1 begin and end."""
    begin = tl.load(coded.index + (first - 1), mask=first > 0, other=0)
    return begin, tl.load(coded.index + (last - 1), mask=last > 0, other=0)


# ---- groups -------------------------------------------------------------------------------------


@triton.jit
def groups_of(lane, place, group, whole, groups, COUNT: tl.constexpr, WORDS: tl.constexpr,
              FMT: tl.constexpr):  # fmt: skip
    if COUNT == 4:
        c0, c1, c2, c3 = _quad(lane.at)
        c4, c5, c6, c7 = _quad(lane.at + 128)
        c8, c9, c10, c11 = _quad(lane.at + 256)
        found = (
            _group((c0, c1, c2), place, WORDS),
            _group((c3, c4, c5), place, WORDS),
            _group((c6, c7, c8), place, WORDS),
            _group((c9, c10, c11), place, WORDS),
        )
        lane = Lane(lane.at + 384)
    else:
        # `at` stands behind the groups that were taken four at a time.
        left = containers(BITS, groups - whole)
        plane = lane.at - 4 * place.lane
        first = GROUP_CONTAINERS * (group - whole)
        c0 = tl.load(plane + container_at(first, left, place.lane))
        c1 = tl.load(plane + container_at(first + 1, left, place.lane))
        c2 = tl.load(plane + container_at(first + 2, left, place.lane))
        found = (_group((c0, c1, c2), place, WORDS),)
    return lane, found


@triton.jit
def _quad(at):
    """Four containers with one load."""
    two = at.to(tl.pointer_type(tl.uint64))[:, None] + tl.arange(0, 2)[None, :]
    low, high = tl.split(tl.load(two))
    c0, c1, c2, c3 = low, low >> 32, high, high >> 32
    return c0.to(tl.uint32), c1.to(tl.uint32), c2.to(tl.uint32), c3.to(tl.uint32)


@triton.jit
def _group(quads, place, WORDS: tl.constexpr):
    """The pairs of a group's containers."""
    r0, r1, r2 = quads
    code = (r0 >> 4) & SPREAD_0
    upper = (r1 >> 8) & SPREAD_1
    rest = ((r2 >> 12) | (r2 << 20)) & SPREAD_2
    p0, p1, p2, p3 = r0 & place.mask, r1 & place.mask, r2 & place.mask, rest | upper | code
    if WORDS:
        p0, p1, p2, p3 = _word(p0, place), _word(p1, place), _word(p2, place), _word(p3, place)
    else:
        p0, p1 = _number(p0, place), _number(p1, place)
        p2, p3 = _number(p2, place), _number(p3, place)
    return (p0, p1, p2, p3), (p0, p1, p2, p3)


@triton.jit
def _word(pair, place):
    """Adds window_base to the codes that are not zero, of both halves at once."""
    one_if_code = (((pair & CODES) + CODES) >> 11) & 0x00010001
    return pair + one_if_code * place.table.base


@triton.jit
def _number(pair, place):
    """Both halves times a power of two: as numbers they are the weights times 2^-window_base."""
    scale = place.table.scale
    if cuda_capability_geq(8) and not INTERPRETED:  # two at once
        scale = scale.to(tl.bfloat16)
        first = (pair & 0xFFFF).to(tl.uint16).to(tl.bfloat16, bitcast=True) * scale
        second = (pair >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True) * scale
        first = first.to(tl.uint16, bitcast=True).to(tl.uint32)
        second = second.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
    else:
        first = (pair << 16).to(tl.float32, bitcast=True) * scale
        second = (pair & 0xFFFF0000).to(tl.float32, bitcast=True) * scale
        first = first.to(tl.uint32, bitcast=True) >> 16
        second = second.to(tl.uint32, bitcast=True)
    return first | second


@triton.jit
def ended(lane, place):
    return place.inside


# ---- sums and the list --------------------------------------------------------------------------


@triton.jit
def factor_of(coded, numbers, tile_row):
    segment = segment_of(coded, numbers, tile_row, FIRST_TILE_ROW)
    return _power_of_two(_above(_base_of(coded.table + segment * numbers.table_ints)))


@triton.jit
def listed_of(coded, numbers, first, last):
    begin, end = _ends(coded, first, last)
    begin = tl.minimum(tl.maximum(begin, 0), numbers.indexed)
    end = tl.minimum(end, numbers.indexed)
    # No more than there are cells: a corrupt index must not make it take forever.
    most = (last - first) * (16 * numbers.tile_cols)
    return begin, tl.minimum(tl.maximum(end - begin, 0), most).to(tl.int32)


@triton.jit
def entry_of(coded, numbers, at, mask, columns):
    entry = tl.load(coded.raw.to(tl.pointer_type(tl.uint32)) + at, mask=mask, other=0)
    column = ((entry >> 16) & 0xFFF).to(tl.int32)
    fine = column < columns
    return (entry >> 28).to(tl.int32), tl.where(fine, column, 0), (entry & 0xFFFF), fine


@triton.jit
def tile_of(coded, numbers, at, first, last):
    """The first whose end is above `at`."""
    low, high = first, last - 1
    for _ in range(numbers.tile_steps):
        middle = (low + high) // 2
        found = tl.load(coded.index + middle) > at
        high = tl.where(found, middle, high)
        low = tl.where(found, low, tl.minimum(middle + 1, high))
    return low


SOURCE = Source(table_of, begin, groups_of, ended, factor_of, listed_of, entry_of, tile_of)
