"""set_coding: the compressed modules of a model from one coding to another, in place.

READ ME FIRST
1. Modules that share streams are one group: converted once, and sharing afterwards.
2. No variable may keep an old matrix alive beyond its turn: the peak is the result and what is
   being converted. Largest first, because the result is small then.
3. What cannot be read (on meta, offloaded, sharded) keeps its coding, as does what gains nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from codecllm_ops.codec.coded import CodedMatrix
from codecllm_ops.format import Head

from ..nn import CodedModule
from ..nn.coding import AUTO, FIXED, Choice, Device, Wish, decide, free_bytes, wish
from ..nn.mapped import MappedFiles, trim
from ..nn.recode import about_fixed_bytes, doubtful, keeps, recoded
from ..nn.streams import has_bytes
from ..nn.switches import replace_streams
from .report import coding_lines
from .select import Predicate
from .skeleton import resident_bytes, table_bytes
from .threads import in_threads

_SPARE = 0.1
"""Share of the free memory that `auto` leaves to activations, caches and others."""

_TRIM_EVERY = 256 << 20
"""Bytes between two calls of trim(). Without it 110 MiB of small holes were left after 1574 MiB."""

_AWAY = "its streams are not in memory (offloaded, sharded or on meta)"

_ENCODED = "fixed as it came: encoding takes long, so that rans has to be asked for"

Check = Callable[[str, CodedModule], None]


@dataclass(frozen=True)
class LayerCoding:
    """What became of one weight.

    Attributes:
        name: full name of its module; of several that share it, the first.
        before, after: coding.
        reason: why it has the coding that it has now.
        bytes_before, bytes_after: of its four tensors.
    """

    name: str
    shape: tuple[int, int]
    before: str
    after: str
    reason: str
    bytes_before: int
    bytes_after: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes_after / max(1, self.shape[0] * self.shape[1])


@dataclass(frozen=True)
class CodingReport:
    """What set_coding() did.

    Attributes:
        choices: what was chosen, and why, by device.
    """

    layers: tuple[LayerCoding, ...]
    choices: dict[str, Choice]
    seconds: float = 0.0

    @property
    def changed(self) -> int:
        return sum(layer.before != layer.after for layer in self.layers)

    @property
    def bytes_before(self) -> int:
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        return sum(layer.bytes_after for layer in self.layers)

    def lines(self) -> list[str]:
        """For people: what was chosen, then how many weights have which coding and why."""
        lines = [f"{device}: {choice}" for device, choice in self.choices.items()]
        rows = ((x.after, x.reason, x.shape, x.bytes_after) for x in self.layers)
        return lines + coding_lines(rows)

    def to_dict(self) -> dict[str, Any]:
        return {
            "choices": {device: asdict(choice) for device, choice in self.choices.items()},
            "changed": self.changed,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "seconds": self.seconds,
            "layers": [asdict(layer) for layer in self.layers],
        }


@torch.inference_mode(False)  # else streams would be inference tensors, which autograd cannot save
def set_coding(
    model: nn.Module, coding: str = AUTO, predicate: Predicate | None = None
) -> CodingReport:
    """Converts the coded weights of a model, in place and without loss.

    Weights of other formats than bf16, stored ones, and those with more than 0.5 % of their values
    outside the window of "fixed" keep their coding; the report says why. Compiled code has to be
    compiled again.

    Args:
        coding: "fixed" (12 bits, fast), "rans" (smallest) or "auto" (what is best on the device).
        predicate: asked with full name and module; None accepts all. Of modules that share a
            weight all must be accepted.

    Raises:
        ValueError: no such coding; no module is compressed; "fixed" is asked for, and no weight
            can have it.
        CorruptStreamError: names the module.
    """
    said = wish(coding)
    groups = coded_groups(model)
    if not groups:
        raise ValueError("no module of this model is compressed: call compress_model_weights first")
    if predicate is not None:
        groups = {
            first: group
            for first, group in groups.items()
            if all(predicate(name, module) for name, module in group.items())
        }
    return recode(groups, said)


def coded_groups(model: nn.Module) -> dict[str, dict[str, CodedModule]]:
    """Compressed modules by full name, those that share streams under the first one's."""
    groups: dict[int, dict[str, CodedModule]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, CodedModule):
            groups.setdefault(id(module.streams[0]), {})[name] = module
    return {next(iter(group)): group for group in groups.values()}


def recode(
    groups: dict[str, dict[str, CodedModule]], said: Wish, check: Check | None = None
) -> CodingReport:
    """Converts groups of modules.

    Args:
        check: called before a group is converted, with its first module; may raise.
    """
    start = time.perf_counter()
    mapped = MappedFiles()
    firsts = {name: next(iter(group.values())) for name, group in groups.items()}
    choices = _choices(firsts.values(), said, mapped)

    def convert(name: str) -> LayerCoding:
        module = firsts[name]
        if check is not None and has_bytes(module.weight_head):
            check(name, module)
        return _convert(name, list(groups[name].values()), choices, said, mapped)

    done = {layer.name: layer for layer in _largest_first(convert, firsts)}
    layers = tuple(done[name] for name in groups)
    wanted = said.demanded and said.coding == FIXED and bool(layers)
    if wanted and all(layer.after != FIXED for layer in layers):
        reasons = "; ".join(sorted({layer.reason for layer in layers}))
        raise ValueError(f'coding "fixed" is asked for, and no weight here can have it: {reasons}')
    named = {str(device): choice for device, choice in choices.items()}
    return CodingReport(layers, named, time.perf_counter() - start)


