"""A model without its weights: which module each tensor of a checkpoint goes to, and what it takes.

Names and shapes alone tell neither which tensors an nn.Linear reads nor what else is in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from codecllm_ops.codec.coded import CodedMatrix
from codecllm_ops.codec.codings import room
from codecllm_ops.format import Head

from ..nn import STREAM_NAMES, CodedModule, obstacle
from .plugins import skeleton_builders
from .report import CODED, LayerReport, Memory
from .select import kept_dense


@dataclass(frozen=True)
class Skeleton:
    """A model on the meta device, with the dtypes that loading gives it.

    Attributes:
        key_of: name of a tensor in the checkpoint -> its name in the model, and whether loading
            merges or splits it (then the name is that of the result).
    """

    model: nn.Module
    key_of: Callable[[str], tuple[str, bool]]

    def module_of(self, name: str) -> tuple[str, nn.Module | None, bool]:
        """Name and module that a tensor `<...>.weight` belongs to, and whether it is converted."""
        key, converted = self.key_of(name)
        module_name = key.rpartition(".")[0]
        try:
            return module_name, self.model.get_submodule(module_name), converted
        except AttributeError:
            return module_name, None, converted

    def refusal(self, name: str) -> str | None:
        """Why loading could not use a coded `name`, or None: it can."""
        _, module, converted = self.module_of(name)
        if converted:
            return "merged with others into one weight while loading"
        if module is not None and not isinstance(module, nn.Linear | nn.Embedding):
            return f"{type(module).__name__}, not nn.Linear"
        return None

    def memory(self, layers: Iterable[LayerReport]) -> Memory:
        """What the model takes when tensors are coded as `layers` say."""
        holders: dict[int, list[tuple[str, nn.Module]]] = {}
        for name, module in self.model.named_modules():
            if isinstance(module._parameters.get("weight"), nn.Parameter):
                holders.setdefault(id(module.weight), []).append((name, module))
        coded: dict[int, int] = {}
        reasons: dict[int, str] = {}
        for layer in layers:
            module = self.module_of(layer.name)[1] if layer.name.endswith(".weight") else None
            weight = None if module is None else module._parameters.get("weight")
            if weight is None:
                continue
            obstacles = (obstacle(m) or kept_dense(self.model, n) for n, m in holders[id(weight)])
            if layer.status != CODED:
                reasons.update({id(weight): layer.reason} if layer.reason else {})
            elif reason := next(filter(None, obstacles), ""):
                reasons[id(weight)] = f"decoded after loading, {reason}"
            else:
                coded[id(weight)] = layer.memory_bytes or layer.coded_bytes
        return _account(self.model, coded, reasons)


def build_skeleton(folder: Path) -> tuple[Skeleton | None, str]:
    """The skeleton of a folder's model; or None, and a sentence's end that says why not."""
    why = "no library that could build the model is there"
    for build in skeleton_builders:
        try:
            return build(folder), ""
        except Exception as error:  # whatever a model's code raises: reports are only less exact
            why = " ".join(str(error).split())[:200] or type(error).__name__
    return None, why


def resident_bytes(coded: CodedMatrix) -> int:
    """What a coded matrix takes where it is multiplied with: its tensors, tables and scales."""
    scale = 0 if coded.scale is None else coded.scale.nbytes
    return coded.nbytes + coded.table.nbytes + scale


def table_bytes(info: Head) -> int:
    """What a matrix takes in memory beside its tensors: the runtime table, and scales once more."""
    scale = 0 if info.scale is None else info.scale.nbytes
    return room(info.coding).runtime_table(info).nbytes + scale


def compressed_memory(model: nn.Module, reasons: Mapping[str, str]) -> Memory:
    """What a model takes whose modules are compressed already.

    Args:
        reasons: why modules stayed dense, by name.
    """
    coded, why = {}, {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if isinstance(module, CodedModule):
            coded[_identity(weight)] = resident_bytes(module.coded)
        elif weight is not None and name in reasons:
            why[_identity(weight)] = reasons[name]
    return _account(model, coded, why)


def _account(model: nn.Module, coded: Mapping[int, int], reasons: Mapping[int, str]) -> Memory:
    """Adds up parameters and buffers; what several modules share counts once.

    Args:
        coded, reasons: bytes of coded weights and why others are not, by _identity().
    """
    plain = total = 0
    dense: Counter[str] = Counter()
    seen: set[int] = set()
    for module in model.modules():
        for part, tensor, size in own_tensors(module):
            identity = _identity(tensor)
            if identity in seen:
                continue
            seen.add(identity)
            plain += size
            total += coded.get(identity, size)
            if identity in reasons:
                dense[reasons[identity]] += size
            elif identity not in coded:
                dense["biases" if part == "bias" else type(module).__name__] += size
    return Memory(plain, total, dict(dense.most_common()))


def own_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor, int]]:
    """Own parameters and buffers with the bytes of their dense forms; of streams only the first."""
    is_coded = isinstance(module, CodedModule)
    for part, tensor in (*module._parameters.items(), *module._buffers.items()):
        if is_coded and part == "weight":
            rows, cols = module.matrix_shape
            yield part, tensor, rows * cols * module.dense_dtype.itemsize
        elif tensor is not None and not (is_coded and _is_ours(module, part)):
            yield part, tensor, tensor.numel() * tensor.element_size()


def _is_ours(module: nn.Module, part: str) -> bool:
    """Whether a tensor of a compressed module belongs to its coded weight."""
    tables = part.startswith("weight_") or part == "dtype_like"
    return part in STREAM_NAMES or (tables and part in module._non_persistent_buffers_set)


def _identity(tensor: torch.Tensor) -> int:
    return id(tensor) if tensor.is_meta or not tensor.numel() else tensor.data_ptr()
