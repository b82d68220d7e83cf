// Partial sums to outputs, always in the same order.
#pragma once
#include "segments.cuh"
#include "store.cuh"

namespace codecllm::cuda {

// Adds the sums of a chunk's column tiles for `band_rows` tile rows from `first_row` on.
// sums: float [band_rows][tiles][padded_rows][16].
CLLM_DEVICE void add_chunk(const LinearArgs& a, int64_t first_row, int band_rows, int tiles,
                           int padded_rows, const float* sums) {
  const CodedView& matrix = a.matrix;
  const int each = a.x_rows * kTileRows;
  int64_t out_row = 0;
  int inside = 0, known = -1;
  for (int i = threadIdx.x; i < band_rows * each; i += blockDim.x) {
    const int r = i / each, x_row = i % each / kTileRows, row = i % kTileRows;
    if (known != r) {
      inside = rows_of(matrix, first_row + r, out_row);
      known = r;
    }
    if (row >= inside) continue;
    float sum = 0;
    for (int c = 0; c < tiles; ++c)
      sum += sums[((r * tiles + c) * padded_rows + x_row) * kTileRows + row];
    if (a.chunks == 1)
      finish(a, x_row, out_row + row, sum);
    else
      a.partial[(int64_t(blockIdx.y) * a.x_rows + x_row) * matrix.rows + out_row + row] = sum;
  }
}

}  // namespace codecllm::cuda
