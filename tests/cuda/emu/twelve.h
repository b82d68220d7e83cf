// A coding that the project does not have, to see that kernels, plan and launch take another one
// than rANS as it is: bf16 in 12 bits of fixed length. 15 exponents in a row are codes; the rest is
// zero in its place and stands in a list. It shares nothing, stages nothing, scales x and sums.
//
//   raw: for each tile and group three words to a lane: pairs 0 to 2, pair 3 in their free bits
//   stream: uint32 [tiles + 1], where a tile's list begins; then position << 16 | word
//   table: as for rans, window_base is the exponent below the first code
#pragma once
#include "../../../csrc/cuda/block.h"

namespace codecllm::cuda {

template <class F>
struct TwelveSource;

struct Twelve {
  static constexpr Coding kCoding = Coding(2);
  template <class F>
  static constexpr bool kCodes = kSameKind<F, Bf16>;
  static constexpr int kVariants = 1;
  template <class F, int>
  using Source = TwelveSource<F>;

  static int variant_of(const CodedView&) { return 0; }
  static SourceNeeds needs(const CodedView&, int64_t) {
    SourceNeeds needs = {};
    needs.ways[0] = {0, 0.01};
    needs.n_ways = 1;
    return needs;
  }
};

}  // namespace codecllm::cuda

#define CLLM_MORE_CODINGS(CODING) CODING(Twelve)
