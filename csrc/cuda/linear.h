// Arguments of the decode_linear kernels. Plain data: no torch, no CUDA runtime.
#pragma once
#include "../core/coded_view.h"
#include "../core/convert.h"

namespace codecllm::cuda {

// 24 warps hide a decode step's latency and leave 80 registers to a thread: without spills, and the
// main loop is two instructions shorter than with 64 (docs/kernels.md).
constexpr int kMaxWarps = 24;
constexpr int kMmaSizes = 7;  // linear_mma exists for 1, 2, 4, .. 64 columns of x
constexpr int kMaxFusedRows = 1 << (kMmaSizes - 1);  // rows of x that a fused kernel takes

// Warps of a linear_mma block: half as many where the sums and raw bits take more than 80
// registers.
CLLM_HD constexpr int max_warps(const WeightFormat& f, int64_t n) {
  return n <= (f.n_planes == 1 ? 32 : 16) ? kMaxWarps : kMaxWarps / 2;
}

// Shared memory of a block: the slot table's copies, `extra` bytes for the kernel, a buffer per
// warp, and the reserve that a corrupt stream may read.
struct BlockLayout {
  int warps;
  int copies;  // 1, 2, 4, 8 or 16
  int scale_bits;
  int extra_bytes;   // multiple of 16
  int buffer_bytes;  // of one warp, a multiple of 16
  int reserve_bytes;

  CLLM_HD int table_bytes() const { return 4 * copies << scale_bits; }
  CLLM_HD int buffers_at() const { return table_bytes() + extra_bytes; }
  CLLM_HD int bytes() const { return buffers_at() + warps * buffer_bytes + reserve_bytes; }
};

struct LinearArgs {
  CodedView matrix;
  const void* x;  // [m, cols]
  int m;
  bool x_in_quads;     // rows of x begin at multiples of 16 bytes
  Dtype dtype;         // of x, bias and out
  const float* scale;  // [1] or [rows], or null
  bool scale_per_row;
  const void* bias;  // [rows] or null
  void* out;         // [m, rows]
  float* partial;    // [chunks, m, rows] if there are several chunks
  int chunks;        // of column tiles
  int tile_columns;  // of a chunk
  int tile_rows;     // whose sums have room in a block
  int x_bytes;       // of a block's x, a multiple of 16
  BlockLayout block;
  uint64_t* status;  // smallest number of a corrupt tile, or null
};

}  // namespace codecllm::cuda
