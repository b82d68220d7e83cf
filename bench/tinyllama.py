"""A model of TinyLlama's shape with 1.1 billion random normal weights: memory decides its speed.

python bench/tinyllama.py     # writes build/bench/tinyllama and its compressed forms, 5.4 GB
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch

import codecllm

FOLDER = Path(__file__).parents[1] / "build" / "bench"
DENSE = FOLDER / "tinyllama"


def dense_folder() -> Path:
    """The bfloat16 checkpoint, written by the first call."""
    if (DENSE / "config.json").is_file():
        return DENSE
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
    part = DENSE.with_name("tinyllama.part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    part.rename(DENSE)
    return DENSE


def coded_folder(coding: str) -> Path:
    """The checkpoint compressed with a coding, written by the first call."""
    target = FOLDER / f"tinyllama-{coding}"
    if not target.exists():
        codecllm.compress_checkpoint(dense_folder(), target, coding=coding, jobs=2)
    return target


if __name__ == "__main__":
    print(dense_folder(), *(coded_folder(coding) for coding in sys.argv[1:] or ("rans", "fixed")))
