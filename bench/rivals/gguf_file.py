"""A Llama checkpoint in bfloat16 as a GGUF file, bit for bit, for llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy
import torch
from safetensors import safe_open


def write_gguf(folder: Path, path: Path) -> Path:
    """Writes `path`, unless it is there.

    Matrices keep their bits, those of q and k in another order of rows. Norms are float32, as
    llama.cpp wants them. No vocabulary.
    """
    if path.exists():
        return path
    config = json.loads((folder / "config.json").read_text())
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    kv_heads = config["num_key_value_heads"]
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as source:
            for key in source.keys():  # noqa: SIM118  (safe_open is not a dict)
                tensor, name = source.get_tensor(key), names.get_name(key, (".weight",))
                if tensor.dim() == 1:
                    writer.add_tensor(name, tensor.float().numpy())
                else:
                    if key.endswith(("q_proj.weight", "k_proj.weight")):
                        tensor = _rotary_order(tensor, heads if "q_proj" in key else kv_heads)
                    words = tensor.view(torch.int16).numpy().view(numpy.uint8)
                    kind = gguf.GGMLQuantizationType.BF16
                    writer.add_tensor(name, words, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(path)
    return path


def _rotary_order(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a head so that pairs which rotate together are neighbours, as llama.cpp has them."""
    rows, cols = weight.shape
    halves = weight.view(heads, 2, rows // heads // 2, cols)
    return halves.transpose(1, 2).reshape(rows, cols).contiguous()
