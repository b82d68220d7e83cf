// Which kernel runs for a shape, with how many blocks, warps and bytes. Host code without CUDA.
#pragma once
#include "decode.h"

namespace codecllm::cuda {

struct Device {
  int arch;              // 10 * major + minor
  int processors;        // streaming multiprocessors
  int shared_per_block;  // bytes, opted in
  int shared_per_processor;
  bool has_code;  // this library was compiled for it
};

enum class Path { mma, fma, gemm };

struct LinearPlan {
  Path path;
  int log2_n;                                    // linear_mma's columns of x
  int tile_rows, tile_columns, chunks, x_bytes;  // as in LinearArgs
  int64_t grid;                                  // blocks along x
  BlockLayout block;
  int most_shared;  // bytes that any block may have on this device
};

// Whether linear_mma exists for a weight format, an activation and a GPU.
bool has_mma(int format, Dtype dtype, int predictor, int arch);

LinearPlan plan_linear(const CodedView& matrix, int64_t m, Dtype dtype, const Device& device);

struct DecodePlan {
  int64_t grid;
  BlockLayout block;
  int most_shared;
};
DecodePlan plan_decode(const CodedView& matrix, const Device& device);

}  // namespace codecllm::cuda
