"""What the folder tools share: progress, identity of a shard, index, config, other files."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .checkpoint import INDEX, QUANT_METHOD, REPORT, VERSION, Checkpoint
from .tensor_file import TensorFile, write_text

Progress = Callable[[str, int, int], None]
"""Called with a tensor's name, bytes of the source done so far, bytes in all."""


class Meter:
    """Adds up bytes from several threads and tells `progress`."""

    def __init__(self, source: Checkpoint, progress: Progress | None) -> None:
        self.total = sum(e.nbytes for f in source.files.values() for e in f.entries.values())
        self.done, self.progress = 0, progress
        self._lock = threading.Lock()

    def add(self, name: str, nbytes: int) -> None:
        with self._lock:
            self.done += nbytes
            if self.progress is not None:
                self.progress(name, self.done, self.total)


def identity(file: TensorFile) -> dict[str, Any]:
    """Which file a result was made from."""
    return {"file": file.path.name, "size": file.size, "mtime_ns": file.mtime_ns}


def refuse_nesting(src: Path, dst: Path) -> None:
    """Raises ValueError unless the folders are separate."""
    a, b = src.resolve(), dst.resolve()
    if a == b or a in b.parents or b in a.parents:
        raise ValueError(f"{dst} and {src} must be two folders, none inside the other")


def quantization_config(dense: Sequence[str] = ()) -> dict[str, Any]:
    """What config.json says about a compressed folder. `dense`: modules that stayed dense."""
    return {
        "quant_method": QUANT_METHOD,
        "version": VERSION,
        "modules_to_not_convert": list(dense) or None,
    }


def write_index(folder: Path, weight_map: dict[str, str], total: int) -> None:
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")


def copy_other_files(source: Checkpoint, folder: Path) -> None:
    """Tokenizer, generation config, licence...: everything that is not weights or ours."""
    ours = {*source.files, INDEX, "config.json", REPORT}
    for path in sorted(source.folder.iterdir()):
        if path.name in ours or path.name.startswith("."):
            continue
        if path.is_dir():
            shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
        elif path.suffix not in (".safetensors", ".bin", ".pt", ".pth", ".gguf"):
            shutil.copyfile(path, folder / path.name)
