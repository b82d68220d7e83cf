"""The ops as modules call them: overloads, which Python calls faster than the ops' names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import codecllm_ops  # noqa: F401  (registers the ops)
from codecllm_ops.format import CorruptStreamError
from codecllm_ops.ops import registry

Coded = Sequence[Any]
"""An Operand, or a plain tuple in its order, which is made in a third of the time."""

_decode = torch.ops.codecllm.decode.default
_decode_linear = torch.ops.codecllm.decode_linear.default
_decode_rows = torch.ops.codecllm.decode_rows.default


def decode(operand: Coded, dtype: torch.dtype | None = None) -> torch.Tensor:
    """[rows, cols] of `dtype`; None: the coded bits."""
    return _decode(*operand, dtype)


def decode_linear(x: torch.Tensor, operand: Coded, bias: torch.Tensor | None) -> torch.Tensor:
    """x [..., cols], bias [rows] of x's dtype -> [..., rows]."""
    return _decode_linear(x, *operand, bias)


def decode_rows(ids: torch.Tensor, operand: Coded, dtype: torch.dtype) -> torch.Tensor:
    """ids [...] -> [..., cols] of `dtype`."""
    return _decode_rows(ids, *operand, dtype)


def own_error(error: RuntimeError) -> Exception:
    """`error`, or of its own type: compiled kernels can only raise RuntimeError."""
    message = str(error)
    if ": corrupt " in message:
        return CorruptStreamError(message)
    if "is out of range" in message:
        return IndexError(message)
    return error


def checking() -> bool:
    """Whether set_check() is on: ops wait for the GPU, and so may others."""
    return registry._state.checking
