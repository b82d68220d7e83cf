"""compress_model_weights and decompress_model, with the traps that others fell into."""

from __future__ import annotations

import gc
import json
import weakref

import pytest
import torch
from torch import nn

import codecllm
from codecllm.nn import CodedModule, CompressedEmbedding, CompressedLinear
from codecllm_ops.format import Head


def test_every_layer_keeps_its_own_weights(tied):
    """Matching by the last part of a name gives every q_proj the weights of the first."""
    originals = [block["q_proj"].weight.detach().clone() for block in tied.blocks]
    codecllm.compress_model_weights(tied)
    assert not torch.equal(*originals)
    for block, original in zip(tied.blocks, originals, strict=True):
        assert torch.equal(block["q_proj"].decode(), original)


def test_outputs_are_equal_in_exact_mode_and_after_the_way_back(tied, ids):
    expected = tied(ids)
    codecllm.compress_model_weights(tied, exact=True)
    assert torch.equal(tied(ids), expected)
    codecllm.decompress_model(tied)
    assert not any(isinstance(m, CodedModule) for m in tied.modules())
    assert torch.equal(tied(ids), expected)
    assert tied.head.weight is tied.embed.weight


def test_tied_weights_share_their_streams_and_count_once(tied):
    report = codecllm.compress_model_weights(tied)
    assert isinstance(tied.embed, CompressedEmbedding) and isinstance(tied.head, CompressedLinear)
    for name in codecllm.nn.STREAM_NAMES:
        assert getattr(tied.embed, name) is getattr(tied.head, name)
    statuses = [x.status for x in report.layers]
    assert statuses == ["coded", "tied", "coded", "coded", "other", "other"]
    assert report.dense_bytes == 2 * (96 * 64 + 2 * 64 * 64 + 2 * 64)
    tied.half()
    assert tied.embed.weight is tied.head.weight


def test_originals_are_freed_one_at_a_time():
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    dead = [weakref.ref(layer.weight) for layer in model]
    alive = []
    codecllm.compress_model_weights(
        model, progress=lambda _: alive.append(sum(r() is not None for r in dead))
    )
    gc.collect()
    assert [r() for r in dead] == [None] * 4
    assert alive == [3, 2, 1, 0]


def test_streams_are_freed_on_the_way_back(tied):
    codecllm.compress_model_weights(tied)
    dead = [weakref.ref(p) for n, p in tied.named_parameters() if "weight" in n]
    codecllm.decompress_model(tied)
    gc.collect()
    assert dead and all(r() is None for r in dead)


def test_compressing_again_and_again_does_not_grow(tied, ids):
    sizes = set()
    for _ in range(3):
        codecllm.compress_model_weights(tied)
        sizes.add(sum(p.numel() for p in tied.parameters()))
        codecllm.decompress_model(tied)
    assert len(sizes) == 1


def test_predicates(tied):
    accept = codecllm.all_of(codecllm.by_size(64 * 64), codecllm.by_regex(exclude=r"blocks\.0"))
    report = codecllm.compress_model_weights(tied, should_compress=accept)
    assert type(tied.blocks[0]["q_proj"]) is nn.Linear
    assert isinstance(tied.blocks[1]["q_proj"], CompressedLinear)
    assert [x.name for x in report.of("skipped")] == ["blocks.0.q_proj"]


def test_a_tied_weight_is_refused_as_a_whole(tied):
    codecllm.compress_model_weights(tied, should_compress=codecllm.by_regex(exclude="^head$"))
    assert type(tied.embed) is nn.Embedding and tied.embed.weight is tied.head.weight


def test_report_adds_up_and_survives_json(tied):
    report = codecllm.compress_model_weights(tied)
    data = json.loads(report.to_json())
    coded = [x for x in data["layers"] if x["status"] == "coded"]
    biases = [x for x in data["layers"] if x["status"] == "other"]
    assert data["coded_bytes"] == sum(x["coded_bytes"] for x in coded + biases)
    held = {p.data_ptr(): p.nbytes for p in tied.parameters()}
    assert sum(held.values()) == report.coded_bytes
    assert codecllm.CompressionReport.from_dict(data) == report
    assert "bits/weight" in report.line()


def test_a_weight_that_does_not_shrink_stays_dense():
    torch.manual_seed(0)
    noise = torch.randint(0, 256, (64, 128), dtype=torch.uint8)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64, dtype=torch.bfloat16))
    model[1].weight = nn.Parameter(noise.view(torch.bfloat16))
    report = codecllm.compress_model_weights(model)
    assert [x.name for x in report.of("stored")] == ["1"]
    assert type(model[1]) is nn.Linear


def test_nothing_to_compress_says_why(tied):
    with pytest.raises(ValueError, match=r"has them in Conv1d"):
        codecllm.compress_model_weights(nn.Sequential(nn.Conv1d(2, 2, 1)))
    with pytest.raises(ValueError, match="should_compress said no"):
        codecllm.compress_model_weights(tied, should_compress=lambda name, module: False)
    codecllm.compress_model_weights(tied)
    with pytest.raises(ValueError, match="compressed already"):
        codecllm.compress_model_weights(tied)


@pytest.mark.parametrize(
    ("module", "name"),
    [(nn.Linear(64, 64), "CompressedLinear"), (nn.Embedding(64, 64), "CompressedEmbedding")],
)
def test_a_model_that_is_one_module_is_told_what_to_use(module, name):
    with pytest.raises(ValueError, match=rf"use codecllm\.{name}\(module\)"):
        codecllm.compress_model_weights(module)
    with pytest.raises(ValueError, match="is compressed already"):
        codecllm.compress_model_weights(getattr(codecllm, name)(module))


