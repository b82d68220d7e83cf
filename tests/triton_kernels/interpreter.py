"""Triton's interpreter: what it does wrong is put right, and accesses are checked against the
tensors of the call."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter


def round_to_bfloat16() -> None:
    """Casts from float32 to bfloat16 to nearest even, as GPUs do; the interpreter truncates."""
    truncate = interpreter._convert_float

    def convert(data, source, target, rounding_mode):
        if (source, target) != (tl.float32, tl.bfloat16):
            return truncate(data, source, target, rounding_mode)
        bits = np.ascontiguousarray(data).view(np.uint32)
        rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
        nan = (bits & 0x7FFFFFFF) > 0x7F800000
        return np.where(nan, (bits >> 16 | 0x40).astype(np.uint16), rounded).reshape(data.shape)

    interpreter._convert_float = convert


class _Checked:
    """The interpreter's memory accesses, each asserted to lie within `ranges`."""

    def __init__(self, inner, ranges: list[tuple[int, int]]):
        self._inner, self.ranges = inner, ranges

    def __getattr__(self, name: str):
        return getattr(self._inner, name)

    def _inside(self, addresses: np.ndarray, mask: np.ndarray, size: int) -> None:
        wanted = addresses[mask.astype(bool)].astype(np.int64)
        good = np.zeros(wanted.shape, bool)
        for begin, end in self.ranges:
            good |= (wanted >= begin) & (wanted + size <= end)
        assert good.all(), f"{(~good).sum()} of {good.size} accesses outside of all tensors"

    def load(self, addresses, mask, other, dtype):
        self._inside(addresses, mask, np.dtype(dtype).itemsize)
        return self._inner.load(addresses, mask, other, dtype)

    def store(self, addresses, values, mask):
        self._inside(addresses, mask, values.dtype.itemsize)
        return self._inner.store(addresses, values, mask)

    def atomic_rmw(self, operation, addresses, values, mask, order):
        self._inside(addresses, mask, values.dtype.itemsize)
        return self._inner.atomic_rmw(operation, addresses, values, mask, order)


def _tensors_of(arguments: tuple) -> list[torch.Tensor]:
    found = []
    for a in arguments:
        if isinstance(a, tuple):
            found += _tensors_of(a)
        elif isinstance(a, torch.Tensor):
            found.append(a)
    return found


@contextmanager
def accesses_checked():
    """Lets kernels touch the tensors of their call only."""
    checked = _Checked(interpreter._interpreter, [])
    run = interpreter.GridExecutor.__call__

    def call(self, *args, **kwargs):
        tensors = _tensors_of((*args, *kwargs.values()))
        ranges = [(t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for t in tensors]
        checked.ranges = ranges
        return run(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_interpreter", checked)
        patch.setattr(interpreter.GridExecutor, "__call__", call)
        yield
