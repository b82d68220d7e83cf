// Dense words from coded ones: whole matrices, and single rows.
//
// decode_matrix: a block takes a share of the tiles, in order; its warps take them in turn.
//
//   for each cut of the block's share, where the segment changes:
//     fill what warps have in common, if the segment is new                   | barrier
//     for each tile of the warp: locate, stage, for each group: store pairs   | barrier
//
// decode_rows: a row of a tile belongs to four lanes, so a warp decodes eight rows at once, all of
// the same column tile, and reads 1/8 of each tile's words.
//
//   for each eight rows and column tile of the warp:
//     find tile and lane of each row, for each group: store the pairs of the row
#pragma once
#include "source.cuh"

namespace codecllm::cuda {

template <class F>
CLLM_DEVICE void store_word(uint8_t* to, uint32_t word) {
  if constexpr (F::fmt.word_bits == 8) *to = uint8_t(word);
  if constexpr (F::fmt.word_bits == 16) *(uint16_t*)to = uint16_t(word);
  if constexpr (F::fmt.word_bits == 32) *(uint32_t*)to = word;
}

// Two words of a row, as the matrix stores them; `words` of them are inside.
template <class F>
CLLM_DEVICE void store_pair(uint8_t* to, uint32_t pair, uint32_t low, int words, bool aligned) {
  constexpr int bytes = F::fmt.word_bytes();
  uint32_t first = pair & 0xffff, second = pair >> 16;
  if constexpr (bytes == 4) {
    first = first << 16 | (low & 0xffff);
    second = second << 16 | low >> 16;
  }
  if (aligned && words >= 2) {
    if constexpr (bytes == 1) *(uint16_t*)to = uint16_t(first | second << 8);
    if constexpr (bytes == 2) *(uint32_t*)to = pair;
    if constexpr (bytes == 4) *(uint2*)to = make_uint2(first, second);
    return;
  }
  if (words > 0) store_word<F>(to, first);
  if (words > 1) store_word<F>(to + bytes, second);
}

// The main loop. Whole: no row or column of the tile is outside of the matrix, and pairs lie where
// they can be stored at once. The checks would be a fifth of it.
template <class F, bool Whole, class Reader>
CLLM_DEVICE bool write_groups(const DecodeArgs& a, const LocatedTile& tile, const Reader& reader,
                              int64_t col_tile) {
  constexpr int bytes = F::fmt.word_bytes();
  const CodedView& matrix = a.matrix;
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const bool aligned = Whole || matrix.cols % 2 == 0;
  const int64_t first_col = col_tile * matrix.tile_cols + 2 * t;
  const int64_t columns =
      matrix.cols - first_col < matrix.tile_cols ? matrix.cols - first_col : matrix.tile_cols;
  uint8_t* upper = a.out + ((tile.out_row + g) * matrix.cols + first_col) * bytes;
  uint8_t* lower = upper + 8 * matrix.cols * bytes;
  int left[2] = {g < tile.rows ? int(columns) : 0, g + 8 < tile.rows ? int(columns) : 0};
  return reader.each_group([&](const auto& group) {
#pragma unroll
    for (int j = 0; j < kPairsPerGroup; ++j)
      store_pair<F>((j & 1 ? lower : upper) + (j >> 1) * 8 * bytes, group.words(j), group.low(j),
                    Whole ? 2 : left[j & 1] - 8 * (j >> 1), aligned);
    upper += kGroupCols * bytes;
    lower += kGroupCols * bytes;
    left[0] -= kGroupCols;
    left[1] -= kGroupCols;
  });
}

template <class S, class Reader>
CLLM_DEVICE bool write_tile(const DecodeArgs& a, const typename S::Tile& tile, const Reader& reader,
                            int64_t col_tile) {
  using F = typename S::Format;
  const CodedView& matrix = a.matrix;
  const bool inside = matrix.cols % 2 == 0 && (col_tile + 1) * matrix.tile_cols <= matrix.cols;
  const bool whole = Reader::kStaged && inside && tile.rows == kTileRows;
  const bool good = whole ? write_groups<F, Reader::kStaged>(a, tile, reader, col_tile)
                          : write_groups<F, false>(a, tile, reader, col_tile);
  const bool all = S::each_apart(matrix, tile, [&](int row, int col, uint32_t word) {
    const int64_t at = (tile.out_row + row) * matrix.cols + col_tile * matrix.tile_cols + col;
    if (int(threadIdx.x & 31) == lane_of(row, col))
      store_word<F>(a.out + at * F::fmt.word_bytes(), word);
  });
  return good && all;
}

// All ones, a NaN in every float format: what a corrupt tile decodes to. Columns of one tile.
CLLM_DEVICE void poison(const DecodeArgs& a, int bytes, int64_t row, int64_t rows, int64_t col_tile,
                        int thread, int threads) {
  const CodedView& matrix = a.matrix;
  const ColumnTiles tiles = matrix.column_tiles();
  const int64_t first = tiles.first_col(col_tile), width = int64_t(tiles.columns(col_tile)) * bytes;
  for (int64_t i = thread; i < rows * width; i += threads)
    a.out[((row + i / width) * matrix.cols + first) * bytes + i % width] = 0xff;
}

template <class S>
__global__ void __launch_bounds__(32 * kMaxWarps) decode_matrix(const DecodeArgs a) {
  using F = typename S::Format;
  CLLM_SHARED_MEMORY(uint4, memory);
  const CodedView& matrix = a.matrix;
  const int warp = threadIdx.x >> 5;
  const SharedAddress words =
      shared_address((uint8_t*)memory + a.block.warps_at()) + warp * uint32_t(a.block.warp_bytes);
  const int64_t tiles = matrix.tile_rows * matrix.col_tiles;
  for (Cuts cut(matrix, tiles, matrix.col_tiles, tiles); cut.more(); cut.next()) {
    if (cut.new_segment()) S::fill(matrix, cut.segment, a.block, memory);
    __syncthreads();
    const typename S::Common common = S::common(matrix, cut.segment, a.block, memory);
    for (int64_t number = cut.first + warp; number < cut.last; number += a.block.warps) {
      const int64_t row = number / matrix.col_tiles, col = number % matrix.col_tiles;
      if (with_tile<S>(matrix, a.block, common, words, {row, col, cut.segment},
                       [&](const typename S::Tile& tile, const auto& reader) {
                         return write_tile<S>(a, tile, reader, col);
                       }))
        continue;
      report_corrupt(a.status, number);
      int64_t out_row;
      const int rows = rows_of(matrix, row, out_row);
      poison(a, F::fmt.word_bytes(), out_row, rows, col, threadIdx.x & 31, kLanes);
    }
    __syncthreads();  // nobody reads what is common any more
  }
}

// Where one row of the matrix is coded, as its quad of lanes sees it.
struct CodedRow {
  int64_t segment, tile_row;
  int in_tile;
  bool there;  // whatever the table says

