"""decode_linear on matrices of coding fixed: every number of rows of x, every way x can be odd."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import codecllm_ops as ops
from assertions import assert_linear_close, linear_tolerance
from cases import (
    CONTENTS,
    INTERPRETING,
    ISAS,
    every_backend,
    needs_cpu_kernels,
    running,
    to_tensor,
    weights,
)
from codecllm_ops import CodedMatrix, CorruptStreamError
from codecllm_ops.format import FORMATS

BF16 = FORMATS["bf16"]
DTYPES = [torch.bfloat16, torch.float32, torch.float16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
FEW = (1, 7) if INTERPRETING else (1, 3, 7, 12)
BATCHES = [1, 3, 16] if INTERPRETING else [*range(1, 14), 15, 16, 17, 24, 25, 33, 64, 65, 128, 200]


def fixed(w: torch.Tensor, tile_cols: int | None = None) -> CodedMatrix:
    return ops.encode(w, coding="fixed", tile_cols=tile_cols, allow_stored=False)


def activations(*shape, dtype, seed=1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def check(x, matrix, w, bias=None, *, backend):
    """Whichever path runs: some round the weight to x's dtype before they multiply."""
    with running(backend):
        y = ops.decode_linear(x, matrix, bias)
    assert_linear_close(y, x, w, None, bias, rounded_weight=rounds(x, backend))
    return y


def rounds(x, backend) -> bool:
    return backend not in ISAS or x.numel() // max(1, x.shape[-1]) >= 100


@pytest.fixture(params=["chosen", "library"] if ISAS and not INTERPRETING else ["chosen"])
def path(request):
    """The path that is chosen by the number of rows, and the one that the library multiplies on."""
    if request.param == "chosen":
        yield
        return
    before = torch.ops.codecllm._set_gemm_from(0)
    yield
    torch.ops.codecllm._set_gemm_from(before)


def listed(rows, cols, seed=0):
    """Normal weights, of which one in 50 is outside the window: large, tiny, subnormal, zero."""
    w = weights(rows, cols, BF16, seed=seed)
    at = torch.rand(rows, cols, generator=torch.Generator().manual_seed(seed)) < 0.02
    odd = torch.tensor([300.0, -3e-20, 2.0**-130, -0.0, 0.0, -90.0]).bfloat16()
    w[at] = odd[torch.arange(int(at.sum())) % len(odd)]
    return w


# ---- shapes -------------------------------------------------------------------------------------


@every_dtype
@every_backend
def test_every_number_of_rows(backend, dtype):
    w, bias = listed(37, 200), activations(37, dtype=dtype)
    for tile_cols in (48, 64, 128, 512):
        matrix = fixed(w, tile_cols)
        for m in BATCHES:
            x = activations(m, 200, dtype=dtype, seed=m)
            check(x, matrix, w, bias, backend=backend)
    check(x, matrix, w, backend=backend)


@every_backend
@pytest.mark.parametrize(
    "shape", [(1, 1), (17, 33), (5, 200), (200, 5), (16, 16), (1, 513), (513, 1), (40, 1100)],
    ids=str,
)  # fmt: skip
def test_odd_shapes(shape, backend, path):
    w = listed(*shape)
    for tile_cols in (None, 16, 80):
        matrix = fixed(w, tile_cols)
        for m in FEW:
            for dtype in DTYPES:
                rows = activations(m, shape[1], dtype=dtype)
                with running(backend):
                    y = ops.decode_linear(rows, matrix)
                assert_linear_close(y, rows, w, rounded_weight=True)


@every_backend
def test_one_hot_rows_read_the_weights_exactly(backend, path):
    w = weights(50, 90, BF16)
    for tile_cols in (32, 512):
        matrix = fixed(w, tile_cols)
        with running(backend):
            for dtype in DTYPES:
                for m in (1, 4, 6, 8, 19, 90):
                    y = ops.decode_linear(torch.eye(90, dtype=dtype)[-m:], matrix)
                    assert torch.equal(y, w.to(dtype).T[-m:])


@every_backend
def test_segments_have_windows_of_their_own(backend, path):
    parts = [
        weights(17, 150, BF16), 2.0**90 * weights(1, 150, BF16), weights(0, 150, BF16),
        2.0**-60 * weights(33, 150, BF16), weights(16, 150, BF16, seed=3),
    ]  # fmt: skip
    w = torch.cat(parts)
    matrix = CodedMatrix.concat_rows([fixed(p, 64) for p in parts])
    assert len({s.window_base for s in matrix.info.segments if s.rows}) >= 3
    cut = matrix.slice(slice(17, 67), slice(64, 128))
    for m in (1, 2, 5, 8, 11):
        x = activations(m, 150, dtype=torch.bfloat16)
        check_rounded(x, matrix, w, backend)
        check_rounded(x[:, 64:128], cut, w[17:, 64:128], backend)


