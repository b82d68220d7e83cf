"""Results do not depend on the number of threads, nor on who else is calling."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import codecllm_ops as ops
from assertions import assert_same_coded, assert_same_words
from cases import ISAS, every_format, needs_cpu_kernels, weights
from codecllm_ops import CodedMatrix
from codecllm_ops.format import FORMATS

pytestmark = needs_cpu_kernels
every_isa = pytest.mark.parametrize("isa", ISAS)


@pytest.fixture
def use_isa():
    yield ops.select_cpu_isa
    ops.select_cpu_isa()


@pytest.mark.parametrize("rows", [5, 16 * 5, 16 * 9 + 1])
@every_isa
@every_format
def test_outputs_are_equal_with_any_number_of_threads(fmt, isa, rows, threads, use_isa):
    use_isa(isa)
    w = weights(rows, 300, fmt)
    x = torch.randn(9, 300, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(rows).flip(0)
    results = []
    for n in (1, 2, 3, 16):
        threads(n)
        coded = ops.encode(w, tile_cols=64, allow_stored=False)
        outputs = [
            ops.decode_linear(x[:m].to(d), coded)
            for m in (1, 9)
            for d in (torch.float32, torch.bfloat16)
        ]
        results.append((coded, ops.decode(coded), ops.decode_rows(ids, coded), *outputs))
    for coded, decoded, looked_up, *outputs in results[1:]:
        assert_same_coded(coded, results[0][0])
        assert_same_words(decoded, w)
        assert_same_words(looked_up, w[ids])
        for y, expected in zip(outputs, results[0][3:], strict=True):
            assert_same_words(y, expected)


def test_callers_on_several_threads_do_not_meet(threads):
    """Every caller has scratch of its own: four of them, each with its own matrix."""
    threads(2)
    jobs = []
    for seed, fmt in enumerate(
        [FORMATS["bf16"], FORMATS["fp16"], FORMATS["int8"], FORMATS["fp32"]]
    ):
        w = weights(100, 300, fmt, seed)
        x = torch.randn(3, 300, generator=torch.Generator().manual_seed(seed)).bfloat16()
        coded = ops.encode(w, tile_cols=64, allow_stored=False)
        jobs.append((w, x, coded, ops.decode_linear(x, coded)))

    def work(job) -> None:
        w, x, coded, expected = job
        for _ in range(20):
            assert_same_words(ops.decode(coded), w)
            assert_same_words(ops.decode_linear(x, coded), expected)
            assert_same_coded(ops.encode(w, tile_cols=64, allow_stored=False), coded)

    with ThreadPoolExecutor(4) as pool:
        for result in [pool.submit(work, job) for job in jobs]:
            result.result()


@pytest.mark.parametrize("tile_row", [0, 3, 8])
def test_corruption_is_found_by_whichever_thread_meets_it(tile_row, threads):
    threads(2)
    coded = ops.encode(weights(16 * 9, 64, FORMATS["bf16"]), tile_cols=64, allow_stored=False)
    index = coded.index.clone()
    index.view(9, -1)[tile_row, 1] -= 1  # every lane of the tile ends a word too early
    damaged = CodedMatrix(coded.stream, coded.raw, index, coded.head)
    x = torch.ones(1, 64)
    for call in (lambda: ops.decode(damaged), lambda: ops.decode_linear(x, damaged)):
        with pytest.raises(ops.CorruptStreamError, match="corrupt coded plane: tile"):
            call()
