"""A checkpoint's model on the meta device, built by transformers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoConfig
from transformers.utils import logging

from ..model.skeleton import Skeleton
from .keys import key_finder, loaded_dtype
from .loading import model_class


def build(folder: Path) -> Skeleton:
    """The model that config.json names, with the dtypes that from_pretrained would give it.

    Raises:
        Exception: of any type: a model's own code runs. Code in the folder does not.
    """
    with _quiet():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        cls = model_class(config)
        if cls.__name__.startswith("Auto"):
            raise ValueError(f"transformers has no {config.architectures[0]}")
        dtype = getattr(config, "dtype", None) or torch.float32
        with torch.device("meta"):
            model = cls._from_config(config, dtype=dtype)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        kept = loaded_dtype(model, name, tensor)
        if kept != tensor.dtype:
            tensor.data = tensor.data.to(kept)
    return Skeleton(model, key_finder(model))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What transformers has to say about a model that nobody loads."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
