"""PEFT's adapters on compressed models: each works as on the dense model, or says why not."""

from __future__ import annotations

import copy

import pytest
import torch

import codecllm
from model_cases import tiny_llama

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

IDS = torch.tensor([[1, 2, 3, 4, 100]])
SOME = ["q_proj", "v_proj"]


def both():
    """A dense model, and the same compressed one in exact mode."""
    dense = tiny_llama(torch.float32, tie_word_embeddings=False)
    model = copy.deepcopy(dense)
    codecllm.compress_model_weights(model, exact=True)
    return dense, model


def adapted(model, config):
    torch.manual_seed(1)
    return peft.get_peft_model(model, config)


def lora(**options):
    return peft.LoraConfig(**{"target_modules": SOME, "task_type": "CAUSAL_LM", **options})


WORKING = {
    "lora": lambda: lora(target_modules="all-linear"),
    "lora of embeddings": lambda: lora(target_modules=["embed_tokens"]),
    "dora": lambda: lora(use_dora=True),
    "trainable tokens": lambda: lora(trainable_token_indices=[3, 4]),
    "loha": lambda: peft.LoHaConfig(target_modules=SOME, task_type="CAUSAL_LM"),
    "ia3": lambda: peft.IA3Config(
        target_modules=["k_proj", "down_proj"],
        feedforward_modules=["down_proj"],
        task_type="CAUSAL_LM",
    ),
    "vera": lambda: peft.VeraConfig(target_modules=SOME, task_type="CAUSAL_LM"),
    "oft": lambda: peft.OFTConfig(target_modules=SOME, task_type="CAUSAL_LM", oft_block_size=8),
    "prompt tuning": lambda: peft.PromptTuningConfig(
        num_virtual_tokens=3, task_type="CAUSAL_LM", prompt_tuning_init="SAMPLE_VOCAB"
    ),
}


@pytest.mark.parametrize("config", WORKING.values(), ids=WORKING)
def test_training_equals_that_of_the_dense_model(config):
    results = []
    for model in both():
        model = adapted(model, config())
        torch.manual_seed(2)  # of drops and samples
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert grads
        results.append((loss.detach(), *grads))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_after_prepare_for_kbit_training():
    _, model = both()
    model = adapted(peft.prepare_model_for_kbit_training(model), lora())
    model(input_ids=IDS, labels=IDS).loss.backward()
    trained = [n for n, p in model.named_parameters() if p.grad is not None]
    assert trained and all("lora" in n for n in trained)


@pytest.mark.parametrize("safe", [False, True])
def test_merging_is_refused_and_changes_nothing(safe):
    _, model = both()
    with torch.no_grad():
        expected = model(IDS).logits
        model = adapted(model, lora(init_lora_weights=False))
        with pytest.raises(RuntimeError, match=r"cannot be written to.*decompress first"):
            model.merge_adapter(safe_merge=safe)
        with model.disable_adapter():
            assert torch.equal(model(IDS).logits, expected)


def test_a_decompressed_model_merges():
    dense, model = both()
    merged = []
    for m in (dense, codecllm.decompress_model(model)):
        m = adapted(m, lora(init_lora_weights=False)).merge_and_unload()
        merged.append(m(IDS).logits)
    assert torch.equal(*merged)


def test_modules_to_save_are_refused():
    with pytest.raises(ValueError, match=r"frozen.*decompress what shall be trained"):
        adapted(both()[1], lora(modules_to_save=["lm_head"]))


def test_inits_that_change_the_weight_are_refused():
    with pytest.raises(RuntimeError, match="cannot be written to"):
        adapted(both()[1], lora(init_lora_weights="pissa"))


def test_resizing_the_vocabulary_is_refused_and_changes_nothing():
    _, model = both()
    expected = model(IDS).logits
    with pytest.raises(RuntimeError, match="cannot be written to"):
        model.resize_token_embeddings(140)
    assert torch.equal(model(IDS).logits, expected)
    assert model.get_input_embeddings().num_embeddings == 128 == model.config.vocab_size


def test_weights_are_counted_as_those_of_the_dense_model():
    dense, model = both()
    for options in ({}, {"exclude_embeddings": True}):
        assert model.num_parameters(**options) == dense.num_parameters(**options)
    assert copy.deepcopy(model).num_parameters() == dense.num_parameters()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert model.num_parameters(only_trainable=True) == trained
    assert "num_parameters" not in vars(codecllm.decompress_model(model))
