"""Which of a few ways to cut the work is fastest here: measured once, remembered on disk.

Nothing is measured while a CUDA graph is captured, in the interpreter, or with
CODECLLM_AUTOTUNE=0: then the first candidate runs.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import triton

_chosen: dict[str, int] = {}


def choose(key: tuple, candidates: Sequence, run: Callable) -> object:
    """The fastest of `candidates`, measured with run(candidate); the first one if that may not be.

    Args:
        key: what the choice depends on besides the device; its repr is the key on disk.
    """
    if len(candidates) == 1 or triton.knobs.runtime.interpret:
        return candidates[0]
    name = repr((_device(torch.cuda.current_device()), *key, tuple(candidates)))
    known = _chosen.get(name, _on_disk().get(name))
    if known is None:
        if os.environ.get("CODECLLM_AUTOTUNE") == "0" or torch.cuda.is_current_stream_capturing():
            return candidates[0]
        times = [
            triton.testing.do_bench(lambda c=c: run(c), warmup=5, rep=20, return_mode="median")
            for c in candidates
        ]
        known = times.index(min(times))
        _remember(name, known)
    return candidates[known]


def _device(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    return f"{properties.name}, {properties.multi_processor_count}, triton {triton.__version__}"


def _file() -> Path:
    return Path(triton.knobs.cache.dir) / "codecllm-choices.json"


@functools.cache
def _on_disk() -> dict[str, int]:
    try:
        found = json.loads(_file().read_text())
        return {k: v for k, v in found.items() if isinstance(v, int)}
    except (OSError, ValueError, AttributeError):
        return {}


def _remember(name: str, index: int) -> None:
    _chosen[name] = index
    with contextlib.suppress(OSError):  # a folder that cannot be written costs a measurement
        _file().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=_file().parent, prefix=_file().name, delete=False
        ) as file:
            json.dump(_on_disk() | _chosen, file)
        Path(file.name).replace(_file())
