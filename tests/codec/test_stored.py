"""A matrix that does not shrink is stored, says so, and costs 64 bytes."""

from __future__ import annotations

import pytest
import torch

import codecllm_ops as ops
from assertions import assert_same_words
from cases import (
    EMPTY_SHAPES,
    all_patterns,
    every_format,
    random_words,
    to_tensor,
    to_words,
    weights,
)
from codecllm_ops.format import FORMATS

HEADER = 64


@every_format
def test_incompressible_matrix_is_stored(fmt):
    w = to_tensor(random_words(256, 1024, fmt), fmt)
    coded = ops.encode(w).check()
    assert coded.info.stored
    assert coded.nbytes == w.numel() * w.element_size() + HEADER
    assert bytes(coded.stream.numpy()) == to_words(w).tobytes()
    assert_same_words(ops.decode(coded), w)


@pytest.mark.parametrize("name", ["bf16", "fp32", "fp8_e4m3", "int8"])
def test_coding_the_incompressible_costs_at_most_two_percent(name):
    w = to_tensor(random_words(256, 1024, FORMATS[name]), FORMATS[name])
    coded = ops.encode(w, allow_stored=False).check()
    assert not coded.info.stored
    assert coded.nbytes <= 1.02 * w.numel() * w.element_size()
    assert_same_words(ops.decode(coded), w)


@pytest.mark.parametrize("name", ["fp16", "fp8_e5m2"])
def test_five_incompressible_bits_cost_what_their_escapes_cost(name):
    # 31 of 32 values are in the window: 1 pair in 16 is an escape of 4 + 16 bits instead of 10.
    w = to_tensor(random_words(1024, 1024, FORMATS[name]), FORMATS[name])
    extra = 8 * ops.encode(w, allow_stored=False).nbytes / w.numel() - FORMATS[name].word_bits
    assert extra <= (1 - (31 / 32) ** 2) * (4 + 16 - 10) / 2 + 0.15


@every_format
def test_model_weights_are_not_stored(fmt):
    w = weights(256, 1024, fmt)
    assert not ops.encode(w).info.stored


@every_format
def test_stored_keeps_every_pattern(fmt):
    w = to_tensor(all_patterns(fmt), fmt)
    coded = ops.encode(w)
    assert coded.info.stored
    assert_same_words(ops.decode(coded), w)


@pytest.mark.parametrize("shape", EMPTY_SHAPES, ids=str)
@pytest.mark.parametrize("allow_stored", [True, False])
@every_format
def test_empty_matrix(fmt, shape, allow_stored):
    w = weights(*shape, fmt)
    coded = ops.encode(w, allow_stored=allow_stored).check()
    assert (coded.shape, coded.info.stored) == (shape, allow_stored)
    assert_same_words(ops.decode(coded), w)


def test_stored_words_are_a_copy():
    w = to_tensor(random_words(20, 64, FORMATS["bf16"]), FORMATS["bf16"])
    original = w.clone()
    coded = ops.encode(w)
    w.zero_()
    assert_same_words(ops.decode(coded), original)
    ops.decode(coded).zero_()
    assert_same_words(ops.decode(coded), original)


def test_scales_of_a_stored_matrix_are_kept():
    fmt = FORMATS["int8"]
    w, scale = to_tensor(random_words(20, 64, fmt), fmt), torch.rand(20)
    coded = ops.encode(w, scale=scale).check()
    assert coded.info.stored
    assert torch.equal(coded.scale, scale)
    assert torch.equal(ops.decode(coded, torch.float32), w.float() * scale[:, None])
