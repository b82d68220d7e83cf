#include "instantiate.cuh"

namespace codecllm::cuda {
extern const FormatKernels kFp8E4m3Kernels;
const FormatKernels kFp8E4m3Kernels = format_kernels<Fp8E4m3>();
}  // namespace codecllm::cuda
