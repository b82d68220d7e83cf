"""Which backend runs where, and why. Loads the compiled libraries if there are any.

Environment:
    CODECLLM_BACKEND  auto (default), cpu, cuda or reference. An explicit wish that cannot be met
                      raises.
    CODECLLM_CPU_ISA  portable, avx2, avx512 or avx512bf16 instead of the fastest supported.
    CODECLLM_CHECK    1: CUDA ops wait for the GPU and raise where streams are corrupt.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch

from . import schema  # noqa: F401  (a compiled library implements ops that must exist)
from .backends import reference

BACKENDS = ("auto", "cpu", "cuda", "reference")
MIN_CUDA_ARCH = (7, 5)


class BackendUnavailableError(RuntimeError):
    """An explicitly requested backend or instruction set is not there; the message says why."""


class _Compiled:
    """The compiled kernels behind the same functions as backends/reference.py. The dispatcher
    chooses between the CPU's and CUDA's."""

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
_cpu: _Compiled | None = None
_cuda: _Compiled | None = None

_HOW_TO_COMPILE = {
    "cpu": "reinstall with a C++ compiler and `pip install --no-build-isolation`",
    "cuda": "reinstall with nvcc and a CUDA build of torch, `pip install --no-build-isolation`",
}


def _load_library(backend: str, name: str) -> _Compiled | None:
    if _wish == "reference":
        _why_not[backend] = "CODECLLM_BACKEND=reference"
        return None
    library = Path(__file__).parents[1] / name
    if not library.exists():
        _why_not[backend] = f"not compiled: {_HOW_TO_COMPILE[backend]}"
        return None
    try:
        torch.ops.load_library(str(library))
        return _Compiled()
    except OSError as error:
        _why_not[backend] = f"{library.name} does not load: {error}"
        return None


def _load() -> None:
    global _cpu, _cuda
    if _wish not in BACKENDS:
        raise BackendUnavailableError(
            f"CODECLLM_BACKEND={_wish} is not one of {', '.join(BACKENDS)}"
        )
    _cpu = _load_library("cpu", "_C.so")
    if _wish == "cpu":
        _why_not["cuda"] = "CODECLLM_BACKEND=cpu"
    elif torch.version.cuda is None:
        _why_not["cuda"] = "this torch is no CUDA build"
    else:
        _cuda = _load_library("cuda", "_C_cuda.so")
    if _wish == "cuda" and _cuda is not None and not torch.cuda.is_available():
        _why_not["cuda"] = "torch sees no GPU"
    if _wish in _why_not and _wish != "reference":
        raise BackendUnavailableError(f"CODECLLM_BACKEND={_wish}: {_why_not[_wish]}")
    if _cpu is not None and (isa := os.environ.get("CODECLLM_CPU_ISA")):
        select_cpu_isa(isa)
    if _cuda is not None and os.environ.get("CODECLLM_CHECK") == "1":
        torch.ops.codecllm._set_check(True)


@functools.cache
def _why_not_on(index: int | None) -> str | None:
    """Why the CUDA kernels cannot run on a GPU; None if they can."""
    have = torch.cuda.get_device_capability(index)
    if have >= MIN_CUDA_ARCH:
        return None
    return (
        f"{torch.cuda.get_device_name(index)} is sm_{have[0]}{have[1]}, the kernels need "
        f"sm_{MIN_CUDA_ARCH[0]}{MIN_CUDA_ARCH[1]} or later: pure torch decodes on it"
    )


def set_check(on: bool = True) -> bool:
    """Whether CUDA ops wait for the GPU and raise CorruptStreamError; returns what was before.

    Without it a corrupt tile decodes to NaN, and nothing waits. Not for CUDA graph capture. The CPU
    always checks.

    Raises:
        BackendUnavailableError: there are no CUDA kernels.
    """
    if _cuda is None:
        raise BackendUnavailableError(f"no CUDA kernels: {_why_not['cuda']}")
    return torch.ops.codecllm._set_check(on)


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
    if device.type == "cpu" and _cpu is not None:
        return _cpu
    if device.type == "cuda" and _cuda is not None and _why_not_on(device.index) is None:
        return _cuda
    return reference


def backend_info() -> dict:
    """What runs where, and the reason for everything that is missing."""
    info = {"requested": _wish, "cpu": "cpu" if _cpu else "reference", "missing": dict(_why_not)}
    if _cpu:
        info["cpu_isa"] = torch.ops.codecllm._isa()
        info["cpu_isas"] = torch.ops.codecllm._available_isas().split()
    if torch.cuda.is_available():
        reason = _why_not_on(torch.cuda.current_device()) if _cuda else _why_not["cuda"]
        info["cuda"] = "reference" if reason else "cuda"
        if reason:
            info["missing"]["cuda"] = reason
    elif _cuda:
        info["missing"]["cuda"] = "torch sees no GPU"
    return info


_load()
