"""Slices and concatenations decode to slices and concatenations, without encoding again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import codecllm_ops as ops
from assertions import assert_same_words
from cases import CONTENTS, every_format, random_words, to_tensor, to_words, weights
from codecllm_ops import CodedMatrix
from codecllm_ops.codec.rans import reference
from codecllm_ops.format import FORMATS

BF16 = FORMATS["bf16"]


def coded(w, **options) -> CodedMatrix:
    return ops.encode(w, **{"tile_cols": 32, "allow_stored": False, **options})


def assert_decodes_to(matrix: CodedMatrix, w: torch.Tensor) -> None:
    """By the kernels and by the reference codec, after a complete check."""
    matrix.check()
    assert matrix.shape == tuple(w.shape)
    assert_same_words(ops.decode(matrix), w)
    index = matrix.index.numpy()
    parts = matrix.info, bytes(matrix.stream.numpy()), bytes(matrix.raw.numpy()), index
    assert_same_words(reference.decode(*parts), to_words(w))


# ---- slices -------------------------------------------------------------------------------------

ROWS = [slice(None), slice(0, 16), slice(16, 48), slice(32, 53), slice(48, 53), slice(32, 32)]
COLS = [slice(None), slice(0, 32), slice(32, 96), slice(64, 107), slice(96, 107), slice(0, 0)]


@pytest.mark.parametrize("predictor", ["none", "left"])
@every_format
def test_slice_by_tiles_equals_the_dense_slice(fmt, predictor):
    w = weights(53, 107, fmt)
    matrix = coded(w, predictor=predictor)
    for rows in ROWS:
        for cols in COLS:
            assert_decodes_to(matrix.slice(rows, cols), w[rows, cols])


def test_slice_copies_no_other_bytes():
    w = weights(64, 128, BF16)
    matrix = coded(w)
    parts = [
        matrix.slice(slice(r, r + 16), slice(c, c + 32))
        for r in (0, 16, 32, 48)
        for c in (0, 32, 64, 96)
    ]
    assert sum(p.raw.numel() for p in parts) == matrix.raw.numel()
    assert sum(p.stream.numel() - 16 for p in parts) == matrix.stream.numel() - 16
    assert sum(p.index.numel() for p in parts) == matrix.index.numel()


def test_slice_of_a_slice():
    w = weights(80, 96, BF16)
    matrix = coded(w).slice(slice(16, 80), slice(32, 96)).slice(slice(16, 48), slice(32, 64))
    assert_decodes_to(matrix, w[32:64, 64:96])


def test_slice_of_a_concatenation_may_cross_its_seams():
    parts = [weights(r, 70, BF16, seed=r) for r in (17, 33, 16)]
    w, matrix = torch.cat(parts), CodedMatrix.concat_rows([coded(p) for p in parts])
    for rows in (
        slice(0, 17),
        slice(16, 17),
        slice(0, 50),
        slice(17, 50),
        slice(33, 66),
        slice(50, 66),
    ):
        assert_decodes_to(matrix.slice(rows), w[rows])
        assert_decodes_to(matrix.slice(rows, slice(32, 70)), w[rows, 32:70])
    assert len(matrix.slice(slice(17, 50)).info.segments) == 1


@pytest.mark.parametrize("rows", [slice(8, 16), slice(0, 15), slice(1, 53), slice(16, 52)])
def test_row_inside_a_tile_is_no_border(rows):
    with pytest.raises(ValueError, match=r"slice: row \d+ is inside a tile of 16 rows"):
        coded(weights(53, 32, BF16)).slice(rows)


@pytest.mark.parametrize("cols", [slice(16, 64), slice(0, 48), slice(1, 107), slice(0, 106)])
def test_column_inside_a_tile_is_no_border(cols):
    with pytest.raises(ValueError, match=r"slice: column \d+ is inside a tile; tile_cols is 32"):
        coded(weights(16, 107, BF16)).slice(cols=cols)


def test_seam_of_segments_is_a_border_only_of_its_own_segment():
    matrix = CodedMatrix.concat_rows([coded(weights(17, 32, BF16)), coded(weights(40, 32, BF16))])
    with pytest.raises(ValueError, match="row 32 is inside a tile"):  # row 15 of the second
        matrix.slice(slice(0, 32))


def test_slice_takes_no_step():
    with pytest.raises(ValueError, match="rows with step 2"):
        coded(weights(32, 32, BF16)).slice(slice(None, None, 2))


def test_slice_takes_its_rows_scales():
    q, scale = weights(48, 64, FORMATS["int8"]), torch.rand(48)
    part = coded(q, scale=scale).slice(slice(16, 48), slice(32, 64))
    assert torch.equal(part.scale, scale[16:])
    one = coded(q, scale=scale[:1]).slice(slice(16, 48))
    assert torch.equal(one.scale, scale[:1])


def test_stored_matrix_is_cut_anywhere():
    w = to_tensor(random_words(20, 30, BF16), BF16)
    matrix = ops.encode(w)
    assert matrix.info.stored
    assert_decodes_to(matrix.slice(slice(3, 17), slice(5, 11)), w[3:17, 5:11])
    assert_decodes_to(matrix.slice(slice(3, 3)), w[3:3])


# ---- concatenations -----------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [(32, 16, 16), (17, 1, 31), (5,), (16, 0, 3)], ids=str)
@every_format
def test_concatenation_equals_the_dense_one(fmt, rows):
    parts = [weights(r, 70, fmt, seed=i) for i, r in enumerate(rows)]
    matrix = CodedMatrix.concat_rows([coded(p) for p in parts])
    assert [s.rows for s in matrix.info.segments] == list(rows)
    assert_decodes_to(matrix, torch.cat(parts))


def test_every_part_keeps_its_own_table():
    contents = ["normal", "constant", "one_symbol", "escapes_at_borders", "extremes"]
    parts = [to_tensor(CONTENTS[c](21, 70, BF16), BF16) for c in contents]
    pieces = [coded(p, predictor="left") for p in parts]
    matrix = CodedMatrix.concat_rows(pieces)
    assert_decodes_to(matrix, torch.cat(parts))
    for segment, piece in zip(matrix.info.segments, pieces, strict=True):
        assert np.array_equal(segment.pairs, piece.info.segments[0].pairs)
        assert segment.seed == piece.info.segments[0].seed


def test_widest_lane_lengths_decide_for_all():
    # Only one of the parts has lanes of very different lengths.
    even = to_tensor(CONTENTS["constant"](16, 512, BF16), BF16)
    mixed = even.clone()
    mixed[:2] = to_tensor(random_words(2, 512, BF16), BF16)
    a, b = coded(even, tile_cols=512), coded(mixed, tile_cols=512)
    assert a.info.len_bits < b.info.len_bits
    for order in ([(a, even), (b, mixed)], [(b, mixed), (a, even)]):
        matrix = CodedMatrix.concat_rows([m for m, _ in order])
        assert matrix.info.len_bits == b.info.len_bits
        assert_decodes_to(matrix, torch.cat([w for _, w in order]))


def test_concatenation_is_associative():
    a, b, c = (coded(weights(17, 40, BF16, seed=i)) for i in range(3))
    cat = CodedMatrix.concat_rows
    left, right = cat([cat([a, b]), c]), cat([a, cat([b, c])])
    assert all(torch.equal(x, y) for x, y in zip(left.tensors(), right.tensors(), strict=True))


def test_scales_of_rows_are_joined():
    q, scale = weights(33, 40, FORMATS["int8"]), torch.rand(33)
    matrix = CodedMatrix.concat_rows(
        [coded(q[:17], scale=scale[:17]), coded(q[17:], scale=scale[17:])]
    )
    assert torch.equal(matrix.scale, scale)
    assert torch.equal(ops.decode(matrix, torch.float32), q.float() * scale[:, None])


@pytest.mark.parametrize("allow_stored", [False, True])
def test_one_row_stacks_with_rows(allow_stored):
    """Its one scale is a scale per row, though encoders write it as the tensor's."""
    q, scale = weights(34, 40, FORMATS["int8"]), torch.rand(34)
    one = ops.encode(q[:1], scale=scale[:1], tile_cols=32, allow_stored=allow_stored)
    if allow_stored:
        words = to_tensor(random_words(33, 40, FORMATS["int8"]), FORMATS["int8"])
        q = torch.cat([q[:1], words])
        assert one.info.stored
    rest = ops.encode(q[1:], scale=scale[1:], tile_cols=32, allow_stored=allow_stored)
    for order in ([0, 1], [1, 0], [0, 0]):
        matrix = CodedMatrix.concat_rows([(one, rest)[i] for i in order])
        expected = torch.cat([(q[:1], q[1:])[i].float() * (scale[:1], scale[1:])[i][:, None]
                              for i in order])  # fmt: skip
        assert torch.equal(ops.decode(matrix.check(), torch.float32), expected)
    assert torch.equal(ops.decode(one.slice(slice(0, 1)).check()), q[:1])
    assert one.slice(slice(1, 1)).check().shape == (0, 40)


