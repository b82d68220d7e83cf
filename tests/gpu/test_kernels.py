"""The kernels on a GPU, CUDA and Triton: what tests/cuda asks the emulator and tests/triton_kernels
the interpreter, and what only a device can answer: memory, streams, graphs, threads."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch

import codecllm_ops as ops
from assertions import assert_linear_close, assert_same_words
from cases import CONTENTS, FORMATS, every_format, to_tensor, weights

pytestmark = pytest.mark.gpu

BF16 = FORMATS["bf16"]
SHAPES = [(1, 1), (17, 33), (40, 200), (64, 512), (300, 1100), (16, 4096)]
ROWS_OF_X = [1, 2, 3, 8, 9, 16, 33, 64, 65, 200]
every_coding = pytest.mark.parametrize("coding", ["rans", "fixed"])


def on_gpu(w, scale=None, **options):
    """Coded on the CPU, whose bytes are what GPUs must make and read."""
    return ops.encode(w, scale=scale, allow_stored=False, **options).to("cuda")


# ---- decode -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("checked")
@every_format
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("predictor", ["none", "left"])
def test_decode(shape, fmt, predictor):
    for content in CONTENTS:
        w = to_tensor(CONTENTS[content](*shape, fmt), fmt)
        assert_same_words(ops.decode(on_gpu(w, predictor=predictor)).cpu(), w)


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize(
    "name, coding", [("bf16", "rans"), ("bf16", "fixed"), ("fp16", "rans")], ids=str
)
def test_decode_every_pattern(name, coding):
    w = to_tensor(torch.arange(65536).reshape(64, 1024).numpy(), FORMATS[name])
    assert_same_words(ops.decode(on_gpu(w, coding=coding)).cpu(), w)


@pytest.mark.usefixtures("checked")
@every_coding
def test_decode_more_than_2_31_elements(coding):
    rows, cols = 2**15 + 16, 2**16
    part = weights(2048, cols, BF16)
    whole, rest = (ops.encode(w, coding=coding) for w in (part, part[: rows % 2048]))
    parts = [whole] * (rows // 2048) + [rest]
    decoded = ops.decode(ops.CodedMatrix.concat_rows(parts).to("cuda"))
    assert decoded.numel() > 2**31
    for begin in range(0, rows, 2048):
        some = decoded[begin : begin + 2048].cpu()
        assert_same_words(some, part[: len(some)])


@pytest.mark.usefixtures("checked")
@every_format
def test_decode_rows(fmt):
    w = to_tensor(CONTENTS["extremes"](1000, 700, fmt), fmt)
    ids = torch.randint(0, 1000, (7, 13))
    assert_same_words(ops.decode_rows(ids.cuda(), on_gpu(w)).cpu(), w[ids])


# ---- decode_linear ------------------------------------------------------------------------------


@pytest.mark.usefixtures("checked")
@every_format
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("m", ROWS_OF_X)
def test_linear(fmt, dtype, m):
    for rows, cols in SHAPES:
        w = weights(rows, cols, fmt)
        scale = torch.rand(rows) + 0.5 if fmt.name == "int8" else None
        x, bias = torch.randn(m, cols).to(dtype), torch.randn(rows).to(dtype)
        out = ops.decode_linear(x.cuda(), on_gpu(w, scale), bias.cuda()).cpu()
        assert_linear_close(out, x, w, scale, bias, rounded_weight=m > 64)


@every_coding
def test_results_repeat_bit_by_bit(coding):
    coded = on_gpu(weights(4096, 14336, BF16), coding=coding)
    for m in (1, 8, 64):
        x = torch.randn(m, 14336, dtype=torch.bfloat16, device="cuda")
        first = ops.decode_linear(x, coded)
        assert all(torch.equal(ops.decode_linear(x, coded), first) for _ in range(20))


@every_coding
def test_gradient_of_x(coding):
    w = weights(300, 500, BF16)
    x = torch.randn(5, 500, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    ops.decode_linear(x, on_gpu(w, coding=coding)).sum().backward()
    assert_linear_close(x.grad.cpu(), torch.ones(5, 300).bfloat16(), w.T)


# ---- the device ---------------------------------------------------------------------------------


@every_coding
def test_no_dense_weight_in_memory(coding):
    coded = on_gpu(weights(4096, 4096, BF16), coding=coding)
    x = torch.randn(16, 4096, dtype=torch.bfloat16, device="cuda")
    ops.decode_linear(x, coded)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    ops.decode_linear(x, coded)
    assert torch.cuda.max_memory_allocated() - before < 4096 * 4096 * 2 // 8


def test_ten_thousand_calls_do_not_grow():
    coded = on_gpu(weights(256, 512, BF16))
    x = torch.randn(3, 512, dtype=torch.bfloat16, device="cuda")
    ops.decode_linear(x, coded)
    before = torch.cuda.memory_reserved()
    for _ in range(10_000):
        ops.decode_linear(x, coded)
    torch.cuda.synchronize()
    assert torch.cuda.memory_reserved() == before


@every_coding
def test_graph_capture_and_replay(coding):
    coded = on_gpu(weights(1024, 4096, BF16), coding=coding)
    x = torch.randn(9, 4096, dtype=torch.bfloat16, device="cuda")
    ops.decode_linear(x, coded), ops.decode(coded)  # Triton compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ops.decode_linear(x, coded)
        dense = ops.decode(coded)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(out, ops.decode_linear(x, coded))
    assert torch.equal(dense, ops.decode(coded))


FIRST_CALL = """
import torch, codecllm_ops as ops
ops.use_backend("cuda")
w = torch.randn(1024, 4096).bfloat16()
coded = ops.encode(w, allow_stored=False, coding="{coding}").to("cuda")
coded.prepare()
x = torch.randn(9, 4096, dtype=torch.bfloat16, device="cuda")
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    out, dense = ops.decode_linear(x, coded), ops.decode(coded)
graph.replay()
assert torch.equal(out, ops.decode_linear(x, coded)) and torch.equal(dense.cpu(), w)
"""


@every_coding
def test_a_graph_may_be_captured_in_the_first_call_of_a_process(coding):
    if ops.backend_info()["cuda"] != "cuda":
        pytest.skip("Triton compiles in a first call")
    script = FIRST_CALL.format(coding=coding)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_checking_is_refused_while_a_graph_is_captured():
    if ops.backend_info()["cuda"] != "cuda":
        pytest.skip("csrc/torch/ops_cuda.cpp")
    coded = on_gpu(weights(64, 256, BF16))
    x = torch.randn(1, 256, dtype=torch.bfloat16, device="cuda")
    ops.decode_linear(x, coded)
    before = ops.set_check(True)
    try:
        with (
            pytest.raises(RuntimeError, match="waits for the GPU"),
            torch.cuda.graph(torch.cuda.CUDAGraph()),
        ):
            ops.decode_linear(x, coded)
    finally:
        ops.set_check(before)


@every_coding
def test_compile_with_cuda_graphs(coding):
    coded = on_gpu(weights(512, 512, BF16), coding=coding)
    step = torch.compile(
        lambda x: ops.decode_linear(torch.relu(ops.decode_linear(x, coded)), coded),
        mode="reduce-overhead",
    )
    x = torch.randn(2, 512, dtype=torch.bfloat16, device="cuda")
    expected = ops.decode_linear(torch.relu(ops.decode_linear(x, coded)), coded)
    for _ in range(4):
        assert torch.equal(step(x), expected)


@every_coding
def test_streams_and_threads(coding):
    coded = [on_gpu(weights(1024, 4096, BF16, seed), coding=coding) for seed in range(2)]
    x = torch.randn(64, 4096, dtype=torch.bfloat16, device="cuda")
    expected = [ops.decode_linear(x, c) for c in coded]
    torch.cuda.synchronize()
    wrong = []

    def work(i):
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(200):
                if not torch.equal(ops.decode_linear(x, coded[i]), expected[i]):
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_triton_measures_nothing_while_a_graph_is_captured(monkeypatch):
    if ops.backend_info()["cuda"] != "triton":
        pytest.skip("Triton's choices")
    from codecllm_ops.ops.backends.triton import tune

    coded = on_gpu(weights(768, 1024, BF16))
    x = torch.randn(1, 1024, dtype=torch.bfloat16, device="cuda")
    monkeypatch.setenv("CODECLLM_AUTOTUNE", "0")
    expected = ops.decode_linear(x, coded)  # compiles
    monkeypatch.delenv("CODECLLM_AUTOTUNE")
    monkeypatch.setattr(tune.triton.testing, "do_bench", lambda *a, **k: pytest.fail("measured"))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ops.decode_linear(x, coded)
    graph.replay()
    assert torch.equal(out, expected)


# ---- bad input ----------------------------------------------------------------------------------


def damaged(coded):
    stream = coded.stream.clone()
    stream[100] ^= 0x10
    return ops.CodedMatrix(stream, coded.raw, coded.index, coded.head)


def test_damage_gives_nan():
    bad = damaged(on_gpu(weights(64, 512, BF16)))
    x = torch.ones(1, 512, dtype=torch.bfloat16, device="cuda")
    out = ops.decode_linear(x, bad)
    assert out[:, :16].isnan().all() and not out[:, 16:].isnan().any()
    assert ops.decode(bad)[:16].isnan().all()


@pytest.mark.usefixtures("checked")
def test_damage_raises_when_asked():
    bad = damaged(on_gpu(weights(64, 512, BF16)))
    x = torch.ones(1, 512, dtype=torch.bfloat16, device="cuda")
    for call in (lambda: ops.decode(bad), lambda: ops.decode_linear(x, bad)):
        with pytest.raises(ops.CorruptStreamError, match="tile 0"):
            call()


def test_tensors_in_the_wrong_place():
    w = weights(64, 512, BF16)
    here, there = ops.encode(w), on_gpu(w)
    x = torch.ones(2, 512, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="decode_linear"):
        ops.decode_linear(x, there)
    with pytest.raises(RuntimeError, match="decode_linear"):
        ops.decode_linear(x.cuda(), here)
    with pytest.raises(RuntimeError, match=r"Double|float64"):
        ops.decode_linear(x.double().cuda(), there)
    assert ops.decode_linear(x[:0].cuda(), there).shape == (0, 64)


def test_misaligned_and_strided_arguments():
    w = weights(64, 520, BF16)
    coded = on_gpu(w)
    shifted = torch.empty(coded.stream.numel() + 1, dtype=torch.uint8, device="cuda")[1:]
    shifted.copy_(coded.stream)
    coded = ops.CodedMatrix(shifted, coded.raw, coded.index, coded.head)
    x = torch.randn(4, 1040, dtype=torch.bfloat16)[:, ::2]
    assert_linear_close(ops.decode_linear(x.cuda(), coded).cpu(), x, w)
    assert_linear_close(ops.decode_linear(x[:, 1:519:1].cuda(), on_gpu(w[:, 1:519])).cpu(),
                        x[:, 1:519], w[:, 1:519])  # fmt: skip
