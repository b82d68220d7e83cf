"""From counts to frequencies to slot tables (docs/format.md, sections 4 and 6)."""

from __future__ import annotations

import numpy as np

from ...format.head import ESCAPE, Head
from ...format.segments import MAX_INDEX, Segment
from ...format.weight_formats import WeightFormat
from ..tiles import TABLE_HEADER, segment_table

WINDOW = MAX_INDEX + 1
# Shares of one slot's expected count from which on a pair may stay in the table.
_KEEP_ABOVE = (0.01, 0.02, 0.04, 0.08, 0.3)
_LITERAL_BITS = 16
# An escape also costs time: it sends the whole group of a warp or vector to a slow path. On normal
# weights this moves 5 of 6 escapes into the table for 0.009 bits per weight; the CPU kernel then
# decodes 1.5 times as fast.
_ESCAPE_PENALTY_BITS = 48
_TABLE_ENTRY_BITS = 17  # about two bytes per pair in the head

# Runtime table header: 0 window_base, 1 seed, 2 first row, 3 rows, 4 first tile row, 5..7 zero.


def choose_window(counts: np.ndarray) -> int:
    """First value of the window of 31 that holds most residuals. counts: [2^coded_bits]."""
    if counts.size <= WINDOW:
        return 0
    inside = np.convolve(counts, np.ones(WINDOW, counts.dtype), mode="valid")
    # The first of several that are equally good, so that the choice is unique.
    return int(np.argmax(inside))


def normalise(counts: np.ndarray, scale_bits: int) -> np.ndarray:
    """Frequencies >= 1 that add up to 2^scale_bits and nearly minimise the coded size.

    Rounds, then moves single slots where it costs least or gains most (the greedy optimum of a
    separable convex function).

    Args:
        counts: positive numbers, at most 2^scale_bits of them.
    """
    total = 1 << scale_bits
    freq = np.maximum(1, np.round(counts * (total / counts.sum()))).astype(np.int64)
    while (excess := int(freq.sum()) - total) != 0:
        if excess > 0:
            with np.errstate(divide="ignore"):
                cost = counts * np.log2(freq / np.maximum(freq - 1, 1e-9))
            cost[freq == 1] = np.inf
            candidates = np.argsort(cost, kind="stable")[: min(excess, int((freq > 1).sum()))]
            # Few at a time: every move changes the next cost of the symbol it touched.
            freq[candidates[: max(1, len(candidates) // 2)]] -= 1
        else:
            gain = counts * np.log2((freq + 1) / freq)
            candidates = np.argsort(-gain, kind="stable")[: min(-excess, freq.size)]
            freq[candidates[: max(1, len(candidates) // 2)]] += 1
    return freq


def plan_segment(pair_counts: np.ndarray, rows: int, base: int, seed: int, scale_bits: int):
    """Chooses the pairs of the table and their frequencies.

    Args:
        pair_counts: [1024], index 32 * i0 + i1, where 31 stands for "outside the window".

    Returns:
        The segment and its expected size in bits, literals and table included.
    """
    grid = pair_counts.reshape(32, 32).copy()
    outside = int(grid[WINDOW, :].sum() + grid[:WINDOW, WINDOW].sum())
    grid[WINDOW, :] = 0
    grid[:, WINDOW] = 0
    inside = grid.reshape(-1)
    slot_share = max(1, int(pair_counts.sum())) / (1 << scale_bits)
    best = None
    for share in _KEEP_ABOVE:
        kept = np.flatnonzero(inside >= max(2.0, share * slot_share))
        kept = kept[np.argsort(-inside[kept], kind="stable")[: (1 << scale_bits) - 1]]
        if not kept.size:  # a table has at least one pair, or the escape's freq would not fit
            kept = np.array([np.argmax(inside)])
        kept.sort()
        escaped = outside + int(inside.sum() - inside[kept].sum())
        counts = np.append(inside[kept], max(escaped, 0.5)).astype(np.float64)
        freqs = normalise(counts, scale_bits)
        bits = -(counts * np.log2(freqs / (1 << scale_bits))).sum()
        bits += _LITERAL_BITS * escaped + _TABLE_ENTRY_BITS * len(kept)
        cost = float(bits) + _ESCAPE_PENALTY_BITS * escaped
        if best is None or cost < best[0]:
            segment = Segment(rows, base, kept.astype(np.int64), freqs[:-1], seed)
            best = cost, segment, float(bits)
    return best[1:]


def slot_table(segment: Segment, scale_bits: int) -> np.ndarray:
    """Slot table [2^scale_bits] of uint32, one entry per slot.

    Bits 0..10 bias (slot - start), 11..15 index of the first residual, 16..26 freq, 27..31 index
    of the second. The two indices stand 16 bits apart so that one shift puts both in place in a
    pair register. The escape has both indices 31.
    """
    total = 1 << scale_bits
    ids = np.append(segment.pairs, ESCAPE)
    freqs = np.append(segment.freqs, total - segment.freqs.sum())
    starts = np.cumsum(freqs) - freqs
    bias = np.arange(total) - np.repeat(starts, freqs)
    symbol = ids >> 5 << 11 | (ids & 31) << 27 | freqs << 16
    return (np.repeat(symbol, freqs) | bias).astype(np.uint32)


def runtime_table(head: Head) -> np.ndarray:
    """Slot tables of all segments as kernels want them: int32 [segments, 8 + 2^scale_bits]."""
    out = segment_table(head, 1 << head.scale_bits)
    for line, s in zip(out.view(np.uint32), head.segments, strict=True):
        line[TABLE_HEADER:] = slot_table(s, head.scale_bits)
    return out


def padding_value(counts: np.ndarray, fmt: WeightFormat) -> int:
    """Most frequent coded value that is not all ones (docs/format.md, section 3)."""
    return int(np.argmax(counts[: (1 << fmt.coded_bits) - 1]))
