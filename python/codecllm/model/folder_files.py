"""What the folder tools share: progress, index, config, other files."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from .checkpoint import INDEX, REPORT, Checkpoint
from .tensor_file import naming_file, write_text

# Weights in any format but the one that is read, their indices, and their parts.
_WEIGHTS = re.compile(
    r"\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|onnx|onnx_data|gguf|ggml|tflite|ot|pdparams|mlmodel)"
    r"(\.index\.json|_\d+)?$",
    re.IGNORECASE,
)
_WEIGHT_FOLDERS = {"onnx", "openvino", "coreml"}

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


def write_index(folder: Path, weight_map: dict[str, str], total: int, source: Checkpoint) -> None:
    """Writes the index of a folder made from `source`; its other notes (total_parameters) stay."""
    notes = {**source.index_metadata, "total_size": total}
    index = {"metadata": notes, "weight_map": dict(sorted(weight_map.items()))}
    write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")


def other_files(source: Checkpoint) -> tuple[dict[str, Path], dict[str, int]]:
    """Tokenizer, generation config, licence...: everything that is not weights or ours.

    Weights of other kinds than those that are read (`original/*.pth`, `onnx/`, `*.h5`) would be
    dense copies in the result, and are left out. Folders that a modules.json lists
    (sentence-transformers) are parts of the model, and are kept whole.

    Returns:
        Files to copy by their path inside the folder, and bytes of those left out.

    Raises:
        ValueError, FileNotFoundError: links in a circle, a link to nothing, or a pipe. Callers
            look before they work, since these would stop the copying hours later.
    """
    ours = {*source.files, INDEX, "config.json", REPORT}
    parts = _module_folders(source.folder)
    kept: dict[str, Path] = {}
    left_out: dict[str, int] = {}
    root = os.path.realpath(source.folder)
    for top in sorted(source.folder.iterdir()):
        if top.name in ours or top.name.startswith("."):
            continue
        for path in _files(top, (root,)):
            name = path.relative_to(source.folder)
            if name.parts[0] not in parts and _is_foreign_weights(name):
                left_out[str(name)] = path.stat().st_size
            else:
                kept[str(name)] = path
    return kept, left_out


def _is_foreign_weights(name: Path) -> bool:
    return _WEIGHTS.search(name.name) is not None or any(
        part.lower() in _WEIGHT_FOLDERS for part in name.parts[:-1]
    )


def _module_folders(folder: Path) -> set[str]:
    """Folders inside that hold modules of a sentence-transformers model."""
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        return {str(m["path"]).split("/")[0] for m in modules if m.get("path")}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return set()


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
