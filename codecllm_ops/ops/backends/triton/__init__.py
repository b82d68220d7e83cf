"""Triton backend: the functions of backends/reference.py, and decode_linear, on any GPU that Triton
compiles for. Importing this needs Triton; the registry looks before."""

from __future__ import annotations

import torch

from ....format.errors import CorruptStreamError
from ..layout import Layout
from ..stored import stored_rows, stored_words
from . import launch
from .arguments import BAD_ID, NO_TILE, Coded
from .matrix import Matrix, check_table

MAX_FUSED_ROWS = 64  # rows of x; above, decoding once and a GEMM

_checking = False


def set_check(on: bool) -> bool:
    """Whether corrupt streams raise; returns what was before."""
    global _checking
    before, _checking = _checking, on
    return before


def decode_words(stream, raw, index, table, rows: int, cols: int, layout_bits: int):
    """Decodes to uint8 [rows, cols * word bytes]."""
    layout = Layout.unpack(layout_bits)
    if layout.stored:
        return stored_words(stream, rows, cols * layout.fmt.word_bytes).clone()
    m = _matrix("decode", stream, raw, index, table, rows, cols, layout)
    out = stream.new_empty((rows, cols * layout.fmt.word_bytes))
    if out.numel():
        status = _status(stream)
        launch.decode_matrix(m, out, status)
        _check("decode", status)
    return out


def decode_rows_words(ids, stream, raw, index, table, rows: int, cols: int, layout_bits: int):
    """Decodes rows `ids` (int64 [n]) to uint8 [n, cols * word bytes]; rows that are not there
    become NaN."""
    layout = Layout.unpack(layout_bits)
    if layout.stored:
        return stored_rows(ids, stream, rows, cols * layout.fmt.word_bytes, _checking)
    m = _matrix("decode_rows", stream, raw, index, table, rows, cols, layout)
    out = stream.new_empty((ids.numel(), cols * layout.fmt.word_bytes))
    if out.numel():
        if not rows:
            raise IndexError("codecllm::decode_rows: an index is out of range for 0 rows")
        status = _status(stream)
        launch.decode_rows(ids, m, out, status)
        _check("decode_rows", status)
    return out


def decode_linear(
    x, stream, raw, index, table, scale, bias, rows: int, cols: int, layout_bits: int
):
    """x [..., cols] times the matrix, or None where no fused kernel runs."""
    layout = Layout.unpack(layout_bits)
    m = x.numel() // cols if cols else 0
    if layout.stored or not cols or m > MAX_FUSED_ROWS:
        return None
    matrix = _matrix("decode_linear", stream, raw, index, table, rows, cols, layout)
    if not m or not rows:
        return x.new_empty((*x.shape[:-1], rows))
    status = _status(stream)
    bias = None if bias is None else bias.contiguous()
    scale = None if scale is None else scale.contiguous()
    y = launch.linear(x.reshape(m, cols), matrix, scale, bias, status)
    _check("decode_linear", status)
    return y.view(*x.shape[:-1], rows)


def _matrix(op: str, stream, raw, index, table, rows: int, cols: int, layout: Layout) -> Matrix:
    ints = 2 + layout.len_bits
    if index.numel() % ints:
        raise CorruptStreamError(f"codecllm::{op}: corrupt index: {index.numel()} values")
    m = Matrix.of(op, Coded(stream, raw, index.view(-1, ints), table), layout, rows, cols)
    if _checking and cols:
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
