"""The ops on any GPU that Triton compiles for. Importing this needs Triton."""

from __future__ import annotations

import torch

from ....codec.operand import Operand
from ....format.errors import CorruptStreamError
from ..stored import is_stored, stored_rows, stored_words
from . import launch
from .arguments import BAD_ID, NO_TILE
from .matrix import Matrix, check_table

MAX_FUSED_ROWS = 64  # rows of x; above, decoding once and a GEMM

_checking = False


def set_check(on: bool) -> bool:
    """Whether corrupt streams raise; returns what was before."""
    global _checking
    before, _checking = _checking, on
    return before


def decode_into(coded: Operand, out: torch.Tensor) -> None:
    """Fills `out`, uint8 [rows, cols * word bytes], contiguous."""
    if is_stored(coded):
        out.copy_(stored_words(coded))
        return
    m = _matrix("decode", coded)
    if out.numel():
        status = _status(out)
        launch.decode_matrix(m, out, status)
        _check("decode", status)


def decode_rows_words(ids: torch.Tensor, coded: Operand) -> torch.Tensor:
    """Decodes rows `ids` (int64 [n]) to uint8 [n, cols * word bytes]; rows that are not there
    become NaN."""
    if is_stored(coded):
        return stored_rows(ids, coded, _checking)
    m = _matrix("decode_rows", coded)
    out = ids.new_empty((ids.numel(), coded.cols * m.plan.fmt.word_bytes), dtype=torch.uint8)
    if out.numel():
        if not coded.rows:
            raise IndexError("codecllm::decode_rows: an index is out of range for 0 rows")
        status = _status(out)
        launch.decode_rows(ids, m, out, status)
        _check("decode_rows", status)
    return out


def decode_linear(
    x: torch.Tensor, coded: Operand, bias: torch.Tensor | None
) -> torch.Tensor | None:
    """x [..., cols] times the matrix, or None where no fused kernel runs."""
    rows, cols = coded.rows, coded.cols
    m = x.numel() // cols if cols else 0
    if not cols or m > MAX_FUSED_ROWS or is_stored(coded):
        return None
    matrix = _matrix("decode_linear", coded)
    if not m or not rows:
        return x.new_empty((*x.shape[:-1], rows))
    status = _status(x)
    bias = None if bias is None else bias.contiguous()
    scale = None if coded.scale is None else coded.scale.contiguous()
    y = launch.linear(x.reshape(m, cols), matrix, scale, bias, status)
    _check("decode_linear", status)
    return y.view(*x.shape[:-1], rows)


def _matrix(op: str, coded: Operand) -> Matrix:
    m = Matrix.of(op, coded)
    if _checking and coded.cols:
        check_table(op, m)
    return m


def _status(like: torch.Tensor) -> torch.Tensor | None:
    return like.new_full((1,), NO_TILE.value, dtype=torch.int64) if _checking else None


def _check(op: str, status: torch.Tensor | None) -> None:
    if status is None:
        return
    tile = int(status)
    if tile == BAD_ID.value:
        raise IndexError(f"codecllm::{op}: an index is out of range")
    if tile != NO_TILE.value:
        raise CorruptStreamError(
            f"codecllm::{op}: corrupt coded plane or index: tile {tile} does not end in the "
            "encoder's first state"
        )
