"""The coding fixed: every backend against the plain reference, and what no encoder writes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import codecllm_ops as ops
from assertions import assert_same_words
from cases import (
    BACKENDS,
    CONTENTS,
    EMPTY_SHAPES,
    INTERPRETING,
    SHAPES,
    all_patterns,
    every_backend,
    every_content,
    random_words,
    running,
    to_tensor,
    to_words,
    weights,
)
from codecllm_ops import CodedMatrix, CorruptStreamError, UnsupportedFormatError
from codecllm_ops.codec.fixed import reference, window
from codecllm_ops.format import FORMATS

BF16 = FORMATS["bf16"]
# Triton codes and checks by what "reference" does.
every_encoder = pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "triton"])
# Triton's interpreter takes a second for what others do in a millisecond, and has tests of its own.
ALL_SHAPES = [(17, 90)] if INTERPRETING else [*SHAPES, (17, 90), (16, 64), (40, 129), (33, 700)]
WIDTHS = [64] if INTERPRETING else [16, 48, 64, 1024, 4096]


def patterns() -> torch.Tensor:
    """All words; where that is slow, 1024 of them, with each sign and exponent."""
    words = all_patterns(BF16)
    if INTERPRETING:
        words = words.flatten()
        words = words[words % 64 == (words >> 7) % 64].reshape(16, -1)  # 1024
    return to_tensor(words, BF16)


def fixed(w: torch.Tensor, tile_cols: int | None = None) -> CodedMatrix:
    return ops.encode(w, coding="fixed", tile_cols=tile_cols, allow_stored=False)


def by_reference(w: torch.Tensor, tile_cols: int) -> CodedMatrix:
    base = window.choose_window(w[window.sampled_rows(w.shape[0])])
    head, *buffers = reference.encode(to_words(w), base, tile_cols)
    return CodedMatrix.build(head, *buffers)


# ---- the same bits ------------------------------------------------------------------------------


@every_backend
@pytest.mark.parametrize("content", CONTENTS if not INTERPRETING else ["normal", "extremes"])
@pytest.mark.parametrize("shape", ALL_SHAPES, ids=str)
def test_decode_gives_the_original_bits(backend, content, shape):
    w = to_tensor(CONTENTS[content](*shape, BF16), BF16)
    with running(backend):
        coded = fixed(w).check()
        assert_same_words(ops.decode(coded), w)
        ids = torch.arange(shape[0]).flip(0)
        assert_same_words(ops.decode_rows(ids, coded), w.flip(0))


@every_backend
@pytest.mark.parametrize("tile_cols", WIDTHS)
def test_every_pattern(backend, tile_cols):
    w = patterns()
    with running(backend):
        coded = fixed(w, tile_cols).check()
        assert_same_words(ops.decode(coded), w)
    assert coded.raw.numel() // 4 > w.numel() * 0.9  # most exponents are outside


@every_encoder
@pytest.mark.parametrize("content", ["normal", "extremes", "escapes_at_borders", "constant"])
@pytest.mark.parametrize(
    ("shape", "tile_cols"), [((33, 70), 48), ((17, 130), 128), ((5, 16), 16), ((1, 1), 64)], ids=str
)
def test_backends_write_what_the_reference_writes(backend, content, shape, tile_cols):
    w = to_tensor(CONTENTS[content](*shape, BF16), BF16)
    expected = by_reference(w, tile_cols)
    with running(backend):
        assert fixed(w, tile_cols) == expected
    matrix = expected.info, bytes(expected.stream.numpy()), bytes(expected.raw.numpy())
    assert_same_words(reference.decode(*matrix, expected.index.numpy()), to_words(w))


@every_backend
@pytest.mark.parametrize("shape", EMPTY_SHAPES, ids=str)
def test_empty(backend, shape):
    with running(backend):
        coded = fixed(torch.empty(shape, dtype=torch.bfloat16)).check()
        assert ops.decode(coded).shape == shape
        assert coded.coding == "fixed" and coded.stream.numel() == 0


@pytest.mark.parametrize("base", [0, 1, 112, 238, 239])
@every_backend
def test_windows_at_both_ends(backend, base):
    exponents = base + np.arange(1, 16)
    words = random_words(16, 150, BF16) & 0x807F | np.tile(exponents, 10).astype(np.uint16) << 7
    w = to_tensor(words, BF16)
    with running(backend):
        coded = fixed(w).check()
        assert coded.info.segments[0].window_base == base and coded.raw.numel() == 0
        assert_same_words(ops.decode(coded), w)


# ---- from and to other codings ------------------------------------------------------------------


@every_encoder
@every_content
def test_from_rans_as_from_the_original(backend, content):
    w = to_tensor(CONTENTS[content](50, 90, BF16), BF16)
    with running(backend):
        rans = ops.encode(w, tile_cols=32, allow_stored=False)
        coded = rans.to("fixed")
        assert coded == fixed(w) == rans.to("stored").to("fixed")
        assert coded.to("rans", tile_cols=32) == rans
        assert_same_words(ops.decode(coded.to("stored")), w)


@every_encoder
def test_segments_stay_and_choose_their_own_windows(backend):
    parts = [weights(17, 90, BF16), 1024 * weights(1, 90, BF16), 2.0**-60 * weights(33, 90, BF16)]
    with running(backend):
        joined = CodedMatrix.concat_rows([ops.encode(p, allow_stored=False) for p in parts])
        coded = joined.to("fixed").check()
        assert coded == CodedMatrix.concat_rows([fixed(p) for p in parts])
        assert_same_words(ops.decode(coded), torch.cat(parts))
        assert_same_words(ops.decode_rows(torch.tensor([17, 18, 50]), coded),
                          torch.cat(parts)[[17, 18, 50]])  # fmt: skip
    bases = [s.window_base for s in coded.info.segments]
    assert len(bases) == 3 and bases[1] > bases[0] > bases[2]


@every_encoder
def test_slices_and_concatenations(backend):
    w = to_tensor(CONTENTS["extremes"](50, 200, BF16), BF16)
    with running(backend):
        coded = fixed(w, 64)
        part = coded.slice(slice(16, 48), slice(64, 192)).check()
        assert_same_words(ops.decode(part), w[16:48, 64:192])
        last = coded.slice(slice(32, 50), slice(128, 200)).check()
        assert_same_words(ops.decode(last), w[32:, 128:])
        assert coded.slice() == coded
        halves = [coded.slice(slice(0, 32)), coded.slice(slice(32, 50))]
        assert_same_words(ops.decode(CodedMatrix.concat_rows(halves).check()), w)
    for rows, cols in ((slice(0, 8), slice(None)), (slice(None), slice(0, 48))):
        with pytest.raises(ValueError, match="inside a tile"):
            coded.slice(rows, cols)
    with pytest.raises(ValueError, match="coding: fixed, rans"):
        CodedMatrix.concat_rows([coded, ops.encode(w, allow_stored=False)])
    with pytest.raises(ValueError, match="tile_cols: 64, 128"):
        CodedMatrix.concat_rows([coded, fixed(w, 128)])


# ---- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [f for f in FORMATS if f != "bf16"])
def test_other_formats_have_no_place(name):
    w = weights(16, 64, FORMATS[name])
    with pytest.raises(UnsupportedFormatError, match=f'"fixed" is for bf16.*{name}'):
        ops.encode(w, coding="fixed")
    with pytest.raises(UnsupportedFormatError, match=f'"fixed" is for bf16.*{name}'):
        ops.encode(w, allow_stored=False).to("fixed")


def test_options_are_refused_by_name():
    w = weights(16, 64, BF16)
    with pytest.raises(ValueError, match="tile_cols 4112"):
        ops.encode(w, coding="fixed", tile_cols=4112)
    with pytest.raises(ValueError, match="tile_cols 24"):
        ops.encode(w, allow_stored=False).to("fixed", tile_cols=24)
    with pytest.raises(ValueError, match="takes tile_cols, not scale_bits"):
        ops.encode(w, allow_stored=False).to("fixed", scale_bits=9)
    for option in ({"scale_bits": 9}, {"predictor": "left"}):
        with pytest.raises(ValueError, match='are options of coding "rans"'):
            ops.encode(w, coding="fixed", **option)
    with pytest.raises(ValueError, match="coding 'huffman'"):
        ops.encode(w, coding="huffman")


def test_what_does_not_shrink_is_stored():
    w = to_tensor(random_words(64, 64, BF16), BF16)
    assert ops.encode(w, coding="fixed").coding == "stored"
    assert fixed(w).coding == "fixed"


def test_bits_per_weight():
    coded = fixed(weights(1024, 1024, BF16))
    assert 12 < 8 * coded.nbytes / 2**20 < 12.02


def test_tiles_are_whole_units():
    for cols, expected in ((1, 64), (576, 576), (2048, 512), (11008, 512), (1000, 512), (700, 704)):
        assert fixed(torch.zeros(1, cols, dtype=torch.bfloat16)).info.tile_cols == expected


# ---- what no encoder writes ---------------------------------------------------------------------


def rebuilt(coded: CodedMatrix, **parts: torch.Tensor) -> CodedMatrix:
    """With other tensors, and checksums that belong to them."""
    parts = {"stream": coded.stream, "raw": coded.raw, "index": coded.index} | parts
    return CodedMatrix.build(coded.info, **parts)


def entries(coded: CodedMatrix) -> torch.Tensor:
    return coded.raw.clone().view(torch.int32)


@pytest.fixture
def some():
    """33 x 90 in tiles of 48 columns; tiles 0 and 3 list two weights each."""
    w = weights(33, 90, BF16)
    for row, col in ((2, 3), (15, 47), (16, 50), (20, 89)):
        w[row, col] = float("nan")
    coded = fixed(w, 48)
    assert coded.info.segments[0].listed == 4 and coded.index.tolist() == [2, 2, 2, 4, 4, 4]
    return coded


def code_without_exponent(c):
    stream = c.stream.clone().view(torch.int32)
    stream[0] = stream[0] & ~0x0780 | 1  # pair 0 of lane 0
    return {"stream": stream.view(torch.uint8)}


def listed_twice(c):
    e = entries(c)
    e[1] = e[0]
    return {"raw": e.view(torch.uint8)}


def out_of_order(c):
    return {"raw": entries(c)[[1, 0, 2, 3]].view(torch.uint8)}


def column_outside_the_tile(c):
    e = entries(c)
    e[1] = e[1] & ~0x0FFF0000 | 48 << 16
    return {"raw": e.view(torch.uint8)}


def column_in_padding(c):
    e = entries(c)
    e[3] = e[3] & ~0x0FFF0000 | 42 << 16  # column 90 of the matrix
    return {"raw": e.view(torch.uint8)}


def row_in_padding(c):
    """The last tile row has one row."""
    ends = torch.tensor([2, 2, 2, 3, 4, 4], dtype=torch.int32)
    e = entries(c)
    e[3] |= 1 << 28
    return {"index": ends, "raw": e.view(torch.uint8)}


def a_weight_that_the_plane_has(c):
    e = entries(c)
    e[0] += 1 << 16
    return {"raw": e.view(torch.uint8)}


LIES = {  # and the tile that has them
    code_without_exponent: 0,
    listed_twice: 0,
    out_of_order: 0,
    column_outside_the_tile: 0,
    column_in_padding: 3,
    row_in_padding: 4,
    a_weight_that_the_plane_has: 0,
}


@every_encoder
@pytest.mark.parametrize("lie", LIES, ids=lambda f: f.__name__)
def test_lies_are_found_by_check(backend, some, lie):
    named = f"coded plane or list: tile {LIES[lie]} has"
    with running(backend), pytest.raises(CorruptStreamError, match=named):
        rebuilt(some, **lie(some)).check()


@every_encoder
@pytest.mark.parametrize(
    ("ends", "named"),
    [
        ([3, 2, 2, 4, 4, 4], "tile 1 ends before it begins"),
        ([2, 2, 2, 4, 4, 3], "tile 5 ends before"),
        ([2, 2, 2, 3, 3, 3], "segment 0 lists 3 weights, the head says 4"),
        ([2, 2, 2, 5, 5, 5], "lists 5 weights"),
        ([-1, 2, 2, 4, 4, 4], "tile 0 ends before"),
        ([2, 2, 2**31 - 1, 4, 4, 4], "tile 3 ends before"),
    ],
)
def test_index_that_does_not_follow_the_list(backend, some, ends, named):
    bad = rebuilt(some, index=torch.tensor(ends, dtype=torch.int32))
    with running(backend), pytest.raises(CorruptStreamError, match=named):
        bad.check()


@pytest.mark.parametrize("name", ["stream", "raw", "index"])
def test_wrong_sizes_and_checksums_are_named(some, name):
    t = getattr(some, name)
    with pytest.raises(CorruptStreamError, match=f"{name}: {t.numel() - 1} elements"):
        replace(some, **{name: t[:-1].clone()}).check()
    other = t.clone()
    other[0] ^= 1
    with pytest.raises(CorruptStreamError, match=f"{name}: CRC-32"):
        replace(some, **{name: other}).check()
