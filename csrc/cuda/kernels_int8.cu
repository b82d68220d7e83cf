#include "instantiate.cuh"

namespace codecllm::cuda {
extern const FormatKernels kInt8Kernels;
const FormatKernels kInt8Kernels = format_kernels<Int8>();
}  // namespace codecllm::cuda
