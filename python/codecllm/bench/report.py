"""What a whole run of the benchmark found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .generation import GenerationResult
from .linear import LinearResult
from .memory import MemoryResult


@dataclass(frozen=True)
class BenchReport:
    """Figures, and what they were measured on.

    Attributes:
        machine: see machine.machine().
        model: name of the folder, or None: normal matrices.
        dense: what the dense side computes in, for instance "bfloat16".
        memory: by side.
        absent: why a part, or a coding, was not measured.
    """

    machine: dict[str, Any]
    model: str | None
    dense: str
    linear: tuple[LinearResult, ...] = ()
    generation: GenerationResult | None = None
    memory: dict[str, MemoryResult] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.machine,
            "model": self.model,
            "dense": self.dense,
            "results": {
                "linear": [r.to_dict() for r in self.linear],
                "generation": self.generation.to_dict() if self.generation else None,
                "memory": {side: m.to_dict() for side, m in self.memory.items()},
            },
            "absent": self.absent,
        }
