"""Scales: none, one for the tensor, or one per row (docs/format.md, section 8). float32.

All that distinguishes the kinds is here: parsing, packing, slicing, concatenation, application.
"""

from __future__ import annotations

import numpy as np
import torch

from .errors import CorruptStreamError, UnsupportedFormatError
from .weight_formats import WeightFormat

NO_SCALE, TENSOR_SCALE, ROW_SCALE = SCALE_KINDS = range(3)
_AT_ONCE = 1 << 24  # weights scaled at once: float32 in between is up to four times the words


def expected_scales(kind: int, rows: int) -> int:
    """How many a matrix of that kind has."""
    return {NO_SCALE: 0, TENSOR_SCALE: 1, ROW_SCALE: rows}[kind]


def kind_of(scale: torch.Tensor | None) -> int:
    """What an encoder is given tells its kind by its size."""
    if scale is None:
        return NO_SCALE
    return TENSOR_SCALE if scale.numel() == 1 else ROW_SCALE


def check(fmt: WeightFormat, scale: torch.Tensor | None, rows: int) -> None:
    """What an encoder takes. Raises UnsupportedFormatError, ValueError."""
    if scale is None:
        return
    if not fmt.scaled:
        raise UnsupportedFormatError(f"encode: {fmt.name} takes no scale, only integers do")
    if scale.dtype != torch.float32 or scale.dim() != 1 or scale.numel() not in (1, rows):
        raise ValueError(
            f"encode: scale is {scale.dtype} {list(scale.shape)}, not float32 [1] or [{rows}]"
        )
    if not torch.isfinite(scale).all():
        raise ValueError("encode: scale has NaN or infinite values")


def pack(scale: np.ndarray | None) -> bytes:
    """The inverse of parse()."""
    return b"" if scale is None else np.ascontiguousarray(scale, dtype="<f4").tobytes()


def parse(data: bytes, kind: int, fmt: WeightFormat, rows: int) -> np.ndarray | None:
    """The scales of a head from its last bytes.

    Raises:
        CorruptStreamError: their number or existence contradicts kind and format.
    """
    if kind not in SCALE_KINDS:
        raise CorruptStreamError(f"head: scale kind {kind} does not exist")
    n = expected_scales(kind, rows)
    if len(data) != 4 * n:
        raise CorruptStreamError(f"head: {len(data)} bytes after the tables, {n} scales follow")
    if kind != NO_SCALE and not fmt.scaled:
        raise CorruptStreamError(f"head: {fmt.name} has no scales, scale kind {kind}")
    return np.frombuffer(data, "<f4", n).copy() if kind != NO_SCALE else None


def per_row(kind: int, rows: int) -> int:
    """One row's scale is both the tensor's and the row's: its kind where rows are cut or joined."""
    return ROW_SCALE if kind == TENSOR_SCALE and rows == 1 else kind


def cut(scale: np.ndarray | None, kind: int, rows: slice) -> np.ndarray | None:
    """The scales of some rows."""
    return scale[rows] if scale is not None and kind == ROW_SCALE else scale


def join(kind: int, scales: list[np.ndarray | None]) -> np.ndarray | None:
    """The scales of matrices below each other. Raises ValueError for one scale per tensor."""
    if kind == NO_SCALE:
        return None
    if kind != ROW_SCALE:
        raise ValueError("concat_rows: parts with one scale per tensor; scale rows instead")
    return np.concatenate(scales)


def rows_of(scale: torch.Tensor | None, ids: torch.Tensor, rows: int) -> torch.Tensor | None:
    """The scales of rows `ids`; ids outside were refused, or their rows are all ones."""
    if scale is None or scale.numel() == 1:
        return scale
    return scale[ids.clamp(0, rows - 1)]


def apply(words: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """out [N, K] = words [N, K] * scale [1] or [N], computed in float32."""
    rows, cols = words.shape
    scale = scale.expand(rows)[:, None]
    block = max(1, _AT_ONCE // max(1, cols))
    for begin in range(0, rows, block):
        some = slice(begin, begin + block)
        out[some] = words[some].to(torch.float32) * scale[some]
    return out
