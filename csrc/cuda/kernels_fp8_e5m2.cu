#include "instantiate.cuh"

namespace codecllm::cuda {
extern const FormatKernels kFp8E5m2Kernels;
const FormatKernels kFp8E5m2Kernels = format_kernels<Fp8E5m2>();
}  // namespace codecllm::cuda
