// All kernels of a weight format, in all codings. A kernels_*.cu is this file and one line.
#pragma once
#include "decode.cuh"
#include "fixed/source.cuh"
#include "kernels.h"
#include "linear_fma.cuh"
#include "linear_mma.cuh"
#include "rans/source.cuh"

namespace codecllm::cuda {

template <class S, class B16, int Log2 = 0>
constexpr void add_mma_kernels(MmaKernel (&kernels)[kMmaSizes]) {
  if constexpr (S::kMma && kExact<typename S::Format, B16> && Log2 < kMmaSizes) {
    kernels[Log2] = {linear_mma<S, B16, 1 << Log2>, S::max_warps(1 << Log2)};
    add_mma_kernels<S, B16, Log2 + 1>(kernels);
  }
}

template <class S>
constexpr SourceKernels make_kernels() {
  SourceKernels kernels = {};
  add_mma_kernels<S, Bf16>(kernels.mma[0]);
  add_mma_kernels<S, Fp16>(kernels.mma[1]);
  kernels.fma = linear_fma<S>;
  kernels.matrix = decode_matrix<S>;
  kernels.rows = decode_rows<S>;
  return kernels;
}

template <class Coding, class F, int Variant = 0>
const SourceKernels* kernels_of_variant(int wanted) {
  if constexpr (Variant < Coding::kVariants) {
    static constexpr SourceKernels kernels =
        make_kernels<typename Coding::template Source<F, Variant>>();
    return wanted == Variant ? &kernels : kernels_of_variant<Coding, F, Variant + 1>(wanted);
  }
  return nullptr;
}

template <class F>
const SourceKernels* kernels_of_format(const CodedView& matrix) {
  const SourceKernels* found = nullptr;
  with_coding(matrix, [&](auto coding) {
    using Coding = decltype(coding);
    if constexpr (Coding::template kCodes<F>)
      found = kernels_of_variant<Coding, F>(Coding::variant_of(matrix));
  });
  return found;
}

}  // namespace codecllm::cuda
