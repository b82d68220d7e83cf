"""What kernels, plan and launch take without being changed: a coding of fixed length (emu/twelve.h)
and a format without raw bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import codecllm_ops as ops
from assertions import assert_linear_close, assert_same_words
from cases import CONTENTS, FORMATS, to_tensor, weights
from codecllm_ops.codec.rans import reference
from codecllm_ops.format import weight_formats
from cuda import emulated
from cuda.emulated import GOOD, Device, View

BF16 = FORMATS["bf16"]
TWELVE = 2  # Coding of emu/twelve.h


class Twelve:
    """A bf16 matrix in 12 bits: 15 exponents in a row are codes, other weights stand in a list."""

    def __init__(self, w: torch.Tensor, base: int, tile_cols: int) -> None:
        rows, cols = w.shape
        tile_rows, col_tiles = -(-rows // 16), -(-cols // tile_cols)
        words = np.zeros((16 * tile_rows, tile_cols * col_tiles), np.uint32)
        words[:rows, :cols] = w.view(torch.uint16).numpy()
        code = (words >> 7 & 0xFF).astype(np.int64) - base
        inside = ((code >= 1) & (code <= 15)) | (words & 0x7FFF == 0)
        place = np.where(inside, words & 0x807F | np.clip(code, 0, 15) << 7, 0)
        self.listed = int((~inside).sum())

        groups = [-(-min(cols - c * tile_cols, tile_cols) // 16) for c in range(col_tiles)]
        planes, offsets, entries = [], [0], []
        for r in range(tile_rows):
            for c in range(col_tiles):
                tile = slice(16 * r, 16 * r + 16), slice(c * tile_cols, (c + 1) * tile_cols)
                planes += [
                    self._pack(place[tile][:, 16 * g : 16 * g + 16]) for g in range(groups[c])
                ]
                apart = np.argwhere(~inside[tile])
                entries += [(y * tile_cols + x) << 16 | words[tile][y, x] for y, x in apart]
                offsets.append(len(entries))
        self._raw = np.concatenate(planes).astype(np.uint32)
        self._stream = np.array(offsets + entries, np.uint32)
        self._table = np.zeros(8 + 256, np.uint32)
        self._table[:5] = base, 0, 0, rows, 0
        self.view = View(
            self._stream.ctypes.data, self._stream.nbytes, self._raw.ctypes.data, None,
            self._table.ctypes.data, 1, rows, cols, BF16.id, 8, 0, 0, tile_cols, tile_rows,
            col_tiles, 384 * sum(groups), 384 * groups[0], TWELVE,
        )  # fmt: skip

    @staticmethod
    def _pack(group: np.ndarray) -> np.ndarray:
        """16 x 16 -> three words for each of 32 lanes."""
        lane = np.arange(32)
        pairs = []
        for j in range(4):
            row, col = lane // 4 + 8 * (j & 1), 2 * (lane % 4) + 8 * (j >> 1)
            pairs.append(group[row, col] | group[row, col + 1] << 16)
        r0 = pairs[0] | (pairs[3] & 0x07800780) << 4
        r1 = pairs[1] | (pairs[3] & 0x00780078) << 8
        last = pairs[3] & 0x80078007
        r2 = pairs[2] | (last << 12 | last >> 20) & 0xFFFFFFFF
        return np.stack([r0, r1, r2], 1).reshape(-1)


@pytest.mark.parametrize("shape", [(1, 1), (17, 33), (40, 200), (32, 128)], ids=str)
@pytest.mark.parametrize("content", ["normal", "extremes"])
def test_decode_another_coding(shape, content):
    w = to_tensor(CONTENTS[content](*shape, BF16), BF16)
    coded = Twelve(w, 111, 64)
    words, status = emulated.decode_view(coded.view, BF16)
    assert status == GOOD
    assert_same_words(words, w)
    ids = torch.tensor([0, shape[0] - 1, shape[0] // 2])
    rows, status = emulated.decode_rows_view(ids, coded.view, BF16)
    assert status == GOOD
    assert_same_words(rows, w[ids])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("m", [1, 7, 9, 64])
@pytest.mark.parametrize("device", [Device(), Device(90, 40, 24 << 10, 25 << 10)], ids=str)
def test_linear_of_another_coding(dtype, m, device):
    w = weights(40, 200, BF16)
    coded = Twelve(w, 111, 64)
    assert 0 < coded.listed < w.numel() / 4
    x, bias = torch.randn(m, 200).to(dtype), torch.randn(40).to(dtype)
    path = emulated.PATHS[emulated.plan_of(coded.view, m, dtype, device).path]
    assert path == ("mma" if dtype == torch.bfloat16 else "fma")
    out, status = emulated.linear_view(x, coded.view, bias=bias, device=device)
    assert status == GOOD
    assert_linear_close(out, x, w, None, bias)


def test_a_coding_says_which_formats_it_codes():
    coded = Twelve(weights(16, 64, BF16), 111, 64)
    coded.view.format = FORMATS["fp16"].id
    assert emulated.PATHS[emulated.plan_of(coded.view, 1, torch.float16).path] == "none"


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
