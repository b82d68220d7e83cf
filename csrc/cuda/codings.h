// The one list of codings that kernels read: how the words of a tile lie in memory. Kernels, plan
// and launch know a coding by what stands here and by its source (source.cuh), nothing else.
//
// A new coding: a folder like rans/ with needs.h and source.cuh, a struct and a word in the list
// here, and an include in instantiate.cuh. The struct says
//
//   kCoding             what CodedView calls it
//   kCodes<F>           whether it codes weights of format F
//   kVariants, Source   sources of a format by variant, and how many
//   variant_of(matrix)  which of them reads a matrix
//   needs(matrix, ..)   what a block must have (block.h)
#pragma once
#include "fixed/needs.h"
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

template <class F>
struct FixedSource;

struct Fixed {
  static constexpr Coding kCoding = Coding::fixed;
  template <class F>
  static constexpr bool kCodes = kSameKind<F, Bf16>;
  static constexpr int kVariants = 1;
  template <class F, int>
  using Source = FixedSource<F>;

  static int variant_of(const CodedView&) { return 0; }
  static SourceNeeds needs(const CodedView&, int64_t) { return fixed_needs(); }
};

// The list. `stored` is not in it: there is nothing to decode.
#define CLLM_CODINGS(CODING) CODING(Rans) CODING(Fixed)

// Calls f with the coding of a matrix; false if no kernel reads it.
template <class Call>
bool with_coding(const CodedView& matrix, Call&& call) {
  switch (int(matrix.coding)) {
#define CLLM_CODING(name)  \
  case int(name::kCoding): \
    call(name{});          \
    return true;
    CLLM_CODINGS(CLLM_CODING)
#undef CLLM_CODING
    default:
      return false;
  }
}

}  // namespace codecllm::cuda
