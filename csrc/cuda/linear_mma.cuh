// decode_linear for small batches: a warp decodes a tile into the A fragments of mma.m16n8k16 and
// multiplies each group at once with x. Weights never leave the registers.
//
// A block takes a share of the tile rows and a chunk of `tile_columns` column tiles; its warps take
// the tiles in turn, and wait for each other only to add their sums. x of the chunk lies in shared
// memory in fragment order. Partial sums of several chunks (blockIdx.y) go to a workspace, and
// linear_reduce adds them. Every sum has a fixed order: results repeat bit by bit.
#pragma once
#include "combine.cuh"
#include "operand.cuh"

namespace codecllm::cuda {

// N: columns that x takes in the fragments, 1, 2, 4, 8, 16, 32 or 64. Below 8, lanes of columns
// that are not there repeat the last one; what they compute is never read.
template <int N>
constexpr int kBlocks = (N + 7) / 8;
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
__global__ void __launch_bounds__(32 * max_warps(F::fmt, N)) linear_mma(const LinearArgs a) {
  CLLM_SHARED_MEMORY(uint4, shared);
  const CodedView& m = a.matrix;
  uint32_t* table = (uint32_t*)shared;
  uint8_t* bytes = (uint8_t*)shared;
  uint8_t* x = bytes + a.block.table_bytes();
  float* slots_of_sums = (float*)(x + a.x_bytes);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const SharedAddress words =
      shared_address(bytes + a.block.buffers_at()) + warp * uint32_t(a.block.buffer_bytes);
  const int64_t first_tile = int64_t(blockIdx.y) * a.tile_columns;
  const int64_t left = m.col_tiles - first_tile;
  const int columns = int(left < a.tile_columns ? left : a.tile_columns);

  stage_x<N>(a, first_tile * m.tile_cols, x);
  // Lane (g, t) of a fragment holds column g of x; lanes beyond m repeat the last one.
  const SharedAddress my_x =
      shared_address(x) + 16 * (t * kColumns<N> + (g < kColumns<N> ? g : kColumns<N> - 1));

  // This block's share of the tile rows, cut where sums fill their room or the table changes.
  const int64_t end = m.tile_rows * (blockIdx.x + 1) / gridDim.x;
  int64_t loaded = -1, next;
  for (int64_t base = m.tile_rows * blockIdx.x / gridDim.x; base < end; base = next) {
    const int64_t segment = segment_of(m, kFirstTileRow, base);
    next = end_of_segment(m, segment, base, end - base < a.tile_rows ? end : base + a.tile_rows);
    if (segment != loaded) fill_table(m, int(segment), a.block, table), loaded = segment;
    __syncthreads();
    const SharedSlots slots = shared_slots(m, int(segment), a.block, table);
    const Segment<F> added(m.segment(segment));
    const int items = int(next - base) * columns;
#pragma unroll 1
    for (int i = warp; i < items; i += a.block.warps) {
      const int r = i / columns, c = i % columns;
      const SharedAddress tile_x = my_x + c * fragment_bytes<N>(m.tile_cols / kGroupCols);
      float sums[kBlocks<N>][4] = {};
      if (!with_tile(m, a.block, words, base + r, first_tile + c, segment,
                     [&](const DeviceTile& tile, auto begin, auto end) {
                       return multiply_tile<F, B16, N>(tile, slots, added, begin, end, tile_x,
                                                       sums);
                     })) {
        // Never a number that looks right.
        report_corrupt(a.status, (base + r) * m.col_tiles + first_tile + c);
#pragma unroll
        for (int b = 0; b < kBlocks<N>; ++b)
          sums[b][0] = sums[b][1] = sums[b][2] = sums[b][3] = float_from_bits(0x7fffffffu);
      }
      float* to = slots_of_sums + i * N * kTileRows;
#pragma unroll
      for (int b = 0; b < kBlocks<N>; ++b)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          if (const int n = 8 * b + 2 * t + (j & 1); n < N)
            to[n * kTileRows + g + 8 * (j >> 1)] = sums[b][j];
    }
    __syncthreads();
    add_chunk(a, base, int(next - base), columns, N, slots_of_sums);
    __syncthreads();
  }
}

}  // namespace codecllm::cuda
