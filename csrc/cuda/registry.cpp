#include "kernels.h"

namespace codecllm::cuda {

const SourceKernels* kernels_of(const CodedView& matrix) {
  const SourceKernels* found = nullptr;
  with_format(matrix.format,
              [&](auto format) { found = kernels_of_format<decltype(format)>(matrix); });
  return found;
}

}  // namespace codecllm::cuda
