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
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import triton

_chosen: dict[tuple, Any] = {}
_measuring = threading.RLock()  # two threads would measure each other


def choose(key: tuple, candidates: Callable[[], Sequence], run: Callable) -> Any:
    """The fastest candidate, measured with run(candidate); the first one where that may not be.

    Args:
        key: hashable, what the choice depends on besides the device; its repr is the key on disk.
        candidates: gives them, the likely best first.
    """
    if triton.knobs.runtime.interpret:
        return candidates()[0]
    key = (torch.cuda.current_device(), *key)
    if key in _chosen:
        return _chosen[key]
    found = candidates()
    name = f"{_device(key[0])}: {key[1:]} {list(found)}"
    known = 0 if len(found) == 1 else _on_disk().get(name)
    if not isinstance(known, int) or not 0 <= known < len(found):
        if os.environ.get("CODECLLM_AUTOTUNE") == "0" or torch.cuda.is_current_stream_capturing():
            return found[0]
        with _measuring:
            if key not in _chosen:
                known = _fastest(found, run)
                _remember(name, known)
                _chosen[key] = found[known]
            return _chosen[key]
    return _chosen.setdefault(key, found[known])


def _fastest(candidates: Sequence, run: Callable) -> int:
    times = []
    for c in candidates:
        try:
            bench = triton.testing.do_bench
            times.append(bench(lambda c=c: run(c), warmup=5, rep=20, return_mode="median"))
        except torch.OutOfMemoryError:  # do_bench wants room to flush a cache; we can do without
            return 0
    return times.index(min(times))


def _device(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    return f"{properties.name}, {properties.multi_processor_count}, triton {triton.__version__}"


def _file() -> Path:
    return Path(triton.knobs.cache.dir) / "codecllm-choices.json"


def _read() -> dict[str, int]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(_file().read_text())
        if isinstance(found, dict):
            return found
    return {}


_on_disk = functools.cache(_read)


def _remember(name: str, index: int) -> None:
    """Adds to what is on disk by now: other processes write there too."""
    _on_disk()[name] = index
    file = _file()
    with contextlib.suppress(OSError):  # a folder that cannot be written costs a measurement
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=file.name) as folder:
            written = Path(folder, file.name)
            written.write_text(json.dumps(_read() | {name: index}))
            written.replace(file)
