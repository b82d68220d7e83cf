// decode_linear for small batches: a warp decodes a tile into the A fragments of mma.m16n8k16 and
// multiplies each group at once with x. Weights never leave the registers.
//
//           chunk 0              chunk 1       blockIdx.y; x of a chunk lies in shared memory
//           +------+------+------+------+---
//   block 0 | tile | tile | tile |      |      blockIdx.x; a share of the tile rows
//           |      |      |      |      |
//           +------+------+------+------+---
//   block 1 |      |      |      |      |      band: the tile rows of a share that have room for
//           |      |      |      |      |      their tiles' sums; warps take its tiles in turn
//
//   stage x
//   for each band of the block's share:
//     fill what warps have in common, if the segment is new                      | barrier
//     for each tile of the warp:
//       locate, stage, for each group: multiply; complete and keep the sums      | barrier
//     add the sums of each row over the chunk's tiles                            | barrier
//
// Partial sums of several chunks go to a workspace, and linear_reduce adds them. Every sum has a
// fixed order: results repeat bit by bit.
#pragma once
#include "combine.cuh"
#include "source.cuh"

namespace codecllm::cuda {

// M: rows that x takes in the fragments, 1, 2, 4, 8, 16, 32 or 64. Below 8, lanes of rows that are
// not there repeat the last one; what they compute is never read.
template <int M>
constexpr int kOctets = (M + 7) / 8;  // of rows of x: an MMA takes eight
template <int M>
constexpr int kOctetRows = M < 8 ? M : 8;

// Eight numbers of a row of x, zeros where it ends.
CLLM_DEVICE uint4 load_x(const LinearArgs& a, int x_row, int64_t col) {
  uint32_t v[4] = {};
  if (x_row < a.x_rows && col < a.matrix.cols) {
    const uint16_t* x = (const uint16_t*)a.x + x_row * a.matrix.cols + col;
    if (a.x_in_quads) return __ldg((const uint4*)x);
    const int64_t left = a.matrix.cols - col;
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (i < left) v[i / 2] |= uint32_t(__ldg(x + i)) << (16 * (i % 2));
  }
  return make_uint4(v[0], v[1], v[2], v[3]);
}

// x -> the fragments of the chunk's column tiles: for two groups at a time, every octet of rows of
// x, t and row, 16 bytes: columns 2t, 2t + 1, 2t + 8, 2t + 9 of the first group, then of the
// second. Zeros where x has no column or row. A warp takes a row in a tile.
template <class S, class B16, int M>
CLLM_DEVICE void stage_x(const LinearArgs& a, int64_t first_col, uint8_t* to) {
  constexpr int rows = kOctetRows<M>;
  const int tile_cols = a.matrix.tile_cols, lane = threadIdx.x & 31;
  for (int item = threadIdx.x >> 5; item < a.chunk_tiles * M; item += blockDim.x >> 5) {
    const int tile = item / M, x_row = item % M;
    const int64_t col = first_col + int64_t(tile) * tile_cols;
    uint8_t* fragments =
        to + tile * fragment_bytes(M, tile_cols) + 16 * (x_row / rows * 4 * rows + x_row % rows);
#pragma unroll 2
    for (int eight = lane; eight < tile_cols / 8; eight += kLanes) {
      const uint4 v = load_x(a, x_row, col + 8 * eight);
      const int group = eight / 2, half = eight % 2;
      uint8_t* t0 = fragments + group / 2 * 64 * M + group % 2 * 8 + half * 4;
      *(uint32_t*)t0 = S::template scale_x<B16>(v.x);
      *(uint32_t*)(t0 + 16 * rows) = S::template scale_x<B16>(v.y);
      *(uint32_t*)(t0 + 32 * rows) = S::template scale_x<B16>(v.z);
      *(uint32_t*)(t0 + 48 * rows) = S::template scale_x<B16>(v.w);
    }
  }
}

// Sums of a tile as MMAs leave them: lane (g, t) has rows g and g + 8 of the tile, for rows 2t and
// 2t + 1 of every octet.
template <int M>
using TileSums = float[kOctets<M>][4];

// The main loop. `x`: this lane's fragments of the tile's columns.
template <class B16, int M, class Reader>
CLLM_DEVICE bool multiply_tile(const Reader& reader, SharedAddress x, TileSums<M>& sums) {
  uint4 two[kOctets<M>];  // fragments of two groups
  return reader.each_group([&](const auto& group) {
    uint32_t a[kPairsPerGroup];
    group.template fragment<B16>(a);
#pragma unroll
    for (int octet = 0; octet < kOctets<M>; ++octet) {
      if (!group.odd) two[octet] = load_shared128(x + 512 * octet);
      const uint2 one = group.odd ? make_uint2(two[octet].z, two[octet].w)
                                  : make_uint2(two[octet].x, two[octet].y);
      mma_m16n8k16<B16>(sums[octet], a, one);
    }
    if (group.odd) x += 64 * M;
  });
}

// Sums as they are meant, with the weights that stood beside the groups; whether all of these lay
// inside of the tile.
template <class S, int M>
CLLM_DEVICE bool complete_sums(const LinearArgs& a, const typename S::Common& common,
                               const typename S::Tile& tile, int64_t first_col, TileSums<M>& sums) {
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int octet = 0; octet < kOctets<M>; ++octet)
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[octet][i] = S::unscale(common, sums[octet][i]);
  return S::each_apart(a.matrix, tile, [&](int row, int col, uint32_t word) {
    const float weight = word_value<typename S::Format>(word);
#pragma unroll
    for (int octet = 0; octet < kOctets<M>; ++octet)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int x_row = 8 * octet + 2 * t + (i & 1);
        if (row != g + 8 * (i >> 1) || x_row >= a.x_rows) continue;
        const float x = load_float(a.x, a.dtype, x_row * a.matrix.cols + first_col + col);
        sums[octet][i] = fmaf(weight, x, sums[octet][i]);
      }
  });
}

