"""What is measured, and that nothing wrong is."""

from __future__ import annotations

import pytest
import torch

import codecllm
import codecllm_ops
from codecllm.bench import run, run_bench
from codecllm.bench.linear import WrongResultError
from codecllm.bench.timing import Effort
from codecllm.bench.weights import dense_bytes, model_groups, normal_groups
from model_cases import make_folder, tensors, tiny_llama


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """One round of everything, and no more weights than needed."""
    once = Effort(1, 0.0)
    plan = run.Plan((1, 3), 2, once, once, run.Work(4, 3, 8))
    monkeypatch.setattr(run, "FULL", plan)
    monkeypatch.setattr("codecllm.bench.weights.cache_bytes", lambda: 1)


@pytest.fixture
def wide(tmp_path):
    """A folder whose matrices are large enough for both codings."""
    return make_folder(tmp_path / "src", width=256)


def test_products_of_a_folder(wide):
    report = run_bench(wide, parts=["linear"])
    found = report.to_dict()["results"]["linear"]
    assert [(r["shape"], r["layers"], r["batch"]) for r in found] == [
        ([256, 256], 6, 1),
        ([256, 256], 6, 3),
    ]
    for result in found:
        assert list(result["ms"]) == ["dense", "fixed", "rans"]
        assert list(result["of_linear_speed"]) == ["fixed", "rans"]
        assert 12 < result["bits_per_weight"]["fixed"] < 13
    assert (report.dense, report.model, report.absent) == ("bfloat16", "src", {})


def test_a_compressed_folder_has_the_same_products(wide, tmp_path):
    codecllm.compress_checkpoint(wide, tmp_path / "dst")
    plain, coded = (list(model_groups(f, 9)) for f in (wide, tmp_path / "dst"))
    assert [(g.shape, g.layers) for g in plain] == [(g.shape, g.layers) for g in coded]
    for a, b in zip(plain, coded, strict=True):
        assert sorted(w.sum().item() for w in a.weights) == sorted(
            w.sum().item() for w in b.weights
        )
    assert dense_bytes(wide) == dense_bytes(tmp_path / "dst")
    assert dense_bytes(wide) == sum(t.nbytes for t in tensors(wide).values())


@pytest.mark.parametrize("tied", [False, True])
def test_input_embeddings_are_multiplied_with_where_they_are_tied(tmp_path, tied):
    tiny_llama(tie_word_embeddings=tied).save_pretrained(tmp_path)
    layers = {g.shape: g.layers for g in model_groups(tmp_path, 9)}
    assert layers[128, 64] == 4 + 1  # gate and up of two layers, and the output layer


def test_weights_are_so_many_that_no_cache_holds_them(monkeypatch, wide):
    monkeypatch.setattr("codecllm.bench.weights.cache_bytes", lambda: 2**20)
    (group,) = normal_groups([(512, 512)])
    assert len(group.weights) == 8
    assert len({w.data_ptr() for w in group.weights}) == 8
    (group, *_) = model_groups(wide, 1)
    assert len(group.weights) == 32 and group.layers == 6
    (group,) = normal_groups([(16, 16)])
    assert len(group.weights) == 256


def wrong_product(x, coded, bias=None):
    y = codecllm_ops.ops.functional.decode_linear(x, coded, bias)
    y[-1, -1] += 0.25 * y.abs().max()
    return y


def wrong_bits(coded):
    weight = codecllm_ops.ops.functional.decode(coded)
    weight.view(torch.int16)[-1, -1] ^= 1
    return weight


@pytest.mark.parametrize(
    ("name", "wrong", "sentence"),
    [
        ("decode_linear", wrong_product, "fixed: 1 rows of x times .* are wrong by up to"),
        ("decode", wrong_bits, "fixed: a matrix of .* decodes to other bits"),
    ],
)
def test_what_computes_something_else_is_not_timed(monkeypatch, wide, name, wrong, sentence):
    monkeypatch.setattr(codecllm_ops, name, wrong)
    with pytest.raises(WrongResultError, match=sentence):
        run_bench(wide, parts=["linear"])


def test_a_coding_that_the_weights_cannot_have(tmp_path):
    half = make_folder(tmp_path / "src", width=256, dtype=torch.float16)
    report = run_bench(half, parts=["linear"])
    assert report.dense == "float16" and list(report.linear[0].speed) == ["rans"]
    assert "fixed" in report.absent
    with pytest.raises(codecllm.UnsupportedFormatError):
        run_bench(half, parts=["linear"], codings=["fixed"])


def test_tokens_with_dense_and_coded_weights(tmp_path):
    pytest.importorskip("transformers")
    tiny_llama(hidden_size=128, intermediate_size=256).save_pretrained(tmp_path / "src")
    report = run_bench(tmp_path / "src", parts=["tokens"])
    found = report.to_dict()["results"]["generation"]
    assert list(found["tokens_per_second"]) == ["dense", "fixed", "rans"]
    assert list(found["prefill_of_dense_speed"]) == ["fixed", "rans"]
    assert found["in_turns"] and found["tokens"] == 3
    assert set(found["same_tokens"]) == {"fixed", "rans"}


def test_models_that_do_not_fit_together_run_one_after_another(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(run, "free_bytes", lambda: 0)
    tiny_llama(hidden_size=128).save_pretrained(tmp_path / "src")
    codecllm.compress_checkpoint(tmp_path / "src", tmp_path / "dst")
    loaded = []
    report = run_bench(tmp_path / "dst", parts=["tokens"], codings=["rans"], progress=loaded.append)
    assert loaded == ["tokens per second, dense", "tokens per second, rans"]
    assert report.generation is not None and not report.generation.in_turns


def test_memory_is_that_of_a_process_of_its_own(tmp_path):
    pytest.importorskip("transformers")
    tiny_llama(hidden_size=256, vocab_size=8192).save_pretrained(tmp_path / "src")
    memory = run_bench(tmp_path / "src", parts=["memory"], codings=["fixed"]).memory
    rotary = memory["dense"].weights - dense_bytes(tmp_path / "src")
    assert 0 <= rotary < 1024
    assert 0.7 < memory["fixed"].weights / memory["dense"].weights < 0.8
    for found in memory.values():
        assert found.peak_loading >= found.loaded
        assert found.idle > found.weights


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"batches": [4, 0]}, "batch sizes are at least 1, not 0"),
        ({"threads": 0}, "threads are at least 1"),
        ({"codings": ["zip"]}, "coding 'zip' is unknown; known: fixed, rans"),
        ({"parts": ["lines"]}, "part 'lines' is unknown; known: linear, tokens, memory"),
        ({"parts": ["tokens"]}, "name its folder"),
    ],
)
def test_arguments_out_of_range(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        run_bench(None, **arguments)


def test_threads_are_those_of_before_afterwards(wide):
    before = torch.get_num_threads()
    report = run_bench(wide, parts=["linear"], threads=before + 1, batches=[2])
    assert report.machine["threads"] == before + 1
    assert torch.get_num_threads() == before
    assert [r.batch for r in report.linear] == [2]
