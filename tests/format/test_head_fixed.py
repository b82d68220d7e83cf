"""Heads of coding fixed (docs/format.md, section 13)."""

from __future__ import annotations

from dataclasses import replace

import pytest

import codecllm_ops as ops
from cases import weights
from codecllm_ops.format import FORMATS, CorruptStreamError, Head, Segment, UnsupportedFormatError
from codecllm_ops.format.fixed import MAX_FIXED_TILE_COLS
from head_cases import MAXIMUM, changed


def head(**fields) -> Head:
    segments = (Segment(17, 108, listed=3), Segment(0, 239), Segment(40, 0, listed=1))
    plain = Head(FORMATS["bf16"], 57, 90, 48, 0, 0, segments, coding="fixed")
    return replace(plain, stream_bytes=plain.grid.plane_bytes, **fields)


def test_parse_inverts_pack():
    packed = head(crc_stream=1, crc_raw=2, crc_index=2**32 - 1).pack()
    parsed = Head.parse(packed)
    assert parsed.pack() == packed
    assert (parsed.version, parsed.coding, parsed.tile_cols) == (2, "fixed", 48)
    found = [(s.rows, s.window_base, s.listed) for s in parsed.segments]
    assert found == [(17, 108, 3), (0, 239, 0), (40, 0, 1)]


def test_sizes_follow():
    h = head()
    tile_rows, groups = 2 + 3, 6  # 90 columns
    assert h.stream_bytes == tile_rows * groups * 384
    assert (h.raw_bytes, h.index_shape) == (4 * 4, (tile_rows * 2, 1))


def test_without_rows_or_columns():
    for rows, cols in ((0, 5), (5, 0), (0, 0)):
        empty = Head(FORMATS["bf16"], rows, cols, 64, 0, 0, (Segment(rows, 0),), coding="fixed")
        parsed = Head.parse(empty.pack())
        assert (parsed.stream_bytes, parsed.raw_bytes, parsed.index_ints) == (0, 0, 0)


def test_other_codings_are_version_1():
    w = weights(33, 64, FORMATS["bf16"])
    rans = ops.encode(w, allow_stored=False)
    versions = [rans.to(coding).info.version for coding in ("rans", "stored", "fixed")]
    assert versions == [1, 1, 2]
    assert [m.head[4].item() for m in (rans, rans.to("stored"), rans.to("fixed"))] == versions


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("version", 1, "flags 0x2 in version 1"),
        ("version", 3, "version 3 is newer"),
        ("flags", 0, "flags 0x0 in version 2"),
        ("flags", 1, "flags 0x1 in version 2"),
        ("flags", 3, "flags 0x3 in version 2"),
        ("format", 2, "fixed matrix of fp16"),
        ("format", 6, "fixed matrix of int8"),
        ("tile_cols", 0, "tile_cols 0"),
        ("tile_cols", 56, "tile_cols 56"),
        ("tile_cols", MAX_FIXED_TILE_COLS + 16, "tile_cols 4112"),
        ("scale_bits", 11, "scale_bits 11"),
        ("len_bits", 1, "len_bits 1"),
        ("predictor", 1, "predictor 1"),
        ("scale_kind", 1, "scale"),
        ("rows", 58, "segments have 57 rows, the matrix 58"),
        ("cols", 97, "stream_bytes"),
        ("stream_bytes", 0, "stream_bytes 0"),
        ("segments", 2, "segments have 17 rows"),
        ("segments", 5, "segments do not fit"),
        ("segments", MAXIMUM["I"], "segments"),
        ("segment_rows", MAXIMUM["Q"], "segment 0: rows"),
        ("window_base", 240, "window_base 240"),
        ("window_base", 255, "window_base 255"),
        ("seed", 1, "seed 1"),
        ("pairs", 1, "pairs 1"),
    ],
)
def test_extreme_field_is_refused_by_name(field, value, named):
    with pytest.raises((CorruptStreamError, UnsupportedFormatError), match=named):
        Head.parse(changed(head().pack(), **{field: value}))


def test_bytes_behind_the_segments_are_refused():
    packed = head().pack()
    with pytest.raises(CorruptStreamError, match="0 scales"):
        Head.parse(changed(packed + bytes(4), head_bytes=len(packed) + 4))
