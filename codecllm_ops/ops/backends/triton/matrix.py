"""A coded matrix as the kernels take it: sizes checked, numbers computed once per layout and
shape. Contents are not checked: that would wait for the GPU. Kernels check what they take from
index and table."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from ....format.errors import CorruptStreamError
from ....format.layout import (
    GROUP_COLS,
    MAX_TILE_COLS,
    TILE_ROWS,
    ceil_div,
    raw_tile_bytes,
    round_up,
)
from ....format.weight_formats import WeightFormat
from ..layout import Layout
from . import rans
from .arguments import Coded, Format, Numbers, Source, hidden
from .formats import format_of

CODINGS = {"rans": rans}  # modules with SOURCE, check_layout(..) and check(..)

_ALIGNMENT = 16  # bytes: kernels load as many at once


@dataclass(frozen=True)
class Plan:
    """What follows from layout and shape.

    Attributes:
        coding: a module of CODINGS.
        format: at compile time.
        raw_row, raw_tile: bytes of the raw plane in a row of tiles, and in a whole tile.
    """

    coding: object
    fmt: WeightFormat
    format: Format
    rows: int
    cols: int
    tile_cols: int
    scale_kind: int
    least_tile_rows: int
    col_tiles: int
    raw_row: int
    raw_tile: int

    @property
    def key(self) -> tuple:
        """What a choice depends on."""
        return (self.fmt.name, self.rows, self.cols, self.tile_cols, self.format.left)


@functools.lru_cache(maxsize=4096)
def plan_of(layout: Layout, rows: int, cols: int) -> Plan:
    """Raises CorruptStreamError, or RuntimeError for a shape that no matrix has."""
    if not (0 <= rows < 2**31 - 1 and 0 <= cols < 2**31 - 1 and rows * cols < 1 << 57):
        raise RuntimeError(f"shape {rows} x {cols}")
    width = layout.tile_cols
    if width < GROUP_COLS or width % GROUP_COLS or width > MAX_TILE_COLS:
        raise CorruptStreamError(f"corrupt layout: tile_cols {width}")
    coding = CODINGS["rans"]
    coding.check_layout(layout)
    col_tiles, raw_tile = ceil_div(cols, width), raw_tile_bytes(layout.fmt, width)
    raw_row = 0
    if cols:
        last = round_up(cols - (col_tiles - 1) * width, GROUP_COLS)
        raw_row = (col_tiles - 1) * raw_tile + raw_tile_bytes(layout.fmt, last)
    return Plan(
        coding, layout.fmt, format_of(layout.fmt, layout.scale_bits, bool(layout.predictor)),
        rows, cols, width, layout.scale_kind, ceil_div(rows, TILE_ROWS), col_tiles, raw_row,
        raw_tile,
    )  # fmt: skip


@dataclass(frozen=True)
class Matrix:
    """Arguments of the kernels."""

    coded: Coded
    plan: Plan
    tile_rows: int

    @staticmethod
    def of(op: str, coded: Coded, layout: Layout, rows: int, cols: int) -> Matrix:
        """Tensors that do not begin at 16 bytes are copied, in every call: nn aligns them at load.

        Raises:
            RuntimeError: dtypes, dimensions or strides are not those of the op.
            CorruptStreamError: sizes do not follow from layout and shape.
        """
        for name, t in zip(Coded._fields, coded, strict=True):
            dtype, dims = (torch.uint8, 1) if name in ("stream", "raw") else (torch.int32, 2)
            if t.dtype != dtype or t.dim() != dims or not t.is_contiguous():
                raise RuntimeError(
                    f"codecllm::{op}: {name} is {t.dtype} {list(t.shape)}, not contiguous {dtype}"
                )
        plan = plan_of(layout, rows, cols)
        tile_rows = plan.least_tile_rows
        if plan.col_tiles:
            tile_rows = coded.index.shape[0] // plan.col_tiles
        try:
            _check_segments(coded, plan, tile_rows)
            plan.coding.check(coded, plan, tile_rows)
        except CorruptStreamError as error:
            raise CorruptStreamError(f"codecllm::{op}: {error}") from None
        aligned = (t if t.data_ptr() % _ALIGNMENT == 0 else t.clone() for t in coded)
        return Matrix(Coded(*aligned), plan, tile_rows)

    @property
    def source(self) -> Source:
        return self.plan.coding.SOURCE

    @property
    def numbers(self) -> Numbers:
        plan, coded = self.plan, self.coded
        segments, table_ints = coded.table.shape
        return hidden(
            Numbers(
                plan.rows, plan.cols, plan.tile_cols, self.tile_rows, plan.col_tiles,
                plan.raw_row // 4, plan.raw_tile // 4, coded.stream.numel() // 2,
                coded.index.shape[1], table_ints, segments, (segments - 1).bit_length(),
            )
        )  # fmt: skip


def _check_segments(coded: Coded, plan: Plan, tile_rows: int) -> None:
    segments, least = coded.table.shape[0], plan.least_tile_rows
    if segments < (plan.rows > 0) or not least <= tile_rows < least + max(segments, 1):
        raise CorruptStreamError(
            f"corrupt index or table: {tile_rows} tile rows and {segments} segments for "
            f"{plan.rows} rows"
        )


def check_table(op: str, m: Matrix) -> None:
    """Whether the table's segments are those of the rows: waits for the GPU."""
    first, count, first_tile = m.coded.table[:, 2:5].T.long()
    tiles = (count + TILE_ROWS - 1) // TILE_ROWS
    follows = (first == count.cumsum(0) - count) & (first_tile == tiles.cumsum(0) - tiles)
    ends = (count.sum() == m.plan.rows) & (tiles.sum() == m.tile_rows)
    if not bool(follows.all() & ends & (count >= 0).all()):
        raise CorruptStreamError(f"codecllm::{op}: corrupt table: not of {m.plan.rows} rows")
