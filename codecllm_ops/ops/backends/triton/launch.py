"""Launches of the Triton kernels."""

from __future__ import annotations

import contextlib
import functools

import torch
import triton

from ....format.geometry import GROUP_COLS, ceil_div, round_up
from ....format.scales import ROW_SCALE
from . import decode as decode_kernels
from . import linear as linear_kernels
from . import tune
from .choices import (
    REDUCE,
    REDUCE_BLOCK,
    ROWS_TILES,
    Device,
    Product,
    decode_choices,
    decode_options,
    linear_choices,
    linear_options,
)
from .matrix import Matrix, Plan

INTERPRETED = triton.knobs.runtime.interpret
TOGETHER = tuple(int(n) for n in triton.__version__.split(".")[:2]) < (3, 8)  # values.py: fragment


def decode_matrix(m: Matrix, out: torch.Tensor, status: torch.Tensor | None) -> None:
    """Fills `out`, contiguous bytes [rows, cols * word bytes]."""
    plan, device = m.plan, device_of(out.device)
    tiles, even = m.tile_rows * plan.col_tiles, _pairs_fit(out, plan)

    def run(tiles_each: int) -> None:
        grid = (ceil_div(m.tile_rows, tiles_each) * plan.col_tiles,)
        decode_kernels.decode_matrix[grid](
            m.coded, out, status, m.numbers, m.source, FMT=plan.format, EVEN=even, T=tiles_each,
            **decode_options(tiles_each, device),
        )  # fmt: skip

    with _on(out.device):
        run(tune.choose(("decode", *plan.key), lambda: decode_choices(tiles, device), run))


def decode_rows(ids: torch.Tensor, m: Matrix, out: torch.Tensor, status: torch.Tensor | None):
    """Fills `out`, contiguous bytes [ids, cols * word bytes]; ids: int64 [*]."""
    plan, device = m.plan, device_of(out.device)
    grid = (ceil_div(ids.numel(), 8 * ROWS_TILES) * plan.col_tiles,)
    with _on(out.device):
        decode_kernels.decode_rows[grid](
            ids, ids.numel(), m.coded, out, status, m.numbers, m.source, FMT=plan.format,
            EVEN=_pairs_fit(out, plan), T=ROWS_TILES, **decode_options(ROWS_TILES, device),
        )  # fmt: skip


def _pairs_fit(out: torch.Tensor, plan: Plan) -> bool:
    """Whether all pairs of a row stand where they can be stored at once."""
    return plan.cols % 2 == 0 and out.data_ptr() % (2 * plan.fmt.word_bytes) == 0


def linear(x: torch.Tensor, m: Matrix, scale, bias, status) -> torch.Tensor:
    """x [1 to 64, cols] times the matrix: [.., rows] of x's dtype."""
    plan, device, rows_of_x = m.plan, device_of(x.device), x.shape[0]
    out = x.new_empty((rows_of_x, plan.rows))
    product = Product.of(plan.fmt, x.dtype, rows_of_x, plan.wide, plan.format.step, device)
    per_row = plan.scale_kind == ROW_SCALE
    x = _whole_groups(x)

    def run(choice: tuple[int, int]) -> None:
        tiles, splits = choice
        to = out
        if splits > 1:
            to = x.new_empty((splits, *out.shape), dtype=torch.float32)
        linear_kernels.linear[(ceil_div(m.tile_rows, tiles) * splits,)](
            x, m.coded, scale, bias, to, status, rows_of_x, x.stride(0), splits, m.numbers,
            m.source, FMT=plan.format, PRODUCT=product.dtype, N=product.n, T=tiles,
            PARTIAL=splits > 1, PER_ROW=per_row, TOGETHER=TOGETHER, INTERPRETED=INTERPRETED,
            **linear_options(tiles, product, device),
        )  # fmt: skip
        if splits > 1:
            linear_kernels.reduce[(ceil_div(out.numel(), REDUCE_BLOCK),)](
                to, scale, bias, out, rows_of_x, plan.rows, splits, PER_ROW=per_row,
                BLOCK=REDUCE_BLOCK, **REDUCE,
            )  # fmt: skip

    with _on(x.device):
        key = ("linear", *plan.key, str(x.dtype), product.n)
        shape = m.tile_rows, plan.col_tiles
        run(tune.choose(key, lambda: linear_choices(*shape, product, device), run))
    return out


def _whole_groups(x: torch.Tensor) -> torch.Tensor:
    """x with rows of whole groups that begin at 4 bytes: itself, or a copy."""
    cols = x.shape[1]
    if cols % GROUP_COLS == 0 and x.is_contiguous() and x.data_ptr() % 4 == 0:
        return x
    padded = x.new_zeros((x.shape[0], round_up(cols, GROUP_COLS)))
    padded[:, :cols] = x
    return padded


@functools.cache
def device_of(device: torch.device) -> Device:
    if INTERPRETED:
        return Device((9, 0), 2)
    properties = torch.cuda.get_device_properties(device)
    arch = None if torch.version.hip else torch.cuda.get_device_capability(device)
    return Device(arch, properties.multi_processor_count)


def _on(device: torch.device):
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
