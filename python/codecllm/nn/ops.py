"""The ops as modules call them: an operand instead of its parts."""

from __future__ import annotations

from typing import NamedTuple

import torch

from codecllm_ops.format.errors import CorruptStreamError

_decode_linear = torch.ops.codecllm.decode_linear.default
_decode_rows = torch.ops.codecllm.decode_rows.default
_decode = torch.ops.codecllm.decode.default


class Operand(NamedTuple):
    stream: torch.Tensor
    raw: torch.Tensor
    index: torch.Tensor
    table: torch.Tensor
    scale: torch.Tensor | None
    rows: int
    cols: int
    layout: int


def decode_linear(x: torch.Tensor, operand: Operand, bias: torch.Tensor | None) -> torch.Tensor:
    a, b, c, d, e, rows, cols, layout = operand
    return _decode_linear(x, a, b, c.reshape(-1), d, e, bias, rows, cols, layout)


def decode_rows(ids: torch.Tensor, operand: Operand, dtype: torch.dtype) -> torch.Tensor:
    a, b, c, *rest = operand
    return _decode_rows(ids, a, b, c.reshape(-1), *rest, dtype)


def decode(operand: Operand, dtype: torch.dtype | None) -> torch.Tensor:
    a, b, c, *rest = operand
    return _decode(a, b, c.reshape(-1), *rest, dtype)


def own_error(error: RuntimeError) -> Exception:
    message = str(error)
    if ": corrupt " in message:
        return CorruptStreamError(message)
    if "is out of range" in message:
        return IndexError(message)
    return error
