// Twelve bits of a weight and their places (docs/format.md, the coding fixed): in a half sign 15,
// code 7..10, mantissa 0..6, and bits 11..14 free, so that the fourth pair register of a group fits
// into the free bits of the three others.
#pragma once
#include "../device.cuh"

namespace codecllm::cuda {

// The fourth pair: its codes are in the first container, four bits to the left; mantissa bits 3..6
// in the second, eight to the left; the rest in the third, rotated by twelve: a half further.
constexpr uint32_t kInFirst = kFixedSpread[0], kInSecond = kFixedSpread[1],
                   kInThird = kFixedSpread[2];

CLLM_HD uint32_t rotated_left(uint32_t v, int n) { return v << n | v >> (32 - n); }

// Containers to pair registers: six LOP3 and three shifts for eight weights.
CLLM_HD void unpack_pairs(const uint32_t (&r)[kFixedContainers],
                          uint32_t (&pairs)[kPairsPerGroup]) {
  for (int j = 0; j < kFixedContainers; ++j) pairs[j] = r[j] & kFixedPlace;
  pairs[3] = (rotated_left(r[2], 20) & kInThird) | (r[1] >> 8 & kInSecond) | (r[0] >> 4 & kInFirst);
}

CLLM_HD void pack_pairs(const uint32_t (&pairs)[kPairsPerGroup], uint32_t (&r)[kFixedContainers]) {
  r[0] = pairs[0] | (pairs[3] & kInFirst) << 4;
  r[1] = pairs[1] | (pairs[3] & kInSecond) << 8;
  r[2] = pairs[2] | rotated_left(pairs[3] & kInThird, 12);
}

// 12 bits of each half to words: code 0 stays 0, others get the window's exponent `base` below
// them. Codes are at most 15: adding 15 to one carries into bit 11 if it is not 0.
CLLM_HD uint32_t words_of_pair(uint32_t pair, uint32_t base) {
  const uint32_t coded = ((pair & kFixedCode) + kFixedCode) >> 11 & 0x00010001;
  return pair + coded * (base << 7);
}

// The 12 bits of a word in their places; false if the window has no code for it, and it is listed.
CLLM_HD bool bits_of_word(uint32_t word, uint32_t base, uint32_t& bits) {
  const uint32_t code = (word >> 7 & 0xff) - base;
  const bool zero = !(word & 0x7fff), coded = code - 1 < uint32_t(kFixedCodes);
  bits = coded ? (word & 0x807f) | code << 7 : zero ? word : 0;
  return coded || zero;
}

}  // namespace codecllm::cuda
