"""The head: parsing inverts packing, and what contradicts docs/format.md is refused by name."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import codecllm_ops as ops
from cases import ALL_FORMATS, weights
from codecllm_ops.format import FORMATS, CorruptStreamError, Head, Segment, UnsupportedFormatError
from codecllm_ops.format.head import MAX_DIM, VERSION
from codecllm_ops.format.scales import NO_SCALE, ROW_SCALE, TENSOR_SCALE
from head_cases import MAXIMUM, changed, sealed

# ---- round trip ---------------------------------------------------------------------------------


@st.composite
def segments(draw, fmt, scale_bits):
    """A segment whose pairs are inside the coded field and leave a slot for the escape."""
    top = (1 << fmt.coded_bits) - 1
    base = draw(st.integers(0, top))
    index = st.integers(0, min(30, top - base))
    pairs = draw(st.sets(st.tuples(index, index), min_size=1, max_size=40))
    ids = sorted(32 * i0 + i1 for i0, i1 in pairs)
    most = ((1 << scale_bits) - 1) // len(ids)
    freqs = draw(st.lists(st.integers(1, most), min_size=len(ids), max_size=len(ids)))
    rows, seed = draw(st.integers(0, 1 << 20)), draw(st.integers(0, top))
    return Segment(rows, base, np.array(ids), np.array(freqs), seed)


@st.composite
def heads(draw):
    fmt = draw(st.sampled_from(ALL_FORMATS))
    scale_bits = draw(st.integers(8, 11))
    parts = tuple(draw(st.lists(segments(fmt, scale_bits), max_size=4)))
    rows = sum(s.rows for s in parts)
    kinds = [NO_SCALE]
    if fmt.dtype == torch.int8:
        kinds += [TENSOR_SCALE] + [ROW_SCALE] * (rows <= 1000)
    kind = draw(st.sampled_from(kinds))
    n = {NO_SCALE: 0, TENSOR_SCALE: 1, ROW_SCALE: rows}[kind]
    u32 = st.integers(0, 2**32 - 1)
    return Head(
        fmt,
        rows,
        cols=draw(st.integers(0, MAX_DIM)),
        tile_cols=16 * draw(st.integers(1, 1024)),
        scale_bits=scale_bits,
        len_bits=draw(st.integers(1, 16)),
        segments=parts,
        predictor=draw(st.integers(0, 1)),
        scale=np.linspace(-1, 1, n, dtype=np.float32) if kind else None,
        scale_kind=kind,
        stream_bytes=16 * draw(st.integers(1, 1 << 40)),
        crc_stream=draw(u32),
        crc_raw=draw(u32),
        crc_index=draw(u32),
    )


@given(heads())
def test_parse_inverts_pack(head):
    parsed = Head.parse(head.pack())
    plain = {"segments": (), "scale": None}
    assert replace(parsed, **plain) == replace(head, **plain)
    assert np.array_equal(parsed.scale, head.scale) if head.scale_kind else parsed.scale is None
    assert len(parsed.segments) == len(head.segments)
    for a, b in zip(parsed.segments, head.segments, strict=True):
        assert (a.rows, a.window_base, a.seed) == (b.rows, b.window_base, b.seed)
        assert np.array_equal(a.pairs, b.pairs) and np.array_equal(a.freqs, b.freqs)
    assert parsed.pack() == head.pack()


def test_stored_head_round_trips():
    head = Head(FORMATS["int8"], 3, 5, 0, 0, 0, (), coding="stored", stream_bytes=15)
    assert Head.parse(head.pack()) == head


# ---- refusals -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coded():
    """int8: its four coded bits leave a window base and a seed that do not exist."""
    w = weights(33, 64, FORMATS["int8"])
    return ops.encode(w, scale=torch.ones(33), tile_cols=32, allow_stored=False)


@pytest.fixture(scope="module")
def head_bytes(coded):
    return bytes(coded.head.numpy())


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("version", 0, "version 0"),
        ("format", 7, "format id 7"),
        ("format", 0, "format id 0"),
        ("format", 255, "format id 255"),
        ("flags", 2, "flags 0x2 in version 1"),
        ("version", 2, "flags 0x0 in version 2"),
        ("flags", 255, "flags 0xff"),
        ("flags", 1, "stored"),
        ("rows", 0, "33 rows, the matrix 0"),
        ("rows", 32, "rows"),
        ("rows", MAX_DIM + 1, "rows"),
        ("rows", MAXIMUM["Q"], "rows"),
        ("cols", MAX_DIM + 1, "cols"),
        ("cols", MAXIMUM["Q"], "cols"),
        ("tile_cols", 0, "tile_cols 0"),
        ("tile_cols", 24, "tile_cols 24"),
        ("tile_cols", 16400, "tile_cols 16400"),
        ("tile_cols", MAXIMUM["I"], "tile_cols"),
        ("scale_bits", 0, "scale_bits 0"),
        ("scale_bits", 7, "scale_bits 7"),
        ("scale_bits", 12, "scale_bits 12"),
        ("scale_bits", 255, "scale_bits 255"),
        ("len_bits", 0, "len_bits 0"),
        ("len_bits", 17, "len_bits 17"),
        ("len_bits", 255, "len_bits 255"),
        ("predictor", 2, "predictor 2"),
        ("predictor", 255, "predictor 255"),
        ("scale_kind", 3, "scale kind 3"),
        ("scale_kind", 0, "0 scales"),
        ("scale_kind", 1, "1 scales"),
        ("segments", 0, "segments have 0 rows"),
        ("segments", 4097, "4097 segments, at most 4096"),
        ("segments", MAXIMUM["I"], "segments"),
        ("segments", 4096, "segments do not fit"),
        ("head_bytes", 0, "head_bytes 0"),
        ("head_bytes", MAXIMUM["I"], "head_bytes"),
        ("stream_bytes", 0, "stream_bytes 0"),
        ("stream_bytes", 17, "stream_bytes 17"),
        ("segment_rows", 0, "segments have 0 rows"),
        ("segment_rows", MAXIMUM["Q"], "segment 0: rows"),
        ("window_base", 16, "window_base 16"),
        ("window_base", 15, "window_base 15"),
        ("window_base", 255, "window_base 255"),
        ("seed", 16, "seed 16"),
        ("seed", 255, "seed 255"),
        ("pairs", 0, "without pairs"),
        ("pairs", 1, "for 1 pairs"),
        ("pairs", MAXIMUM["H"], "for 65535 pairs"),
        ("table_bytes", 0, "0 table values"),
        ("table_bytes", MAXIMUM["I"], "ends beyond the head"),
    ],
)
def test_extreme_field_is_refused_by_name(head_bytes, field, value, named):
    with pytest.raises((CorruptStreamError, UnsupportedFormatError), match=named):
        Head.parse(changed(head_bytes, **{field: value}))


def test_slot_tables_are_bounded():
    """The head of 65536 segments would fit into a megabyte, its slot tables not into 500."""
    body = struct.pack("<QBBHI", 0, 0, 0, 1, 2) * 0x10000 + bytes([0, 0]) * 0x10000
    header = struct.pack(
        "<4sHBBQQIBBBBIIQIIII",
        *(b"CLLM", 1, 1, 0, 0, 16, 16, 11, 4, 0, 0, 0x10000, 64 + len(body), 16, 0, 0, 0, 0),
    )
    with pytest.raises(CorruptStreamError, match="65536 segments, at most 4096"):
        Head.parse(sealed(header + body))


def test_unknown_format_is_unsupported_not_corrupt(head_bytes):
    with pytest.raises(UnsupportedFormatError, match=r"id 200 is unknown; known: 1 \(bf16\)"):
        Head.parse(changed(head_bytes, format=200))


@pytest.mark.parametrize("version", [VERSION + 1, 0xFFFF])
def test_newer_version_is_refused_with_advice(head_bytes, version):
    # A newer head may be laid out in any way: not even its checksum is looked at.
    newer = head_bytes[:4] + struct.pack("<H", version) + head_bytes[6:]
    with pytest.raises(UnsupportedFormatError, match=f"version {version} is newer.*upgrade"):
        Head.parse(newer)


def test_sizes_that_fit_the_head_but_not_the_tensors_are_refused(coded, head_bytes):
    for field in ("cols", "tile_cols", "stream_bytes"):
        for value in (16, 1 << 14):
            head = torch.frombuffer(
                bytearray(changed(head_bytes, **{field: value})), dtype=torch.uint8
            )
            with pytest.raises(CorruptStreamError, match="elements, the head says"):
                replace(coded, head=head).check(checksums=False)


@pytest.mark.parametrize("fmt", ["bf16", "fp8_e5m2"])
def test_scales_belong_to_int8_only(fmt):
    coded = ops.encode(weights(16, 16, FORMATS[fmt]), allow_stored=False)
    data = changed(bytes(coded.head.numpy()) + bytes(4), scale_kind=TENSOR_SCALE)
    data = changed(data, head_bytes=len(data))
    with pytest.raises(CorruptStreamError, match=f"{fmt} has no scales"):
        Head.parse(data)


def with_table(table: bytes, pairs: int, rows: int = 16, base: int = 0) -> bytes:
    """A bf16 head with scale_bits 8 and this table."""
    body = struct.pack("<QBBHI", rows, base, 0, pairs, len(table)) + table
    body += bytes(-len(body) % 4)
    header = struct.pack(
        "<4sHBBQQIBBBBIIQIIII",
        *(b"CLLM", 1, 1, 0, rows, 16, 16, 8, 4, 0, 0, 1, 64 + len(body), 16, 0, 0, 0, 0),
    )
    return sealed(header + body)


def test_table_of_the_documented_bytes_is_read():
    # Pair 5 with frequency 1, pair 200 with frequency 250 (both gaps and freq - 1 as LEB128).
    head = Head.parse(with_table(bytes([5, 0, 0xC2, 0x01, 0xF9, 0x01]), 2))
    assert head.segments[0].pairs.tolist() == [5, 200]
    assert head.segments[0].freqs.tolist() == [1, 250]


def test_table_entries_may_be_longer_than_needed():
    head = Head.parse(with_table(bytes([0x85, 0x80, 0x00, 0x80, 0x00]), 1))
    assert head.segments[0].pairs.tolist() == [5]
    assert head.segments[0].freqs.tolist() == [1]


def test_no_rows_need_no_segments():
    head = Head(FORMATS["bf16"], 0, 16, 16, 8, 1, (), stream_bytes=16)
    assert Head.parse(head.pack()).segments == ()


@pytest.mark.parametrize(
    ("table", "pairs", "base", "named"),
    [
        (bytes([0]), 1, 0, "1 table values for 1 pairs"),
        (bytes([0, 0x80]), 1, 0, "ends inside an entry"),
        (bytes([0, 0xFF, 0xFF, 0xFF, 0x00]), 1, 0, "more than 21 bits"),
        (bytes([31, 0]), 1, 0, "outside the window"),
        (bytes([0xE0, 0x07, 0]), 1, 0, "outside the window"),
        (bytes([0xFF, 0x07, 0]), 1, 0, "outside the window"),
        (bytes([0xFF, 0xFF, 0x7F, 0]), 1, 0, "outside the window"),
        (bytes([0, 0xFF, 0x01]), 1, 0, "add up to 256"),
        (bytes([0, 0xFF, 0xFF, 0x7F] * 3), 6, 0, "table values|add up to"),
        (bytes([30, 0]), 1, 226, "window_base 226"),
        (bytes([0xC0, 0x07, 0]), 1, 226, "window_base 226"),
    ],
)
def test_bad_table_is_refused_by_name(table, pairs, base, named):
    with pytest.raises(CorruptStreamError, match=f"head: segment 0.*({named})"):
        Head.parse(with_table(table, pairs, base=base))


# ---- truncation and damage ----------------------------------------------------------------------


def test_head_cut_at_every_byte_is_refused(head_bytes):
    for n in range(len(head_bytes)):
        with pytest.raises(CorruptStreamError, match="head"):
            Head.parse(head_bytes[:n])
        if n >= 64:  # the same with a header that agrees with the shorter length
            with pytest.raises(CorruptStreamError, match="head"):
                Head.parse(changed(head_bytes[:n], head_bytes=n))
    with pytest.raises(CorruptStreamError, match="head_bytes"):
        Head.parse(head_bytes + b"\0")


def test_every_flipped_bit_of_the_head_is_noticed(head_bytes):
    for bit in range(8 * len(head_bytes)):
        damaged = bytearray(head_bytes)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises((CorruptStreamError, UnsupportedFormatError)):
            Head.parse(bytes(damaged))


@pytest.mark.parametrize("part", ["stream", "raw", "index"])
def test_part_cut_at_every_element_is_refused(coded, part):
    tensor = getattr(coded, part)
    for n in range(tensor.numel()):
        with pytest.raises(CorruptStreamError, match=f"{part}: {n} elements"):
            replace(coded, **{part: tensor[:n]}).check()


@pytest.mark.parametrize("part", ["stream", "raw", "index"])
def test_damaged_part_is_named_by_its_checksum(coded, part):
    tensor = getattr(coded, part).clone()
    tensor[tensor.numel() // 2] ^= 1
    with pytest.raises(CorruptStreamError, match=f"{part}: CRC-32"):
        replace(coded, **{part: tensor}).check()


@pytest.mark.parametrize("part", ["stream", "raw", "index", "head"])
def test_part_of_another_type_is_refused(coded, part):
    tensor = getattr(coded, part)
    for wrong in (tensor.to(torch.int16), tensor.view(1, -1), tensor.repeat_interleave(2)[::2]):
        with pytest.raises(CorruptStreamError, match=f"{part}: .*not a contiguous 1-D"):
            replace(coded, **{part: wrong}).check()
