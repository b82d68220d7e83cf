// The rANS source: what kernels know of the coding `rans` (../source.cuh).
#pragma once
#include "../codings.h"
#include "../fragment.cuh"
#include "tile.cuh"

namespace codecllm::cuda {

// Four pairs of a lane: their halves as decoded, without the format's `flip`.
template <class F>
struct RansGroup {
  int number;
  int odd;
  const uint32_t (&pairs)[kPairsPerGroup];
  const RawBits<F>& raw;
  int first;  // of the four, in `raw`

  template <class B16>
  CLLM_DEVICE void fragment(uint32_t (&a)[kPairsPerGroup]) const {
    to_fragment<F, B16>(pairs, a);
  }
  CLLM_DEVICE uint32_t words(int j) const { return pairs[j] ^ F::fmt.flip; }
  CLLM_DEVICE uint32_t low(int j) const { return raw.low(first + j); }
};

template <class F, bool Left, class Slots, class Words>
struct RansReader {
  static constexpr bool kStaged = Words::kPipelined;
  const RansTile& tile;
  const Slots& slots;
  const Segment<F>& segment;
  Words begin, end;  // of the lane's stream
  int raw_lane;      // whose raw bits

  template <class Each>
  CLLM_DEVICE bool each_group(Each&& each) const {
    Lane<Words> lane(begin);
    const uint32_t base = own(segment.base);
    uint32_t previous[2] = {segment.seed, segment.seed};
    int number = 0;
    for_each_group<F, kStaged>(RawTile<F>(tile.raw, raw_lane, tile.groups), tile.last,
                               [&](const RawBits<F>& raw, int first, int odd) {
                                 uint32_t pairs[kPairsPerGroup];
                                 decode_group<F>(lane, slots, base, pairs);
                                 if constexpr (Left) undo_left<F>(pairs, previous);
#pragma unroll
                                 for (int j = 0; j < kPairsPerGroup; ++j)
                                   pairs[j] = raw.merge(first + j, pairs[j]);
                                 each(RansGroup<F>{number++, odd, pairs, raw, first});
                               });
    return lane.ended(end);
  }
};

// Left: predictor `left`, a chain along the row, which no MMA waits for.
template <class F, bool Left>
struct RansSource {
  using Format = F;
  using Tile = RansTile;
  struct Common {
    SharedSlots slots;
    Segment<F> segment;
  };

  static constexpr bool kMma = !Left;
  // Half as many where the sums and raw bits take more than 80 registers.
  static CLLM_HD constexpr int max_warps(int x_rows) {
    return x_rows <= (F::fmt.n_planes <= 1 ? 32 : 16) ? kMaxWarps : kMaxWarps / 2;
  }

  static CLLM_DEVICE void fill(const CodedView& matrix, int64_t segment, const BlockLayout& layout,
                               void* to) {
    fill_slots(matrix, segment, layout, (uint32_t*)to);
  }
  static CLLM_DEVICE Common common(const CodedView& matrix, int64_t segment,
                                   const BlockLayout& layout, const void* filled) {
    return {shared_slots(matrix, segment, layout, filled), Segment<F>(matrix.segment(segment))};
  }
  static CLLM_DEVICE Tile locate(const CodedView& matrix, int64_t tile_row, int64_t col_tile,
                                 int lane) {
    return locate_rans(matrix, tile_row, col_tile, lane);
  }
  // Words in the warp's buffer, or in global memory where they are more than planned for.
  template <class Work>
  static CLLM_DEVICE bool stage(const Tile& tile, const Common& common, const BlockLayout& layout,
                                SharedAddress buffer, Work&& work) {
    const int lane = threadIdx.x & 31;
    if (!fits_buffer(tile, layout))
      return work(RansReader<F, Left, SharedSlots, GlobalWords>{
          tile, common.slots, common.segment, global_words(tile, tile.start),
          global_words(tile, tile.end), lane});
    stage_words(tile, buffer);
    return work(RansReader<F, Left, SharedSlots, SharedWords>{tile,
                                                              common.slots,
                                                              common.segment,
                                                              {buffer + 2 * tile.start},
                                                              {buffer + 2 * tile.end},
                                                              lane});
  }
  // `lane` of the tile, with what it needs in global memory.
  template <class Each>
  static CLLM_DEVICE bool alone(const CodedView& matrix, const Tile& tile, int lane, Each&& each) {
    const GlobalSlots slots = global_slots(matrix, tile.segment);
    const Segment<F> segment(matrix.segment(tile.segment));
    return RansReader<F, Left, GlobalSlots, GlobalWords>{
        tile, slots, segment, global_words(tile, tile.start), global_words(tile, tile.end), lane}
        .each_group(each);
  }
  // Escapes are part of the groups, and weights are what they are.
  template <class Each>
  static CLLM_DEVICE bool each_apart(const CodedView&, const Tile&, Each&&) {
    return true;
  }
  template <class B16>
  static CLLM_DEVICE uint32_t scale_x(uint32_t two) {
    return two;
  }
  static CLLM_DEVICE float unscale(const Common&, float sum) { return sum; }

  static CLLM_DEVICE void stand_in(const CodedView& matrix, Tile& tile) {
    tile.words = matrix.stream;
    tile.start = tile.end = tile.total = 0;
    tile.segment = 0;
  }
};

}  // namespace codecllm::cuda
