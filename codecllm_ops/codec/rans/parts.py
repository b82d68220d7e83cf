"""Slices and concatenations of rANS matrices without decoding (docs/format.md, section 11)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...format.geometry import STREAM_PAD, TILE_ROWS, ceil_div
from ...format.head import MAX_SEGMENTS, Head
from .index import read_index, sizes_of, write_index

if TYPE_CHECKING:
    from ..coded import CodedMatrix

# What parts must share, besides what every coding demands.
CONCAT_KEYS = ("tile_cols", "scale_bits", "predictor")


def cut(coded: CodedMatrix, head: Head, rows: slice, cols: slice) -> tuple:
    """Head, coded plane, raw plane and index of a part.

    Args:
        head: that of the part, but for its segments.

    Raises:
        ValueError: a border inside a tile.
    """
    info, grid = coded.info, coded.info.grid
    for border in (cols.start, cols.stop):
        if border % info.tile_cols and border != info.cols:
            raise ValueError(
                f"slice: column {border} is inside a tile; tile_cols is {info.tile_cols}"
            )
    tile_rows, segments = _cut_segments(info.segments, rows.start, rows.stop)
    col_tiles: range = range(0)
    if cols.stop > cols.start:
        col_tiles = range(cols.start // info.tile_cols, ceil_div(cols.stop, info.tile_cols))
    tiles = np.array([[tr * grid.col_tiles + ct for ct in col_tiles] for tr in tile_rows])
    tiles = tiles.reshape(-1).astype(np.int64)
    counts = [n * len(col_tiles) for _, n in segments]
    raw = _raw_rows(coded.raw, grid, tile_rows, col_tiles)
    stream, index = _gather_tiles(coded, tiles, np.repeat(np.arange(len(segments)), counts))
    return replace(head, segments=tuple(s for s, _ in segments)), stream, raw, index


def join(parts: list[CodedMatrix], head: Head) -> tuple:
    """The same for parts below each other; every one keeps its table and window.

    Raises:
        ValueError: too many segments together.
    """
    infos = [p.info for p in parts]
    if (count := sum(len(i.segments) for i in infos)) > MAX_SEGMENTS:
        raise ValueError(f"concat_rows: {count} segments, at most {MAX_SEGMENTS}")
    len_bits = max(i.len_bits for i in infos)
    streams, records, at, segment = [], [], 0, 0
    for part, info in zip(parts, infos, strict=True):
        body = part.stream[: info.stream_bytes - STREAM_PAD]
        starts, lengths, segments = read_index(part.index.cpu().numpy(), info.len_bits)
        records.append(write_index(starts + at, lengths, segments + segment, len_bits))
        streams.append(body)
        at += body.numel()
        segment += len(info.segments)
    streams.append(streams[0].new_zeros(STREAM_PAD))
    head = replace(head, len_bits=len_bits, segments=tuple(s for i in infos for s in i.segments))
    raw = torch.cat([p.raw for p in parts])
    return head, torch.cat(streams), raw, np.concatenate(records)


def _cut_segments(segments, r0: int, r1: int):
    """Tile rows of rows r0..r1, and per touched segment the rest of it and its tile rows."""
    tile_rows, kept, row, tile_row = [], [], 0, 0
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


def _raw_rows(raw: torch.Tensor, grid, tile_rows, col_tiles) -> torch.Tensor:
    if not tile_rows or not col_tiles:
        return raw[:0]
    begin = grid.raw_offset(0, col_tiles[0])
    last = col_tiles[-1] + 1
    end = grid.raw_row_bytes if last == grid.col_tiles else grid.raw_offset(0, last)
    rows = raw.view(grid.tile_rows, grid.raw_row_bytes)
    return rows[torch.tensor(tile_rows, device=raw.device), begin:end].reshape(-1)


def _gather_tiles(coded: CodedMatrix, tiles: np.ndarray, segments: np.ndarray):
    """Coded plane and index of some tiles, in the given order."""
    info = coded.info
    starts, lengths, _ = read_index(coded.index.cpu().numpy(), info.len_bits)
    starts, lengths = starts[tiles], lengths[tiles]
    sizes = sizes_of(lengths)
    pieces = [coded.stream[a : a + n] for a, n in zip(starts.tolist(), sizes.tolist(), strict=True)]
    pieces.append(torch.zeros(STREAM_PAD, dtype=torch.uint8, device=coded.device))
    index = write_index(np.cumsum(sizes) - sizes, lengths, segments, info.len_bits)
    return torch.cat(pieces), index
