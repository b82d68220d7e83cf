"""A model from a folder, dense or coded, with nothing said about it on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.utils import logging

from ..model.checkpoint import Checkpoint
from .loading import load_compressed_model, model_class


def load_folder(folder: Path, coding: str | None = None) -> Any:
    """The model of a folder, on the CPU.

    Args:
        folder: a checkpoint; compressed if a coding is wanted.
        coding: of its weights in memory; None: dense.

    Raises:
        ValueError, OSError: the folder is no model, or its weights cannot have this coding.
    """
    with Checkpoint(folder) as source:
        compressed = bool(source.coded_names())
    with _no_bars():
        if coding is not None:
            model = load_compressed_model(folder, coding=coding)
        elif compressed:
            model = load_compressed_model(folder, mode="disk")
        else:
            config = AutoConfig.from_pretrained(folder)
            model = model_class(config).from_pretrained(folder, config=config, dtype="auto")
    return model.eval()


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Without progress of loading, which would run through the caller's own lines."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
