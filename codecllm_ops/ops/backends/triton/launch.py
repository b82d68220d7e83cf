"""From op arguments to launches of the Triton kernels: checks, geometry, grids."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ....codec.operand import Operand
from ....codec.tables import TABLE_HEADER
from ....format.errors import CorruptStreamError
from ....format.head import MAX_LEN_BITS, ROW_SCALE
from ....format.layout import (
    GROUP_COLS,
    MAX_TILE_COLS,
    STREAM_ALIGN,
    STREAM_PAD,
    TILE_ROWS,
    ceil_div,
    raw_tile_bytes,
    round_up,
)
from ....format.layout_word import Layout
from ....format.weight_formats import WeightFormat
from . import decode as decode_kernels
from . import linear as linear_kernels
from . import tune

NO_TILE = 1 << 62  # status: no tile was corrupt
BAD_ID = NO_TILE - 1
INTERPRETED = triton.knobs.runtime.interpret
TOGETHER = tuple(int(n) for n in triton.__version__.split(".")[:2]) < (3, 8)  # values.py: fragment


@functools.cache
def format_constants(fmt: WeightFormat) -> dict:
    """What kernels know of a format at compile time, from its entry."""
    planes = [p for p in fmt.planes if not p.low_half]
    return {
        "BITS": fmt.coded_bits,
        "SHIFT": fmt.coded_shift,
        "FLIP": fmt.flip,
        "PLANES": tuple(n for p in planes for n in (p.mask, p.bits)),
        "LOW": fmt.word_bits == 32,
    }


@dataclass(frozen=True)
class Matrix:
    """The tensors and the geometry that kernels take; sizes are checked, contents are not: that
    would wait for the GPU. Kernels check what they take from index and table."""

    stream: torch.Tensor
    raw: torch.Tensor
    index: torch.Tensor
    table: torch.Tensor
    rows: int
    cols: int
    layout: Layout
    tile_rows: int

    @staticmethod
    def of(op: str, coded: Operand) -> Matrix:
        stream, raw, index, table, _, rows, cols, _ = coded
        layout = Layout.unpack(coded.layout)
        dtypes = (torch.uint8, torch.uint8, torch.int32, torch.int32)
        names = ("stream", "raw", "index", "table")
        for name, t, dtype in zip(names, (stream, raw, index, table), dtypes, strict=True):
            dims = 1 + (name in ("index", "table"))
            if t.dtype != dtype or t.dim() != dims or not t.is_contiguous():
                raise RuntimeError(
                    f"codecllm::{op}: {name} is {t.dtype} {list(t.shape)}, not contiguous {dtype}"
                )
        _check_layout(op, layout, rows, cols)
        if not 1 <= index.shape[1] - 2 <= MAX_LEN_BITS:
            raise CorruptStreamError(f"codecllm::{op}: corrupt index: {list(index.shape)}")
        col_tiles = ceil_div(cols, layout.tile_cols)
        if table.shape[1] != TABLE_HEADER + (1 << layout.scale_bits):
            raise CorruptStreamError(f"codecllm::{op}: corrupt table: {list(table.shape)}")
        segments, least = table.shape[0], ceil_div(rows, TILE_ROWS)
        tile_rows = index.shape[0] // col_tiles if col_tiles else least
        if segments < (rows > 0) or not least <= tile_rows < least + max(segments, 1):
            raise CorruptStreamError(
                f"codecllm::{op}: corrupt index or table: {tile_rows} tile rows and {segments} "
                f"segments for {rows} rows"
            )
        # Kernels load 16 bytes at once. Tensors of torch's allocator begin where they may.
        stream, raw = (t if t.data_ptr() % 16 == 0 else t.clone() for t in (stream, raw))
        m = Matrix(stream, raw, index, table, rows, cols, layout, tile_rows)
        if raw.numel() != tile_rows * m.raw_row_bytes:
            raise CorruptStreamError(
                f"codecllm::{op}: corrupt raw plane: {raw.numel()} bytes, "
                f"not {tile_rows * m.raw_row_bytes}"
            )
        if index.shape[0] != tile_rows * col_tiles:
            raise CorruptStreamError(
                f"codecllm::{op}: corrupt index: {index.shape[0]} records, "
                f"not {tile_rows * col_tiles}"
            )
        bytes_ = stream.numel()
        if tile_rows and col_tiles and (bytes_ < STREAM_PAD or bytes_ % STREAM_ALIGN):
            raise CorruptStreamError(f"codecllm::{op}: corrupt coded plane: {bytes_} bytes")
        return m

    @property
    def col_tiles(self) -> int:
        return ceil_div(self.cols, self.layout.tile_cols)

    @property
    def raw_tile_bytes(self) -> int:
        return raw_tile_bytes(self.layout.fmt, self.layout.tile_cols)

    @property
    def raw_row_bytes(self) -> int:
        if not self.cols:
            return 0
        last = self.cols - (self.col_tiles - 1) * self.layout.tile_cols
        return (self.col_tiles - 1) * self.raw_tile_bytes + raw_tile_bytes(self.layout.fmt, last)

    def tensors(self) -> dict:
        """Arguments of kernels. (`stream` is a name that Triton keeps for itself.)"""
        containers = self.raw.view(torch.int32)
        return {"coded": self.stream, "raw": containers, "index": self.index, "table": self.table}

    def numbers(self) -> dict:
        """Arguments that kernels do not specialise on."""
        segments = self.table.shape[0]
        return {
            "rows": self.rows,
            "cols": self.cols,
            "segments": segments,
            "segment_steps": (segments - 1).bit_length(),
            "total_words": self.stream.numel() // 2,
            "record_ints": self.index.shape[1],
            "tile_cols": self.layout.tile_cols,
            "tile_rows": self.tile_rows,
            "col_tiles": self.col_tiles,
            "raw_row": self.raw_row_bytes // 4,
            "raw_tile": self.raw_tile_bytes // 4,
        }

    def constants(self) -> dict:
        return format_constants(self.layout.fmt) | {
            "SCALE_BITS": self.layout.scale_bits,
            "LEFT": bool(self.layout.predictor),
        }


def _check_layout(op: str, layout: Layout, rows: int, cols: int) -> None:
    if not (0 <= rows < 2**31 - 1 and 0 <= cols < 2**31 - 1 and rows * cols < 1 << 57):
        raise RuntimeError(f"codecllm::{op}: shape {rows} x {cols}")
    if not 8 <= layout.scale_bits <= 11:
        raise CorruptStreamError(f"codecllm::{op}: corrupt layout: scale_bits {layout.scale_bits}")
    width = layout.tile_cols
    if width < GROUP_COLS or width % GROUP_COLS or width > MAX_TILE_COLS:
        raise CorruptStreamError(f"codecllm::{op}: corrupt layout: tile_cols {width}")


# ---- decode -------------------------------------------------------------------------------------


def decode_matrix(m: Matrix, out: torch.Tensor, status: torch.Tensor | None) -> None:
    """out: bytes [rows, cols * word bytes]."""

    def run(tiles: int) -> None:
        grid = (ceil_div(m.tile_rows, tiles) * m.col_tiles,)
        decode_kernels.decode_matrix[grid](
            **m.tensors(), out=out, status=status, **m.numbers(), **m.constants(),
            WORD_BITS=m.layout.fmt.word_bits, EVEN=m.cols % 2 == 0, T=tiles,
            CHECK=status is not None, **options(decode_registers(tiles)),
        )  # fmt: skip

    with _on(m.stream.device):
        key, tiles = ("decode", m.layout, m.rows, m.cols), m.tile_rows * m.col_tiles
        run(tune.choose(key, lambda: decode_choices(tiles, _processors()), run))


def decode_rows(ids: torch.Tensor, m: Matrix, status: torch.Tensor | None) -> torch.Tensor:
    """Bytes [ids, cols * word bytes]; ids: int64 [*]."""
    out = m.stream.new_empty((ids.numel(), m.cols * m.layout.fmt.word_bytes))
    tiles = 2
    grid = (ceil_div(ids.numel(), 8 * tiles) * m.col_tiles,)
    with _on(m.stream.device):
        decode_kernels.decode_rows[grid](
            ids=ids, count=ids.numel(), **m.tensors(), out=out, status=status, **m.numbers(),
            **m.constants(), WORD_BITS=m.layout.fmt.word_bits, EVEN=m.cols % 2 == 0, T=tiles,
            CHECK=status is not None, **options(decode_registers(tiles)),
        )  # fmt: skip
    return out


# ---- decode_linear ------------------------------------------------------------------------------


def operand(fmt: WeightFormat, dtype: torch.dtype, arch: tuple[int, int] | None):
    """Dtype of the products, which holds weights and x exactly: x's if tensor cores take it.

    Args:
        arch: compute capability; None for AMD.
    """
    exact = fmt.dtype == dtype or fmt.word_bits == 8
    has_cores = arch is None or arch >= ((8, 0) if dtype == torch.bfloat16 else (7, 0))
    if dtype == torch.float32 or not exact or not has_cores:
        return tl.float32
    return tl.bfloat16 if dtype == torch.bfloat16 else tl.float16


def linear(x: torch.Tensor, m: Matrix, scale, bias, status) -> torch.Tensor:
    """x [1 to 64, cols] times the matrix: [.., rows] of x's dtype."""
    out = x.new_empty((x.shape[0], m.rows))
    product = operand(m.layout.fmt, x.dtype, _arch_of(x.device))
    n = columns_of_x(x.shape[0], product)
    x = _whole_groups(x)

    def run(choice: tuple[int, int]) -> None:
        tiles, splits = choice
        to = out
        if splits > 1:
            to = x.new_empty((splits, *out.shape), dtype=torch.float32)
        grid = (ceil_div(m.tile_rows, tiles) * splits,)
        linear_kernels.linear[grid](
            x, **m.tensors(), scale=scale, bias=bias, out=to, status=status, m=out.shape[0],
            x_stride=x.stride(0), splits=splits, **m.numbers(), **m.constants(), OPERAND=product,
            N=n, T=tiles, PARTIAL=splits > 1, PER_ROW=m.layout.scale_kind == ROW_SCALE,
            CHECK=status is not None, TOGETHER=TOGETHER, INTERPRETED=INTERPRETED,
            **options(linear_registers(tiles, n, product, bool(m.layout.predictor))),
        )  # fmt: skip
        if splits > 1:
            linear_kernels.reduce[(ceil_div(out.numel(), 256),)](
                to, scale, bias, out, out.shape[0], m.rows, splits,
                PER_ROW=m.layout.scale_kind == ROW_SCALE, BLOCK=256,
                **(options() | {"num_warps": 4}),
            )  # fmt: skip

    with _on(m.stream.device):
        key = ("linear", m.layout, m.rows, m.cols, x.dtype, n)
        shape, kind = (
            (m.tile_rows, m.col_tiles, n),
            (product != tl.float32, bool(m.layout.predictor)),
        )
        run(tune.choose(key, lambda: linear_choices(*shape, _processors(), *kind), run))
    return out


