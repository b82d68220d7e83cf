"""decode_linear for up to 64 rows of x: decodes into registers, multiplies, keeps nothing dense."""

from __future__ import annotations

import triton
import triton.language as tl

from .group import group_words
from .lane import locate, rows_of, segment_of, segment_table, whole_tiles
from .values import fragment, to_float, to_operand, x_fragment

# Numbers that a kernel is not compiled anew for.
_NUMBERS = (
    "m", "rows", "cols", "x_stride", "segments", "segment_steps", "total_words", "record_ints",
    "tile_cols", "tile_rows", "col_tiles", "raw_row", "raw_tile", "splits",
)  # fmt: skip


@triton.jit(do_not_specialize=_NUMBERS)
def linear(x, coded, raw, index, table, scale, bias, out, status,
           m, rows, cols, x_stride, segments, segment_steps, total_words, record_ints, tile_cols,
           tile_rows, col_tiles, raw_row, raw_tile, splits,
           BITS: tl.constexpr, SHIFT: tl.constexpr, FLIP: tl.constexpr, PLANES: tl.constexpr,
           LOW: tl.constexpr, SCALE_BITS: tl.constexpr, LEFT: tl.constexpr, OPERAND: tl.constexpr,
           N: tl.constexpr, T: tl.constexpr, PARTIAL: tl.constexpr, PER_ROW: tl.constexpr,
           CHECK: tl.constexpr,
           TOGETHER: tl.constexpr, INTERPRETED: tl.constexpr):  # fmt: skip
    """A program takes T tile rows and one of `splits` parts of their column tiles.

    Args:
        x: [m, x_stride], rows of whole groups, zeros beyond cols.
        out: [m, rows]; with PARTIAL float32 [splits, m, rows].
        status: int64 [1], the smallest number of a corrupt tile; with CHECK.
        OPERAND: dtype of the products. float32: without tensor cores, for all formats.
        N: columns of x in the product, m or more.
    """
    block, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    lanes = tl.arange(0, 32 * T)
    lane = lanes % 32
    tile_row = tl.minimum(block * T + lanes // 32, tile_rows - 1).to(tl.int64)
    segment = segment_of(table, 8 + (1 << SCALE_BITS), 4, tile_row, segments, segment_steps)
    header, base, slots = segment_table(table, segment, SCALE_BITS, SHIFT)
    good = lane == lane
    corrupt = tile_row * 0 + (1 << 62)
    acc = tl.zeros((16 * T, N), tl.float32)
    pairs = tl.arange(0, 4 * N)
    x_pairs = x + tl.minimum(pairs // 4, m - 1).to(tl.int64) * x_stride + pairs % 4 * 2
    k = tl.arange(0, 16)
    if TOGETHER:
        k = k // 4 * 2 + k % 2 + k % 4 // 2 * 8
    column = tl.minimum(tl.arange(0, N), m - 1).to(tl.int64)
    x_block = x + column[None, :] * x_stride + k[:, None]

    first_tile = (col_tiles.to(tl.int64) * split // splits).to(tl.int32)
    last_tile = (col_tiles.to(tl.int64) * (split + 1) // splits).to(tl.int32)
    for col_tile in range(first_tile, last_tile):
        words, last, state, ahead, at, end, inside, number, columns, tile_raw, seed = locate(
            coded, raw, index, header, segment, tile_row, col_tile, lane, cols, tile_cols,
            col_tiles, raw_row, raw_tile, total_words, record_ints, True, LEFT,
        )  # fmt: skip
        upper = seed  # last values of the rows, for predictor `left`
        lower = seed
        groups = (columns + 15) // 16
        for group in range(groups):
            state, ahead, at, upper, lower, u0, u1, u2, u3, l0, l1, l2, l3 = group_words(
                state, ahead, at, upper, lower, words, last, slots, base, tile_raw, lane,
                group, groups, BITS, SHIFT, PLANES, LOW, SCALE_BITS, LEFT,
            )  # fmt: skip
            half = fragment(u0, u1, u2, u3, TOGETHER)
            col = col_tile * tile_cols + 16 * group
            if OPERAND == tl.float32:
                w = to_float(half, fragment(l0, l1, l2, l3, TOGETHER), BITS, SHIFT, FLIP, LOW)
                acc = tl.dot(w, tl.load(x_block + col).to(tl.float32), acc, input_precision="ieee")
            else:
                x0 = tl.load((x_pairs + col).to(tl.pointer_type(tl.uint32)))
                x1 = tl.load((x_pairs + (col + 8)).to(tl.pointer_type(tl.uint32)))
                w = to_operand(half, OPERAND, BITS, SHIFT, FLIP)
                values = x_fragment(x0, x1, TOGETHER).to(OPERAND, bitcast=True)
                if INTERPRETED:  # it has no arithmetic on bfloat16
                    acc = tl.dot(w.to(tl.float32), values.to(tl.float32), acc)
                else:
                    acc = tl.dot(w, values, acc)
        ended = inside & (state == (1 << 16)) & (at == end)
        if CHECK:
            corrupt = tl.minimum(corrupt, tl.where(ended, 1 << 62, number))
        good &= ended

    if CHECK:
        tl.atomic_min(status + lane * 0, corrupt, mask=good == 0)
    r = tl.arange(0, 16 * T)
    its_tile_row = (block * T + r // 16).to(tl.int64)
    known = tl.minimum(its_tile_row, tile_rows - 1)
    first, count = rows_of(table, 8 + (1 << SCALE_BITS), known, rows, segments, segment_steps)
    mine = (its_tile_row < tile_rows) & (r % 16 < count)
    row = tl.where(mine, first + r % 16, 0)
    # Never a number that looks right.
    whole = whole_tiles(good)
    acc = tl.where((whole == 0)[:, None], float("nan"), acc)
    n = tl.arange(0, N).to(tl.int64)
    to = n[None, :] * rows + row[:, None]
    mask = mine[:, None] & (n < m)[None, :]
    if PARTIAL:
        tl.store(out + split.to(tl.int64) * m * rows + to, acc, mask=mask)
    else:
        y = _finish(acc, scale, bias, row[:, None], PER_ROW)
        tl.store(out + to, y.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=("m", "rows", "splits"))
def reduce(partial, scale, bias, out, m, rows, splits, PER_ROW: tl.constexpr,
           BLOCK: tl.constexpr):  # fmt: skip
    """Adds float32 [splits, m, rows] in order, scales, adds the bias."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < m * rows.to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(splits):
        total += tl.load(partial + i, mask=inside, other=0)
        partial += m * rows.to(tl.int64)
    y = _finish(total, scale, bias, tl.where(inside, i % rows, 0), PER_ROW)
    tl.store(out + i, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _finish(y, scale, bias, row, PER_ROW: tl.constexpr):
    if scale is not None:
        if PER_ROW:
            y *= tl.load(scale + row)
        else:
            y *= tl.load(scale)
    if bias is not None:
        y += tl.load(bias + row).to(tl.float32)
    return y
