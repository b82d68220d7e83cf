"""The Triton kernels in Triton's interpreter, on CPU tensors: every cut of the work, damage,
accesses. The tests of tests/ops run on this backend too:

    TRITON_INTERPRET=1 pytest -k triton
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import codecllm_ops as ops
from assertions import assert_linear_close, assert_same_words
from cases import CONTENTS, FORMATS, INTERPRETING, all_patterns, every_format, to_tensor

if not INTERPRETING:
    pytest.skip("TRITON_INTERPRET=1 pytest -k triton", allow_module_level=True)

from codecllm_ops.format.layout_word import Layout
from codecllm_ops.ops.backends.triton import launch, tune
from codecllm_ops.ops.backends.triton import ops as backend
from codecllm_ops.ops.backends.triton.choices import (
    Device,
    Product,
    decode_choices,
    linear_choices,
)
from triton_kernels.calls import decode, every_op
from triton_kernels.other_formats import every_word, values_of

BF16 = FORMATS["bf16"]


pytestmark = pytest.mark.usefixtures("triton_runs")


def coded_of(content: str, rows: int, cols: int, fmt=BF16, **options):
    w = to_tensor(CONTENTS[content](rows, cols, fmt), fmt)
    return w, ops.encode(w, allow_stored=False, **{"tile_cols": 32, **options})


# ---- decode -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize("tiles", [1, 2, 4])
@pytest.mark.parametrize("predictor", ["none", "left"])
@every_format
def test_decode_with_every_choice(fmt, predictor, tiles, cut):
    cut(tiles)
    w, coded = coded_of("escapes_at_borders", 85, 70, fmt, predictor=predictor)
    assert_same_words(ops.decode(coded), w)


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_decode_every_pattern(name, cut):
    cut(4)
    w = to_tensor(all_patterns(FORMATS[name]), FORMATS[name])
    assert_same_words(ops.decode(ops.encode(w, allow_stored=False, tile_cols=64)), w)


@pytest.mark.usefixtures("checked")
@every_format
def test_decode_rows_across_tiles_and_segments(fmt):
    w, coded = coded_of("extremes", 37, 33, fmt)
    both = ops.CodedMatrix.concat_rows([coded, coded.slice(slice(16, 37)), coded])
    dense = torch.cat([w, w[16:], w])
    ids = torch.tensor([[0, 94, 36, 37], [57, 58, 5, 5], [16, 52, 53, 93]])
    assert_same_words(ops.decode_rows(ids, both), dense[ids])


# ---- decode_linear ------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("choice", [(1, 1), (2, 1), (2, 3), (1, 3), (4, 2)], ids=str)
@pytest.mark.parametrize("name", ["bf16", "fp32"])
def test_linear_with_every_choice(name, choice, together, cut, monkeypatch):
    cut(choice)
    monkeypatch.setattr(launch, "TOGETHER", together)
    w, coded = coded_of("normal", 85, 90, FORMATS[name])
    for m, dtype in ((3, torch.bfloat16), (16, torch.float32)):
        x, bias = torch.randn(m, 90).to(dtype), torch.randn(85).to(dtype)
        assert_linear_close(ops.decode_linear(x, coded, bias), x, w, bias=bias)


def test_linear_of_many_segments(cut):
    cut((2, 2))
    parts = [coded_of("normal", rows, 70) for rows in (5, 16, 33, 1, 40)]
    coded = ops.CodedMatrix.concat_rows([c for _, c in parts])
    x = torch.randn(4, 70).bfloat16()
    y = ops.decode_linear(x, coded)
    assert_linear_close(y, x, torch.cat([w for w, _ in parts]))


def test_operands_that_are_not_contiguous_or_aligned():
    w, coded = coded_of("normal", 40, 64)
    bias = torch.randn(40, 2).bfloat16()[:, 1]
    transposed = torch.randn(64, 5).bfloat16().T
    shifted = torch.randn(5 * 64 + 1).bfloat16()[1:].view(5, 64)
    for x in (transposed, shifted):
        assert_linear_close(ops.decode_linear(x, coded, bias), x, w, bias=bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_formats_follow_from_their_entries(other_format, dtype):
    """Whatever the coded field, without raw bits too, and whatever a word means."""
    coded = every_word(other_format)
    assert bool(coded.raw.numel()) == bool(other_format.planes)
    assert decode(coded)[:, 0].tolist() == list(range(256))
    y = backend.decode_linear(torch.ones(1, 1, dtype=dtype), coded, None)[0]
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), values_of(other_format), rtol=0, atol=0, equal_nan=True)


def test_gradient_of_x():
    w, coded = coded_of("normal", 40, 33)
    x = torch.randn(3, 33, requires_grad=True)
    ops.decode_linear(x, coded).sum().backward()
    assert_linear_close(x.grad, torch.ones(3, 40), w.T)


# ---- damage -------------------------------------------------------------------------------------


def damaged(coded, part: str, at: int, value: int):
    tensor = getattr(coded, part).clone()
    tensor[at] = value
    return ops.CodedMatrix(**{n: getattr(coded, n) for n in ("stream", "raw", "index", "head")}
                           | {part: tensor})  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_damaged_tile_gives_nan_in_its_rows_only(dtype):
    w, coded = coded_of("normal", 40, 70)
    bad = damaged(coded, "stream", 0, int(coded.stream[0]) ^ 1)
    dense = ops.decode(bad)
    assert dense[:16, :32].isnan().all() and torch.equal(dense[16:], w[16:])
    assert torch.equal(dense[:16, 32:], w[:16, 32:])
    x = torch.randn(3, 70).to(dtype)
    y = ops.decode_linear(x, bad)
    assert y[:, :16].isnan().all()
    assert_linear_close(y[:, 16:], x, w[16:])
    rows = ops.decode_rows(torch.tensor([0, 17]), bad)
    assert rows[0, :32].isnan().all() and torch.equal(rows[1], w[17])


@pytest.mark.usefixtures("checked")
def test_damage_is_an_error_when_asked_for():
    _, coded = coded_of("normal", 40, 70)
    bad = damaged(coded, "stream", 0, int(coded.stream[0]) ^ 1)
    for call in (
        lambda: ops.decode(bad),
        lambda: ops.decode_linear(torch.ones(2, 70), bad),
        lambda: ops.decode_rows(torch.tensor([3, 0, 4]), bad),
    ):
        with pytest.raises(ops.CorruptStreamError, match="tile 0 does not end"):
            call()
    with pytest.raises(IndexError, match="out of range"):
        ops.decode_rows(torch.tensor([3, 40]), coded)


def test_ids_outside_the_matrix_give_nan():
    w, coded = coded_of("normal", 40, 33)
    stored = ops.encode(to_tensor(CONTENTS["uniform"](40, 32, BF16), BF16))
    for matrix in (coded, stored):
        found = ops.decode_rows(torch.tensor([39, 40, -1, 2**40]), matrix)
        assert found[1:].isnan().all()
    assert torch.equal(ops.decode_rows(torch.tensor([39]), coded)[0], w[39])


@pytest.mark.parametrize("value", [0, 1, 2**20, 2**31 - 1, -1])
@pytest.mark.parametrize("at", [0, 1])
def test_an_index_that_points_elsewhere_stays_inside(at, value):
    w, coded = coded_of("normal", 40, 70)
    bad = damaged(coded, "index", at, value)
    dense, y = ops.decode(bad), ops.decode_linear(torch.ones(2, 70), bad)
    assert torch.equal(dense[16:], w[16:]) and not y[:, 16:].isnan().any()
    if not torch.equal(bad.index, coded.index):
        assert dense[:16, :32].isnan().all() and y[:, :16].isnan().all()


@pytest.mark.parametrize("part", ["stream", "raw", "index", "table"])
@every_format
def test_random_damage_stays_inside(fmt, part):
    _, coded = coded_of("escapes_at_borders", 40, 70, fmt)
    rng = np.random.default_rng(0)
    x = torch.randn(2, 70).bfloat16()
    for _ in range(3):
        t = getattr(coded.operand, part).clone()
        some = torch.from_numpy(rng.integers(0, t.numel(), max(1, t.numel() // 20)))
        info = torch.iinfo(t.dtype)
        values = rng.integers(info.min, info.max, some.numel(), endpoint=True)
        t.view(-1)[some] = torch.from_numpy(values).to(t.dtype)
        every_op(coded.operand._replace(**{part: t}), x, [0, 39, 17])


@pytest.mark.parametrize("value", [-(2**31), -1, 1, 5, 39, 2**31 - 1])
@pytest.mark.parametrize("field", range(5))
def test_a_table_that_lies_stays_inside(field, value):
    _, part = coded_of("normal", 21, 40)
    coded = ops.CodedMatrix.concat_rows([part, part])
    x = torch.ones(2, 40)
    for segment in range(2):
        table = coded.table.clone()
        table[segment, field] = value
        every_op(coded.operand._replace(table=table), x, [0, 20, 21, 41])


@pytest.mark.usefixtures("checked")
def test_planes_cut_by_a_tile_row_are_an_error():
    _, part = coded_of("normal", 17, 40)
    coded = ops.CodedMatrix.concat_rows([part, part])
    whole = coded.operand
    cut = {n: getattr(whole, n)[: len(getattr(whole, n)) * 3 // 4] for n in ("raw", "index")}
    with pytest.raises(ops.CorruptStreamError, match="table"):
        decode(whole._replace(**cut))


# ---- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["stream", "raw", "index", "table"])
def test_sizes_that_do_not_follow_from_the_shape(part):
    _, coded = coded_of("normal", 40, 70)
    whole = getattr(coded.operand, part)
    names = {"stream": "coded plane", "raw": "raw plane"}
    wrong = [whole[: len(whole) * 2 // 3 - 1]]
    if whole.dim() == 2:
        wrong = [whole[:, :2].contiguous(), *([whole[:-1]] if len(whole) > 1 else [])]
    for tensor in wrong:
        with pytest.raises(ops.CorruptStreamError, match=f"corrupt .*{names.get(part, part)}"):
            decode(coded.operand._replace(**{part: tensor}))


def test_choices_are_the_heuristic_where_nothing_may_be_measured(monkeypatch):
    def run(candidate):
        raise AssertionError("measured")

    assert tune.choose(("key",), lambda: [3, 1, 2], run) == 3


def test_there_are_choices_for_every_shape():
    device = Device((9, 0), 132)
    for tile_rows in (1, 7, 256, 100_000):
        for col_tiles in (1, 8, 28):
            for m in (8, 16, 32, 64):
                for dtype, step in ((torch.bfloat16, 1), (torch.float32, 1), (torch.bfloat16, 4)):
                    product = Product.of(BF16, dtype, m, False, step, device)
                    found = linear_choices(tile_rows, col_tiles, product, device)
                    assert found and all(1 <= s <= col_tiles for _, s in found)
            assert decode_choices(tile_rows * col_tiles, device)


@pytest.mark.parametrize("field", ["scale_bits", "tile_cols", "coding"])
def test_layout_of_an_unknown_kind_is_refused(field):
    _, coded = coded_of("normal", 16, 32)
    wrong = Layout.unpack(coded.layout)._replace(**{field: 3})
    with pytest.raises(ops.CorruptStreamError, match="layout"):
        decode(coded.operand._replace(layout=wrong.pack()))
