"""The coding fixed on a GPU: kernels, and conversions to it, whose bytes are those of the CPU."""

from __future__ import annotations

import pytest
import torch

import codecllm_ops as ops
from assertions import assert_linear_close, assert_same_words
from cases import CONTENTS, FORMATS, to_tensor, weights

pytestmark = pytest.mark.gpu

BF16 = FORMATS["bf16"]
SHAPES = [(1, 1), (17, 33), (40, 200), (64, 512), (300, 1100), (16, 4096)]
ROWS_OF_X = [1, 2, 3, 8, 9, 16, 33, 64, 65, 200]


def on_gpu(w, **options):
    """Coded on the CPU."""
    return ops.encode(w, allow_stored=False, **options).to("cuda")


def extremes(rows, cols):
    """A fifth of the weights has no code in `fixed`."""
    return to_tensor(CONTENTS["extremes"](rows, cols, BF16), BF16)


def cuda_only(what: str) -> None:
    if ops.backend_info()["cuda"] != "cuda":
        pytest.skip(what)


# ---- decode -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("tile_cols", [None, 48, 208])
def test_decode_fixed(shape, tile_cols):
    for content in CONTENTS:
        w = to_tensor(CONTENTS[content](*shape, BF16), BF16)
        coded = on_gpu(w, coding="fixed", tile_cols=tile_cols)
        assert_same_words(ops.decode(coded).cpu(), w)


@pytest.mark.usefixtures("checked")
def test_decode_rows_of_fixed():
    w = extremes(1000, 700)
    ids = torch.randint(0, 1000, (7, 13))
    assert_same_words(ops.decode_rows(ids.cuda(), on_gpu(w, coding="fixed")).cpu(), w[ids])


# ---- conversions --------------------------------------------------------------------------------


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("tile_cols", [None, 80])
def test_fixed_is_made_on_the_gpu_as_on_the_cpu(shape, tile_cols):
    """From rans, with a predictor as well, and from a dense matrix: byte by byte."""
    for content in ("normal", "extremes", "uniform"):
        w = to_tensor(CONTENTS[content](*shape, BF16), BF16)
        options = {"tile_cols": tile_cols, "allow_stored": False}
        expected = ops.encode(w, coding="fixed", **options).to("cuda")
        assert ops.encode(w.cuda(), coding="fixed", **options) == expected
        for predictor in ("none", "left"):
            rans = on_gpu(w, predictor=predictor)
            assert rans.to("fixed", tile_cols=tile_cols) == expected
        assert expected.to("rans") == on_gpu(w)


@pytest.mark.usefixtures("checked")
def test_conversion_keeps_segments():
    parts = [weights(n, 700, BF16, seed) * 4.0**seed for seed, n in enumerate((20, 1, 500))]
    rans = ops.CodedMatrix.concat_rows([ops.encode(p, allow_stored=False) for p in parts])
    there = rans.to("cuda").to("fixed")
    assert there == rans.to("fixed").to("cuda")
    assert_same_words(ops.decode(there).cpu(), torch.cat(parts))


def test_no_dense_copy_while_converting():
    cuda_only("csrc/cuda/to_fixed.cu")
    rans = on_gpu(weights(4096, 4096, BF16))
    rans.to("fixed")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    fixed = rans.to("fixed")
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < fixed.nbytes + 4096 * 4096 * 2 // 8


def test_a_damaged_source_raises():
    """Also where nobody asked: a conversion waits for the GPU anyway."""
    cuda_only("csrc/cuda/to_fixed.cu")
    coded = on_gpu(weights(64, 512, BF16))
    coded.stream[100] ^= 0x10
    with pytest.raises((ops.CorruptStreamError, RuntimeError), match="corrupt"):
        coded.to("fixed")


# ---- decode_linear ------------------------------------------------------------------------------


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("m", ROWS_OF_X)
def test_linear_of_fixed(dtype, m):
    for rows, cols in SHAPES:
        w = weights(rows, cols, BF16)
        w.view(-1)[::50] *= 2.0**12  # listed
        x, bias = torch.randn(m, cols).to(dtype), torch.randn(rows).to(dtype)
        for tile_cols in (None, 208):
            coded = on_gpu(w, coding="fixed", tile_cols=tile_cols)
            out = ops.decode_linear(x.cuda(), coded, bias.cuda()).cpu()
            assert_linear_close(out, x, w, None, bias, rounded_weight=m > 64)


@pytest.mark.parametrize("exponent", [-110, -60, 60, 120])
def test_linear_of_fixed_with_far_windows(exponent):
    """What the sums are multiplied by leaves float32 for the last; x keeps to its limits."""
    w = weights(64, 512, BF16) * 2.0**exponent
    x = (torch.randn(5, 512) * 2.0 ** max(-50, min(50, -exponent))).bfloat16()
    assert_linear_close(ops.decode_linear(x.cuda(), on_gpu(w, coding="fixed")).cpu(), x, w)


def test_x_beyond_the_limit_is_never_a_number():
    cuda_only("csrc/cuda/linear_mma.cuh; docs/kernels.md")
    w = weights(64, 512, BF16)
    x = torch.ones(2, 512, dtype=torch.bfloat16)
    x[0, 7] = 2.0**64
    out = ops.decode_linear(x.cuda(), on_gpu(w, coding="fixed")).cpu()
    assert not out[0].isfinite().any()
    assert_linear_close(out[1:], x[1:], w)


def test_infinities_and_nans_of_fixed():
    w = weights(64, 512, BF16)
    w[3, 5], w[4, 6], w[18, 47] = float("inf"), float("-inf"), float("nan")
    x = torch.ones(2, 512, dtype=torch.bfloat16)
    out = ops.decode_linear(x.cuda(), on_gpu(w, coding="fixed")).cpu()
    expected = x.float() @ w.float().T
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out[out.isinf()].float(), expected[expected.isinf()])


# ---- bad input ----------------------------------------------------------------------------------


def lying(field: str, at: int, value: int):
    """A fixed matrix whose index or list says what no encoder says."""
    coded = on_gpu(extremes(64, 512).nan_to_num(0, 0, 0), coding="fixed")
    tensors = {name: getattr(coded, name).clone() for name in ("stream", "raw", "index", "head")}
    tensors[field].view(torch.int32)[at] = value
    return ops.CodedMatrix(*tensors.values())


LIES = [("index", 0, -1), ("index", 0, 2**31 - 1), ("raw", 0, 0x0FFF0000), ("raw", 3, -1)]


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_lists_that_lie_give_nan(lie):
    cuda_only("csrc/cuda/fixed")
    bad = lying(*lie)
    for dtype in (torch.bfloat16, torch.float32):
        out = ops.decode_linear(torch.ones(1, 512, dtype=dtype, device="cuda"), bad)
        assert out[:, :16].isnan().all() and not out[:, 32:].isnan().any()
    assert ops.decode(bad)[:16].isnan().all()
    assert ops.decode_rows(torch.arange(64, device="cuda"), bad)[:16].isnan().all()


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize("lie", LIES, ids=str)
def test_lists_that_lie_raise_when_asked(lie):
    cuda_only("csrc/cuda/fixed")
    bad = lying(*lie)
    x = torch.ones(1, 512, dtype=torch.bfloat16, device="cuda")
    for call in (lambda: ops.decode(bad), lambda: ops.decode_linear(x, bad)):
        with pytest.raises(ops.CorruptStreamError):
            call()
