// Which part of the matrix a tile or a row is: the same for every coding.
#pragma once
#include "../core/coded_view.h"

namespace codecllm {
namespace {

struct TilePlace {
  int64_t number;              // row by row
  int64_t out_row, first_col;  // of the matrix
  int rows, cols;              // inside the matrix, 1..16 and 1..tile_cols
  int groups;
};

// Where a row of the matrix is.
struct RowPlace {
  int64_t segment, tile_row;
  int row;  // of the tile
};

// The segment of a row of tiles; the search begins at `near`.
CLLM_INLINE int64_t segment_of(const CodedView& m, int64_t tile_row, int64_t near) {
  while (near > 0 && m.segment(near)[kFirstTileRow] > tile_row) --near;
  while (near + 1 < m.segments && m.segment(near + 1)[kFirstTileRow] <= tile_row) ++near;
  return near;
}

// Fills the place of that tile row and column. `segment`: of the tile before, then of this one.
// Returns the segment's header.
inline const uint32_t* place_tile(const CodedView& m, int64_t tile_row, int64_t col_tile,
                                  int64_t& segment, TilePlace& tile) {
  segment = segment_of(m, tile_row, segment);
  const uint32_t* header = m.segment(segment);
  const int64_t row = (tile_row - header[kFirstTileRow]) * kTileRows;
  const int64_t rows_left = int64_t(header[kRows]) - row;
  const ColumnTiles across = m.column_tiles();
  tile.number = tile_row * m.col_tiles + col_tile;
  tile.out_row = header[kFirstRow] + row;
  tile.first_col = across.first_col(col_tile);
  tile.rows = int(rows_left < kTileRows ? rows_left : kTileRows);
  tile.cols = across.columns(col_tile);
  tile.groups = across.groups(col_tile);
  return header;
}

}  // namespace
}  // namespace codecllm
