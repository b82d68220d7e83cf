"""Where a run builds its result: a folder beside the destination that becomes it at the end.

READ ME FIRST
1. `<dst>.partial` is renamed to `<dst>` when everything is written: a destination that exists is
   complete. A kill at any moment leaves the partial folder, and --resume goes on from it.
2. Coded tensors wait in `.spool`, one file each, written under a temporary name and renamed. What
   exists there was written to its end; it says in its own header what it was made from, and its
   checksums are compared before it is used again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from codecllm_ops.codec.coded import CodedMatrix
from codecllm_ops.format import CorruptStreamError, UnsupportedFormatError

from ..nn import STREAM_NAMES
from .tensor_file import Item, TensorFile, tensor_item, write_tensors, write_text


class Workspace:
    """`<dst>.partial`, locked for this run."""

    def __init__(self, dst: Path, *, force: bool = False, resume: bool = False) -> None:
        """Creates or reopens the folder.

        Raises:
            FileExistsError: `dst` or an unfinished run is there and nobody said what to do.
            BlockingIOError: another process is at work on it.
        """
        self.dst = dst
        self.force = force
        self.folder = dst.with_name(dst.name + ".partial")
        self.spool = self.folder / ".spool"
        if dst.exists() and not force:
            raise FileExistsError(f"{dst} exists; choose another name, or --force to replace it")
        if self.folder.exists() and not (resume or force):
            raise FileExistsError(
                f"{self.folder} is an unfinished run; --resume goes on, --force starts again"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.folder / ".lock", "w")  # noqa: SIM115 (held until close)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise BlockingIOError(f"another process is writing {self.folder}") from error
        if not resume:
            self._clear()
        self.spool.mkdir(exist_ok=True)

    def _clear(self) -> None:
        for path in self.folder.iterdir():
            if path.name == ".lock":
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def close(self) -> None:
        self._lock.close()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def discard(self) -> None:
        """Removes the folder and everything in it."""
        shutil.rmtree(self.folder)

    def publish(self) -> None:
        """Turns the folder into the destination."""
        shutil.rmtree(self.spool)
        (self.folder / ".lock").unlink(missing_ok=True)
        old = None
        if self.dst.exists():
            # A rename cannot replace a folder with content: move it away, then delete it.
            old = self.dst.with_name(f".{self.dst.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            os.rename(self.dst, old)
        os.rename(self.folder, self.dst)
        if old is not None:
            shutil.rmtree(old)
        _sync_folder(self.dst.parent)

    def spooled(self, name: str) -> Path:
        # Names may be longer than a file name can be, or hold a slash.
        return self.spool / (hashlib.sha256(name.encode()).hexdigest()[:32] + ".safetensors")

    def put(self, name: str, coded: CodedMatrix, origin: Mapping[str, Any]) -> None:
        """Keeps a coded matrix on disk. `origin` is what it was made from and how."""
        items = [tensor_item(n, t) for n, t in zip(STREAM_NAMES, coded.tensors(), strict=True)]
        write_tensors(self.spooled(name), items, {"origin": _canonical(name, origin)}, sync=False)

    def kept_format(self, name: str, origin: Mapping[str, Any]) -> str:
        """Weight format of a matrix that an earlier run left, made from the same source in the
        same way; "" if there is none."""
        path = self.spooled(name)
        try:
            with TensorFile(path) as f:
                if f.metadata.get("origin") != _canonical(name, origin):
                    return ""
                return CodedMatrix(*(f.read(n) for n in STREAM_NAMES)).check().info.fmt.name
        except FileNotFoundError:
            return ""
        except (CorruptStreamError, UnsupportedFormatError, KeyError):
            path.unlink()  # power failed while it was written: nothing is lost but time
            return ""

    def items(self, name: str) -> list[Item]:
        """The four streams of a kept matrix, to be written under `<module>.weight...`."""
        path = self.spooled(name)
        with TensorFile(path) as f:
            entries = dict(f.entries)
        prefix = name.removesuffix("weight")

        def chunks(part: str) -> Iterator[Any]:
            with TensorFile(path) as f:
                yield from f.chunks(part)

        return [
            Item(
                prefix + part,
                entries[part].torch_dtype,
                entries[part].shape,
                lambda part=part: chunks(part),
            )
            for part in STREAM_NAMES
        ]

    def drop(self, name: str) -> None:
        self.spooled(name).unlink(missing_ok=True)

    def _record(self, shard: str) -> Path:
        return self.spool / f"{shard}.done.json"

    def finish_shard(self, shard: str, origin: Mapping[str, Any], result: Any) -> None:
        """Notes that a shard is written; `result` comes back from finished_shard()."""
        write_text(self._record(shard), json.dumps([_canonical(shard, origin), result]))

    def finished_shard(self, shard: str, origin: Mapping[str, Any]) -> Any | None:
        try:
            found, result = json.loads(self._record(shard).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        written = (self.folder / shard).is_file()
        return result if written and found == _canonical(shard, origin) else None


def _canonical(name: str, origin: Mapping[str, Any]) -> str:
    return json.dumps([name, dict(origin)], sort_keys=True)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
