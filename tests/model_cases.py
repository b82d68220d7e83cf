"""Small models and folders. Nothing is downloaded, nothing is larger than a megabyte."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn


class Tied(nn.Module):
    """Embedding and output layer share a weight; two layers are called q_proj."""

    def __init__(self, dtype=torch.bfloat16, vocab=96, width=64):
        super().__init__()
        self.embed = nn.Embedding(vocab, width, padding_idx=0, dtype=dtype)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"q_proj": nn.Linear(width, width, dtype=dtype)}) for _ in range(2)
        )
        self.head = nn.Linear(width, vocab, bias=False, dtype=dtype)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = x + block["q_proj"](x)
        return self.head(x)


@pytest.fixture
def tied():
    torch.manual_seed(0)
    return Tied()


@pytest.fixture
def ids():
    return torch.tensor([[1, 2, 3, 95]])


def tiny_llama(dtype=torch.bfloat16, **options):
    """A Llama of transformers with random weights.

    Args:
        options: for LlamaConfig.
    """
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**sizes, **options})
    # Not .to(dtype): that would cast the rotary frequencies too, which loading does not.
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def make_folder(folder, shards=2, width=64, vocab=256, seed=0, dtype=torch.bfloat16, layers=2):
    """A Llama-shaped checkpoint without a model: enough for the folder tools."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {"model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
    for i in range(layers):
        for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"):
            tensors[f"model.layers.{i}.{name}.weight"] = (width, width)
        tensors[f"model.layers.{i}.input_layernorm.weight"] = (width,)
    names = list(tensors)
    weight_map = {}
    folder.mkdir(parents=True)
    for n in range(shards):
        mine = names[n::shards]
        shard = f"model-{n + 1:05}-of-{shards:05}.safetensors"
        save_file(
            {k: (torch.randn(tensors[k], generator=generator) / 50).to(dtype) for k in mine},
            folder / shard,
            metadata={"format": "pt"},
        )
        weight_map.update(dict.fromkeys(mine, shard))
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "bfloat16"}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "src")


@pytest.fixture
def make_checkpoint():
    return make_folder


def tensors(folder):
    """All tensors of a checkpoint folder by name."""
    return {k: v for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}


def assert_same_folder(a, b):
    left, right = tensors(a), tensors(b)
    assert left.keys() == right.keys()
    for name, t in left.items():
        other = right[name]
        assert t.dtype == other.dtype and t.shape == other.shape, name
        assert torch.equal(t.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
