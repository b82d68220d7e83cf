"""The reference codec gives every bit back, whatever the weights and the shape."""

from __future__ import annotations

import numpy as np
import pytest

from assertions import assert_same_words
from cases import CONTENTS, EMPTY_SHAPES, SHAPES, all_patterns, every_content, every_format
from codecllm_ops.codec.rans import reference
from codecllm_ops.codec.rans.reference import lane_lengths
from codecllm_ops.format import FORMATS, CorruptStreamError, Head
from codecllm_ops.format.geometry import record_ints


def round_trip(words, fmt, **options):
    head, stream, raw, index = reference.encode(words, fmt, **{"tile_cols": 32, **options})
    head = Head.parse(head.pack())
    assert (len(raw), len(index)) == (head.raw_bytes, head.index_ints)
    assert_same_words(reference.decode(head, stream, raw, index), words)
    return head, stream, raw, index


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@every_content
@every_format
def test_round_trip(fmt, content, shape):
    round_trip(CONTENTS[content](*shape, fmt), fmt)


@pytest.mark.parametrize("shape", EMPTY_SHAPES, ids=str)
@every_format
def test_empty_matrix_has_no_tiles(fmt, shape):
    head, stream, raw, index = round_trip(CONTENTS["normal"](*shape, fmt), fmt)
    assert (stream, raw, index.size, head.grid.tiles) == (bytes(16), b"", 0, 0)


@every_format
def test_every_pattern_survives(fmt):
    round_trip(all_patterns(fmt), fmt, tile_cols=128)


@pytest.mark.parametrize("predictor", [0, 1])
@pytest.mark.parametrize("scale_bits", [8, 9, 10, 11])
@every_content
def test_round_trip_with_every_parameter(content, scale_bits, predictor):
    for fmt in (FORMATS["bf16"], FORMATS["int8"]):
        words = CONTENTS[content](17, 70, fmt)
        head, *_ = round_trip(words, fmt, scale_bits=scale_bits, predictor=predictor)
        assert (head.scale_bits, head.predictor) == (scale_bits, predictor)


def test_table_of_an_alphabet_without_repeats_still_decodes():
    # All pairs are different: not one earns a place in the table by its count.
    fmt = FORMATS["bf16"]
    values = np.random.default_rng(0).permutation(256).reshape(16, 16)
    head, *_ = round_trip(values.astype(np.uint16) << 7, fmt, tile_cols=16)
    assert len(head.segments[0].pairs) == 1


@pytest.fixture(scope="module")
def coded():
    fmt = FORMATS["bf16"]
    return reference.encode(CONTENTS["normal"](16, 32, fmt), fmt, tile_cols=32)


def test_tile_starts_and_ends_where_the_index_says(coded):
    head, stream, _, index = coded
    record = index.view(np.uint32)
    assert len(record) == record_ints(head.len_bits) and record[0] == 0 and record[1] >> 16 == 0
    words = sum(lane_lengths(record, head.len_bits))
    assert len(stream) == -(-2 * words // 16) * 16 + 16
    assert stream[2 * words :] == bytes(len(stream) - 2 * words)


def test_damaged_words_are_noticed_at_the_end_of_their_lane(coded):
    """Not all: two symbols of one frequency leave the same state. The CRC is there for the rest."""
    head, stream, raw, index = coded
    tried = range(0, 2 * sum(lane_lengths(index.view(np.uint32), head.len_bits)))
    noticed = 0
    for byte in tried:
        damaged = bytearray(stream)
        damaged[byte] ^= 0x40
        try:
            reference.decode(head, bytes(damaged), raw, index)
        except CorruptStreamError as error:
            assert "tile 0 lane" in str(error)
            noticed += 1
    assert 0.75 * len(tried) < noticed


def test_lane_that_runs_out_of_words_is_named(coded):
    head, stream, raw, index = coded
    short = index.copy()
    short[1] -= 1  # every lane one word shorter
    with pytest.raises(CorruptStreamError, match=r"tile 0 lane \d+"):
        reference.decode(head, stream, raw, short)


def test_tile_beyond_the_coded_plane_is_refused(coded):
    head, stream, raw, index = coded
    for offset in (1, 1 << 20, -1):
        far = index.copy()
        far[0] = offset
        with pytest.raises(CorruptStreamError, match="tile 0 ends beyond the coded plane"):
            reference.decode(head, stream, raw, far)


def test_tile_of_another_segment_is_refused(coded):
    head, stream, raw, index = coded
    other = index.copy()
    other[1] |= 1 << 16
    with pytest.raises(CorruptStreamError, match="tile 0 not of segment 0"):
        reference.decode(head, stream, raw, other)
