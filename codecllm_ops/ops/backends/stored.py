"""Matrices that are stored word by word (docs/format.md, section 9)."""

from __future__ import annotations

import torch

from ...codec.operand import Operand
from ...format.errors import CorruptStreamError
from ...format.layout_word import Layout


def is_stored(coded: Operand) -> bool:
    """Whether there is nothing to decode."""
    return Layout.unpack(coded.layout).stored


def stored_words(coded: Operand) -> torch.Tensor:
    """A view of the coded plane, uint8 [rows, cols * word bytes]."""
    row_bytes = coded.cols * Layout.unpack(coded.layout).fmt.word_bytes
    if coded.stream.numel() != coded.rows * row_bytes:
        raise CorruptStreamError(
            f"corrupt stream: {coded.stream.numel()} bytes, "
            f"not {coded.rows} stored rows of {row_bytes}"
        )
    return coded.stream.view(coded.rows, row_bytes)


def stored_rows(ids: torch.Tensor, coded: Operand, check: bool) -> torch.Tensor:
    """Rows `ids` on a GPU, uint8 [n, row_bytes]: those that are not there are all ones, NaN in
    every float format. (Indexing would end the process there.)

    Args:
        check: wait, and raise IndexError instead.
    """
    words, rows = stored_words(coded), coded.rows
    outside = (ids < 0) | (ids >= rows)
    if (check and bool(outside.any())) or (not rows and ids.numel()):
        raise IndexError(f"codecllm::decode_rows: an index is out of range for {rows} rows")
    return words[ids.clamp(0, max(rows - 1, 0))].masked_fill(outside[:, None], 0xFF)
