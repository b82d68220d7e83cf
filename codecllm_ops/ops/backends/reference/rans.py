"""The coding rans in pure torch: every lane of every tile at once.

The steps are those of codec/rans/reference.py; a `[T, 32]` tensor has one value per tile and lane.
"""

from __future__ import annotations

import torch

from ....codec.operand import Operand
from ....codec.rans.tables import TABLE_HEADER
from ....format.errors import CorruptStreamError
from ....format.geometry import (
    GROUP_COLS,
    LANES,
    STREAM_ALIGN,
    STREAM_PAD,
    TILE_ROWS,
    Grid,
    ceil_div,
    plane_tile_bytes,
    record_ints,
)
from ....format.head import ESCAPE, MAX_LEN_BITS, RANS_L
from ....format.layout_word import Layout
from ....format.weight_formats import WeightFormat
from .lanes import lanes_to_rows, unpack_raw

_MAX_TILES = 4096  # decoded at once: bounds the memory of the int64 intermediates


class _Matrix:
    """An operand with its geometry; sizes checked against each other."""

    def __init__(self, coded: Operand):
        stream, raw, index, table, _, rows, cols, word = coded
        layout = Layout.unpack(word)
        self.stream, self.raw, self.table = stream, raw, table
        self.layout, self.fmt = layout, layout.fmt
        self.len_bits = index.shape[1] - record_ints(0)
        if not 1 <= self.len_bits <= MAX_LEN_BITS or table.shape[1] < TABLE_HEADER:
            raise CorruptStreamError(
                f"corrupt index or table: {list(index.shape)} and {list(table.shape)}"
            )
        header = table[:, :5].to("cpu", torch.int64)
        self.first_row, self.segment_rows = header[:, 2].tolist(), header[:, 3].tolist()
        self.first_tile_row = header[:, 4].tolist()
        grid = self.grid = Grid(
            self.fmt.plane_bits, tuple(self.segment_rows), cols, layout.tile_cols
        )
        if grid.rows != rows or raw.numel() != grid.plane_bytes:
            raise CorruptStreamError("raw: its size does not follow from the table and the shape")
        if index.shape[0] != grid.tiles:
            raise CorruptStreamError(f"index: {index.shape[0]} records, not {grid.tiles}")
        records = index.view(grid.tile_rows, grid.col_tiles, index.shape[1])
        self.records = records.long() & 0xFFFFFFFF


def decode_words(coded: Operand) -> torch.Tensor:
    """Decodes to uint8 [rows, cols * word bytes]."""
    m = _Matrix(coded)
    parts = []
    for segment, n in enumerate(m.segment_rows):
        first = m.first_tile_row[segment]
        tile_rows = torch.arange(first, first + ceil_div(n, TILE_ROWS), device=coded.stream.device)
        parts.append(_decode_tile_rows(m, tile_rows).flatten(0, 1)[:n])
    return _to_bytes(torch.cat(parts), m.fmt)


def decode_rows_words(ids: torch.Tensor, coded: Operand) -> torch.Tensor:
    """Decodes rows `ids` (int64 [n]) to uint8 [n, cols * word bytes]."""
    m = _Matrix(coded)
    if not ids.numel() or not coded.cols:
        return coded.stream.new_empty((ids.numel(), coded.cols * m.fmt.word_bytes))
    first_rows = torch.tensor(m.first_row, device=ids.device)
    segment = torch.searchsorted(first_rows, ids, right=True) - 1
    local = ids - first_rows[segment]
    tile_row = torch.tensor(m.first_tile_row, device=ids.device)[segment] + local // TILE_ROWS
    wanted, inverse = torch.unique(tile_row, return_inverse=True)
    tiles = _decode_tile_rows(m, wanted)
    return _to_bytes(tiles[inverse, local % TILE_ROWS], m.fmt)


def _to_bytes(words: torch.Tensor, fmt: WeightFormat) -> torch.Tensor:
    dtype = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[fmt.word_bytes]
    signed = (
        words - ((words >> (fmt.word_bits - 1)) << fmt.word_bits) if fmt.word_bytes > 1 else words
    )
    out = signed.to(dtype)
    return (
        out.view(torch.uint8)
        if out.numel()
        else out.new_empty(words.shape[0], words.shape[1] * fmt.word_bytes, dtype=torch.uint8)
    )


