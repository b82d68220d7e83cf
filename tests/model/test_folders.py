"""Folder to folder: bits, wrong sources, damage, memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import codecllm
from codecllm.model.checkpoint import Checkpoint
from model_cases import assert_same_folder, tensors


@pytest.fixture
def packed(folder, tmp_path):
    codecllm.compress_checkpoint(folder, tmp_path / "dst")
    return tmp_path / "dst"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_there_and_back(make_checkpoint, tmp_path, dtype):
    src = make_checkpoint(tmp_path / "src", dtype=dtype)
    report = codecllm.compress_checkpoint(src, tmp_path / "dst", jobs=2)
    assert report.coded_layers == 7
    assert codecllm.verify_checkpoint(src, tmp_path / "dst").ok
    codecllm.decompress_checkpoint(tmp_path / "dst", tmp_path / "back")
    assert_same_folder(src, tmp_path / "back")
    before = (src / "tokenizer.json").read_bytes()
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == before
    assert "quantization_config" not in json.loads((tmp_path / "back" / "config.json").read_text())


def test_result_is_plain_safetensors(packed):
    index = json.loads((packed / "model.safetensors.index.json").read_text())["weight_map"]
    found = {}
    for path in packed.glob("*.safetensors"):
        with safe_open(path, framework="pt") as f:
            found.update(dict.fromkeys(f.keys(), path.name))
            for key in f.keys():  # noqa: SIM118
                f.get_tensor(key)
    assert found == index
    config = json.loads((packed / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["version"]) == ("codecllm", 1)
    assert not any(p.name.startswith(".") for p in packed.iterdir())


def test_result_does_not_depend_on_jobs(folder, tmp_path):
    for jobs in (1, 3):
        codecllm.compress_checkpoint(folder, tmp_path / f"j{jobs}", jobs=jobs)
    for path in (tmp_path / "j1").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "j3" / path.name).read_bytes()


def test_int8(folder, tmp_path):
    codecllm.compress_checkpoint(folder, tmp_path / "dst", format="int8")
    assert codecllm.verify_checkpoint(folder, tmp_path / "dst").ok
    codecllm.decompress_checkpoint(tmp_path / "dst", tmp_path / "back")
    for name, t in tensors(folder).items():
        error = (tensors(tmp_path / "back")[name].float() - t.float()).abs().max()
        assert error <= t.float().abs().max() / 100


def test_what_does_not_shrink_writes_nothing(folder, tmp_path):
    for shard in folder.glob("*.safetensors"):
        state = {
            k: torch.randint(-999, 999, v.shape).to(torch.int16)
            for k, v in load_file(shard).items()
        }
        noise = {k: (v * 31337).view(torch.bfloat16) for k, v in state.items()}
        save_file(noise, shard)
    with pytest.raises(ValueError, match="no tensor shrinks"):
        codecllm.compress_checkpoint(folder, tmp_path / "dst")
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


def test_skip_is_recorded(folder, tmp_path):
    report = codecllm.compress_checkpoint(folder, tmp_path / "dst", skip=["q_proj", "embed"])
    assert report.coded_layers == 4
    config = json.loads((tmp_path / "dst" / "config.json").read_text())["quantization_config"]
    assert "model.layers.0.self_attn.q_proj" in config["modules_to_not_convert"]
    assert codecllm.verify_checkpoint(folder, tmp_path / "dst").ok


def test_estimate_is_close_and_writes_nothing(make_checkpoint, tmp_path):
    src = make_checkpoint(tmp_path / "src", width=256, vocab=8192)
    guess = codecllm.estimate_checkpoint(src).coded_bytes
    assert [p.name for p in tmp_path.iterdir()] == ["src"]
    real = codecllm.compress_checkpoint(src, tmp_path / "dst").coded_bytes
    assert guess == pytest.approx(real, rel=0.01)


def test_info_agrees_with_the_report(folder, packed):
    report = json.loads((packed / "codecllm_report.json").read_text())
    assert codecllm.checkpoint_info(packed).coded_bytes == report["coded_bytes"]


def test_verify_names_the_first_difference(folder, packed):
    path = folder / "model-00001-of-00002.safetensors"
    state = load_file(path)
    state["model.embed_tokens.weight"].view(torch.int16)[3, 5] ^= 1
    save_file(state, path)
    result = codecllm.verify_checkpoint(folder, packed)
    assert len(result.mismatches) == 1
    assert "model.embed_tokens.weight: 1 of 16384 differ, first at [3, 5]" in result.mismatches[0]


def test_two_threads_with_two_destinations(folder, tmp_path):
    errors = []

    def work(n):
        try:
            codecllm.compress_checkpoint(folder, tmp_path / f"d{n}", jobs=2)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors
    assert_same_folder(tmp_path / "d0", tmp_path / "d1")


def test_the_index_counts_every_byte(folder, packed, tmp_path):
    """Of all tensors, dense ones included: loaders plan memory with it."""
    codecllm.decompress_checkpoint(packed, tmp_path / "back")
    for path in (packed, tmp_path / "back"):
        index = json.loads((path / "model.safetensors.index.json").read_text())
        expected = sum(t.nbytes for t in tensors(path).values())
        assert index["metadata"]["total_size"] == expected


def test_folders_inside_are_copied_and_links_followed(folder, tmp_path):
    (folder / "inside" / "deeper").mkdir(parents=True)
    (folder / "inside" / "deeper" / "notes.txt").write_text("hello")
    (folder / "licence").symlink_to(folder / "inside" / "deeper" / "notes.txt")
    codecllm.compress_checkpoint(folder, tmp_path / "dst")
    for name in ("inside/deeper/notes.txt", "licence"):
        assert (tmp_path / "dst" / name).read_text() == "hello"
        assert not (tmp_path / "dst" / name).is_symlink()


@pytest.mark.parametrize(
    ("link", "target", "sentence"),
    [
        ("vocab.json", "gone.json", "vocab.json is a link that leads nowhere"),
        ("me", "me", "me is a link that leads nowhere"),
        ("inside/up", "..", "inside/up is a link to a folder that it lies in"),
    ],
)
def test_links_that_cannot_be_copied_are_refused_before_work(
    folder, tmp_path, link, target, sentence
):
    (folder / "inside").mkdir()
    (folder / link).symlink_to(target)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        codecllm.compress_checkpoint(folder, tmp_path / "dst")
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


def test_a_pipe_in_the_source_is_refused_before_work(folder, tmp_path):
    os.mkfifo(folder / "pipe")
    with pytest.raises(ValueError, match="pipe is a pipe, socket or device"):
        codecllm.compress_checkpoint(folder, tmp_path / "dst")
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


def test_one_name_in_two_shards_is_refused(folder, tmp_path):
    one, two = sorted(folder.glob("*.safetensors"))
    state = load_file(two)
    twice = next(iter(load_file(one)))
    save_file({**state, twice: torch.zeros(4)}, two)
    with pytest.raises(ValueError) as error:
        codecllm.compress_checkpoint(folder, tmp_path / "dst")
    for part in (twice, str(one), str(two)):
        assert part in str(error.value)


ODD = ["[]", "5", '"text"', "{", "", "\x00", "[" * 100_000, '{"weight_map": []}']
ODD_INDEX = [
    *ODD,
    '{"weight_map": {"a": 5}}',
    '{"weight_map": {"a": "../a"}}',
    '{"weight_map": {}}',
]
ODD_CONFIG = [*ODD[:-1], '{"quantization_config": "x"}', '{"quantization_config": [1]}']


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("config.json", t) for t in ODD_CONFIG),
        *(("model.safetensors.index.json", t) for t in ODD_INDEX),
    ],
    ids=lambda v: v[:24],
)
def test_odd_json_is_an_error_that_names_the_file(packed, tmp_path, name, text):
    (packed / name).write_text(text)
    for work in (
        lambda: codecllm.verify_checkpoint(packed),
        lambda: codecllm.compress_checkpoint(packed, tmp_path / "x"),
        lambda: codecllm.decompress_checkpoint(packed, tmp_path / "y"),
    ):
        with pytest.raises(ValueError, match=name):
            work()


@pytest.mark.parametrize("dtype", ["nn", "__name__", "int32", 5, None, ["float16"]])
def test_an_odd_dtype_in_the_config_means_bfloat16(folder, tmp_path, dtype):
    codecllm.compress_checkpoint(folder, tmp_path / "dst", format="int8")
    config = tmp_path / "dst" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": dtype}))
    codecllm.decompress_checkpoint(tmp_path / "dst", tmp_path / "back")
    found = tensors(tmp_path / "back")["model.embed_tokens.weight"]
    assert found.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "header",
    [
        b'{"__metadata__": 5}',
        b'{"a": {"dtype": "U8", "shape": [1e999], "data_offsets": [0, 1]}}',
        b"[" * 100_000,
    ],
    ids=["metadata", "infinite", "deep"],
)
def test_odd_headers_of_shards_are_named(tmp_path, header):
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(codecllm.CorruptStreamError, match=str(path)):
        Checkpoint(tmp_path)


def test_wrong_sources_say_what_is_wrong(folder, packed, tmp_path):
    with pytest.raises(ValueError, match="compressed already"):
        codecllm.compress_checkpoint(packed, tmp_path / "x")
    with pytest.raises(ValueError, match="not compressed"):
        codecllm.decompress_checkpoint(folder, tmp_path / "x")
    with pytest.raises(ValueError, match="two folders"):
        codecllm.compress_checkpoint(folder, folder / "inside")
    (tmp_path / "bin").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \*\.safetensors"):
        codecllm.compress_checkpoint(tmp_path / "bin", tmp_path / "x")
    (tmp_path / "bin" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"PyTorch \.bin"):
        codecllm.compress_checkpoint(tmp_path / "bin", tmp_path / "x")
    with pytest.raises(ValueError, match="not a regular expression"):
        codecllm.compress_checkpoint(folder, tmp_path / "x", skip="(")
    with pytest.raises(ValueError, match="no compressible tensor"):
        codecllm.compress_checkpoint(folder, tmp_path / "x", skip=".")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "fp8"}})
    )
    with pytest.raises(ValueError, match="quantized with fp8"):
        codecllm.compress_checkpoint(folder, tmp_path / "x")
    assert not (tmp_path / "x").exists() and not (tmp_path / "x.partial").exists()


def test_every_truncation_of_a_shard_is_noticed(packed):
    path = packed / "model-00001-of-00002.safetensors"
    whole = path.read_bytes()
    for size in [*range(0, 64), *range(64, len(whole), 997), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(codecllm.CorruptStreamError, match=path.name):
            Checkpoint(packed)


@pytest.mark.parametrize("part", ["weight", "weight_raw", "weight_index", "weight_head"])
def test_a_flipped_bit_names_file_tensor_and_field(packed, part):
    field = {"weight": "stream", "weight_raw": "raw", "weight_index": "index"}.get(part, "head")
    with Checkpoint(packed) as source:
        name = source.coded_names()[0]
        entry, path = source.entry(name.removesuffix("weight") + part), source.where[name].path
    damaged = bytearray(path.read_bytes())
    damaged[entry.begin + entry.nbytes // 2] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(codecllm.CorruptStreamError) as error:
        codecllm.verify_checkpoint(packed)
    message = str(error.value)
    assert message.startswith(f"{path}: {name}: {field}: ") and "CRC-32" in message


def peak_above_idle(src, dst, jobs=1):
    """Bytes of peak RSS of a compression above the same process before it."""
    program = (
        "import sys, codecllm, torch\n"
        "def status(field):\n"
        "    text = open('/proc/self/status').read()\n"
        "    return 1024 * int(text.split(field + ':')[1].split()[0])\n"
        "w = (torch.randn(512, 512) / 50).bfloat16()\n"
        "codecllm.CompressedTensor(None, w).decompress()\n"
        "idle = status('VmRSS')\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"
        "codecllm.compress_checkpoint(sys.argv[1], sys.argv[2], jobs=int(sys.argv[3]))\n"
        "print(status('VmHWM') - idle)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(src), str(dst), str(jobs)],
        stdout=subprocess.PIPE,
        env=environment,
        check=True,
    )
    return int(done.stdout)


def big_folder(folder, shards, rows, per_shard=6, cols=2048):
    folder.mkdir()
    for n in range(shards):
        state = {
            f"model.layers.{n}.m{i}.weight": (torch.randn(rows, cols) / 50).bfloat16()
            for i in range(per_shard)
        }
        save_file(state, folder / f"model-{n:05}.safetensors")
    return folder


needs_proc = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="peak RSS is read from /proc"
)


@needs_proc
def test_peak_memory_is_a_few_tensors_not_the_shard(tmp_path):
    # 8 MiB tensors, 128 MiB shards.
    src = big_folder(tmp_path / "src", shards=2, rows=2048, per_shard=16)
    assert peak_above_idle(src, tmp_path / "dst") < 10 * 8 * 2**20


@pytest.mark.slow
@needs_proc
def test_peak_memory_of_800_mb(tmp_path):
    src = big_folder(tmp_path / "src", shards=8, rows=4096)  # 16 MiB tensors, 96 MiB shards
    assert peak_above_idle(src, tmp_path / "dst", jobs=2) < 400e6


def test_tensors_of_every_dtype_are_carried_along(folder, tmp_path):
    """Scales of microscaled checkpoints are F8_E8M0; nothing of that is coded."""
    path = next(folder.glob("*.safetensors"))
    left = [torch.float8_e8m0fnu, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.complex64]
    others = {f"{d}.weight": torch.ones(64, 64).to(d) for d in left}
    save_file({**load_file(path), **others}, path, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {**weight_map, **dict.fromkeys(others, path.name)}}))
    codecllm.compress_checkpoint(folder, tmp_path / "dst")
    assert codecllm.verify_checkpoint(folder, tmp_path / "dst").ok
    codecllm.decompress_checkpoint(tmp_path / "dst", tmp_path / "back")
    assert_same_folder(folder, tmp_path / "back")


def test_notes_of_a_shard_come_back(folder, tmp_path):
    path = next(folder.glob("*.safetensors"))
    save_file(load_file(path), path, metadata={"format": "pt", "made by": "Müller"})
    codecllm.compress_checkpoint(folder, tmp_path / "dst")
    codecllm.decompress_checkpoint(tmp_path / "dst", tmp_path / "back")
    notes = []
    for where in ("dst", "back"):
        with safe_open(tmp_path / where / path.name, framework="pt") as f:
            notes.append(f.metadata())
    before = {"format": "pt", "made by": "Müller"}
    assert notes == [{**before, "codecllm_version": "1"}, before]


def test_notes_of_an_index_come_back(folder, tmp_path):
    index = folder / "model.safetensors.index.json"
    notes = {"total_parameters": 7, "total_size": 0}
    index.write_text(json.dumps({**json.loads(index.read_text()), "metadata": notes}))
    codecllm.compress_checkpoint(folder, tmp_path / "dst")
    codecllm.decompress_checkpoint(tmp_path / "dst", tmp_path / "back")
    back = json.loads((tmp_path / "back" / index.name).read_text())["metadata"]
    size = sum(t.numel() * t.element_size() for t in tensors(folder).values())
    assert back == {"total_parameters": 7, "total_size": size}


@pytest.mark.parametrize("coding", ["rans", "fixed"])
@pytest.mark.parametrize("part", ["weight", "weight_raw", "weight_index", "weight_head"])
def test_a_stream_that_is_missing_is_named(make_checkpoint, tmp_path, part, coding):
    src, dst = make_checkpoint(tmp_path / "src", shards=1), tmp_path / "dst"
    (src / "model.safetensors.index.json").unlink()
    codecllm.compress_checkpoint(src, dst, coding=coding)
    (path,) = dst.glob("*.safetensors")
    missing = f"model.layers.0.self_attn.q_proj.{part}"
    save_file({k: v for k, v in load_file(path).items() if k != missing}, path)
    for read in (
        lambda: codecllm.checkpoint_info(dst),
        lambda: codecllm.verify_checkpoint(dst),
        lambda: codecllm.decompress_checkpoint(dst, tmp_path / "back"),
        lambda: codecllm.convert_checkpoint(dst, tmp_path / "converted", coding="rans"),
    ):
        with pytest.raises(codecllm.CorruptStreamError, match=f"{missing} is missing"):
            read()


def test_a_stream_of_another_kind_is_named(make_checkpoint, tmp_path):
    src, dst = make_checkpoint(tmp_path / "src", shards=1), tmp_path / "dst"
    (src / "model.safetensors.index.json").unlink()
    codecllm.compress_checkpoint(src, dst)
    (path,) = dst.glob("*.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    found = load_file(path)
    save_file({**found, name: found[name].view(torch.int8)}, path)
    with pytest.raises(codecllm.CorruptStreamError, match=rf"{name}: I8 \["):
        codecllm.verify_checkpoint(dst)


def test_a_variable_that_says_nothing_known_leaves_nothing_behind(
    make_checkpoint, tmp_path, monkeypatch
):
    src, dst = make_checkpoint(tmp_path / "src"), tmp_path / "dst"
    codecllm.compress_checkpoint(src, dst)
    monkeypatch.setenv("CODECLLM_CODING", "bogus")
    for write in (
        lambda: codecllm.compress_checkpoint(src, tmp_path / "new"),
        lambda: codecllm.convert_checkpoint(dst, tmp_path / "new", coding="fixed"),
    ):
        with pytest.raises(ValueError, match="CODECLLM_CODING=bogus is not one of"):
            write()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dst", "src"]
