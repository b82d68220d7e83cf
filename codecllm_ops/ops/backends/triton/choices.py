"""How kernels are compiled, and the few ways to cut the work that tune.py measures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton.language as tl

from ....format.geometry import ceil_div
from ....format.weight_formats import WeightFormat
from .formats import holds

# A program is one warp. So many of them keep a processor busy.
_WARPS = 16

REDUCE = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False}
REDUCE_BLOCK = 256


@dataclass(frozen=True)
class Device:
    """What choices depend on.

    Attributes:
        arch: compute capability; None for AMD.
        processors: multiprocessors, or compute units.
    """

    arch: tuple[int, int] | None
    processors: int


def options(registers: int | None = None) -> dict:
    """How decoding kernels are compiled: one warp, so that a vote needs no barrier; nothing
    pipelined, which would send the loads of the slot table through shared memory."""
    found = {"num_warps": 1, "num_stages": 1, "enable_fp_fusion": False}
    return found if registers is None else found | {"maxnreg": registers}


# ---- decode -------------------------------------------------------------------------------------

ROWS_TILES = 2  # T of decode_rows


def decode_options(tiles: int, device: Device) -> dict:
    """On NVIDIA GPUs with the registers of a thread: left to itself, ptxas stays below a step of
    its own choice, and spills what does not fit."""
    if device.arch is None:
        return options()
    return options(128 if tiles <= 2 else 255)


def decode_choices(tiles: int, device: Device) -> list[int]:
    """Tiles of a program, the likely best first."""
    processors = device.processors
    likely = 2 if tiles >= 2 * _WARPS * processors else 1
    return [likely, *(t for t in (1, 2, 4) if t != likely and tiles >= t * 4 * processors)]


# ---- decode_linear ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Product:
    """What a fused product computes with.

    Attributes:
        dtype: of the products, which holds weights and x exactly: x's if tensor cores take it;
            float32 is without them.
        n: columns of x: a power of two, as many as a tensor core has at least.
        wide: decoding takes many registers too.
        stepped: several groups are decoded at once.
    """

    dtype: tl.dtype
    n: int
    wide: bool
    stepped: bool

    @staticmethod
    def of(
        fmt: WeightFormat, x_dtype: torch.dtype, m: int, wide: bool, step: int, device: Device
    ) -> Product:
        """For x of m rows, 1 to 64."""
        arch = device.arch
        has_cores = arch is None or arch >= ((8, 0) if x_dtype == torch.bfloat16 else (7, 0))
        cores = has_cores and x_dtype != torch.float32 and holds(x_dtype, fmt)
        dtype = tl.float32
        if cores:
            dtype = tl.bfloat16 if x_dtype == torch.bfloat16 else tl.float16
        least = 8 if cores and arch is not None else 16
        return Product(dtype, max(least, 1 << (m - 1).bit_length()), wide, step > 1)

    @property
    def cores(self) -> bool:
        return self.dtype != tl.float32


def linear_options(tiles: int, product: Product, device: Device) -> dict:
    if device.arch is None:
        return options()
    many = product.n >= 64
    if product.wide:
        registers = 255
    elif not product.cores:
        registers = 128 if tiles == 1 and not many else 255
    elif tiles == 1:
        registers = 168 if many else 96
    elif product.stepped and tiles == 2 and product.n == 32:
        registers = 144
    else:
        registers = 128 if tiles == 2 and not many else 255
    return options(registers)


def linear_choices(
    tile_rows: int, col_tiles: int, product: Product, device: Device
) -> list[tuple[int, int]]:
    """Tile rows of a program and parts of the columns, the likely best first."""
    found = []
    for tiles in (2, 1, 4):
        if tiles * product.n > 64 and not (product.cores and tiles == 2):  # registers of the sums
            continue
        if tiles == 4 and product.wide:
            continue
        blocks = ceil_div(tile_rows, tiles)
        splits = min(col_tiles, ceil_div(_WARPS * device.processors, blocks))
        if tiles == 1 or blocks * col_tiles >= 2 * device.processors:
            found.append((tiles, splits))
        # Fewer parts: less to add up.
        if splits > 1 and product.n >= 32:
            found.append((tiles, ceil_div(splits, 2)))
    return list(dict.fromkeys(found))
