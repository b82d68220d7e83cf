"""Encoder and decoder on one core, bfloat16."""

import pytest
import torch
from shapes import normal
from timing import alternate

import codecllm_ops as ops


def gigabytes(t: torch.Tensor) -> float:
    return t.numel() * t.element_size() / 1e9


def test_encode(benchmark, threads):
    threads(1)
    weight = normal(4096, 4096)
    coded = benchmark.pedantic(lambda: ops.encode(weight), rounds=7, warmup_rounds=1)
    assert torch.equal(ops.decode(coded).view(torch.int16), weight.view(torch.int16))
    benchmark.extra_info["GB/s"] = round(gigabytes(weight) / benchmark.stats["median"], 3)


@pytest.mark.parametrize("coding", ["fixed", "rans"])
@pytest.mark.parametrize("isa", ops.backend_info().get("cpu_isas", []))
def test_decode(benchmark, threads, isa, coding):
    threads(1)
    weight = normal(4096, 4096)
    coded = ops.encode(weight, coding=coding)
    # Into memory that is there: fresh pages cost more than decoding.
    out, copy = torch.empty_like(weight), torch.empty_like(weight)
    ops.select_cpu_isa(isa)
    try:
        benchmark.pedantic(lambda: ops.decode(coded, out=out), rounds=25, warmup_rounds=3)
        (copying,) = alternate(lambda: copy.copy_(weight))
    finally:
        ops.select_cpu_isa()
    assert torch.equal(out.view(torch.int16), weight.view(torch.int16))
    benchmark.extra_info.update(
        {
            "GB/s": round(gigabytes(weight) / benchmark.stats["median"], 3),
            "copy GB/s": round(gigabytes(weight) / copying, 3),
        }
    )
