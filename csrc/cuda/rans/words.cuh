// The words of a lane's stream. `next` is fetched when the word before it is used, a step or more
// ahead of its own use: a step then waits for one shared-memory access, the slot table's, instead
// of two.
#pragma once
#include "../../core/rans.h"
#include "../device.cuh"

namespace codecllm::cuda {

#if !defined(CLLM_EMU)

// If a state is too small: takes in `next` and fetches the word after it. Written by hand, because
// the compiler spends two more instructions on the position.
CLLM_DEVICE void refill(uint32_t& state, uint32_t& next, SharedAddress& at) {
  asm volatile(
      "{\n\t"
      ".reg .pred small;\n\t"
      "setp.lt.u32 small, %0, 65536;\n\t"
      "@small mad.lo.u32 %0, %0, 65536, %1;\n\t"
      "@small add.u32 %2, %2, 2;\n\t"
      "@small ld.shared.u16 %1, [%2];\n\t"
      "}"
      : "+r"(state), "+r"(next), "+r"(at));
}
CLLM_DEVICE void take_word(bool wanted, uint32_t& next, SharedAddress& at) {
  asm volatile(
      "{\n\t"
      ".reg .pred wanted;\n\t"
      "setp.ne.u32 wanted, %2, 0;\n\t"
      "@wanted add.u32 %1, %1, 2;\n\t"
      "@wanted ld.shared.u16 %0, [%1];\n\t"
      "}"
      : "+r"(next), "+r"(at)
      : "r"(uint32_t(wanted)));
}

#endif  // CLLM_EMU

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

}  // namespace codecllm::cuda
