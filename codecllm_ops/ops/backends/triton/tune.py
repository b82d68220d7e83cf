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
from typing import Any

import torch
import triton

_chosen: dict[tuple, Any] = {}


def choose(key: tuple, candidates: Callable[[], Sequence], run: Callable) -> Any:
    """The fastest candidate, measured with run(candidate); the first one where that may not be.

    Args:
        key: hashable, what the choice depends on besides the device; its repr is the key on disk.
        candidates: gives them, the likely best first.
    """
    if triton.knobs.runtime.interpret:
        return candidates()[0]
    key = (torch.cuda.current_device(), *key)
    if key not in _chosen:
        found = candidates()
        if len(found) > 1 and _may_not_measure():
            return found[0]
        _chosen[key] = found[_fastest(key, found, run)]
    return _chosen[key]


def _may_not_measure() -> bool:
    off = os.environ.get("CODECLLM_AUTOTUNE") == "0"
    return off or torch.cuda.is_current_stream_capturing()


def _fastest(key: tuple, candidates: Sequence, run: Callable) -> int:
    if len(candidates) == 1:
        return 0
    name = f"{_device(key[0])}: {key[1:]} {list(candidates)}"
    known = _on_disk().get(name)
    if isinstance(known, int) and 0 <= known < len(candidates):
        return known
    times = [
        triton.testing.do_bench(lambda c=c: run(c), warmup=5, rep=20, return_mode="median")
        for c in candidates
    ]
    best = times.index(min(times))
    _remember(name, best)
    return best


def _device(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    return f"{properties.name}, {properties.multi_processor_count}, triton {triton.__version__}"


def _file() -> Path:
    return Path(triton.knobs.cache.dir) / "codecllm-choices.json"


@functools.cache
def _on_disk() -> dict[str, int]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(_file().read_text())
        if isinstance(found, dict):
            return found
    return {}


def _remember(name: str, index: int) -> None:
    _on_disk()[name] = index
    with contextlib.suppress(OSError):  # a folder that cannot be written costs a measurement
        _file().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=_file().parent, prefix=_file().name, delete=False
        ) as file:
            json.dump(_on_disk(), file)
        Path(file.name).replace(_file())
