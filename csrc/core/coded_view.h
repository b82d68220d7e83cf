// A coded matrix as kernels see it, and the walk over its tiles. Plain data: no torch.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "format.h"
#include "layout.h"
#include "rans.h"

namespace codecllm {

struct CodedView {
  const uint8_t* stream;  // coded plane, any alignment (safetensors maps uint8 at any byte)
  int64_t stream_bytes;
  const uint8_t* raw;     // raw plane
  const uint32_t* index;  // [tiles, 2 + len_bits]
  const uint32_t* table;  // [segments, kTableHeader + 2^scale_bits]
  int64_t segments;
  int64_t rows, cols;
  int format, scale_bits, len_bits, predictor, tile_cols;
  // Derived from the above by the caller, once.
  int64_t tile_rows, col_tiles, raw_row_bytes, raw_tile_bytes;
  Coding coding = Coding::rans;

  CLLM_HD const uint32_t* segment(int64_t s) const {
    return table + s * (kTableHeader + (int64_t(1) << scale_bits));
  }
  CLLM_HD int groups(int64_t col_tile) const {
    int64_t left = cols - col_tile * tile_cols;
    return int(ceil_div(left < tile_cols ? left : tile_cols, kGroupCols));
  }
};

// Runtime table header, filled by codecllm_ops/codec/tables.py.
enum SegmentField { kWindowBase, kSeed, kFirstRow, kRows, kFirstTileRow };

enum class Corruption { none, index, stream };

// What went wrong first, and where.
struct Status {
  Corruption what = Corruption::none;
  int64_t tile = -1;
  CLLM_HD explicit operator bool() const { return what == Corruption::none; }
};

// One tile, ready to decode.
struct Tile {
  const uint8_t* words;    // first word
  uint32_t limit;          // largest position (in words) from which four may be fetched
  uint32_t start[kLanes];  // position of each lane's first word
  uint32_t end[kLanes];    // one past its last
  const uint8_t* raw;
  const uint32_t* slots;  // [2^scale_bits]
  uint32_t window_base, seed;
  int groups;
  int64_t number;
  int64_t out_row;  // first row of the matrix
  int rows;         // rows inside the matrix, 1..16
};

// Fills `tile`, or says that the index is corrupt. `segment` moves forward with tile_row.
CLLM_HD bool locate(const CodedView& m, int64_t tile_row, int64_t col_tile, int64_t& segment,
                    Tile& tile) {
  while (segment + 1 < m.segments && m.segment(segment + 1)[kFirstTileRow] <= tile_row) ++segment;
  const uint32_t* header = m.segment(segment);
  int64_t first = (tile_row - header[kFirstTileRow]) * kTileRows;
  int64_t left = int64_t(header[kRows]) - first;
  tile.out_row = header[kFirstRow] + first;
  tile.rows = int(left < kTileRows ? left : kTileRows);
  tile.window_base = header[kWindowBase];
  tile.seed = header[kSeed];
  tile.slots = header + kTableHeader;
  tile.groups = m.groups(col_tile);
  tile.number = tile_row * m.col_tiles + col_tile;
  tile.raw = m.raw + tile_row * m.raw_row_bytes + col_tile * m.raw_tile_bytes;

  const uint32_t* record = m.index + tile.number * (2 + m.len_bits);
  if (record[1] >> 16 != uint32_t(segment)) return false;
  uint32_t shortest = record[1] & 0xffff, mask = (1u << m.len_bits) - 1, at = 0;
  const uint32_t* next = record + 2;
  uint64_t bits = 0;
  int have = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (have < m.len_bits) {
      bits |= uint64_t(*next++) << have;
      have += 32;
    }
    tile.start[lane] = at;
    at += shortest + (uint32_t(bits) & mask);
    tile.end[lane] = at;
    bits >>= m.len_bits;
    have -= m.len_bits;
  }
  int64_t begin = int64_t(record[0]) * kStreamAlign;
  if (begin + 2 * (int64_t(at) + kStreamPadWords) > m.stream_bytes) return false;
  tile.words = m.stream + begin;
  tile.limit = at + kStreamPadWords - 4;
  return true;
}

CLLM_HD uint32_t load_word(const Tile& tile, uint32_t at) {
  uint16_t w;
  memcpy(&w, tile.words + 2 * size_t(at < tile.limit ? at : tile.limit), 2);
  return w;
}

}  // namespace codecllm
