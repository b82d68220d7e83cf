"""What the folder tools share: progress, index, config, other files."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .checkpoint import INDEX, QUANT_METHOD, REPORT, VERSION, Checkpoint
from .tensor_file import naming_file, write_text

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


def refuse_nesting(src: Path, dst: Path) -> None:
    """Raises ValueError unless the folders are separate."""
    # Not Path.resolve(): it raises RuntimeError for links in a circle.
    a, b = Path(os.path.realpath(src)), Path(os.path.realpath(dst))
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


def other_files(source: Checkpoint) -> dict[str, Path]:
    """Tokenizer, generation config, licence...: everything that is not weights or ours.

    Returns:
        Files by their path inside the folder.

    Raises:
        ValueError, FileNotFoundError: links in a circle, a link to nothing, or a pipe. Callers
            look before they work, since these would stop the copying hours later.
    """
    ours = {*source.files, INDEX, "config.json", REPORT}
    weights = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
    found, root = {}, os.path.realpath(source.folder)
    for path in sorted(source.folder.iterdir()):
        if path.name in ours or path.name.startswith("."):
            continue
        if path.is_dir() or path.suffix not in weights:
            found.update({str(p.relative_to(source.folder)): p for p in _files(path, (root,))})
    return found


def _files(path: Path, above: tuple[str, ...]) -> Iterator[Path]:
    """The file `path`, or all files in the folder `path`; links are followed."""
    if not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(f"{path} is a link that leads nowhere; remove or mend it")
        if not path.is_file():
            raise ValueError(f"{path} is a pipe, socket or device; remove it")
        yield path
        return
    real = os.path.realpath(path)
    if real in above:
        raise ValueError(f"{path} is a link to a folder that it lies in; remove it")
    for child in sorted(path.iterdir()):
        yield from _files(child, (*above, real))


def copy_files(files: dict[str, Path], folder: Path) -> None:
    for name, path in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with naming_file(target):
            shutil.copyfile(path, target)
