"""Random damage to any of the four tensors: an error of the right type, or a tensor of the right
shape; never a crash, and never a silent wrong tensor while the checksums are in place."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import codecllm_ops as ops
from cases import ALL_FORMATS, BACKENDS, random_words, running, to_tensor, weights
from codecllm_ops import CodedMatrix, CorruptStreamError, UnsupportedFormatError
from codecllm_ops.format import FORMATS

PARTS = ("stream", "raw", "index", "head")
REFUSED = (CorruptStreamError, UnsupportedFormatError)


def _matrices() -> list[CodedMatrix]:
    """Small ones of every kind."""
    out = [ops.encode(weights(17, 40, f), tile_cols=32, allow_stored=False) for f in ALL_FORMATS]
    q, scale = ops.quantize_int8(weights(20, 33, FORMATS["bf16"]))
    out.append(ops.encode(q, scale=scale, predictor="left", scale_bits=8, allow_stored=False))
    out.append(ops.encode(to_tensor(random_words(5, 7, FORMATS["bf16"]), FORMATS["bf16"])))
    out.append(CodedMatrix.concat_rows([out[0], out[0].slice(slice(0, 16))]))
    assert any(m.info.stored for m in out)
    return out


MATRICES = _matrices()


@dataclass(frozen=True)
class Damage:
    """One change of the bytes of a part, at a fraction of its length."""

    part: int
    kind: str
    at: float
    value: int

    def __call__(self, parts: list[bytearray]) -> None:
        data = parts[self.part]
        at = int(self.at * len(data))
        if self.kind == "truncate":
            del data[at:]
        elif self.kind == "extend":
            data += bytes([self.value]) * (1 + at % 64)
        elif data and self.kind == "flip":
            data[at] ^= 1 << self.value % 8
        elif data and self.kind == "set":
            data[at] = self.value
        elif self.kind == "field":  # a whole 32-bit field, mostly extreme
            at -= at % 4
            data[at : at + 4] = struct.pack("<i", (-1, 0, 1, 1 << 30, -(1 << 31))[self.value % 5])


damages = st.builds(
    Damage,
    st.sampled_from([0, 1, 2, 3, 3]),
    st.sampled_from(["flip", "flip", "set", "field", "truncate", "extend"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 255),
)


def as_parts(matrix: CodedMatrix) -> list[bytearray]:
    return [bytearray(t.numpy().tobytes()) for t in matrix.tensors()]


def as_matrix(parts: list[bytearray]) -> CodedMatrix:
    index = parts[2][: len(parts[2]) // 4 * 4]
    dtypes = torch.uint8, torch.uint8, torch.int32, torch.uint8
    return CodedMatrix(
        *(
            torch.frombuffer(data, dtype=d) if data else torch.empty(0, dtype=d)
            for data, d in zip((parts[0], parts[1], index, parts[3]), dtypes, strict=True)
        )
    )


def reseal(parts: list[bytearray], sizes: bool) -> None:
    """Makes the head agree with the bytes, so that what lies behind the checksums is reached."""
    stream, raw, index, head = parts
    if len(head) < 64:
        return
    if sizes:
        struct.pack_into("<I", head, 36, len(head))
        struct.pack_into("<Q", head, 40, len(stream))
    struct.pack_into("<III", head, 48, zlib.crc32(stream), zlib.crc32(raw), zlib.crc32(index))
    struct.pack_into("<I", head, 60, 0)
    struct.pack_into("<I", head, 60, zlib.crc32(head))


def decode_everything(matrix: CodedMatrix) -> None:
    """Every op either refuses, or gives the shape that the head says."""
    rows, cols = matrix.shape
    if rows * cols > 1 << 24:  # only if one of them is 0 does so much fit into so few bytes
        raise AssertionError("a few hundred bytes passed for a huge matrix")
    calls = [lambda: (ops.decode(matrix), (rows, cols))]
    if rows:
        calls.append(lambda: (ops.decode_rows(torch.tensor([rows - 1]), matrix), (1, cols)))
    if rows < 1 << 16 and cols < 1 << 16:
        x = torch.ones(2, cols, dtype=torch.bfloat16)
        calls.append(lambda: (ops.decode_linear(x, matrix), (2, rows)))
    for call in calls:
        try:
            result, shape = call()
        except REFUSED:
            continue
        assert result.shape == shape


@settings(max_examples=1500)
@given(st.sampled_from(MATRICES), st.lists(damages, min_size=1, max_size=3))
def test_damage_is_noticed_by_the_checksums(matrix, changes):
    parts = as_parts(matrix)
    for change in changes:
        change(parts)
    if parts == as_parts(matrix):
        as_matrix(parts).check()
        return
    if len(parts[2]) % 4:
        return  # no int32 tensor has such a size
    with pytest.raises(REFUSED, match=r"head|stream|raw|index|weight format"):
        as_matrix(parts).check()


@settings(max_examples=2500)
@given(
    st.sampled_from(MATRICES),
    st.lists(damages, min_size=1, max_size=4),
    st.booleans(),
    st.sampled_from(BACKENDS),
)
def test_damage_behind_the_checksums_is_refused_or_decodes_to_the_right_shape(
    matrix, changes, sizes, backend
):
    parts = as_parts(matrix)
    for change in changes:
        change(parts)
    del parts[2][len(parts[2]) // 4 * 4 :]
    reseal(parts, sizes)
    damaged = as_matrix(parts)
    try:
        damaged.check()
    except REFUSED:
        return
    with running(backend):
        decode_everything(damaged)


@settings(max_examples=1500)
@given(
    st.sampled_from(MATRICES),
    st.lists(damages.filter(lambda d: d.part != 3), min_size=1, max_size=4),
    st.sampled_from(BACKENDS),
)
def test_ops_survive_what_nobody_checked(matrix, changes, backend):
    """The head is intact and the other parts are anything: the ops do not rely on check()."""
    parts = as_parts(matrix)
    for change in changes:
        change(parts)
    with running(backend):
        decode_everything(as_matrix(parts))
