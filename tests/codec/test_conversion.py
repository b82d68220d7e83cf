"""coded.to(coding): the same words in other tensors, deterministically."""

from __future__ import annotations

import pytest
import torch

import codecllm_ops as ops
from cases import every_backend, every_format, random_words, running, to_tensor, weights
from codecllm_ops import CodedMatrix, CorruptStreamError
from codecllm_ops.codec import codings
from codecllm_ops.format import FORMATS, layout_word

BF16 = FORMATS["bf16"]


def test_every_coding_has_a_number_and_a_room():
    assert codings.NAMES == layout_word.CODINGS
    assert all(codings.room(name).name == name for name in codings.NAMES)


@every_format
@pytest.mark.parametrize("shape", [(33, 70), (1, 1), (0, 16), (16, 0)], ids=str)
def test_there_and_back_gives_the_bytes_of_encoding(fmt, shape):
    w = weights(*shape, fmt)
    coded = ops.encode(w, allow_stored=False)
    stored = coded.to("stored")
    assert (coded.coding, stored.coding) == ("rans", "stored")
    assert torch.equal(ops.decode(stored.check()).view(torch.uint8), w.view(torch.uint8))
    assert stored.to("rans") == coded


def test_storing_gives_the_bytes_that_encode_stores():
    w = to_tensor(random_words(33, 64, BF16), BF16)
    stored = ops.encode(w)
    assert stored.coding == "stored"
    assert stored.to("rans").to("stored") == stored


@pytest.mark.parametrize("per", ["row", "tensor"])
def test_scales_come_along(per):
    q, scale = ops.quantize_int8(weights(33, 70, BF16), per)
    coded = ops.encode(q, scale=scale, allow_stored=False)
    stored = coded.to("stored").check()
    assert torch.equal(ops.decode(stored, torch.float32), ops.decode(coded, torch.float32))
    assert stored.to("rans") == coded


def test_several_segments_become_one():
    parts = [ops.encode(weights(16, 32, BF16, seed), allow_stored=False) for seed in (0, 1)]
    joined = CodedMatrix.concat_rows(parts)
    w = ops.decode(joined)
    assert joined.to("stored").to("rans") == ops.encode(w, allow_stored=False)


def test_options_are_those_of_the_coding():
    stored = ops.encode(weights(33, 64, BF16), allow_stored=False).to("stored")
    assert stored.to("rans", tile_cols=32).info.tile_cols == 32
    with pytest.raises(ValueError, match="takes no options, not tile_cols"):
        stored.to("rans").to("stored", tile_cols=32)
    with pytest.raises(ValueError, match="belong to a coding"):
        stored.to("cpu", tile_cols=32)


def test_nothing_to_do_gives_the_matrix_itself():
    coded = ops.encode(weights(33, 64, BF16), allow_stored=False)
    assert coded.to("rans") is coded


def test_a_matrix_stays_prepared():
    coded = ops.encode(weights(33, 64, BF16), allow_stored=False)
    assert coded.prepared and coded.to("stored").prepared


@pytest.mark.parametrize("make", [lambda c: c, lambda c: c.to("stored"), lambda c: c.to("rans")])
def test_what_is_made_in_inference_mode_serves_training(make):
    with torch.inference_mode():
        coded = make(ops.encode(weights(32, 64, BF16)))
    x = torch.randn(2, 64, requires_grad=True)
    ops.decode_linear(x, coded).sum().backward()
    assert torch.allclose(x.grad, ops.decode(coded).float().sum(0).expand(2, -1), atol=1e-4)


@every_backend
@pytest.mark.parametrize("source", ["rans", "fixed"])
@pytest.mark.parametrize("target", ["rans", "fixed", "stored"])
def test_a_corrupt_matrix_is_not_converted(backend, source, target):
    """The compiled kernels say so in text only; what arrives is the error of the other ops."""
    coded = ops.encode(weights(33, 70, BF16), coding=source, allow_stored=False)
    index = coded.index.clone()
    if source == "rans":
        index[1] |= 5 << 16  # another segment
    else:
        index += 1 << 20  # a list beyond the one that is there
    bad = CodedMatrix(coded.stream, coded.raw, index, coded.head)
    options = {"tile_cols": 32} if target == source else {}
    with running(backend), pytest.raises(CorruptStreamError):
        bad.to(target, **options)
