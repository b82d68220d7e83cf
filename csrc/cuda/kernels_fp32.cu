#include "instantiate.cuh"

namespace codecllm::cuda {
extern const FormatKernels kFp32Kernels;
const FormatKernels kFp32Kernels = format_kernels<Fp32>();
}  // namespace codecllm::cuda
