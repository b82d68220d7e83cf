// Partial sums to outputs, always in the same order.
#pragma once
#include "store.cuh"
#include "tile.cuh"

namespace codecllm::cuda {

// Adds the sums of a chunk's column tiles for `rows` tile rows from `base` on.
// sums: float [rows][columns][n_columns][16].
CLLM_DEVICE void add_chunk(const LinearArgs& a, int64_t base, int rows, int columns, int n_columns,
                           const float* sums) {
  const CodedView& m = a.matrix;
  const int each = a.m * kTileRows;
  int64_t out_row = 0;
  int inside = 0, known = -1;
  for (int i = threadIdx.x; i < rows * each; i += blockDim.x) {
    const int r = i / each, n = i % each / kTileRows, row = i % kTileRows;
    if (known != r) inside = rows_of(m, base + r, out_row), known = r;
    if (row >= inside) continue;
    float sum = 0;
    for (int c = 0; c < columns; ++c)
      sum += sums[((r * columns + c) * n_columns + n) * kTileRows + row];
    if (a.chunks == 1)
      finish(a, n, out_row + row, sum);
    else
      a.partial[(int64_t(blockIdx.y) * a.m + n) * m.rows + out_row + row] = sum;
  }
}

}  // namespace codecllm::cuda
