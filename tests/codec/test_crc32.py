"""The checksum of compiled kernels is zlib's, on every instruction set."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch

import codecllm_ops as ops
from cases import ISAS, needs_cpu_kernels, running
from codecllm_ops.codec.assemble import crc32

every_isa = pytest.mark.parametrize("isa", ISAS)
LARGE = (1 << 20) + 12345  # several threads


def some_bytes(n: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(n).integers(0, 256, n, dtype=np.uint8))


@needs_cpu_kernels
@every_isa
def test_every_length_at_odd_addresses(isa):
    buffer = some_bytes(1400)
    with running(isa):
        for offset in (0, 1, 3, 8, 63):
            for n in [*range(301), 511, 512, 513, 1023, 1024, 1025, 1300]:
                part = buffer[offset : offset + n]
                assert torch.ops.codecllm._crc32(part) == zlib.crc32(part.numpy()), (n, offset)


@needs_cpu_kernels
@every_isa
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_parts_of_several_threads_are_combined(isa, threads):
    buffer, before = some_bytes(LARGE), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with running(isa):
            for n in (LARGE, LARGE - 1, 1 << 19, (1 << 19) - 1):
                assert torch.ops.codecllm._crc32(buffer[:n]) == zlib.crc32(buffer[:n].numpy())
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
@pytest.mark.parametrize("n", [0, 1, 1000])
def test_of_tensors(dtype, n):
    t = some_bytes(n).to(dtype)
    assert crc32(t) == zlib.crc32(t.numpy().tobytes())
    strided = t[::2]
    assert crc32(strided) == zlib.crc32(strided.numpy().tobytes())


@needs_cpu_kernels
def test_bytes_only():
    with pytest.raises(RuntimeError, match="bytes is Int"):
        torch.ops.codecllm._crc32(torch.zeros(4, dtype=torch.int32))
    with pytest.raises(RuntimeError, match="not contiguous"):
        torch.ops.codecllm._crc32(some_bytes(8)[::2])


@pytest.mark.parametrize("backend", ["reference", *ISAS[:1]])
def test_heads_hold_it(backend):
    with running(backend):
        coded = ops.encode(torch.zeros(16, 64, dtype=torch.bfloat16), allow_stored=False).check()
    info = coded.info
    found = (info.crc_stream, info.crc_raw, info.crc_index)
    assert found == tuple(zlib.crc32(t.numpy().tobytes()) for t in coded.tensors()[:3])
