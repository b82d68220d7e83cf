"""What a version wrote, every later reader reads, bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import codecllm_ops as ops
from assertions import assert_same_coded, assert_same_words
from cases import ALL_FORMATS, BACKENDS, running, to_words
from codecllm_ops import CodedMatrix, UnsupportedFormatError
from codecllm_ops.codec.fixed import reference as fixed_reference
from codecllm_ops.codec.rans import reference as rans_reference
from golden import make

FOLDER = Path(__file__).parent
FILES = sorted(FOLDER.glob("v*.safetensors"))
every_file = pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)


def load(path: Path) -> tuple[CodedMatrix, torch.Tensor, dict]:
    """Coded matrix, expected words, how it was encoded."""
    t = load_file(path)
    with safe_open(path, "pt") as file:
        how = json.loads(file.metadata()["how"])
    parts = (t[name] for name in ("weight", "weight_raw", "weight_index", "weight_head"))
    return CodedMatrix(*parts), t["decoded"], how


def test_every_format_and_feature_has_a_file():
    assert {p.stem.split("_", 1)[1] for p in FILES} >= set(make.cases())
    infos = [load(p)[0].info for p in FILES]
    assert {i.fmt.id for i in infos} == {f.id for f in ALL_FORMATS}
    assert all((i.version == 2) == (i.coding == "fixed") for i in infos)
    assert {i.version for i in infos} == {1, 2}
    assert any(i.stored for i in infos) and any(i.predictor for i in infos)
    assert any(len(i.segments) > 1 for i in infos) and any(i.scale_kind for i in infos)
    assert sum(p.stat().st_size for p in FILES) < 250_000


@every_file
def test_reference_codec_reads_it(path):
    matrix, expected, _ = load(path)
    parts = bytes(matrix.stream.numpy()), bytes(matrix.raw.numpy()), matrix.index.numpy()
    reference = fixed_reference if matrix.coding == "fixed" else rans_reference
    assert_same_words(reference.decode(matrix.info, *parts), to_words(expected))


@every_file
@pytest.mark.parametrize("backend", BACKENDS)
def test_backend_reads_it(path, backend):
    matrix, expected, _ = load(path)
    matrix.check()
    with running(backend):
        assert_same_words(ops.decode(matrix), expected)
        ids = torch.arange(expected.shape[0]).flip(0)
        assert_same_words(ops.decode_rows(ids, matrix), expected[ids])


@every_file
def test_head_is_packed_as_it_was(path):
    matrix, _, _ = load(path)
    assert matrix.info.pack() == bytes(matrix.head.numpy())


@every_file
@pytest.mark.parametrize("backend", BACKENDS[-2:])
def test_encoder_still_writes_these_bytes(path, backend):
    matrix, expected, how = load(path)
    scale = matrix.scale
    with running(backend):
        assert_same_coded(make.encode(expected, scale, how), matrix)


def test_the_next_version_of_these_files_is_refused():
    matrix, _, _ = load(FILES[0])
    head = matrix.head.clone()
    head[4] = 3
    with pytest.raises(UnsupportedFormatError, match=r"version 3 is newer than 2.*upgrade"):
        ops.decode(replace(matrix, head=head))


def test_generator_never_overwrites(tmp_path):
    written = make.write(tmp_path)
    assert {p.name for p in written} == {p.name for p in FILES}
    written[0].write_bytes(b"frozen")
    written[1].unlink()
    assert make.write(tmp_path) == [written[1]]
    assert written[0].read_bytes() == b"frozen"
