"""Which backend runs where, and why. Loads the compiled libraries if there are any.

Environment:
    CODECLLM_BACKEND  auto (default), cpu, cuda, triton or reference. An explicit wish that cannot
                      be met raises.
    CODECLLM_CPU_ISA  portable, avx2, avx512 or avx512bf16 instead of the fastest supported.
    CODECLLM_CHECK    1: ops on a GPU wait for it and raise where streams are corrupt.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

from ..codec.coded import STORED_BIT
from . import schema  # noqa: F401  (a compiled library implements ops that must exist)
from .backends import reference
from .backends.layout import Layout
from .backends.stored import stored_rows

BACKENDS = ("auto", "cpu", "cuda", "triton", "reference")
MIN_ARCH = (7, 5)  # of an NVIDIA GPU, for the CUDA kernels and for Triton
MIN_TRITON = (3, 6)


class BackendUnavailableError(RuntimeError):
    """An explicitly requested backend or instruction set is not there; the message says why."""


class _Compiled:
    """The compiled kernels behind the same functions as backends/reference.py. The dispatcher
    chooses between the CPU's and CUDA's; decode_linear it calls itself."""

    @staticmethod
    def _ops():
        return torch.ops.codecllm

    def decode_words(self, *args):
        return self._ops()._decode_words(*args)

    def decode_rows_words(self, ids, stream, raw, index, table, rows, cols, layout):
        if ids.is_cuda and layout >> STORED_BIT & 1:
            row_bytes = cols * Layout.unpack(layout).fmt.word_bytes
            return stored_rows(ids, stream, rows, row_bytes, _checking)
        return self._ops()._decode_rows_words(ids, stream, raw, index, table, rows, cols, layout)

    def count_values(self, *args):
        return self._ops()._count_values(*args)

    def count_pairs(self, *args):
        return self._ops()._count_pairs(*args)

    def encode_tiles(self, *args):
        return self._ops()._encode_tiles(*args)


_COMPILED = _Compiled()
_HOW_TO_COMPILE = {
    "cpu": "reinstall with a C++ compiler and `pip install --no-build-isolation`",
    "cuda": "reinstall with nvcc and a CUDA build of torch, `pip install --no-build-isolation`",
}

_wish = "auto"
_cpu: _Compiled | ModuleType = reference  # for tensors on the CPU
_cuda: _Compiled | ModuleType = reference  # for tensors on a GPU
_checking = False
_rebind: Callable[[], None] = lambda: None  # noqa: E731  (kernels.py sets it)


# ---- what there is ------------------------------------------------------------------------------


@functools.cache
def _problem_of_library(backend: str, name: str) -> str | None:
    """Loads a compiled library; what stands in the way, or None."""
    if backend == "cuda" and torch.version.cuda is None:
        return "this torch is no CUDA build"
    library = Path(__file__).parents[1] / name
    if not library.exists():
        return f"not compiled: {_HOW_TO_COMPILE[backend]}"
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return f"{library.name} does not load: {error}"
    return None


def _problem_of_cpu() -> str | None:
    return _problem_of_library("cpu", "_C.so")


def _problem_of_cuda() -> str | None:
    return _problem_of_library("cuda", "_C_cuda.so")


@functools.cache
def _problem_of_triton() -> str | None:
    need = ".".join(map(str, MIN_TRITON))
    try:
        version = str(importlib.import_module("triton").__version__)
    except Exception as error:  # whatever a broken installation raises
        return f"Triton {need} or later is needed: pip install 'triton>={need}' ({error})"
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or tuple(map(int, numbers.groups())) < MIN_TRITON:
        return f"Triton {version} is too old: {need} or later is needed"
    if not _gpu_or_interpreter():
        return "torch sees no GPU"
    try:
        _triton()
    except Exception as error:
        return f"Triton {version} does not take the kernels: {error}"
    return None


def _gpu_or_interpreter() -> bool:
    """Asked before Triton is imported, which takes a while."""
    return torch.cuda.is_available() or _interpreting()


def _interpreting() -> bool:
    """TRITON_INTERPRET=1: Triton's kernels run on CPU tensors, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _triton() -> ModuleType:
    return importlib.import_module("..backends.triton", __name__)


