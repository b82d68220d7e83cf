"""Save and load the state of any nn.Module, compressed or not; one file, or a model's folder."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from codecllm_ops.codec.coded import CodedMatrix

from ..nn import (
    STREAM_NAMES,
    CodedModule,
    checksums_compared,
    coded_form,
    obstacle,
)
from .checkpoint import Checkpoint
from .config_file import VERSION, compressed_config
from .model_card import write_card
from .tensor_file import TensorFile, tensor_item, write_tensors, write_text
from .workspace import require_replaceable

_ALIASES = "codecllm_aliases"


def save_file(model: nn.Module, path: Path | str, metadata: dict[str, str] | None = None) -> int:
    """Writes parameters and persistent buffers as one safetensors file, atomically.

    A tensor with several names (tied weights) is written once; the file lists its other names.

    Returns:
        Bytes of the file.

    Raises:
        OSError: the file cannot be written; nothing is left.
        ValueError: a tensor is on the meta device.
    """
    items, aliases, seen = [], {}, {}
    shared = _streams_by_name(model)
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{name}: a {type(tensor).__name__} cannot be saved, only tensors")
        if tensor.is_meta:
            raise ValueError(f"{name} is on the meta device; load it first")
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.dtype, tensor.stride())
        key = shared.get(name, key)
        if (tensor.numel() or name in shared) and key in seen:
            aliases[name] = seen[key]
            continue
        seen[key] = name
        items.append(tensor_item(name, tensor))
    notes = {"format": "pt", "codecllm_version": str(VERSION), **(metadata or {})}
    if aliases:
        notes[_ALIASES] = json.dumps(aliases)
    return write_tensors(Path(path), items, notes)


def _streams_by_name(model: nn.Module) -> dict[str, Any]:
    """Which Parameter every stream is: an empty one (a list without weights) has no address."""
    return {
        f"{name}.{part}" if name else part: id(stream)
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, CodedModule)
        for part, stream in zip(STREAM_NAMES, module.streams, strict=True)
    }


def load_file(model: nn.Module, path: Path | str, *, checksums: bool = True) -> nn.Module:
    """Loads what save_file() wrote into a model of the same architecture.

    Dense modules of `model` whose weights are coded in the file are replaced by compressed ones
    first. Works for a model on the meta device.

    Args:
        checksums: compare all CRC-32s.

    Returns:
        `model`.

    Raises:
        CorruptStreamError: names file, tensor and field.
        ValueError: the file and the model do not fit together.
    """
    path = Path(path)
    with Checkpoint(path.parent, [path]) as source, TensorFile(path) as file:
        aliases: dict[str, str] = json.loads(file.metadata.get(_ALIASES, "{}"))
        state = {name: file.read(name) for name in source.dense_names()}
        coded = {name: source.coded(name, checksums) for name in source.coded_names()}
    placed = _place(model, path, coded, aliases, state)
    for alias, name in aliases.items():
        if name in state:
            state[alias] = state[name]
    with checksums_compared():  # or not wanted
        missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    missing = [name for name in missing if name not in placed]
    if missing or unexpected:
        what = f"{missing[0]} is missing" if missing else f"{unexpected[0]} is not in the model"
        raise ValueError(f"{path} does not fit the model: {what}")
    _tie(model, {alias: name for alias, name in aliases.items() if name in state})
    return model


def _place(
    model: nn.Module,
    path: Path,
    coded: dict[str, CodedMatrix],
    aliases: dict[str, str],
    state: dict[str, torch.Tensor],
) -> set[str]:
    """Puts compressed modules where the file has streams.

    Streams of modules that are compressed already go to `state`, for load_state_dict.

    Returns:
        Names of the streams that are in their modules now.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    owners: dict[str, CodedModule] = {}
    placed: set[str] = set()
    for name in [*coded, *(a for a in aliases if aliases[a] in coded)]:
        origin = aliases.get(name, name)
        matrix = coded[origin]
        streams = dict(zip(STREAM_NAMES, matrix.tensors(), strict=True))
        prefix, module_name = name.removesuffix("weight"), name.rpartition(".")[0]
        module = modules.get(module_name)
        if module is None:
            raise ValueError(f"{path}: {name}: the model has no module {module_name!r}")
        if isinstance(module, CodedModule):
            state.update({prefix + part: tensor for part, tensor in streams.items()})
            continue
        reason = obstacle(module)
        if reason is not None:
            raise ValueError(f"{path}: {name}: {reason}")
        if matrix.shape != tuple(module.weight.shape):
            raise ValueError(
                f"{path}: {name}: a matrix of {list(matrix.shape)}, "
                f"the model has {list(module.weight.shape)}"
            )
        new = coded_form(module, owners.get(origin, matrix), module.weight.dtype)
        owners.setdefault(origin, new)
        model.set_submodule(module_name, new)
        placed.update(prefix + part for part in STREAM_NAMES)
    return placed


def _tie(model: nn.Module, aliases: dict[str, str]) -> None:
    """load_state_dict(assign=True) gives every name a Parameter of its own: share them again."""
    for alias, name in aliases.items():
        owner, _, leaf = name.rpartition(".")
        target, _, target_leaf = alias.rpartition(".")
        value = getattr(model.get_submodule(owner), leaf)
        setattr(model.get_submodule(target), target_leaf, value)


def save_compressed_model(
    model: nn.Module, path: Path | str, *, max_shard_size: str = "5GB", force: bool = False
) -> Path:
    """Writes a folder that load_compressed_model() and transformers load.

    The folder appears by a rename when everything is written. A module that is not a transformers
    model gets `model.safetensors` alone (see load_file).

    Raises:
        FileExistsError: `path` exists and `force` was not said, or is no folder.
        ValueError: no module of `model` is compressed.
    """
    path = Path(path)
    require_replaceable(path)
    if not any(isinstance(m, CodedModule) for m in model.modules()):
        raise ValueError("no module of this model is compressed: call compress_model_weights first")
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists; choose another name, or force=True to replace it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        temporary.chmod(0o755)  # mkdtemp makes it 0700
        if hasattr(model, "save_pretrained") and hasattr(model, "config"):
            _save_pretrained(model, temporary, max_shard_size)
        else:
            save_file(model, temporary / "model.safetensors")
        if path.exists():
            shutil.rmtree(path)
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def _save_pretrained(model: Any, folder: Path, max_shard_size: str) -> None:
    """As the model does it; config.json says what the folder is, whoever compressed the model."""
    dense = sorted(
        name
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear | nn.Embedding) and not isinstance(m, CodedModule)
    )
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("quantization_config", None)
    config = compressed_config(config, dense)
    write_text(path, json.dumps(config, indent=2) + "\n")
    write_card(folder, config)
