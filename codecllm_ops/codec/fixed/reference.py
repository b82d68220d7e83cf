"""The coding fixed in the order of docs/format.md, section 13, one weight at a time."""

from __future__ import annotations

import numpy as np

from ...format.errors import CorruptStreamError
from ...format.fixed import FIXED_CODES, FIXED_CONTAINERS, FIXED_PLACE, FIXED_SPREAD
from ...format.geometry import GROUP_COLS, LANES, TILE_ROWS, ceil_div
from ...format.head import Head
from ...format.segments import Segment
from ...format.weight_formats import FORMATS
from ..order import container_at, pair_position, rotate_left


def encode(
    words: np.ndarray, window_base: int, tile_cols: int
) -> tuple[Head, bytes, bytes, np.ndarray]:
    """Encodes [N, K] words of bf16 as one segment.

    Returns:
        head, plane, list, ends of the tiles' lists (int32).
    """
    rows, cols = words.shape
    plane, listed, ends = bytearray(), [], []
    for first_row in range(0, rows, TILE_ROWS):
        for first_col in range(0, cols, tile_cols):
            part = words[first_row : first_row + TILE_ROWS, first_col : first_col + tile_cols]
            groups = ceil_div(part.shape[1], GROUP_COLS)
            halves = np.zeros((TILE_ROWS, GROUP_COLS * groups), np.int64)
            for row, col in np.ndindex(part.shape):
                word = int(part[row, col])
                half = in_place(word, window_base)
                if half is None:
                    listed.append(row << 28 | col << 16 | word)
                else:
                    halves[row, col] = half
            plane += pack_tile(halves, groups)
            ends.append(len(listed))
    segment = Segment(rows, window_base, listed=len(listed))
    head = Head(FORMATS["bf16"], rows, cols, tile_cols, 0, 0, (segment,), coding="fixed")
    entries, index = np.array(listed, "<u4").tobytes(), np.array(ends, np.int32)
    return head.with_crcs(plane, entries, index.tobytes()), bytes(plane), entries, index


def in_place(word: int, window_base: int) -> int | None:
    """The 12 bits of a word, where they belong in a half; None: it has to be listed."""
    if word & 0x7FFF == 0:
        return word
    code = (word >> 7 & 0xFF) - window_base
    return word & 0x807F | code << 7 if 1 <= code <= FIXED_CODES else None


def pack_tile(halves: np.ndarray, groups: int) -> bytes:
    """The plane of a padded tile [16, 16 * groups] of halves."""
    count = FIXED_CONTAINERS * groups
    out = np.zeros(count * LANES, "<u4")
    for group in range(groups):
        for lane in range(LANES):
            a = []
            for j in range(4):
                row, col = pair_position(lane, j)
                first, second = halves[row, GROUP_COLS * group + col :][:2].tolist()
                a.append(first | second << 16)
            for i, (mask, by) in enumerate(FIXED_SPREAD):
                container = a[i] | rotate_left(a[3] & mask, by)
                out[container_at(FIXED_CONTAINERS * group + i, lane, count)] = container
    return out.tobytes()


def unpack_tile(plane: bytes, groups: int) -> np.ndarray:
    """The inverse of pack_tile."""
    count = FIXED_CONTAINERS * groups
    data = np.frombuffer(plane, "<u4")
    halves = np.zeros((TILE_ROWS, GROUP_COLS * groups), np.int64)
    for group in range(groups):
        for lane in range(LANES):
            a, fourth = [], 0
            for i, (mask, by) in enumerate(FIXED_SPREAD):
                r = int(data[container_at(FIXED_CONTAINERS * group + i, lane, count)])
                a.append(r & FIXED_PLACE)
                fourth |= rotate_left(r, 32 - by) & mask
            for j, pair in enumerate((*a, fourth)):
                row, col = pair_position(lane, j)
                halves[row, GROUP_COLS * group + col :][:2] = pair & 0xFFFF, pair >> 16
    return halves


def decode(head: Head, plane: bytes, listed: bytes, ends: np.ndarray) -> np.ndarray:
    """Decodes to uint16 [N, K].

    Raises:
        CorruptStreamError: what no encoder writes.
    """
    grid, entries = head.grid, np.frombuffer(listed, "<u4").tolist()
    out = np.zeros((head.rows, head.cols), np.uint16)
    tile = tile_row = first_row = 0
    for segment in head.segments:
        for at in range(0, segment.rows, TILE_ROWS):
            rows = min(TILE_ROWS, segment.rows - at)
            for col_tile in range(grid.col_tiles):
                first_col = col_tile * head.tile_cols
                groups = grid.cols_of(col_tile) // GROUP_COLS
                begin = grid.plane_offset(tile_row, col_tile)
                size = 4 * LANES * FIXED_CONTAINERS * groups
                halves = unpack_tile(plane[begin : begin + size], groups)
                mine = entries[int(ends[tile - 1]) if tile else 0 : int(ends[tile])]
                width = min(head.tile_cols, head.cols - first_col)
                words = _words(halves, segment.window_base, mine, rows, width)
                to = first_row + at
                out[to : to + rows, first_col : first_col + width] = words
                tile += 1
            tile_row += 1
        first_row += segment.rows
    return out


def _words(halves, window_base: int, listed: list[int], rows: int, cols: int) -> np.ndarray:
    codes = halves >> 7 & 0xF
    if ((codes == 0) & (halves & 0x7F != 0)).any():
        raise CorruptStreamError("plane: a code of zero with a mantissa")
    words = np.where(codes == 0, halves, halves & 0x807F | codes + window_base << 7)
    previous = -1
    for entry in listed:
        row, col, position = entry >> 28, entry >> 16 & 0xFFF, entry >> 16
        if position <= previous or row >= rows or col >= cols or halves[row, col]:
            raise CorruptStreamError(
                f"list: entry {entry:#010x} is out of order, outside, or in the plane as well"
            )
        words[row, col], previous = entry & 0xFFFF, position
    return words[:rows, :cols]
