// A coded matrix as kernels see it. Plain data: no torch.
#pragma once
#include <stdint.h>

#include "format.h"
#include "layout.h"

namespace codecllm {

struct CodedView {
  const uint8_t* stream;  // coded plane, any alignment (safetensors maps uint8 at any byte)
  int64_t stream_bytes;
  const uint8_t* raw;  // rans: raw plane; fixed: list of the weights that the plane does not have
  int64_t raw_bytes;
  const uint32_t* index;  // rans: [tiles, 2 + len_bits]; fixed: [tiles], ends of the tiles' lists
  const uint32_t* table;  // [segments, table_stride]: a header, then what else the coding keeps
  int64_t segments, table_stride;
  int64_t rows, cols;
  int format, tile_cols;
  Coding coding;
  int scale_bits, len_bits, predictor;  // of rans
  // Derived from the above by the caller, once: tile_rows from the table, the others by derive().
  // The plane in which every tile of a width has the same size: rans: raw, fixed: stream.
  int64_t tile_rows, col_tiles, plane_row_bytes, plane_tile_bytes;

  CLLM_INLINE void derive() {
    col_tiles = column_tiles().count();
    if (coding == Coding::fixed) {
      plane_tile_bytes = fixed_tile_bytes(tile_cols / kGroupCols);
      plane_row_bytes = column_tiles().fixed_row_bytes();
      return;
    }
    with_format(format, [&](auto f) {
      plane_tile_bytes = raw_tile_bytes(f.fmt, tile_cols / kGroupCols);
      plane_row_bytes = column_tiles().raw_row_bytes(f.fmt);
    });
  }
  CLLM_HD int64_t plane_at(int64_t tile_row, int64_t col_tile) const {
    return tile_row * plane_row_bytes + col_tile * plane_tile_bytes;
  }
  CLLM_HD int64_t listed() const { return raw_bytes / kListedBytes; }
  CLLM_HD const uint32_t* segment(int64_t s) const { return table + s * table_stride; }
  CLLM_HD ColumnTiles column_tiles() const { return {cols, tile_cols}; }
  CLLM_HD int groups(int64_t col_tile) const { return column_tiles().groups(col_tile); }
};

// Header of a segment in the runtime table, filled by codecllm_ops/codec/tiles.py.
enum SegmentField { kWindowBase, kSeed, kFirstRow, kRows, kFirstTileRow };

enum class Corruption { none, index, stream };

// What went wrong first, and where.
struct Status {
  Corruption what = Corruption::none;
  int64_t tile = -1;
  CLLM_HD explicit operator bool() const { return what == Corruption::none; }
};

}  // namespace codecllm
