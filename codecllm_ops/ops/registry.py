"""Which backend runs where, and why.

Environment:
    CODECLLM_BACKEND  auto (default), cpu, cuda, triton or reference. An explicit wish that cannot
                      be met raises.
    CODECLLM_CPU_ISA  portable, avx2, avx512 or avx512bf16 instead of the fastest supported.
    CODECLLM_CHECK    1: ops on a GPU wait for it and raise where streams are corrupt.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ..codec.rans.encoder import EncoderKernels
from . import backends
from .backends import Backend
from .backends.compiled import CompiledBackend
from .backends.cpu import CPU

_DEVICE_TYPES = ("cpu", "cuda")
_BACKENDS = backends.table()
_REFERENCE = _BACKENDS["reference"]
NAMES = ("auto", *_BACKENDS)


class BackendUnavailableError(RuntimeError):
    """An explicitly requested backend or instruction set is not there; the message says why."""


@dataclass
class _State:
    wish: str = "auto"
    checking: bool = False
    of_type: dict[str, Backend] = field(default_factory=dict)  # by kind of device
    of_device: dict[torch.device, Backend] = field(default_factory=dict)


_state = _State()
_rebind: Callable[[], None] = lambda: None  # noqa: E731  (kernels.py sets it)


# ---- what is chosen -----------------------------------------------------------------------------


def _wished(wish: str, device_type: str) -> Backend | None:
    """The backend that an explicit wish means for a kind of device; None leaves it to `auto`."""
    if wish == "auto":
        return None
    if _BACKENDS[wish].handles(device_type):
        return _BACKENDS[wish]
    # "cpu" asks for no kernels of our own on a GPU; "cuda" and "triton" say nothing of the CPU.
    return _REFERENCE if wish == "cpu" else None


def _automatic(device_type: str) -> Backend:
    candidates = (b for b in _BACKENDS.values() if b.volunteers(device_type))
    return next((b for b in candidates if b.absence() is None), _REFERENCE)


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
    global _state
    if name not in NAMES:
        raise BackendUnavailableError(f"CODECLLM_BACKEND={name} is not one of {', '.join(NAMES)}")
    if name != "auto":
        _demand(_BACKENDS[name].demanded(), name)
    chosen = {t: _wished(name, t) or _automatic(t) for t in _DEVICE_TYPES}
    before, _state = _state, _State(name, _state.checking, chosen)
    _rebind()
    _apply_check()
    return before.wish


def backend_for(device: torch.device) -> Backend:
    """The backend that decodes on a device.

    Raises:
        BackendUnavailableError: an explicit wish does not run on this very device.
    """
    found = _state.of_device.get(device)
    if found is None:
        found = _state.of_device[device] = _choose(device)
    return found


def _choose(device: torch.device) -> Backend:
    first = _state.of_type.get(device.type, _REFERENCE)
    problem = first.problem_on(device)
    if problem is None:
        return first
    if first.name == _state.wish:
        _demand(problem, first.name)
    others = (b for b in _BACKENDS.values() if b.volunteers(device.type) and b is not first)
    runs = (b for b in others if b.absence() is None and b.problem_on(device) is None)
    return next(runs, _REFERENCE)


def backend_for_encoding() -> EncoderKernels:
    """What encodes: there are no encoders for GPUs."""
    if _state.of_type["cpu"].encoder is not None:
        return _state.of_type["cpu"].encoder
    found = next(b.encoder for b in _BACKENDS.values() if b.encoder and b.problem() is None)
    assert found is not None
    return found


def on_change(rebind: Callable[[], None]) -> None:
    """Calls `rebind` now and whenever another backend is chosen."""
    global _rebind
    _rebind = rebind
    rebind()


def overridden() -> list[str]:
    """Dispatch keys whose compiled decode_linear is loaded but not wanted."""
    compiled = (b for b in _BACKENDS.values() if isinstance(b, CompiledBackend) and b.loaded)
    unwanted = (b for b in compiled if b not in _state.of_type.values())
    return [b.dispatch_key for b in unwanted if b.dispatch_key]


# ---- checking, instruction sets -----------------------------------------------------------------


def set_check(on: bool = True) -> bool:
    """Whether ops on a GPU wait for it and raise CorruptStreamError; returns what was before.

    Without it a corrupt tile decodes to NaN, and nothing waits. Not for CUDA graph capture. The CPU
    always checks.

    Raises:
        BackendUnavailableError: there are no kernels for GPUs.
    """
    if _state.of_type["cuda"] is _REFERENCE:
        reason = _missing().get("cuda", "none were asked for")
        raise BackendUnavailableError(f"no kernels for GPUs: {reason}")
    before, _state.checking = _state.checking, on
    _apply_check()
    return before


def _apply_check() -> None:
    """To all, because a GPU that the first choice does not run on gets another."""
    for backend in _BACKENDS.values():
        backend.set_check(_state.checking)


def select_cpu_isa(name: str = "") -> None:
    """Runs the CPU kernels of that instruction set; "" goes back to the fastest supported.

    Raises:
        BackendUnavailableError: not compiled, or not an instruction set of this machine.
    """
    if not compiled_cpu():
        raise BackendUnavailableError(f"no compiled CPU kernels: {_missing()['cpu']}")
    if not CPU.select_isa(name):
        have = " ".join(CPU.details()["cpu_isas"])
        raise BackendUnavailableError(f"no CPU kernels for {name!r} here; there are: {have}")


def compiled_cpu() -> bool:
    return CPU.loaded


# ---- what there is ------------------------------------------------------------------------------


def _missing() -> dict[str, str]:
    """What does not run, and why: what stands in the way, or that it was not asked for."""
    found = {}
    for device_type in _DEVICE_TYPES:
        for backend in _BACKENDS.values():
            if backend is _state.of_type[device_type]:
                break  # those behind it are not wanted
            if not backend.volunteers(device_type):
                continue
            if _wished(_state.wish, device_type) is not None:
                found[backend.name] = f"CODECLLM_BACKEND={_state.wish}"
            elif reason := backend.absence():
                found[backend.name] = reason
    return found


def backend_info() -> dict:
    """What runs where, and the reason for everything that is missing."""
    info = {
        "requested": _state.wish,
        "cpu": _state.of_type["cpu"].name,
        "missing": _missing(),
    }
    running = {CPU} if compiled_cpu() else set()
    running.add(_state.of_type["cpu"])
    if torch.cuda.is_available():
        here = torch.device("cuda", torch.cuda.current_device())
        if reason := _state.of_type["cuda"].problem_on(here):
            info["missing"][_state.of_type["cuda"].name] = reason
        on_gpu = backend_for(here)
        info["cuda"] = on_gpu.name
        running.add(on_gpu)
    for backend in running:
        info.update(backend.details())
    return info


def _load() -> None:
    _state.checking = os.environ.get("CODECLLM_CHECK") == "1"
    use_backend(os.environ.get("CODECLLM_BACKEND", "auto").lower())
    if _state.of_type["cpu"] is CPU and (isa := os.environ.get("CODECLLM_CPU_ISA")):
        select_cpu_isa(isa)


_load()
