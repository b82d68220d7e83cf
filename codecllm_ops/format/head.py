"""The head: header, segments, tables, scales (docs/format.md, section 8)."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field, replace

import numpy as np

from . import scales
from .errors import CorruptStreamError, UnsupportedFormatError
from .geometry import MAX_TILE_COLS, STREAM_ALIGN, STREAM_PAD, Grid, record_ints
from .weight_formats import WeightFormat, by_id

MAGIC = b"CLLM"
VERSION = 1
ESCAPE = 1023
RANS_L = 1 << 16  # least state of a lane
MAX_INDEX = 30  # of a residual inside the window
MIN_SCALE_BITS, MAX_SCALE_BITS = 8, 11
MAX_LEN_BITS = 16
PREDICTORS = ("none", "left")
FLAG_STORED = 1
MAX_DIM = (1 << 31) - 16
MAX_SEGMENTS = 4096  # a table of 18 bytes becomes a slot table of 8 KiB

_HEADER = struct.Struct("<4sHBBQQIBBBBIIQIIII")
_SEGMENT = struct.Struct("<QBBHI")
_CRC_OFFSET = _HEADER.size - 4


@dataclass(frozen=True)
class Segment:
    """A range of rows that shares a window and a table."""

    rows: int
    window_base: int
    pairs: np.ndarray  # int64 [P], ascending pair symbol ids, escape not included
    freqs: np.ndarray  # int64 [P], >= 1
    seed: int = 0


@dataclass(frozen=True)
class Head:
    """Everything of a matrix but its planes and index: what is on the wire, parsed."""

    fmt: WeightFormat
    rows: int
    cols: int
    tile_cols: int
    scale_bits: int
    len_bits: int
    segments: tuple[Segment, ...]
    predictor: int = 0
    coding: str = "rans"
    scale: np.ndarray | None = None  # float32 [1] or [rows]
    scale_kind: int = scales.NO_SCALE
    stream_bytes: int = 0
    crc_stream: int = 0
    crc_raw: int = 0
    crc_index: int = 0
    version: int = field(default=VERSION)

    @property
    def grid(self) -> Grid:
        """Tiles; empty for stored matrices."""
        if self.stored:
            return Grid(self.fmt, (), 0, 16)
        return Grid(self.fmt, tuple(s.rows for s in self.segments), self.cols, self.tile_cols)

    @property
    def stored(self) -> bool:
        return self.coding == "stored"

    @property
    def raw_bytes(self) -> int:
        return self.grid.raw_bytes

    @property
    def index_ints(self) -> int:
        tiles, values = self.index_shape
        return tiles * values

    @property
    def index_shape(self) -> tuple[int, int]:
        """Tiles, and int32 values of a record."""
        return (0, 0) if self.stored else (self.grid.tiles, record_ints(self.len_bits))

    def with_crcs(self, stream, raw, index) -> Head:
        """The same head for these three buffers (anything zlib.crc32 takes)."""
        return replace(
            self,
            stream_bytes=memoryview(stream).nbytes,
            crc_stream=zlib.crc32(stream),
            crc_raw=zlib.crc32(raw),
            crc_index=zlib.crc32(index),
        )

    def pack(self) -> bytes:
        tables = [_pack_table(s) for s in self.segments]
        body = b"".join(
            _SEGMENT.pack(s.rows, s.window_base, s.seed, len(s.pairs), len(t))
            for s, t in zip(self.segments, tables, strict=True)
        )
        body += b"".join(tables)
        body += bytes(-len(body) % 4)
        body += scales.pack(self.scale)
        header = _HEADER.pack(
            MAGIC,
            self.version,
            self.fmt.id,
            FLAG_STORED if self.stored else 0,
            self.rows,
            self.cols,
            self.tile_cols,
            self.scale_bits,
            self.len_bits,
            self.predictor,
            self.scale_kind,
            len(self.segments),
            _HEADER.size + len(body),
            self.stream_bytes,
            self.crc_stream,
            self.crc_raw,
            self.crc_index,
            0,
        )
        crc = zlib.crc32(body, zlib.crc32(header))
        return header[:_CRC_OFFSET] + struct.pack("<I", crc) + body

    @staticmethod
    def parse(data: bytes) -> Head:
        """Parses and checks everything that the head alone can tell.

        Raises:
            CorruptStreamError: a field contradicts the format; the message names it.
            UnsupportedFormatError: a newer version or an unknown weight format.
        """
        return _parse(bytes(data))


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


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise CorruptStreamError(message)


def _parse(data: bytes) -> Head:
    _need(len(data) >= _HEADER.size, f"head: {len(data)} bytes, the header alone has 64")
    (magic, version, format_id, flags, rows, cols, tile_cols, scale_bits, len_bits, predictor,
     scale_kind, n_segments, head_bytes, stream_bytes, crc_stream, crc_raw, crc_index,
     crc_head) = _HEADER.unpack_from(data)  # fmt: skip
    _need(magic == MAGIC, f"head: magic {magic!r} is not {MAGIC!r}")
    if version > VERSION:
        raise UnsupportedFormatError(
            f"head: version {version} is newer than {VERSION}, the newest this build reads; "
            "upgrade codecllm"
        )
    _need(version == VERSION, f"head: version {version} does not exist")
    _need(head_bytes == len(data), f"head: head_bytes {head_bytes}, but {len(data)} are there")
    crc = zlib.crc32(data[_HEADER.size :], zlib.crc32(data[:_CRC_OFFSET] + bytes(4)))
    _need(crc == crc_head, f"head: CRC-32 {crc:#010x}, the file says {crc_head:#010x}")
    fmt = by_id(format_id)
    _need(flags & ~FLAG_STORED == 0, f"head: unknown flags {flags:#x}")
    _need(rows <= MAX_DIM, f"head: rows {rows} above {MAX_DIM}")
    _need(cols <= MAX_DIM, f"head: cols {cols} above {MAX_DIM}")
    if flags & FLAG_STORED:
        zero = (tile_cols, scale_bits, len_bits, predictor, n_segments)
        _need(not any(zero), "head: a stored matrix with coding parameters")
        words = rows * cols * fmt.word_bytes
        _need(stream_bytes == words, f"head: stream_bytes {stream_bytes}, {words} words stored")
        coding, segments, end = "stored", (), _HEADER.size
    else:
        _check_coding(tile_cols, scale_bits, len_bits, predictor)
        _need(
            stream_bytes >= STREAM_PAD and stream_bytes % STREAM_ALIGN == 0,
            f"head: stream_bytes {stream_bytes} is not a positive multiple of {STREAM_ALIGN}",
        )
        coding = "rans"
        segments, end = _parse_segments(data, fmt, n_segments, scale_bits)
        total = sum(s.rows for s in segments)
        _need(total == rows, f"head: segments have {total} rows, the matrix {rows}")
    end += -end % 4
    _need(len(data) >= end, f"head: {len(data)} bytes, but tables end at {end}")
    scale = scales.parse(data[end:], scale_kind, fmt, rows)
    return Head(
        fmt, rows, cols, tile_cols, scale_bits, len_bits, segments, predictor, coding, scale,
        scale_kind, stream_bytes, crc_stream, crc_raw, crc_index,
    )  # fmt: skip


def _check_coding(tile_cols: int, scale_bits: int, len_bits: int, predictor: int) -> None:
    _need(
        tile_cols % 16 == 0 and 16 <= tile_cols <= MAX_TILE_COLS,
        f"head: tile_cols {tile_cols} is not a multiple of 16 from 16 to {MAX_TILE_COLS}",
    )
    _need(
        MIN_SCALE_BITS <= scale_bits <= MAX_SCALE_BITS,
        f"head: scale_bits {scale_bits} outside {MIN_SCALE_BITS}..{MAX_SCALE_BITS}",
    )
    _need(1 <= len_bits <= MAX_LEN_BITS, f"head: len_bits {len_bits} outside 1..{MAX_LEN_BITS}")
    _need(predictor < len(PREDICTORS), f"head: predictor {predictor} does not exist")


def _parse_segments(data: bytes, fmt: WeightFormat, count: int, scale_bits: int):
    tables_at = _HEADER.size + _SEGMENT.size * count
    _need(count <= MAX_SEGMENTS, f"head: {count} segments, at most {MAX_SEGMENTS}")
    _need(tables_at <= len(data), f"head: {count} segments do not fit into {len(data)} bytes")
    segments = []
    end = tables_at
    for n in range(count):
        rows, base, seed, n_pairs, n_bytes = _SEGMENT.unpack_from(
            data, _HEADER.size + _SEGMENT.size * n
        )
        where = f"head: segment {n}"
        _need(rows <= MAX_DIM, f"{where}: rows {rows} above {MAX_DIM}")
        _need(end + n_bytes <= len(data), f"{where}: table of {n_bytes} bytes ends beyond the head")
        _need(base < 1 << fmt.coded_bits, f"{where}: window_base {base} above the coded field")
        _need(seed < 1 << fmt.coded_bits, f"{where}: seed {seed} above the coded field")
        _need(n_pairs > 0, f"{where}: a table without pairs")
        pairs, freqs = _parse_table(data[end : end + n_bytes], n_pairs, where)
        _need(
            freqs.sum() < 1 << scale_bits,
            f"{where}: frequencies add up to {freqs.sum()}, nothing is left for the escape",
        )
        highest = base + int(np.maximum(pairs // 32, pairs % 32).max(initial=0))
        _need(
            highest < 1 << fmt.coded_bits,
            f"{where}: window_base {base} and its pairs exceed {fmt.coded_bits} coded bits",
        )
        segments.append(Segment(rows, base, pairs, freqs, seed))
        end += n_bytes
    return tuple(segments), end


def _parse_table(table: bytes, n_pairs: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    values, value, shift = [], 0, 0
    for byte in table:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            values.append(value)
            value = shift = 0
        else:
            _need(shift <= 14, f"{where}: a table entry of more than 21 bits")
    _need(shift == 0, f"{where}: the table ends inside an entry")
    _need(len(values) == 2 * n_pairs, f"{where}: {len(values)} table values for {n_pairs} pairs")
    gaps, freqs = np.array(values, np.int64).reshape(-1, 2).T
    pairs = np.cumsum(gaps + 1) - 1
    bad = (pairs // 32 > MAX_INDEX) | (pairs % 32 > MAX_INDEX)
    _need(not bad.any(), f"{where}: pair symbol {pairs[bad][:1]} is outside the window")
    return pairs, freqs + 1