def check_rounded(x, matrix, w, backend):
    with running(backend):
        assert_linear_close(ops.decode_linear(x, matrix), x, w, rounded_weight=True)


@every_backend
def test_streams_at_any_address(backend):
    w = listed(33, 130)
    matrix, x = fixed(w, 64), activations(3, 130, dtype=torch.bfloat16)
    with running(backend):
        expected = {m: ops.decode_linear(x[:1].expand(m, -1), matrix) for m in (1, 3, 9)}
        for offset in (1, 2, 7):
            moved = matrix
            for name in ("stream", "raw"):
                t = getattr(matrix, name)
                room = torch.zeros(t.numel() + 8, dtype=torch.uint8)
                room[offset : offset + t.numel()] = t
                moved = replaced(moved, name, room[offset : offset + t.numel()])
            for m, y in expected.items():
                assert torch.equal(ops.decode_linear(x[:1].expand(m, -1), moved), y)


def replaced(matrix, name, tensor):
    return replace(matrix, **{name: tensor})


# ---- numbers ------------------------------------------------------------------------------------


@every_dtype
@every_backend
def test_infinities_and_nans_among_the_weights(backend, dtype, path):
    w = weights(20, 70, BF16)
    w[3, 5], w[4, 6], w[5, 69] = torch.inf, -torch.inf, torch.nan
    matrix = fixed(w, 64)
    with running(backend):
        for m in (1, 2, 4, 7, 9, 30):
            y = ops.decode_linear(torch.ones(m, 70, dtype=dtype), matrix)
            assert (y[:, 3] == torch.inf).all() and (y[:, 4] == -torch.inf).all()
            assert y[:, 5].isnan().all() and y.isfinite().sum() == 17 * m


