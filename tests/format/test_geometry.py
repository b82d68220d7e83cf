"""Geometry is arithmetic on integers: it holds beyond 2^31 elements and 4 GiB, and is checked there
without allocating."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases import ALL_FORMATS, every_format
from codecllm_ops.format import FORMATS, Grid
from codecllm_ops.format.geometry import MAX_TILE_COLS, default_tile_cols, plane_tile_bytes
from codecllm_ops.format.head import MAX_DIM


@given(
    st.sampled_from(ALL_FORMATS),
    st.lists(st.integers(0, 70), max_size=4),
    st.integers(0, 100),
    st.sampled_from([16, 32, 48]),
)
def test_grid_agrees_with_a_walk_over_its_tiles(fmt, segment_rows, cols, tile_cols):
    grid, tiles, at = Grid(fmt.plane_bits, tuple(segment_rows), cols, tile_cols), 0, 0
    for rows in segment_rows:
        for _ in range(0, rows, 16):
            for col_tile, first in enumerate(range(0, cols, tile_cols)):
                width = min(tile_cols, cols - first)
                assert grid.cols_of(col_tile) == width + -width % 16
                tile_row = tiles // grid.col_tiles
                assert grid.plane_offset(tile_row, col_tile) == at
                at += plane_tile_bytes(fmt.plane_bits, width)
                tiles += 1
    assert (grid.tiles, grid.plane_bytes, grid.rows) == (tiles, at, sum(segment_rows))


@every_format
def test_largest_matrix_has_exact_sizes(fmt):
    grid = Grid(fmt.plane_bits, (MAX_DIM,), MAX_DIM, 512)
    full = 16 * 512 * (fmt.word_bits - fmt.coded_bits) // 8
    last = plane_tile_bytes(fmt.plane_bits, 496)
    assert 0 <= last - full * 31 // 32 < 128 * len(fmt.planes)
    assert grid.tile_rows == 2**27 - 1
    assert grid.tiles == (2**27 - 1) * 2**22
    assert grid.cols_of(grid.col_tiles - 1) == 496
    assert grid.plane_bytes == (2**27 - 1) * ((2**22 - 1) * full + last)
    assert grid.plane_offset(grid.tile_rows - 1, grid.col_tiles - 1) == grid.plane_bytes - last


def test_more_than_2_31_words_in_one_row_of_tiles():
    grid = Grid(FORMATS["bf16"].plane_bits, (16,), MAX_DIM, MAX_TILE_COLS)
    assert grid.tiles == 2**17
    assert grid.plane_offset(0, 2**17 - 1) == (2**17 - 1) * 16 * MAX_TILE_COLS > 2**34


@pytest.mark.parametrize("fmt", ["bf16", "int8"])
@pytest.mark.parametrize("cols", [0, 1, 15, 16, 17, 384, 767, 769, 4096, 11008, 1 << 20, MAX_DIM])
def test_default_tiles_are_legal_and_about_even(fmt, cols):
    tile_cols = default_tile_cols(cols, FORMATS[fmt])
    assert tile_cols % 16 == 0 and 16 <= tile_cols <= 1536
    grid = Grid(FORMATS[fmt].plane_bits, (16,), cols, tile_cols)
    if grid.col_tiles > 1:
        assert grid.cols_of(grid.col_tiles - 1) > tile_cols - 16 * grid.col_tiles
