"""Predictor `left` pays on ramps and nowhere else; `auto` finds out by measured size."""

from __future__ import annotations

import pytest
import torch

import codecllm_ops as ops
from assertions import assert_same_coded, assert_same_words
from cases import CONTENTS, every_content, every_format, to_tensor, weights
from codecllm_ops.format import FORMATS


@every_content
@every_format
def test_left_loses_no_bit(fmt, content):
    w = to_tensor(CONTENTS[content](21, 50, fmt), fmt)
    coded = ops.encode(w, predictor="left", tile_cols=32, allow_stored=False).check()
    assert coded.info.predictor == 1
    assert_same_words(ops.decode(coded), w)


@pytest.mark.parametrize(("content", "expected"), [("ramp", "left"), ("normal", "none")])
@every_format
def test_auto_takes_the_smaller(fmt, content, expected):
    w = to_tensor(CONTENTS[content](64, 256, fmt), fmt)
    sizes = {p: ops.encode(w, predictor=p, allow_stored=False) for p in ("none", "left", "auto")}
    assert_same_coded(sizes["auto"], sizes[expected])
    assert sizes["auto"].nbytes == min(c.nbytes for c in sizes.values())
    assert sizes["none"].nbytes != sizes["left"].nbytes


def test_left_makes_a_ramp_nearly_free():
    fmt = FORMATS["int8"]
    w = to_tensor(CONTENTS["ramp"](256, 1024, fmt), fmt)
    # Four raw bits, and the residual is always the same: only states, lengths and table are left.
    # Without the predictor, pairs take 8 of 256 values: 1.5 bits per weight more.
    left, none = (8 * ops.encode(w, predictor=p).nbytes / w.numel() for p in ("left", "none"))
    assert left < 4.15
    assert none - left == pytest.approx(1.5, abs=0.05)


def test_left_starts_again_in_every_tile():
    """Decoding a tile needs no other: its columns can be cut out."""
    w = weights(16, 96, FORMATS["int8"])
    coded = ops.encode(w, predictor="left", tile_cols=32, allow_stored=False)
    assert torch.equal(ops.decode(coded.slice(cols=slice(64, 96))), w[:, 64:])


def test_unknown_predictor_is_refused():
    with pytest.raises(ValueError, match="predictor 'up' is not one of none, left, auto"):
        ops.encode(weights(16, 16, FORMATS["int8"]), predictor="up")