def test_too_many_segments_are_refused_before_they_are_written():
    part = CodedMatrix.concat_rows([coded(weights(0, 16, BF16))] * 2048)
    assert len(CodedMatrix.concat_rows([part, part]).check().info.segments) == 4096
    with pytest.raises(ValueError, match="6144 segments, at most 4096"):
        CodedMatrix.concat_rows([part] * 3)


def test_stored_matrices_are_joined():
    words = [random_words(r, 30, BF16) for r in (3, 5)]
    matrix = CodedMatrix.concat_rows([ops.encode(to_tensor(w, BF16)) for w in words])
    assert matrix.info.stored
    assert_decodes_to(matrix, to_tensor(np.concatenate(words), BF16))


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("fmt", lambda: coded(weights(16, 64, FORMATS["fp16"]))),
        ("cols", lambda: coded(weights(16, 48, BF16))),
        ("tile_cols", lambda: coded(weights(16, 64, BF16), tile_cols=16)),
        ("scale_bits", lambda: coded(weights(16, 64, BF16), scale_bits=9)),
        ("predictor", lambda: coded(weights(16, 64, BF16), predictor="left")),
        ("coding", lambda: ops.encode(to_tensor(random_words(16, 64, BF16), BF16), tile_cols=32)),
    ],
)
def test_parts_that_differ_are_refused_by_name(key, other):
    with pytest.raises(ValueError, match=f"concat_rows: parts differ in {key}: "):
        CodedMatrix.concat_rows([coded(weights(16, 64, BF16)), other()])


