"""`codecllm doctor`: what is installed, which backend runs, what is missing and how to get it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import warnings
from typing import Any

import codecllm

_PARTS = {
    "transformers": "load and generate: pip install 'transformers>=5,<6' accelerate",
    "accelerate": "device maps: pip install accelerate",
    "safetensors": "transformers' reader of checkpoints: pip install safetensors",
}


def diagnose() -> dict[str, Any]:
    """Everything a bug report needs. What does not load is a finding, not an error."""
    found: dict[str, Any] = {
        "codecllm": codecllm.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **_torch(),
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "backend": _backend(),
        "coding": _coding(),
    }
    missing = {}
    for name, purpose in _PARTS.items():
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
            missing[name] = purpose
    found["transformers_registered"] = found["transformers"] is not None and _registers()
    found["missing"] = missing
    return found


def _torch() -> dict[str, Any]:
    try:
        import torch
    except Exception as error:
        return {"torch": _problem(error)}
    return {
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _backend() -> dict[str, Any]:
    try:
        import codecllm_ops  # raises for a CODECLLM_BACKEND that is not there
    except Exception as error:
        return {"problem": _problem(error)}
    return codecllm_ops.backend_info()


def _coding() -> dict[str, Any]:
    """What coding="auto" comes to on every kind of device here."""
    try:
        import torch

        from ..nn.coding import Device, decide, wish

        devices = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        return {name: str(decide(wish(), Device.of(name))) for name in devices}
    except Exception as error:
        return {"problem": _problem(error)}


def _problem(error: Exception) -> str:
    return f"does not load: {' '.join(str(error).split())}"


def _registers() -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import codecllm.integrations.transformers  # noqa: F401
        except Exception:
            return False
    return True


def lines(found: dict[str, Any]) -> list[str]:
    """The findings for people."""
    out = []
    for key, value in found.items():
        if isinstance(value, dict):
            out.append(f"{key}:" if value else f"{key}: nothing")
            out += [f"  {k}: {v}" for k, v in value.items()]
        else:
            out.append(f"{key}: {'no' if value is None else value}")
    return out
