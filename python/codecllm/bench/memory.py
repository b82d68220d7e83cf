"""Memory of one model, in a process of its own: peaks of a process are those of all it ever held.

`python -m codecllm.bench.memory` is that process: a job as JSON in its first argument, what it
found as JSON on stdout.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .timing import DENSE


@dataclass(frozen=True)
class MemoryResult:
    """Bytes; of the process, what lies above the idle process with all libraries loaded.

    Attributes:
        weights: parameters and buffers of the model, each storage once.
        loaded: when the model was ready. Pages of mapped files count.
        peak_loading, peak_generating: the most there was.
        idle: the process before.
    """

    weights: int
    loaded: int
    peak_loading: int
    peak_generating: int
    idle: int
    load_seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class ChildError(RuntimeError):
    """The process that measures memory failed; the text is its own."""


def measure_memory(folder: Path, side: str, tokens: int, threads: int) -> MemoryResult:
    """Loads a folder as `side` ("dense" or a coding) and generates, in a child process.

    Raises:
        ChildError: it failed.
    """
    job = {"folder": str(folder.resolve()), "side": side, "tokens": tokens, "threads": threads}
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(job)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise ChildError(f"memory of {side}: {last[0]}")
    return MemoryResult(**json.loads(done.stdout.splitlines()[-1]))


def _job(folder: str, side: str, tokens: int, threads: int) -> MemoryResult:
    from ..integrations.any_folder import load_folder  # the parent needs no transformers
    from ..integrations.generate import weight_bytes
    from .generation import Work, generate

    torch.set_num_threads(threads)
    _touch_libraries()
    idle = _status("VmRSS")
    _forget_peak()
    begin = time.perf_counter()
    model = load_folder(Path(folder), None if side == DENSE else side)
    seconds = time.perf_counter() - begin
    loaded, peak_loading = _status("VmRSS"), _status("VmHWM")
    _forget_peak()
    if model.can_generate():
        generate(model, Work().prompt, tokens)
    peak = _status("VmHWM")
    return MemoryResult(
        weight_bytes(model), loaded - idle, peak_loading - idle, peak - idle, idle, seconds
    )


def _touch_libraries() -> None:
    """What libraries set up at their first product belongs to the idle process."""
    from ..nn import CompressedLinear

    dense = torch.nn.Linear(256, 256, dtype=torch.bfloat16)
    x = torch.zeros(1, 256, dtype=torch.bfloat16)
    with torch.inference_mode():
        dense(x), CompressedLinear(dense)(x)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


def _forget_peak() -> None:
    """Makes VmHWM begin again at VmRSS."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    print(json.dumps(_job(**json.loads(sys.argv[1])).to_dict()))
