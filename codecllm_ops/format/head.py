"""The head: header, segments, tables, scales (docs/format.md, section 8)."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace

import numpy as np

from . import scales, segments
from .errors import UnsupportedFormatError
from .fixed import FIXED_PLANE_BITS, LISTED_BYTES, MAX_FIXED_TILE_COLS
from .geometry import MAX_TILE_COLS, STREAM_ALIGN, STREAM_PAD, Grid, record_ints
from .segments import MAX_DIM, Segment, need
from .weight_formats import FORMATS, WeightFormat, by_id

MAGIC = b"CLLM"
VERSION = 2  # the newest
VERSIONS = {"rans": 1, "stored": 1, "fixed": 2}  # the oldest that has the coding
ESCAPE = 1023
RANS_L = 1 << 16  # least state of a lane
MIN_SCALE_BITS, MAX_SCALE_BITS = 8, 11
MAX_LEN_BITS = 16
PREDICTORS = ("none", "left")
FLAGS = {"rans": 0, "stored": 1, "fixed": 2}

_HEADER = struct.Struct("<4sHBBQQIBBBBIIQIIII")
_CRC_OFFSET = _HEADER.size - 4


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

    @property
    def version(self) -> int:
        """Of the format: the oldest that has the coding."""
        return VERSIONS[self.coding]

    @property
    def grid(self) -> Grid:
        """Tiles; empty for stored matrices."""
        if self.stored:
            return Grid((), (), 0, 16)
        bits = FIXED_PLANE_BITS if self.coding == "fixed" else self.fmt.plane_bits
        return Grid(bits, tuple(s.rows for s in self.segments), self.cols, self.tile_cols)

    @property
    def stored(self) -> bool:
        return self.coding == "stored"

    @property
    def raw_bytes(self) -> int:
        if self.coding == "fixed":
            return LISTED_BYTES * sum(s.listed for s in self.segments)
        return self.grid.plane_bytes

    @property
    def index_ints(self) -> int:
        tiles, values = self.index_shape
        return tiles * values

    @property
    def index_shape(self) -> tuple[int, int]:
        """Tiles, and int32 values of a record."""
        if self.stored:
            return 0, 0
        values = 1 if self.coding == "fixed" else record_ints(self.len_bits)
        return self.grid.tiles, values

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
        body = segments.pack(self.segments)
        body += bytes(-len(body) % 4)
        body += scales.pack(self.scale)
        header = _HEADER.pack(
            MAGIC,
            self.version,
            self.fmt.id,
            FLAGS[self.coding],
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


def _parse(data: bytes) -> Head:
    need(len(data) >= _HEADER.size, f"head: {len(data)} bytes, the header alone has 64")
    (magic, version, format_id, flags, rows, cols, tile_cols, scale_bits, len_bits, predictor,
     scale_kind, n_segments, head_bytes, stream_bytes, crc_stream, crc_raw, crc_index,
     crc_head) = _HEADER.unpack_from(data)  # fmt: skip
    need(magic == MAGIC, f"head: magic {magic!r} is not {MAGIC!r}")
    if version > VERSION:
        raise UnsupportedFormatError(
            f"head: version {version} is newer than {VERSION}, the newest this build reads; "
            "upgrade codecllm"
        )
    need(version in VERSIONS.values(), f"head: version {version} does not exist")
    need(head_bytes == len(data), f"head: head_bytes {head_bytes}, but {len(data)} are there")
    crc = zlib.crc32(data[_HEADER.size :], zlib.crc32(data[:_CRC_OFFSET] + bytes(4)))
    need(crc == crc_head, f"head: CRC-32 {crc:#010x}, the file says {crc_head:#010x}")
    fmt = by_id(format_id)
    known = [c for c, flag in FLAGS.items() if flag == flags and VERSIONS[c] == version]
    need(bool(known), f"head: unknown flags {flags:#x} in version {version}")
    coding = known[0]
    need(rows <= MAX_DIM, f"head: rows {rows} above {MAX_DIM}")
    need(cols <= MAX_DIM, f"head: cols {cols} above {MAX_DIM}")
    parts: tuple[Segment, ...] = ()
    end = _HEADER.size
    if coding == "stored":
        zero = (tile_cols, scale_bits, len_bits, predictor, n_segments)
        need(not any(zero), "head: a stored matrix with coding parameters")
        words = rows * cols * fmt.word_bytes
        need(stream_bytes == words, f"head: stream_bytes {stream_bytes}, {words} words stored")
    elif coding == "fixed":
        need(
            fmt is FORMATS["bf16"], f"head: a fixed matrix of {fmt.name}; there are bf16 ones only"
        )
        need(
            scale_bits == len_bits == predictor == 0,
            f"head: scale_bits {scale_bits}, len_bits {len_bits}, predictor {predictor} in a fixed "
            "matrix",
        )
        _check_tile_cols(tile_cols, MAX_FIXED_TILE_COLS)
        parts, end = segments.parse_fixed(data, end, n_segments)
    else:
        _check_coding(tile_cols, scale_bits, len_bits, predictor)
        need(
            stream_bytes >= STREAM_PAD and stream_bytes % STREAM_ALIGN == 0,
            f"head: stream_bytes {stream_bytes} is not a positive multiple of {STREAM_ALIGN}",
        )
        parts, end = segments.parse_rans(data, end, n_segments, fmt, scale_bits)
    if coding != "stored":
        total = sum(s.rows for s in parts)
        need(total == rows, f"head: segments have {total} rows, the matrix {rows}")
    end += -end % 4
    need(len(data) >= end, f"head: {len(data)} bytes, but tables end at {end}")
    scale = scales.parse(data[end:], scale_kind, fmt, rows)
    head = Head(
        fmt, rows, cols, tile_cols, scale_bits, len_bits, parts, predictor, coding, scale,
        scale_kind, stream_bytes, crc_stream, crc_raw, crc_index,
    )  # fmt: skip
    if coding == "fixed":
        plane = head.grid.plane_bytes
        need(stream_bytes == plane, f"head: stream_bytes {stream_bytes}, a plane of {plane}")
    return head


def _check_tile_cols(tile_cols: int, most: int) -> None:
    need(
        tile_cols % 16 == 0 and 16 <= tile_cols <= most,
        f"head: tile_cols {tile_cols} is not a multiple of 16 from 16 to {most}",
    )


def _check_coding(tile_cols: int, scale_bits: int, len_bits: int, predictor: int) -> None:
    _check_tile_cols(tile_cols, MAX_TILE_COLS)
    need(
        MIN_SCALE_BITS <= scale_bits <= MAX_SCALE_BITS,
        f"head: scale_bits {scale_bits} outside {MIN_SCALE_BITS}..{MAX_SCALE_BITS}",
    )
    need(1 <= len_bits <= MAX_LEN_BITS, f"head: len_bits {len_bits} outside 1..{MAX_LEN_BITS}")
    need(predictor < len(PREDICTORS), f"head: predictor {predictor} does not exist")
