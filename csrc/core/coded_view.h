// A coded matrix as kernels see it. Plain data: no torch.
#pragma once
#include <stdint.h>

#include "format.h"
#include "layout.h"

namespace codecllm {

struct CodedView {
  const uint8_t* stream;  // coded plane, any alignment (safetensors maps uint8 at any byte)
  int64_t stream_bytes;
  const uint8_t* raw;  // raw plane; of fixed, the list
  int64_t raw_bytes;
  const uint32_t* index;  // [tiles, 2 + len_bits]
  const uint32_t* table;  // [segments, table_stride]
  int64_t segments, table_stride;
  int64_t rows, cols;
  int format, scale_bits, len_bits, predictor, tile_cols;
  // Derived from the above by the caller, once: tile_rows from the table, the others by derive().
  int64_t tile_rows, col_tiles, raw_row_bytes, raw_tile_bytes;
  int64_t plane_row_bytes, plane_tile_bytes;
  Coding coding = Coding::rans;

  CLLM_INLINE void derive() {
    col_tiles = column_tiles().count();
    if (coding == Coding::fixed) {
      const int64_t row_groups = ceil_div(cols, kGroupCols);
      plane_tile_bytes = int64_t(kFixedGroupBytes) * (tile_cols / kGroupCols);
      plane_row_bytes = kFixedGroupBytes * row_groups;
      return;
    }
    with_format(format, [&](auto f) {
      raw_tile_bytes = codecllm::raw_tile_bytes(f.fmt, tile_cols / kGroupCols);
      raw_row_bytes = column_tiles().raw_row_bytes(f.fmt);
    });
  }
  CLLM_HD const uint32_t* segment(int64_t s) const { return table + s * table_stride; }
  // Entries of the list.
  CLLM_HD int64_t listed() const { return raw_bytes / 4; }
  CLLM_HD ColumnTiles column_tiles() const { return {cols, tile_cols}; }
  CLLM_HD int groups(int64_t col_tile) const { return column_tiles().groups(col_tile); }
};

// Runtime table header, filled by codecllm_ops/codec/rans/tables.py.
enum SegmentField { kWindowBase, kSeed, kFirstRow, kRows, kFirstTileRow };

enum class Corruption { none, index, stream };

// What went wrong first, and where.
struct Status {
  Corruption what = Corruption::none;
  int64_t tile = -1;
  CLLM_HD explicit operator bool() const { return what == Corruption::none; }
};

}  // namespace codecllm
