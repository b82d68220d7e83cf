// One lane of a tile: its words, its rANS state, and the four pairs of a group.
//
// What the main loop costs is counted in docs/kernels.md. Two things in here decide it:
// * `next` is fetched when the word before it is used, a step or more ahead of its own use. A step
//   then waits for one shared-memory access, the slot table's, instead of two.
// * Slot table entries are repacked when they are copied to shared memory: freq on top costs one
//   shift, the indices at the bottom go in place by a multiplication, which the FMA pipe does while
//   the integer pipe is the one that is full.
#pragma once
#include "device.cuh"

namespace codecllm::cuda {

// ---- slot tables --------------------------------------------------------------------------------

// Entry on the device: index of the first residual 0..4, bias 5..15, index of the second 16..20,
// freq 21..31. (core/rans.h has the runtime table's own order.)
constexpr int kDeviceBiasShift = 5, kDeviceFreqShift = 21;
constexpr uint32_t kDeviceIndexPair = 0x001f001f;

CLLM_HD uint32_t device_entry(uint32_t entry) {
  return (entry >> kIndexShift & 31u) | (entry & kBiasMask) << kDeviceBiasShift |
         (entry >> 27) << 16 | (entry >> kFreqShift & kBiasMask) << kDeviceFreqShift;
}

// The escape is the last symbol: it owns the slots from here to the end.
CLLM_HD uint32_t first_escape_slot(const uint32_t* slots, int scale_bits) {
  const uint32_t last = (1u << scale_bits) - 1;
  return last - (slots[last] & kBiasMask);
}

// `copies` tables side by side, entry by entry: lanes of different copies never share a bank.
struct SharedSlots {
  SharedAddress base;  // of this lane's copy
  uint32_t stride;     // 4 * copies
  uint32_t mask;
  int scale_bits;
  uint32_t escape_from;
  CLLM_DEVICE uint32_t entry(uint32_t slot) const { return load_shared32(mad(slot, stride, base)); }
};

// Where a lane of its own table decodes (rows of an embedding), or speed does not matter.
struct GlobalSlots {
  const uint32_t* slots;
  uint32_t mask;
  int scale_bits;
  uint32_t escape_from;
  CLLM_DEVICE uint32_t entry(uint32_t slot) const { return device_entry(__ldg(slots + slot)); }
};

// ---- words --------------------------------------------------------------------------------------

// A tile's words in shared memory. Not bounded: a group takes at most 8 words, so that a corrupt
// stream reads at most 16 bytes per group beyond the tile, and the kernel has that much in reserve.
struct SharedWords {
  static constexpr bool kPipelined = true;
  SharedAddress at;
  CLLM_DEVICE uint32_t fetch() const { return load_shared16(at); }
  CLLM_DEVICE void advance() { at += 2; }
  CLLM_DEVICE void refill_state(uint32_t& state, uint32_t& next) { refill(state, next, at); }
  CLLM_DEVICE void take_if(bool wanted, uint32_t& next) { take_word(wanted, next, at); }
  CLLM_DEVICE bool ends_at(const SharedWords& end) const { return at == end.at; }
};

struct GlobalWords {
  static constexpr bool kPipelined = false;
  const uint8_t* tile;
  uint32_t at, limit;  // in words; positions from `limit` on read the word there
  CLLM_DEVICE uint32_t fetch() const {
    return __ldg((const uint16_t*)tile + (at < limit ? at : limit));
  }
  CLLM_DEVICE void advance() { ++at; }
  CLLM_DEVICE void refill_state(uint32_t& state, uint32_t& next) {
    if (state >= kRansL) return;
    state = state << 16 | next;
    take_if(true, next);
  }
  CLLM_DEVICE void take_if(bool wanted, uint32_t& next) {
    if (!wanted) return;
    advance();
    next = fetch();
  }
  CLLM_DEVICE bool ends_at(const GlobalWords& end) const { return at == end.at; }
};

// ---- decoding -----------------------------------------------------------------------------------

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
