"""What transformers makes of the tensors of a checkpoint while it loads: other names and dtypes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch


def key_finder(model: Any) -> Callable[[str], tuple[str, bool]]:
    """Key in a checkpoint -> key in the model, and whether a converter makes it of several.

    transformers 5 renames, merges and splits while it loads.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model, None, None)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    names = {name for name, _ in model.named_modules()}
    prefix = model.base_model_prefix

    def find(key: str) -> tuple[str, bool]:
        target, source = rename_source_key(key, renamings, converters)[:2]
        if source is not None:
            return target, True
        key = rename_source_key(key, renamings, [])[0]
        module = key.rpartition(".")[0]
        if module in names:
            return key, False
        if f"{prefix}.{module}" in names:
            return f"{prefix}.{key}", False
        if module.startswith(prefix + ".") and module[len(prefix) + 1 :] in names:
            return key[len(prefix) + 1 :], False
        return key, False

    return find


def loaded_dtype(model: Any, name: str, tensor: torch.Tensor) -> torch.dtype:
    """What loading makes of a floating tensor: the model may keep some in float32 (T5's `wo`)."""
    plan = getattr(model, "_get_dtype_plan", lambda dtype: {})(tensor.dtype)
    for pattern, dtype in plan.items():
        if re.search(pattern.replace("*", ".*"), name):
            return dtype
    return tensor.dtype