def _choices(
    modules: Iterable[CodedModule], said: Wish, mapped: MappedFiles
) -> dict[torch.device, Choice]:
    """One choice per device, for all weights on it together."""
    needed: dict[torch.device, list[int]] = {}
    for module in modules:
        if not all(map(has_bytes, module.streams)):
            continue
        total = needed.setdefault(module.streams[0].device, [0, 0])
        held = sum(s.nbytes for s in module.streams if not mapped.holds(s))
        total[1] += held
        info = module.coded.info
        total[0] += held if keeps(info) or info.coding == FIXED else about_fixed_bytes(info)
    return {device: _choice(device, said, *total) for device, total in needed.items()}


def _choice(device: torch.device, said: Wish, fixed_bytes: int, held: int) -> Choice:
    free = None if said.explicit else free_bytes(device)
    room = None if free is None else held + int((1 - _SPARE) * free)
    return decide(said, Device.of(device), fixed_bytes, room)


def _largest_first(
    convert: Callable[[str], LayerCoding], firsts: dict[str, CodedModule]
) -> list[LayerCoding]:
    """What is on a GPU goes one by one, on the stream of the caller."""
    names = sorted(firsts, key=lambda name: -sum(s.numel() for s in firsts[name].streams))
    on_host = [n for n in names if firsts[n].streams[0].device.type == "cpu"]
    layers = [convert(n) for n in names if n not in set(on_host)]
    # Kernels have threads of their own; two callers hide what is between the kernels.
    untrimmed = 0
    for name, layer in in_threads(min(2, os.cpu_count() or 1), convert, on_host):
        layers.append(layer)
        untrimmed += layer.bytes_before
        if untrimmed > _TRIM_EVERY or name == on_host[-1]:
            trim()
            untrimmed = 0
    return layers


@torch.inference_mode(False)  # it is of the thread
def _convert(
    name: str,
    modules: list[CodedModule],
    choices: dict[torch.device, Choice],
    said: Wish,
    mapped: MappedFiles,
) -> LayerCoding:
    module = modules[0]
    old = [s.detach() for s in module.streams]
    size = sum(s.nbytes for s in old)
    if not all(map(has_bytes, module.streams)):
        return _unchanged(name, modules, module.coding, _AWAY)
    coded, choice = module.coded, choices[old[0].device]
    before = coded.coding
    if before == FIXED and not said.explicit and choice.coding != FIXED:
        return _unchanged(name, modules, before, _ENCODED)
    try:
        new, kept = recoded(coded, choice.coding)
    except ValueError as error:  # of the two kinds that bytes can cause
        raise type(error)(f"{name}.weight: {error}") from error
    if new is not coded:
        replace_streams(modules, new)
        mapped.give_back(old)
    why = kept or choice.reason
    for module in modules:
        module.coding_reason = why
    return LayerCoding(name, module.matrix_shape, before, new.coding, why, size, new.nbytes)


def _unchanged(name: str, modules: Iterable[CodedModule], coding: str, reason: str) -> LayerCoding:
    for module in modules:
        module.coding_reason = reason
    size = sum(s.nbytes for s in module.streams)
    return LayerCoding(name, module.matrix_shape, coding, coding, reason, size, size)


def coding_of(model: nn.Module) -> CodingReport:
    """Which coding every compressed module has now, and why: as set_coding() reports it."""
    layers = []
    for name, group in coded_groups(model).items():
        module = next(iter(group.values()))
        size = sum(s.nbytes for s in module.streams)
        coding, why = module.coding, module.coding_reason
        layers.append(LayerCoding(name, module.matrix_shape, coding, coding, why, size, size))
    return CodingReport(tuple(layers), {})


def as_loaded(info: Head, resident: int) -> dict[str, Any]:
    """What a report says of a matrix of a folder: how a load on this machine's CPU would hold it.

    Args:
        resident: bytes of the matrix as it is in the folder, tables included.
    """
    choice = decide(wish(), Device.of("cpu"))
    coding, why, size = info.coding, choice.reason, resident
    if coding != choice.coding:
        why = _ENCODED if coding == FIXED else keeps(info) or doubtful(info)
        if not why:
            coding, why, size = FIXED, choice.reason, about_fixed_bytes(info)
    return {"memory_bytes": size, "memory_coding": coding, "why": why}


def report_of(coded: CodedMatrix) -> dict[str, Any]:
    """What a LayerReport says of a coded matrix of a folder, besides its size there."""
    return _report(coded.info, resident_bytes(coded))


def report_of_head(info: Head, coded_bytes: int) -> dict[str, Any]:
    """The same where only the head was read."""
    return _report(info, coded_bytes + table_bytes(info))


def _report(info: Head, resident: int) -> dict[str, Any]:
    known = {"weight_format": info.fmt.name, "coding": info.coding}
    return {**known, **as_loaded(info, resident)}
