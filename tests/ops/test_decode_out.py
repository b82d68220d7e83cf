"""decode into a given buffer."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

import codecllm_ops as ops
from cases import (
    BACKENDS,
    EMPTY_SHAPES,
    every_backend,
    random_words,
    running,
    to_tensor,
    weights,
)
from codecllm_ops.format import FORMATS

BF16 = FORMATS["bf16"]


def poisoned(shape, dtype) -> torch.Tensor:
    """A buffer in which every byte must be written to look right."""
    out = torch.empty(shape, dtype=dtype)
    out.view(torch.uint8).fill_(0xA5) if out.numel() else None
    return out


@every_backend
@pytest.mark.parametrize(
    ("coding", "fmt"), [*(("rans", f) for f in FORMATS.values()), ("fixed", BF16)],
    ids=lambda v: getattr(v, "name", v),
)  # fmt: skip
def test_the_words_are_written_into_the_buffer(coding, fmt, backend):
    w = weights(33, 70, fmt)
    coded = ops.encode(w, tile_cols=32, allow_stored=False, coding=coding)
    out = poisoned(w.shape, w.dtype)
    with running(backend):
        assert ops.decode(coded, out=out) is out
    assert torch.equal(out.view(torch.uint8), w.view(torch.uint8))


# Pure torch is slow and makes many.
@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
def test_no_second_buffer_where_the_dtype_is_that_of_the_weights(backend, monkeypatch):
    w = weights(33, 70, BF16)
    coded = ops.encode(w, tile_cols=32, allow_stored=False).prepare()
    out = poisoned(w.shape, w.dtype)
    made = []
    inner = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda t, *a, **k: made.append(a) or inner(t, *a, **k)
    )
    with running(backend):
        ops.decode(coded, out=out)
    assert torch.equal(out, w)
    assert all(torch.empty(*args, device="meta").numel() < w.numel() for args in made)


@every_backend
@pytest.mark.parametrize("per", ["row", "tensor"])
def test_scaled_and_cast_like_decode(backend, per):
    q, scale = ops.quantize_int8(weights(33, 70, BF16), per)
    coded = ops.encode(q, scale=scale, allow_stored=False)
    with running(backend):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            out = poisoned(q.shape, dtype)
            assert torch.equal(ops.decode(coded, out=out), ops.decode(coded, dtype))


def test_a_part_of_a_larger_buffer():
    w = weights(33, 70, BF16)
    coded = ops.encode(w, allow_stored=False)
    arena = torch.zeros(40, 100, dtype=torch.bfloat16)
    ops.decode(coded, out=arena[3:36, 10:80])  # rows are not contiguous
    assert torch.equal(arena[3:36, 10:80], w)
    arena[3:36, 10:80] = 0
    assert not arena.any()


def test_stored_and_empty_matrices():
    w = to_tensor(random_words(33, 64, BF16), BF16)
    stored = ops.encode(w)
    out = poisoned(w.shape, w.dtype)
    ops.decode(stored, out=out)
    assert stored.coding == "stored" and torch.equal(out.view(torch.int16), w.view(torch.int16))
    for shape in EMPTY_SHAPES:
        empty = ops.encode(weights(*shape, BF16), allow_stored=False)
        assert ops.decode(empty, out=poisoned(shape, torch.bfloat16)).shape == shape


def test_a_buffer_that_does_not_fit_is_refused():
    coded = ops.encode(weights(33, 70, BF16), allow_stored=False)
    with pytest.raises(RuntimeError, match=r"out is \[33, 71\], the matrix \[33, 70\]"):
        ops.decode(coded, out=torch.empty(33, 71, dtype=torch.bfloat16))
    with pytest.raises(RuntimeError, match="out is on meta"):
        ops.decode(coded, out=torch.empty(33, 70, dtype=torch.bfloat16, device="meta"))
    with pytest.raises(ValueError, match="dtype"):
        ops.decode(coded, torch.float32, out=torch.empty(33, 70, dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_opcheck(dtype):
    coded = ops.encode(weights(33, 64, BF16), allow_stored=False)
    out = torch.empty(33, 64, dtype=dtype)
    tests = ("test_schema", "test_faketensor")
    opcheck(torch.ops.codecllm.decode.out, tuple(coded.operand), {"out": out}, test_utils=tests)


def test_compiles():
    coded = ops.encode(weights(33, 64, BF16), allow_stored=False).prepare()
    out = poisoned((33, 64), torch.bfloat16)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def fill(buffer):
        torch.ops.codecllm.decode.out(*coded.operand, out=buffer)
        return buffer + 1

    assert torch.equal(fill(out), ops.decode(coded) + 1)
    assert torch.equal(out, ops.decode(coded))