@functools.cache
def _too_old(index: int | None) -> str | None:
    """Why neither CUDA kernels nor Triton run on a GPU; None if they do."""
    if torch.version.hip:
        return None
    have = torch.cuda.get_device_capability(index)
    if have >= MIN_ARCH:
        return None
    return (
        f"{torch.cuda.get_device_name(index)} is sm_{have[0]}{have[1]}, the kernels need "
        f"sm_{MIN_ARCH[0]}{MIN_ARCH[1]} or later: pure torch decodes on it"
    )


@functools.cache
def _no_code(index: int | None) -> str | None:
    """Why the CUDA library does not run on a GPU that is not too old; None if it does."""
    if torch.ops.codecllm._has_code(torch.cuda.current_device() if index is None else index):
        return None
    have = torch.cuda.get_device_capability(index)
    return f"the CUDA library has no code for sm_{have[0]}{have[1]}: reinstall with its toolkit"


# ---- what is chosen -----------------------------------------------------------------------------


def _demand(problem: str | None, name: str) -> None:
    if problem is not None:
        raise BackendUnavailableError(f"CODECLLM_BACKEND={name}: {problem}")


def use_backend(name: str = "auto") -> str:
    """Runs the ops on another backend from now on; returns what was asked for before.

    Args:
        name: "auto": compiled kernels, on a GPU Triton where those are missing, pure torch where
            both are. "cpu": no kernels of our own on a GPU. "cuda", "triton": these on a GPU.
            "reference": pure torch everywhere.

    Raises:
        BackendUnavailableError: the backend is not there, and why.
    """
    global _wish, _cpu, _cuda
    if name not in BACKENDS:
        raise BackendUnavailableError(
            f"CODECLLM_BACKEND={name} is not one of {', '.join(BACKENDS)}"
        )
    cpu: _Compiled | ModuleType = reference
    cuda: _Compiled | ModuleType = reference
    if name == "cpu":
        _demand(_problem_of_cpu(), name)
    if name == "cuda":
        _demand(_problem_of_cuda(), name)
        _demand(None if torch.cuda.is_available() else "torch sees no GPU", name)
    if name == "triton":
        _demand(_problem_of_triton(), name)
    if name != "reference" and _problem_of_cpu() is None:
        cpu = _COMPILED
    if name in ("auto", "cuda") and _problem_of_cuda() is None:
        cuda = _COMPILED
    elif name == "triton" or (
        name == "auto" and _gpu_or_interpreter() and _problem_of_triton() is None
    ):
        cuda = _triton()
        if name == "triton" and _interpreting():
            cpu = cuda
    before, _wish, _cpu, _cuda = _wish, name, cpu, cuda
    _rebind()
    if _cuda is not reference:
        _apply_check()
    return before


def backend_for(device: torch.device) -> _Compiled | ModuleType:
    """Module or object with the functions of backends/reference.py."""
    if device.type == "cpu":
        return _cpu
    if device.type == "cuda" and _too_old(device.index) is None:
        if _cuda is not _COMPILED or _no_code(device.index) is None:
            return _cuda
        if _wish == "cuda":
            _demand(_no_code(device.index), "cuda")
        return reference if _problem_of_triton() else _triton()
    return reference


def backend_for_encoding() -> _Compiled | ModuleType:
    """What encodes: there are no encoders for GPUs."""
    if _cpu is _COMPILED or _cpu is reference:
        return _cpu
    return _COMPILED if compiled_cpu() else reference


def on_change(rebind: Callable[[], None]) -> None:
    """Calls `rebind` now and whenever another backend is chosen."""
    global _rebind
    _rebind = rebind
    rebind()


