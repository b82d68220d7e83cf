"""A coded matrix as the kernels take it: sizes checked, numbers computed once per layout and
shape. Contents are not checked: that would wait for the GPU. Kernels check what they take from
index and table."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import ModuleType

import torch

from ....codec.operand import Operand
from ....format import layout_word
from ....format.errors import CorruptStreamError
from ....format.geometry import (
    GROUP_COLS,
    MAX_TILE_COLS,
    TILE_ROWS,
    Grid,
    plane_tile_bytes,
)
from ....format.layout_word import Layout
from ....format.weight_formats import WeightFormat
from . import rans
from .arguments import Coded, Format, Numbers, Source, hidden
from .formats import format_of

# By name: modules with SOURCE, code_of(layout), is_wide(code), check(coded, plan, tile_rows).
CODINGS = {"rans": rans}

_ALIGNMENT = 16  # bytes: kernels load as many at once


@dataclass(frozen=True)
class Plan:
    """What follows from layout and shape.

    Attributes:
        coding: of CODINGS.
        fmt, format: the weight format, and what kernels know of it.
        wide: whether decoding takes many registers.
        least_tile_rows: tile rows if the matrix is one segment.
        raw_row, raw_tile: bytes of the raw plane in a row of tiles, and in a whole tile.
    """

    coding: ModuleType
    fmt: WeightFormat
    format: Format
    wide: bool
    scale_kind: int
    rows: int
    cols: int
    tile_cols: int
    least_tile_rows: int
    col_tiles: int
    raw_row: int
    raw_tile: int

    @property
    def key(self) -> tuple:
        """What a choice depends on."""
        return (self.fmt.name, self.rows, self.cols, self.tile_cols, self.format.code)


@functools.lru_cache(maxsize=4096)
def plan_of(word: int, rows: int, cols: int) -> Plan:
    """From the op argument `layout`, and a shape.

    Raises:
        CorruptStreamError: the layout is none of a coding that has kernels.
        RuntimeError: no matrix has that shape.
    """
    if not (0 <= rows < 2**31 - 1 and 0 <= cols < 2**31 - 1 and rows * cols < 1 << 57):
        raise RuntimeError(f"shape {rows} x {cols}")
    layout = Layout.unpack(word)
    fmt, width = layout.fmt, layout.tile_cols
    if width < GROUP_COLS or width % GROUP_COLS or width > MAX_TILE_COLS:
        raise CorruptStreamError(f"corrupt layout: tile_cols {width}")
    coding = CODINGS[layout_word.CODINGS[layout.coding]]
    code = coding.code_of(layout)
    grid = Grid(fmt.plane_bits, (rows,), cols, width)
    return Plan(
        coding, fmt, format_of(fmt, code), coding.is_wide(code), layout.scale_kind,
        rows, cols, width, grid.tile_rows, grid.col_tiles, grid.plane_row_bytes,
        plane_tile_bytes(fmt.plane_bits, width),
    )  # fmt: skip


@dataclass(frozen=True)
class Matrix:
    """Arguments of the kernels."""

    coded: Coded
    plan: Plan
    tile_rows: int

    @staticmethod
    def of(op: str, operand: Operand) -> Matrix:
        """Of a matrix that is not stored. Tensors that do not begin at 16 bytes are copied, in
        every call: modules have them aligned since they were loaded.

        Raises:
            RuntimeError: dtypes, dimensions or strides are not those of the op.
            CorruptStreamError: sizes do not follow from layout and shape.
        """
        coded = Coded(*operand[:4])
        for name, t in zip(Coded._fields, coded, strict=True):
            dtype, dims = (torch.uint8, 1) if name in ("stream", "raw") else (torch.int32, 2)
            if t.dtype != dtype or t.dim() != dims or not t.is_contiguous():
                raise RuntimeError(
                    f"codecllm::{op}: {name} is {t.dtype} {list(t.shape)}, not contiguous {dtype}"
                )
        try:
            plan = plan_of(operand.layout, operand.rows, operand.cols)
            tile_rows = plan.least_tile_rows
            if plan.col_tiles:
                tile_rows = coded.index.shape[0] // plan.col_tiles
            _check_segments(coded, plan, tile_rows)
            plan.coding.check(coded, plan, tile_rows)
        except CorruptStreamError as error:
            raise CorruptStreamError(f"codecllm::{op}: {error}") from None
        if any(t.data_ptr() % _ALIGNMENT for t in coded):
            coded = Coded(*(t.clone() if t.data_ptr() % _ALIGNMENT else t for t in coded))
        return Matrix(coded, plan, tile_rows)

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
