// The op argument `layout`: what kernels must know on the host, in one integer. `kLayoutFields` is
// its only definition in C++; codecllm_ops/format/layout_word.py has the one in Python, and
// tests/format/test_constants.py compares them.
#pragma once
#include <stdint.h>

namespace codecllm {

struct LayoutField {
  const char* name;
  int first_bit, bits;
};

enum LayoutFieldNumber { kFormat, kCoding, kScaleBits, kPredictor, kScaleKind, kTileCols };
constexpr LayoutField kLayoutFields[] = {
    {"format", 0, 8},     {"coding", 8, 2},      {"scale_bits", 10, 4},
    {"predictor", 14, 1}, {"scale_kind", 15, 2}, {"tile_cols", 32, 16},
};

enum class Coding { rans, stored, fixed };
constexpr int kCodings = 3;

enum ScaleKind { kNoScale, kTensorScale, kRowScale };
constexpr int kScaleKinds = 3;

struct Layout {
  int format, scale_bits, predictor, tile_cols;
  Coding coding;
  ScaleKind scale_kind;
  bool known;  // no bit without a meaning; else nothing else here may be used

  explicit Layout(int64_t word)
      : format(get(word, kFormat)),
        scale_bits(get(word, kScaleBits)),
        predictor(get(word, kPredictor)),
        tile_cols(get(word, kTileCols)),
        coding(Coding(get(word, kCoding))),
        scale_kind(ScaleKind(get(word, kScaleKind))),
        known((word & ~known_bits()) == 0 && get(word, kCoding) < kCodings &&
              get(word, kScaleKind) < kScaleKinds) {}

  bool stored() const { return coding == Coding::stored; }

 private:
  static constexpr int get(int64_t word, LayoutFieldNumber n) {
    return int(word >> kLayoutFields[n].first_bit & ((int64_t(1) << kLayoutFields[n].bits) - 1));
  }
  static constexpr int64_t known_bits() {
    int64_t all = 0;
    for (const LayoutField& f : kLayoutFields) all |= ((int64_t(1) << f.bits) - 1) << f.first_bit;
    return all;
  }
};

}  // namespace codecllm