def columns_of_x(m: int, product) -> int:
    """Columns that x takes in a product: a power of two, as many as a tensor core has at least."""
    least = 8 if product != tl.float32 and torch.version.hip is None else 16
    return max(least, 1 << (m - 1).bit_length())


def _whole_groups(x: torch.Tensor) -> torch.Tensor:
    """x with rows of whole groups that begin at 4 bytes: itself, or a copy."""
    cols = x.shape[1]
    if cols % GROUP_COLS == 0 and x.is_contiguous() and x.data_ptr() % 4 == 0:
        return x
    padded = x.new_zeros((x.shape[0], round_up(cols, GROUP_COLS)))
    padded[:, :cols] = x
    return padded


# ---- choices ------------------------------------------------------------------------------------

# A program is one warp. So many of them keep a processor busy.
_WARPS = 16


def options(registers: int | None = None) -> dict:
    """How all kernels are compiled: one warp, so that a vote needs no barrier; nothing pipelined,
    which would send the loads of the slot table through shared memory."""
    found = {"num_warps": 1, "num_stages": 1, "enable_fp_fusion": False}
    return found if registers is None else found | {"maxnreg": registers}


def decode_registers(tiles: int) -> int | None:
    """Of a thread, on NVIDIA GPUs: left to itself, ptxas stays below a step of its own choice, and
    spills what does not fit."""
    if torch.version.hip:
        return None
    return 128 if tiles <= 2 else 255


