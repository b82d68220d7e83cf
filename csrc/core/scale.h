// What scales mean: float32 factors of a tensor or of its rows, beside the words (docs/format.md).
#pragma once
#include "format.h"
#include "layout.h"

namespace codecllm {

struct Scale {
  const float* factors;  // [1] or [rows]; null: none
  bool per_row;

  static CLLM_HD Scale of(ScaleKind kind, const float* factors) {
    return {kind == kNoScale ? nullptr : factors, kind == kRowScale};
  }
  // Factors of a matrix.
  static CLLM_HD int64_t count(ScaleKind kind, int64_t rows) {
    return kind == kNoScale ? 0 : kind == kTensorScale ? 1 : rows;
  }

  CLLM_HD explicit operator bool() const { return factors != nullptr; }
  CLLM_HD float of_row(int64_t row) const { return factors ? factors[per_row ? row : 0] : 1.f; }
  // A sum of products of a row's words, or one word's value.
  CLLM_HD float apply(float value, int64_t row) const {
    return factors ? value * factors[per_row ? row : 0] : value;
  }
};

}  // namespace codecllm
