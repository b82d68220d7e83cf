// The source of `fixed`: what kernels know of the coding (../source.cuh).
//
// The 12 bits of a weight, read as a bf16 number, are the weight times 2^-base exactly, so that the
// tensor cores take them as they come. x is scaled by 2^64 while it is staged: without it, products
// of such small numbers would leave float32. Both are undone in the sums, where a segment has one
// base. What that asks of x: docs/kernels.md.
#pragma once
#include "../codings.h"
#include "tile.cuh"

namespace codecllm::cuda {

struct FixedGroup {
  int number, odd;
  uint32_t base;
  uint32_t pairs[kPairsPerGroup];

  CLLM_DEVICE FixedGroup(int number, int odd, uint32_t base,
                         const uint32_t (&containers)[kFixedContainers])
      : number(number), odd(odd), base(base) {
    unpack_pairs(containers, pairs);
  }
  template <class B16>
  CLLM_DEVICE void fragment(uint32_t (&a)[kPairsPerGroup]) const {
#pragma unroll
    for (int j = 0; j < kPairsPerGroup; ++j) a[j] = pairs[j];
  }
  CLLM_DEVICE uint32_t words(int j) const { return words_of_pair(pairs[j], base); }
  CLLM_DEVICE uint32_t low(int) const { return 0; }
};

template <bool Ahead>
struct FixedReader {
  static constexpr bool kStaged = Ahead;
  const FixedTile& tile;
  uint32_t base;
  int lane;

  template <class Each>
  CLLM_DEVICE bool each_group(Each&& each) const {
    int number = 0;
    for_each_group<Ahead>(tile, lane, [&](const auto& containers, int odd) {
      each(FixedGroup(number++, odd, base, containers));
    });
    return true;
  }
};

template <class F>
struct FixedSource {
  using Format = F;
  using Tile = FixedTile;
  struct Common {
    uint32_t base;
  };
  static constexpr int kScaleX = 64;  // x times 2^64

  static constexpr bool kMma = true;
  // Half as many where the sums take more than 80 registers.
  static CLLM_HD constexpr int max_warps(int x_rows) {
    return x_rows <= 32 ? kMaxWarps : kMaxWarps / 2;
  }

  static CLLM_DEVICE void fill(const CodedView&, int64_t, const BlockLayout&, void*) {}
  static CLLM_DEVICE Common common(const CodedView& matrix, int64_t segment, const BlockLayout&,
                                   const void*) {
    return {__ldg(matrix.segment(segment) + kWindowBase)};
  }
  static CLLM_DEVICE Tile locate(const CodedView& matrix, int64_t tile_row, int64_t col_tile, int) {
    return locate_fixed(matrix, tile_row, col_tile);
  }
  template <class Work>
  static CLLM_DEVICE bool stage(const Tile& tile, const Common& common, const BlockLayout&,
                                SharedAddress, Work&& work) {
    return work(FixedReader<true>{tile, common.base, int(threadIdx.x & 31)});
  }
  template <class Each>
  static CLLM_DEVICE bool alone(const CodedView& matrix, const Tile& tile, int lane, Each&& each) {
    const uint32_t base = __ldg(matrix.segment(tile.segment) + kWindowBase);
    return FixedReader<false>{tile, base, lane}.each_group(each);
  }
  template <class Each>
  static CLLM_DEVICE bool each_apart(const CodedView& matrix, const Tile& tile, Each&& each) {
    bool inside = true;
    uint32_t next = tile.entry;
    for (uint32_t i = tile.list; i < tile.list_end;) {
      const uint32_t entry = next;
      if (++i < tile.list_end) next = load_listed(matrix, i);
      const int row = entry_row(entry), col = entry_col(entry);
      if (row < tile.rows && col < tile.columns)
        each(row, col, entry & 0xffff);
      else
        inside = false;
    }
    return inside;
  }

  template <class B16>
  static CLLM_DEVICE uint32_t scale_x(uint32_t two) {
    constexpr uint32_t kFactor = (127 + kScaleX) << 7, kMinusZero = 0x8000;
    return fma2<B16>(two, kFactor * 0x10001u, kMinusZero * 0x10001u);
  }
  // By 2^(base - 64), in two factors where that leaves float32. (A table may say any base.)
  static CLLM_DEVICE float unscale(const Common& common, float sum) {
    const int exponent = int(common.base & 0xff) - kScaleX;
    const int first = exponent < 127 ? exponent : 127;
    return sum * float_from_bits(uint32_t(127 + first) << 23) *
           float_from_bits(uint32_t(127 + exponent - first) << 23);
  }

  static CLLM_DEVICE void stand_in(const CodedView& matrix, Tile& tile) {
    tile.plane = matrix.stream;
    tile.list = tile.list_end = 0;
    tile.segment = 0;
  }
};

}  // namespace codecllm::cuda
