"""decode_linear for up to 64 rows of x: decodes into registers, multiplies, keeps nothing dense.

program: one warp
  T tile rows x one of `splits` parts of their tile columns      sums [16 * T, N] in registers
lane: one of 32 of its tile, in whose four pairs of a group it holds what the product wants

columns -->     part 0         part 1                            x [m, cols]
tile row 0   [ p0 > > > > ][ p1 > > > > ]                          a group's columns at a time,
         1   [ p0 > > > > ][ p1 > > > > ]                          from the first-level cache
tile row 2   [ p2 > > > > ][ p3 > > > > ]     (T = 2)

for each tile column of the part:
  begin at the tiles
  for each group of 16 columns (or several, as the coding wants):
    decode its pairs, make them an operand, load x, multiply and add
  ended? else the tile's rows become NaN
a list of the coding: its weights of the part, products added
store: y, or with several parts sums for `reduce`, which adds them in order
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .arguments import NO_TILE, shown
from .tiles import all_of, columns_of, rows_of, whole_tile_rows
from .values import fragment, to_float, to_operand, x_fragment

# Numbers that a kernel is not compiled anew for.
_NUMBERS = ("m", "rows", "splits", "x_stride")


class X(NamedTuple):
    """Pointers to the first group's part of x: pairs of a fragment [4 * N], and a block [16, N]."""

    pairs: object
    block: object


