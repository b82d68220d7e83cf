"""Bits per weight, everything counted: streams, tables, index, scales, head."""

import pytest
import torch
from shapes import minilm, normal, smollm2

import codecllm_ops as ops
from codecllm.model.skeleton import resident_bytes

SOURCES = {
    "normal-4096x4096": lambda: iter([normal(4096, 4096, torch.float32)]),
    "smollm2": smollm2,
    "minilm": minilm,
}


def order0_entropy(q: torch.Tensor) -> float:
    """Bits per int8 value if every value were coded ideally by its frequency."""
    p = torch.bincount(q.flatten().int() + 128).double() / q.numel()
    p = p[p > 0]
    return float(-(p * p.log2()).sum())


@pytest.mark.parametrize("coding", ["rans", "fixed"])
@pytest.mark.parametrize("source", SOURCES)
def test_bf16(benchmark, source, coding):
    weights = [w.bfloat16() for w in SOURCES[source]()]
    coded = benchmark.pedantic(lambda: [ops.encode(w, coding=coding) for w in weights], rounds=1)
    for w, c in zip(weights, coded, strict=True):
        assert torch.equal(ops.decode(c).view(torch.int16), w.view(torch.int16))
    n = sum(w.numel() for w in weights)
    benchmark.extra_info.update(
        bits_per_weight=round(8 * sum(c.nbytes for c in coded) / n, 4),
        bits_in_memory=round(8 * sum(map(resident_bytes, coded)) / n, 4),
    )


@pytest.mark.parametrize("source", SOURCES)
def test_int8(benchmark, source):
    weights = [ops.quantize_int8(w) for w in SOURCES[source]()]
    coded = benchmark.pedantic(lambda: [ops.encode(q, scale=s) for q, s in weights], rounds=1)
    for (q, _), c in zip(weights, coded, strict=True):
        assert torch.equal(ops.decode(c), q)
    n = sum(q.numel() for q, _ in weights)
    bits = 8 * sum(c.nbytes for c in coded) / n
    entropy = sum(order0_entropy(q) * q.numel() for q, _ in weights) / n
    benchmark.extra_info.update(
        bits_per_weight=round(bits, 4),
        order0_entropy=round(entropy, 4),
        over_entropy=round(bits / entropy, 4),
    )
