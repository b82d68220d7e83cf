"""transformers models compressed in memory: what transformers then knows of it."""

from __future__ import annotations

import copy

import pytest
import torch

transformers = pytest.importorskip("transformers")

import codecllm  # noqa: E402
from codecllm.nn import CodedModule  # noqa: E402
from model_cases import tiny_llama  # noqa: E402

IDS = torch.tensor([[1, 2, 3, 4, 100]])


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request):
    return tiny_llama(tie_word_embeddings=request.param)


@torch.inference_mode()
def logits(model):
    return model(IDS).logits


@pytest.mark.parametrize("max_shard_size", ["5GB", "40KB"])
def test_save_pretrained_writes_a_folder_that_loads(model, tmp_path, max_shard_size):
    expected = logits(model)
    codecllm.compress_model_weights(model, should_compress=codecllm.by_regex(exclude="q_proj"))
    model.save_pretrained(tmp_path / "saved", max_shard_size=max_shard_size)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    codecllm.set_exact(loaded)
    assert sum(isinstance(m, CodedModule) for m in loaded.modules()) == 14
    assert torch.equal(logits(loaded), expected)
    listed = loaded.config.quantization_config.modules_to_not_convert
    assert listed == ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]


def test_trainer_wants_an_adapter(model, tmp_path):
    """Without a quantizer it would train the norms alone, and say nothing."""
    pytest.importorskip("accelerate")
    codecllm.compress_model_weights(model)
    options = transformers.TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    with pytest.raises(ValueError, match="attach trainable adapters"):
        transformers.Trainer(model=model, args=options)


def test_decompressed_it_is_the_plain_model_again(model, tmp_path):
    expected = logits(model)
    codecllm.compress_model_weights(model)
    assert model.is_quantized and model.config.quantization_config.quant_method == "codecllm"
    codecllm.decompress_model(model)
    assert not model.is_quantized and not hasattr(model.config, "quantization_config")
    model.save_pretrained(tmp_path / "saved")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(loaded), expected)


@pytest.mark.parametrize("loaded", [False, True])
def test_decompressed_it_can_be_resized(model, tmp_path, loaded):
    """Tied again by transformers, which knows nothing of streams any more."""
    codecllm.compress_model_weights(model)
    if loaded:
        model.save_pretrained(tmp_path / "saved")
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    codecllm.decompress_model(model)
    model.resize_token_embeddings(160)
    tied = model.config.tie_word_embeddings
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert logits(model).shape[-1] == 160


def test_a_copy_is_compressed_too(model):
    expected = logits(model)
    codecllm.compress_model_weights(model, exact=True)
    assert torch.equal(logits(copy.deepcopy(model)), expected)
