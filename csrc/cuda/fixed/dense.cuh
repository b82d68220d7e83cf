// A dense matrix of 16-bit words as a source of groups: what is stored, on its way to another
// coding. Not in the list of codings: products and look-ups of stored matrices need no kernel.
#pragma once
#include "../source.cuh"

namespace codecllm::cuda {

struct DenseTile : LocatedTile {
  const uint16_t* words;  // of the tile's first weight
  int64_t cols;           // of the matrix
  int columns;            // of the tile that are inside
};

struct DenseGroup {
  int number;
  uint32_t pairs[kPairsPerGroup];
  CLLM_DEVICE uint32_t words(int j) const { return pairs[j]; }
};

struct DenseReader {
  static constexpr bool kStaged = true;
  const DenseTile& tile;
  int lane;

  // Two words next to each other; what is outside of the matrix is zero.
  CLLM_DEVICE uint32_t pair(int row, int col) const {
    if (row >= tile.rows || col >= tile.columns) return 0;
    const uint16_t* at = tile.words + row * tile.cols + col;
    if (tile.cols % 2 == 0) return __ldg((const uint32_t*)at);
    return __ldg(at) | (col + 1 < tile.columns ? uint32_t(__ldg(at + 1)) << 16 : 0);
  }
  template <class Each>
  CLLM_DEVICE bool each_group(Each&& each) const {
    for (int number = 0; number < tile.groups; ++number) {
      DenseGroup group = {number, {}};
#pragma unroll
      for (int j = 0; j < kPairsPerGroup; ++j)
        group.pairs[j] = pair(pair_row(lane, j), kGroupCols * number + pair_col(lane, j));
      each(group);
    }
    return true;
  }
};

template <class F>
struct DenseSource {
  static_assert(F::fmt.word_bits == 16);
  using Format = F;
  using Tile = DenseTile;
  struct Common {};

  static CLLM_DEVICE void fill(const CodedView&, int64_t, const BlockLayout&, void*) {}
  static CLLM_DEVICE Common common(const CodedView&, int64_t, const BlockLayout&, const void*) {
    return {};
  }
  static CLLM_DEVICE Tile locate(const CodedView& matrix, int64_t tile_row, int64_t col_tile, int) {
    Tile tile;
    const int64_t left = matrix.rows - tile_row * kTileRows;
    tile.segment = 0;
    tile.groups = matrix.groups(col_tile);
    tile.rows = int(left < kTileRows ? left : kTileRows);
    tile.out_row = tile_row * kTileRows;
    tile.valid = true;
    tile.cols = matrix.cols;
    tile.columns = matrix.column_tiles().columns(col_tile);
    tile.words = (const uint16_t*)matrix.stream + tile.out_row * matrix.cols +
                 matrix.column_tiles().first_col(col_tile);
    return tile;
  }
  template <class Work>
  static CLLM_DEVICE bool stage(const Tile& tile, const Common&, const BlockLayout&, SharedAddress,
                                Work&& work) {
    return work(DenseReader{tile, int(threadIdx.x & 31)});
  }
};

}  // namespace codecllm::cuda