def linear_registers(tiles: int, n: int, product, left: bool) -> int | None:
    """The same for decode_linear."""
    if torch.version.hip:
        return None
    if left:
        return 255
    if product == tl.float32:
        return 128 if tiles == 1 and n < 64 else 255
    if tiles == 1:
        return 96 if n < 64 else 168
    return 128 if tiles == 2 and n < 64 else 255


def decode_choices(tiles: int, processors: int) -> list[int]:
    """Tiles of a program, the likely best first."""
    likely = 2 if tiles >= 2 * _WARPS * processors else 1
    return [likely, *(t for t in (1, 2, 4) if t != likely and tiles >= t * 4 * processors)]


def linear_choices(
    tile_rows: int, col_tiles: int, n: int, processors: int, cores: bool, left: bool = False
) -> list[tuple[int, int]]:
    """Tile rows of a program and parts of the columns, the likely best first.

    Args:
        cores: products run on tensor cores.
        left: predictor `left`, whose sums take registers too.
    """
    found = []
    for tiles in (2, 1, 4):
        if tiles * n > 64 and not (cores and tiles == 2):  # registers of the sums
            continue
        if tiles == 4 and left:
            continue
        blocks = ceil_div(tile_rows, tiles)
        splits = min(col_tiles, ceil_div(_WARPS * processors, blocks))
        if tiles == 1 or blocks * col_tiles >= 2 * processors:
            found.append((tiles, splits))
        # Fewer parts: less to add up.
        if splits > 1 and n >= 32:
            found.append((tiles, ceil_div(splits, 2)))
    return list(dict.fromkeys(found))


def _processors() -> int:
    if INTERPRETED:
        return 2
    return torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count


@functools.cache
def _arch_of(device: torch.device) -> tuple[int, int] | None:
    """Compute capability; None for AMD."""
    if INTERPRETED:
        return (9, 0)
    return None if torch.version.hip else torch.cuda.get_device_capability(device)


def _on(device: torch.device):
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
