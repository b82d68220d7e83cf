"""Safetensors files without a dense copy of anything: read by ranges, write as a stream.

The safetensors package maps files; mapped pages count as resident, and a file cut short under the
map kills the process. Here every read is a pread into memory that the caller owns, and every
number in a header is checked against the size of the file.

Layout: 8 bytes length, JSON header (padded with spaces), data without gaps. First come the tensors
whose size is a multiple of 64 bytes (planes, and weights of most models), so that all of them begin
at one and a map of the file has them where kernels load best; then the others as the package sorts,
larger dtypes first, so that all are aligned to their element size.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from codecllm_ops.format import CorruptStreamError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER = 100_000_000
CHUNK = 8 << 20
ALIGN = 64  # bytes of a cache line, and of the widest register of a CPU


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """The system names the file when one cannot be opened, but not when a read or write fails."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@dataclass(frozen=True)
class Entry:
    """One tensor of a file. `begin` counts from the start of the file, in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int

    @property
    def torch_dtype(self) -> torch.dtype:
        if self.dtype not in DTYPES:
            raise ValueError(f"{self.name}: dtype {self.dtype} is unknown")
        return DTYPES[self.dtype]

    @property
    def numel(self) -> int:
        return _numel(self.shape)


class TensorFile:
    """An open safetensors file. Reads are positioned, so that threads may share it."""

    _fd = -1

    def __init__(self, path: Path | str) -> None:
        """Reads the header only.

        Raises:
            CorruptStreamError: not a safetensors file, or cut short; names file and tensor.
            OSError: the file cannot be opened.
        """
        self.path = Path(path)
        self._fd = os.open(self.path, os.O_RDONLY)
        try:
            stat = os.fstat(self._fd)
            self.size, self.mtime_ns = stat.st_size, stat.st_mtime_ns
            self.metadata, self.entries = self._read_header()
        except BaseException:
            self.close()
            raise

    @property
    def notes(self) -> dict[str, str]:
        """What the metadata says but for the version of ours: it belongs to the original."""
        texts = {k: v for k, v in self.metadata.items() if isinstance(v, str)}
        texts.pop("codecllm_version", None)
        return texts

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _read_header(self) -> tuple[dict[str, str], dict[str, Entry]]:
        def need(condition: bool, message: str) -> None:
            if not condition:
                raise CorruptStreamError(f"{self.path}: {message}")

        need(self.size >= 8, f"{self.size} bytes are no safetensors file")
        length = int.from_bytes(os.pread(self._fd, 8, 0), "little")
        need(length <= MAX_HEADER, f"a header of {length} bytes; the limit is {MAX_HEADER}")
        need(8 + length <= self.size, f"a header of {length} bytes in a file of {self.size}")
        try:
            header = json.loads(os.pread(self._fd, length, 8))
        except (ValueError, RecursionError) as error:
            raise CorruptStreamError(f"{self.path}: the header is not JSON: {error}") from error
        need(isinstance(header, dict), "the header is not a JSON object")
        metadata = header.pop("__metadata__", None) or {}
        need(isinstance(metadata, dict), "__metadata__ is not a JSON object")
        entries, data = {}, 8 + length
        for name, e in header.items():
            try:
                dtype, shape = str(e["dtype"]), tuple(int(n) for n in e["shape"])
                begin, end = (int(n) for n in e["data_offsets"])
            except (TypeError, KeyError, ValueError, OverflowError) as error:
                raise CorruptStreamError(f"{self.path}: {name}: malformed header entry") from error
            need(0 <= begin <= end, f"{name}: data_offsets {begin}..{end}")
            need(
                data + end <= self.size,
                f"{name}: ends at byte {data + end} of {self.size}; the file is cut short",
            )
            need(min(shape, default=0) >= 0, f"{name}: shape {list(shape)}")
            if dtype in DTYPES:
                expected = _numel(shape) * DTYPES[dtype].itemsize
                need(end - begin == expected, f"{name}: {end - begin} bytes, shape has {expected}")
            entries[name] = Entry(name, dtype, shape, data + begin, end - begin)
        return metadata, entries

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """A tensor in memory of its own.

        Args:
            rows: a range of dimension 0 (step 1); only its bytes are read.
        """
        entry = self.entries[name]
        shape, begin, nbytes = entry.shape, entry.begin, entry.nbytes
        if rows is not None:
            start, stop, _ = rows.indices(shape[0])
            row_bytes = nbytes // max(1, shape[0])
            begin, nbytes = begin + start * row_bytes, (stop - start) * row_bytes
            shape = (stop - start, *shape[1:])
        # The device is named for calls inside `with torch.device("meta")`.
        out = torch.empty(nbytes, dtype=torch.uint8, device="cpu")
        self._read_into(memoryview(out.numpy()), begin, name)
        return out.view(entry.torch_dtype).reshape(shape)

    def chunks(self, name: str) -> Iterator[bytearray]:
        """The bytes of a tensor, in pieces."""
        entry = self.entries[name]
        buffer = bytearray(min(CHUNK, entry.nbytes))
        for at in range(0, entry.nbytes, CHUNK):
            view = memoryview(buffer)[: min(CHUNK, entry.nbytes - at)]
            self._read_into(view, entry.begin + at, name)
            yield view

    def item(self, name: str) -> Item:
        """The tensor as it is, to be written to another file; read only then."""
        entry = self.entries[name]
        return Item(name, entry.torch_dtype, entry.shape, lambda: self.chunks(name))

    def _read_into(self, view: memoryview, begin: int, name: str) -> None:
        at = 0
        while at < len(view):
            with naming_file(self.path):
                n = os.preadv(self._fd, [view[at:]], begin + at)
            if n == 0:
                raise CorruptStreamError(f"{self.path}: {name}: the file became shorter")
            at += n


def _numel(shape: Iterable[int]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n


@dataclass(frozen=True)
class Item:
    """A tensor to write: its description, and its bytes when they are asked for."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[Any]]

    @property
    def nbytes(self) -> int:
        return _numel(self.shape) * self.dtype.itemsize


