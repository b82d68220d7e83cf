"""Memory that was used and is not needed any more: pages of mapped files, and what was freed.

Mapped pages that were read count as memory of the process until somebody else wants them. Loaders
map whole shards, so that freeing one tensor of them frees nothing.
"""

from __future__ import annotations

import bisect
import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import torch

_DONTNEED = 4  # MADV_DONTNEED of Linux: pages of a file come back from the file when touched again


class MappedFiles:
    """The parts of this process's memory that are images of files, as they were when made."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        try:
            lines = Path("/proc/self/maps").read_text().splitlines()
        except OSError:  # not Linux: nothing is known, nothing is given back
            return
        for line in lines:
            where, _, _, _, inode, *path = line.split(maxsplit=5)
            # Libraries are mapped, too; no tensor lies in one.
            if inode != "0" and path and path[0].startswith("/"):
                start, _, end = where.partition("-")
                self._starts.append(int(start, 16))
                self._ends.append(int(end, 16))

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether all bytes of a tensor are those of a file."""
        if tensor.device.type != "cpu" or not tensor.numel():
            return False
        begin, end = _range(tensor)
        at = bisect.bisect_right(self._starts, begin) - 1
        return at >= 0 and end <= self._ends[at]

    def give_back(self, tensors: Iterable[torch.Tensor]) -> None:
        """Takes the pages of mapped tensors out of this process's memory.

        They stay in the cache of the system, and are there again when someone reads them; what was
        written to them since is lost. Tensors that are not mapped are left alone.
        """
        for tensor in tensors:
            if not self.holds(tensor):
                continue
            begin, end = _range(tensor)
            begin = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE  # the pages that are its alone
            end = end // mmap.PAGESIZE * mmap.PAGESIZE
            if begin < end:
                _libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _DONTNEED)


def trim() -> None:
    """Gives freed memory back to the system, where the C library keeps it (glibc does)."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


def _range(tensor: torch.Tensor) -> tuple[int, int]:
    begin = tensor.data_ptr()
    return begin, begin + tensor.numel() * tensor.element_size()


_libc = ctypes.CDLL(None) if os.name == "posix" else None
