"""Heads with a field changed and the checksum right, so that the field itself is judged."""

from __future__ import annotations

import struct
import zlib

# Offset and struct code of every header field (docs/format.md, section 8).
FIELDS = {
    "version": (4, "H"),
    "format": (6, "B"),
    "flags": (7, "B"),
    "rows": (8, "Q"),
    "cols": (16, "Q"),
    "tile_cols": (24, "I"),
    "scale_bits": (28, "B"),
    "len_bits": (29, "B"),
    "predictor": (30, "B"),
    "scale_kind": (31, "B"),
    "segments": (32, "I"),
    "head_bytes": (36, "I"),
    "stream_bytes": (40, "Q"),
    "segment_rows": (64, "Q"),
    "window_base": (72, "B"),
    "seed": (73, "B"),
    "pairs": (74, "H"),
    "table_bytes": (76, "I"),
}
MAXIMUM = {"B": 2**8 - 1, "H": 2**16 - 1, "I": 2**32 - 1, "Q": 2**64 - 1}


def sealed(data: bytes) -> bytes:
    """With the checksum that belongs to these bytes, so that the fields themselves are judged."""
    crc = zlib.crc32(data[:60] + bytes(4) + data[64:])
    return data[:60] + struct.pack("<I", crc) + data[64:]


def changed(data: bytes, **fields: int) -> bytes:
    out = bytearray(data)
    for name, value in fields.items():
        offset, code = FIELDS[name]
        struct.pack_into("<" + code, out, offset, value)
    return sealed(bytes(out))