  CLLM_DEVICE CodedRow(const CodedView& matrix, int64_t row) {
    segment = segment_of(matrix, kFirstRow, row);
    const uint32_t* header = matrix.segment(segment);
    int64_t local = row - __ldg(header + kFirstRow);
    tile_row = __ldg(header + kFirstTileRow) + local / kTileRows;
    there = local >= 0 && local < __ldg(header + kRows) && tile_row < matrix.tile_rows;
    if (!there) local = tile_row = 0;
    in_tile = int(local % kTileRows);
  }
};

// The tiles of a warp's eight rows. A tile is located by a whole warp: the eight one after the
// other, each quad keeps its own. All lanes must read something: who has no tile takes a harmless
// one, and learns that it is not valid.
template <class S>
CLLM_DEVICE typename S::Tile locate_eight(const CodedView& matrix, int64_t tile_row,
                                          int64_t col_tile, int lane) {
  typename S::Tile tile = {};
  for (int quad = 0; quad < 8; ++quad) {
    const typename S::Tile located =
        S::locate(matrix, __shfl_sync(~0u, tile_row, 4 * quad), col_tile, lane);
    if (quad == int(threadIdx.x >> 2 & 7)) tile = located;
  }
  if (!tile.valid) S::stand_in(matrix, tile);
  return tile;
}

template <class S>
__global__ void __launch_bounds__(128) decode_rows(const DecodeArgs a) {
  using F = typename S::Format;
  constexpr int bytes = F::fmt.word_bytes();
  const CodedView& matrix = a.matrix;
  const int t = threadIdx.x & 3, quad = threadIdx.x >> 2 & 7, warp = threadIdx.x >> 5;
  const int64_t eights = (a.ids_count + 7) / 8, step = int64_t(gridDim.x) * (blockDim.x >> 5);
  for (int64_t work = int64_t(blockIdx.x) * (blockDim.x >> 5) + warp;
       work < eights * matrix.col_tiles; work += step) {
    const int64_t i = work / matrix.col_tiles * 8 + quad, col_tile = work % matrix.col_tiles;
    const bool mine = i < a.ids_count;
    const int64_t id = mine ? a.ids[i] : 0;
    const bool inside = id >= 0 && id < matrix.rows;
    const CodedRow row(matrix, inside ? id : 0);
    const int lane = row.in_tile % 8 * 4 + t;
    const typename S::Tile tile = locate_eight<S>(matrix, row.tile_row, col_tile, lane);
    bool good = inside && row.there && tile.valid && tile.segment == row.segment;

    const int64_t first_col = col_tile * matrix.tile_cols + 2 * t;
    uint8_t* to = a.out + ((mine ? i : 0) * matrix.cols + first_col) * bytes;
    good &= S::alone(matrix, tile, lane, [&](const auto& group) {
#pragma unroll
      for (int j = 0; j < kPairsPerGroup; ++j) {
        const int64_t col = kGroupCols * group.number + 8 * (j >> 1);
        const int64_t left = matrix.cols - first_col - col;
        if (!mine || left <= 0 || (row.in_tile >= 8) != (j & 1)) continue;
        store_pair<F>(to + col * bytes, group.words(j), group.low(j), left < 2 ? 1 : 2,
                      matrix.cols % 2 == 0);
      }
    });
    good &= S::each_apart(matrix, tile, [&](int in_tile, int col, uint32_t word) {
      if (mine && in_tile == row.in_tile && lane == lane_of(in_tile, col))
        store_word<F>(to + (col - 2 * t) * bytes, word);
    });
    const unsigned bad = __ballot_sync(~0u, !good);
    if (mine && (bad >> 4 * quad & 0xf)) {
      poison(a, bytes, i, 1, col_tile, t, 4);
      if (a.status && t == 0)
        atomicMin(
            (unsigned long long*)a.status,
            inside ? (unsigned long long)(row.tile_row * matrix.col_tiles + col_tile) : kBadId);
    }
  }
}

}  // namespace codecllm::cuda
