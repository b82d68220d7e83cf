"""Compiled kernels for the CPU (csrc/cpu); they encode as well."""

from __future__ import annotations

from typing import Any

import torch

from . import compiled, register


class _Encoder:
    """The compiled ops as the encoder wants them."""

    def count_values(self, *args):
        return torch.ops.codecllm._count_values(*args)

    def count_pairs(self, *args):
        return torch.ops.codecllm._count_pairs(*args)

    def encode_tiles(self, *args):
        return torch.ops.codecllm._encode_tiles(*args)


class CpuBackend(compiled.CompiledBackend):
    name = "cpu"
    dispatch_key = "CPU"
    encoder = _Encoder()

    def handles(self, device_type: str) -> bool:
        return device_type == "cpu"

    def problem(self) -> str | None:
        how = "reinstall with a C++ compiler and `pip install --no-build-isolation`"
        return compiled.load("_C.so", how)

    def details(self) -> dict[str, Any]:
        isas = torch.ops.codecllm._available_isas().split()
        return {"cpu_isa": torch.ops.codecllm._isa(), "cpu_isas": isas}

    def select_isa(self, name: str) -> bool:
        """False if this machine has no such instruction set, or it was not compiled."""
        return torch.ops.codecllm._select_isa(name)


CPU = CpuBackend()
register(CPU)
