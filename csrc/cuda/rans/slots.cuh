// Slot tables as kernels read them: copies in shared memory, or the runtime table itself.
//
// Entries are repacked on their way: freq on top costs one shift, the indices at the bottom go in
// place by a multiplication, which the FMA pipe does while the integer pipe is the one that is
// full.
#pragma once
#include "../../core/rans.h"
#include "../block.h"
#include "../device.cuh"

namespace codecllm::cuda {

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

CLLM_DEVICE GlobalSlots global_slots(const CodedView& matrix, int64_t segment) {
  const uint32_t* slots = matrix.segment(segment) + kTableHeader;
  return {slots, (1u << matrix.scale_bits) - 1, matrix.scale_bits,
          first_escape_slot(slots, matrix.scale_bits)};
}

CLLM_HD int copies_of(const BlockLayout& layout) { return 1 << layout.way; }

// All threads of the block.
CLLM_DEVICE void fill_slots(const CodedView& matrix, int64_t segment, const BlockLayout& layout,
                            uint32_t* to) {
  const uint32_t* slots = matrix.segment(segment) + kTableHeader;
  const int copies = copies_of(layout), quads = copies / 4;
  if (quads == 0) {
    for (int i = threadIdx.x; i < copies << matrix.scale_bits; i += blockDim.x)
      to[i] = device_entry(__ldg(slots + (i >> layout.way)));
    return;
  }
  for (int slot = threadIdx.x; slot < 1 << matrix.scale_bits; slot += blockDim.x) {
    const uint32_t e = device_entry(__ldg(slots + slot));
    uint4* four = (uint4*)(to + slot * copies);
    for (int quad = 0; quad < quads; ++quad) four[quad] = make_uint4(e, e, e, e);
  }
}

CLLM_DEVICE SharedSlots shared_slots(const CodedView& matrix, int64_t segment,
                                     const BlockLayout& layout, const void* filled) {
  const uint32_t copies = copies_of(layout), copy = threadIdx.x & 31 & (copies - 1);
  const uint32_t* slots = matrix.segment(segment) + kTableHeader;
  return {shared_address(filled) + 4 * copy, 4 * copies, (1u << matrix.scale_bits) - 1,
          matrix.scale_bits, first_escape_slot(slots, matrix.scale_bits)};
}

}  // namespace codecllm::cuda
