"""The tile index (docs/format.md, section 7): where each tile and each lane begins."""

from __future__ import annotations

import numpy as np

from ...format.geometry import LANES, STREAM_ALIGN, record_ints


def len_bits_of(lengths: np.ndarray) -> int:
    """Bits that the differences of lane lengths [tiles, 32] take."""
    spread = (lengths.max(axis=1) - lengths.min(axis=1)).max(initial=0) if len(lengths) else 0
    return max(1, int(spread).bit_length())


def sizes_of(lengths: np.ndarray) -> np.ndarray:
    """Bytes of tiles in the coded plane, from lane lengths [tiles, 32] in words."""
    return -(-2 * lengths.astype(np.int64).sum(axis=1) // STREAM_ALIGN) * STREAM_ALIGN


def read_index(index: np.ndarray, len_bits: int):
    """First byte [T], lane lengths in words [T, 32], segment [T] of every tile, all int64."""
    records = index.view(np.uint32).reshape(-1, record_ints(len_bits)).astype(np.int64)
    lengths = np.empty((len(records), LANES), np.int64)
    for lane in range(LANES):
        word, shift = divmod(lane * len_bits, 32)
        delta = records[:, 2 + word] >> shift
        if shift + len_bits > 32:
            delta |= records[:, 3 + word] << (32 - shift)
        lengths[:, lane] = (records[:, 1] & 0xFFFF) + (delta & ((1 << len_bits) - 1))
    return records[:, 0] * STREAM_ALIGN, lengths, records[:, 1] >> 16


def write_index(starts, lengths, segments, len_bits: int) -> np.ndarray:
    """The inverse of read_index, as int32 [T * record]."""
    lengths = np.asarray(lengths, np.int64).reshape(-1, LANES)
    shortest = lengths.min(axis=1, initial=0xFFFF)
    records = np.zeros((len(lengths), record_ints(len_bits)), np.int64)
    records[:, 0] = np.asarray(starts) // STREAM_ALIGN
    records[:, 1] = shortest | np.asarray(segments) << 16
    for lane in range(LANES):
        word, shift = divmod(lane * len_bits, 32)
        delta = lengths[:, lane] - shortest
        records[:, 2 + word] |= delta << shift & 0xFFFFFFFF
        if shift + len_bits > 32:
            records[:, 3 + word] |= delta >> (32 - shift)
    return records.astype(np.uint32).view(np.int32).reshape(-1)
