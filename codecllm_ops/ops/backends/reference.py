"""Pure torch backend: every lane of every tile at once, on any device. Slow, needs no compiler.

The steps are those of codec/reference.py; a `[T, 32]` tensor has one value per tile and lane.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from ...codec.operand import Operand
from ...codec.rans.tables import TABLE_HEADER
from ...format.errors import CorruptStreamError
from ...format.head import ESCAPE, MAX_INDEX, MAX_LEN_BITS
from ...format.layout import (
    GROUP_COLS,
    LANES,
    STREAM_ALIGN,
    STREAM_PAD,
    TILE_ROWS,
    ceil_div,
    containers,
    raw_tile_bytes,
    round_up,
)
from ...format.layout_word import Layout
from ...format.weight_formats import WeightFormat, by_id
from . import register
from .protocol import Backend
from .stored import stored_words

RANS_L = 1 << 16
_MAX_TILES = 4096  # decoded at once: bounds the memory of the int64 intermediates


class _Matrix:
    """An operand with its geometry; sizes checked against each other."""

    def __init__(self, coded: Operand, layout: Layout):
        stream, raw, index, table, _, rows, cols, _ = coded
        self.stream, self.raw, self.table = stream, raw, table
        self.rows, self.cols, self.layout = rows, cols, layout
        if not 1 <= index.shape[1] - 2 <= MAX_LEN_BITS or table.shape[1] < TABLE_HEADER:
            raise CorruptStreamError(
                f"corrupt index or table: {list(index.shape)} and {list(table.shape)}"
            )
        self.len_bits = index.shape[1] - 2
        header = table[:, :5].to("cpu", torch.int64)
        self.first_row, self.segment_rows = header[:, 2].tolist(), header[:, 3].tolist()
        self.first_tile_row = header[:, 4].tolist()
        tile_rows = [ceil_div(r, TILE_ROWS) for r in self.segment_rows]
        self.tile_rows, self.col_tiles = sum(tile_rows), ceil_div(cols, layout.tile_cols)
        full, fmt = layout.tile_cols, layout.fmt
        last = self.width(self.col_tiles - 1) if self.col_tiles else 0
        self.raw_full = raw_tile_bytes(fmt, full)
        self.raw_row = (
            (self.col_tiles - 1) * self.raw_full + raw_tile_bytes(fmt, last) if cols else 0
        )
        if sum(self.segment_rows) != rows or raw.numel() != self.tile_rows * self.raw_row:
            raise CorruptStreamError("raw: its size does not follow from the table and the shape")
        if index.shape[0] != self.tile_rows * self.col_tiles:
            raise CorruptStreamError(
                f"index: {index.shape[0]} records, not {self.tile_rows * self.col_tiles}"
            )
        self.records = (
            index.view(self.tile_rows, self.col_tiles, index.shape[1]).long() & 0xFFFFFFFF
        )

    def width(self, col_tile: int) -> int:
        left = self.cols - col_tile * self.layout.tile_cols
        return round_up(min(self.layout.tile_cols, left), GROUP_COLS)


class ReferenceBackend(Backend):
    """The functions of this file; they run on any device and wait for it."""

    name = "reference"

    def __init__(self) -> None:
        self.encoder = sys.modules[__name__]

    def handles(self, device_type: str) -> bool:
        return True

    def decode_into(self, coded: Operand, out: torch.Tensor) -> None:
        out.copy_(decode_words(coded))

    def decode_rows_words(self, ids: torch.Tensor, coded: Operand) -> torch.Tensor:
        return decode_rows_words(ids, coded)


register(ReferenceBackend())


def decode_words(coded: Operand) -> torch.Tensor:
    """Decodes to uint8 [rows, cols * word bytes]."""
    layout = Layout.unpack(coded.layout)
    if layout.stored:
        return stored_words(coded)
    m = _Matrix(coded, layout)
    parts = []
    for segment, n in enumerate(m.segment_rows):
        first = m.first_tile_row[segment]
        tile_rows = torch.arange(first, first + ceil_div(n, TILE_ROWS), device=coded.stream.device)
        parts.append(_decode_tile_rows(m, tile_rows).flatten(0, 1)[:n])
    return _to_bytes(torch.cat(parts), layout.fmt)


def decode_rows_words(ids: torch.Tensor, coded: Operand) -> torch.Tensor:
    """Decodes rows `ids` (int64 [n]) to uint8 [n, cols * word bytes]."""
    layout, rows, cols = Layout.unpack(coded.layout), coded.rows, coded.cols
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= rows):
        raise IndexError(f"codecllm::decode_rows: index out of range for {rows} rows")
    if layout.stored:
        return stored_words(coded)[ids]
    m = _Matrix(coded, layout)
    if not ids.numel() or not cols:
        return coded.stream.new_empty((ids.numel(), cols * layout.fmt.word_bytes))
    first_rows = torch.tensor(m.first_row, device=ids.device)
    segment = torch.searchsorted(first_rows, ids, right=True) - 1
    local = ids - first_rows[segment]
    tile_row = torch.tensor(m.first_tile_row, device=ids.device)[segment] + local // TILE_ROWS
    wanted, inverse = torch.unique(tile_row, return_inverse=True)
    tiles = _decode_tile_rows(m, wanted)
    return _to_bytes(tiles[inverse, local % TILE_ROWS], layout.fmt)


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
        (tile_rows.numel(), TILE_ROWS, m.cols), dtype=torch.int64, device=m.stream.device
    )
    for col_tile in range(m.col_tiles):
        first, width = col_tile * m.layout.tile_cols, m.width(col_tile)
        keep = min(width, m.cols - first)
        for at in range(0, tile_rows.numel(), _MAX_TILES):
            part = tile_rows[at : at + _MAX_TILES]
            tiles = _decode_tiles(m, part, col_tile, width)
            out[at : at + _MAX_TILES, :, first : first + keep] = tiles[:, :, :keep]
    return out


def _decode_tiles(m: _Matrix, tile_rows: torch.Tensor, col_tile: int, width: int) -> torch.Tensor:
    """Words, int64 [T, 16, width]."""
    layout, fmt = m.layout, m.layout.fmt
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
        tile = int(tile_rows[bad][0]) * m.col_tiles + col_tile
        raise CorruptStreamError(
            f"coded plane: tile {tile} does not end in the encoder's first state"
        )

    values = lanes_to_rows(r0, r1)
    if layout.predictor:
        steps = values - (1 << (fmt.coded_bits - 1))
        values = (steps.cumsum(dim=2) + seed[:, :, None]) & value_mask
    high_shift = 16 if fmt.word_bits == 32 else 0
    words = values << (fmt.coded_shift + high_shift)
    begin = tile_rows * m.raw_row + col_tile * m.raw_full
    raw = m.raw[begin[:, None] + torch.arange(raw_tile_bytes(fmt, width), device=device)]
    return (words | _unpack_raw(raw, groups, fmt)) ^ fmt.flip


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


def lanes_to_rows(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """[T, groups, 4, 32] values of the two columns of each pair to [T, 16, 16 * groups]."""
    t, groups = first.shape[:2]
    pairs = torch.stack((first, second), dim=-1)  # [T, group, j, lane, 2]
    pairs = pairs.view(t, groups, 2, 2, 8, 4, 2)  # [T, group, col half, row half, g, t, 2]
    return pairs.permute(0, 3, 4, 1, 2, 5, 6).reshape(t, TILE_ROWS, GROUP_COLS * groups)


def rows_to_lanes(rows: torch.Tensor) -> torch.Tensor:
    """[T, 16, 16 * groups] to [T, groups, 4, 32, 2]: the inverse of lanes_to_rows."""
    t, groups = rows.shape[0], rows.shape[2] // GROUP_COLS
    rows = rows.view(t, 2, 8, groups, 2, 4, 2)
    return rows.permute(0, 3, 4, 1, 2, 5, 6).reshape(t, groups, 4, LANES, 2)


def _unpack_raw(raw: torch.Tensor, groups: int, fmt: WeightFormat) -> torch.Tensor:
    """Raw bits in place, int64 [T, 16, width], from bytes [T, raw_tile_bytes]."""
    t, at, out = raw.shape[0], 0, 0
    ints = raw.long().view(t, raw.shape[1] // 4, 4)
    ints = ints[..., 0] | ints[..., 1] << 8 | ints[..., 2] << 16 | ints[..., 3] << 24
    for plane in fmt.planes:
        count = containers(plane.bits, groups)
        whole = count // 4 * 4
        quads = ints[:, at : at + whole * LANES].view(t, whole // 4, LANES, 4)
        tail = ints[:, at + whole * LANES : at + count * LANES].view(t, LANES, count - whole)
        quads = quads.transpose(2, 3).reshape(t, whole, LANES)
        lanes = torch.cat((quads, tail.transpose(1, 2)), dim=1)
        at += count * LANES
        per = 16 // plane.bits
        by = torch.arange(0, 16, plane.bits, device=raw.device)[:, None]
        pairs = (lanes[:, :, None] >> by | lanes[:, :, None] << (32 - by)) & 0xFFFFFFFF
        pairs = pairs.reshape(t, count * per, LANES)[:, : 4 * groups].view(t, groups, 4, LANES)
        rows = lanes_to_rows(pairs & plane.mask, pairs >> 16 & plane.mask)
        out = out | (rows << (16 if fmt.word_bits == 32 and not plane.low_half else 0))
    return out


# ---- encoder ------------------------------------------------------------------------------------


def _words(data: torch.Tensor, fmt: WeightFormat) -> torch.Tensor:
    """uint8 [N, K * word bytes] to flipped words, int64 [N, K]."""
    b = data.view(data.shape[0], data.shape[1] // fmt.word_bytes, fmt.word_bytes).long()
    return sum(b[..., i] << (8 * i) for i in range(fmt.word_bytes)) ^ fmt.flip


def _coded_values(words: torch.Tensor, fmt: WeightFormat) -> torch.Tensor:
    shift = fmt.coded_shift + (16 if fmt.word_bits == 32 else 0)
    return words >> shift & ((1 << fmt.coded_bits) - 1)


def count_values(data: torch.Tensor, cols: int, format_id: int) -> torch.Tensor:
    """Histogram of coded values, int64 [256]."""
    fmt = by_id(format_id)
    return torch.bincount(_coded_values(_words(data, fmt), fmt).reshape(-1), minlength=256)


def _tiles(data, cols: int, fmt: WeightFormat, tile_cols: int, predictor: int, pad_value: int):
    """Per tile column: words and residuals, int64 [tile rows, 16, width]."""
    words = _words(data, fmt)
    shift = fmt.coded_shift + (16 if fmt.word_bits == 32 else 0)
    rows = round_up(words.shape[0], TILE_ROWS)
    value_mask = (1 << fmt.coded_bits) - 1
    for first in range(0, cols, tile_cols):
        part = words[:, first : first + tile_cols]
        tile = torch.full((rows, round_up(part.shape[1], GROUP_COLS)), pad_value << shift)
        tile[: part.shape[0], : part.shape[1]] = part
        tile = tile.view(rows // TILE_ROWS, TILE_ROWS, tile.shape[1])
        r = _coded_values(tile, fmt)
        if predictor:
            previous = torch.cat((torch.full_like(r[:, :, :1], pad_value), r[:, :, :-1]), dim=2)
            r = (r - previous + (1 << (fmt.coded_bits - 1))) & value_mask
        yield tile, r


def count_pairs(data, cols, format_id, tile_cols, predictor, pad_value) -> torch.Tensor:
    """Histogram of residual pairs r0 + 256 * r1, padding included, int64 [65536]."""
    total = torch.zeros(65536, dtype=torch.int64)
    for _, r in _tiles(data, cols, by_id(format_id), tile_cols, predictor, pad_value):
        pairs = r[:, :, 0::2] | r[:, :, 1::2] << 8
        total += torch.bincount(pairs.reshape(-1), minlength=65536)
    return total


def encode_tiles(data, pairs, freqs, cols, format_id, tile_cols, predictor, pad_value, window_base,
                 scale_bits):  # fmt: skip
    """Coded plane, raw plane (uint8) and lane lengths (int32 [tiles, 32])."""
    fmt = by_id(format_id)
    total = 1 << scale_bits
    freq = torch.zeros(1024, dtype=torch.int64)
    freq[pairs] = freqs
    freq[ESCAPE] = total - freqs.sum()
    start = freq.cumsum(0) - freq
    coded = []  # per tile column: per tile the streams of its lanes, lengths, raw
    for tile, r in _tiles(data, cols, fmt, tile_cols, predictor, pad_value):
        words, lengths = _encode_lanes(rows_to_lanes(r), window_base, freq, start, scale_bits)
        coded.append((words, lengths, _pack_raw(tile, fmt)))
    tile_rows = ceil_div(data.shape[0], TILE_ROWS)
    streams, lengths, raws = [], [], []
    for row in range(tile_rows):
        for words, n, raw in coded:
            stream = np.concatenate(
                [w[len(w) - k :] for w, k in zip(words[row], n[row], strict=True)]
            )
            streams.append(np.pad(stream, (0, -len(stream) % (STREAM_ALIGN // 2))))
            lengths.append(n[row])
            raws.append(raw[row])
    streams.append(np.zeros(STREAM_PAD // 2, np.uint16))
    stream = torch.from_numpy(np.concatenate(streams).astype("<u2").view(np.uint8))
    raw = torch.cat(raws) if raws else torch.empty(0, dtype=torch.uint8)
    n = np.array(lengths, np.int32).reshape(-1, LANES)
    return stream, raw, torch.from_numpy(n)


def _encode_lanes(residuals: torch.Tensor, base: int, freq, start, scale_bits: int):
    """residuals [T, groups, 4, 32, 2] -> words uint16 [T, 32, room], used from the end; lengths."""
    t, groups = residuals.shape[:2]
    i = residuals - base
    inside = ((i >= 0) & (i <= MAX_INDEX)).all(-1)
    symbol = torch.where(inside, 32 * i[..., 0] + i[..., 1], ESCAPE)
    symbol = torch.where(freq[symbol] > 0, symbol, ESCAPE)
    literal = residuals[..., 0] | residuals[..., 1] << 8
    room = 2 + 8 * groups
    words = torch.zeros((t, LANES, room), dtype=torch.int64)
    at = torch.full((t, LANES), room, dtype=torch.int64)
    x = torch.full((t, LANES), RANS_L, dtype=torch.int64)

    def emit(value, where):
        nonlocal at
        at = at - where.long()
        slot = (at - (~where).long()).unsqueeze(2)  # unused room just below, when not emitted
        words.scatter_(2, slot, value.unsqueeze(2))

    everywhere = torch.ones_like(x, dtype=torch.bool)
    for g in reversed(range(groups)):
        for j in reversed(range(4)):
            escape = symbol[:, g, j] == ESCAPE
            if escape.any():
                emit(literal[:, g, j], escape)
        for j in reversed(range(4)):
            s = symbol[:, g, j]
            f = freq[s]
            full = x >= f << (32 - scale_bits)
            emit(x & 0xFFFF, full)
            x = torch.where(full, x >> 16, x)
            x = (x // f << scale_bits) + x % f + start[s]
    emit(x >> 16, everywhere)
    emit(x & 0xFFFF, everywhere)
    return words.numpy().astype(np.uint16), (room - at).numpy()


def _pack_raw(tile: torch.Tensor, fmt: WeightFormat) -> torch.Tensor:
    """Raw plane, uint8 [tile rows, raw_tile_bytes], of words [tile rows, 16, width]."""
    t, groups = tile.shape[0], tile.shape[2] // GROUP_COLS
    out = []
    for plane in fmt.planes:
        shift = 16 if fmt.word_bits == 32 and not plane.low_half else 0
        halves = rows_to_lanes(tile >> shift & plane.mask).reshape(t, 4 * groups, LANES, 2)
        pairs = halves[..., 0] | halves[..., 1] << 16
        per, count = 16 // plane.bits, containers(plane.bits, groups)
        padded = torch.zeros((t, count * per, LANES), dtype=torch.int64)
        padded[:, : 4 * groups] = pairs
        by = torch.arange(0, 16, plane.bits)[:, None]
        padded = padded.view(t, count, per, LANES)
        rotated = (padded << by | padded >> (32 - by)) & 0xFFFFFFFF
        lanes = torch.zeros((t, count, LANES), dtype=torch.int64)
        for k in range(per):
            lanes |= rotated[:, :, k]
        whole = count // 4 * 4
        quads = lanes[:, :whole].view(t, whole // 4, 4, LANES).transpose(2, 3).flatten(1)
        out += [quads, lanes[:, whole:].transpose(1, 2).flatten(1)]
    ints = torch.cat(out, dim=1)
    return (
        (ints[..., None] >> torch.arange(0, 32, 8) & 0xFF)
        .to(torch.uint8)
        .view(t, 4 * ints.shape[1])
    )
