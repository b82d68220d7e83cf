// Dense words from coded ones: whole matrices, and single rows.
#pragma once
#include "decode.h"
#include "tile.cuh"

namespace codecllm::cuda {

// Two words of a row, as the matrix stores them; `words` of them are inside.
template <class F>
CLLM_DEVICE void store_pair(uint8_t* to, uint32_t pair, uint32_t low, int words, bool aligned) {
  constexpr int bytes = F::fmt.word_bytes();
  uint32_t first = pair & 0xffff, second = pair >> 16;
  if constexpr (bytes == 4) first = first << 16 | (low & 0xffff), second = second << 16 | low >> 16;
  if (aligned && words >= 2) {
    if constexpr (bytes == 1) *(uint16_t*)to = uint16_t(first | second << 8);
    if constexpr (bytes == 2) *(uint32_t*)to = pair;
    if constexpr (bytes == 4) *(uint2*)to = make_uint2(first, second);
    return;
  }
  for (int i = 0; i < 2; ++i) {
    if (i >= words) continue;
    const uint32_t word = i ? second : first;
    if constexpr (bytes == 1) to[i] = uint8_t(word);
    if constexpr (bytes == 2) ((uint16_t*)to)[i] = uint16_t(word);
    if constexpr (bytes == 4) ((uint32_t*)to)[i] = word;
  }
}

// Whole: no row or column of the tile is outside of the matrix, and pairs lie where they can be
// stored at once. The checks would be a fifth of the loop.
template <class F, bool Left, bool Whole, class Words>
CLLM_DEVICE bool write_tile(const DecodeArgs& a, const DeviceTile& tile, int64_t col_tile,
                            const SharedSlots& slots, Words begin, Words end) {
  constexpr int bytes = F::fmt.word_bytes();
  const CodedView& m = a.matrix;
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const bool aligned = Whole || m.cols % 2 == 0;
  const int64_t first_col = col_tile * m.tile_cols + 2 * t;
  const int64_t columns = m.cols - first_col < m.tile_cols ? m.cols - first_col : m.tile_cols;
  uint8_t* upper = a.out + ((tile.out_row + g) * m.cols + first_col) * bytes;
  uint8_t* lower = upper + 8 * m.cols * bytes;
  int left[2] = {g < tile.rows ? int(columns) : 0, g + 8 < tile.rows ? int(columns) : 0};
  return decode_tile<F, Left>(
      tile, slots, Segment<F>(m.segment(tile.segment)), begin, end, lane,
      [&](int, int, const uint32_t (&pairs)[kPairsPerGroup], const RawBits<F>& raw, int at) {
#pragma unroll
        for (int j = 0; j < kPairsPerGroup; ++j)
          store_pair<F>((j & 1 ? lower : upper) + (j >> 1) * 8 * bytes, pairs[j] ^ F::fmt.flip,
                        raw.low(at + j), Whole ? 2 : left[j & 1] - 8 * (j >> 1), aligned);
        upper += kGroupCols * bytes, lower += kGroupCols * bytes;
        left[0] -= kGroupCols, left[1] -= kGroupCols;
      });
}

// All ones, a NaN in every float format: what a corrupt tile decodes to. Columns of one tile.
CLLM_DEVICE void poison(const DecodeArgs& a, int bytes, int64_t row, int64_t rows, int64_t col_tile,
                        int thread, int threads) {
  const CodedView& m = a.matrix;
  const int64_t first = col_tile * m.tile_cols, left = m.cols - first;
  const int64_t width = (left < m.tile_cols ? left : m.tile_cols) * bytes;
  for (int64_t i = thread; i < rows * width; i += threads)
    a.out[((row + i / width) * m.cols + first) * bytes + i % width] = 0xff;
}

template <class F, bool Left>
__global__ void __launch_bounds__(32 * kMaxWarps) decode_matrix(const DecodeArgs a) {
  CLLM_SHARED_MEMORY(uint4, shared);
  const CodedView& m = a.matrix;
  uint32_t* table = (uint32_t*)shared;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const SharedAddress words = shared_address((uint8_t*)shared + a.block.buffers_at()) +
                              warp * uint32_t(a.block.buffer_bytes);
  // This block's share of the tiles, cut where the table changes.
  const int64_t tiles = m.tile_rows * m.col_tiles, end = tiles * (blockIdx.x + 1) / gridDim.x;
  int64_t loaded = -1, next;
  for (int64_t base = tiles * blockIdx.x / gridDim.x; base < end; base = next) {
    const int64_t row = base / m.col_tiles, segment = segment_of(m, kFirstTileRow, row);
    next = end_of_segment(m, segment, row, m.tile_rows) * m.col_tiles;
    next = next < end ? next : end;
    if (segment != loaded) fill_table(m, int(segment), a.block, table), loaded = segment;
    __syncthreads();
    const SharedSlots slots = shared_slots(m, int(segment), a.block, table);
    for (int64_t number = base + warp; number < next; number += a.block.warps) {
      const int64_t tile_row = number / m.col_tiles, col_tile = number % m.col_tiles;
      const bool inside = m.cols % 2 == 0 && (col_tile + 1) * m.tile_cols <= m.cols;
      if (!with_tile(m, a.block, words, tile_row, col_tile, segment,
                     [&](const DeviceTile& tile, auto begin, auto end) {
                       constexpr bool staged = decltype(begin)::kPipelined;
                       if (staged && inside && tile.rows == kTileRows)
                         return write_tile<F, Left, staged>(a, tile, col_tile, slots, begin, end);
                       return write_tile<F, Left, false>(a, tile, col_tile, slots, begin, end);
                     })) {
        report_corrupt(a.status, number);
        int64_t out_row;
        const int rows = rows_of(m, tile_row, out_row);
        poison(a, F::fmt.word_bytes(), out_row, rows, col_tile, lane, kLanes);
      }
    }
    __syncthreads();  // nobody reads the table any more
  }
}

// Single rows: a row of a tile belongs to four lanes, so a warp decodes eight of them at once, all
// of the same column tile. Reads what it needs and nothing more: 1/8 of each tile's words.
template <class F, bool Left>
__global__ void __launch_bounds__(128) decode_rows(const DecodeArgs a) {
  constexpr int bytes = F::fmt.word_bytes();
  const CodedView& m = a.matrix;
  const int t = threadIdx.x & 3, quad = threadIdx.x >> 2 & 7, warp = threadIdx.x >> 5;
  // Warps take eight ids of one column tile each.
  const int64_t eights = (a.ids_count + 7) / 8, step = int64_t(gridDim.x) * (blockDim.x >> 5);
  for (int64_t work = int64_t(blockIdx.x) * (blockDim.x >> 5) + warp; work < eights * m.col_tiles;
       work += step) {
    const int64_t first = work / m.col_tiles * 8, col_tile = work % m.col_tiles;
    const int64_t i = first + quad;
    const bool mine = i < a.ids_count;
    const int64_t id = mine ? a.ids[i] : 0;
    const bool inside = id >= 0 && id < m.rows;
    const int64_t row = inside ? id : 0;
    const int64_t number = segment_of(m, kFirstRow, row);
    const uint32_t* header = m.segment(number);
    int64_t local = row - __ldg(header + kFirstRow);
    int64_t tile_row = __ldg(header + kFirstTileRow) + local / kTileRows;
    // Whatever the table says.
    const bool there = local >= 0 && local < __ldg(header + kRows) && tile_row < m.tile_rows;
    if (!there) local = tile_row = 0;
    const int in_tile = int(local % kTileRows), lane = in_tile % 8 * 4 + t;
    // A record is read by a whole warp: the eight tiles one after the other, each quad keeps its.
    DeviceTile tile = {};
    for (int q = 0; q < 8; ++q) {
      const DeviceTile located = locate_tile(m, __shfl_sync(~0u, tile_row, 4 * q), col_tile, lane);
      if (q == quad) tile = located;
    }
    bool good = inside && there && tile.valid && tile.segment == number;
    if (!tile.valid) {  // collectives need all lanes: decode something that is surely there
      tile.words = m.stream;
      tile.start = tile.end = tile.total = 0;
      tile.segment = 0;
    }
    const int64_t first_col = col_tile * m.tile_cols + 2 * t;
    uint8_t* to = a.out + ((mine ? i : 0) * m.cols + first_col) * bytes;
    good &= decode_tile<F, Left>(
        tile, global_slots(m, tile.segment), Segment<F>(m.segment(tile.segment)),
        global_words(tile, tile.start), global_words(tile, tile.end), lane,
        [&](int group, int, const uint32_t (&pairs)[kPairsPerGroup], const RawBits<F>& raw,
            int at) {
#pragma unroll
          for (int j = 0; j < kPairsPerGroup; ++j) {
            const int64_t col = kGroupCols * group + 8 * (j >> 1);
            const int64_t left = m.cols - first_col - col;
            if (!mine || left <= 0 || (in_tile >= 8) != (j & 1)) continue;
            store_pair<F>(to + col * bytes, pairs[j] ^ F::fmt.flip, raw.low(at + j),
                          left < 2 ? 1 : 2, m.cols % 2 == 0);
          }
        });
    const unsigned bad = __ballot_sync(~0u, !good);
    if (mine && (bad >> 4 * quad & 0xf)) {
      poison(a, bytes, i, 1, col_tile, t, 4);
      if (a.status && t == 0)
        atomicMin((unsigned long long*)a.status,
                  inside ? (unsigned long long)(tile_row * m.col_tiles + col_tile) : kBadId);
    }
  }
}

}  // namespace codecllm::cuda
