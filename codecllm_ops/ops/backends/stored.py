"""Matrices that are stored word by word (docs/format.md, section 9)."""

from __future__ import annotations

import torch

from ...format.errors import CorruptStreamError


def stored_words(stream: torch.Tensor, rows: int, row_bytes: int) -> torch.Tensor:
    """A view of the coded plane, uint8 [rows, row_bytes]."""
    if stream.numel() != rows * row_bytes:
        raise CorruptStreamError(
            f"stream: {stream.numel()} bytes, not {rows} stored rows of {row_bytes}"
        )
    return stream.view(rows, row_bytes)


def stored_rows(
    ids: torch.Tensor, stream: torch.Tensor, rows: int, row_bytes: int, check: bool
) -> torch.Tensor:
    """Rows `ids` on a GPU, uint8 [n, row_bytes]: those that are not there are all ones, NaN in
    every float format. (Indexing would end the process there.)

    Args:
        check: wait, and raise IndexError instead.
    """
    words = stored_words(stream, rows, row_bytes)
    outside = (ids < 0) | (ids >= rows)
    if (check and bool(outside.any())) or (not rows and ids.numel()):
        raise IndexError(f"codecllm::decode_rows: an index is out of range for {rows} rows")
    return words[ids.clamp(0, max(rows - 1, 0))].masked_fill(outside[:, None], 0xFF)
