"""All backends give the same bits: reference codec, pure torch, every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import codecllm_ops as ops
from assertions import assert_same_coded, assert_same_words
from cases import (
    ALL_FORMATS,
    BACKENDS,
    CONTENTS,
    EMPTY_SHAPES,
    INTERPRETING,
    SHAPES,
    all_patterns,
    every_backend,
    every_content,
    every_format,
    needs_cpu_kernels,
    random_words,
    running,
    to_tensor,
    weights,
)
from codecllm_ops import CodedMatrix
from codecllm_ops.codec.rans import reference
from codecllm_ops.format import FORMATS, scales

ENCODERS = ["reference", pytest.param("compiled", marks=needs_cpu_kernels)]


def encode_with(encoder: str, w: torch.Tensor, **options) -> CodedMatrix:
    options = {"tile_cols": 32, "allow_stored": False, **options}
    if encoder == "reference":
        with running("reference"):
            return ops.encode(w, **options)
    return ops.encode(w, **options)


def by_the_reference_codec(words, fmt, *, tile_cols, scale_bits=11, predictor=0) -> CodedMatrix:
    options = {"tile_cols": tile_cols, "scale_bits": scale_bits, "predictor": predictor}
    return CodedMatrix.build(*reference.encode(words, fmt, **options))


# ---- encoders -----------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ENCODERS)
@every_content
@every_format
def test_encoder_writes_the_bytes_of_the_reference_codec(fmt, content, encoder):
    for shape in [*SHAPES, *EMPTY_SHAPES]:
        words = CONTENTS[content](*shape, fmt)
        for predictor in (0, 1):
            expected = by_the_reference_codec(words, fmt, tile_cols=32, predictor=predictor)
            name = ("none", "left")[predictor]
            coded = encode_with(encoder, to_tensor(words, fmt), predictor=name)
            assert_same_coded(coded, expected)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("scale_bits", [8, 9, 10, 11])
@pytest.mark.parametrize("tile_cols", [16, 48, 1024])
def test_encoder_follows_every_parameter(encoder, scale_bits, tile_cols):
    for fmt in (FORMATS["bf16"], FORMATS["int8"]):
        words = CONTENTS["escapes_at_borders"](33, 100, fmt)
        options = {"tile_cols": tile_cols, "scale_bits": scale_bits}
        expected = by_the_reference_codec(words, fmt, **options)
        assert_same_coded(encode_with(encoder, to_tensor(words, fmt), **options), expected)


@needs_cpu_kernels
@every_format
def test_encoders_agree_on_a_large_matrix(fmt):
    w = weights(200, 1500, fmt)
    options = {"tile_cols": None, "allow_stored": True, "predictor": "auto"}
    assert_same_coded(encode_with("compiled", w, **options), encode_with("reference", w, **options))


def test_encoder_takes_any_strides():
    w = weights(64, 48, FORMATS["bf16"])
    for view in (w.T, w[::3, 1::2], w.flip(0)):
        assert_same_coded(ops.encode(view), ops.encode(view.contiguous()))


def test_encoding_a_parameter_keeps_no_graph():
    w = torch.nn.Parameter(weights(16, 16, FORMATS["bf16"]))
    assert not any(t.requires_grad for t in ops.encode(w, allow_stored=False).tensors())


# ---- decoders -----------------------------------------------------------------------------------


@every_backend
@every_content
@every_format
def test_decode(fmt, content, backend):
    for shape in [*SHAPES, *EMPTY_SHAPES]:
        w = to_tensor(CONTENTS[content](*shape, fmt), fmt)
        for predictor in ("none", "left"):
            coded = ops.encode(w, tile_cols=32, predictor=predictor, allow_stored=False)
            with running(backend):
                assert_same_words(ops.decode(coded), w)


@every_backend
@every_format
def test_decode_every_pattern(fmt, backend):
    w = to_tensor(all_patterns(fmt), fmt)
    for predictor in ("none", "left"):
        coded = ops.encode(w, tile_cols=80, predictor=predictor, allow_stored=False)
        with running(backend):
            assert_same_words(ops.decode(coded), w)


@every_backend
@pytest.mark.parametrize("scale_bits", [8, 9, 10, 11])
@pytest.mark.parametrize("tile_cols", [16, 48, 16384])
def test_decode_with_every_parameter(backend, scale_bits, tile_cols):
    for fmt in (FORMATS["bf16"], FORMATS["fp16"], FORMATS["int8"]):
        w = to_tensor(CONTENTS["escapes_at_borders"](50, 100, fmt), fmt)
        coded = ops.encode(w, tile_cols=tile_cols, scale_bits=scale_bits, allow_stored=False)
        with running(backend):
            assert_same_words(ops.decode(coded), w)


@every_backend
@every_format
def test_decode_many_tiles(fmt, backend):
    """Even and odd numbers of tile rows, several tile columns, a narrow last one."""
    for rows in (16 * 7, 16 * 8 + 1):
        w = weights(rows, 300 if INTERPRETING else 700, fmt)
        coded = ops.encode(w, tile_cols=128, allow_stored=False)
        with running(backend):
            assert_same_words(ops.decode(coded), w)


@every_backend
@every_content
@every_format
def test_decode_rows(fmt, content, backend):
    words = CONTENTS[content](37, 70, fmt)
    w = to_tensor(words, fmt)
    ids = torch.tensor([[36, 0, 15], [16, 16, 31]])
    for predictor in ("none", "left"):
        coded = ops.encode(w, tile_cols=32, predictor=predictor, allow_stored=False)
        with running(backend):
            rows = ops.decode_rows(ids, coded)
            assert rows.shape == (2, 3, 70)
            assert_same_words(rows.reshape(6, 70), w[ids.reshape(-1)])
            assert_same_words(ops.decode_rows(torch.arange(37), coded), w)


@every_backend
def test_decode_rows_takes_any_ids(backend):
    w = weights(40, 33, FORMATS["bf16"])
    coded = ops.encode(w, allow_stored=False)
    with running(backend):
        for ids in (
            torch.tensor(5),
            torch.zeros(0, dtype=torch.int64),
            torch.zeros((3, 0), dtype=torch.int64),
            torch.tensor([39, 0], dtype=torch.int32),
            torch.arange(40).view(8, 5).T,
        ):
            assert_same_words(ops.decode_rows(ids, coded), w[ids.long()])


@settings(max_examples=400)
@given(
    fmt=st.sampled_from(ALL_FORMATS),
    rows=st.integers(1, 70),
    cols=st.integers(1, 150),
    tile_cols=st.integers(1, 12).map(lambda n: 16 * n),
    content=st.sampled_from(list(CONTENTS)),
    scale_bits=st.integers(8, 11),
    predictor=st.sampled_from(["none", "left"]),
    backend=st.sampled_from(BACKENDS),
)
def test_any_matrix_with_any_parameters(fmt, rows, cols, content, backend, **options):
    w = to_tensor(CONTENTS[content](rows, cols, fmt), fmt)
    coded = ops.encode(w, allow_stored=False, **options).check()
    with running(backend):
        assert_same_words(ops.decode(coded), w)
        assert_same_words(ops.decode_rows(torch.tensor([rows - 1]), coded), w[-1:])


@every_backend
def test_decode_stored(backend):
    for fmt in FORMATS.values():
        w = to_tensor(random_words(5, 7, fmt), fmt)
        coded = ops.encode(w)
        assert coded.info.stored
        with running(backend):
            assert_same_words(ops.decode(coded), w)
            ids = torch.tensor([4, 0, 4])
            assert_same_words(ops.decode_rows(ids, coded), w[ids])


@every_backend
def test_decode_slices_and_concatenations(backend):
    for fmt in FORMATS.values():
        parts = [weights(r, 100, fmt, seed=r) for r in (17, 0, 33, 16, 1)]
        coded = [ops.encode(p, tile_cols=32, allow_stored=False) for p in parts]
        matrix, w = CodedMatrix.concat_rows(coded), torch.cat(parts)
        part = matrix.slice(slice(17, 66), slice(32, 96))
        ids = torch.tensor([16, 17, 49, 50, 66, 65, 0])
        with running(backend):
            assert_same_words(ops.decode(matrix), w)
            assert_same_words(ops.decode_rows(ids, matrix), w[ids])
            assert_same_words(ops.decode(part), w[17:66, 32:96])


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@every_format
def test_decode_to_another_dtype_is_one_rounding(fmt, dtype, backend):
    w = weights(21, 50, fmt)
    coded = ops.encode(w, allow_stored=False)
    with running(backend):
        assert_same_words(ops.decode(coded, dtype), w.to(dtype))
        assert_same_words(ops.decode_rows(torch.tensor([3]), coded, dtype), w[3:4].to(dtype))


@every_backend
@pytest.mark.parametrize("per", ["row", "tensor"])
def test_decode_applies_scales_in_float32(per, backend):
    q, scale = ops.quantize_int8(
        torch.randn(21, 50, generator=torch.Generator().manual_seed(0)), per
    )
    coded = ops.encode(q, scale=scale, allow_stored=False)
    expected = q.float() * (scale[:, None] if per == "row" else scale)
    ids = torch.tensor([20, 3])
    with running(backend):
        assert_same_words(ops.decode(coded), q)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert_same_words(ops.decode(coded, dtype), expected.to(dtype))
            assert_same_words(ops.decode_rows(ids, coded, dtype), expected[ids].to(dtype))


def test_kernels_agree_on_what_is_damaged():
    """The same bytes are corrupt, or decode to the same wrong weights, on all backends."""
    fmt = FORMATS["bf16"]
    coded = ops.encode(weights(32, 64, fmt), tile_cols=32, allow_stored=False)
    rng = np.random.default_rng(0)
    outcomes = {"corrupt": 0, "decoded": 0}
    for _ in range(60):
        stream = coded.stream.clone()
        stream[int(rng.integers(stream.numel() - 16))] ^= int(rng.integers(1, 256))
        damaged = CodedMatrix(stream, coded.raw, coded.index, coded.head)
        results = []
        for backend in BACKENDS:
            with running(backend):
                try:
                    results.append(ops.decode(damaged))
                except ops.CorruptStreamError:
                    results.append(None)
        outcomes["corrupt" if results[0] is None else "decoded"] += 1
        for other in results[1:]:
            assert (other is None) == (results[0] is None)
            if other is not None:
                assert_same_words(other, results[0])
    assert outcomes["corrupt"] > 30 and outcomes["decoded"] > 0


def test_scaling_in_blocks_changes_nothing(monkeypatch):
    q, scale = ops.quantize_int8(torch.randn(70, 33))
    for factor in (scale, scale[:1]):
        coded = ops.encode(q, scale=factor)
        whole = ops.decode(coded, torch.bfloat16)
        monkeypatch.setattr(scales, "_AT_ONCE", 100)
        assert torch.equal(ops.decode(coded, torch.bfloat16), whole)
        monkeypatch.undo()
