"""What a compression did, layer by layer and in total."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

CODED, STORED, SKIPPED, TIED, OTHER = "coded", "stored", "skipped", "tied", "other"


@dataclass(frozen=True)
class LayerReport:
    """One weight.

    Attributes:
        name: full name of the module, or of the tensor in a checkpoint.
        status: "coded"; "stored" (coding would not shrink it: kept dense); "skipped" (kept dense
            for the reason given); "tied" (counted under the name given as reason); "other" (no
            weight of an nn.Linear or nn.Embedding: norms, biases, experts, convolutions).
        dense_bytes, coded_bytes: before and after, everything counted; equal where kept dense.
        memory_bytes: of a coded weight in memory, tables included.
        coding: of what `coded_bytes` counts: "rans", "fixed" or "stored".
        memory_coding: of what `memory_bytes` counts; for a folder, as it would be loaded here.
        why: it has that coding in memory.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    status: str
    dense_bytes: int
    coded_bytes: int
    weight_format: str = ""
    reason: str = ""
    memory_bytes: int | None = None
    coding: str = ""
    memory_coding: str = ""
    why: str = ""

    @classmethod
    def of(
        cls,
        name: str,
        shape: Iterable[int],
        dtype: torch.dtype,
        status: str,
        *,
        kind: str = "tensor",
        coded_bytes: int | None = None,
        weight_format: str = "",
        reason: str = "",
        memory_bytes: int | None = None,
        coding: str = "",
        memory_coding: str = "",
        why: str = "",
    ) -> LayerReport:
        """A layer whose dense size follows from its shape and dtype. Without `coded_bytes` it stays
        dense."""
        shape = tuple(shape)
        dense = math.prod(shape) * dtype.itemsize
        return cls(
            name=name,
            kind=kind,
            shape=shape,
            dtype=str(dtype).removeprefix("torch."),
            status=status,
            dense_bytes=dense,
            coded_bytes=dense if coded_bytes is None else coded_bytes,
            weight_format=weight_format,
            reason=reason,
            memory_bytes=memory_bytes,
            coding=coding,
            memory_coding=memory_coding,
            why=why,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LayerReport:
        """The inverse of dataclasses.asdict(), also after JSON; unknown fields are left out."""
        known = {k: v for k, v in data.items() if k in cls.__dataclass_fields__}
        return cls(**{**known, "shape": tuple(data["shape"])})

    @property
    def weights(self) -> int:
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.coded_bytes / max(1, self.weights)

    @property
    def memory_bits_per_weight(self) -> float | None:
        """None where it is not known, or not coded."""
        return None if self.memory_bytes is None else 8 * self.memory_bytes / max(1, self.weights)


@dataclass(frozen=True)
class Memory:
    """What the weights of a whole model take when it is loaded: parameters and buffers.

    Attributes:
        plain_bytes: without compression.
        bytes: with it, in mode "fused"; tables included.
        dense: the part of `bytes` that is not coded, by what it is or why; largest first.
    """

    plain_bytes: int
    bytes: int
    dense: dict[str, int]

    @property
    def share(self) -> float:
        return self.bytes / max(1, self.plain_bytes)

    def line(self) -> str:
        """One line for people. What is below a hundredth of all is left out."""
        line = f"in memory {_mib(self.bytes)} of {_mib(self.plain_bytes)} MiB"
        line += f" ({100 * self.share:.1f} %)"
        large = [f"{_mib(n)} {k}" for k, n in self.dense.items() if 100 * n >= self.bytes]
        return f"{line}; dense: {', '.join(large)}" if large else line


@dataclass(frozen=True)
class CompressionReport:
    """All layers, and totals over the coded ones and over everything.

    Attributes:
        memory: of the loaded model; None where it is not known (`extra["memory_unknown"]`: why).
    """

    format: str
    layers: tuple[LayerReport, ...]
    seconds: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)
    memory: Memory | None = None

    def of(self, *status: str) -> list[LayerReport]:
        """Layers with one of these statuses."""
        return [layer for layer in self.layers if layer.status in status]

    @property
    def coded_layers(self) -> int:
        return len(self.of(CODED))

    @property
    def dense_bytes(self) -> int:
        """Of everything in the report before; tied weights count once."""
        return sum(layer.dense_bytes for layer in self.layers if layer.status != TIED)

    @property
    def coded_bytes(self) -> int:
        """Of everything in the report after, dense leftovers included."""
        return sum(layer.coded_bytes for layer in self.layers if layer.status != TIED)

    @property
    def ratio(self) -> float:
        """Bytes before / bytes after."""
        return self.dense_bytes / max(1, self.coded_bytes)

    @property
    def bits_per_weight(self) -> float:
        """Of the coded layers, everything counted."""
        coded = self.of(CODED)
        weights = sum(layer.weights for layer in coded)
        return 8 * sum(layer.coded_bytes for layer in coded) / max(1, weights)

    @property
    def memory_bits_per_weight(self) -> float | None:
        """The same in memory; None where that is not known."""
        sizes = [layer.memory_bytes for layer in self.of(CODED)]
        known = [size for size in sizes if size is not None]
        weights = sum(layer.weights for layer in self.of(CODED))
        return 8 * sum(known) / weights if weights and len(known) == len(sizes) else None

    @property
    def codings(self) -> dict[str, int]:
        """Coded layers by what `coded_bytes` counts."""
        return dict(Counter(layer.coding for layer in self.of(CODED)))

    @property
    def memory_codings(self) -> dict[str, int]:
        """Coded layers by what they are in memory."""
        return dict(Counter(layer.memory_coding for layer in self.of(CODED)))

    def line(self) -> str:
        """One line for people: sizes, rate, time, speed."""
        rate = self.dense_bytes / max(self.seconds, 1e-9) / 2**20
        percent = 100 * self.coded_bytes / max(1, self.dense_bytes)
        line = (
            f"{_mib(self.dense_bytes)} -> {_mib(self.coded_bytes)} MiB ({percent:.1f} %), "
            f"{self.bits_per_weight:.2f} bits/weight"
        )
        return f"{line}, {self.seconds:.1f} s, {rate:.0f} MiB/s" if self.seconds else line

    def lines(self) -> list[str]:
        """All that people should read: line(), what stays dense in the file, memory, leavings."""
        lines = [self.line()]
        kept: dict[str, list[LayerReport]] = {}
        for layer in self.of(SKIPPED, STORED):
            kept.setdefault(layer.reason, []).append(layer)
        for reason, layers in kept.items():
            size = _mib(sum(layer.coded_bytes for layer in layers))
            lines.append(
                f"dense: {_count(len(layers), 'matrix', 'matrices')}, {size} MiB: {reason}"
            )
        if self.memory is not None:
            lines.append(self.memory.line())
        elif "memory_unknown" in self.extra:
            lines.append(f"in memory: not known, {self.extra['memory_unknown']}")
        in_memory = [x for x in self.of(CODED) if x.memory_bytes is not None and x.memory_coding]
        lines += [
            f"in memory {line}"
            for line in coding_lines(
                (x.memory_coding, x.why, x.shape, x.memory_bytes or 0) for x in in_memory
            )
        ]
        if left_out := self.extra.get("left_out"):
            size = _mib(sum(left_out.values()))
            shown = ", ".join(list(left_out)[:4]) + (", ..." if len(left_out) > 4 else "")
            files = _count(len(left_out), "file", "files")
            lines.append(f"left out: {files} of other weights, {size} MiB: {shown}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "coded_layers": self.coded_layers,
            "dense_bytes": self.dense_bytes,
            "coded_bytes": self.coded_bytes,
            "ratio": self.ratio,
            "bits_per_weight": self.bits_per_weight,
            "memory_bits_per_weight": self.memory_bits_per_weight,
            "codings": self.codings,
            "memory_codings": self.memory_codings,
            "seconds": self.seconds,
            "memory": asdict(self.memory) if self.memory else None,
            **self.extra,
            "layers": [{**asdict(x), "bits_per_weight": x.bits_per_weight} for x in self.layers],
        }

    def to_json(self, indent: int | None = 2) -> str:
        return json.dumps(self.to_dict(), indent=indent)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> CompressionReport:
        """The inverse of to_dict()."""
        layers = tuple(LayerReport.from_dict(x) for x in data["layers"])
        memory = Memory(**data["memory"]) if data.get("memory") else None
        derived = {
            "format",
            "coded_layers",
            "dense_bytes",
            "coded_bytes",
            "ratio",
            "bits_per_weight",
            "memory_bits_per_weight",
            "codings",
            "memory_codings",
            "seconds",
            "memory",
            "layers",
        }
        extra = {k: v for k, v in data.items() if k not in derived}
        return CompressionReport(data["format"], layers, data["seconds"], extra, memory)


def coding_lines(layers: Iterable[tuple[str, str, Sequence[int], int]]) -> list[str]:
    """How weights are coded and why, in lines; from coding, reason, shape and bytes of each."""
    groups: dict[tuple[str, str], list[int]] = {}
    for coding, reason, shape, size in layers:
        total = groups.setdefault((coding, reason), [0, 0, 0])
        for i, n in enumerate((1, math.prod(shape), size)):
            total[i] += n
    return [
        f"{coding}: {_count(count, 'matrix', 'matrices')}, {_mib(size)} MiB, "
        f"{8 * size / max(1, weights):.2f} bits per weight" + (f" ({reason})" if reason else "")
        for (coding, reason), (count, weights, size) in groups.items()
    ]


def _mib(n: int) -> str:
    mib = n / 2**20
    return f"{mib:.0f}" if mib >= 100 else f"{mib:.1f}" if mib >= 1 else f"{mib:.3f}"


def _count(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"
