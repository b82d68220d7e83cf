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


@pytest.mark.parametrize("layer", [linear, embedding])
@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "gradient"])
def test_call(benchmark, threads, layer, mode):
    threads(1)
    dense, coded, x = layer()
    context = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    if mode == "gradient" and x.is_floating_point():
        x.requires_grad_()
    with context.get(mode, torch.enable_grad)():
        assert torch.allclose(coded(x), dense(x), atol=1e-2)
        theirs, ours = microseconds(lambda: dense(x), lambda: coded(x))
        benchmark.pedantic(lambda: coded(x), rounds=5, iterations=100)
    benchmark.extra_info.update(
        dense_us=round(theirs, 2), ours_us=round(ours, 2), more_us=round(ours - theirs, 2)
    )
