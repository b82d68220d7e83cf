"""decode_linear is x W^T + bias within a derived bound, on every backend, path and shape."""

from __future__ import annotations

import pytest
import torch

import codecllm_ops as ops
from assertions import assert_linear_close, linear_tolerance
from cases import (
    CONTENTS,
    INTERPRETING,
    ISAS,
    every_backend,
    every_format,
    needs_cpu_kernels,
    random_words,
    running,
    to_tensor,
    to_words,
    weights,
    with_coded,
)
from codecllm_ops import CodedMatrix
from codecllm_ops.format import FORMATS

BATCHES = [0, 1, 3, 16, 64, 65] if INTERPRETING else [0, 1, 2, 3, 7, 8, 9, 33, 64, 130]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
# Decoded in registers, or decoded first and multiplied by the library: both for every batch size.
every_path = pytest.mark.parametrize("path", ["fused"] if INTERPRETING else ["fused", "gemm"])


@pytest.fixture
def set_gemm_from():
    """Sets the path: from which batch size on the library multiplies. Puts it back."""
    before = []

    def call(path: str) -> None:
        if ISAS:
            rows = {"fused": 1 << 40, "gemm": 0}[path]
            before.append(torch.ops.codecllm._set_gemm_from(rows))

    yield call
    if before:
        torch.ops.codecllm._set_gemm_from(before[0])


