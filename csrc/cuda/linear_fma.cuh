// decode_linear where no MMA multiplies exactly: float32 x or weights, bf16 weights with fp16 x and
// the reverse, predictor `left`, GPUs before sm_80. Correct and fused, not tuned.
//
//   for each tile row of the block:              (blockIdx.x; up to kFmaRows rows of x: blockIdx.y)
//     for each tile of the warp:
//       locate, for each group: multiply-add each pair with each row of x
//     add the sums of a row's four lanes, then those of the warps         | barriers around it
#pragma once
#include "source.cuh"
#include "store.cuh"

namespace codecllm::cuda {

// Of a lane, for rows g and g + 8 of the tile.
using FmaSums = float[kFmaRows][2];

// A weight times its column of x.
CLLM_DEVICE void multiply_one(const LinearArgs& a, float weight, int64_t col, int first_row,
                              int x_rows, int half, FmaSums& sums) {
  const CodedView& matrix = a.matrix;
  if (col >= matrix.cols) return;
  for (int i = 0; i < x_rows; ++i) {
    const float x = load_float(a.x, a.dtype, (first_row + i) * matrix.cols + col);
    sums[i][half] = fmaf(weight, x, sums[i][half]);
  }
}

// The main loop: pair j of a lane times columns col and col + 1 of x.
template <class S>
CLLM_DEVICE bool multiply_tile(const LinearArgs& a, const typename S::Tile& tile, int64_t col_tile,
                               int first_row, int x_rows, FmaSums& sums) {
  using F = typename S::Format;
  const int lane = threadIdx.x & 31;
  const int64_t first_col = col_tile * a.matrix.tile_cols;
  const bool good = S::alone(a.matrix, tile, lane, [&](const auto& group) {
#pragma unroll
    for (int j = 0; j < kPairsPerGroup; ++j) {
      const uint32_t pair = group.words(j), low = group.low(j);
      const int64_t col = first_col + kGroupCols * group.number + pair_col(lane, j);
      const float w0 = word_value<F>(pair & 0xffff, low & 0xffff);
      const float w1 = word_value<F>(pair >> 16, low >> 16);
      multiply_one(a, w0, col, first_row, x_rows, j & 1, sums);
      multiply_one(a, w1, col + 1, first_row, x_rows, j & 1, sums);
    }
  });
  const bool all = S::each_apart(a.matrix, tile, [&](int row, int col, uint32_t word) {
    if (lane == lane_of(row, col))
      multiply_one(a, word_value<F>(word), first_col + col, first_row, x_rows, row / 8, sums);
  });
  return good && all;
}

template <class S>
__global__ void __launch_bounds__(32 * kFmaWarps) linear_fma(const LinearArgs a) {
  __shared__ float kept[kFmaWarps][kFmaRows][kTileRows];
  const CodedView& matrix = a.matrix;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const int first_row = blockIdx.y * kFmaRows, left = a.x_rows - first_row;
  const int x_rows = left < kFmaRows ? left : kFmaRows;
  for (int64_t tile_row = blockIdx.x; tile_row < matrix.tile_rows; tile_row += gridDim.x) {
    FmaSums sums = {};
    for (int64_t col_tile = warp; col_tile < matrix.col_tiles; col_tile += kFmaWarps) {
      const typename S::Tile tile = S::locate(matrix, tile_row, col_tile, lane);
      const bool good = tile.valid && multiply_tile<S>(a, tile, col_tile, first_row, x_rows, sums);
      if (!__all_sync(~0u, good)) {
        report_corrupt(a.status, tile_row * matrix.col_tiles + col_tile);
        for (auto& sum : sums) sum[0] = sum[1] = float_from_bits(0x7fffffffu);
      }
    }
    for (int i = 0; i < kFmaRows; ++i) {
      for (int half = 0; half < 2; ++half) {
        float sum = sums[i][half];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if (t == 0) kept[warp][i][g + 8 * half] = sum;
      }
    }
    __syncthreads();
    int64_t out_row;
    const int rows = rows_of(matrix, tile_row, out_row);
    for (int item = threadIdx.x; item < x_rows * kTileRows; item += blockDim.x) {
      const int i = item / kTileRows, row = item % kTileRows;
      float total = 0;
      for (int w = 0; w < kFmaWarps; ++w) total += kept[w][i][row];
      if (row < rows) finish(a, first_row + i, out_row + row, total);
    }
    __syncthreads();
  }
}

}  // namespace codecllm::cuda
