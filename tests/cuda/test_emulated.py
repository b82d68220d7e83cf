"""The CUDA kernels, unmodified, on the CPU: against the reference codec and float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import codecllm_ops as ops
from assertions import assert_linear_close, assert_same_words
from cases import ALL_FORMATS, CONTENTS, FORMATS, every_format, random_words, to_tensor, weights
from cuda import emulated
from cuda.emulated import GOOD, Device

BF16 = FORMATS["bf16"]
# One weight, odd, several tile rows and columns with what is left over, whole tiles.
SHAPES = [(1, 1), (17, 33), (40, 200), (32, 128), (16, 272)]
ROWS_OF_X = [1, 2, 7, 8, 9, 33, 64]


def coded_of(content: str, rows: int, cols: int, fmt, **options):
    w = to_tensor(CONTENTS[content](rows, cols, fmt), fmt)
    return w, ops.encode(w, allow_stored=False, **options)


# ---- decode -------------------------------------------------------------------------------------


@every_format
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("predictor", ["none", "left"])
def test_decode(shape, fmt, predictor):
    for content in CONTENTS:
        w, coded = coded_of(content, *shape, fmt, tile_cols=64, predictor=predictor)
        words, status = emulated.decode(coded)
        assert status == GOOD
        assert_same_words(words, w)


@every_format
def test_decode_long_tiles(fmt):
    """Several iterations of the main loop, an odd number of them, and groups left over."""
    for cols in (512, 16 * 13, 16 * 21 + 3):
        w, coded = coded_of("escapes_at_borders", 20, cols, fmt, tile_cols=512)
        words, status = emulated.decode(coded)
        assert status == GOOD
        assert_same_words(words, w)


@pytest.mark.parametrize("fmt", [FORMATS["bf16"], FORMATS["fp16"]], ids=lambda f: f.name)
def test_decode_every_pattern(fmt):
    w = to_tensor(torch.arange(65536).reshape(128, 512).numpy(), fmt)
    words, status = emulated.decode(ops.encode(w, allow_stored=False))
    assert status == GOOD
    assert_same_words(words, w)


@pytest.mark.parametrize("scale_bits", [8, 9, 10, 11])
def test_decode_every_table_size(scale_bits):
    w, coded = coded_of("normal", 33, 100, BF16, scale_bits=scale_bits)
    assert_same_words(emulated.decode(coded)[0], w)


def test_tiles_that_do_not_fit_into_shared_memory():
    w, coded = coded_of("escapes_at_borders", 40, 200, BF16, tile_cols=64)
    words, status = emulated.decode(coded, Device(buffer_bytes=16))
    assert status == GOOD
    assert_same_words(words, w)


@every_format
def test_decode_rows(fmt):
    w, coded = coded_of("extremes", 70, 100, fmt, tile_cols=64)
    ids = torch.tensor([69, 0, 5, 5, 16, 15, 31, 8, 47, 64, 1])
    rows, status = emulated.decode_rows(ids, coded)
    assert status == GOOD
    assert_same_words(rows, w[ids])


def test_decode_rows_of_predictor_left():
    w, coded = coded_of("ramp", 70, 100, BF16, tile_cols=64, predictor="left")
    ids = torch.arange(69, -1, -3)
    rows, status = emulated.decode_rows(ids, coded)
    assert status == GOOD
    assert_same_words(rows, w[ids])


def test_ids_outside_the_matrix_give_nan():
    w, coded = coded_of("normal", 20, 40, BF16)
    rows, status = emulated.decode_rows(torch.tensor([3, -1, 20, 2**40, 4]), coded)
    assert status == emulated.BAD_ID
    assert rows[1:4].isnan().all()
    assert_same_words(rows[[0, 4]], w[[3, 4]])


# ---- slices and concatenations ------------------------------------------------------------------


def pieces(fmt=BF16):
    """Matrices of very different tables, their concatenation, and it as one tensor."""
    parts = [
        to_tensor(CONTENTS[content](rows, 100, fmt), fmt)
        for content, rows in (("normal", 20), ("one_symbol", 1), ("extremes", 50), ("normal", 16))
    ]
    coded = [ops.encode(p, tile_cols=48, allow_stored=False) for p in parts]
    return parts, ops.CodedMatrix.concat_rows(coded)


def test_concatenation():
    parts, coded = pieces()
    w = torch.cat(parts)
    assert len(coded.info.segments) == 4
    assert_same_words(emulated.decode(coded)[0], w)
    ids = torch.tensor([0, 19, 20, 21, 70, 71, 86])
    assert_same_words(emulated.decode_rows(ids, coded)[0], w[ids])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_linear_of_a_concatenation(dtype):
    parts, coded = pieces()
    parts[2] = parts[2].nan_to_num(0, 0, 0)  # NaN times anything: compared elsewhere
    coded = ops.CodedMatrix.concat_rows(
        [ops.encode(p, tile_cols=48, allow_stored=False) for p in parts]
    )
    x = torch.randn(5, 100).to(dtype)
    out, status = emulated.linear(x, coded)
    assert status == GOOD
    assert_linear_close(out, x, torch.cat(parts))


def test_slices():
    w, coded = coded_of("normal", 64, 256, BF16, tile_cols=64)
    part = coded.slice(slice(16, 48), slice(64, 192))
    assert_same_words(emulated.decode(part)[0], w[16:48, 64:192])
    x = torch.randn(3, 128, dtype=torch.bfloat16)
    assert_linear_close(emulated.linear(x, part)[0], x, w[16:48, 64:192])


# ---- decode_linear ------------------------------------------------------------------------------


def check_linear(fmt, dtype, shape, m, device=None, bias=True, path=None, **options):
    rows, cols = shape
    w = weights(rows, cols, fmt)
    scale = torch.rand(rows) + 0.5 if fmt.name == "int8" else None
    coded = ops.encode(w, scale=scale, allow_stored=False, **options)
    x = torch.randn(m, cols, generator=torch.Generator().manual_seed(1)).to(dtype)
    b = torch.randn(rows).to(dtype) if bias else None
    if path:
        assert emulated.PATHS[emulated.plan(coded, m, dtype, device).path] == path
    out, status = emulated.linear(x, coded, b, device)
    assert status == GOOD
    assert_linear_close(out, x, w, scale, b)
    again, _ = emulated.linear(x, coded, b, device)
    assert torch.equal(out, again)


@every_format
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("m", ROWS_OF_X)
def test_linear(fmt, dtype, m):
    exact = fmt.word_bits == 8 or fmt.dtype == dtype
    path = "mma" if exact and dtype != torch.float32 else "fma"
    check_linear(fmt, dtype, (40, 200), m, path=path, tile_cols=64)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("m", [1, 3, 16])
def test_linear_of_odd_shapes(shape, dtype, m):
    check_linear(BF16, dtype, shape, m, bias=False, tile_cols=64)


@pytest.mark.parametrize("m", [1, 8, 16, 64])
def test_linear_with_long_tiles(m):
    for fmt in (BF16, FORMATS["fp8_e5m2"]):
        check_linear(fmt, torch.bfloat16, (16, 16 * 45 + 5), m, tile_cols=512)


def test_linear_with_predictor_left():
    check_linear(BF16, torch.bfloat16, (20, 100), 3, path="fma", predictor="left", tile_cols=64)


def test_linear_before_sm_80():
    check_linear(BF16, torch.bfloat16, (20, 100), 9, Device(arch=75), path="fma")


def test_every_way_to_cut_the_work():
    """Devices of many and few processors, with and without room for x and copies of the table."""
    w = weights(100, 700, BF16)
    coded = ops.encode(w, tile_cols=64, allow_stored=False)
    seen, rounds = set(), set()
    for processors in (1, 40):
        for shared in (24 << 10, 48 << 10, 99 << 10, 227 << 10):
            for m in (1, 8, 64):
                device = Device(90, processors, shared, shared + 1024)
                found = emulated.plan(coded, m, torch.bfloat16, device)
                assert found.shared_bytes <= shared
                seen.add((found.path, found.band_rows > 1, found.chunk_tiles > 1,
                          found.chunks > 1, found.copies, found.grid > 1))  # fmt: skip
                if emulated.PATHS[found.path] == "mma":
                    rounds.add(-(-7 // found.grid) > found.band_rows)
                x = torch.randn(m, 700, dtype=torch.bfloat16)
                out, status = emulated.linear(x, coded, device=device)
                assert status == GOOD
                assert_linear_close(out, x, w)
    assert len(seen) >= 8 and rounds == {False, True}


DEVICES = [(86, 6, 99), (89, 24, 99), (80, 108, 163), (90, 132, 227), (90, 16, 227), (80, 4, 163)]


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_plans_keep_inside_their_memory_and_cover_the_matrix(device):
    arch, processors, kib = device
    gpu = Device(arch, processors, kib << 10, (kib + 1) << 10)
    rng = np.random.default_rng(0)
    paths = set()
    for _ in range(400):
        kind = rng.integers(3)
        fmt = FORMATS["int8"] if kind == 1 else BF16
        coding = "fixed" if kind == 2 else "rans"
        tile_cols = int(rng.choice([16, 32, 64, 128, 512, 1024]))
        _, coded = coded_of("normal", 16, tile_cols, fmt, tile_cols=tile_cols, coding=coding)
        view, _table = emulated.view_of(coded)
        view.tile_rows, view.col_tiles = int(rng.integers(1, 3000)), int(rng.integers(1, 60))
        view.rows, view.cols = 16 * view.tile_rows, tile_cols * view.col_tiles
        view.stream_bytes *= view.tile_rows * view.col_tiles
        m = int(rng.integers(1, 65))
        p = emulated.plan_of(view, m, torch.bfloat16, gpu)
        paths.add(emulated.PATHS[p.path])
        if emulated.PATHS[p.path] != "mma":
            continue
        sums = 64 * (1 << p.log2_rows) * p.band_rows * p.chunk_tiles
        assert p.x_bytes + sums <= p.kernel_bytes and p.shared_bytes <= kib << 10
        assert p.chunks * p.chunk_tiles >= view.col_tiles > (p.chunks - 1) * p.chunk_tiles
        assert 1 <= p.warps <= 24 and 1 <= p.grid <= view.tile_rows
        assert p.grid * p.chunks <= processors or p.grid == 1
    assert "mma" in paths


@pytest.mark.parametrize(
    "case",
    [(64, 700, 16, 9, 17, Device(80, 4, 166912, 167936)),
     (64, 200, 16, 9, 33, Device(86, 6, 101376, 102400)),
     (80, 700, 64, 10, 17, Device(90, 2, 232448, 233472))],
    ids=str,
)  # fmt: skip
def test_many_narrow_tiles(case):
    """Sums of tiles that the widest block would have room for, but not the one that is chosen."""
    rows, cols, tile_cols, scale_bits, m, device = case
    w = weights(rows, cols, BF16)
    coded = ops.encode(w, tile_cols=tile_cols, scale_bits=scale_bits, allow_stored=False)
    x = torch.randn(m, cols, dtype=torch.bfloat16)
    out, status = emulated.linear(x, coded, device=device)
    assert status == GOOD
    assert_linear_close(out, x, w)


@pytest.mark.parametrize("value", [-1, 5, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("field", range(5))
def test_a_table_that_lies_stays_inside(field, value):
    """Reads outside end the program, writes fail in `emulated.Output`."""
    _, part = coded_of("normal", 21, 40, BF16, tile_cols=16)
    coded = ops.CodedMatrix.concat_rows([part, part])
    for segment in range(2):
        table = coded.table.clone()
        table[segment, field] = value
        emulated.decode(coded, table=table)
        emulated.decode_rows(torch.tensor([0, 20, 21, 41]), coded, table=table)
        emulated.linear(torch.ones(3, 40).bfloat16(), coded, table=table)
        emulated.linear(torch.ones(3, 40), coded, table=table)


def test_more_chunks_than_a_grid_has_take_the_other_kernel():
    _, coded = coded_of("normal", 16, 64, BF16, tile_cols=16)
    view, _table = emulated.view_of(coded)
    device = Device(90, 3, 64 << 10, 65 << 10)  # x of a few column tiles has room
    for col_tiles, path in ((65535, "mma"), (1 << 20, "fma")):
        view.col_tiles = col_tiles
        view.cols = 16 * col_tiles
        found = emulated.plan_of(view, 64, torch.bfloat16, device)
        assert emulated.PATHS[found.path] == path
        assert found.chunks <= 65535


def test_linear_with_words_in_global_memory():
    check_linear(BF16, torch.bfloat16, (40, 200), 3, Device(buffer_bytes=16), tile_cols=64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("fmt", [f for f in ALL_FORMATS if f.word_bits <= 16], ids=lambda f: f.name)
def test_operands_are_the_exact_weights(fmt, dtype):
    """x picks single weights: every pattern of the format comes out as the number it is."""
    if fmt.word_bits == 16 and fmt.dtype != dtype:
        pytest.skip("not multiplied by an MMA")
    patterns = 1 << fmt.word_bits
    cols = 64 if fmt.word_bits == 8 else 512
    words = torch.arange(patterns).reshape(-1, cols).numpy()
    w = to_tensor(words, fmt)
    scale = torch.ones(1) if fmt.name == "int8" else None
    coded = ops.encode(w, scale=scale, allow_stored=False, tile_cols=cols)
    for first in range(0, cols, 64):
        chosen = range(first, first + 64)
        # The other weights of a row times zero are NaN if one of them is not finite.
        x = torch.zeros(len(chosen), cols, dtype=dtype)
        x[range(len(chosen)), chosen] = 1
        out, status = emulated.linear(x, coded)
        assert status == GOOD
        finite = w.float().isfinite().all(1)
        expected = w.float()[:, first : first + 64].T.to(dtype)
        assert torch.equal(out[:, finite], expected[:, finite])
        assert out[:, ~finite].isnan().any(0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2", "bf16", "fp16"])
def test_infinities_and_nans_of_weights(name, dtype):
    fmt = FORMATS[name]
    if fmt.word_bits == 16 and fmt.dtype != dtype:
        pytest.skip("not multiplied by an MMA")
    w = weights(20, 48, fmt)
    w[3, 5], w[4, 6], w[18, 47] = float("inf"), float("-inf"), float("nan")
    coded = ops.encode(w, allow_stored=False)
    x = torch.ones(2, 48, dtype=dtype)
    out, status = emulated.linear(x, coded)
    expected = x.float() @ w.float().T
    assert status == GOOD
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.isinf(), expected.isinf())
    assert torch.equal(out[out.isinf()].float(), expected[expected.isinf()])


# ---- corrupt streams ----------------------------------------------------------------------------


def damaged(coded, at: int, value: int):
    copy = ops.CodedMatrix(coded.stream.clone(), coded.raw, coded.index, coded.head)
    copy.stream[at] ^= value
    return copy


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_damaged_tile_gives_nan_in_its_rows_only(dtype):
    w, coded = coded_of("normal", 48, 128, BF16, tile_cols=64)
    tiles = coded.index.reshape(-1, 2 + coded.info.len_bits)
    second_row = int(tiles[2, 0]) * 16  # first byte of tile row 1
    bad = damaged(coded, second_row + 40, 0x10)
    x = torch.randn(3, 128).to(dtype)
    out, status = emulated.linear(x, bad)
    assert status == 2
    assert out[:, 16:32].isnan().all()
    good = torch.cat([out[:, :16], out[:, 32:]], 1)
    assert_linear_close(good, x, torch.cat([w[:16], w[32:]]))
    words, status = emulated.decode(bad)
    assert status == 2
    assert words[16:32, :64].isnan().all()
    assert_same_words(words[16:32, 64:].contiguous(), w[16:32, 64:].contiguous())
    rows, status = emulated.decode_rows(torch.arange(48), bad)
    assert status == 2
    assert rows[16:32, :64].isnan().any() and not rows[:16].isnan().any()


def test_an_index_that_points_outside():
    _, coded = coded_of("normal", 48, 128, BF16, tile_cols=64)
    for field, value in ((0, 2**31 - 1), (0, -1), (1, 0x7FFF), (1, 5 << 16)):
        index = coded.index.clone()
        index[2 * (2 + coded.info.len_bits) + field] = value
        bad = ops.CodedMatrix(coded.stream, coded.raw, index, coded.head)
        out, status = emulated.linear(torch.ones(1, 128, dtype=torch.bfloat16), bad)
        assert status == 2
        assert out[:, 16:32].isnan().all() and not out[:, :16].isnan().any()
        assert emulated.decode(bad)[1] == 2
        assert emulated.decode_rows(torch.arange(48), bad)[1] == 2


def test_random_damage_stays_inside():
    """The emulator ends the program at an access outside of shared memory."""
    rng = torch.Generator().manual_seed(0)
    for fmt in (BF16, FORMATS["fp8_e5m2"]):
        w = to_tensor(random_words(20, 100, fmt), fmt)
        coded = ops.encode(w, tile_cols=64, allow_stored=False)
        for _ in range(30):
            stream = torch.randint(0, 256, coded.stream.shape, generator=rng, dtype=torch.uint8)
            bad = ops.CodedMatrix(stream, coded.raw, coded.index, coded.head)
            out, status = emulated.linear(torch.ones(1, 100, dtype=torch.bfloat16), bad)
            assert status == 0 and out.isnan().all()
            assert emulated.decode(bad)[1] == 0
