"""Codings of models that transformers loads: who says which, what is mapped, what is refused."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")

import codecllm  # noqa: E402
from codecllm.integrations.generate import generate_text  # noqa: E402
from codecllm.integrations.transformers import CodecllmConfig  # noqa: E402
from codecllm.nn import CodedModule  # noqa: E402
from codecllm.nn.mapped import MappedFiles  # noqa: E402
from model_cases import tiny_llama  # noqa: E402

IDS = torch.tensor([[1, 2, 3, 100]])


@pytest.fixture(scope="module")
def model():
    return tiny_llama(hidden_size=128, intermediate_size=256)


@pytest.fixture(scope="module")
def folders(model, tmp_path_factory):
    """The same model dense and in both codings."""
    root = tmp_path_factory.mktemp("folders")
    model.save_pretrained(root / "dense")
    for coding in ("rans", "fixed"):
        codecllm.compress_checkpoint(root / "dense", root / coding, coding=coding)
    return root


@torch.inference_mode()
def logits(model):
    return model(IDS).logits


def codings(model):
    return {m.coding for m in model.modules() if isinstance(m, CodedModule)}


def from_pretrained(folder, **options):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto", **options)


@pytest.mark.parametrize("of_files", ["rans", "fixed"])
@pytest.mark.parametrize("coding", ["auto", "rans", "fixed"])
def test_every_folder_loads_in_every_coding(model, folders, of_files, coding):
    loaded = codecllm.load_compressed_model(folders / of_files, coding=coding, exact=True)
    assert codings(loaded) == {"fixed" if coding == "auto" else coding}
    assert torch.equal(logits(loaded), logits(model))
    report = codecllm.coding_of(loaded)
    reason = "measured on a CPU" if coding == "auto" else "asked for"
    assert all(reason in layer.reason for layer in report.layers)


def test_transformers_itself_loads_by_the_rule(folders, model):
    loaded = from_pretrained(folders / "rans")
    assert codings(loaded) == {"fixed"}
    for name, module in loaded.named_modules():
        if isinstance(module, CodedModule):
            assert torch.equal(module.dense_weight(), model.get_submodule(name).weight)


def test_a_context_a_variable_and_a_configuration_are_heard(folders, monkeypatch):
    with codecllm.default_coding("rans"):
        assert codings(from_pretrained(folders / "rans")) == {"rans"}
        config = CodecllmConfig(coding="fixed")
        assert codings(from_pretrained(folders / "rans", quantization_config=config)) == {"fixed"}
        explicit = codecllm.load_compressed_model(folders / "rans", coding="fixed")
        assert codings(explicit) == {"fixed"}
    monkeypatch.setenv("CODECLLM_CODING", "rans")
    assert codings(from_pretrained(folders / "rans")) == {"rans"}
    assert codings(codecllm.load_compressed_model(folders / "rans")) == {"rans"}


def test_the_variable_reaches_a_process(folders):
    code = (
        "import codecllm, transformers, sys;"
        "m = transformers.AutoModel.from_pretrained(sys.argv[1]);"
        "print({x.after for x in codecllm.coding_of(m).layers})"
    )
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", code, str(folders / "rans")],
        env={**os.environ, "PYTHONPATH": path, "CODECLLM_CODING": "rans"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "{'rans'}"


def test_a_wish_is_nothing_that_a_folder_says(folders, tmp_path):
    config = CodecllmConfig(coding="rans")
    loaded = from_pretrained(folders / "fixed", quantization_config=config)
    loaded.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "coding" not in saved["quantization_config"]
    assert codings(from_pretrained(tmp_path / "saved")) == {"fixed"}
    with pytest.raises(ValueError, match="coding 'x' is unknown"):
        CodecllmConfig(coding="x")


def test_what_is_saved_is_what_is_in_memory(folders, model, tmp_path):
    loaded = codecllm.load_compressed_model(folders / "rans", coding="fixed")
    codecllm.save_compressed_model(loaded, tmp_path / "saved")
    info = codecllm.checkpoint_info(tmp_path / "saved")
    assert set(info.codings) == {"fixed"}
    again = codecllm.load_compressed_model(tmp_path / "saved", exact=True)
    assert torch.equal(logits(again), logits(model))


def test_a_fixed_folder_is_mapped_and_rans_pages_are_let_go(folders):
    def planes(coding, of_files):
        loaded = codecllm.load_compressed_model(folders / of_files, coding=coding)
        files = MappedFiles()
        modules = [m for m in loaded.modules() if isinstance(m, CodedModule)]
        return loaded, [files.holds(m.streams[0]) for m in modules]

    _, mapped = planes("fixed", "fixed")
    assert all(mapped)
    _, mapped = planes("fixed", "rans")
    assert not any(mapped)


def test_streams_of_a_fixed_folder_are_aligned(folders):
    loaded = codecllm.load_compressed_model(folders / "fixed", coding="fixed")
    planes = [m.streams[0] for m in loaded.modules() if isinstance(m, CodedModule)]
    assert planes and all(plane.data_ptr() % 64 == 0 for plane in planes)


def test_disk_mode_has_no_coding(folders, model):
    with pytest.raises(ValueError, match='mode "disk" decodes all weights'):
        codecllm.load_compressed_model(folders / "fixed", "disk", coding="rans")
    loaded = codecllm.load_compressed_model(folders / "fixed", "disk")
    assert torch.equal(logits(loaded), logits(model))
    plain = from_pretrained(
        folders / "fixed", quantization_config=CodecllmConfig(dequantize=True, coding="rans")
    )
    assert not codings(plain) and torch.equal(logits(plain), logits(model))


def test_fixed_that_no_weight_can_have(folders, tmp_path):
    codecllm.compress_checkpoint(folders / "dense", tmp_path / "int8", format="int8")
    for load in (
        lambda: codecllm.load_compressed_model(tmp_path / "int8", coding="fixed"),
        lambda: from_pretrained(
            tmp_path / "int8", quantization_config=CodecllmConfig(coding="fixed")
        ),
    ):
        with pytest.raises(ValueError, match='"fixed" is asked for, and no weight here can have'):
            load()
    with codecllm.default_coding("fixed"):
        report = codecllm.coding_of(from_pretrained(tmp_path / "int8"))
    assert all("int8: fixed is for bf16" in x.reason or x.after == "stored" for x in report.layers)


@pytest.mark.parametrize("coding", ["rans", "fixed"])
def test_damage_is_an_error_that_names_the_file(folders, tmp_path, coding):
    folder = tmp_path / "damaged"
    shutil.copytree(folders / coding, folder)
    path = folder / "model.safetensors"
    state, name = load_file(path), "model.layers.1.mlp.up_proj.weight"
    state[name][1000] ^= 16
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(codecllm.CorruptStreamError, match=f"{path}: {name}: stream: CRC-32"):
        codecllm.load_compressed_model(folder)


def test_tied_and_reloaded(tmp_path):
    tied = tiny_llama(tie_word_embeddings=True)
    tied.save_pretrained(tmp_path / "src")
    codecllm.compress_checkpoint(tmp_path / "src", tmp_path / "dst")
    loaded = codecllm.load_compressed_model(tmp_path / "dst", coding="fixed", exact=True)
    embed, head = loaded.model.embed_tokens, loaded.lm_head
    assert all(a is b for a, b in zip(embed.streams, head.streams, strict=True))
    assert torch.equal(logits(loaded), logits(tied))
    codecllm.set_coding(loaded, "rans", lambda name, module: name in ("lm_head", "x"))
    assert codings(loaded) == {"fixed"}  # the embedding, which has the same weight, was refused
    codecllm.set_coding(loaded, "rans")
    assert all(a is b for a, b in zip(embed.streams, head.streams, strict=True))
    assert torch.equal(logits(loaded), logits(tied))


def test_set_coding_on_a_model_of_transformers(folders, model):
    loaded = from_pretrained(folders / "rans")
    codecllm.set_exact(loaded)
    y = logits(loaded)
    codecllm.set_coding(loaded, "rans", lambda name, module: "mlp" in name)
    assert codings(loaded) == {"fixed", "rans"}
    assert loaded.num_parameters() == model.num_parameters()
    clone = copy.deepcopy(loaded)
    codecllm.set_coding(loaded, "fixed")
    assert torch.equal(logits(loaded), y)
    assert torch.equal(logits(clone), y)
    codecllm.decompress_model(loaded)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("coding", ["rans", "fixed"])
def test_lora_on_top(folders, coding):
    peft = pytest.importorskip("peft")
    base = codecllm.load_compressed_model(folders / "rans", coding=coding, exact=True)
    config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(base, config)
    adapted(IDS).logits.float().sum().backward()
    grads = [p.grad for p in adapted.parameters() if p.requires_grad]
    assert grads and all(g is not None and g.isfinite().all() for g in grads)
    y = logits(adapted)
    codecllm.set_coding(adapted, "rans" if coding == "fixed" else "fixed")
    assert torch.equal(logits(adapted), y)


def test_generation_reports_the_coding(folders, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path / "chat"
    shutil.copytree(folders / "rans", folder)
    words = tokenizers.models.WordLevel({str(i): i for i in range(128)}, unk_token="0")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words), eos_token="2", unk_token="0"
    )
    tokenizer.save_pretrained(folder)
    for coding in ("fixed", "rans"):
        result = generate_text(folder, ["5"], max_new_tokens=2, coding=coding)
        assert len(result.codings) == 1 and result.codings[0].startswith(f"{coding}: ")
        assert result.to_dict()["codings"]