@every_dtype
@every_backend
def test_infinities_and_nans_in_x_stay_in_their_row(backend, dtype, path):
    """As F.linear: infinity times a weight of zero is NaN, also a listed zero (-0 is not one)."""
    w = listed(20, 70)
    w[:, 3], w[7, 3], w[8, 3] = 0.5, 0.0, -0.25
    matrix = fixed(w, 48)
    for m in (1, 2, 4, 7, 9, 30):
        x = activations(m, 70, dtype=dtype)
        x[0, 3] = torch.inf
        if m > 1:
            x[1, 68] = torch.nan
        with running(backend):
            y = ops.decode_linear(x, matrix)
        assert y[0, 7].isnan() and y[0, 8] == -torch.inf
        others = torch.arange(20) >= 9
        assert (y[0, others] == torch.inf).all()
        if m > 1:
            assert y[1].isnan().all()
        if m > 2:
            assert_linear_close(y[2:], x[2:], w, rounded_weight=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize(
    "powers",
    [(126,), (120,), (64,), (-64,), (-100,), (-120,), (60, -60), (100, -100), (0, -40), (0, -110),
     (-126,), (-126, 0), (-130, -126)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("base", [0, 20, 110, 180], ids=lambda b: f"weights2^{b - 119}")
@pytest.mark.parametrize("backend", ISAS)
def test_x_of_any_magnitude(backend, base, powers, dtype):
    """Columns of x of these powers of two, weights of another: nothing is lost by scaling."""
    w = (weights(33, 70, BF16).float() * 50 * 2.0 ** (base - 119)).bfloat16()
    scales = torch.tensor([2.0**p for p in powers], dtype=torch.float64)
    for m in (1, 2, 4, 5, 8, 9, 13):
        x = activations(m, 70, dtype=torch.float64) * scales.repeat(70)[:70]
        x = x.clamp(-3e38, 3e38).to(dtype)
        with running(backend):
            y = ops.decode_linear(x, fixed(w, 48))
        exact = x.double() @ w.double().T
        fits = x.double().abs() @ w.double().abs().T < 1e38  # else sums may overflow on the way
        allowed = linear_tolerance(x, w)
        assert ((y.double() - exact).abs() <= allowed)[fits].all()


@pytest.mark.parametrize("backend", ISAS)
def test_a_row_does_not_depend_on_those_beside_it(backend):
    """Scaling x by powers of two is exact, so neighbours of another magnitude change no bit."""
    w = listed(33, 200)
    matrix = fixed(w, 64)
    x = activations(4, 200, dtype=torch.bfloat16)
    loud = x.clone()
    loud[1:] *= 2.0**40
    with running(backend):
        assert torch.equal(ops.decode_linear(x, matrix)[0], ops.decode_linear(loud, matrix)[0])


@needs_cpu_kernels
@pytest.mark.parametrize("backend", ISAS)
def test_threads_change_nothing(backend, threads):
    w = listed(100, 200)
    matrix = fixed(w, 64)
    with running(backend):
        for m in (1, 6, 8, 20):
            x, results = activations(m, 200, dtype=torch.bfloat16), []
            for count in (1, 2, 3, 64):
                threads(count)
                results.append(ops.decode_linear(x, matrix))
            assert all(torch.equal(y, results[0]) for y in results)


@needs_cpu_kernels
@pytest.mark.parametrize("backend", ISAS)
def test_threads_see_all_of_a_large_x(backend, threads):
    """Each looks at a part of x; one that finds what cannot be scaled decides for all of them."""
    w = listed(17, 1030)
    w[:, -1] = 0.02  # in the plane, where a scaled infinity is a number
    matrix = fixed(w)
    for count in (1, 2, 3):
        threads(count)
        for row in (0, 79, 80, 159):
            x = activations(160, 1030, dtype=torch.bfloat16)
            x[row, -1] = torch.inf
            with running(backend):
                y = ops.decode_linear(x, matrix)
            assert (y[row] == torch.inf).all()
            others = torch.arange(160) != row
            assert_linear_close(y[others], x[others], w, rounded_weight=True)


@every_dtype
@every_backend
def test_one_wrong_weight_breaks_the_bound(backend, dtype):
    w = torch.full((32, 64), 0.02).bfloat16() + weights(32, 64, BF16) / 8
    wrong = w.clone()
    at = torch.arange(32), (torch.arange(32) * 7 + 3) % 64
    wrong[at] = -wrong[at]
    matrix = fixed(wrong)
    for m in (2, 6, 9):
        x = (1 + torch.rand(m, 64, generator=torch.Generator().manual_seed(0))).to(dtype)
        with running(backend):
            y = ops.decode_linear(x, matrix)
        error = (y.double() - x.double() @ w.double().T).abs()
        assert (error > linear_tolerance(x, w, rounded_weight=True)).all()


# ---- what no encoder writes ---------------------------------------------------------------------


@pytest.mark.parametrize("backend", ISAS)
@pytest.mark.parametrize("m", [1, 4, 8, 9, 40])
@pytest.mark.parametrize(
    "ends", [[3, 2, 2], [0, 0, 2**31 - 1], [-1, 2, 2], [2, 2, 3]], ids=str
)  # fmt: skip
def test_index_that_lies_is_an_error(backend, m, ends):
    matrix = two_listed()
    bad = replaced(matrix, "index", torch.tensor(ends, dtype=torch.int32)[:, None])
    x = activations(m, 100, dtype=torch.bfloat16)
    with running(backend), pytest.raises(CorruptStreamError, match="corrupt index"):
        ops.decode_linear(x, bad)


@pytest.mark.parametrize("backend", ISAS)
@pytest.mark.parametrize("m", [1, 4, 8, 9, 40])
@pytest.mark.parametrize("entry", [15 << 28, 48 << 16, 0xFFF << 16], ids=hex)
def test_list_that_points_outside_the_tile_is_an_error(backend, m, entry):
    matrix = two_listed()
    raw = matrix.raw.clone()
    raw.view(torch.int32)[1] = entry - (1 << 32 if entry >> 31 else 0)
    x = activations(m, 100, dtype=torch.bfloat16)
    with running(backend), pytest.raises(CorruptStreamError, match="corrupt index"):
        ops.decode_linear(x, replaced(matrix, "raw", raw))


def two_listed():
    """14 x 100 in tiles of 48; the first tile lists two weights."""
    w = weights(14, 100, BF16)
    w[2, 3], w[13, 40] = torch.nan, 1e9
    matrix = fixed(w, 48)
    assert matrix.index.flatten().tolist() == [2, 2, 2]
    return matrix


@pytest.mark.parametrize("content", ["extremes", "uniform", "all_ones"])
@every_backend
def test_matrices_of_nothing_but_listed_weights(backend, content):
    w = to_tensor(CONTENTS[content](20, 70, BF16), BF16)
    matrix = fixed(w)
    for m in (1, 5, 9):
        x = torch.ones(m, 70, dtype=torch.float32)
        with running(backend):
            y = ops.decode_linear(x, matrix)
        expected = torch.nn.functional.linear(x, w.float())
        assert torch.equal(y.isnan(), expected.isnan())
