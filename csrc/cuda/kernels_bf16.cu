#include "instantiate.cuh"

namespace codecllm::cuda {
extern const FormatKernels kBf16Kernels;
const FormatKernels kBf16Kernels = format_kernels<Bf16>();
}  // namespace codecllm::cuda
