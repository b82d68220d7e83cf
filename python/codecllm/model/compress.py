"""compress_model_weights and decompress_model: replace modules of a model in memory.

READ ME FIRST
1. Modules are replaced by full name. Two layers called q_proj are two layers.
2. A weight that several modules hold is coded once, and they hold the same streams afterwards.
3. No local variable, closure or report may keep a dense weight alive: originals must be freed one
   at a time, or the peak is the dense model plus the compressed one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn

from codecllm_ops.codec.coded import CodedMatrix
from codecllm_ops.format import FORMATS as WEIGHT_FORMATS

from ..nn import (
    Codec,
    CodedModule,
    Execution,
    coded_form,
    count_weights,
    dense_form,
    obstacle,
)
from ..nn.codec import check_format, check_matrix
from ..nn.coding import AUTO, FIXED, Choice, Device, Wish, decide
from ..nn.execution import exact_or_fused
from ..nn.recode import encode_chosen, module_wish, never_fixed
from .plugins import after_compressing
from .report import CODED, OTHER, SKIPPED, STORED, TIED, CompressionReport, LayerReport
from .select import Predicate, kept_dense
from .skeleton import compressed_memory, own_tensors, resident_bytes

_CODED_DTYPES = {f.dtype for f in WEIGHT_FORMATS.values() if not f.scaled}


@torch.inference_mode(False)  # else streams would be inference tensors, which autograd cannot save
def compress_model_weights(
    model: nn.Module,
    codec: Codec | None = None,
    format: str = "lossless",
    should_compress: Predicate | None = None,
    *,
    coding: str = AUTO,
    exact: bool = False,
    progress: Callable[[LayerReport], None] | None = None,
) -> CompressionReport:
    """Replaces every nn.Linear and nn.Embedding of `model` by its compressed form, in place.

    Subclasses are compressed too: what their code reads as `self.weight` is a CodedWeight.

    Args:
        codec: None for the default one.
        format: "lossless", "int8" or "int8-tensor".
        should_compress: asked with full name and module; None accepts all.
        coding: "fixed" (12 bits per weight of bf16, fast), "rans" (smallest), or "auto": what is
            best on the device. What cannot gain from "fixed" is rans, and the report says why.
        exact: the compressed modules decode and call the dense routine (bit-equal outputs).
        progress: called after each weight.

    Returns:
        Sizes of everything in the model. A weight that would not shrink stays dense ("stored").

    Raises:
        ValueError: the model has no module that can be compressed, is itself an nn.Linear or
            nn.Embedding; the format is unknown; "fixed" is asked for, and no weight can have it.
    """
    check_format(format)
    if isinstance(model, nn.Linear | nn.Embedding):
        raise ValueError(_one_module(model))
    codec, execution = codec or Codec(), exact_or_fused(exact)
    groups, said = _weight_groups(model), module_wish(codec, coding)
    choices = _choices(model, groups, format, said)
    start = time.perf_counter()
    layers: list[LayerReport] = []

    def add(*reports: LayerReport) -> None:
        layers.extend(reports)
        for report in reports:
            if progress is not None:
                progress(report)

    for names in groups:
        add(*_compress_group(model, names, codec, format, should_compress, execution, choices))
    if not any(layer.status in (CODED, STORED) for layer in layers):
        raise ValueError(_nothing_to_compress(model, layers))
    count_weights(model)
    reasons = {x.name: x.reason for x in layers if x.status in (SKIPPED, STORED)}
    memory = compressed_memory(model, reasons)
    layers += _others(model, layers)
    if any(layer.status == CODED for layer in layers):
        for attach in after_compressing:
            attach(model)
    return CompressionReport(format, tuple(layers), time.perf_counter() - start, memory=memory)


def _one_module(model: nn.Module) -> str:
    """A module cannot be replaced in place where nothing holds it."""
    if isinstance(model, CodedModule):
        return f"this {type(model).__name__} is compressed already"
    name = "CompressedLinear" if isinstance(model, nn.Linear) else "CompressedEmbedding"
    return (
        f"the model is itself an {type(model).__name__}, and nothing holds it in which it could be "
        f"replaced: use codecllm.{name}(module)"
    )


def _weight_groups(model: nn.Module) -> list[list[str]]:
    """Full names of all candidates, grouped by weight. Names only: no weight is kept alive."""
    groups: dict[tuple, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Linear | nn.Embedding) and not isinstance(module, CodedModule):
            w = module.weight
            key = (w.data_ptr() or id(w), w.device, w.dtype, tuple(w.shape), w.stride())
            groups.setdefault(key, []).append(name)
    return list(groups.values())


def _choices(
    model: nn.Module, groups: list[list[str]], format: str, said: Wish
) -> dict[torch.device, Choice]:
    """What is chosen on each device for all its weights together.

    Raises:
        ValueError: "fixed" is asked for, and no weight can have it.
    """
    held: dict[torch.device, int] = {}
    never: set[str] = set()
    for names in groups:
        weight = model.get_submodule(names[0]).weight
        held[weight.device] = held.get(weight.device, 0) + weight.nbytes
        never.add(never_fixed(weight.dtype, format))
    if said.demanded and said.coding == FIXED and never and "" not in never:
        reasons = "; ".join(sorted(never))
        raise ValueError(f'coding "fixed" is asked for, and no weight here can have it: {reasons}')
    # Originals are freed one at a time, and fixed is smaller: there is room where they are now.
    return {device: decide(said, Device.of(device)) for device in held}


def _compress_group(
    model: nn.Module,
    names: list[str],
    codec: Codec,
    format: str,
    should_compress: Predicate | None,
    execution: Execution,
    choices: dict[torch.device, Choice],
) -> list[LayerReport]:
    modules = {name: model.get_submodule(name) for name in names}
    refusals = (_refusal(model, n, m, should_compress) for n, m in modules.items())
    if reason := next(filter(None, refusals), None):
        return _reports(modules, SKIPPED, reason)
    weight = modules[names[0]].weight
    check_matrix(weight)  # before its device is looked up
    coded, why = encode_chosen(codec, weight, format, choices[weight.device])
    if coded.nbytes >= weight.nbytes:
        return _reports(modules, STORED, "coding does not shrink it")
    reports = _reports(modules, CODED, coded=coded, why=why)
    dtype, owner, replaced = weight.dtype, None, {}
    for name, module in modules.items():
        if id(module) not in replaced:  # one module under two names stays one module
            new = coded_form(module, owner or coded, dtype, execution=execution)
            new.coding_reason = why
            replaced[id(module)] = new
            owner = owner or new
        model.set_submodule(name, replaced[id(module)])
    return reports


def _refusal(
    model: nn.Module, name: str, module: nn.Module, should_compress: Predicate | None
) -> str | None:
    if should_compress is not None and not should_compress(name, module):
        return "should_compress said no"
    if module.weight.dtype not in _CODED_DTYPES:
        return f"{module.weight.dtype} is not a coded dtype"
    if module.weight.numel() == 0:
        return "no weights"
    return kept_dense(model, name) or obstacle(module)


def _reports(
    modules: dict[str, nn.Module],
    status: str,
    reason: str = "",
    coded: CodedMatrix | None = None,
    why: str = "",
) -> list[LayerReport]:
    reports: list[LayerReport] = []
    for name, module in modules.items():
        layer = LayerReport.of(
            name,
            module.weight.shape,
            module.weight.dtype,
            TIED if reports else status,
            kind=type(module).__name__,
            coded_bytes=coded.nbytes if coded else None,
            weight_format=coded.info.fmt.name if coded else "",
            reason=f"shares the weight of {reports[0].name}" if reports else reason,
            memory_bytes=resident_bytes(coded) if coded else None,
            coding=coded.coding if coded else "",
            memory_coding=coded.coding if coded else "",
            why=why,
        )
        reports.append(layer)
    return reports


def _others(model: nn.Module, layers: list[LayerReport]) -> Iterator[LayerReport]:
    """Everything else that the model holds: parameters and buffers that are no candidates."""
    named = {layer.name for layer in layers}
    seen: set[int] = set()
    for name, module in model.named_modules():
        for part, tensor, _ in own_tensors(module):
            if id(tensor) in seen or (part == "weight" and name in named):
                continue
            seen.add(id(tensor))
            full = f"{name}.{part}" if name else part
            yield LayerReport.of(
                full, tensor.shape, tensor.dtype, OTHER, kind=type(module).__name__
            )


def _nothing_to_compress(model: nn.Module, layers: list[LayerReport]) -> str:
    if any(isinstance(m, CodedModule) for m in model.modules()):
        return "no compressible layer is left: the model is compressed already"
    if layers:
        reasons = sorted({layer.reason for layer in layers if layer.reason})
        return f"no compressible layer: all {len(layers)} were refused ({'; '.join(reasons)})"
    kinds = sorted(
        {type(m).__name__ for m in model.modules() if getattr(m, "weight", None) is not None}
    )
    return (
        "no compressible layer: weights are coded where a module is an nn.Linear or nn.Embedding, "
        f"and this model has them in {', '.join(kinds) or 'no module'}"
    )


@torch.inference_mode(False)
def decompress_model(model: nn.Module) -> nn.Module:
    """Replaces every compressed module by its dense form, in place; streams are freed on the way.

    Weights are the original bits for lossless formats. Tied modules end up tied.

    Returns:
        `model`.
    """
    modules = model.named_modules(remove_duplicate=False)
    decompress_modules(model, [name for name, m in modules if isinstance(m, CodedModule)])
    count_weights(model, coded=False)
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(model)  # else saving would call it compressed
    return model


def decompress_modules(model: nn.Module, names: Iterable[str]) -> None:
    """Replaces some compressed modules by their dense form; all of a tied group, or none."""
    groups: dict[int, list[str]] = {}
    for name in names:
        groups.setdefault(id(model.get_submodule(name).streams[0]), []).append(name)
    for group in groups.values():
        replaced: dict[int, nn.Module] = {}
        weight: nn.Parameter | None = None
        for name in group:
            module = model.get_submodule(name)
            if id(module) not in replaced:
                dense = dense_form(module, weight)
                weight = dense.weight
                replaced[id(module)] = dense
            model.set_submodule(name, replaced[id(module)])
