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

// `cols` words of a row; run_at(col): where its pairs from column `col` on are, col a multiple
// of 8.
template <class F, class RunAt>
CLLM_INLINE void write_words(const uint32_t* pairs, const uint32_t* low, int cols, uint8_t* out,
                             RunAt&& run_at) {
  constexpr int kBytes = F::fmt.word_bytes();
  for (int col = 0; col < cols; col += 8) {
    const int at = run_at(col);
    if (col + 8 <= cols) {
      write_run<F>(pairs + at, low + at, out + col * kBytes);
    } else {
      uint8_t run[8 * kBytes];
      write_run<F>(pairs + at, low + at, run);
      memcpy(out + col * kBytes, run, size_t(cols - col) * kBytes);
    }
  }
}

}  // namespace
}  // namespace codecllm
