"""config.json of a compressed folder: what is added to the original's, and how it comes out again.

READ ME FIRST
1. `quantization_config` says that codecllm has to load the folder. transformers without it knows no
   such method, warns, loads what it can and advises to ignore the mismatch: a random model. So
   `transformers_weights`, a field it follows before it loads anything, names a file that does not
   exist, and the error is that file's name. With codecllm the quantizer drops the field.
2. Fields of the original that ours replace are kept inside ours, under `original`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

QUANT_METHOD = "codecllm"
VERSION = 1
FILE_FIELD = "transformers_weights"
HINT = "import_codecllm_first.safetensors"
_OURS = ("quantization_config", FILE_FIELD)


def quantization_config(dense: Sequence[str] = ()) -> dict[str, Any]:
    """What config.json says about a compressed folder. `dense`: modules that stayed dense."""
    return {
        "quant_method": QUANT_METHOD,
        "version": VERSION,
        "modules_to_not_convert": list(dense) or None,
    }


def compressed_config(config: dict[str, Any], dense: Sequence[str] = ()) -> dict[str, Any]:
    """The configuration of the compressed folder, made from the original's."""
    original = {field: config[field] for field in _OURS if config.get(field) is not None}
    quantization = quantization_config(dense)
    if original:
        quantization["original"] = original
    return {**config, "quantization_config": quantization, FILE_FIELD: HINT}


def original_config(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration that compressed_config() was given, up to the order of its fields."""
    quantization = config.get("quantization_config")
    original = quantization.get("original") if isinstance(quantization, dict) else None
    rest = {field: value for field, value in config.items() if field not in _OURS}
    return {**rest, **(original if isinstance(original, dict) else {})}
