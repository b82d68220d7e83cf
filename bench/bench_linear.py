"""decode_linear against F.linear in bfloat16, two threads."""

import pytest
import torch
from shapes import BATCH, LINEAR, normal
from timing import alternate

import codecllm_ops as ops


@pytest.fixture(scope="module", params=LINEAR, ids=lambda s: f"{s[0]}x{s[1]}")
def weight(request):
    dense = normal(*request.param)
    return dense, ops.encode(dense)


@pytest.mark.parametrize("m", BATCH)
def test_linear(benchmark, threads, weight, m):
    threads(2)
    dense, coded = weight
    x = torch.randn(m, dense.shape[1]).bfloat16()

    def fused():
        return ops.decode_linear(x, coded)

    def plain():
        return torch.nn.functional.linear(x, dense)

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
