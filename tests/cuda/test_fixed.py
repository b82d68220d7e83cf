"""The CUDA kernels on the coding fixed, in the emulator: against the words and float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import codecllm_ops as ops
from assertions import assert_linear_close, assert_same_words
from cases import CONTENTS, FORMATS, all_patterns, to_tensor, weights
from codecllm_ops.codec.assemble import assemble
from codecllm_ops.ops.backends.reference import fixed as reference
from cuda import emulated
from cuda.emulated import GOOD, Device

BF16 = FORMATS["bf16"]
# One weight; odd; several tile rows and columns with what is left over; whole tiles.
SHAPES = [(1, 1), (17, 33), (40, 200), (32, 128), (16, 272)]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def fixed(w: torch.Tensor, tile_cols: int = 64) -> ops.CodedMatrix:
    return ops.encode(w, coding="fixed", tile_cols=tile_cols, allow_stored=False)


def with_window(w: torch.Tensor, base: int, tile_cols: int = 64) -> ops.CodedMatrix:
    """As fixed(), with the window that the test wants."""
    plane, listed, ends = reference.from_rows(
        lambda ids: w[ids].contiguous().view(torch.uint8), [len(w)], w.shape[1], [base], tile_cols,
        w.device,
    )  # fmt: skip
    head = fixed(w, tile_cols).info
    segment = replace(head.segments[0], window_base=base, listed=listed.numel() // 4)
    return ops.CodedMatrix(
        *assemble(replace(head, segments=(segment,)), plane, listed, ends, w.device)
    )


def with_exponents(rows: int, cols: int, first: int, last: int) -> torch.Tensor:
    rng = np.random.default_rng(first)
    words = rng.integers(0, 1 << 16, (rows, cols)) & 0x807F
    return to_tensor(words | rng.integers(first, last + 1, (rows, cols)) << 7, BF16)


# ---- decode -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("content", CONTENTS)
def test_decode(shape, content):
    w = to_tensor(CONTENTS[content](*shape, BF16), BF16)
    for tile_cols in (48, 64, 512):
        words, status = emulated.decode(fixed(w, tile_cols))
        assert status == GOOD
        assert_same_words(words, w)


@pytest.mark.parametrize("groups", range(1, 18))
def test_decode_tiles_of_every_length(groups):
    """Units of four groups, an odd or even number of them, and up to three groups behind them."""
    for rows, cols in ((16, 16 * groups), (5, 16 * groups - 3)):
        w = to_tensor(CONTENTS["extremes"](rows, cols, BF16), BF16)
        words, status = emulated.decode(fixed(w, 16 * groups))
        assert status == GOOD
        assert_same_words(words, w)


@pytest.mark.parametrize("base", [0, 1, 111, 238, 239])
def test_decode_every_pattern(base):
    w = to_tensor(all_patterns(BF16), BF16)
    words, status = emulated.decode(with_window(w, base, 128))
    assert status == GOOD
    assert_same_words(words, w)


def test_decode_rows():
    w = to_tensor(CONTENTS["extremes"](70, 100, BF16), BF16)
    ids = torch.tensor([69, 0, 5, 5, 16, 15, 31, 8, 47, 64, 1])
    for tile_cols in (16, 64, 112):
        rows, status = emulated.decode_rows(ids, fixed(w, tile_cols))
        assert status == GOOD
        assert_same_words(rows, w[ids])


def test_ids_outside_the_matrix_give_nan():
    w = weights(20, 40, BF16)
    rows, status = emulated.decode_rows(torch.tensor([3, -1, 20, 2**40, 4]), fixed(w))
    assert status == emulated.BAD_ID
    assert rows[1:4].isnan().all()
    assert_same_words(rows[[0, 4]], w[[3, 4]])


# ---- slices and concatenations ------------------------------------------------------------------


def pieces() -> tuple[torch.Tensor, ops.CodedMatrix]:
    """Matrices with windows far from each other, and their concatenation."""
    parts = [
        weights(20, 100, BF16),
        with_exponents(1, 100, 1, 12),
        with_exponents(50, 100, 239, 254),
        weights(16, 100, BF16) * 2.0**40,
    ]
    coded = ops.CodedMatrix.concat_rows([fixed(p, 48) for p in parts])
    assert len({s.window_base for s in coded.info.segments}) == 4
    return torch.cat(parts), coded


def test_concatenation():
    w, coded = pieces()
    assert_same_words(emulated.decode(coded)[0], w)
    ids = torch.tensor([0, 19, 20, 21, 70, 71, 86])
    assert_same_words(emulated.decode_rows(ids, coded)[0], w[ids])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("m", [1, 5, 64])
def test_linear_of_a_concatenation(dtype, m):
    w, coded = pieces()
    # Small, so that products with weights near 2^127 are finite; powers of two do not round.
    x = (torch.randn(m, 100) * 2.0**-40).to(dtype)
    out, status = emulated.linear(x, coded)
    assert status == GOOD and out.isfinite().all()
    assert_linear_close(out, x, w)


def test_slices():
    w = to_tensor(CONTENTS["extremes"](64, 256, BF16), BF16)
    part = fixed(w).slice(slice(16, 48), slice(64, 192))
    assert part.raw.numel() > 0
    assert_same_words(emulated.decode(part)[0], w[16:48, 64:192])


# ---- decode_linear ------------------------------------------------------------------------------


def check_linear(w, coded, dtype, m, device=None, bias=False, path=None):
    x = torch.randn(m, w.shape[1], generator=torch.Generator().manual_seed(1)).to(dtype)
    b = torch.randn(len(w)).to(dtype) if bias else None
    if path:
        assert emulated.PATHS[emulated.plan(coded, m, dtype, device).path] == path
    out, status = emulated.linear(x, coded, b, device)
    assert status == GOOD
    assert_linear_close(out, x, w, None, b)
    again, _ = emulated.linear(x, coded, b, device)
    assert torch.equal(out, again)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", [1, 2, 7, 8, 9, 33, 64])
def test_linear(dtype, m):
    """An eighth of the weights is listed."""
    w = weights(40, 200, BF16)
    coded = with_window(w, 106)
    assert 0.1 < coded.raw.numel() / 4 / w.numel() < 0.15
    path = "mma" if dtype == torch.bfloat16 else "fma"
    check_linear(w, coded, dtype, m, bias=True, path=path)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("m", [1, 3, 16])
def test_linear_of_odd_shapes(shape, dtype, m):
    w = weights(*shape, BF16)
    check_linear(w, fixed(w), dtype, m)


@pytest.mark.parametrize("m", [1, 8, 16, 64])
@pytest.mark.parametrize("groups", [9, 12, 21, 32])
def test_linear_with_long_tiles(m, groups):
    w = weights(16, 16 * groups - 5, BF16)
    check_linear(w, fixed(w, 512), torch.bfloat16, m)


def test_linear_before_sm_80():
    w = weights(20, 100, BF16)
    check_linear(w, fixed(w), torch.bfloat16, 9, Device(arch=75), path="fma")


def test_every_way_to_cut_the_work():
    w = weights(100, 700, BF16)
    coded, seen = fixed(w), set()
    for processors in (1, 40):
        for shared in (24 << 10, 99 << 10, 227 << 10):
            for m in (1, 8, 64):
                device = Device(90, processors, shared, shared + 1024)
                found = emulated.plan(coded, m, torch.bfloat16, device)
                assert emulated.PATHS[found.path] == "mma" and found.shared_bytes <= shared
                seen.add((found.band_rows > 1, found.chunks > 1, found.grid > 1))
                check_linear(w, coded, torch.bfloat16, m, device)
    assert len(seen) >= 4


def test_no_table_leaves_room_for_x():
    """More columns of x in a block than rANS has room for, and nothing else in shared memory."""
    w = weights(16, 8192, BF16)
    rans = ops.encode(w, allow_stored=False, tile_cols=512)
    for m, device in ((8, Device(86, 1, 99 << 10, 100 << 10)), (32, Device(90, 1))):
        mine, other = (
            emulated.plan(coded, m, torch.bfloat16, device) for coded in (fixed(w, 512), rans)
        )
        assert mine.chunks < other.chunks
        assert mine.shared_bytes == mine.kernel_bytes


def test_it_codes_bf16_alone():
    view, _table = emulated.view_of(fixed(weights(16, 64, BF16)))
    view.format = FORMATS["fp16"].id
    assert emulated.PATHS[emulated.plan_of(view, 1, torch.float16).path] == "none"


@pytest.mark.parametrize("base", [0, 111, 239])
def test_operands_are_the_exact_weights(base):
    """x picks single weights: every finite pattern comes out as the number it is."""
    w = to_tensor(all_patterns(BF16), BF16)
    finite = w.float().isfinite()
    w = torch.where(finite, w, 0)  # zero times these is NaN: below
    coded = with_window(w, base, 256)
    for first in range(0, 256, 64):
        x = torch.zeros(64, 256, dtype=torch.bfloat16)
        x[range(64), range(first, first + 64)] = 1
        out, status = emulated.linear(x, coded)
        assert status == GOOD
        assert torch.equal(out, w[:, first : first + 64].T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_infinities_and_nans_of_weights(dtype):
    w = weights(20, 48, BF16)
    w[3, 5], w[4, 6], w[18, 47] = float("inf"), float("-inf"), float("nan")
    x = torch.ones(2, 48, dtype=dtype)
    out, status = emulated.linear(x, fixed(w))
    expected = x.float() @ w.float().T
    assert status == GOOD
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out[out.isinf()].float(), expected[expected.isinf()])


@pytest.mark.parametrize("scale", [2.0**-50, 2.0**60])
def test_small_and_large_x(scale):
    w = weights(20, 48, BF16)
    x = (torch.randn(3, 48).clamp(-4, 4) * scale).bfloat16()
    out, status = emulated.linear(x, fixed(w))
    assert status == GOOD
    assert_linear_close(out, x, w)


@pytest.mark.parametrize("scale", [2.0**-70, 2.0**-90, 2.0**-120])
def test_tiny_x_loses_what_is_documented_and_no_more(scale):
    """docs/kernels.md: 2^(base - 190) per product."""
    w = weights(20, 48, BF16)
    coded = fixed(w)
    (base,) = (s.window_base for s in coded.info.segments)
    x = (torch.randn(3, 48) * scale).bfloat16()
    exact = x.double() @ w.double().T
    out, status = emulated.linear(x, coded)
    lost = 48 * 2.0 ** (base - 190)
    assert status == GOOD
    assert ((out.double() - exact).abs() <= lost + 2.0**-7 * exact.abs()).all()


def test_x_beyond_the_limit_is_never_a_number():
    """docs/kernels.md: from 2^64 on, x leaves bfloat16 when it is scaled."""
    w = weights(20, 48, BF16)
    x = torch.zeros(2, 48, dtype=torch.bfloat16)
    x[0, 7], x[1] = 2.0**63, 1.0
    out, _ = emulated.linear(x, fixed(w))
    assert out.isfinite().all()
    x[0, 7] = 2.0**64
    out, _ = emulated.linear(x, fixed(w))
    assert not out[0].isfinite().any() and out[1].isfinite().all()
    assert_linear_close(out[1:], x[1:], w)
    # Another kernel takes float32, and scales nothing.
    assert_linear_close(emulated.linear(x.float(), fixed(w))[0], x.float(), w)


# ---- bytes that lie -----------------------------------------------------------------------------


def changed(coded, **tensors):
    """With other tensors, unchecked."""
    return ops.CodedMatrix(*(tensors.get(n, getattr(coded, n)) for n in emulated_parts))


emulated_parts = ("stream", "raw", "index", "head")


def listed_matrix() -> tuple[torch.Tensor, ops.CodedMatrix]:
    """Three rows of two tiles, each with entries."""
    w = to_tensor(CONTENTS["extremes"](48, 128, BF16), BF16).nan_to_num(0, 0, 0)
    coded = fixed(w)
    assert (np.diff(coded.index.numpy(), prepend=0) > 0).all()
    return w, coded


def check_bad_tile(w, bad, tile: int) -> None:
    """`tile`, of the first column of tiles, is corrupt and no other."""
    row = tile // 2 * 16
    good = [r for r in range(48) if not row <= r < row + 16]
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.randn(3, 128).to(dtype)
        out, status = emulated.linear(x, bad)
        assert status == tile
        assert out[:, row : row + 16].isnan().all()
        assert_linear_close(out[:, good], x, w[good])
    words, status = emulated.decode(bad)
    assert status == tile
    assert words[row : row + 16, :64].isnan().all()
    assert_same_words(words[good], w[good])
    assert_same_words(words[row : row + 16, 64:].contiguous(), w[row : row + 16, 64:].contiguous())
    rows, status = emulated.decode_rows(torch.arange(48), bad)
    assert status == tile
    assert rows[row : row + 16, :64].isnan().all()
    assert_same_words(rows[good], w[good])


@pytest.mark.parametrize("entry", [15 << 28 | 64 << 16, 0xFFF << 16, 0xFFFFFFFF])
def test_an_entry_outside_of_its_tile(entry):
    w, coded = listed_matrix()
    listed = coded.raw.clone().view(torch.int32)
    listed[int(coded.index[1])] = np.uint32(entry).astype(np.int32).item()
    check_bad_tile(w, changed(coded, raw=listed.view(torch.uint8)), 2)


def test_an_entry_below_the_last_row():
    w = to_tensor(CONTENTS["extremes"](20, 64, BF16), BF16).nan_to_num(0, 0, 0)
    coded = fixed(w)
    listed = coded.raw.clone().view(torch.int32)
    listed[-1] = 4 << 28  # tile row 1 has rows 0 to 3
    bad = changed(coded, raw=listed.view(torch.uint8))
    assert emulated.decode(bad)[1] == 1
    assert emulated.linear(torch.ones(2, 64).bfloat16(), bad)[0][:, 16:].isnan().all()


@pytest.mark.parametrize("value", [-1, -(2**31), 2**31 - 1, 10**6])
def test_an_index_beyond_the_list(value):
    w, coded = listed_matrix()
    index = coded.index.clone()
    index[0] = value  # tile 0 ends outside, and tile 1 begins there
    bad = changed(coded, index=index)
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.randn(3, 128).to(dtype)
        out, status = emulated.linear(x, bad)
        assert status == 0 and out[:, :16].isnan().all()
        assert_linear_close(out[:, 16:], x, w[16:])
    words, status = emulated.decode(bad)
    assert status == 0 and words[:16].isnan().all()
    assert_same_words(words[16:], w[16:])
    assert emulated.decode_rows(torch.arange(48), bad)[1] == 0


def test_an_index_that_descends():
    w, coded = listed_matrix()
    index = coded.index.clone()
    index[4] = index[3] - 1
    words, status = emulated.decode(changed(coded, index=index))
    assert status == 4
    assert words[32:, :64].isnan().all()
    assert_same_words(words[:32], w[:32])


@pytest.mark.parametrize("value", [-1, 5, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("field", range(5))
def test_a_table_that_lies_stays_inside(field, value):
    """Reads outside end the program, writes fail in `emulated.Output`."""
    part = fixed(weights(21, 40, BF16), 16)
    coded = ops.CodedMatrix.concat_rows([part, part])
    for segment in range(2):
        table = coded.table.clone()
        table[segment, field] = value
        emulated.decode(coded, table=table)
        emulated.decode_rows(torch.tensor([0, 20, 21, 41]), coded, table=table)
        emulated.linear(torch.ones(3, 40).bfloat16(), coded, table=table)
        emulated.linear(torch.ones(3, 40), coded, table=table)


def test_random_bytes_stay_inside():
    rng = torch.Generator().manual_seed(0)
    _, coded = listed_matrix()
    x = torch.ones(2, 128)
    for _ in range(20):
        stream, raw = (
            torch.randint(0, 256, t.shape, generator=rng, dtype=torch.uint8)
            for t in (coded.stream, coded.raw)
        )
        index = torch.randint(-3, coded.raw.numel() // 4 + 3, coded.index.shape, generator=rng)
        bad = changed(coded, stream=stream, raw=raw, index=index.to(torch.int32))
        assert emulated.decode(bad)[1] < 6
        emulated.decode_rows(torch.arange(48), bad)
        emulated.linear(x.bfloat16(), bad)
        emulated.linear(x, bad)


# ---- plans --------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [1, 8, 64])
def test_plans_are_remembered_apart_from_those_of_rans(m):
    w = weights(64, 1024, BF16)
    views = [emulated.view_of(c) for c in (fixed(w, 512), ops.encode(w, tile_cols=512))]
    for _ in range(2):
        for view, _table in views:
            made = emulated.plan_of(view, m, torch.bfloat16)
            found = emulated.cached_plan_of(view, m, torch.bfloat16)
            names = [name for name, _ in made._fields_]
            assert [getattr(made, n) for n in names] == [getattr(found, n) for n in names]
