"""Counts and coded tiles in pure torch: what the encoder wants of a backend (EncoderKernels)."""

from __future__ import annotations

import numpy as np
import torch

from ....format.geometry import (
    GROUP_COLS,
    LANES,
    STREAM_ALIGN,
    STREAM_PAD,
    TILE_ROWS,
    ceil_div,
    round_up,
)
from ....format.head import ESCAPE, RANS_L
from ....format.segments import MAX_INDEX
from ....format.weight_formats import WeightFormat, by_id
from .lanes import pack_raw, rows_to_lanes


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
        coded.append((words, lengths, pack_raw(tile, fmt)))
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
