"""The rANS coding on the host: its kernels' source, and what sizes must be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....codec.rans.tables import TABLE_HEADER
from ....format.errors import CorruptStreamError
from ....format.geometry import STREAM_ALIGN, STREAM_PAD, record_ints
from ....format.head import MAX_LEN_BITS, MAX_SCALE_BITS, MIN_SCALE_BITS
from .arguments import Coded
from .source_rans import SOURCE, Code

if TYPE_CHECKING:
    from ....format.layout_word import Layout
    from ....format.weight_formats import WeightFormat
    from .matrix import Plan

__all__ = ["SOURCE", "STEP", "check", "code_of", "indexed", "is_wide", "plane_bits"]

STEP = 1


def code_of(layout: Layout) -> Code:
    """What the source knows at compile time. Raises CorruptStreamError."""
    if not MIN_SCALE_BITS <= layout.scale_bits <= MAX_SCALE_BITS:
        raise CorruptStreamError(f"corrupt layout: scale_bits {layout.scale_bits}")
    return Code(layout.scale_bits, bool(layout.predictor))


def is_wide(code: Code) -> bool:
    """Whether decoding takes many registers: the sums of predictor `left` do."""
    return code.left


def plane_bits(fmt: WeightFormat) -> tuple[int, ...]:
    """Of a half, in the planes whose tiles have a constant size: the raw ones."""
    return fmt.plane_bits


def indexed(coded: Coded) -> int:
    """16-bit words of the coded plane, in which the index says where lanes begin."""
    return coded.stream.numel() // 2


def check(coded: Coded, plan: Plan, tile_rows: int) -> None:
    """Whether sizes are those of that many tile rows."""
    if coded.table.shape[1] != TABLE_HEADER + (1 << plan.format.code.scale_bits):
        raise CorruptStreamError(f"corrupt table: {list(coded.table.shape)}")
    tiles, ints = coded.index.shape
    fits = record_ints(1) <= ints <= record_ints(MAX_LEN_BITS)
    if tiles != tile_rows * plan.col_tiles or not fits:
        raise CorruptStreamError(f"corrupt index: {tiles} records of {ints} values")
    if coded.raw.numel() != tile_rows * plan.plane_row:
        raise CorruptStreamError(
            f"corrupt raw plane: {coded.raw.numel()} bytes, not {tile_rows * plan.plane_row}"
        )
    bytes_ = coded.stream.numel()
    if tiles and (bytes_ < STREAM_PAD or bytes_ % STREAM_ALIGN):
        raise CorruptStreamError(f"corrupt coded plane: {bytes_} bytes")
