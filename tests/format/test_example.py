"""The examples of docs/format.md: the bytes there are the ones that are written."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import codecllm_ops as ops
from cases import every_backend, running
from codecllm_ops import CodedMatrix
from codecllm_ops.codec.fixed import reference as fixed_reference
from codecllm_ops.codec.rans import reference

PAGE = Path(__file__).resolve().parents[2] / "docs" / "format.md"
NAMES = ("weight", "weight_raw", "weight_index", "weight_head")
WEIGHT = torch.tensor([[-1.5]], dtype=torch.bfloat16)


def example(coding: str = "rans") -> CodedMatrix:
    fence = {"rans": "hex", "fixed": "hex-fixed"}[coding]
    block = re.search(rf"```{fence}\n(.*?)```", PAGE.read_text(), re.DOTALL).group(1)
    parts = re.split(rf"^({'|'.join(NAMES)})\b", block, flags=re.MULTILINE)[1:]
    data = {}
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        tokens = re.findall(r"([0-9a-f]+)(?: \* (\d+))?", text)
        data[name] = b"".join(bytes.fromhex(hexes) * int(n or 1) for hexes, n in tokens)
    tensors = [torch.frombuffer(bytearray(data[name]), dtype=torch.uint8) for name in NAMES]
    tensors[2] = tensors[2].view(torch.int32)
    return CodedMatrix(*tensors)


def test_reference_codec_reads_it():
    m = example().check()
    words = reference.decode(m.info, bytes(m.stream.numpy()), bytes(m.raw.numpy()), m.index.numpy())
    assert words.tolist() == [[0xBFC0]]


@every_backend
def test_backends_write_and_read_it(backend):
    with running(backend):
        coded = ops.encode(WEIGHT, tile_cols=16, scale_bits=8, allow_stored=False)
        assert torch.equal(ops.decode(example()), WEIGHT)
    assert coded == example()


def matrix_of_fixed() -> torch.Tensor:
    w = torch.zeros(9, 10, dtype=torch.bfloat16)
    w[0, 0], w[8, 0], w[8, 9] = -1.5, -0.0, 0.75
    w.view(torch.int16)[8, 8] = 0x7FC0  # a NaN
    return w


def test_reference_codec_reads_the_one_of_fixed():
    m, bits = example("fixed").check(), matrix_of_fixed().view(torch.uint16).numpy()
    data = (bytes(t.numpy()) for t in (m.stream, m.raw))
    assert (fixed_reference.decode(m.info, *data, m.index.numpy()) == bits).all()


@every_backend
def test_backends_write_and_read_the_one_of_fixed(backend):
    w = matrix_of_fixed()
    with running(backend):
        coded = ops.encode(w, coding="fixed", tile_cols=16, allow_stored=False)
        decoded = ops.decode(example("fixed"))
    assert coded == example("fixed")
    assert torch.equal(decoded.view(torch.int16), w.view(torch.int16))
