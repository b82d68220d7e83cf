// The one list of codings that kernels read: how the words of a tile lie in memory. Kernels, plan
// and launch know a coding by what stands here and by its source (source.cuh), nothing else.
//
// A new coding: a folder like rans/ with needs.h and source.cuh, a struct and a case here, and an
// include in instantiate.cuh.
#pragma once
#include "../core/layout.h"
#include "rans/needs.h"

namespace codecllm::cuda {

template <class F, bool Left>
struct RansSource;

struct Rans {
  static constexpr Coding kCoding = Coding::rans;
  template <class F>
  static constexpr bool kCodes = true;
  // Sources of a format, by variant: the predictor.
  static constexpr int kVariants = 2;
  template <class F, int Variant>
  using Source = RansSource<F, Variant == 1>;

  static int variant_of(const CodedView& matrix) { return matrix.predictor; }
  static SourceNeeds needs(const CodedView& matrix, int64_t most_warp_bytes) {
    return rans_needs(matrix, most_warp_bytes);
  }
};

// A stored matrix never comes to a kernel: there is nothing to decode.
inline Coding coding_of(const CodedView&) { return Rans::kCoding; }

// Calls f with the coding of a matrix.
template <class Call>
bool with_coding(const CodedView& matrix, Call&& call) {
  switch (coding_of(matrix)) {
    case Rans::kCoding:
      call(Rans{});
      return true;
    default:
      return false;
  }
}

}  // namespace codecllm::cuda
