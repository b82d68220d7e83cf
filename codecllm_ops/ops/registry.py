"""Which backend runs where, and why. Loads the compiled library if there is one.

Environment:
    CODECLLM_BACKEND  auto (default), cpu or reference. An explicit wish that cannot be met raises.
    CODECLLM_CPU_ISA  portable, avx2, avx512 or avx512bf16 instead of the fastest supported.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from . import schema  # noqa: F401  (a compiled library implements ops that must exist)
from .backends import reference

BACKENDS = ("auto", "cpu", "reference")


class BackendUnavailableError(RuntimeError):
    """An explicitly requested backend or instruction set is not there; the message says why."""


class _CompiledCpu:
    """The C++ kernels behind the same functions as backends/reference.py."""

    @staticmethod
    def _ops():
        return torch.ops.codecllm

    def decode_words(self, *args):
        return self._ops()._decode_words(*args)

    def decode_rows_words(self, *args):
        return self._ops()._decode_rows_words(*args)

    def count_values(self, *args):
        return self._ops()._count_values(*args)

    def count_pairs(self, *args):
        return self._ops()._count_pairs(*args)

    def encode_tiles(self, *args):
        return self._ops()._encode_tiles(*args)


_wish = os.environ.get("CODECLLM_BACKEND", "auto").lower()
_why_not: dict[str, str] = {}
_cpu: _CompiledCpu | None = None


def _load() -> None:
    global _cpu
    if _wish not in BACKENDS:
        raise BackendUnavailableError(
            f"CODECLLM_BACKEND={_wish} is not one of {', '.join(BACKENDS)}"
        )
    if _wish == "reference":
        _why_not["cpu"] = "CODECLLM_BACKEND=reference"
        return
    library = Path(__file__).parents[1] / "_C.so"
    if not library.exists():
        _why_not["cpu"] = (
            "not compiled: reinstall with a C++ compiler and `pip install --no-build-isolation`"
        )
    else:
        try:
            torch.ops.load_library(str(library))
            _cpu = _CompiledCpu()
        except OSError as error:
            _why_not["cpu"] = f"{library.name} does not load: {error}"
    if _cpu is None and _wish == "cpu":
        raise BackendUnavailableError(f"CODECLLM_BACKEND=cpu: {_why_not['cpu']}")
    if _cpu is not None and (isa := os.environ.get("CODECLLM_CPU_ISA")):
        select_cpu_isa(isa)


def select_cpu_isa(name: str = "") -> None:
    """Runs the CPU kernels of that instruction set; "" goes back to the fastest supported.

    Raises:
        BackendUnavailableError: not compiled, or not an instruction set of this machine.
    """
    if _cpu is None:
        raise BackendUnavailableError(f"no compiled CPU kernels: {_why_not['cpu']}")
    if not torch.ops.codecllm._select_isa(name):
        have = torch.ops.codecllm._available_isas()
        raise BackendUnavailableError(f"no CPU kernels for {name!r} here; there are: {have}")


def compiled_cpu() -> bool:
    return _cpu is not None


def backend_for(device: torch.device):
    """Module or object with the functions of backends/reference.py."""
    return _cpu if _cpu is not None and device.type == "cpu" else reference


def backend_info() -> dict:
    """What runs where, and the reason for everything that is missing."""
    info = {"requested": _wish, "cpu": "cpu" if _cpu else "reference", "missing": dict(_why_not)}
    if _cpu:
        info["cpu_isa"] = torch.ops.codecllm._isa()
        info["cpu_isas"] = torch.ops.codecllm._available_isas().split()
    if torch.cuda.is_available():
        info["cuda"] = "reference"
        info["missing"]["cuda"] = "no CUDA kernels in this version: pure torch decodes on the GPU"
    return info


_load()
