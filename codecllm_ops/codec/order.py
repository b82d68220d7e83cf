"""Where pairs and containers are, in the words of docs/format.md: for the plain references."""

from __future__ import annotations

from ..format.geometry import LANES


def pair_position(lane: int, j: int) -> tuple[int, int]:
    """Row in the tile and first column in the group of pair j of a lane (section 3)."""
    g, t = divmod(lane, 4)
    return g + 8 * (j & 1), 2 * t + 8 * (j >> 1)


def container_at(i: int, lane: int, count: int) -> int:
    """Where container i of a lane is in its plane of a tile: quads (section 5)."""
    q = i // 4
    return 4 * LANES * q + min(4, count - 4 * q) * lane + i % 4


def rotate_left(x: int, by: int) -> int:
    """Of 32 bits."""
    by %= 32
    return (x << by | x >> (32 - by)) & 0xFFFFFFFF
