"""The fixed coding on the host: its kernels' source, and what sizes must be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....codec.tiles import TABLE_HEADER
from ....format.errors import CorruptStreamError
from ....format.fixed import FIXED_PLANE_BITS, FIXED_UNIT, LISTED_BYTES, MAX_FIXED_TILE_COLS
from ....format.weight_formats import FORMATS
from .arguments import Coded
from .source_fixed import SOURCE

if TYPE_CHECKING:
    from ....format.layout_word import Layout
    from ....format.weight_formats import WeightFormat
    from .matrix import Plan

__all__ = ["SOURCE", "STEP", "check", "code_of", "indexed", "is_wide", "plane_bits"]

STEP = FIXED_UNIT


def code_of(layout: Layout) -> str:
    """What the source knows at compile time: that it is this coding. Raises CorruptStreamError."""
    if layout.fmt is not FORMATS["bf16"]:
        raise CorruptStreamError(f"corrupt layout: a fixed matrix of {layout.fmt.name}")
    if layout.tile_cols > MAX_FIXED_TILE_COLS or layout.scale_bits or layout.predictor:
        raise CorruptStreamError(
            f"corrupt layout: a fixed matrix with tile_cols {layout.tile_cols}, scale_bits "
            f"{layout.scale_bits}, predictor {layout.predictor}"
        )
    return "fixed"


def is_wide(code: str) -> bool:
    """Whether decoding takes many registers."""
    return False


def plane_bits(fmt: WeightFormat) -> tuple[int, ...]:
    """Of a half, in the planes whose tiles have a constant size."""
    return FIXED_PLANE_BITS


def indexed(coded: Coded) -> int:
    """Entries of the list, whose ends are the index."""
    return coded.raw.numel() // LISTED_BYTES


def check(coded: Coded, plan: Plan, tile_rows: int) -> None:
    """Whether sizes are those of that many tile rows."""
    if coded.table.shape[1] != TABLE_HEADER:
        raise CorruptStreamError(f"corrupt table: {list(coded.table.shape)}")
    tiles, ints = coded.index.shape
    if tiles != tile_rows * plan.col_tiles or ints != 1:
        raise CorruptStreamError(f"corrupt index: {tiles} records of {ints} values")
    if coded.stream.numel() != tile_rows * plan.plane_row:
        raise CorruptStreamError(
            f"corrupt plane: {coded.stream.numel()} bytes, not {tile_rows * plan.plane_row}"
        )
    if coded.raw.numel() % LISTED_BYTES or indexed(coded) >= 1 << 31:
        raise CorruptStreamError(f"corrupt list: {coded.raw.numel()} bytes")