def overridden() -> list[str]:
    """Dispatch keys whose compiled decode_linear is loaded but not wanted."""
    keys = []
    if _loaded("cpu") and _cpu is not _COMPILED:
        keys.append("CPU")
    if _loaded("cuda") and _cuda is not _COMPILED:
        keys.append("CUDA")
    return keys


def _loaded(backend: str) -> bool:
    key = {"cpu": "CPU", "cuda": "CUDA"}[backend]
    return torch._C._dispatch_has_kernel_for_dispatch_key("codecllm::_decode_words", key)


def set_check(on: bool = True) -> bool:
    """Whether ops on a GPU wait for it and raise CorruptStreamError; returns what was before.

    Without it a corrupt tile decodes to NaN, and nothing waits. Not for CUDA graph capture. The CPU
    always checks.

    Raises:
        BackendUnavailableError: there are no kernels for GPUs.
    """
    global _checking
    if _cuda is reference:
        raise BackendUnavailableError(f"no kernels for GPUs: {_missing()['cuda']}")
    before, _checking = _checking, on
    _apply_check()
    return before


def _apply_check() -> None:
    if _loaded("cuda"):
        torch.ops.codecllm._set_check(_checking)
    if "codecllm_ops.ops.backends.triton" in sys.modules:
        _triton().set_check(_checking)


def select_cpu_isa(name: str = "") -> None:
    """Runs the CPU kernels of that instruction set; "" goes back to the fastest supported.

    Raises:
        BackendUnavailableError: not compiled, or not an instruction set of this machine.
    """
    if not compiled_cpu():
        raise BackendUnavailableError(f"no compiled CPU kernels: {_missing()['cpu']}")
    if not torch.ops.codecllm._select_isa(name):
        have = torch.ops.codecllm._available_isas()
        raise BackendUnavailableError(f"no CPU kernels for {name!r} here; there are: {have}")


def compiled_cpu() -> bool:
    return _loaded("cpu")


def _missing() -> dict[str, str]:
    """What does not run, and why: what stands in the way, or that it was not asked for."""
    found = {}
    if _cpu is not _COMPILED:
        found["cpu"] = f"CODECLLM_BACKEND={_wish}" if _wish == "reference" else _problem_of_cpu()
    if _cuda is not _COMPILED:
        unasked = _wish in ("reference", "cpu", "triton")
        found["cuda"] = f"CODECLLM_BACKEND={_wish}" if unasked else _problem_of_cuda()
    elif not torch.cuda.is_available():
        found["cuda"] = "torch sees no GPU"
    if _cuda is reference and _wish == "auto":
        found["triton"] = _problem_of_triton() if _gpu_or_interpreter() else "torch sees no GPU"
    return {k: v for k, v in found.items() if v is not None}


def backend_info() -> dict:
    """What runs where, and the reason for everything that is missing."""
    info = {"requested": _wish, "cpu": _name(_cpu, "cpu"), "missing": _missing()}
    if compiled_cpu():
        info["cpu_isa"] = torch.ops.codecllm._isa()
        info["cpu_isas"] = torch.ops.codecllm._available_isas().split()
    if _cuda is not _COMPILED and _cuda is not reference:
        info["triton"] = importlib.import_module("triton").__version__
    if torch.cuda.is_available():
        here = torch.device("cuda", torch.cuda.current_device())
        reason = _too_old(here.index)
        if reason is None and _cuda is _COMPILED:
            reason = _no_code(here.index)
        if reason:
            info["missing"]["cuda"] = reason
        info["cuda"] = _name(backend_for(here), "cuda")
    return info


def _name(backend: _Compiled | ModuleType, compiled: str) -> str:
    if backend is _COMPILED:
        return compiled
    return "reference" if backend is reference else "triton"


def _load() -> None:
    global _checking
    _checking = os.environ.get("CODECLLM_CHECK") == "1"
    use_backend(os.environ.get("CODECLLM_BACKEND", "auto").lower())
    if _cpu is _COMPILED and (isa := os.environ.get("CODECLLM_CPU_ISA")):
        select_cpu_isa(isa)


_load()
