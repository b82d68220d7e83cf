"""Codec and CompressedTensor."""

from __future__ import annotations

import pytest
import torch

import codecllm
import codecllm_ops

LOSSLESS = [
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


@pytest.mark.parametrize("dtype", LOSSLESS)
@pytest.mark.parametrize("shape", [(1, 1), (17, 33), (40, 3, 5), (7,), (0, 8), ()])
def test_any_shape_comes_back_bit_by_bit(dtype, shape):
    torch.manual_seed(0)
    tensor = (torch.randn(shape) / 50).to(dtype)
    coded = codecllm.load_codec().encode(tensor)
    back = coded.decompress()
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(back.view(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_ratio_and_rate_count_everything():
    torch.manual_seed(0)
    coded = codecllm.CompressedTensor(None, (torch.randn(512, 512) / 50).bfloat16())
    assert coded.ratio == pytest.approx(2 * 512 * 512 / coded.nbytes)
    assert coded.bits_per_weight == pytest.approx(16 / coded.ratio)
    assert coded.ratio > 1.45


@pytest.mark.parametrize("format", ["int8", "int8-tensor"])
def test_int8_formats(format):
    torch.manual_seed(0)
    tensor = torch.randn(64, 64)
    coded = codecllm.CompressedTensor(None, tensor, format)
    assert coded.decompress().dtype == torch.float32
    assert (coded.decompress() - tensor).abs().max() <= tensor.abs().max() / 127 * 0.5001


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="lossless, int8"):
        codecllm.CompressedTensor(None, torch.zeros(2, 2), "zip")
    with pytest.raises(RuntimeError, match="does not run here"):
        codecllm.load_codec("abacus")
    with pytest.raises(codecllm.UnsupportedFormatError):
        codecllm.CompressedTensor(None, torch.zeros(2, 2, dtype=torch.int32))


@pytest.mark.parametrize(
    "option",
    [{"tile_cols": 0}, {"tile_cols": 24}, {"scale_bits": 12}, {"predictor": "up"}],
    ids=str,
)
def test_options_are_checked_when_the_codec_is_made(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        codecllm.load_codec(**option)
    with pytest.raises(ValueError, match=next(iter(option))):
        codecllm.load_codec().encode(torch.zeros(16, 16), **option)


def test_info_names_the_backend():
    assert codecllm.load_codec().info()["cpu"]


def test_a_backend_is_a_demand_wherever_it_is_said():
    for make in (codecllm.Codec, codecllm.load_codec):
        with pytest.raises(codecllm_ops.BackendUnavailableError, match="'nonsense' does not run"):
            make(backend="nonsense")
