"""The functions of the backend, called as the ops call them."""

from __future__ import annotations

import torch

from codecllm_ops.codec.operand import Operand
from codecllm_ops.format.layout_word import Layout
from codecllm_ops.ops.backends.triton import ops as backend


def decode(coded: Operand) -> torch.Tensor:
    """Words, uint8 [rows, cols * word bytes]."""
    row_bytes = coded.cols * Layout.unpack(coded.layout).fmt.word_bytes
    out = torch.empty((coded.rows, row_bytes), dtype=torch.uint8)
    backend.decode_into(coded, out)
    return out


def every_op(coded: Operand, x: torch.Tensor, ids: list[int]) -> None:
    """Whatever they return."""
    decode(coded)
    backend.decode_rows_words(torch.tensor(ids), coded)
    backend.decode_linear(x, coded, None)