// Never a number that looks right.
template <int M>
CLLM_DEVICE void poison_sums(TileSums<M>& sums) {
#pragma unroll
  for (int octet = 0; octet < kOctets<M>; ++octet)
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[octet][i] = float_from_bits(0x7fffffffu);
}

// to: float [M][16], the rows of the tile next to each other.
template <int M>
CLLM_DEVICE void keep_sums(const TileSums<M>& sums, float* to) {
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int octet = 0; octet < kOctets<M>; ++octet)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (const int x_row = 8 * octet + 2 * t + (i & 1); x_row < M)
        to[x_row * kTileRows + g + 8 * (i >> 1)] = sums[octet][i];
}

// A block's shared memory, in this order, and the column tiles of its chunk.
template <int M>
struct MmaBlock {
  uint4* common;  // the source's
  uint8_t* x;
  float* sums;
  SharedAddress words;  // this warp's buffer
  SharedAddress my_x;   // this lane's first fragment
  int64_t first_tile;
  int tiles;

  CLLM_DEVICE MmaBlock(const LinearArgs& a, uint4* memory) : common(memory) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    uint8_t* bytes = (uint8_t*)memory;
    x = bytes + a.block.common_bytes;
    sums = (float*)(x + a.x_bytes);
    words = shared_address(bytes + a.block.warps_at()) + warp * uint32_t(a.block.warp_bytes);
    // Lane (g, t) of a fragment holds row g of x; lanes beyond x repeat the last one.
    my_x =
        shared_address(x) + 16 * (t * kOctetRows<M> + (g < kOctetRows<M> ? g : kOctetRows<M> - 1));
    first_tile = int64_t(blockIdx.y) * a.chunk_tiles;
    const int64_t left = a.matrix.col_tiles - first_tile;
    tiles = int(left < a.chunk_tiles ? left : a.chunk_tiles);
  }
};

template <class S, class B16, int M>
__global__ void __launch_bounds__(32 * S::max_warps(M)) linear_mma(const LinearArgs a) {
  CLLM_SHARED_MEMORY(uint4, memory);
  const CodedView& matrix = a.matrix;
  const MmaBlock<M> block(a, memory);
  stage_x<S, B16, M>(a, block.first_tile * matrix.tile_cols, block.x);
  for (Cuts band(matrix, matrix.tile_rows, 1, a.band_rows); band.more(); band.next()) {
    if (band.new_segment()) S::fill(matrix, band.segment, a.block, block.common);
    __syncthreads();
    const typename S::Common common = S::common(matrix, band.segment, a.block, block.common);
    const int rows = int(band.last - band.first), items = rows * block.tiles;
#pragma unroll 1
    for (int i = threadIdx.x >> 5; i < items; i += a.block.warps) {
      const int r = i / block.tiles, c = i % block.tiles;
      const TilePlace place = {band.first + r, block.first_tile + c, band.segment};
      const SharedAddress x = block.my_x + c * fragment_bytes(M, matrix.tile_cols);
      TileSums<M> sums = {};
      if (!with_tile<S>(matrix, a.block, common, block.words, place,
                        [&](const typename S::Tile& tile, const auto& reader) {
                          const bool good = multiply_tile<B16, M>(reader, x, sums);
                          const int64_t first_col = place.col_tile * matrix.tile_cols;
                          return complete_sums<S, M>(a, common, tile, first_col, sums) && good;
                        })) {
        report_corrupt(a.status, place.tile_row * matrix.col_tiles + place.col_tile);
        poison_sums<M>(sums);
      }
      keep_sums<M>(sums, block.sums + i * M * kTileRows);
    }
    __syncthreads();
    add_chunk(a, band.first, rows, block.tiles, M, block.sums);
    __syncthreads();
  }
}

}  // namespace codecllm::cuda
