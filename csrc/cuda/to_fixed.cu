// The kernels that make `fixed` of bf16 matrices in other codings.
#include "fixed/to_fixed.cuh"

#include "fixed/dense.cuh"
#include "rans/source.cuh"

namespace codecllm::cuda {
namespace {

template <class S>
constexpr ToFixedKernels kernels_from() {
  return {to_fixed<S, false>, to_fixed<S, true>};
}

}  // namespace

ToFixedKernels to_fixed_kernels(const CodedView& source) {
  if (source.format != Bf16::fmt.id) return {};
  if (source.coding == Coding::stored) return kernels_from<DenseSource<Bf16>>();
  if (source.coding != Coding::rans) return {};
  return source.predictor ? kernels_from<RansSource<Bf16, true>>()
                          : kernels_from<RansSource<Bf16, false>>();
}

}  // namespace codecllm::cuda
