"""The op argument `layout` (codec/coded.py: pack_layout) taken apart."""

from __future__ import annotations

from dataclasses import dataclass

from ...codec.coded import LAYOUT_BITS
from ...format.errors import CorruptStreamError
from ...format.weight_formats import WeightFormat, by_id


@dataclass(frozen=True)
class Layout:
    fmt: WeightFormat
    scale_bits: int
    len_bits: int
    predictor: int
    stored: bool
    scale_kind: int
    tile_cols: int

    @staticmethod
    def unpack(v: int) -> Layout:
        if v & ~LAYOUT_BITS or v >> 19 & 3 == 3:
            raise CorruptStreamError(f"layout: {v:#x} has unknown bits")
        return Layout(
            by_id(v & 0xFF), v >> 8 & 0xF, v >> 12 & 0x1F, v >> 17 & 1, bool(v >> 18 & 1),
            v >> 19 & 3, v >> 32 & 0xFFFF,
        )  # fmt: skip
