// Partial sums to outputs, always in the same order.
#pragma once
#include "store.cuh"
#include "tile.cuh"

namespace codecllm::cuda {

// Adds the sums of a block's column tiles. Buffer of warp (r, c): float [8 * blocks][16].
CLLM_DEVICE void add_chunk(const LinearArgs& a, int64_t base, const uint8_t* buffers) {
  const CodedView& m = a.matrix;
  const int64_t chunk = blockIdx.y, left = m.col_tiles - chunk * a.tile_columns;
  const int tiles = int(left < a.tile_columns ? left : a.tile_columns);
  const int each = a.m * kTileRows;
  int64_t out_row = 0;
  int rows = 0, known = -1;
  for (int i = threadIdx.x; i < a.tile_rows * each; i += blockDim.x) {
    const int r = i / each, n = i % each / kTileRows, row = i % kTileRows;
    const int64_t tile_row = base + r;
    if (tile_row >= m.tile_rows) return;
    if (known != r) rows = rows_of(m, tile_row, out_row), known = r;
    if (row >= rows) continue;
    float sum = 0;
    for (int c = 0; c < tiles; ++c)
      sum += ((const float*)(buffers + int64_t(r * a.tile_columns + c) *
                                           a.block.buffer_bytes))[n * kTileRows + row];
    if (a.chunks == 1)
      finish(a, n, out_row + row, sum);
    else
      a.partial[(chunk * a.m + n) * m.rows + out_row + row] = sum;
  }
}

}  // namespace codecllm::cuda
