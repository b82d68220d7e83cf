// The conversion to `fixed`: a warp takes a tile of the source, a lane packs the four pair
// registers of a group into three containers.
//
//   for each cut of the block's share, where the segment changes:
//     fill what warps have in common, if the segment is new                   | barrier
//     for each tile of the warp: locate, stage, for each group:
//       first pass: store the containers, count the words without a code
//       second pass: store these words to the list                            | barrier
//
// Columns of both are cut at multiples of 16, and tile rows are the same: a group of the source is
// a group of the target.
#pragma once
#include "../source.cuh"
#include "bits.cuh"
#include "to_fixed.h"

namespace codecllm::cuda {

// What a warp knows while it walks over a tile of the source.
template <bool List>
class ToFixedTile {
 public:
  CLLM_DEVICE ToFixedTile(const ToFixedArgs& a, int64_t tile_row, int64_t first_col, int rows,
                          uint32_t base)
      : a(a), tile_row(tile_row), col(first_col), rows(rows), base(base) {}

  template <class Group>
  CLLM_DEVICE void take(const Group& group) {
    if (left == 0) begin_piece();
    uint32_t bits[kPairsPerGroup] = {}, apart = 0;  // bit: column, 16 higher in rows from 8 on
#pragma unroll
    for (int j = 0; j < kPairsPerGroup; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int in_group = pair_col(lane, j) + half;
        uint32_t word = group.words(j) >> 16 * half & 0xffff, placed;
        if (pair_row(lane, j) >= rows || col + in_group >= a.target.cols) word = 0;
        if (!bits_of_word(word, base, placed)) apart |= 1u << (in_group + 16 * (j & 1));
        bits[j] |= placed << 16 * half;
      }
    }
    if constexpr (!List) store(bits);
    if (any_lane(apart != 0)) {
      // Of the quad of lanes that has these two rows.
      uint32_t all = apart | __shfl_xor_sync(~0u, apart, 1);
      all |= __shfl_xor_sync(~0u, all, 2);
      if constexpr (List) list(group, apart, all);
      at[0] += count_ones(all & 0xffff);
      at[1] += count_ones(all >> 16);
    }
    col += kGroupCols;
    ++in_tile;
    if (--left == 0) end_piece();
  }
  // The last tile of a row may end within a piece.
  CLLM_DEVICE void end() {
    if (left != 0) end_piece();
  }

 private:
  const ToFixedArgs& a;
  const int64_t tile_row;
  int64_t col;  // the group's first, of the matrix
  const int rows;
  const uint32_t base;
  const int lane = int(threadIdx.x & 31);
  int64_t tile = 0, row_counts = 0;  // of the target: the tile, where its row g is counted
  int in_tile = 0;                   // number of the group there
  int left = 0;                      // groups of the piece
  // Rows g and g + 8 of the piece: the words without a code so far, or where the next one goes.
  int64_t at[2] = {};

  CLLM_DEVICE int64_t counted(int half) const {
    return row_counts + half * int64_t(8) * a.pieces();
  }
  CLLM_DEVICE void begin_piece() {
    const int64_t col_tile = col / a.target.tile_cols;
    const int first = int(col % a.target.tile_cols);
    tile = tile_row * a.target.col_tiles + col_tile;
    in_tile = first / kGroupCols;
    left = a.piece_cols / kGroupCols;
    row_counts = (tile * kTileRows + lane / 4) * a.pieces() + first / a.piece_cols;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t before = counted(half);
      at[half] = List && before ? __ldg(a.sums + before - 1) : 0;
    }
  }
  CLLM_DEVICE void end_piece() {
    left = 0;
    if constexpr (!List)
      if (lane % 4 == 0)
        for (int half = 0; half < 2; ++half) a.counts[counted(half)] = int32_t(at[half]);
  }
  CLLM_DEVICE void store(const uint32_t (&bits)[kPairsPerGroup]) const {
    uint32_t containers[kFixedContainers];
    pack_pairs(bits, containers);
    const int64_t col_tile = tile - tile_row * a.target.col_tiles;
    uint32_t* plane = (uint32_t*)(a.plane + a.target.plane_at(tile_row, col_tile));
    const int count = kFixedContainers * a.target.groups(col_tile);
#pragma unroll
    for (int i = 0; i < kFixedContainers; ++i)
      plane[container_at(kFixedContainers * in_tile + i, lane, count)] = containers[i];
  }
  // `apart`: this lane's; `all`: those of its two rows, in the order of the list.
  template <class Group>
  CLLM_DEVICE void list(const Group& group, uint32_t apart, uint32_t all) const {
#pragma unroll
    for (int j = 0; j < kPairsPerGroup; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int in_group = pair_col(lane, j) + half, shift = 16 * (j & 1);
        if (!(apart >> (in_group + shift) & 1)) continue;
        const int64_t place =
            at[j & 1] + count_ones(all >> shift & 0xffff & ((1u << in_group) - 1));
        // A source that changes between the passes must not write beside the list.
        if (place < a.listed)
          a.list[place] = list_entry(pair_row(lane, j), kGroupCols * in_tile + in_group,
                                     group.words(j) >> 16 * half & 0xffff);
      }
    }
  }
};

template <class S, bool List>
__global__ void __launch_bounds__(32 * kMaxWarps) to_fixed(const ToFixedArgs a) {
  CLLM_SHARED_MEMORY(uint4, memory);
  const CodedView& source = a.source;
  const int warp = threadIdx.x >> 5;
  const SharedAddress words =
      shared_address((uint8_t*)memory + a.block.warps_at()) + warp * uint32_t(a.block.warp_bytes);
  const int64_t tiles = source.tile_rows * source.col_tiles;
  for (Cuts cut(source, tiles, source.col_tiles, tiles); cut.more(); cut.next()) {
    if (cut.new_segment()) S::fill(source, cut.segment, a.block, memory);
    __syncthreads();
    const typename S::Common common = S::common(source, cut.segment, a.block, memory);
    const uint32_t base = uint32_t(__ldg(a.bases + cut.segment));
    for (int64_t number = cut.first + warp; number < cut.last; number += a.block.warps) {
      const int64_t row = number / source.col_tiles, col = number % source.col_tiles;
      if (!with_tile<S>(source, a.block, common, words, {row, col, cut.segment},
                        [&](const typename S::Tile& tile, const auto& reader) {
                          ToFixedTile<List> to(a, row, col * source.tile_cols, tile.rows, base);
                          const bool good =
                              reader.each_group([&](const auto& group) { to.take(group); });
                          to.end();
                          return good;
                        }))
        report_corrupt(a.status, number);
    }
    __syncthreads();  // nobody reads what is common any more
  }
  if constexpr (List) {
    const int64_t each = a.count() / a.tiles();
    for (int64_t tile = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; tile < a.tiles();
         tile += int64_t(gridDim.x) * blockDim.x)
      a.ends[tile] = int32_t(__ldg(a.sums + (tile + 1) * each - 1));
  }
}

}  // namespace codecllm::cuda