@triton.jit(do_not_specialize=_NUMBERS)
def linear(x, coded, scale, bias, out, status, m, x_stride, splits, numbers, source,
           FMT: tl.constexpr, PRODUCT: tl.constexpr, N: tl.constexpr, T: tl.constexpr,
           PARTIAL: tl.constexpr, PER_ROW: tl.constexpr, TOGETHER: tl.constexpr,
           INTERPRETED: tl.constexpr):  # fmt: skip
    """A program takes T tile rows and one of `splits` parts of their column tiles.

    Args:
        x: [m, x_stride], rows of whole groups, zeros beyond cols.
        out: [m, rows]; with PARTIAL float32 [splits, m, rows].
        status: int64 [1], takes the smallest number of a corrupt tile; or None.
        PRODUCT: dtype of the products. float32: without tensor cores, for all formats.
        N: columns of x in the product, m or more.
    """
    # Without tensor cores a group is hundreds of instructions already.
    STEP: tl.constexpr = 1 if PRODUCT == tl.float32 else FMT.step
    numbers = shown(numbers)
    block, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    tiles = whole_tile_rows(coded, numbers, block, T)
    table = source.table(coded, numbers, tiles, FMT)
    good = tiles.lane == tiles.lane
    corrupt = tiles.row * 0 + NO_TILE
    acc = tl.zeros((16 * T, N), tl.float32)
    x_at = _x_of(x, m, x_stride, N, TOGETHER)

    first_tile = (numbers.col_tiles.to(tl.int64) * split // splits).to(tl.int32)
    last_tile = (numbers.col_tiles.to(tl.int64) * (split + 1) // splits).to(tl.int32)
    for col_tile in range(first_tile, last_tile):
        lane, place = source.begin(coded, numbers, table, tiles, col_tile, True, FMT)
        groups = (columns_of(numbers, col_tile) + 15) // 16
        first_col = col_tile * numbers.tile_cols
        if STEP > 1:
            x_tile, from_col = X(x_at.pairs + first_col, x_at.block + first_col), 0
        else:  # a second set of addresses would be registers that decoding needs
            x_tile, from_col = x_at, first_col
        whole = 0
        if STEP > 1:
            whole = groups // STEP * STEP
            for group in range(0, whole, STEP):
                lane, acc = _groups(lane, place, group, whole, groups, x_tile, from_col, acc,
                                    source, STEP, FMT, PRODUCT, TOGETHER, INTERPRETED)  # fmt: skip
        for group in range(whole, groups):
            lane, acc = _groups(lane, place, group, whole, groups, x_tile, from_col, acc, source,
                                1, FMT, PRODUCT, TOGETHER, INTERPRETED)  # fmt: skip
        ended = source.ended(lane, place)
        if status is not None:
            number = tiles.row * numbers.col_tiles + col_tile
            corrupt = tl.minimum(corrupt, tl.where(ended, NO_TILE, number))
        good &= ended

    if status is not None:
        tl.atomic_min(status + tiles.lane * 0, corrupt, mask=good == 0)
    r = tl.arange(0, 16 * T)
    if source.factor is not None:
        tile_row = tl.minimum(block * T + r // 16, numbers.tile_rows - 1).to(tl.int64)
        acc *= source.factor(coded, numbers, tile_row)[:, None]
    if source.listed is not None:
        acc = _add_listed(acc, x, m, x_stride, coded, status, numbers, source, block * T,
                          first_tile, last_tile, FMT, PRODUCT, N, T, INTERPRETED)  # fmt: skip
    # Never a number that looks right.
    acc = tl.where((all_of(good, 32, 16) == 0)[:, None], float("nan"), acc)
    first, count = rows_of(coded, numbers, (block * T + r // 16).to(tl.int64))
    mine = r % 16 < count
    row = tl.where(mine, first + r % 16, 0)
    n = tl.arange(0, N).to(tl.int64)
    to = n[None, :] * numbers.rows + row[:, None]
    mask = mine[:, None] & (n < m)[None, :]
    if PARTIAL:
        tl.store(out + split.to(tl.int64) * m * numbers.rows + to, acc, mask=mask)
    else:
        y = _finish(acc, scale, bias, row[:, None], PER_ROW)
        tl.store(out + to, y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _groups(lane, place, group, whole, groups, x_tile, from_col, acc, source, COUNT: tl.constexpr,
            FMT: tl.constexpr, PRODUCT: tl.constexpr, TOGETHER: tl.constexpr,
            INTERPRETED: tl.constexpr):  # fmt: skip
    """Decodes COUNT groups and adds their products."""
    lane, found = source.groups(lane, place, group, whole, groups, COUNT, False, FMT)
    for i in tl.static_range(COUNT):
        high, low = found[i]
        w = _operand(high, low, FMT, PRODUCT, TOGETHER)
        values = _load_x(x_tile, from_col + 16 * (group + i), PRODUCT, TOGETHER)
        acc = _multiply_add(w, values, acc, PRODUCT, INTERPRETED)
    return lane, acc


@triton.jit
def _add_listed(acc, x, m, x_stride, coded, status, numbers, source, tile_row, first_tile,
                last_tile, FMT: tl.constexpr, PRODUCT: tl.constexpr, N: tl.constexpr,
                T: tl.constexpr, INTERPRETED: tl.constexpr):  # fmt: skip
    """Adds the products of weights in the list: 16 / T of each tile row at a time are the columns
    of another group, which has one weight in each.

    Args:
        tile_row: of T tile rows the first.
    """
    each: tl.constexpr = 16 // T
    slot = tl.arange(0, 16)
    row = tl.minimum(tile_row + slot // each, numbers.tile_rows - 1).to(tl.int64)
    from_tile, to_tile = row * numbers.col_tiles + first_tile, row * numbers.col_tiles + last_tile
    begin, count = source.listed(coded, numbers, from_tile, to_tile)
    r = tl.arange(0, 16 * T)
    x_row = x + tl.minimum(tl.arange(0, N), m - 1).to(tl.int64) * x_stride
    for step in range((tl.max(count, 0) + each - 1) // each):
        i = step * each + slot % each
        there = i < count
        tile = source.tile_of(coded, numbers, begin + i, from_tile, to_tile)
        col_tile = (tile - row * numbers.col_tiles).to(tl.int32)
        columns = columns_of(numbers, col_tile)
        row_of, col, word, fine = source.entry(coded, numbers, begin + i, there, columns)
        if status is not None:
            tl.atomic_min(status + slot * 0, tile, mask=there & (fine == 0))
        word = tl.where(there, tl.where(fine, word ^ FMT.flip, 0xFFFF), 0)  # all ones: NaN
        mine = (r // 16)[:, None] == (slot // each)[None, :]
        mine &= ((r % 16)[:, None] == row_of[None, :]) | (fine == 0)[None, :]
        half = tl.where(mine, word[None, :], 0).to(tl.uint16)
        col += col_tile * numbers.tile_cols
        values = tl.load(x_row[None, :] + col[:, None], mask=there[:, None], other=0)
        w = _number(half, half, FMT, PRODUCT)
        acc = _multiply_add(w, values.to(PRODUCT), acc, PRODUCT, INTERPRETED)
    return acc


@triton.jit(do_not_specialize=_NUMBERS)
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
def _x_of(x, m, x_stride, N: tl.constexpr, TOGETHER: tl.constexpr):
    """Rows from m on are the last one."""
    pairs = tl.arange(0, 4 * N)
    row_of_pair = tl.minimum(pairs // 4, m - 1).to(tl.int64)
    k = tl.arange(0, 16)
    if TOGETHER:
        k = k // 4 * 2 + k % 2 + k % 4 // 2 * 8
    row = tl.minimum(tl.arange(0, N), m - 1).to(tl.int64)
    return X(x + row_of_pair * x_stride + pairs % 4 * 2, x + row[None, :] * x_stride + k[:, None])


@triton.jit
def _load_x(x_at, col, PRODUCT: tl.constexpr, TOGETHER: tl.constexpr):
    """A group's columns of x, from `col` on: [16, N] of PRODUCT."""
    if PRODUCT == tl.float32:
        values = tl.load(x_at.block + col).to(tl.float32)
    else:
        first = tl.load((x_at.pairs + col).to(tl.pointer_type(tl.uint32)))
        second = tl.load((x_at.pairs + (col + 8)).to(tl.pointer_type(tl.uint32)))
        values = x_fragment(first, second, TOGETHER).to(PRODUCT, bitcast=True)
    return values


@triton.jit
def _operand(high, low, FMT: tl.constexpr, PRODUCT: tl.constexpr, TOGETHER: tl.constexpr):
    """A group's pairs as numbers: [16 * T, 16] of PRODUCT."""
    half = fragment(high, TOGETHER)
    other = half
    if FMT.word_bits == 32:
        other = fragment(low, TOGETHER)
    return _number(half, other, FMT, PRODUCT)


@triton.jit
def _number(half, low, FMT: tl.constexpr, PRODUCT: tl.constexpr):
    return to_float(half, low, FMT) if PRODUCT == tl.float32 else to_operand(half, PRODUCT, FMT)


@triton.jit
def _multiply_add(w, values, acc, PRODUCT: tl.constexpr, INTERPRETED: tl.constexpr):
    if PRODUCT == tl.float32:
        acc = tl.dot(w, values, acc, input_precision="ieee")
    elif INTERPRETED:  # it has no arithmetic on bfloat16
        acc = tl.dot(w.to(tl.float32), values.to(tl.float32), acc)
    else:
        acc = tl.dot(w, values, acc)
    return acc


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
