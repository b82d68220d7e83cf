"""decode_linear against F.linear in bfloat16, two threads."""

import itertools
from dataclasses import replace

import pytest
import torch
from shapes import BATCH, LINEAR, normal
from timing import alternate

import codecllm_ops as ops

# Beside the Linears of Llama-2-7B one of TinyLlama, whose rows are many columns for their number.
SHAPES = [*LINEAR, (2048, 5632)]
CASES = [(shape, coding) for shape in SHAPES for coding in ("fixed", "rans")]
MORE_BYTES_THAN_CACHES = 1 << 27


@pytest.fixture(
    scope="module", params=CASES, ids=lambda c: f"{c[0][0]}x{c[0][1]}-{c[1]}"
)  # fmt: skip
def weight(request):
    """Dense and coded, so many copies in turn that caches keep none of them."""
    shape, coding = request.param
    dense = normal(*shape)
    copies = 1 + MORE_BYTES_THAN_CACHES // (2 * dense.numel())
    coded = ops.encode(dense, coding=coding)
    return [dense.clone() for _ in range(copies)], [_copy(coded) for _ in range(copies)]


def _copy(coded):
    return replace(coded, stream=coded.stream.clone(), raw=coded.raw.clone())


@pytest.mark.parametrize("m", BATCH)
def test_linear(benchmark, threads, weight, m):
    threads(2)
    dense, (all_dense, all_coded) = weight[0][0], map(itertools.cycle, weight)
    x = torch.randn(m, dense.shape[1]).bfloat16()

    def fused():
        return ops.decode_linear(x, next(all_coded))

    def plain():
        return torch.nn.functional.linear(x, next(all_dense))

    expected = x.double() @ dense.double().T
    # Half a unit in the last place of bfloat16, and float32 sums of K products.
    bound = expected.abs() * 2**-8 + x.double().abs() @ dense.double().abs().T * x.shape[1] * 2**-23
    assert ((fused().double() - expected).abs() <= bound).all()

    ours, theirs = alternate(fused, plain)
    benchmark.pedantic(fused, rounds=5, warmup_rounds=1)
    benchmark.extra_info.update(
        decode_linear_ms=round(ours * 1e3, 3),
        linear_ms=round(theirs * 1e3, 3),
        of_linear_speed=round(theirs / ours, 3),
        gigaweights_per_s=round(dense.numel() / ours / 1e9, 2),
    )
