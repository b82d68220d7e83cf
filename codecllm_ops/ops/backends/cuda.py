"""Compiled kernels for NVIDIA GPUs (csrc/cuda)."""

from __future__ import annotations

import functools

import torch

from ...codec.operand import Operand
from ...format.layout_word import CODINGS, Layout
from . import compiled, gpu, register
from .protocol import Backend
from .stored import is_stored, stored_rows


class CudaBackend(compiled.CompiledBackend):
    name = "cuda"
    dispatch_key = "CUDA"

    def __init__(self) -> None:
        self._checking = False

    def handles(self, device_type: str) -> bool:
        return device_type == "cuda"

    def problem(self) -> str | None:
        if torch.version.cuda is None:
            return "this torch is no CUDA build"
        how = "reinstall with nvcc and a CUDA build of torch, `pip install --no-build-isolation`"
        return compiled.load("_C_cuda.so", how)

    def problem_on(self, device: torch.device) -> str | None:
        return gpu.too_old(device.index) or _no_code(device.index)

    def absence(self) -> str | None:
        return self.problem() or (None if torch.cuda.is_available() else gpu.NO_GPU)

    def set_check(self, on: bool) -> None:
        self._checking = on
        if self.loaded:
            torch.ops.codecllm._set_check(on)

    def decode_rows_words(self, ids: torch.Tensor, coded: Operand) -> torch.Tensor:
        if is_stored(coded):
            return stored_rows(ids, coded, self._checking)
        return super().decode_rows_words(ids, coded)

    def to_fixed(self, coded: Operand, segment_rows: list[int], bases: list[int], tile_cols: int):
        if Layout.unpack(coded.layout).coding == CODINGS.index("fixed"):
            # Other tiles for what is fixed already: too rare for a kernel.
            return Backend.to_fixed(self, coded, segment_rows, bases, tile_cols)
        return super().to_fixed(coded, segment_rows, bases, tile_cols)


@functools.cache
def _no_code(index: int | None) -> str | None:
    """Why the library does not run on a GPU that is not too old; None if it does."""
    if torch.ops.codecllm._has_code(torch.cuda.current_device() if index is None else index):
        return None
    have = torch.cuda.get_device_capability(index)
    return f"the CUDA library has no code for sm_{have[0]}{have[1]}: reinstall with its toolkit"


register(CudaBackend())
