"""What the two compiled libraries share: loading, and ops behind the methods of a backend."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from ...codec.operand import Operand
from .. import schema  # noqa: F401  (a compiled library implements ops that must exist)
from .protocol import Backend


@functools.cache
def load(name: str, how_to_compile: str) -> str | None:
    """Loads a library of this package; what stands in the way, or None."""
    library = Path(__file__).parents[2] / name
    if not library.exists():
        return f"not compiled: {how_to_compile}"
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return f"{library.name} does not load: {error}"
    return None


class CompiledBackend(Backend):
    """Kernels in C++; the dispatcher chooses between the CPU's and CUDA's."""

    @property
    def loaded(self) -> bool:
        assert self.dispatch_key is not None
        return torch._C._dispatch_has_kernel_for_dispatch_key(
            "codecllm::_decode_into", self.dispatch_key
        )

    def decode_into(self, coded: Operand, out: torch.Tensor) -> None:
        stream, raw, index, table, _, *rest = coded
        torch.ops.codecllm._decode_into(stream, raw, index, table, *rest, out)

    def decode_rows_words(self, ids: torch.Tensor, coded: Operand) -> torch.Tensor:
        stream, raw, index, table, _, *rest = coded
        return torch.ops.codecllm._decode_rows_words(ids, stream, raw, index, table, *rest)

    def to_fixed(self, coded: Operand, segment_rows, bases, tile_cols):
        if not self._has("_to_fixed"):
            return super().to_fixed(coded, segment_rows, bases, tile_cols)
        stream, raw, index, table, _, *rest = coded
        windows = torch.tensor(bases, dtype=torch.int32)
        return torch.ops.codecllm._to_fixed(stream, raw, index, table, *rest, windows, tile_cols)

    def lying_tile(self, coded: Operand) -> int:
        if not self._has("_check_fixed"):
            return super().lying_tile(coded)
        stream, raw, index, table, _, *rest = coded
        return torch.ops.codecllm._check_fixed(stream, raw, index, table, *rest) - 1

    def _has(self, op: str) -> bool:
        return torch._C._dispatch_has_kernel_for_dispatch_key(f"codecllm::{op}", self.dispatch_key)
