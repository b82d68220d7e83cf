// One lane of a tile: its words, its rANS state, and the four pairs of a group. What the main loop
// costs is counted in docs/kernels.md.
#pragma once
#include "slots.cuh"
#include "words.cuh"

namespace codecllm::cuda {

template <class Words>
struct Lane {
  Words words;  // position of `next`
  uint32_t next, state;

  CLLM_DEVICE explicit Lane(Words w) : words(w) {
    const uint32_t low = words.fetch();
    words.advance();
    state = low | words.fetch() << 16;
    words.take_if(true, next);
  }
  template <class Slots>
  CLLM_DEVICE uint32_t step(const Slots& slots, uint32_t& slot) {
    slot = state & slots.mask;
    const uint32_t entry = slots.entry(slot);
    state = mad(entry >> kDeviceFreqShift, state >> slots.scale_bits,
                entry >> kDeviceBiasShift & kBiasMask);
    words.refill_state(state, next);
    return entry;
  }
  CLLM_DEVICE bool ended(const Words& end) const { return state == kRansL && words.ends_at(end); }
};

// What a segment adds to the residuals of a pair, and where predictor `left` begins.
template <class F>
struct Segment {
  uint32_t base;  // window_base in both coded fields
  uint32_t seed;
  CLLM_DEVICE explicit Segment(const uint32_t* header)
      : base((header[kWindowBase] * 0x10001u) << F::fmt.coded_shift), seed(header[kSeed]) {}
};

// Coded fields of the four pairs of a group, in place in the pair registers; predictor not undone.
template <class F, class Slots, class Words>
CLLM_DEVICE void decode_group(Lane<Words>& lane, const Slots& slots, uint32_t base,
                              uint32_t (&fields)[kPairsPerGroup]) {
  uint32_t slot[kPairsPerGroup], indices[kPairsPerGroup];
#pragma unroll
  for (int j = 0; j < kPairsPerGroup; ++j) {
    indices[j] = lane.step(slots, slot[j]) & kDeviceIndexPair;
    fields[j] = mad(indices[j], 1u << F::fmt.coded_shift, base);
  }
  uint32_t top = slot[0];
#pragma unroll
  for (int j = 1; j < kPairsPerGroup; ++j) top = slot[j] > top ? slot[j] : top;
  // One group in a thousand has literals. The warp looks for them together: cheaper than to
  // diverge.
  if (any_lane(top >= slots.escape_from)) {
#pragma unroll
    for (int j = 0; j < kPairsPerGroup; ++j) {
      const bool escape = indices[j] == kDeviceIndexPair;
      const uint32_t literal = lane.next;
      lane.words.take_if(escape, lane.next);
      if (escape) fields[j] = literal_fields(literal, F::fmt.value_mask(), F::fmt.coded_shift);
    }
  }
}

// Predictor `left` (docs/format.md, section 4) for a group: sums along the two rows that a quad of
// lanes holds. `previous` is the value left of the group in rows g and g + 8.
template <class F>
CLLM_DEVICE void undo_left(uint32_t (&fields)[kPairsPerGroup], uint32_t (&previous)[2]) {
  constexpr uint32_t mask = F::fmt.value_mask(), half = 1u << (F::fmt.coded_bits - 1);
  constexpr int shift = F::fmt.coded_shift;
  const int t = threadIdx.x & 3;
#pragma unroll
  for (int j = 0; j < kPairsPerGroup; ++j) {
    const uint32_t r0 = fields[j] >> shift & mask, r1 = fields[j] >> (shift + 16) & mask;
    uint32_t sum = r0 + r1 - 2 * half;
    for (int distance = 1; distance < 4; distance *= 2) {
      const uint32_t left = __shfl_up_sync(~0u, sum, distance, 4);
      if (t >= distance) sum += left;
    }
    const uint32_t before = previous[j & 1] + sum - (r0 + r1 - 2 * half);
    const uint32_t v0 = (before + r0 - half) & mask, v1 = (v0 + r1 - half) & mask;
    fields[j] = (v0 | v1 << 16) << shift;
    previous[j & 1] += __shfl_sync(~0u, sum, 3, 4);
  }
}

}  // namespace codecllm::cuda
