"""The coding fixed in Triton's interpreter, on CPU tensors: quads and what is left behind them,
windows, the list, every cut of the work, damage, accesses.

    TRITON_INTERPRET=1 pytest -k triton
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import codecllm_ops as ops
from assertions import assert_linear_close, assert_same_coded, assert_same_words
from cases import CONTENTS, FORMATS, INTERPRETING, to_tensor, to_words

if not INTERPRETING:
    pytest.skip("TRITON_INTERPRET=1 pytest -k triton", allow_module_level=True)

from codecllm_ops.format.layout_word import Layout
from codecllm_ops.ops.backends.triton import launch
from triton_kernels.calls import decode, every_op

BF16 = FORMATS["bf16"]


pytestmark = pytest.mark.usefixtures("triton_runs")


def fixed(w: torch.Tensor, tile_cols: int = 64) -> ops.CodedMatrix:
    return ops.encode(w, coding="fixed", tile_cols=tile_cols, allow_stored=False)


def coded_of(content: str, rows: int, cols: int, tile_cols: int = 64):
    w = to_tensor(CONTENTS[content](rows, cols, BF16), BF16)
    return w, fixed(w, tile_cols)


def with_listed(rows: int, cols: int, tile_cols: int = 64, wild: bool = False):
    """Normal weights; those on the borders of tiles, and some others, far outside the window.

    Args:
        wild: the others are subnormals, infinities and NaNs.
    """
    w = to_tensor(CONTENTS["normal"](rows, cols, BF16), BF16)
    r, c = torch.arange(rows)[:, None] % 16, torch.arange(cols)[None] % tile_cols
    border = (r % 15 == 0) & ((c == 0) | (c == tile_cols - 1))
    far = border | (torch.rand(w.shape, generator=torch.Generator().manual_seed(1)) < 0.01)
    up = (r + c) % 2 == 0
    others = to_tensor(CONTENTS["all_ones"](rows, cols, BF16), BF16) if wild else w * 2.0**20
    w = torch.where(far, torch.where(up, others, w * 2.0 ** (-125 if wild else -40)), w)
    coded = fixed(w, tile_cols)
    assert coded.raw.numel() // 4 > int(far.sum()) // 2  # a few may be zeros
    return w, coded


def words_from(base: int, rows: int, cols: int) -> torch.Tensor:
    """All exponents of the window from `base` on, and zeros of both signs."""
    rng = np.random.default_rng(base)
    words = rng.integers(0, 1 << 16, (rows, cols)) & 0x807F
    words |= rng.integers(base + 1, base + 16, (rows, cols)) << 7
    words = np.where(rng.random((rows, cols)) < 0.1, words & 0x8000, words)
    return to_tensor(words.astype(np.uint16), BF16)


# ---- decode -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize("tiles", [1, 2, 4])
@pytest.mark.parametrize(
    "shape", [(1, 1, 16), (17, 33, 16), (40, 70, 48), (37, 128, 64), (35, 215, 112)], ids=str
)
def test_decode_with_every_choice(shape, tiles, cut):
    """Tiles of one, two and three groups, four, and five to seven."""
    cut(tiles)
    w, coded = with_listed(*shape, wild=True)
    assert_same_words(ops.decode(coded), w)


@pytest.mark.usefixtures("checked")
def test_decode_every_exponent(cut):
    """In the plane and, most of them, in the list."""
    cut(4)
    words = np.arange(1 << 16).reshape(64, -1)[:, 16:1024:32].astype(np.uint16)
    w = to_tensor(words ^ (words >> 7 & 0x55), BF16)
    assert_same_words(ops.decode(fixed(w)), w)


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize("base", [0, 1, 112, 127, 128, 239])
def test_every_window(base, cut):
    w = words_from(base, 18, 70)
    coded = fixed(w)
    assert int(coded.operand.table[0, 0]) == base and not coded.raw.numel()
    cut(2)
    assert_same_words(ops.decode(coded), w)
    assert_same_words(ops.decode_rows(torch.tensor([16, 0]), coded), w[[16, 0]])
    cut((2, 2))
    for dtype in (torch.bfloat16, torch.float32):
        x = (torch.randn(2, 70) * 2.0 ** (min(100, 112 - base) // 2)).to(dtype)
        assert_linear_close(ops.decode_linear(x, coded), x, w)


@pytest.mark.usefixtures("checked")
def test_decode_rows_across_tiles_and_segments():
    w, coded = with_listed(37, 75, 32, wild=True)
    big = words_from(200, 20, 75)
    both = ops.CodedMatrix.concat_rows([coded, coded.slice(slice(16, 37)), fixed(big, 32)])
    dense = torch.cat([w, w[16:], big])
    ids = torch.tensor([[0, 77, 36, 37], [57, 58, 5, 5], [16, 52, 53, 65]])
    assert_same_words(ops.decode_rows(ids, both), dense[ids])
    assert_same_words(ops.decode(both), dense)
    left = both.slice(slice(None), slice(32, 75))
    assert_same_words(ops.decode_rows(ids, left), dense[ids][..., 32:])


# ---- decode_linear ------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("choice", [(1, 1), (2, 1), (2, 3), (1, 3), (4, 2)], ids=str)
def test_linear_with_every_choice(choice, together, cut, monkeypatch):
    cut(choice)
    monkeypatch.setattr(launch, "TOGETHER", together)
    w, coded = with_listed(69, 198, 80)
    for m, dtype in ((1, torch.bfloat16), (7, torch.float32)):
        x, bias = torch.randn(m, 198).to(dtype), torch.randn(69).to(dtype)
        assert_linear_close(ops.decode_linear(x, coded, bias), x, w, bias=bias)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("m", [16, 33, 64])
def test_linear_of_many_rows(m, dtype):
    w, coded = with_listed(33, 70, 32)
    x = torch.randn(m, 70).to(dtype)
    assert_linear_close(ops.decode_linear(x / 2**8, coded), x / 2**8, w)


def test_linear_of_many_segments(cut):
    """Tiles of a program have windows of their own, and lists of different lengths."""
    cut((4, 2))
    parts = [with_listed(rows, 70, 32) for rows in (5, 16, 33, 1)]
    big = words_from(140, 20, 70) * 2.0**-10
    parts.insert(2, (big, fixed(big, 32)))
    coded = ops.CodedMatrix.concat_rows([c for _, c in parts])
    x = torch.randn(4, 70).bfloat16()
    assert_linear_close(ops.decode_linear(x, coded), x, torch.cat([w for w, _ in parts]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_words_without_a_number_reach_their_rows_only(dtype):
    w, _ = coded_of("normal", 40, 70, 32)
    w[3, 0], w[17, 31], w[17, 32], w[39, 69] = torch.inf, -torch.inf, torch.inf, torch.nan
    x = torch.randn(3, 70).to(dtype)
    y = ops.decode_linear(x, fixed(w, 32))
    expected = x.double() @ w.double().T
    wild = torch.tensor([3, 17, 39])
    assert torch.equal(y[:, wild].double().nan_to_num(3.0), expected[:, wild].nan_to_num(3.0))
    tame = [r for r in range(40) if r not in (3, 17, 39)]
    assert_linear_close(y[:, tame], x, w[tame])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_x_of_any_size(dtype):
    """Weights are brought to size, not x: it has no limits of its own."""
    w, coded = with_listed(17, 70, 32)
    for factor in (2.0**100, 2.0**64, 2.0**-80, 2.0**-110):
        x = (torch.randn(2, 70) * factor).to(dtype)
        assert_linear_close(ops.decode_linear(x, coded), x, w)
    bias = torch.randn(17).to(dtype)
    assert torch.equal(ops.decode_linear(torch.zeros(1, 70, dtype=dtype), coded, bias)[0], bias)
    x = torch.ones(3, 70, dtype=dtype)
    x[0, 5], x[1, 64] = torch.inf, torch.nan
    y = ops.decode_linear(x, coded)
    assert not y[:2].isfinite().any()
    assert_linear_close(y[2:], x[2:], w)


# ---- transcoding --------------------------------------------------------------------------------


def test_transcoding_gives_the_bytes_of_the_encoder():
    w, coded = with_listed(37, 70, 32)
    rans = ops.encode(w, allow_stored=False, tile_cols=48)
    assert_same_coded(rans.to("fixed", tile_cols=32), coded)
    assert_same_coded(coded.to("rans", tile_cols=48), rans)


# ---- damage -------------------------------------------------------------------------------------


def entry(row: int, col: int, word: int) -> torch.Tensor:
    """Bytes of an entry of the list."""
    value = np.array([row << 28 | col << 16 | word], np.uint32)
    return torch.from_numpy(value.view(np.uint8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_an_entry_outside_its_tile_gives_nan_in_its_tile_only(dtype):
    w, coded = with_listed(40, 70, 32)
    raw = coded.raw.clone()
    raw[:4] = entry(2, 32, 0x3F80)
    bad = coded.operand._replace(raw=raw)
    words = decode(bad).view(torch.bfloat16)
    assert words[:16, :32].isnan().all()
    assert torch.equal(words[16:], w[16:]) and torch.equal(words[:16, 32:], w[:16, 32:])
    x = torch.randn(3, 70).to(dtype)
    y = torch.ops.codecllm.decode_linear(x, *bad)
    assert y[:, :16].isnan().all()
    assert_linear_close(y[:, 16:], x, w[16:])
    rows = torch.ops.codecllm.decode_rows(torch.tensor([0, 17]), *bad)
    assert rows[0, :32].isnan().all() and torch.equal(rows[1], w[17])


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize("part", ["index", "raw"])
def test_damage_is_an_error_when_asked_for(part):
    _, coded = with_listed(40, 70, 32)
    t = getattr(coded.operand, part).clone()
    if part == "raw":
        t[-4:] = entry(0, 6, 0)  # of the last tile, which has 6 columns
    else:
        t[-1] = coded.raw.numel() // 4 + 1
    bad = coded.operand._replace(**{part: t})
    for call in (
        lambda: decode(bad),
        lambda: torch.ops.codecllm.decode_linear(torch.ones(2, 70), *bad),
        lambda: torch.ops.codecllm.decode_rows(torch.tensor([3, 33]), *bad),
    ):
        with pytest.raises(ops.CorruptStreamError, match="tile 8"):
            call()


@pytest.mark.parametrize("value", [0, 1, 2**20, 2**31 - 1, -1])
def test_an_end_that_lies_stays_inside(value):
    w, coded = with_listed(40, 70, 32)
    index = coded.operand.index.clone()
    true = int(index[1])
    index[1] = value
    bad = coded.operand._replace(index=index)
    words = decode(bad).view(torch.bfloat16)
    y = torch.ops.codecllm.decode_linear(torch.ones(2, 70), *bad)
    assert torch.equal(words[16:], w[16:]) and not y[:, 16:].isnan().any()
    if not true - 1 <= value <= true + 1:  # tile 1 or 2 ends before it begins
        assert words[:16, 32:].isnan().any() and y[:, :16].isnan().all()


@pytest.mark.parametrize("part", ["stream", "raw", "index", "table"])
def test_random_damage_stays_inside(part):
    _, coded = with_listed(40, 70, 32)
    rng = np.random.default_rng(0)
    x = torch.randn(2, 70).bfloat16()
    for _ in range(3):
        t = getattr(coded.operand, part).clone()
        some = torch.from_numpy(rng.integers(0, t.numel(), max(1, t.numel() // 20)))
        info = torch.iinfo(t.dtype)
        values = rng.integers(info.min, info.max, some.numel(), endpoint=True)
        t.view(-1)[some] = torch.from_numpy(values).to(t.dtype)
        every_op(coded.operand._replace(**{part: t}), x, [0, 39, 17])


@pytest.mark.parametrize("value", [-(2**31), -1, 240, 2**31 - 1])
@pytest.mark.parametrize("field", range(5))
def test_a_table_that_lies_stays_inside(field, value):
    _, part = coded_of("normal", 21, 40, 32)
    coded = ops.CodedMatrix.concat_rows([part, part])
    table = coded.table.clone()
    table[1, field] = value
    every_op(coded.operand._replace(table=table), torch.ones(2, 40), [0, 20, 21, 41])


def test_a_list_that_every_tile_claims_ends():
    """Entries of a tile are no more than its cells, whatever the index says."""
    _, coded = coded_of("normal", 16, 16, 16)
    raw = entry(0, 0, 0x3F80).repeat(300)
    index = torch.full_like(coded.operand.index, 300)
    bad = coded.operand._replace(raw=raw, index=index)
    y = torch.ops.codecllm.decode_linear(torch.ones(1, 16), *bad)
    plane = ops.decode_linear(torch.ones(1, 16), coded)
    assert float(y[0, 0]) == pytest.approx(float(plane[0, 0]) + 256)


# ---- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["stream", "raw", "index", "table"])
def test_sizes_that_do_not_follow_from_the_shape(part):
    _, coded = with_listed(40, 70, 32)
    whole = getattr(coded.operand, part)
    names = {"stream": "plane", "raw": "list"}
    wrong = [whole[:-1]]
    if whole.dim() == 2:
        wrong = [whole.repeat(1, 2), *([whole[:-1]] if len(whole) > 1 else [])]
    for tensor in wrong:
        with pytest.raises(ops.CorruptStreamError, match=f"corrupt .*{names.get(part, part)}"):
            decode(coded.operand._replace(**{part: tensor}))


@pytest.mark.parametrize(
    "wrong", [{"format": FORMATS["fp16"].id}, {"scale_bits": 11}, {"predictor": 1},
              {"tile_cols": 8192}], ids=str,
)  # fmt: skip
def test_layouts_that_no_fixed_matrix_has_are_refused(wrong):
    _, coded = coded_of("normal", 16, 32, 16)
    layout = Layout.unpack(coded.operand.layout)._replace(**wrong).pack()
    with pytest.raises(ops.CorruptStreamError, match="layout"):
        decode(coded.operand._replace(layout=layout))


def test_a_matrix_without_entries_and_one_of_entries_only():
    w, coded = coded_of("normal", 16, 64)
    assert not coded.raw.numel()
    assert_same_words(ops.decode(coded), w)
    w, coded = coded_of("all_ones", 17, 20, 16)
    assert coded.raw.numel() == 4 * 17 * 20
    assert_same_words(ops.decode(coded), w)
    assert np.array_equal(to_words(ops.decode_rows(torch.tensor([16]), coded)), to_words(w[16:]))
