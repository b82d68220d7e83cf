"""Weight formats are data: docs/format.md lists them, and adding one is adding one entry."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import codecllm_ops as ops
from assertions import assert_same_words
from cases import ALL_FORMATS, CONTENTS, every_content, every_format, running, to_tensor, to_words
from codecllm_ops.codec.rans import reference
from codecllm_ops.format import (
    FORMATS,
    UnsupportedFormatError,
    WeightFormat,
    by_dtype,
    by_id,
    weight_formats,
)
from codecllm_ops.format.weight_formats import Integer

DOCS = Path(__file__).resolve().parents[2] / "docs/format.md"


def table_rows(after: str) -> list[list[str]]:
    """Cells of the first table after a text, without its head."""
    lines = DOCS.read_text().split(after, 1)[1].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_documented_formats_are_the_ones_in_the_code():
    documented = []
    for number, name, dtype, bits, field, flip in table_rows("## 2. Weight formats"):
        first, last = map(int, re.search(r"bits (\d+)\.\.(\d+)", field).groups())
        dtype = getattr(torch, dtype)
        shape = int(bits), first, last - first + 1, int(flip.split()[0], 0)
        documented.append(WeightFormat(int(number), name.strip("`"), dtype, *shape))
    assert documented == [replace(f, kind=Integer()) for f in ALL_FORMATS]


def test_documented_planes_are_the_ones_in_the_code():
    documented = {}
    for name, planes in table_rows("The raw bits of a format are split into planes greedily"):
        pairs = re.findall(r"\((0x[0-9a-f]+), (\d+)\)( of the low half)?", planes)
        documented[name] = [(int(mask, 16), int(bits), bool(low)) for mask, bits, low in pairs]
    code = {f.name: [(p.mask, p.bits, p.low_half) for p in f.planes] for f in ALL_FORMATS}
    assert documented == code


@pytest.mark.parametrize("word_bits", [8, 16, 32])
def test_planes_of_every_possible_field_tile_the_container(word_bits):
    half = min(word_bits, 16)
    for coded_bits in range(1, min(half, 9)):
        for shift in range(half - coded_bits + 1):
            fmt = WeightFormat(99, "any", torch.bfloat16, word_bits, shift, coded_bits)
            high = [p for p in fmt.planes if not p.low_half]
            assert sum(p.mask for p in high) == ((1 << half) - 1) & ~fmt.coded_mask
            for p in fmt.planes:
                positions = [i for i in range(16) if p.mask >> i & 1]
                assert {i % p.bits for i in positions} == set(range(p.bits))
                assert len(positions) == p.bits


def test_unknown_format_and_dtype_list_what_is_known():
    with pytest.raises(UnsupportedFormatError, match=r"id 77 is unknown; known: 1 \(bf16\), 2"):
        by_id(77)
    with pytest.raises(UnsupportedFormatError, match=r"float64; coded dtypes: torch\.bfloat16"):
        by_dtype(torch.float64)


@every_format
def test_every_format_is_found_by_id_and_dtype(fmt):
    assert by_id(fmt.id) is by_dtype(fmt.dtype) is FORMATS[fmt.name] is fmt


@pytest.fixture
def made_up(monkeypatch):
    """16 bits of which bits 4..9 are coded, flipped: like no format there is."""
    fmt = WeightFormat(77, "made_up", torch.uint16, 16, coded_shift=4, coded_bits=6, flip=0x0A50)
    monkeypatch.setitem(weight_formats.FORMATS, fmt.name, fmt)
    return fmt


@every_content
def test_new_format_is_one_entry(made_up, content):
    words = CONTENTS[content](21, 50, made_up)
    coded = reference.encode(words, made_up, tile_cols=32)
    assert_same_words(reference.decode(*coded), words)
    with running("reference"):
        matrix = ops.encode(to_tensor(words, made_up), tile_cols=32, allow_stored=False).check()
        assert matrix.info.fmt is made_up
        assert bytes(matrix.stream.numpy()) == coded[1]
        assert_same_words(to_words(ops.decode(matrix)), words)
        ids = torch.tensor([20, 0, 16])
        assert_same_words(to_words(ops.decode_rows(ids, matrix)), words[ids])


def test_new_format_keeps_every_pattern(made_up):
    words = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    with running("reference"):
        matrix = ops.encode(to_tensor(words, made_up), allow_stored=False)
        assert_same_words(to_words(ops.decode(matrix)), words)
