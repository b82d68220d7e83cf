"""A model from a folder that is compressed or not, with its weights as somebody wants them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from ..model.checkpoint import Checkpoint
from ..model.compress import compress_model_weights
from .loading import load_compressed_model, model_class


def load_folder(folder: Path, coding: str | None = None) -> Any:
    """The model of a folder, on the CPU.

    Args:
        coding: of its weights in memory; None: dense.

    Raises:
        ValueError, OSError: the folder is no model.
        UnsupportedFormatError: its weights do not have this coding.
    """
    with Checkpoint(folder) as source:
        compressed = bool(source.coded_names())
    if compressed:
        if coding is None:
            return load_compressed_model(folder, mode="disk").eval()
        return load_compressed_model(folder, coding=coding).eval()
    config = AutoConfig.from_pretrained(folder)
    model = model_class(config).from_pretrained(folder, config=config, dtype="auto").eval()
    if coding is not None:
        compress_model_weights(model, coding=coding)
    return model
