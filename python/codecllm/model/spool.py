"""Coded tensors that wait on disk until their shard is assembled: one file each.

What exists was written to its end, because it got its name by a rename. It is not synced, so that
after a power failure it may be damaged all the same: its checksums are compared before it is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from codecllm_ops.codec.coded import CodedMatrix
from codecllm_ops.format import CorruptStreamError, UnsupportedFormatError

from ..nn import STREAM_NAMES
from .tensor_file import Item, TensorFile, tensor_item, write_tensors


class Spool:
    """The files of one job. `origin` identifies the job: files of another one are not used."""

    def __init__(self, folder: Path, origin: str) -> None:
        self.folder, self.origin = folder, origin

    def path(self, name: str) -> Path:
        # Names may be longer than a file name can be, or hold a slash.
        return self.folder / (hashlib.sha256(name.encode()).hexdigest()[:32] + ".safetensors")

    def put(self, name: str, coded: CodedMatrix) -> None:
        items = [tensor_item(n, t) for n, t in zip(STREAM_NAMES, coded.tensors(), strict=True)]
        metadata = {"origin": self.origin, "tensor": name}
        write_tensors(self.path(name), items, metadata, sync=False)

    def kept(self, name: str) -> CodedMatrix | None:
        """A matrix that an earlier run left."""
        path = self.path(name)
        try:
            with TensorFile(path) as f:
                if f.metadata != {"origin": self.origin, "tensor": name}:
                    return None
                return CodedMatrix(*(f.read(n) for n in STREAM_NAMES)).check()
        except FileNotFoundError:
            return None
        except (CorruptStreamError, UnsupportedFormatError, KeyError):
            path.unlink()  # power failed while it was written: nothing is lost but time
            return None

    def items(self, name: str) -> list[Item]:
        """The four streams of a kept matrix, to be written under `<module>.weight...`."""
        path = self.path(name)
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
        self.path(name).unlink(missing_ok=True)