def test_kinds_of_scale_do_not_mix():
    q = weights(16, 64, FORMATS["int8"])
    rows, tensor = coded(q, scale=torch.ones(16)), coded(q, scale=torch.ones(1))
    with pytest.raises(
        ValueError, match=r"parts differ in coding: rans, stored; .*allow_stored=False"
    ):
        stored = ops.encode(to_tensor(random_words(16, 64, FORMATS["int8"]), FORMATS["int8"]))
        CodedMatrix.concat_rows([coded(q), stored])
    with pytest.raises(ValueError, match="parts differ in scale_kind"):
        CodedMatrix.concat_rows([rows, tensor])
    with pytest.raises(ValueError, match="one scale per tensor"):
        CodedMatrix.concat_rows([tensor, tensor])


def test_nothing_is_no_concatenation():
    with pytest.raises(ValueError, match="no parts"):
        CodedMatrix.concat_rows([])


def test_wrong_order_of_segments_is_noticed():
    """The index names the segment of every tile."""
    matrix = CodedMatrix.concat_rows([coded(weights(16, 64, BF16, seed=i)) for i in range(2)])
    records = matrix.index.view(4, -1)
    swapped = replace(matrix, index=records[[2, 3, 0, 1]].reshape(-1).contiguous())
    with pytest.raises(ops.CorruptStreamError, match="tile 0 names segment 1"):
        swapped.check(checksums=False)
    with pytest.raises(ops.CorruptStreamError, match="index"):
        ops.decode(swapped)
