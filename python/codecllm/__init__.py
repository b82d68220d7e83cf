"""LLM weights kept entropy-coded in memory, bit-exact, and decoded inside the matmul.

`import codecllm` makes transformers load compressed folders, whichever is imported first. Names
below are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .integrations.hooks import register_transformers as _register_transformers

__version__ = "0.1.0"

_HOMES = {
    "codecllm_ops.format": ("CorruptStreamError", "UnsupportedFormatError"),
    "codecllm.nn": (
        "Codec",
        "CodedWeight",
        "CompressedEmbedding",
        "CompressedLinear",
        "CompressedTensor",
        "default_coding",
        "load_codec",
        "set_exact",
        "set_statistics",
    ),
    "codecllm.model.select": ("all_of", "by_regex", "by_size"),
    "codecllm.model.report": ("CompressionReport", "LayerReport"),
    "codecllm.model.compress": ("compress_model_weights", "decompress_model"),
    "codecllm.model.module_file": ("load_file", "save_compressed_model", "save_file"),
    "codecllm.model.coding": ("CodingReport", "LayerCoding", "coding_of", "set_coding"),
    "codecllm.model.compress_folder": ("compress_checkpoint",),
    "codecllm.model.convert_folder": ("convert_checkpoint",),
    "codecllm.model.decompress_folder": ("decompress_checkpoint",),
    "codecllm.model.inspect_folder": (
        "checkpoint_info",
        "estimate_checkpoint",
        "verify_checkpoint",
    ),
    "codecllm.integrations.loading": ("load_compressed_model",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]

if TYPE_CHECKING:  # the same names, for type checkers and editors
    # ruff: noqa: F401
    from codecllm_ops.format import CorruptStreamError, UnsupportedFormatError

    from .integrations.loading import load_compressed_model
    from .model.coding import CodingReport, LayerCoding, coding_of, set_coding
    from .model.compress import compress_model_weights, decompress_model
    from .model.compress_folder import compress_checkpoint
    from .model.convert_folder import convert_checkpoint
    from .model.decompress_folder import decompress_checkpoint
    from .model.inspect_folder import checkpoint_info, estimate_checkpoint, verify_checkpoint
    from .model.module_file import load_file, save_compressed_model, save_file
    from .model.report import CompressionReport, LayerReport
    from .model.select import all_of, by_regex, by_size
    from .nn import (
        Codec,
        CodedWeight,
        CompressedEmbedding,
        CompressedLinear,
        CompressedTensor,
        default_coding,
        load_codec,
        set_exact,
        set_statistics,
    )


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'codecllm' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(home), name)
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ImportError(
            f"codecllm.{name} needs transformers: pip install 'transformers>=5,<6' accelerate"
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})


_register_transformers()
