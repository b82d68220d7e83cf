// Three ways to the same number, by what the machine can do.
//
// Folding: a message is a polynomial over GF(2), and its remainder does not change when a piece of
// it is moved D bits towards the end and multiplied by x^D modulo P. So four registers walk over
// the message, each folded by the width of all four, and what they hold at the end is a short
// message with the remainder of the long one; the tables do the rest. (Gopal et al., "Fast CRC
// Computation Using PCLMULQDQ", Intel 2009.)
//
// Trap: bits are reflected, bit 0 of a byte is the highest power. A product of two reflected
// polynomials is one bit lower than the reflected product, hence the shift in fold_factor.
#include "crc32.h"

#include <string.h>

#ifndef CLLM_NO_X86
#include <immintrin.h>
#endif

namespace codecllm {
namespace {

constexpr uint32_t kPolynomial = 0xedb88320;  // x^32 left out; x^31 is bit 0
constexpr uint32_t kOne = 1u << 31;           // x^0

constexpr uint32_t times_x(uint32_t a) { return a >> 1 ^ (a & 1 ? kPolynomial : 0); }

constexpr uint32_t multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t bit = kOne; bit; bit >>= 1, b = times_x(b))
    if (a & bit) product ^= b;
  return product;
}

// x^n modulo P.
constexpr uint32_t power_of_x(uint64_t n) {
  uint32_t power = kOne, square = times_x(kOne);
  for (; n; n >>= 1, square = multiply(square, square))
    if (n & 1) power = multiply(power, square);
  return power;
}

// ---- tables -------------------------------------------------------------------------------------

struct Tables {
  uint32_t of[8][256];  // [bytes behind it][byte]

  constexpr Tables() : of{} {
    for (uint32_t byte = 0; byte < 256; ++byte) {
      uint32_t crc = byte;
      for (int bit = 0; bit < 8; ++bit) crc = times_x(crc);
      of[0][byte] = crc;
    }
    for (int n = 1; n < 8; ++n)
      for (int byte = 0; byte < 256; ++byte)
        of[n][byte] = of[n - 1][byte] >> 8 ^ of[0][of[n - 1][byte] & 255];
  }
};
constexpr Tables kTables;

// `state`: the complement of a CRC.
uint32_t by_tables(uint32_t state, const uint8_t* at, size_t bytes) {
  for (; bytes >= 8; at += 8, bytes -= 8) {
    uint64_t next;
    memcpy(&next, at, 8);
    next ^= state;
    state = 0;
    for (int i = 0; i < 8; ++i) state ^= kTables.of[7 - i][next >> 8 * i & 255];
  }
  for (; bytes; ++at, --bytes) state = state >> 8 ^ kTables.of[0][(state ^ *at) & 255];
  return state;
}

// ---- folding ------------------------------------------------------------------------------------

#ifndef CLLM_NO_X86

// What the 64 bits at the front of 128, or those behind them, are multiplied with when they move
// `bits` bits: a product of 64 and 32 bits takes up 96 of the 128 at its new place.
constexpr long long fold_factor(int bits, bool front) {
  return (long long)(uint64_t(power_of_x(uint64_t(bits + (front ? 32 : -32)))) << 1);
}
static_assert(fold_factor(128, true) == 0x1751997d0 && fold_factor(128, false) == 0xccaa009e);

constexpr int kRegisters = 4;  // enough to hide the latency of a multiplication

__attribute__((target("pclmul,sse2"))) uint32_t by_pclmul(uint32_t state, const uint8_t* at,
                                                          size_t bytes) {
  constexpr int kWidth = 16 * kRegisters;
  if (bytes < kWidth) return by_tables(state, at, bytes);
  const __m128i by = _mm_set_epi64x(fold_factor(8 * kWidth, false), fold_factor(8 * kWidth, true));
  __m128i folded[kRegisters];
  for (int i = 0; i < kRegisters; ++i) folded[i] = _mm_loadu_si128((const __m128i*)(at + 16 * i));
  folded[0] = _mm_xor_si128(folded[0], _mm_cvtsi32_si128(int(state)));
  for (at += kWidth, bytes -= kWidth; bytes >= kWidth; at += kWidth, bytes -= kWidth)
    for (int i = 0; i < kRegisters; ++i) {
      const __m128i next = _mm_loadu_si128((const __m128i*)(at + 16 * i));
      const __m128i front = _mm_clmulepi64_si128(folded[i], by, 0x00);
      const __m128i behind = _mm_clmulepi64_si128(folded[i], by, 0x11);
      folded[i] = _mm_xor_si128(next, _mm_xor_si128(front, behind));
    }
  uint8_t rest[kWidth];
  memcpy(rest, folded, kWidth);
  return by_tables(by_tables(0, rest, kWidth), at, bytes);
}

__attribute__((target("avx512f,vpclmulqdq"))) uint32_t by_vpclmul(uint32_t state, const uint8_t* at,
                                                                  size_t bytes) {
  constexpr int kWidth = 64 * kRegisters;
  if (bytes < 2 * kWidth) return by_pclmul(state, at, bytes);
  const __m512i by = _mm512_broadcast_i32x4(
      _mm_set_epi64x(fold_factor(8 * kWidth, false), fold_factor(8 * kWidth, true)));
  __m512i folded[kRegisters];
  for (int i = 0; i < kRegisters; ++i) folded[i] = _mm512_loadu_si512(at + 64 * i);
  folded[0] = _mm512_xor_si512(folded[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128(int(state))));
  for (at += kWidth, bytes -= kWidth; bytes >= kWidth; at += kWidth, bytes -= kWidth)
    for (int i = 0; i < kRegisters; ++i) {
      const __m512i next = _mm512_loadu_si512(at + 64 * i);
      const __m512i front = _mm512_clmulepi64_epi128(folded[i], by, 0x00);
      const __m512i behind = _mm512_clmulepi64_epi128(folded[i], by, 0x11);
      folded[i] = _mm512_ternarylogic_epi64(next, front, behind, 0x96);
    }
  uint8_t rest[kWidth];
  memcpy(rest, folded, kWidth);
  return by_pclmul(by_pclmul(0, rest, kWidth), at, bytes);
}

#endif

}  // namespace

bool crc32_supported(Crc32Way way) {
#ifndef CLLM_NO_X86
  if (way == Crc32Way::pclmul) return __builtin_cpu_supports("pclmul");
  if (way == Crc32Way::vpclmul)
    return crc32_supported(Crc32Way::pclmul) && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("vpclmulqdq");
#endif
  return way == Crc32Way::tables;
}

uint32_t crc32(Crc32Way way, uint32_t before, const uint8_t* at, size_t bytes) {
#ifndef CLLM_NO_X86
  if (way == Crc32Way::vpclmul) return ~by_vpclmul(~before, at, bytes);
  if (way == Crc32Way::pclmul) return ~by_pclmul(~before, at, bytes);
#endif
  return ~by_tables(~before, at, bytes);
}

uint32_t crc32_combine(uint32_t first, uint32_t second, uint64_t bytes) {
  return multiply(power_of_x(8 * bytes), first) ^ second;
}

}  // namespace codecllm
