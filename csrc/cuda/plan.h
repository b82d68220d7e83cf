// Which kernel runs for a shape, with how many blocks, warps and bytes. Host code without CUDA.
#pragma once
#include "kernels.h"

namespace codecllm::cuda {

struct Device {
  int arch;              // 10 * major + minor
  int processors;        // streaming multiprocessors
  int shared_per_block;  // bytes, opted in
  int shared_per_processor;
  bool has_code;  // this library was compiled for it
};

// none: no fused kernel; decode, then GEMM.
enum class Path { none, mma, fma };

struct LinearPlan {
  Path path;
  LinearKernel kernel;
  int log2_rows;                                // linear_mma's rows of x, a power of two
  int chunks, chunk_tiles, band_rows, x_bytes;  // as in LinearArgs
  int64_t grid;                                 // blocks along x
  BlockLayout block;
  int most_shared;  // bytes that any block may have on this device
};

struct DecodePlan {
  DecodeKernel kernel;
  int64_t grid;
  BlockLayout block;
  int most_shared;
};

// Plans are the same for all x_rows up to one power of two.
LinearPlan plan_linear(const CodedView& matrix, int64_t x_rows, Dtype dtype, const Device& device);
DecodePlan plan_decode(const CodedView& matrix, const Device& device);

// The same, remembered: layers of one shape share a plan, and a call does not make one. Any thread.
LinearPlan cached_plan_linear(const CodedView& matrix, int64_t x_rows, Dtype dtype,
                              const Device& device);

}  // namespace codecllm::cuda
