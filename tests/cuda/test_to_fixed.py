"""The conversion to the coding fixed on CUDA, in the emulator: byte by byte against pure torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import codecllm_ops as ops
from cases import CONTENTS, FORMATS, all_patterns, to_tensor, weights
from codecllm_ops.ops.backends.reference import fixed as reference
from cuda import emulated
from cuda.emulated import GOOD, Device

BF16 = FORMATS["bf16"]
SHAPES = [(1, 1), (17, 33), (40, 200), (32, 128), (5, 16 * 13 - 3)]


def expected(w, segment_rows, bases, tile_cols):
    return reference.from_rows(
        lambda ids: w[ids].contiguous().view(torch.uint8), segment_rows, w.shape[1], bases,
        tile_cols, w.device,
    )  # fmt: skip


def sources(w: torch.Tensor, source_cols: int = 64, predictors=("none", "left")):
    """Views of the same matrix: stored, and rans with each predictor; what they need to live."""
    yield emulated.dense_view(w), w
    for predictor in predictors:
        coded = ops.encode(w, tile_cols=source_cols, predictor=predictor, allow_stored=False)
        view, table = emulated.view_of(coded)
        yield view, (coded, table)


def check(w, view, bases, tile_cols, segment_rows=None, device=None) -> None:
    found, status = emulated.to_fixed(view, bases, tile_cols, device)
    assert status == GOOD
    wanted = expected(w, segment_rows or [len(w)], list(bases), tile_cols)
    for name, a, b in zip(("plane", "list", "ends"), found, wanted, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b), name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("content", ["normal", "extremes", "escapes_at_borders", "uniform"])
def test_every_source(shape, content):
    w = to_tensor(CONTENTS[content](*shape, BF16), BF16)
    for view, _alive in sources(w):
        for tile_cols in (48, 64, 512):
            check(w, view, [111], tile_cols)


@pytest.mark.parametrize("source_cols", [16, 48, 64, 160, 512])
@pytest.mark.parametrize("tile_cols", [16, 64, 80, 144, 4096])
def test_tiles_of_other_widths(source_cols, tile_cols):
    """Tiles of the target that several of the source fill, and the other way round."""
    w = to_tensor(CONTENTS["extremes"](20, 500, BF16), BF16)
    for view, _alive in sources(w, source_cols, ["none"]):
        check(w, view, [111], tile_cols)


@pytest.mark.parametrize("base", [0, 1, 111, 238, 239])
def test_every_pattern(base):
    w = to_tensor(all_patterns(BF16), BF16)
    for view, _alive in sources(w, 256, ["none"]):
        check(w, view, [base], 128)


@pytest.mark.parametrize("tile_cols", [32, 64])
def test_several_segments(tile_cols):
    rows = [20, 1, 0, 50, 16]
    parts = [weights(n, 100, BF16, seed) * 2.0 ** (3 * seed) for seed, n in enumerate(rows)]
    coded = ops.CodedMatrix.concat_rows(
        [ops.encode(p, tile_cols=48, allow_stored=False) for p in parts]
    )
    view, _table = emulated.view_of(coded)
    bases = [111, 114, 0, 120, 123]
    for device in (Device(), Device(90, 1), Device(90, 132)):
        check(torch.cat(parts), view, bases, tile_cols, rows, device)


def test_no_place_depends_on_who_comes_first():
    """Blocks and warps of several devices share the same work differently."""
    w = to_tensor(CONTENTS["extremes"](200, 300, BF16), BF16)
    for view, _alive in sources(w, 64, ["none"]):
        results = [
            emulated.to_fixed(view, [111], 128, Device(90, processors))[0]
            for processors in (1, 3, 132)
        ]
        for result in results[1:]:
            assert all(map(torch.equal, result, results[0]))


def test_what_kernels_make_is_what_they_read():
    w = to_tensor(CONTENTS["extremes"](40, 200, BF16), BF16)
    coded = ops.encode(w, coding="fixed", tile_cols=64, allow_stored=False)
    (base,) = (s.window_base for s in coded.info.segments)
    plane, listed, ends = emulated.to_fixed(emulated.dense_view(w), [base], 64)[0]
    made = ops.CodedMatrix(plane, listed, ends, coded.head)
    assert made == coded
    words, status = emulated.decode(made)
    assert status == GOOD and torch.equal(words.view(torch.int16), w.view(torch.int16))


def test_a_corrupt_source_is_reported():
    coded = ops.encode(weights(48, 128, BF16), tile_cols=64, allow_stored=False)
    records = coded.index.reshape(-1, 2 + coded.info.len_bits)
    stream, index = coded.stream.clone(), coded.index.clone()
    stream[int(records[2, 0]) * 16 + 40] ^= 0x10
    index.view_as(records)[3, 0] = 2**31 - 1
    for bad, tile in (
        (ops.CodedMatrix(stream, coded.raw, coded.index, coded.head), 2),
        (ops.CodedMatrix(coded.stream, coded.raw, index, coded.head), 3),
    ):
        view, _table = emulated.view_of(bad)
        assert emulated.to_fixed(view, [111], 64)[1] == tile


@pytest.mark.parametrize("value", [-1, 5, 2**31 - 1])
@pytest.mark.parametrize("field", range(5))
def test_a_table_that_lies_stays_inside(field, value):
    part = ops.encode(weights(21, 40, BF16), tile_cols=16, allow_stored=False)
    coded = ops.CodedMatrix.concat_rows([part, part])
    for segment in range(2):
        table = coded.table.clone()
        table[segment, field] = value
        view, _table = emulated.view_of(coded, table)
        emulated.to_fixed(view, [111, 111], 32)


def test_a_list_that_grew_between_the_passes_stays_inside():
    """The second pass gets sums for fewer entries than it finds."""
    w = to_tensor(CONTENTS["extremes"](20, 100, BF16), BF16)
    view = emulated.dense_view(w)
    _, listed, ends = emulated.to_fixed(view, [111], 64)[0]
    half = listed.numel() // 8
    _, found, _ = emulated.to_fixed(view, [111], 64, most_listed=half)[0]
    assert 0 < half < int(ends[-1])
    assert np.array_equal(found, listed[: 4 * half])
