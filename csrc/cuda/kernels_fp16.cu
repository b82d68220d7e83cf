#include "instantiate.cuh"

namespace codecllm::cuda {
extern const FormatKernels kFp16Kernels;
const FormatKernels kFp16Kernels = format_kernels<Fp16>();
}  // namespace codecllm::cuda
