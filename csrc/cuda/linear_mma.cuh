// decode_linear for small batches: a warp decodes a tile into the A fragments of mma.m16n8k16 and
// multiplies each group at once with x. Weights never leave the registers.
//
// A block is `tile_rows` x `tile_columns` warps: warp (r, c) takes tile row base + r and column
// tile c of the block's chunk of columns. Its x lies in shared memory in fragment order. The
// partial sums of a tile row meet in shared memory; those of several chunks (blockIdx.y) in a
// workspace, and linear_reduce adds them. Every sum has a fixed order: results repeat bit by bit.
#pragma once
#include "combine.cuh"
#include "operand.cuh"

namespace codecllm::cuda {

// N: columns that x takes in the fragments, 1, 2, 4, 8, 16, 32 or 64. Below 8, lanes of columns
// that are not there repeat the last one; what they compute is never read.
template <int N>
constexpr int kBlocks = (N + 7) / 8;
// Two if 80 registers are enough for the sums and the raw bits.
template <class F, int N>
constexpr int kBlocksPerProcessor = N <= (F::fmt.n_planes == 1 ? 32 : 16) ? 2 : 1;
template <int N>
constexpr int kColumns = N < 8 ? N : 8;  // of a block

// The fragments of a column tile: for two groups at a time, every block of 8 rows of x, t and row,
// 16 bytes: columns 2t, 2t + 1, 2t + 8, 2t + 9 of the first group, then of the second. Zeros where
// x has no column or row.
template <int N>
CLLM_HD constexpr int fragment_bytes(int tile_groups) {
  return (tile_groups + 1) / 2 * 64 * N;
}

// Eight numbers of a row of x, zeros where it ends.
CLLM_DEVICE uint4 load_x(const LinearArgs& a, int row, int64_t col) {
  uint32_t v[4] = {};
  if (row < a.m && col < a.matrix.cols) {
    const uint16_t* x = (const uint16_t*)a.x + row * a.matrix.cols + col;
    if (a.x_in_quads) return __ldg((const uint4*)x);
    const int64_t left = a.matrix.cols - col;
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (i < left) v[i / 2] |= uint32_t(__ldg(x + i)) << (16 * (i % 2));
  }
  return make_uint4(v[0], v[1], v[2], v[3]);
}

// x [m, cols] -> the fragments of the block's column tiles. A warp takes a row in a tile.
template <int N>
CLLM_DEVICE void stage_x(const LinearArgs& a, int64_t first_col, uint8_t* to) {
  constexpr int columns = kColumns<N>;
  const int tile_cols = a.matrix.tile_cols, lane = threadIdx.x & 31;
  for (int item = threadIdx.x >> 5; item < a.tile_columns * N; item += blockDim.x >> 5) {
    const int tile = item / N, row = item % N;
    const int64_t col = first_col + int64_t(tile) * tile_cols;
    uint8_t* fragments = to + tile * fragment_bytes<N>(tile_cols / kGroupCols) +
                         16 * (row / columns * 4 * columns + row % columns);
#pragma unroll 2
    for (int eight = lane; eight < tile_cols / 8; eight += kLanes) {
      const uint4 v = load_x(a, row, col + 8 * eight);
      const int group = eight / 2, half = eight % 2;
      uint8_t* t0 = fragments + group / 2 * 64 * N + group % 2 * 8 + half * 4;
      *(uint32_t*)t0 = v.x, *(uint32_t*)(t0 + 16 * columns) = v.y;
      *(uint32_t*)(t0 + 32 * columns) = v.z, *(uint32_t*)(t0 + 48 * columns) = v.w;
    }
  }
}

template <class F, class B16, int N, class Words>
CLLM_DEVICE bool multiply_tile(const DeviceTile& tile, const SharedSlots& slots,
                               const Segment<F>& segment, Words begin, Words end, SharedAddress x,
                               float (&sums)[kBlocks<N>][4]) {
  uint4 two[kBlocks<N>];  // fragments of two groups
  return decode_tile<F, false>(
      tile, slots, segment, begin, end, threadIdx.x & 31,
      [&](int, int parity, const uint32_t (&pairs)[kPairsPerGroup], const RawBits<F>&, int) {
        uint32_t a[kPairsPerGroup], found = 0;
#pragma unroll
        for (int j = 0; j < kPairsPerGroup; ++j) {
          a[j] = to_operand<F, B16>(pairs[j]);
          if constexpr (kFixSpecials<F, B16>) found |= specials<F>(pairs[j]);
        }
        if constexpr (kFixSpecials<F, B16>) {
          if (found) {
#pragma unroll
            for (int j = 0; j < kPairsPerGroup; ++j) a[j] = fix_specials<F, B16>(pairs[j], a[j]);
          }
        }
#pragma unroll
        for (int b = 0; b < kBlocks<N>; ++b) {
          if (parity == 0) two[b] = load_shared128(x + 512 * b);
          mma_m16n8k16<B16>(
              sums[b], a, parity ? make_uint2(two[b].z, two[b].w) : make_uint2(two[b].x, two[b].y));
        }
        if (parity) x += 64 * N;
      });
}

template <class F, class B16, int N>
__global__ void __launch_bounds__(32 * kMaxWarps, kBlocksPerProcessor<F, N>)
    linear_mma(const LinearArgs a) {
  CLLM_SHARED_MEMORY(uint4, shared);
  __shared__ int wanted[kMaxWarps];
  const CodedView& m = a.matrix;
  uint32_t* table = (uint32_t*)shared;
  uint8_t* bytes = (uint8_t*)shared;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int r = warp / a.tile_columns, c = warp % a.tile_columns;
  const int chunk = blockIdx.y * a.tile_columns;
  const int64_t col_tile = chunk + c;
  constexpr int blocks = kBlocks<N>, columns = kColumns<N>;
  uint8_t* x = bytes + a.block.table_bytes();
  uint8_t* buffer = bytes + a.block.buffers_at() + warp * a.block.buffer_bytes;
  const SharedAddress words = shared_address(buffer);

  stage_x<N>(a, int64_t(chunk) * m.tile_cols, x);
  // Lane (g, t) of a fragment holds column g of x; lanes beyond m repeat the last one.
  const int g = lane >> 2, column = g < columns ? g : columns - 1;
  const SharedAddress my_x = shared_address(x) + c * fragment_bytes<N>(m.tile_cols / kGroupCols) +
                             16 * ((lane & 3) * columns + column);

  int loaded = -1;
  for (int64_t base = int64_t(blockIdx.x) * a.tile_rows; base < m.tile_rows;
       base += int64_t(gridDim.x) * a.tile_rows) {
    const int64_t tile_row = base + r;
    const bool mine = tile_row < m.tile_rows && col_tile < m.col_tiles;
    DeviceTile tile;
    bool good = true, staged = false;
    if (mine) {
      tile = locate_tile(m, tile_row, col_tile, lane);
      good = tile.valid;
      staged = good && fits_buffer(tile, a.block);
      if (staged) stage_words(tile, words);
    }
    float sums[blocks][4] = {};
    with_table(m, a.block, table, wanted, loaded, mine && good ? tile.segment : -1, [&] {
      const SharedSlots slots = shared_slots(m, tile.segment, a.block, table);
      const Segment<F> segment(m.segment(tile.segment));
      if (staged) {
        wait_for_copies();
        __syncwarp();
        good = multiply_tile<F, B16, N>(tile, slots, segment, SharedWords{words + 2 * tile.start},
                                        SharedWords{words + 2 * tile.end}, my_x, sums);
      } else {  // more words than planned for
        good = multiply_tile<F, B16, N>(tile, slots, segment, global_words(tile, tile.start),
                                        global_words(tile, tile.end), my_x, sums);
      }
    });
    if (mine && !__all_sync(~0u, good)) {
      // Never a number that looks right.
      report_corrupt(a.status, tile_row * m.col_tiles + col_tile);
#pragma unroll
      for (int b = 0; b < blocks; ++b)
        sums[b][0] = sums[b][1] = sums[b][2] = sums[b][3] = float_from_bits(0x7fffffffu);
    }
    if (col_tile < m.col_tiles) {
      float* to = (float*)buffer;
#pragma unroll
      for (int b = 0; b < blocks; ++b)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          to[(8 * b + 2 * (lane & 3) + (i & 1)) * kTileRows + g + 8 * (i >> 1)] = sums[b][i];
    }
    __syncthreads();
    add_chunk(a, base, bytes + a.block.buffers_at());
    __syncthreads();
  }
}

}  // namespace codecllm::cuda
