"""What kernels, plan and launch take without being changed: a format without raw bits."""

from __future__ import annotations

import pytest
import torch

import codecllm_ops as ops
from assertions import assert_linear_close
from codecllm_ops.codec.rans import reference
from codecllm_ops.format import weight_formats
from cuda import emulated
from cuda.emulated import GOOD


@pytest.mark.parametrize("predictor", [0, 1])
def test_a_format_without_raw_bits(monkeypatch, predictor):
    whole = weight_formats.WeightFormat(201, "whole_int8", torch.int8, 8, 0, 8, flip=0x80)
    assert not whole.planes
    monkeypatch.setitem(weight_formats.FORMATS, "whole_int8", whole)
    w = torch.randn(40, 200).mul(9).round().clamp(-128, 127).to(torch.int8)
    head, stream, raw, index = reference.encode(
        w.view(torch.uint8).numpy(), whole, tile_cols=64, predictor=predictor
    )
    assert not raw
    coded = ops.CodedMatrix.build(head, stream, raw, index, "cpu")
    words, status = emulated.decode(coded)
    assert status == GOOD
    assert torch.equal(words, w)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        x = torch.randn(3, 200).to(dtype)
        out, status = emulated.linear(x, coded)
        assert status == GOOD
        assert_linear_close(out, x, w)
