// Arguments of the kernels. Plain data: no torch, no CUDA runtime.
#pragma once
#include "../core/convert.h"
#include "block.h"

namespace codecllm::cuda {

// Rows of x and warps of a linear_fma block.
constexpr int kFmaRows = 8, kFmaWarps = 8;

// x in fragments of linear_mma, for a column tile: 64 bytes for two groups of 16 columns and a row.
CLLM_HD constexpr int fragment_bytes(int padded_rows, int tile_cols) {
  return (tile_cols / kGroupCols + 1) / 2 * 64 * padded_rows;
}

struct LinearArgs {
  CodedView matrix;
  const void* x;  // [x_rows, cols]
  int x_rows;
  bool x_in_quads;     // rows of x begin at multiples of 16 bytes
  Dtype dtype;         // of x, bias and out
  const float* scale;  // [1] or [rows], or null
  bool scale_per_row;
  const void* bias;  // [rows] or null
  void* out;         // [x_rows, rows]
  float* partial;    // [chunks, x_rows, rows] if there are several chunks
  int chunks;        // of column tiles
  int chunk_tiles;   // column tiles of a chunk
  int band_rows;     // tile rows of a band: their sums have room in a block
  int x_bytes;       // of a chunk's x in shared memory, a multiple of 16
  BlockLayout block;
  uint64_t* status;  // smallest number of a corrupt tile, or null
};

// Status of an id outside the matrix: above every tile's number, below "nothing happened".
constexpr unsigned long long kBadId = ~0ull - 1;

struct DecodeArgs {
  CodedView matrix;
  uint8_t* out;        // [rows or ids_count, cols] words
  const int64_t* ids;  // decode_rows only
  int64_t ids_count;
  BlockLayout block;  // decode_matrix only
  uint64_t* status;   // smallest number of a corrupt tile, or null
};

}  // namespace codecllm::cuda