def test_the_report_says_what_stays_dense_and_what_memory_it_takes():
    model = nn.ModuleDict({"a": nn.Linear(512, 512), "b": nn.Linear(512, 512)})
    model["c"] = nn.Conv1d(512, 512, 1)
    report = codecllm.compress_model_weights(
        model.to(torch.bfloat16), should_compress=codecllm.by_regex(exclude="^b$")
    )
    matrix = 2 * 512 * 512
    assert report.dense_bytes == report.memory.plain_bytes == 3 * (matrix + 2 * 512)
    assert list(report.memory.dense) == ["should_compress said no", "Conv1d", "biases"]
    assert report.memory.dense["Conv1d"] == matrix
    assert matrix * 2.7 < report.memory.bytes < matrix * 2.8
    dense, memory, coded = report.lines()[1:]
    assert dense == "dense: 1 matrix, 0.500 MiB: should_compress said no"
    assert memory.endswith("; dense: 0.500 should_compress said no, 0.500 Conv1d")
    assert coded.startswith("in memory fixed: 1 matrix, 0.37") and "bits per weight" in coded


def test_what_inference_mode_compressed_can_be_trained_through(tied, ids):
    with torch.inference_mode():
        codecllm.compress_model_weights(tied)
    tied(ids).float().sum().backward()
    assert tied.blocks[0]["q_proj"].bias.grad.abs().sum() > 0
    with torch.inference_mode():
        codecllm.decompress_model(tied)
    tied(ids).float().sum().backward()
    assert not tied.head.weight.is_inference()


class Scaled(nn.Embedding):
    def __init__(self, n, d, scale):
        super().__init__(n, d)
        self.scale = scale

    def forward(self, ids):
        return super().forward(ids) * self.scale


class Direct(nn.Linear):
    def forward(self, x):
        return x @ self.weight.T


def test_subclasses_keep_their_forward():
    model = nn.ModuleDict({"e": Scaled(64, 64, 3.0), "d": Direct(64, 64)})
    ids = torch.tensor([1, 5])
    expected, weight = model["e"](ids), model["e"].weight.detach().clone()
    x = torch.randn(3, 64)
    products = model["d"](x)
    codecllm.compress_model_weights(model)
    assert isinstance(model["e"], CompressedEmbedding) and isinstance(model["e"], Scaled)
    assert torch.equal(model["e"](ids), expected)
    assert isinstance(model["d"], CompressedLinear) and isinstance(model["d"], Direct)
    assert torch.allclose(model["d"](x), products, rtol=1e-5, atol=1e-5)
    codecllm.set_exact(model)
    assert torch.equal(model["d"](x), products)
    codecllm.decompress_model(model)
    assert type(model["e"]) is Scaled and torch.equal(model["e"].weight, weight)
    assert torch.equal(model["e"](ids), expected)


def test_one_module_under_two_names_stays_one():
    layer = nn.Linear(64, 64)
    model = nn.ModuleDict({"a": layer, "b": layer})
    codecllm.compress_model_weights(model)
    assert model["a"] is model["b"]


@pytest.mark.parametrize("meta", [False, True])
def test_save_file_and_load_file(tied, ids, tmp_path, meta):
    fresh = type(tied)()
    if meta:
        fresh = fresh.to("meta")
    expected = tied(ids)
    codecllm.compress_model_weights(tied)
    codecllm.save_file(tied, tmp_path / "m.safetensors")
    codecllm.load_file(fresh, tmp_path / "m.safetensors")
    codecllm.set_exact(fresh)
    assert torch.equal(fresh(ids), expected)
    assert fresh.head.weight is fresh.embed.weight


def test_load_file_parses_a_head_once(tied, tmp_path, monkeypatch):
    codecllm.compress_model_weights(tied)
    codecllm.save_file(tied, tmp_path / "m.safetensors")
    real, parsed = Head.parse, []
    monkeypatch.setattr(Head, "parse", lambda data: parsed.append(1) or real(data))
    codecllm.load_file(type(tied)(), tmp_path / "m.safetensors")
    assert len(parsed) == 3  # the tied weight and two layers


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_load_file_gives_the_weights_the_dtype_of_the_model(tied, ids, tmp_path, dtype):
    codecllm.compress_model_weights(tied)
    codecllm.save_file(tied, tmp_path / "m.safetensors")
    loaded = codecllm.load_file(type(tied)(dtype), tmp_path / "m.safetensors")
    codecllm.decompress_model(loaded.to(dtype))
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    codecllm.decompress_model(tied)
    assert torch.equal(loaded(ids), tied.to(dtype)(ids))


def test_load_file_refuses_another_architecture(tied, tmp_path):
    codecllm.compress_model_weights(tied)
    codecllm.save_file(tied, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="no module 'blocks"):
        codecllm.load_file(nn.Sequential(nn.Linear(2, 2)), tmp_path / "m.safetensors")


def test_save_compressed_model_needs_compression_and_room(tied, tmp_path):
    with pytest.raises(ValueError, match="compress_model_weights first"):
        codecllm.save_compressed_model(tied, tmp_path / "x")
    codecllm.compress_model_weights(tied)
    (tmp_path / "x").mkdir()
    with pytest.raises(FileExistsError, match="force=True"):
        codecllm.save_compressed_model(tied, tmp_path / "x")
    codecllm.save_compressed_model(tied, tmp_path / "x", force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
