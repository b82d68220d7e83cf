"""A group of 16 columns: rANS, predictor and raw bits together give the words of four pairs."""

from __future__ import annotations

import triton
import triton.language as tl

from .lane import decode_group
from .planes import containers, plane_pairs


@triton.jit
def group_words(state, ahead, at, upper, lower, words, last, slots, base, raw, lane,
                group, groups,
                BITS: tl.constexpr, SHIFT: tl.constexpr, PLANES: tl.constexpr, LOW: tl.constexpr,
                SCALE_BITS: tl.constexpr, LEFT: tl.constexpr):  # fmt: skip
    """Decodes one group; all but `group` and what follows it has one element per lane.

    Args:
        state, ahead, at, words, last: the lane (lane.py).
        upper, lower: values left of the group in rows g and g + 8, for predictor `left`.
        slots, base: the segment's slot table, and its window_base in both coded fields.
        raw: the tile's part of the raw plane, a pointer to containers.
        PLANES: (mask, bits) of the format's planes one after another, without that of low halves.
        LOW: words have 32 bits.

    Returns:
        The lane, upper and lower, four (high) halves of pairs without the format's flip, and four
        low ones (the same again without LOW).
    """
    state, ahead, at, u0, u1, u2, u3 = decode_group(
        state, ahead, at, last, words, slots, base, SCALE_BITS, SHIFT, BITS
    )
    if LEFT:
        u0, upper = _undo_left(u0, upper, SHIFT, BITS)
        u1, lower = _undo_left(u1, lower, SHIFT, BITS)
        u2, upper = _undo_left(u2, upper, SHIFT, BITS)
        u3, lower = _undo_left(u3, lower, SHIFT, BITS)
    plane = raw
    for i in tl.static_range(len(PLANES) // 2):
        p0, p1, p2, p3 = plane_pairs(plane, lane, group, groups, PLANES[2 * i + 1], PLANES[2 * i])
        u0, u1, u2, u3 = u0 | p0, u1 | p1, u2 | p2, u3 | p3
        plane += containers(PLANES[2 * i + 1], groups) * 32
    l0, l1, l2, l3 = u0, u1, u2, u3
    if LOW:
        l0, l1, l2, l3 = plane_pairs(plane, lane, group, groups, 16, 0xFFFF)
    return state, ahead, at, upper, lower, u0, u1, u2, u3, l0, l1, l2, l3


@triton.jit
def _undo_left(fields, previous, SHIFT: tl.constexpr, BITS: tl.constexpr):
    """Predictor `left` for a pair: sums along the rows, each of which four lanes hold.

    Returns the fields, and the last value of each row.
    """
    mask: tl.constexpr = (1 << BITS) - 1
    half: tl.constexpr = 1 << (BITS - 1)
    n: tl.constexpr = fields.shape[0]
    r0 = ((fields >> SHIFT) & mask).to(tl.int32) - half
    r1 = ((fields >> (SHIFT + 16)) & mask).to(tl.int32) - half
    steps = tl.reshape(r0 + r1, (n // 4, 4))
    after = tl.reshape(tl.cumsum(steps, 1), (n,))
    total = tl.reshape(tl.broadcast_to(tl.sum(steps, 1)[:, None], (n // 4, 4)), (n,))
    v0 = (previous + after - r1) & mask
    v1 = (previous + after) & mask
    found = (v0 << SHIFT) | (v1 << (SHIFT + 16))
    return found.to(tl.uint32, bitcast=True), (previous + total) & mask