def _decode_tile_rows(m: _Matrix, tile_rows: torch.Tensor) -> torch.Tensor:
    """Words, int64 [n, 16, cols], of some rows of tiles."""
    out = torch.empty(
        (tile_rows.numel(), TILE_ROWS, m.grid.cols), dtype=torch.int64, device=m.stream.device
    )
    for col_tile in range(m.grid.col_tiles):
        first, width = col_tile * m.layout.tile_cols, m.grid.cols_of(col_tile)
        keep = min(width, m.grid.cols - first)
        for at in range(0, tile_rows.numel(), _MAX_TILES):
            part = tile_rows[at : at + _MAX_TILES]
            tiles = _decode_tiles(m, part, col_tile, width)
            out[at : at + _MAX_TILES, :, first : first + keep] = tiles[:, :, :keep]
    return out


def _decode_tiles(m: _Matrix, tile_rows: torch.Tensor, col_tile: int, width: int) -> torch.Tensor:
    """Words, int64 [T, 16, width]."""
    layout, fmt = m.layout, m.fmt
    groups, device = width // GROUP_COLS, m.stream.device
    first_tile_rows = torch.tensor(m.first_tile_row, device=device)
    segment = torch.searchsorted(first_tile_rows, tile_rows, right=True) - 1
    record = m.records[tile_rows, col_tile]
    start, end = _lane_ranges(m, record, segment)

    stride = m.table.shape[1]
    slots = m.table.reshape(-1)
    slots_at = (segment * stride + TABLE_HEADER)[:, None]
    base, seed = m.table[segment, 0].long()[:, None], m.table[segment, 1].long()[:, None]
    last_word = m.stream.numel() // 2 - 1

    def word(at):
        at = at.clamp(max=last_word) * 2
        return m.stream[at].long() | m.stream[at + 1].long() << 8

    x, at = word(start) | word(start + 1) << 16, start + 2
    mask, value_mask = (1 << layout.scale_bits) - 1, (1 << fmt.coded_bits) - 1
    r0 = torch.empty((tile_rows.numel(), groups, 4, LANES), dtype=torch.int64, device=device)
    r1 = torch.empty_like(r0)
    for g in range(groups):
        escapes = []
        for j in range(4):
            entry = slots[slots_at + (x & mask)].long() & 0xFFFFFFFF
            x = (entry >> 16 & 0x7FF) * (x >> layout.scale_bits) + (entry & 0x7FF)
            need = x < RANS_L
            x = torch.where(need, x << 16 | word(at), x)
            at = at + need
            r0[:, g, j], r1[:, g, j] = (entry >> 11 & 31) + base, (entry >> 27) + base
            escapes.append((entry >> 27) == ESCAPE & 31)
        for j, escape in enumerate(escapes):
            if escape.any():
                literal = word(at)
                r0[:, g, j] = torch.where(escape, literal & value_mask, r0[:, g, j])
                r1[:, g, j] = torch.where(escape, literal >> 8 & value_mask, r1[:, g, j])
                at = at + escape
    bad = ((x != RANS_L) | (at != end)).any(dim=1)
    if bad.any():
        tile = int(tile_rows[bad][0]) * m.grid.col_tiles + col_tile
        raise CorruptStreamError(
            f"coded plane: tile {tile} does not end in the encoder's first state"
        )

    values = lanes_to_rows(r0, r1)
    if layout.predictor:
        steps = values - (1 << (fmt.coded_bits - 1))
        values = (steps.cumsum(dim=2) + seed[:, :, None]) & value_mask
    high_shift = 16 if fmt.word_bits == 32 else 0
    words = values << (fmt.coded_shift + high_shift)
    begin = m.grid.plane_offset(tile_rows, col_tile)
    raw = m.raw[
        begin[:, None] + torch.arange(plane_tile_bytes(fmt.plane_bits, width), device=device)
    ]
    return (words | unpack_raw(raw, groups, fmt)) ^ fmt.flip


def _lane_ranges(m: _Matrix, record: torch.Tensor, segment: torch.Tensor):
    """First word and end of every lane in the coded plane, [T, 32]."""
    bits = m.len_bits
    position = torch.arange(LANES, device=record.device) * bits
    word, shift = position // 32 + 2, position % 32
    following = record[:, (word + 1).clamp(max=bits + 1)] << (32 - shift)
    deltas = (record[:, word] >> shift | following) & ((1 << bits) - 1)
    lengths = (record[:, 1] & 0xFFFF)[:, None] + deltas
    end = lengths.cumsum(1) + (record[:, 0] * (STREAM_ALIGN // 2))[:, None]
    if (2 * end[:, -1] > m.stream.numel() - STREAM_PAD).any():
        raise CorruptStreamError("index: a tile ends beyond the coded plane")
    if ((record[:, 1] >> 16) != segment).any():
        raise CorruptStreamError("index: a tile names another segment than its row")
    return end - lengths, end
