// From pair registers to the words of a matrix.
#pragma once
#include <string.h>

#include "../core/format.h"

namespace codecllm {
namespace {

// Eight columns (a run of four pairs, 16 bytes of halves) as words of the output.
template <class F>
CLLM_INLINE void write_run(const uint32_t* pairs, const uint32_t* low, uint8_t* out) {
  if constexpr (F::fmt.word_bits == 16) {
    memcpy(out, pairs, 16);
  } else {
    uint16_t halves[8];
    memcpy(halves, pairs, 16);
    if constexpr (F::fmt.word_bits == 32) {
      uint16_t low_halves[8];
      uint32_t words[8];
      memcpy(low_halves, low, 16);
      for (int i = 0; i < 8; ++i) words[i] = uint32_t(halves[i]) << 16 | low_halves[i];
      memcpy(out, words, 32);
    } else {
      uint8_t words[8];
      for (int i = 0; i < 8; ++i) words[i] = uint8_t(halves[i]);
      memcpy(out, words, 8);
    }
  }
}

// `cols` words of a row. Its runs of four pairs are `apart` from each other.
template <class F>
CLLM_INLINE void write_words(const uint32_t* pairs, const uint32_t* low, int64_t apart, int cols,
                             uint8_t* out) {
  constexpr int kRunBytes = 8 * F::fmt.word_bytes();
  for (int left = cols / 8; left > 0; --left) {
    write_run<F>(pairs, low, out);
    pairs += apart;
    low += apart;
    out += kRunBytes;
  }
  if (cols % 8 == 0) return;
  uint8_t run[kRunBytes];
  write_run<F>(pairs, low, run);
  memcpy(out, run, size_t(cols % 8) * F::fmt.word_bytes());
}

}  // namespace
}  // namespace codecllm
