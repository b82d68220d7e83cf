"""What a call costs around the arithmetic: layers of 32 x 32, one thread, one row of x."""

import timeit
from statistics import median

import pytest
import torch

import codecllm

CALLS, ROUNDS = 2000, 15


def microseconds(*calls):
    """Medians over rounds in which the calls take turns."""
    times = [[timeit.timeit(f, number=CALLS) / CALLS * 1e6 for f in calls] for _ in range(ROUNDS)]
    return [median(t) for t in zip(*times, strict=True)]


def linear():
    dense = torch.nn.Linear(32, 32).bfloat16()
    return dense, codecllm.CompressedLinear(dense), torch.randn(1, 32).bfloat16()


def embedding():
    dense = torch.nn.Embedding(32, 32).bfloat16()
    return dense, codecllm.CompressedEmbedding(dense), torch.tensor([3])


def verify(dense, coded, x):
    found, expected = coded(x).double(), dense(x).double()
    if not x.is_floating_point():
        assert torch.equal(found, expected)
        return
    # Both round a float32 sum of products and a bias to bfloat16 once.
    w, bias = dense.weight.double(), dense.bias.double()
    sums = x.double().abs() @ w.abs().T + bias.abs()
    assert ((found - expected).abs() <= 2 * (2**-8 + 33 * 2**-23) * sums).all()


@pytest.mark.parametrize("layer", [linear, embedding])
@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "gradient"])
def test_call(benchmark, threads, layer, mode):
    threads(1)
    dense, coded, x = layer()
    context = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    if mode == "gradient" and x.is_floating_point():
        x.requires_grad_()
    with context.get(mode, torch.enable_grad)():
        verify(dense, coded, x)
        theirs, ours = microseconds(lambda: dense(x), lambda: coded(x))
        benchmark.pedantic(lambda: coded(x), rounds=5, iterations=100)
    benchmark.extra_info.update(
        dense_us=round(theirs, 2), ours_us=round(ours, 2), more_us=round(ours - theirs, 2)
    )
