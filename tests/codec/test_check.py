"""CodedMatrix.check reads the whole index: what a kernel would meet later is refused before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import codecllm_ops as ops
from cases import every_backend, running, weights
from codecllm_ops import CodedMatrix, CorruptStreamError
from codecllm_ops.codec.rans.index import read_index, write_index
from codecllm_ops.format import FORMATS


@pytest.fixture(scope="module")
def coded():
    return ops.encode(weights(33, 70, FORMATS["bf16"]), tile_cols=32, allow_stored=False)


def with_index(coded, change) -> CodedMatrix:
    """The matrix with another index and the checksum that belongs to it."""
    parts = read_index(coded.index.numpy(), coded.info.len_bits)
    change(*parts)
    index = torch.from_numpy(write_index(*parts, coded.info.len_bits))
    return CodedMatrix.build(coded.info, coded.stream, coded.raw, index)


def test_untouched_index_passes(coded):
    same = with_index(coded, lambda starts, lengths, segments: None)
    assert torch.equal(same.check().index, coded.index)


def test_tile_that_ends_in_the_last_16_bytes(coded):
    def change(starts, lengths, segments):
        starts[4] = coded.stream.numel() - 16 - 2 * lengths[4].sum() // 16 * 16 + 16

    with pytest.raises(CorruptStreamError, match=r"index: tile 4 ends at byte \d+ of \d+"):
        with_index(coded, change).check()


def test_tile_far_outside(coded):
    def change(starts, lengths, segments):
        starts[8] = 2**36 - 16

    with pytest.raises(CorruptStreamError, match="index: tile 8 ends at byte 687194"):
        with_index(coded, change).check()


def test_tile_of_a_segment_that_does_not_exist(coded):
    def change(starts, lengths, segments):
        segments[5] = 65535

    with pytest.raises(CorruptStreamError, match="index: tile 5 names segment 65535"):
        with_index(coded, change).check()


@pytest.mark.parametrize("length", [0, 1])
def test_lane_without_a_whole_state(coded, length):
    def change(starts, lengths, segments):
        lengths[3] = length + np.arange(32) % 2

    with pytest.raises(CorruptStreamError, match="fewer than the two words of its state"):
        with_index(coded, change).check()


@every_backend
def test_tiles_may_stand_in_any_order_with_anything_between(coded, backend):
    """docs/format.md, section 7: encoders write them in order, decoders read the index."""
    bits = coded.info.len_bits
    starts, lengths, segments = read_index(coded.index.numpy(), bits)
    pieces, moved, at = [], starts.copy(), 0
    for tile in reversed(range(len(starts))):
        size = 2 * int(lengths[tile].sum())
        moved[tile] = at
        pieces.append(coded.stream[starts[tile] : starts[tile] + size])
        pieces.append(torch.full((-size % 16 + 32,), 0xA5, dtype=torch.uint8))
        at += size + pieces[-1].numel()
    index = torch.from_numpy(write_index(moved, lengths, segments, bits))
    shuffled = CodedMatrix.build(coded.info, torch.cat(pieces), coded.raw, index).check()
    with running(backend):
        assert torch.equal(ops.decode(shuffled), ops.decode(coded))
        assert torch.equal(ops.decode_rows(torch.arange(33), shuffled), ops.decode(coded))
    again = CodedMatrix.concat_rows([shuffled, coded]).slice(slice(0, 33))
    assert torch.equal(ops.decode(again.check()), ops.decode(coded))


def test_checksums_may_be_left_out(coded):
    raw = coded.raw.clone()
    raw[5] ^= 1
    damaged = replace(coded, raw=raw)
    assert damaged.check(checksums=False) is damaged
    with pytest.raises(CorruptStreamError, match="raw: CRC-32"):
        damaged.check()


def test_check_gives_the_matrix_back(coded):
    assert coded.check() is coded


def test_matrices_are_equal_when_their_bytes_are(coded):
    again = CodedMatrix(*(t.clone() for t in coded.tensors()))
    assert coded == again and hash(coded) == hash(again)
    raw = coded.raw.clone()
    raw[5] ^= 1
    assert coded != replace(coded, raw=raw) and coded != coded.to("meta") and coded != "coded"


def test_repr_says_what_it_is(coded):
    assert repr(coded) == (
        f"CodedMatrix(bf16 [33, 70], rans, tile_cols=32, {coded.nbytes} bytes, device=cpu)"
    )
    assert "device=meta" in repr(coded.to("meta"))
