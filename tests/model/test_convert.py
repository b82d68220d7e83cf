"""Folders in both codings: compress and convert, their bytes, resuming, damage."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import codecllm
from codecllm.model import convert_folder
from codecllm.model.checkpoint import Checkpoint
from codecllm.model.tensor_file import ALIGN, TensorFile
from codecllm.nn import STREAM_NAMES
from codecllm_ops.codec.coded import CodedMatrix
from head_cases import FIELDS, sealed
from model_cases import assert_same_folder, make_folder, tensors


def compress(src, dst, **options):
    return codecllm.compress_checkpoint(src, dst, **options)


def codings(folder):
    with Checkpoint(folder) as source:
        return {name: source.head(name).coding for name in source.coded_names()}


def assert_same_bytes(a, b):
    names = sorted(p.name for p in a.iterdir())
    assert names == sorted(p.name for p in b.iterdir())
    for name in set(names) - {"codecllm_report.json"}:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


@pytest.fixture
def both(folder, tmp_path):
    """The same weights in both codings."""
    compress(folder, tmp_path / "rans")
    compress(folder, tmp_path / "fixed", coding="fixed")
    return tmp_path / "rans", tmp_path / "fixed"


def test_files_are_rans_by_default_and_fixed_on_request(both):
    for found, expected in zip(both, ("rans", "fixed"), strict=True):
        assert set(codings(found).values()) == {expected}
        report = codecllm.checkpoint_info(found)
        assert report.codings == {expected: 7}
        assert report.memory_codings == {"fixed": 7}  # what a CPU would have in memory


def test_a_fixed_folder_is_verified_and_decompressed(folder, both, tmp_path):
    result = codecllm.verify_checkpoint(folder, both[1])
    assert result.ok and result.coded == 7
    assert codecllm.verify_checkpoint(both[1]).ok
    codecllm.decompress_checkpoint(both[1], tmp_path / "back")
    assert_same_folder(folder, tmp_path / "back")


def test_converting_gives_the_bytes_that_compressing_gives(both, tmp_path):
    rans, fixed = both
    report = codecllm.convert_checkpoint(rans, tmp_path / "to_fixed", "fixed")
    assert report.codings == {"fixed": 7} and report.coded_layers == 7
    codecllm.convert_checkpoint(fixed, tmp_path / "to_rans", "rans", jobs=3)
    assert_same_bytes(tmp_path / "to_fixed", fixed)
    assert_same_bytes(tmp_path / "to_rans", rans)
    codecllm.convert_checkpoint(tmp_path / "to_fixed", tmp_path / "back", "rans")
    assert_same_bytes(tmp_path / "back", rans)


def test_a_folder_that_has_the_coding_already_is_copied(both, tmp_path):
    for found, coding in zip(both, ("rans", "fixed"), strict=True):
        codecllm.convert_checkpoint(found, tmp_path / "copy", coding, force=True)
        assert_same_bytes(tmp_path / "copy", found)


def test_options_of_both_codings(folder, both, tmp_path):
    codec = codecllm.Codec(tile_cols=32, predictor="left")
    compress(folder, tmp_path / "left", codec=codec)
    codecllm.convert_checkpoint(both[1], tmp_path / "to_left", "rans", codec=codec)
    assert_same_bytes(tmp_path / "left", tmp_path / "to_left")
    narrow = codecllm.Codec(tile_cols=32)
    compress(folder, tmp_path / "narrow", codec=narrow, coding="fixed")
    codecllm.convert_checkpoint(both[0], tmp_path / "to_narrow", "fixed", codec=narrow)
    assert_same_bytes(tmp_path / "narrow", tmp_path / "to_narrow")
    with Checkpoint(tmp_path / "narrow") as source:
        assert {source.head(n).tile_cols for n in source.coded_names()} == {32}
    with pytest.raises(ValueError, match="predictor=left"):
        codecllm.convert_checkpoint(both[0], tmp_path / "no", "fixed", codec=codec)


@pytest.mark.parametrize("coding", ["fixed", "rans"])
def test_a_stopped_run_goes_on(both, tmp_path, monkeypatch, coding):
    src, whole = both if coding == "fixed" else reversed(both)
    done, real = [], convert_folder._converted

    def stops(source, name, codec):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(name)
        return real(source, name, codec)

    monkeypatch.setattr(convert_folder, "_converted", stops)
    with pytest.raises(KeyboardInterrupt):
        codecllm.convert_checkpoint(src, tmp_path / "dst", coding)
    assert not (tmp_path / "dst").exists()
    with pytest.raises(FileExistsError, match="unfinished run"):
        codecllm.convert_checkpoint(src, tmp_path / "dst", coding)
    again = []
    monkeypatch.setattr(
        convert_folder, "_converted", lambda s, n, c: (again.append(n), real(s, n, c))[1]
    )
    codecllm.convert_checkpoint(src, tmp_path / "dst", coding, resume=True)
    assert sorted(done + again) == sorted(codings(src))
    assert_same_bytes(tmp_path / "dst", whole)
    again.clear()
    codecllm.convert_checkpoint(src, tmp_path / "dst", coding, resume=True)
    assert not again


def with_tensor(folder, name, change):
    """Changes one tensor of the source folder in place."""
    path = next(p for p in sorted(folder.glob("*.safetensors")) if name in load_file(p))
    state = load_file(path)
    change(state[name])
    save_file(state, path, metadata={"format": "pt"})


def test_mixed_folders(folder, tmp_path):
    """One matrix has too many weights outside; one has nothing to gain at all."""
    odd, noise = "model.layers.0.mlp.down_proj.weight", "model.layers.1.mlp.down_proj.weight"
    with_tensor(folder, odd, lambda w: w.view(-1)[::50].fill_(1e-30))
    bits = torch.randint(-(2**15), 2**15, (64, 64), generator=torch.Generator().manual_seed(1))
    with_tensor(folder, noise, lambda w: w.view(torch.int16).copy_(bits))
    report = compress(folder, tmp_path / "fixed", coding="fixed")
    by_name = {x.name: x for x in report.layers}
    assert by_name[odd].coding == "rans" and "outside the window" in by_name[odd].why
    assert by_name[noise].status == "stored"
    compress(folder, tmp_path / "rans")
    codecllm.convert_checkpoint(tmp_path / "rans", tmp_path / "to_fixed", "fixed")
    codecllm.convert_checkpoint(tmp_path / "fixed", tmp_path / "to_rans", "rans")
    assert_same_bytes(tmp_path / "to_fixed", tmp_path / "fixed")
    assert_same_bytes(tmp_path / "to_rans", tmp_path / "rans")
    info = {x.name: x for x in codecllm.checkpoint_info(tmp_path / "to_fixed").layers}
    assert (info[odd].coding, info[odd].memory_coding) == ("rans", "rans")


def test_what_does_not_shrink_as_rans_becomes_dense(folder, tmp_path):
    """15 exponents, all equally likely, in tiles of 16 columns whose lanes cost 4 bits a weight."""
    name, shape = "model.layers.0.mlp.down_proj.weight", (256, 16)
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(-(2**15), 2**15, shape, generator=generator).to(torch.int16)
    exponents = torch.randint(110, 125, shape, generator=generator).to(torch.int16)
    words = (words & ~0x7F80) | exponents << 7
    with_tensor(folder, name, lambda w: w.set_(words.view(torch.bfloat16)))
    compress(folder, tmp_path / "fixed", coding="fixed")
    codec = codecllm.Codec(scale_bits=8)
    compress(folder, tmp_path / "rans", codec=codec)
    assert name in codings(tmp_path / "fixed") and name not in codings(tmp_path / "rans")
    report = codecllm.convert_checkpoint(
        tmp_path / "fixed", tmp_path / "to_rans", "rans", codec=codec
    )
    assert [x.name for x in report.of("stored")] == [name]
    for shard in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        assert (tmp_path / "to_rans" / shard).read_bytes() == (
            tmp_path / "rans" / shard
        ).read_bytes()
    config = json.loads((tmp_path / "to_rans" / "config.json").read_text())
    assert name[:-7] in config["quantization_config"]["modules_to_not_convert"]


def test_wishes_that_cannot_be_met(folder, both, tmp_path, make_checkpoint):
    for bad in ("auto", "stored", "12"):
        with pytest.raises(ValueError, match=f"coding '{bad}' is not one that files have"):
            compress(folder, tmp_path / "no", coding=bad)
        with pytest.raises(ValueError, match=f"coding '{bad}' is not one that files have"):
            codecllm.convert_checkpoint(both[0], tmp_path / "no", bad)
    with pytest.raises(ValueError, match="is not compressed"):
        codecllm.convert_checkpoint(folder, tmp_path / "no", "fixed")
    with pytest.raises(ValueError, match="two folders"):
        codecllm.convert_checkpoint(both[0], both[0], "fixed", force=True)
    with pytest.raises(FileExistsError, match="exists"):
        codecllm.convert_checkpoint(*both, "fixed")
    half = make_checkpoint(tmp_path / "half", dtype=torch.float16)
    with pytest.raises(ValueError, match=r"no weight can have it: float16: fixed is for bf16"):
        compress(half, tmp_path / "no", coding="fixed")
    with pytest.raises(ValueError, match="int8: fixed is for bf16"):
        compress(folder, tmp_path / "no", coding="fixed", format="int8")
    compress(half, tmp_path / "half_rans")
    with pytest.raises(ValueError, match=r"no weight can have it: fp16: fixed is for bf16"):
        codecllm.convert_checkpoint(tmp_path / "half_rans", tmp_path / "no", "fixed")
    assert not (tmp_path / "no").exists()


def test_int8_matrices_stay_as_they_are(folder, tmp_path):
    compress(folder, tmp_path / "int8", format="int8")
    codecllm.convert_checkpoint(tmp_path / "int8", tmp_path / "copy", "rans")
    assert_same_bytes(tmp_path / "int8", tmp_path / "copy")


@pytest.mark.parametrize("coding", ["rans", "fixed"])
def test_planes_begin_where_kernels_load_best(both, coding):
    folder = both[coding == "fixed"]
    planes = 0
    for path in folder.glob("*.safetensors"):
        with TensorFile(path) as file:
            for entry in file.entries.values():
                if entry.nbytes % ALIGN == 0:
                    assert entry.begin % ALIGN == 0, entry.name
                    planes += entry.dtype == "U8" and entry.nbytes > 0
                assert entry.begin % entry.torch_dtype.itemsize == 0
    assert planes >= 7


def test_estimates_of_both(folder, both):
    for found, coding in zip(both, ("rans", "fixed"), strict=True):
        report = codecllm.estimate_checkpoint(folder, coding=coding)
        assert report.codings == {coding: 7}
        real = codecllm.checkpoint_info(found).coded_bytes
        assert abs(report.coded_bytes - real) < 0.01 * real
        assert set(report.memory_codings) == {"fixed"}


# ---- damage -------------------------------------------------------------------------------------

NAME = "model.layers.0.mlp.down_proj.weight"


def damaged(fixed, tmp_path, change):
    """A copy of the fixed folder whose matrix NAME is what `change` makes of its four tensors."""
    folder = tmp_path / "damaged"
    shutil.copytree(fixed, folder)
    path = next(p for p in folder.glob("*.safetensors") if NAME in load_file(p))
    state = load_file(path)
    parts = [NAME.removesuffix("weight") + part for part in STREAM_NAMES]
    for part, tensor in zip(parts, change([state[part] for part in parts]), strict=True):
        state[part] = tensor.clone()
    save_file(state, path, metadata={"format": "pt"})
    return folder, path


def with_field(name, value):
    import struct

    offset, code = FIELDS[name]

    def change(tensors):
        head = bytearray(tensors[3].numpy().tobytes())
        struct.pack_into("<" + code, head, offset, value)
        return [*tensors[:3], torch.frombuffer(bytearray(sealed(bytes(head))), dtype=torch.uint8)]

    return change


def with_contents(edit, listed=None):
    """Other contents under checksums that match."""

    def change(tensors):
        plane, raw, index, _ = (t.clone() for t in tensors)
        info = CodedMatrix(*tensors).info
        plane, raw, index = edit(plane, raw, index)
        if listed is not None:
            info = replace(info, segments=(replace(info.segments[0], listed=listed),))
        return CodedMatrix.build(info, plane, raw, index).tensors()

    return change


def entries(*values):
    return torch.tensor(values, dtype=torch.int64).to(torch.uint32).view(torch.uint8)


def one_entry(value, ends=1):
    """The list has one entry; every tile from the first ends behind it."""
    return with_contents(
        lambda plane, raw, index: (plane, entries(value), torch.full_like(index, ends)), listed=1
    )


def code_without_exponent(plane, raw, index):
    plane[0] |= 1  # a mantissa bit of lane 0's first weight...
    plane.view(torch.int32)[0] &= ~0x0780  # ...whose code is 0
    return plane, raw, index


DAMAGE = {
    "stream_bytes": (with_field("stream_bytes", 384), "head: stream_bytes"),
    "rows": (with_field("rows", 65), "head: segments have 64 rows, the matrix 65"),
    "tile_cols": (with_field("tile_cols", 8192), "head: tile_cols 8192"),
    "window": (with_field("window_base", 240), "window_base 240"),
    "rans parameters": (with_field("scale_bits", 11), "head: scale_bits 11"),
    "format": (with_field("format", 2), "head: a fixed matrix of fp16"),
    "flags": (with_field("flags", 3), "head: unknown flags"),
    "listed": (with_field("table_bytes", 2**32 - 1), ": "),
    "plane cut": (lambda t: [t[0][:-384], *t[1:]], "stream: .* elements, the head says"),
    "list too long": (lambda t: [t[0], entries(1, 2), *t[2:]], "raw: 8 elements, the head says"),
    "index cut": (lambda t: [*t[:2], t[2][:-1], t[3]], "index: .* elements, the head says"),
    "head cut": (lambda t: [*t[:3], t[3][:-4]], "head: head_bytes"),
    "plane bit": (lambda t: [t[0] ^ (torch.arange(len(t[0])) == 77), *t[1:]], "stream: CRC-32"),
    "ends beyond": (one_entry(0x3F80, ends=2), "index: segment 0 lists 2 weights"),
    "ends before": (one_entry(0x3F80, ends=-1), "index: "),
    "entry in padding": (one_entry(0 << 28 | 64 << 16 | 0x3F80), "coded plane or list: tile 0"),
    "listed twice": (one_entry(0 << 28 | 3 << 16 | 0x3F80), "coded plane or list: tile 0"),
    "lying code": (with_contents(code_without_exponent), "coded plane or list: tile 0"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_fixed_folders_name_file_tensor_and_field(both, tmp_path, what):
    change, field = DAMAGE[what]
    folder, path = damaged(both[1], tmp_path, change)
    module = NAME.removesuffix("weight")
    for read in (
        lambda: codecllm.verify_checkpoint(folder),
        lambda: codecllm.decompress_checkpoint(folder, tmp_path / "out"),
        lambda: codecllm.convert_checkpoint(folder, tmp_path / "out2", "rans"),
    ):
        with pytest.raises(codecllm.CorruptStreamError, match=field) as found:
            read()
        assert str(found.value).startswith(f"{path}: {module}")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out2").exists()


def test_every_truncation_of_a_shard_is_an_error(both, tmp_path):
    folder = tmp_path / "short"
    shutil.copytree(both[1], folder)
    path = sorted(folder.glob("*.safetensors"))[0]
    data = path.read_bytes()
    for size in range(0, len(data), 997):
        path.write_bytes(data[:size])
        with pytest.raises(codecllm.CorruptStreamError, match=path.name):
            codecllm.verify_checkpoint(folder)


def test_older_readers_refuse_a_fixed_folder(both, monkeypatch):
    from codecllm_ops.format import head

    monkeypatch.setattr(head, "VERSION", 1)
    with pytest.raises(codecllm.UnsupportedFormatError, match="version 2 is newer than 1"):
        codecllm.verify_checkpoint(both[1])


def test_tensors_of_both_are_those_of_the_original(folder, both):
    dense = tensors(folder)
    for found in both:
        with Checkpoint(found) as source:
            for name in source.coded_names():
                assert torch.equal(source.decode(name), dense[name]), name


def test_a_source_of_other_shards(tmp_path):
    compress(make_folder(tmp_path / "src", shards=1), tmp_path / "rans")
    codecllm.convert_checkpoint(tmp_path / "rans", tmp_path / "fixed", "fixed")
    assert codecllm.verify_checkpoint(tmp_path / "src", tmp_path / "fixed").ok
