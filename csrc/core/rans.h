// The rANS decode step and its slot table (docs/format.md, section 6). The step is written once for
// plain integers and SIMD registers. CUDA has one of its own (csrc/cuda/rans/lane.cuh), on entries
// in another order, and shares the constants.
//
// Traps:
// * A step needs at most one word: x >= 2^16 before it leaves x >= 2^(16 - scale_bits), so one
//   16-bit word brings it back.
// * Words of a group's four pairs come first, the literals of its escapes after them.
// * A slot table entry never holds freq = 2^scale_bits: the escape always owns a slot.
#pragma once
#include "format.h"

namespace codecllm {

constexpr uint32_t kRansL = 1u << 16;

// Slot table entry of the runtime table, 32 bits: bias 0..10, index of the first residual 11..15,
// freq 16..26, index of the second 27..31. The indices stand 16 bits apart: one shift and one mask
// put both in place.
constexpr int kBiasBits = 11, kFreqShift = 16, kIndexShift = 11;
constexpr uint32_t kBiasMask = (1u << kBiasBits) - 1;
constexpr uint32_t kIndexPair = 0x001f001f;
constexpr uint32_t kEscapeFrom = uint32_t(kEscapeIndex) << 27;  // entry >= this: an escape

// Scalar "register" of the step; SIMD backends give the same functions on vectors.
struct Scalar {
  using reg = uint32_t;
  static CLLM_HD reg set1(uint32_t v) { return v; }
  static CLLM_HD reg and_(reg a, reg b) { return a & b; }
  static CLLM_HD reg shr(reg a, int n) { return a >> n; }
  static CLLM_HD reg mul_add(reg a, reg b, reg c) { return a * b + c; }
};

// x = D(s, x): the state before the symbol was encoded, not yet renormalised.
template <class V>
CLLM_HD typename V::reg rans_advance(typename V::reg x, typename V::reg entry, int scale_bits) {
  typename V::reg field = V::set1(kBiasMask);
  typename V::reg freq = V::and_(V::shr(entry, kFreqShift), field);
  return V::mul_add(freq, V::shr(x, scale_bits), V::and_(entry, field));
}

// The coded fields of a pair, in place in the pair register, without the window base.
template <class V, int CodedShift>
CLLM_HD typename V::reg coded_fields(typename V::reg entry) {
  static_assert(CodedShift <= kIndexShift, "the indices only ever move right");
  return V::and_(V::shr(entry, kIndexShift - CodedShift), V::set1(kIndexPair << CodedShift));
}

// A literal (r0 + 256 * r1) as coded fields of a pair register.
CLLM_HD uint32_t literal_fields(uint32_t literal, uint32_t value_mask, int coded_shift) {
  return ((literal & value_mask) | (literal >> 8 & value_mask) << 16) << coded_shift;
}

}  // namespace codecllm