def activations(*shape, dtype, seed=1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rows_of(x) -> int:
    return x.numel() // max(1, x.shape[-1])


def check(x, matrix, w, bias=None, *, backend, path, scale=None):
    """One product on one backend, against float64."""
    rounded = backend == "reference" or path == "gemm" or (backend == "triton" and rows_of(x) > 64)
    with running(backend):
        y = ops.decode_linear(x, matrix, bias)
    assert_linear_close(y, x, w, scale, bias, rounded_weight=rounded)
    return y


@every_dtype
@every_path
@every_backend
@every_format
def test_every_batch_size(fmt, backend, path, dtype, set_gemm_from):
    set_gemm_from(path)
    w = weights(37, 70, fmt)
    bias = activations(37, dtype=dtype)
    for predictor in ("none", "left"):
        matrix = ops.encode(w, tile_cols=32, predictor=predictor, allow_stored=False)
        for m in BATCHES:
            x = activations(m, 70, dtype=dtype, seed=m)
            check(x, matrix, w, bias, backend=backend, path=path)
            if not INTERPRETING:
                check(x, matrix, w, backend=backend, path=path)


@every_path
@every_backend
@every_format
def test_one_hot_rows_read_the_weights_exactly(fmt, backend, path, set_gemm_from):
    set_gemm_from(path)
    w = weights(50, 40, fmt)
    matrix = ops.encode(w, tile_cols=16, allow_stored=False)
    with running(backend):
        for dtype in DTYPES:
            for m in (1, 40):
                y = ops.decode_linear(torch.eye(40, dtype=dtype)[-m:], matrix)
                # Each output is one product with 1 and sums with 0: only its rounding is left.
                assert torch.equal(y, w.to(dtype).T[-m:])


@every_dtype
@every_path
@every_backend
@pytest.mark.parametrize("per", ["row", "tensor"])
def test_scales(per, backend, path, dtype, set_gemm_from):
    set_gemm_from(path)
    q, scale = ops.quantize_int8(0.02 * activations(37, 70, dtype=torch.float32), per)
    matrix = ops.encode(q, scale=scale, tile_cols=32, allow_stored=False)
    bias = activations(37, dtype=dtype)
    for m in (1, 2, 9):
        x = activations(m, 70, dtype=dtype)
        check(x, matrix, q, bias, scale=scale, backend=backend, path=path)


@every_path
@every_backend
@pytest.mark.parametrize(
    "shape", [(1, 1), (17, 33), (5, 200), (200, 5), (16, 16), (1, 513), (513, 1)]
)
def test_odd_shapes(shape, backend, path, set_gemm_from):
    set_gemm_from(path)
    for fmt in (FORMATS["bf16"], FORMATS["fp32"], FORMATS["int8"]):
        w = weights(*shape, fmt)
        matrix = ops.encode(w, tile_cols=64, allow_stored=False)
        for m in (1, 3):
            x = activations(m, shape[1], dtype=torch.bfloat16)
            check(x, matrix, w, backend=backend, path=path)


@every_path
@every_backend
def test_batch_shapes(backend, path, set_gemm_from):
    set_gemm_from(path)
    w = weights(37, 70, FORMATS["bf16"])
    matrix = ops.encode(w, tile_cols=32, allow_stored=False)
    wide = activations(12, 140, dtype=torch.bfloat16)
    for x in (
        wide[0, :70],  # [K]
        wide[:, ::2],  # strided
        wide[:, :70].unflatten(0, (3, 4)),  # [3, 4, K]
        wide[:, :70].unflatten(0, (3, 4)).transpose(0, 1),
        wide.view(70, 24).T[:3],  # columns first
        wide[:1, :70].expand(4, 70),
        wide[:0, :70].unflatten(0, (0, 4)),
        wide[1:2, 3:73],  # not aligned
    ):
        y = check(x, matrix, w, backend=backend, path=path)
        assert y.shape == (*x.shape[:-1], 37) and y.is_contiguous()


@every_path
@every_backend
@pytest.mark.parametrize("shape", [(0, 33), (17, 0), (0, 0)], ids=str)
def test_empty_matrices(shape, backend, path, set_gemm_from):
    set_gemm_from(path)
    w = weights(*shape, FORMATS["bf16"])
    matrix = ops.encode(w, allow_stored=False)
    x, bias = (
        activations(3, shape[1], dtype=torch.bfloat16),
        activations(shape[0], dtype=torch.bfloat16),
    )
    with running(backend):
        assert torch.equal(
            ops.decode_linear(x, matrix, bias), torch.nn.functional.linear(x, w, bias)
        )
        assert torch.equal(ops.decode_linear(x, matrix), torch.zeros(3, shape[0], dtype=x.dtype))


@every_path
@every_backend
def test_slices_and_concatenations_as_operands(backend, path, set_gemm_from):
    set_gemm_from(path)
    for fmt in (FORMATS["bf16"], FORMATS["fp16"], FORMATS["int8"]):
        parts = [weights(r, 100, fmt, seed=r) for r in (17, 0, 33, 16)]
        coded = [ops.encode(p, tile_cols=32, allow_stored=False) for p in parts]
        matrix, w = CodedMatrix.concat_rows(coded), torch.cat(parts)
        cut = matrix.slice(slice(17, 66), slice(32, 96))
        for m in (1, 5):
            x = activations(m, 100, dtype=torch.bfloat16)
            bias = activations(66, dtype=torch.bfloat16)
            check(x, matrix, w, bias, backend=backend, path=path)
            check(x[:, 32:96], cut, w[17:66, 32:96], bias[17:], backend=backend, path=path)


@every_backend
def test_scales_follow_their_rows_through_a_concatenation(backend, set_gemm_from):
    for path in ("fused", "gemm"):
        set_gemm_from(path)
        q, scale = ops.quantize_int8(activations(50, 70, dtype=torch.float32))
        pieces = (slice(0, 17), slice(17, 50))
        matrix = CodedMatrix.concat_rows(
            [ops.encode(q[p], scale=scale[p], tile_cols=32, allow_stored=False) for p in pieces]
        )
        x = activations(2, 70, dtype=torch.bfloat16)
        check(x, matrix, q, scale=scale, backend=backend, path=path)


@every_path
@needs_cpu_kernels
def test_matrix_of_several_gemm_blocks(path, set_gemm_from):
    """More rows than the library path decodes at once, and an odd number of segments."""
    set_gemm_from(path)
    parts = [weights(r, 2048, FORMATS["bf16"], seed=r) for r in (1000, 17, 1300)]
    matrix = CodedMatrix.concat_rows([ops.encode(p, allow_stored=False) for p in parts])
    x, bias = activations(3, 2048, dtype=torch.bfloat16), activations(2317, dtype=torch.bfloat16)
    check(x, matrix, torch.cat(parts), bias, backend=ops.backend_info()["cpu_isa"], path=path)


@every_backend
@every_format
def test_stored_operand(fmt, backend):
    w = weights(1, 64, fmt)
    matrix = ops.encode(w)
    assert matrix.info.stored
    for dtype in DTYPES:
        check(activations(3, 64, dtype=dtype), matrix, w, backend=backend, path="gemm")


# ---- extreme weights ----------------------------------------------------------------------------


@every_dtype
@every_path
@every_backend
def test_subnormal_weights(backend, path, dtype, set_gemm_from):
    """Sums of subnormals may be flushed, with an error of at most 2^-126 each; nothing else may."""
    set_gemm_from(path)
    for name in ("bf16", "fp16", "fp32", "fp8_e4m3", "fp8_e5m2"):
        fmt = FORMATS[name]
        words = with_coded(random_words(17, 64, fmt), 0, fmt)
        w = to_tensor(words, fmt)
        matrix = ops.encode(w, allow_stored=False)
        for m in (1, 4):
            check(activations(m, 64, dtype=dtype), matrix, w, backend=backend, path=path)


@every_path
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["fp16", "fp8_e4m3", "fp8_e5m2"])
def test_subnormals_of_small_formats_survive_flushing(name, isa, path, set_gemm_from):
    """They are normal numbers in float32, and stay so when the processor flushes subnormals."""
    set_gemm_from(path)
    fmt = FORMATS[name]
    w = to_tensor(with_coded(random_words(17, 32, fmt), 0, fmt), fmt)
    matrix, expected = ops.encode(w, allow_stored=False), w.float().T
    assert (expected != 0).any()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        with running(isa):
            for m in (1, 32):
                assert torch.equal(ops.decode_linear(torch.eye(32)[:m], matrix), expected[:m])
    finally:
        torch.set_flush_denormal(False)


