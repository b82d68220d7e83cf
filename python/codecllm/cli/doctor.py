"""`codecllm doctor`: what is installed, which backend runs, what is missing and how to get it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import warnings
from typing import Any

import torch

import codecllm
import codecllm_ops

_PARTS = {
    "transformers": "load and generate: pip install 'codecllm[transformers]'",
    "accelerate": "device maps: pip install accelerate",
    "safetensors": "transformers' reader of checkpoints: pip install safetensors",
}


def diagnose() -> dict[str, Any]:
    """Everything a bug report needs."""
    found: dict[str, Any] = {
        "codecllm": codecllm.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "backend": codecllm_ops.backend_info(),
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
