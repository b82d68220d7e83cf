"""More than 2^31 elements and offsets beyond 4 GiB, in files with holes: nothing is allocated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import codecllm_ops as ops
from assertions import assert_same_words
from cases import every_backend, running, weights
from codecllm_ops import CodedMatrix
from codecllm_ops.codec.rans.index import read_index, write_index
from codecllm_ops.format import FORMATS, Segment

BF16 = FORMATS["bf16"]


@pytest.fixture
def holes(tmp_path):
    """A zero tensor of that many bytes, backed by a file that occupies none."""

    def make(name: str, n_bytes: int) -> torch.Tensor:
        path = tmp_path / name
        with path.open("wb") as file:
            try:
                file.truncate(n_bytes)
            except OSError as error:
                pytest.skip(f"no file of {n_bytes} bytes here: {error}")
        return torch.from_numpy(np.memmap(path, np.uint8, "r+"))

    return make


@pytest.fixture
def one_tile():
    """A constant 16 x 16384 matrix: one tile, whose words serve as those of every other."""
    return ops.encode(torch.full((16, 16384), 1.5, dtype=torch.bfloat16), tile_cols=16384)


@every_backend
def test_rows_beyond_2_31_elements(holes, one_tile, backend):
    rows, cols = 16 * 8200, 16384
    assert rows * cols > 2**31
    info = one_tile.info
    starts, lengths, segments = (
        np.repeat(a, 8200, axis=0) for a in read_index(one_tile.index.numpy(), info.len_bits)
    )
    index = torch.from_numpy(write_index(starts, lengths, segments, info.len_bits))
    segment = info.segments[0]
    segment = Segment(rows, segment.window_base, segment.pairs, segment.freqs, segment.seed)
    head = replace(info, rows=rows, segments=(segment,))
    raw = holes("raw", head.raw_bytes)
    assert raw.numel() > 2**31
    packed = torch.frombuffer(bytearray(head.pack()), dtype=torch.uint8)
    matrix = CodedMatrix(one_tile.stream, raw, index, packed).check(checksums=False)
    # Where the raw bits of row 5, column 7 of the last tile are, found with a matrix of one tile.
    single = torch.full((16, 16384), 1.0, dtype=torch.bfloat16)
    single[5, 7] = -1.0
    mark = ops.encode(single, tile_cols=16384).raw
    raw[-mark.numel() :] = mark
    with running(backend):
        found = ops.decode_rows(torch.tensor([rows - 11, rows - 17, 0]), matrix)
    expected = torch.full((3, cols), 1.0, dtype=torch.bfloat16)
    expected[0, 7] = -1.0
    assert_same_words(found, expected)


@every_backend
def test_words_beyond_4_gib(holes, backend):
    w = weights(33, 48, BF16)
    coded = ops.encode(w, tile_cols=32, allow_stored=False)
    shift = 5 << 30
    stream = holes("stream", shift + coded.stream.numel())
    stream[shift:] = coded.stream
    starts, lengths, segments = read_index(coded.index.numpy(), coded.info.len_bits)
    index = write_index(starts + shift, lengths, segments, coded.info.len_bits)
    head = replace(coded.info, stream_bytes=stream.numel()).pack()
    packed = torch.frombuffer(bytearray(head), dtype=torch.uint8)
    matrix = CodedMatrix(stream, coded.raw, torch.from_numpy(index), packed).check(checksums=False)
    with running(backend):
        assert_same_words(ops.decode(matrix), w)
        assert_same_words(ops.decode_rows(torch.arange(33), matrix), w)
        x = torch.eye(48, dtype=torch.bfloat16)
        assert torch.equal(ops.decode_linear(x, matrix), w.T)
