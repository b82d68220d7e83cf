// The source of twelve.h.
#pragma once
#include "../../../csrc/cuda/source.cuh"
#include "twelve.h"

namespace codecllm::cuda {

struct TwelveTile : LocatedTile {
  const uint8_t* bytes;
  int64_t number;
};

struct TwelveGroup {
  static constexpr uint32_t kPlace = 0x87ff87ff;
  int number, odd;
  uint32_t base;  // exponent below the first code
  uint32_t pairs[kPairsPerGroup];

  CLLM_DEVICE TwelveGroup(int number, uint32_t base, uint32_t r0, uint32_t r1, uint32_t r2)
      : number(number), odd(number % 2), base(base), pairs{r0 & kPlace, r1 & kPlace, r2 & kPlace} {
    pairs[3] =
        ((r2 >> 12 | r2 << 20) & 0x80078007) | (r1 >> 8 & 0x00780078) | (r0 >> 4 & 0x07800780);
  }
  template <class B16>
  CLLM_DEVICE void fragment(uint32_t (&a)[kPairsPerGroup]) const {
    for (int j = 0; j < kPairsPerGroup; ++j) a[j] = pairs[j];
  }
  CLLM_DEVICE uint32_t words(int j) const {
    uint32_t pair = pairs[j];
    for (int half = 0; half < 32; half += 16)
      if (pair >> half & 0x0780) pair += base << 7 << half;
    return pair;
  }
  CLLM_DEVICE uint32_t low(int) const { return 0; }
};

struct TwelveReader {
  static constexpr bool kStaged = true;
  const TwelveTile& tile;
  uint32_t base;
  int lane;

  template <class Each>
  CLLM_DEVICE bool each_group(Each&& each) const {
    const uint8_t* at = tile.bytes + 12 * lane;
    for (int number = 0; number < tile.groups; ++number, at += 12 * kLanes)
      each(TwelveGroup(number, base, load_once32(at), load_once32(at + 4), load_once32(at + 8)));
    return true;
  }
};

template <class F>
struct TwelveSource {
  using Format = F;
  using Tile = TwelveTile;
  struct Common {
    uint32_t base;
  };
  static constexpr bool kMma = true;
  static CLLM_HD constexpr int max_warps(int) { return kMaxWarps; }

  static CLLM_DEVICE void fill(const CodedView&, int64_t, const BlockLayout&, void*) {}
  static CLLM_DEVICE Common common(const CodedView& matrix, int64_t segment, const BlockLayout&,
                                   const void*) {
    return {__ldg(matrix.segment(segment) + kWindowBase)};
  }
  static CLLM_DEVICE Tile locate(const CodedView& matrix, int64_t tile_row, int64_t col_tile, int) {
    Tile tile = {};
    tile.number = tile_row * matrix.col_tiles + col_tile;
    tile.bytes = matrix.raw + tile_row * matrix.plane_row_bytes + col_tile * matrix.plane_tile_bytes;
    tile.groups = matrix.groups(col_tile);
    tile.segment = int(segment_of(matrix, kFirstTileRow, tile_row));
    place_tile(matrix, tile_row, tile);
    return tile;
  }
  template <class Work>
  static CLLM_DEVICE bool stage(const Tile& tile, const Common& common, const BlockLayout&,
                                SharedAddress, Work&& work) {
    return work(TwelveReader{tile, common.base, int(threadIdx.x & 31)});
  }
  template <class Each>
  static CLLM_DEVICE bool alone(const CodedView& matrix, const Tile& tile, int lane, Each&& each) {
    return TwelveReader{tile, __ldg(matrix.segment(tile.segment) + kWindowBase), lane}.each_group(
        each);
  }
  template <class Each>
  static CLLM_DEVICE void each_apart(const CodedView& matrix, const Tile& tile, Each&& each) {
    const uint32_t* list = (const uint32_t*)matrix.stream;
    const int64_t tiles = matrix.tile_rows * matrix.col_tiles;
    const uint32_t end = __ldg(list + tile.number + 1);
    for (uint32_t i = __ldg(list + tile.number); i < end; ++i) {
      const uint32_t entry = __ldg(list + tiles + 1 + i), position = entry >> 16;
      each(int(position) / matrix.tile_cols, int(position) % matrix.tile_cols, entry & 0xffff);
    }
  }
  template <class B16>
  static CLLM_DEVICE uint32_t scale_x(uint32_t two) {
    return fma2<B16>(two, 0x5f805f80, 0x80008000);  // 2^64
  }
  static CLLM_DEVICE float unscale(const Common& common, float sum) {
    return sum * float_from_bits((127 + common.base - 64) << 23);
  }
  static CLLM_DEVICE void stand_in(const CodedView& matrix, Tile& tile) {
    tile.bytes = matrix.raw;
    tile.number = 0;
    tile.segment = 0;
  }
};

}  // namespace codecllm::cuda