def tensor_item(name: str, tensor: torch.Tensor) -> Item:
    """An Item of a tensor in memory; it is copied to the CPU only while it is written."""

    def chunks() -> Iterator[memoryview]:
        t = tensor.detach().cpu().contiguous()
        if t.numel():
            yield memoryview(t.reshape(-1).view(torch.uint8).numpy())

    return Item(name, tensor.dtype, tuple(tensor.shape), chunks)


def write_tensors(
    path: Path, items: Iterable[Item], metadata: Mapping[str, str], *, sync: bool = True
) -> int:
    """Writes a safetensors file: temporary file beside it, fsync, rename.

    Args:
        sync: False for files that a crash of the machine may cost.

    Returns:
        Bytes of the file.

    Raises:
        OSError: no space, no permission; nothing is left at `path`.
    """
    ordered = sorted(items, key=lambda i: (i.nbytes % ALIGN > 0, -i.dtype.itemsize, i.name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for item in ordered:
        header[item.name] = {
            "dtype": NAMES[item.dtype],
            "shape": list(item.shape),
            "data_offsets": [at, at + item.nbytes],
        }
        at += item.nbytes
    packed = json.dumps(header, separators=(",", ":")).encode()
    packed += b" " * (-(8 + len(packed)) % ALIGN)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with naming_file(path), open(temporary, "wb") as f:
            f.write(len(packed).to_bytes(8, "little") + packed)
            for item in ordered:
                start = f.tell()
                for chunk in item.chunks():
                    f.write(chunk)
                written = f.tell() - start
                if written != item.nbytes:
                    raise RuntimeError(f"{item.name}: wrote {written} of {item.nbytes} bytes")
            size = f.tell()
            f.flush()
            if sync:
                os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return size


def write_text(path: Path, text: str) -> None:
    """Replaces a small file in one step."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with naming_file(path), open(temporary, "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
