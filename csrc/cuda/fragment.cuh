// Pair registers to fragments of the tensor cores' operand A: two bf16 or fp16 numbers, the exact
// values of the weights. Input: halves as decoded, without the format's `flip`.
#pragma once
#include "device.cuh"

namespace codecllm::cuda {

CLLM_HD constexpr uint32_t both(uint32_t half) { return half * 0x10001u; }

// How words of a kind become numbers of a 16-bit kind. Where there is no exact way, `exact` is
// false and an MMA cannot multiply the format. `fix`: whether infinities and NaNs come out as
// finite numbers.
template <class Kind, class To>
struct FragmentOf {
  static constexpr bool exact = false, fix = false;
};

template <int E, int M>
struct FragmentOf<Float<E, M, true>, Float<E, M, true>> {
  static constexpr bool exact = true, fix = false;
  template <class B16>
  static CLLM_DEVICE uint32_t get(uint32_t u) {
    return u;
  }
};

// An integer u = q + 128 goes to the mantissa of a number with unit 1, then the offset is taken
// off.
template <>
struct FragmentOf<Integer<8>, Fp16::Kind> {
  static constexpr bool exact = true, fix = false;
  template <class B16>
  static CLLM_DEVICE uint32_t get(uint32_t u) {
    return fma2<B16>(u | both(0x6400), both(0x3c00), both(0xe480));
  }
};
// bf16 has 7 bits for u: its top bit chooses between two offsets, -256 and -128.
template <>
struct FragmentOf<Integer<8>, Bf16::Kind> {
  static constexpr bool exact = true, fix = false;
  template <class B16>
  static CLLM_DEVICE uint32_t get(uint32_t u) {
    const uint32_t offset = (u & both(0x0080)) ^ both(0xc380);
    return fma2<B16>((u & both(0x007f)) | both(0x4300), both(0x3f80), offset);
  }
};

// A float of 8 bits: exponent and mantissa in place, times two to the power of the difference of
// the biases, so that subnormals come out right as well. Of equal exponents only the place changes.
template <int E, int M, bool HasInf, int ToE, int ToM>
struct FragmentOf<Float<E, M, HasInf>, Float<ToE, ToM, true>> {
  static constexpr bool same_exponent = E == ToE && HasInf;
  static constexpr bool exact = 1 + E + M == 8 && M <= ToM && (E < ToE || same_exponent);
  static constexpr bool fix = !same_exponent;
  static constexpr uint32_t bias = (1u << (E - 1)) - 1, to_bias = (1u << (ToE - 1)) - 1;
  static constexpr uint32_t mantissa = (1u << M) - 1;

  template <class B16>
  static CLLM_DEVICE uint32_t get(uint32_t u) {
    if constexpr (same_exponent) return u << 8;
    constexpr uint32_t kMinusZero = both(0x8000);
    constexpr uint32_t kMagnitude = both(0x7fu << (ToM - M));
    constexpr uint32_t kFactor = both((2 * to_bias - bias) << ToM);
    const uint32_t v = (u << 8 & kMinusZero) | (u << (ToM - M) & kMagnitude);
    return fma2<B16>(v, kFactor, kMinusZero);
  }
  // Bit 7 of a half that is an infinity or NaN, and no other bit.
  static CLLM_DEVICE uint32_t specials(uint32_t u) {
    constexpr uint32_t kFrom = HasInf ? 0x7fu & ~mantissa : 0x7fu;
    constexpr uint32_t kStep = HasInf ? 1u << M : 1u;
    return ((u & both(kFrom)) + both(kStep)) & both(0x80);
  }
  static CLLM_DEVICE uint32_t fixed(uint32_t u, uint32_t fragment) {
    constexpr uint32_t kInfinity = ((1u << ToE) - 1) << ToM, kQuiet = 1u << (ToM - 1);
    const uint32_t found = specials(u);
#pragma unroll
    for (int h = 0; h < 32; h += 16) {
      if (!(found >> h & 0x80)) continue;
      uint32_t value = kInfinity | (u >> h & 0x80) << 8;
      if (!HasInf || (u >> h & mantissa)) value |= kQuiet;
      fragment = (fragment & ~(0xffffu << h)) | value << h;
    }
    return fragment;
  }
};

// Formats whose values all fit into B16 exactly, so that an MMA can multiply them.
template <class F, class B16>
constexpr bool kExact = FragmentOf<typename F::Kind, typename B16::Kind>::exact;

template <class F, class B16>
CLLM_DEVICE void to_fragment(const uint32_t (&pairs)[kPairsPerGroup],
                             uint32_t (&a)[kPairsPerGroup]) {
  using Fragment = FragmentOf<typename F::Kind, typename B16::Kind>;
  uint32_t found = 0;
#pragma unroll
  for (int j = 0; j < kPairsPerGroup; ++j) {
    a[j] = Fragment::template get<B16>(pairs[j]);
    if constexpr (Fragment::fix) found |= Fragment::specials(pairs[j]);
  }
  if constexpr (Fragment::fix) {
    if (!found) return;
#pragma unroll
    for (int j = 0; j < kPairsPerGroup; ++j) a[j] = Fragment::fixed(pairs[j], a[j]);
  }
}

}  // namespace codecllm::cuda
