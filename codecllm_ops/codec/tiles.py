"""What codings with tiles share: the segments that kernels see, and cutting by tile borders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from ..format.geometry import TILE_ROWS, Grid, ceil_div
from ..format.head import Head
from ..format.segments import MAX_SEGMENTS, Segment

if TYPE_CHECKING:
    from .coded import CodedMatrix

TABLE_HEADER = 8  # int32 of a segment in front of what else the coding keeps
"""Fields: csrc/core/coded_view.h."""


def segment_table(head: Head, behind: int = 0) -> np.ndarray:
    """The runtime table's headers, int32 [segments, 8 + behind]."""
    out = np.zeros((len(head.segments), TABLE_HEADER + behind), np.int32)
    row = tile_row = 0
    for line, s in zip(out, head.segments, strict=True):
        line[:5] = s.window_base, s.seed, row, s.rows, tile_row
        row += s.rows
        tile_row += ceil_div(s.rows, TILE_ROWS)
    return out


class Cut(NamedTuple):
    """A part of a matrix, as tiles.

    Attributes:
        segments: the touched ones, with the rows that are left of them.
        tiles_of: of each of them, how many tiles are in the part.
        tile_rows, col_tiles: numbers of rows and columns of tiles.
        tiles: int64, numbers of the tiles in the order of the part.
    """

    segments: tuple[Segment, ...]
    tiles_of: list[int]
    tile_rows: list[int]
    col_tiles: range
    tiles: np.ndarray


def cut_tiles(info: Head, rows: slice, cols: slice) -> Cut:
    """Which tiles rows and columns (start, stop; step 1) are.

    Raises:
        ValueError: a border inside a tile.
    """
    for border in (cols.start, cols.stop):
        if border % info.tile_cols and border != info.cols:
            raise ValueError(
                f"slice: column {border} is inside a tile; tile_cols is {info.tile_cols}"
            )
    tile_rows, kept = _cut_segments(info.segments, rows.start, rows.stop)
    col_tiles: range = range(0)
    if cols.stop > cols.start:
        col_tiles = range(cols.start // info.tile_cols, ceil_div(cols.stop, info.tile_cols))
    grid = info.grid
    tiles = np.array([[tr * grid.col_tiles + ct for ct in col_tiles] for tr in tile_rows])
    counts = [n * len(col_tiles) for _, n in kept]
    segments = tuple(s for s, _ in kept)
    return Cut(segments, counts, tile_rows, col_tiles, tiles.reshape(-1).astype(np.int64))


def plane_of(plane: torch.Tensor, grid: Grid, part: Cut) -> torch.Tensor:
    """The bytes that a part has of a plane of tiles of constant size."""
    if not part.tile_rows or not part.col_tiles:
        return plane[:0]
    begin = grid.plane_offset(0, part.col_tiles[0])
    last = part.col_tiles[-1] + 1
    end = grid.plane_row_bytes if last == grid.col_tiles else grid.plane_offset(0, last)
    rows = plane.view(grid.tile_rows, grid.plane_row_bytes)
    return rows[torch.tensor(part.tile_rows, device=plane.device), begin:end].reshape(-1)


def joined_segments(parts: Sequence[CodedMatrix]) -> tuple[Segment, ...]:
    """Those of all parts. Raises ValueError: too many together."""
    segments = tuple(s for p in parts for s in p.info.segments)
    if len(segments) > MAX_SEGMENTS:
        raise ValueError(f"concat_rows: {len(segments)} segments, at most {MAX_SEGMENTS}")
    return segments


def _cut_segments(segments: tuple[Segment, ...], r0: int, r1: int):
    """Tile rows of rows r0..r1, and per touched segment the rest of it and its tile rows."""
    tile_rows: list[int] = []
    kept, row, tile_row = [], 0, 0
    for s in segments:
        lo, hi = max(r0 - row, 0), min(r1 - row, s.rows)
        if lo < hi:
            for border in (lo, hi):
                if border % TILE_ROWS and border != s.rows:
                    raise ValueError(f"slice: row {row + border} is inside a tile of 16 rows")
            numbers = range(tile_row + lo // TILE_ROWS, tile_row + ceil_div(hi, TILE_ROWS))
            tile_rows += numbers
            kept.append((replace(s, rows=hi - lo), len(numbers)))
        row += s.rows
        tile_row += ceil_div(s.rows, TILE_ROWS)
    return tile_rows, kept
