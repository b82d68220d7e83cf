// decode_linear where no MMA multiplies exactly: float32 x or weights, bf16 weights with fp16 x and
// the reverse, predictor `left`, GPUs before sm_80. Correct and fused, not tuned.
//
// A block is one tile row and up to kFmaRows rows of x; its warps take the column tiles in turn.
#pragma once
#include "combine.cuh"

namespace codecllm::cuda {

constexpr int kFmaRows = 8, kFmaWarps = 8;

template <class F, bool Left>
__global__ void __launch_bounds__(32 * kFmaWarps) linear_fma(const LinearArgs a) {
  __shared__ float sums[kFmaWarps][kFmaRows][kTileRows];
  const CodedView& m = a.matrix;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const int n0 = blockIdx.y * kFmaRows, n_left = a.m - n0;
  const int n_count = n_left < kFmaRows ? n_left : kFmaRows;
  for (int64_t tile_row = blockIdx.x; tile_row < m.tile_rows; tile_row += gridDim.x) {
    float sum[kFmaRows][2] = {};
    for (int64_t col_tile = warp; col_tile < m.col_tiles; col_tile += kFmaWarps) {
      const DeviceTile tile = locate_tile(m, tile_row, col_tile, lane);
      bool good = tile.valid;
      if (good) {
        const int64_t first_col = col_tile * m.tile_cols;
        good = decode_tile<F, Left>(
            tile, global_slots(m, tile.segment), Segment<F>(m.segment(tile.segment)),
            global_words(tile, tile.start), global_words(tile, tile.end), lane,
            [&](int group, int, const uint32_t (&pairs)[kPairsPerGroup], const RawBits<F>& raw,
                int at) {
#pragma unroll
              for (int j = 0; j < kPairsPerGroup; ++j) {
                const uint32_t pair = pairs[j] ^ F::fmt.flip, low = raw.low(at + j);
                const float w0 = word_value<F>(pair & 0xffff, low & 0xffff);
                const float w1 = word_value<F>(pair >> 16, low >> 16);
                const int64_t col = first_col + kGroupCols * group + 2 * t + 8 * (j >> 1);
                for (int n = 0; n < n_count; ++n) {
                  const int64_t at_x = (n0 + n) * m.cols + col;
                  float s = sum[n][j & 1];
                  if (col < m.cols) s = fmaf(w0, load_as_float(a.x, at_x, a.dtype), s);
                  if (col + 1 < m.cols) s = fmaf(w1, load_as_float(a.x, at_x + 1, a.dtype), s);
                  sum[n][j & 1] = s;
                }
              }
            });
      }
      if (!__all_sync(~0u, good)) {
        report_corrupt(a.status, tile_row * m.col_tiles + col_tile);
        for (int n = 0; n < kFmaRows; ++n) sum[n][0] = sum[n][1] = float_from_bits(0x7fffffffu);
      }
    }
    for (int n = 0; n < kFmaRows; ++n) {
      for (int h = 0; h < 2; ++h) {
        float s = sum[n][h];
        s += __shfl_xor_sync(~0u, s, 1);
        s += __shfl_xor_sync(~0u, s, 2);
        if (t == 0) sums[warp][n][g + 8 * h] = s;
      }
    }
    __syncthreads();
    int64_t out_row;
    const int rows = rows_of(m, tile_row, out_row);
    for (int i = threadIdx.x; i < n_count * kTileRows; i += blockDim.x) {
      const int n = i / kTileRows, row = i % kTileRows;
      float total = 0;
      for (int w = 0; w < kFmaWarps; ++w) total += sums[w][n][row];
      if (row < rows) finish(a, n0 + n, out_row + row, total);
    }
    __syncthreads();
  }
}

}  // namespace codecllm::cuda
