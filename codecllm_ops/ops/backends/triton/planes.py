"""The raw plane in Triton (docs/format.md, section 5): the bits of a group's four pairs."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def containers(bits: tl.constexpr, groups):
    """Of one lane in one plane of a tile."""
    return (4 * groups * bits + 15) // 16


@triton.jit
def _rotate_right(v, n: tl.constexpr):
    return (v >> n) | (v << (32 - n))


@triton.jit
def container_at(container, count, lane):
    """In 32-bit words: quads, so that a lane's containers stand together. `count` of a lane."""
    width = tl.minimum(4, count - container // 4 * 4)
    return container // 4 * 128 + width * lane + container % 4


@triton.jit
def with_raw_bits(f0, f1, f2, f3, raw, lane, group, groups, FMT: tl.constexpr):
    """Adds a group's raw bits to its coded fields.

    Args:
        f0, f1, f2, f3: pairs of halves, their coded fields in place, all else zero.
        raw: the tile's part of the raw plane, a pointer to containers, of each lane.

    Returns:
        Four (high) halves of pairs, and four low ones: of words that have 32 bits, else the same.
    """
    for i in tl.static_range(len(FMT.planes) // 2):
        p0, p1, p2, p3 = _plane(raw, lane, group, groups, FMT.planes[2 * i + 1], FMT.planes[2 * i])
        f0, f1, f2, f3 = f0 | p0, f1 | p1, f2 | p2, f3 | p3
        raw += containers(FMT.planes[2 * i + 1], groups) * 32
    high = f0, f1, f2, f3
    low = high
    if FMT.word_bits == 32:
        low = _plane(raw, lane, group, groups, 16, 0xFFFF)
    return high, low


@triton.jit
def _plane(plane, lane, group, groups, BITS: tl.constexpr, MASK: tl.constexpr):
    """One plane's bits of the four pairs of a group, in place.

    Args:
        plane: where the tile's part of the plane begins, a pointer to containers, of each lane.
    """
    mask: tl.constexpr = MASK * 0x10001
    count = containers(BITS, groups)
    if BITS == 16:
        low = _load(plane, container_at(4 * group, count, lane), tl.uint64)
        high = _load(plane, container_at(4 * group + 2, count, lane), tl.uint64)
        p0, p1 = low.to(tl.uint32), (low >> 32).to(tl.uint32)
        p2, p3 = high.to(tl.uint32), (high >> 32).to(tl.uint32)
    elif BITS == 8:
        both = _load(plane, container_at(2 * group, count, lane), tl.uint64)
        low, high = both.to(tl.uint32), (both >> 32).to(tl.uint32)
        p0, p1 = low, _rotate_right(low, 8)
        p2, p3 = high, _rotate_right(high, 8)
    else:
        per: tl.constexpr = 4 // BITS  # groups that share a container
        c = _load(plane, container_at(group // per, count, lane), tl.uint32)
        if per > 1:
            by = group % per * (4 * BITS)
            c = (c >> by) | (c << ((32 - by) % 32))
        p0, p1 = c, _rotate_right(c, BITS)
        p2, p3 = _rotate_right(c, 2 * BITS), _rotate_right(c, 3 * BITS)
    return p0 & mask, p1 & mask, p2 & mask, p3 & mask


@triton.jit
def _load(plane, container, dtype: tl.constexpr):
    return tl.load((plane + container).to(tl.pointer_type(dtype)))
