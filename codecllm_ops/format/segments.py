"""Segments: ranges of rows that share a window, and the tables of `rans` (docs/format.md,
sections 8 and 13)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

from .errors import CorruptStreamError
from .fixed import MAX_FIXED_BASE
from .weight_formats import WeightFormat

RECORD = struct.Struct("<QBBHI")
MAX_INDEX = 30  # of a residual inside the window of rans
MAX_DIM = (1 << 31) - 16
MAX_SEGMENTS = 4096  # a table of 18 bytes becomes a slot table of 8 KiB


def _nothing() -> np.ndarray:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class Segment:
    """A range of rows that shares a window, and with rans a table.

    Attributes:
        pairs, freqs: rans: pair symbol ids, ascending, escape not included; frequencies. int64 [P].
        seed: rans: of the predictor `left`.
        listed: fixed: weights that have no place in the plane.
    """

    rows: int
    window_base: int
    pairs: np.ndarray = field(default_factory=_nothing)
    freqs: np.ndarray = field(default_factory=_nothing)
    seed: int = 0
    listed: int = 0


def need(condition: bool, message: str) -> None:
    """Raises CorruptStreamError with the message unless the condition holds."""
    if not condition:
        raise CorruptStreamError(message)


def pack(segments: tuple[Segment, ...]) -> bytes:
    """Records, then tables. Only one of tables and lists can be there."""
    tables = [_pack_table(s) for s in segments]
    records = (
        RECORD.pack(s.rows, s.window_base, s.seed, len(s.pairs), len(t) or s.listed)
        for s, t in zip(segments, tables, strict=True)
    )
    return b"".join([*records, *tables])


def parse_rans(data: bytes, at: int, count: int, fmt: WeightFormat, scale_bits: int):
    """Segments from byte `at` of a head on, and where their tables end."""
    segments, end = [], at + RECORD.size * count
    for n, (rows, base, seed, n_pairs, n_bytes) in enumerate(_records(data, at, count)):
        where = f"head: segment {n}"
        need(end + n_bytes <= len(data), f"{where}: table of {n_bytes} bytes ends beyond the head")
        need(base < 1 << fmt.coded_bits, f"{where}: window_base {base} above the coded field")
        need(seed < 1 << fmt.coded_bits, f"{where}: seed {seed} above the coded field")
        need(n_pairs > 0, f"{where}: a table without pairs")
        pairs, freqs = _parse_table(data[end : end + n_bytes], n_pairs, where)
        need(
            freqs.sum() < 1 << scale_bits,
            f"{where}: frequencies add up to {freqs.sum()}, nothing is left for the escape",
        )
        highest = base + int(np.maximum(pairs // 32, pairs % 32).max(initial=0))
        need(
            highest < 1 << fmt.coded_bits,
            f"{where}: window_base {base} and its pairs exceed {fmt.coded_bits} coded bits",
        )
        segments.append(Segment(rows, base, pairs, freqs, seed))
        end += n_bytes
    return tuple(segments), end


def parse_fixed(data: bytes, at: int, count: int):
    """Segments from byte `at` of a head on, and where they end."""
    segments = []
    for n, (rows, base, seed, n_pairs, listed) in enumerate(_records(data, at, count)):
        where = f"head: segment {n}"
        need(base <= MAX_FIXED_BASE, f"{where}: window_base {base} above {MAX_FIXED_BASE}")
        need(seed == n_pairs == 0, f"{where}: seed {seed}, pairs {n_pairs} in a fixed matrix")
        segments.append(Segment(rows, base, listed=listed))
    return tuple(segments), at + RECORD.size * count


def _records(data: bytes, at: int, count: int):
    need(count <= MAX_SEGMENTS, f"head: {count} segments, at most {MAX_SEGMENTS}")
    end = at + RECORD.size * count
    need(end <= len(data), f"head: {count} segments do not fit into {len(data)} bytes")
    for n, record in enumerate(RECORD.iter_unpack(data[at:end])):
        need(record[0] <= MAX_DIM, f"head: segment {n}: rows {record[0]} above {MAX_DIM}")
        yield record


def _pack_table(segment: Segment) -> bytes:
    out = bytearray()
    previous = -1
    for pair, freq in zip(segment.pairs.tolist(), segment.freqs.tolist(), strict=True):
        for value in (pair - previous - 1, freq - 1):
            while value >= 0x80:
                out.append(value & 0x7F | 0x80)
                value >>= 7
            out.append(value)
        previous = pair
    return bytes(out)


def _parse_table(table: bytes, n_pairs: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    values, value, shift = [], 0, 0
    for byte in table:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            values.append(value)
            value = shift = 0
        else:
            need(shift <= 14, f"{where}: a table entry of more than 21 bits")
    need(shift == 0, f"{where}: the table ends inside an entry")
    need(len(values) == 2 * n_pairs, f"{where}: {len(values)} table values for {n_pairs} pairs")
    gaps, freqs = np.array(values, np.int64).reshape(-1, 2).T
    pairs = np.cumsum(gaps + 1) - 1
    bad = (pairs // 32 > MAX_INDEX) | (pairs % 32 > MAX_INDEX)
    need(not bad.any(), f"{where}: pair symbol {pairs[bad][:1]} is outside the window")
    return pairs, freqs + 1
