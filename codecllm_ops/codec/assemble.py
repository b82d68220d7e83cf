"""From buffers to the four tensors of a coded matrix, checksums included."""

from __future__ import annotations

import ctypes
import zlib
from dataclasses import replace

import numpy as np
import torch

from ..format.head import Head


def bytes_of(t: torch.Tensor) -> memoryview:
    """The bytes of a tensor, on the CPU.

    Not through numpy(): that makes a storage impossible to resize, which FSDP does.
    """
    t = t.detach().cpu().contiguous()
    buffer = (ctypes.c_char * (t.numel() * t.element_size())).from_address(t.data_ptr())
    buffer.owner = t  # the view keeps the buffer, and the buffer the memory
    return memoryview(buffer).cast("B")


def crc32(t: torch.Tensor) -> int:
    """CRC-32 of the bytes of a contiguous tensor, as zlib computes it; of one on a GPU it waits."""
    if not t.numel():
        return 0
    if torch._C._dispatch_has_kernel_for_dispatch_key("codecllm::_crc32", "CPU"):
        return torch.ops.codecllm._crc32(t.detach().cpu().view(torch.uint8))  # 5 times as fast
    return zlib.crc32(bytes_of(t))


def assemble(head: Head, stream, raw, index, device=None) -> tuple[torch.Tensor, ...]:
    """stream, raw, index, head on `device`.

    Args:
        head: without checksums.
        stream, raw, index: tensors, arrays or bytes.
    """
    parts = [_as_tensor(b, torch.uint8) for b in (stream, raw)]
    parts.append(_as_tensor(index, torch.int32))
    sums = zip(("crc_stream", "crc_raw", "crc_index"), map(crc32, parts), strict=True)
    head = replace(head, stream_bytes=parts[0].numel(), **dict(sums))
    packed = torch.frombuffer(bytearray(head.pack()), dtype=torch.uint8)
    return tuple(p.to(device) for p in (*parts, packed))


def _as_tensor(buffer, dtype: torch.dtype) -> torch.Tensor:
    if isinstance(buffer, torch.Tensor):
        return buffer.contiguous()
    if isinstance(buffer, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(buffer))
    return (
        torch.frombuffer(bytearray(buffer), dtype=dtype)
        if len(buffer)
        else torch.empty(0, dtype=dtype)
    )
