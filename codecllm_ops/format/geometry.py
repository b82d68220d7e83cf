"""Geometry of tiles and planes: sizes and offsets that follow from rows, cols and tile_cols."""

from __future__ import annotations

from dataclasses import dataclass

from .weight_formats import WeightFormat

LANES = 32
TILE_ROWS = 16
GROUP_COLS = 16
PAIRS_PER_GROUP = 4
MAX_TILE_COLS = 16384
STREAM_ALIGN = 16  # bytes; a tile's words begin at a multiple
STREAM_PAD = 16  # zero bytes after the last tile


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    """The next multiple of b."""
    return ceil_div(a, b) * b


def default_tile_cols(cols: int, fmt: WeightFormat, multiple: int = GROUP_COLS) -> int:
    """About 512 columns (1024 for 8-bit words), evenly divided, a multiple of `multiple`.

    A compromise: the states and lengths of a tile's lanes cost about 62 bits / tile_cols per weight
    (0.12 bits at 512), while a 4096 x 4096 matrix gives a GPU only 2048 independent tiles, and it
    wants a dozen warps per multiprocessor to hide a step's latency. 8-bit words have less to lose.
    """
    target = 1024 if fmt.word_bits == 8 else 512
    tiles = max(1, round(cols / target))
    return max(multiple, round_up(ceil_div(cols, tiles), multiple))


def containers(plane_bits: int, groups: int) -> int:
    """Containers (32-bit words) of one lane in one plane of a tile with that many groups."""
    return ceil_div(PAIRS_PER_GROUP * groups * plane_bits, 16)


def plane_tile_bytes(plane_bits: tuple[int, ...], tile_cols: int) -> int:
    """Planes of so many bits of a tile with so many columns, padded to whole groups."""
    groups = ceil_div(tile_cols, GROUP_COLS)
    return 4 * LANES * sum(containers(bits, groups) for bits in plane_bits)


@dataclass(frozen=True)
class Grid:
    """Tiles of a matrix whose segments have these numbers of rows, and the planes in which every
    pair has the same number of bits: the raw planes of `rans`, the plane of `fixed`.
    """

    plane_bits: tuple[int, ...]
    segment_rows: tuple[int, ...]
    cols: int
    tile_cols: int

    @property
    def rows(self) -> int:
        return sum(self.segment_rows)

    @property
    def tile_rows(self) -> int:
        return sum(ceil_div(r, TILE_ROWS) for r in self.segment_rows)

    @property
    def col_tiles(self) -> int:
        return ceil_div(self.cols, self.tile_cols)

    @property
    def tiles(self) -> int:
        return self.tile_rows * self.col_tiles

    def cols_of(self, col_tile: int) -> int:
        """Columns of the tiles in that tile column, padding to whole groups included."""
        left = self.cols - col_tile * self.tile_cols
        return round_up(min(self.tile_cols, left), GROUP_COLS)

    @property
    def plane_row_bytes(self) -> int:
        """Planes of one row of tiles."""
        if self.cols == 0:
            return 0
        full = self.col_tiles - 1
        last = plane_tile_bytes(self.plane_bits, self.cols_of(full))
        return full * plane_tile_bytes(self.plane_bits, self.tile_cols) + last

    @property
    def plane_bytes(self) -> int:
        return self.tile_rows * self.plane_row_bytes

    def plane_offset(self, tile_row: int, col_tile: int) -> int:
        full = plane_tile_bytes(self.plane_bits, self.tile_cols)
        return tile_row * self.plane_row_bytes + col_tile * full


def record_ints(len_bits: int) -> int:
    """int32 per tile in the tile index."""
    return 2 + len_bits
