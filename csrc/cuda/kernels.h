// The kernels of a weight format: pointers, so that formats compile apart from each other.
#pragma once
#include "plan.h"

namespace codecllm::cuda {

using LinearKernel = void (*)(LinearArgs);
using DecodeKernel = void (*)(DecodeArgs);

struct FormatKernels {
  LinearKernel mma[2][kMmaSizes];  // [x is fp16][log2 n]; null where an MMA is not exact
  LinearKernel fma[2];             // [predictor]
  DecodeKernel matrix[2], rows[2];
};

// null for an unknown id
const FormatKernels* kernels_of(int format);

}  // namespace codecllm::cuda
