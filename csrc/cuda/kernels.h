// The kernels of a source: pointers, so that formats compile apart from each other.
#pragma once
#include "args.h"

namespace codecllm::cuda {

using LinearKernel = void (*)(LinearArgs);
using DecodeKernel = void (*)(DecodeArgs);

struct MmaKernel {
  LinearKernel function;  // null where an MMA is not exact, or not worth it
  int max_warps;          // of a block
};

struct SourceKernels {
  MmaKernel mma[2][kMmaSizes];  // [x is fp16][log2 of the rows of x that have room]
  LinearKernel fma;
  DecodeKernel matrix, rows;
};

// In instantiate.cuh; kernels_<format>.cu compiles it. A format of the list (core/format.h) that
// has no such file is an undefined symbol.
template <class F>
const SourceKernels* kernels_of_format(const CodedView& matrix);

// null for a coding or format that is not known
const SourceKernels* kernels_of(const CodedView& matrix);

}  // namespace codecllm::cuda
