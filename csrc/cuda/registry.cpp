#include "kernels.h"

namespace codecllm::cuda {

extern const FormatKernels kBf16Kernels, kFp16Kernels, kFp32Kernels, kFp8E4m3Kernels,
    kFp8E5m2Kernels, kInt8Kernels;

const FormatKernels* kernels_of(int format) {
  switch (format) {
    case Bf16::fmt.id:
      return &kBf16Kernels;
    case Fp16::fmt.id:
      return &kFp16Kernels;
    case Fp32::fmt.id:
      return &kFp32Kernels;
    case Fp8E4m3::fmt.id:
      return &kFp8E4m3Kernels;
    case Fp8E5m2::fmt.id:
      return &kFp8E5m2Kernels;
    case Int8::fmt.id:
      return &kInt8Kernels;
    default:
      return nullptr;
  }
}

}  // namespace codecllm::cuda
