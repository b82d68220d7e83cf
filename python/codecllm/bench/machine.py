"""What a figure was measured on. No host, no user, no path: reports are shown to others."""

from __future__ import annotations

import datetime
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import codecllm
import codecllm_ops

from ..nn import coding

_PACKAGE = Path(codecllm.__file__).parent


def machine() -> dict[str, Any]:
    """Processor, threads, kernels, versions and the date."""
    info = codecllm_ops.backend_info()
    return {
        "device": _processor(),
        "threads": torch.get_num_threads(),
        "backend": info["cpu"],
        "isa": info.get("cpu_isa", "none"),
        "torch": torch.__version__,
        "codecllm": codecllm.__version__,
        **_commit(),
        "date": datetime.date.today().isoformat(),
    }


def cache_bytes() -> int:
    """Of the largest cache that a core sees; 32 MiB where the system does not say."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        if found := re.fullmatch(r"(\d+)([KMG]?)\s*", file.read_text()):
            sizes.append(int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2]])
    return max(sizes, default=32 << 20)


def free_bytes() -> int:
    """Memory that programs may still take; 0 where the system does not say."""
    return coding.free_bytes(torch.device("cpu")) or 0


def _processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _commit() -> dict[str, Any]:
    """Where the package runs from a clone of its own; elsewhere its version is all there is."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(_PACKAGE), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # Installed into an environment inside somebody else's repository is not a clone.
        git("ls-files", "--error-unmatch", str(_PACKAGE / "__init__.py"))
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/")
        return {"commit": git("rev-parse", "--short=12", "HEAD"), "modified": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "modified": None}
