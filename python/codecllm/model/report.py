"""What a compression did, layer by layer and in total."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

CODED, STORED, SKIPPED, TIED = "coded", "stored", "skipped", "tied"


@dataclass(frozen=True)
class LayerReport:
    """One weight.

    Attributes:
        name: full name of the module, or of the tensor in a checkpoint.
        status: "coded"; "stored" (coding would not shrink it: kept dense); "skipped" (kept dense
            for the reason given); "tied" (counted under the name given as reason).
        dense_bytes, coded_bytes: before and after, everything counted; equal where kept dense.
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

    @property
    def weights(self) -> int:
        n = 1
        for size in self.shape:
            n *= size
        return n

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.coded_bytes / max(1, self.weights)


@dataclass(frozen=True)
class CompressionReport:
    """All layers, and totals over the coded ones and over everything."""

    format: str
    layers: tuple[LayerReport, ...]
    seconds: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)

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

    def line(self) -> str:
        """One line for people: sizes, rate, time, speed."""
        rate = self.dense_bytes / max(self.seconds, 1e-9) / 2**20
        percent = 100 * self.coded_bytes / max(1, self.dense_bytes)
        line = (
            f"{_mib(self.dense_bytes)} -> {_mib(self.coded_bytes)} MiB ({percent:.1f} %), "
            f"{self.bits_per_weight:.2f} bits/weight"
        )
        return f"{line}, {self.seconds:.1f} s, {rate:.0f} MiB/s" if self.seconds else line

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "coded_layers": self.coded_layers,
            "dense_bytes": self.dense_bytes,
            "coded_bytes": self.coded_bytes,
            "ratio": self.ratio,
            "bits_per_weight": self.bits_per_weight,
            "seconds": self.seconds,
            **self.extra,
            "layers": [{**asdict(x), "bits_per_weight": x.bits_per_weight} for x in self.layers],
        }

    def to_json(self, indent: int | None = 2) -> str:
        return json.dumps(self.to_dict(), indent=indent)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> CompressionReport:
        """The inverse of to_dict()."""
        known = LayerReport.__dataclass_fields__
        layers = tuple(
            LayerReport(
                **{**{k: v for k, v in x.items() if k in known}, "shape": tuple(x["shape"])}
            )
            for x in data["layers"]
        )
        derived = {
            "format",
            "coded_layers",
            "dense_bytes",
            "coded_bytes",
            "ratio",
            "bits_per_weight",
            "seconds",
            "layers",
        }
        extra = {k: v for k, v in data.items() if k not in derived}
        return CompressionReport(data["format"], layers, data["seconds"], extra)


def _mib(n: int) -> str:
    mib = n / 2**20
    return f"{mib:.0f}" if mib >= 100 else f"{mib:.1f}" if mib >= 1 else f"{mib:.3f}"
