"""A coded matrix as the ops take it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch


class Operand(NamedTuple):
    """The coded arguments of an op, in the order of its schema: `op(x, *operand, bias)`.

    What the tensors hold is the business of the matrix's coding (docs/architecture.md).

    Attributes:
        stream: uint8 [*], the coded plane, or the words of a stored matrix.
        raw: uint8 [*], the raw plane (rans) or the list (fixed).
        index: int32 [tiles, values of a record].
        table: int32 [segments, *], what the coding keeps at run time.
        scale: float32 [1] or [rows], or None.
        rows, cols: of the decoded matrix.
        layout: format/layout_word.py.
    """

    stream: torch.Tensor
    raw: torch.Tensor
    index: torch.Tensor
    table: torch.Tensor
    scale: torch.Tensor | None
    rows: int
    cols: int
    layout: int

    @property
    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """The first five: stream, raw, index, table, scale."""
        return self[:5]

    @staticmethod
    def leading(args: Sequence[Any], **last: Any) -> tuple[Operand, Any]:
        """The operand at the head of an op's arguments, and the optional one behind it, which the
        dispatcher leaves out where it has its default.
        """
        n = len(Operand._fields)
        behind = args[n] if len(args) > n else next(iter(last.values()), None)
        return Operand(*args[:n]), behind