@every_dtype
@every_path
@every_backend
def test_infinities_and_nans_reach_the_output(backend, path, dtype, set_gemm_from):
    set_gemm_from(path)
    for name in ("bf16", "fp16", "fp32", "fp8_e5m2"):
        w = weights(20, 32, FORMATS[name]).float()
        w[3, 5], w[4, 6], w[5, 7] = torch.inf, -torch.inf, torch.nan
        matrix = ops.encode(w.to(FORMATS[name].dtype), tile_cols=16, allow_stored=False)
        with running(backend):
            for m in (1, 4):
                y = ops.decode_linear(torch.ones(m, 32, dtype=dtype), matrix)
                assert (y[:, 3] == torch.inf).all() and (y[:, 4] == -torch.inf).all()
                assert y[:, 5].isnan().all() and y.isfinite().sum() == 17 * m


@every_backend
def test_infinite_weight_beside_padding_spoils_no_other_row(backend):
    """Cells outside the matrix are zero times zero, whatever the weights are."""
    fmt = FORMATS["bf16"]
    w = to_tensor(CONTENTS["all_ones"](17, 33, fmt), fmt)
    w[1:] = 1.0
    matrix = ops.encode(w, tile_cols=16, allow_stored=False)
    with running(backend):
        y = ops.decode_linear(torch.ones(2, 33, dtype=torch.bfloat16), matrix)
    assert torch.equal(y[:, 1:], torch.full((2, 16), 33.0, dtype=torch.bfloat16))


# ---- the bound bites ----------------------------------------------------------------------------


@every_dtype
@every_backend
def test_one_wrong_weight_breaks_the_bound(backend, dtype):
    """Each of the weights of a row, its sign flipped, is noticed in that row's output."""
    fmt = FORMATS["bf16"]
    w = torch.full((32, 64), 0.02).to(fmt.dtype) + weights(32, 64, fmt) / 8
    wrong = w.clone()
    at = torch.arange(32), (torch.arange(32) * 7 + 3) % 64
    wrong[at] = -wrong[at]
    x = (1 + torch.rand(2, 64, generator=torch.Generator().manual_seed(0))).to(dtype)
    matrix = ops.encode(wrong, tile_cols=32, allow_stored=False)
    with running(backend):
        y = ops.decode_linear(x, matrix)
    error = (y.double() - x.double() @ w.double().T).abs()
    assert (error > linear_tolerance(x, w, rounded_weight=True)).all()
    with pytest.raises(AssertionError, match="64 of 64 outputs are off"):
        assert_linear_close(y, x, w, rounded_weight=True)


@every_backend
def test_last_mantissa_bit_of_a_weight_reaches_a_float32_output(backend):
    fmt = FORMATS["bf16"]
    w = weights(16, 16, fmt)
    wrong = to_words(w).copy()
    wrong[5, 7] ^= 1
    matrix = ops.encode(to_tensor(wrong, fmt), allow_stored=False)
    x = torch.zeros(1, 16)
    x[0, 7] = 1.0
    with running(backend):
        y = ops.decode_linear(x, matrix)
    assert (y != x @ w.float().T).nonzero().tolist() == [[0, 5]]
