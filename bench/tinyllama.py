"""A model of TinyLlama's shape with 1.1 billion random normal weights: memory decides its speed.

python bench/tinyllama.py     # writes build/bench/tinyllama and its compressed forms, 5.4 GB
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import codecllm
from codecllm.bench.timing import DENSE

FOLDER = Path(__file__).parents[1] / "build" / "bench"


def folder(name: str) -> Path:
    """The folder called tinyllama or tinyllama-CODING; a benchmark skips without."""
    found = FOLDER / name
    if not (found / "config.json").is_file():
        pytest.skip("run `python bench/tinyllama.py` first: it writes 5.4 GB")
    return found


def load(side: str) -> Any:
    """The model with weights that are "dense", or of a coding, made from rans while loading."""
    from codecllm.integrations.any_folder import load_folder  # needs transformers

    if side == DENSE:
        return load_folder(folder("tinyllama"))
    return load_folder(folder("tinyllama-rans"), side)


def write() -> None:
    """Writes what is not there."""
    dense = FOLDER / "tinyllama"
    if not dense.exists():
        import transformers

        config = transformers.LlamaConfig(
            vocab_size=32000,
            hidden_size=2048,
            intermediate_size=5632,
            num_hidden_layers=22,
            num_attention_heads=32,
            num_key_value_heads=4,
            max_position_embeddings=2048,
            tie_word_embeddings=False,
        )
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
        part = dense.with_name("tinyllama.part")
        shutil.rmtree(part, ignore_errors=True)
        model.save_pretrained(part)
        part.rename(dense)
    for coding in ("rans", "fixed"):
        coded = FOLDER / f"tinyllama-{coding}"
        if not coded.exists():
            codecllm.compress_checkpoint(dense, coded, coding=coding, jobs=2)


if __name__ == "__main__":
    write()
