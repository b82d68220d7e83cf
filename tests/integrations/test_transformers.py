"""Loading compressed folders with transformers: tiny random models, nothing downloaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

transformers = pytest.importorskip("transformers")

import codecllm  # noqa: E402
from codecllm.model.checkpoint import Checkpoint  # noqa: E402
from codecllm.nn import STREAM_NAMES, CodedModule, CompressedEmbedding  # noqa: E402
from model_cases import tiny_llama  # noqa: E402

IDS = torch.tensor([[1, 2, 3, 4, 100]])


def llama(tie=True, **kwargs):
    return tiny_llama(tie_word_embeddings=tie, attention_bias=True, **kwargs)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request):
    return llama(request.param)


@pytest.fixture
def packed(model, tmp_path):
    model.save_pretrained(tmp_path / "src", max_shard_size="100KB")
    codecllm.compress_checkpoint(tmp_path / "src", tmp_path / "dst")
    return tmp_path / "dst"


def load(path, **kwargs):
    return transformers.AutoModelForCausalLM.from_pretrained(path, **kwargs)


def logits(model):
    with torch.inference_mode():
        return model(IDS.to(model.device)).logits


def test_auto_model_loads_and_logits_are_equal_in_exact_mode(model, packed):
    loaded = load(packed)
    assert isinstance(loaded.model.embed_tokens, CompressedEmbedding)
    assert sum(isinstance(m, CodedModule) for m in loaded.modules()) == 16
    codecllm.set_exact(loaded)
    assert torch.equal(logits(loaded), logits(model))
    codecllm.set_exact(loaded, False)
    # Sums of 64 to 128 products in another order, through two layers.
    torch.testing.assert_close(logits(loaded), logits(model), atol=0.03, rtol=0.03)


def test_greedy_text_is_equal_in_exact_mode(model, packed):
    loaded = codecllm.load_compressed_model(packed, exact=True)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(IDS, **options)[0, IDS.shape[1] :]
    assert torch.equal(loaded.generate(IDS, **options)[0, IDS.shape[1] :], expected)


def test_tied_output_layer_shares_all_streams(packed):
    loaded = load(packed)
    shared = loaded.config.tie_word_embeddings
    for name in STREAM_NAMES:
        a, b = getattr(loaded.lm_head, name), getattr(loaded.model.embed_tokens, name)
        assert (a is b) == shared


def test_disk_mode_is_the_plain_model(model, packed):
    loaded = codecllm.load_compressed_model(packed, mode="disk")
    assert type(loaded) is type(model)
    assert not any(isinstance(m, CodedModule) for m in loaded.modules())
    for (name, a), (_, b) in zip(loaded.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert getattr(loaded.config, "quantization_config", None) is None


@pytest.mark.parametrize("how", ["save_pretrained", "save_compressed_model"])
def test_saving_what_was_loaded(model, packed, tmp_path, how):
    loaded = load(packed)
    if how == "save_pretrained":
        loaded.save_pretrained(tmp_path / "again")
    else:
        codecllm.save_compressed_model(loaded, tmp_path / "again")
    assert codecllm.verify_checkpoint(tmp_path / "src", tmp_path / "again").ok
    again = codecllm.load_compressed_model(tmp_path / "again", exact=True)
    assert torch.equal(logits(again), logits(model))


def test_saving_what_was_compressed_in_memory(model, tmp_path):
    expected = logits(model)
    codecllm.compress_model_weights(model)
    codecllm.save_compressed_model(model, tmp_path / "x", max_shard_size="100KB")
    assert "import codecllm" in (tmp_path / "x" / "README.md").read_text()
    loaded = codecllm.load_compressed_model(tmp_path / "x", exact=True)
    assert torch.equal(logits(loaded), expected)


def test_another_dtype_casts_outputs_not_streams(packed):
    loaded = load(packed, dtype=torch.float32)
    assert logits(loaded).dtype == torch.float32
    assert loaded.lm_head.weight.dtype == torch.float32
    assert loaded.lm_head.streams[0].dtype == torch.uint8


def test_device_maps(model, packed, tmp_path):
    pytest.importorskip("accelerate")
    codecllm_model = load(packed, device_map={"": "cpu"})
    codecllm.set_exact(codecllm_model)
    assert torch.equal(logits(codecllm_model), logits(model))
    layers = {"model.layers.1": "disk", "model.layers.0": "cpu", "model.norm": "cpu"}
    rest = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    offloaded = load(packed, device_map={**layers, **rest}, offload_folder=tmp_path / "off")
    codecllm.set_exact(offloaded)
    assert offloaded.model.layers[1].mlp.up_proj.weight.is_meta
    assert torch.equal(logits(offloaded), logits(model))


def test_int8_folder(model, tmp_path):
    model.save_pretrained(tmp_path / "src")
    codecllm.compress_checkpoint(tmp_path / "src", tmp_path / "dst", format="int8")
    loaded = load(tmp_path / "dst")
    dense = codecllm.load_compressed_model(tmp_path / "dst", mode="disk")
    codecllm.set_exact(loaded)
    assert torch.equal(logits(loaded), logits(dense))


def tiny(kind, **kwargs):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind,
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        **kwargs,
    )
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


@pytest.mark.parametrize(
    ("kind", "options", "coded"),
    [
        ("qwen2", {}, 16),
        ("mistral", {}, 16),
        ("phi3", {"pad_token_id": 0}, 10),
        # Embeddings that ask for weight.dtype, tied.
        ("gemma2", {}, 16),
        # Experts stay dense.
        ("mixtral", {"num_local_experts": 2}, 10),
    ],
)
def test_architectures(tmp_path, kind, options, coded):
    tiny(kind, **options).save_pretrained(tmp_path / "src")
    codecllm.compress_checkpoint(tmp_path / "src", tmp_path / "dst")
    dense, loaded = load(tmp_path / "src"), load(tmp_path / "dst")
    codecllm.set_exact(loaded)
    assert sum(isinstance(m, CodedModule) for m in loaded.modules()) == coded
    assert torch.equal(logits(loaded), logits(dense))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_layer_that_the_model_keeps_in_float32(tmp_path, dtype):
    """T5 casts x to wo.weight.dtype, which is float32 in a model that is loaded as float16."""
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=128, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4
    )
    auto = transformers.AutoModelForSeq2SeqLM
    auto.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "src")
    codecllm.compress_checkpoint(tmp_path / "src", tmp_path / "dst")
    dense, loaded = (auto.from_pretrained(tmp_path / n, dtype=dtype).eval() for n in ("src", "dst"))
    codecllm.set_exact(loaded)
    wo = [m for n, m in loaded.named_modules() if n.endswith(".wo")]
    kept = torch.float32 if dtype == torch.float16 else dtype
    assert wo and all(isinstance(m, CodedModule) and m.weight.dtype == kept for m in wo)
    with torch.inference_mode():
        a, b = (m(input_ids=IDS, decoder_input_ids=IDS).logits for m in (dense, loaded))
    assert torch.equal(a, b)


def test_bias_of_a_tied_output_layer_keeps_its_size(tmp_path):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=128,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=128,
    )
    auto = transformers.AutoModelForMaskedLM
    auto.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "src")
    codecllm.compress_checkpoint(tmp_path / "src", tmp_path / "dst")
    dense, loaded = (auto.from_pretrained(tmp_path / n).eval() for n in ("src", "dst"))
    codecllm.set_exact(loaded)
    assert loaded.cls.predictions.decoder.bias.shape == (128,)
    assert torch.equal(logits(loaded), logits(dense))


def damage(folder, part):
    with Checkpoint(folder) as source:
        name = source.coded_names()[0]
        entry, path = source.entry(name.removesuffix("weight") + part), source.where[name].path
    data = bytearray(path.read_bytes())
    data[entry.begin + entry.nbytes // 2] ^= 1
    path.write_bytes(data)
    return path, name


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ("weight", "stream"),
        ("weight_raw", "raw"),
        ("weight_index", "index"),
        ("weight_head", "head"),
    ],
)
def test_damage_names_file_tensor_and_field(packed, part, field):
    path, name = damage(packed, part)
    with pytest.raises(codecllm.CorruptStreamError) as error:
        load(packed)
    assert str(error.value).startswith(f"{path}: {name}: {field}: ")


def test_a_file_cut_short_names_file_and_tensor(packed):
    path = sorted(packed.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(codecllm.CorruptStreamError, match=rf"{path.name}: .*cut short"):
        codecllm.load_compressed_model(packed)


@pytest.mark.parametrize("version", [2, "2", None])
def test_another_version_is_refused_with_a_sentence(packed, version):
    path = packed / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["version"] = version
    path.write_text(json.dumps(config))
    with pytest.raises(codecllm.UnsupportedFormatError, match="upgrade codecllm"):
        load(packed)


def test_modes_that_do_not_exist(packed):
    with pytest.raises(NotImplementedError, match="not there yet"):
        codecllm.load_compressed_model(packed, mode="on_demand")
    with pytest.raises(ValueError, match="unknown"):
        codecllm.load_compressed_model(packed, mode="magic")


def test_a_dense_folder_is_not_a_compressed_one(model, tmp_path):
    model.save_pretrained(tmp_path / "src")
    with pytest.raises(ValueError, match="not compressed"):
        codecllm.load_compressed_model(tmp_path / "src")


def test_a_dense_folder_that_says_it_is_compressed(model, packed, tmp_path):
    config = (packed / "config.json").read_text()
    (tmp_path / "src" / "config.json").write_text(config)
    with pytest.raises(ValueError, match=r"`codecllm compress`.* or delete quantization_config"):
        load(tmp_path / "src")


@pytest.mark.parametrize("first", ["codecllm, transformers", "transformers, codecllm"])
def test_registers_in_either_order_of_import(packed, first):
    program = (
        f"import sys\nimport {first}\n"
        "from transformers import AutoModelForCausalLM\n"
        "m = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "print(type(m.lm_head).__name__)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", program, str(packed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True, text=True)
    assert done.stdout.strip() == "CompressedLinear"


def test_import_codecllm_imports_neither_torch_nor_transformers():
    program = (
        "import sys, codecllm\n"
        "print([m for m in ('torch', 'transformers', 'typer') if m in sys.modules])\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        env=environment,
        check=True,
        text=True,
    )
    assert done.stdout.strip() == "[]"


def test_weights_that_a_model_writes_to_stay_dense(tmp_path):
    """RWKV divides some when it first runs for inference."""
    torch.manual_seed(0)
    config = transformers.RwkvConfig(
        vocab_size=128, hidden_size=64, num_hidden_layers=2, attention_hidden_size=64,
        intermediate_size=128, rescale_every=1,
    )  # fmt: skip
    auto = transformers.AutoModelForCausalLM
    auto.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "src")
    codecllm.compress_checkpoint(tmp_path / "src", tmp_path / "dst")
    expected = logits(auto.from_pretrained(tmp_path / "src"))
    loaded = auto.from_pretrained(tmp_path / "dst")
    codecllm.set_exact(loaded)
    memory = auto.from_pretrained(tmp_path / "src")
    report = codecllm.compress_model_weights(memory, exact=True)
    assert {x.name.rpartition(".")[2] for x in report.of("skipped")} == {"output", "value"}
    for model in (loaded, memory):
        assert sum(isinstance(m, CodedModule) for m in model.modules()) == 12
        assert torch.equal(logits(model), expected)


def test_num_parameters_of_a_loaded_model(model, packed):
    loaded = load(packed)
    assert loaded.num_parameters() == model.num_parameters()
    assert codecllm.decompress_model(loaded).num_parameters() == model.num_parameters()
