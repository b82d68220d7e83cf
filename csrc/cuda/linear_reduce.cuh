// The last step of decode_linear where a block could not hold x for all columns. No template: only
// launch.cu includes it.
#pragma once
#include "store.cuh"

namespace codecllm::cuda {

// Adds the chunks: one thread an output.
__global__ void __launch_bounds__(256) linear_reduce(const LinearArgs a) {
  const int64_t rows = a.matrix.rows, count = a.x_rows * rows;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += int64_t(gridDim.x) * blockDim.x) {
    float sum = 0;
    for (int chunk = 0; chunk < a.chunks; ++chunk) sum += a.partial[chunk * count + i];
    finish(a, i / rows, i % rows, sum);
  }
}

}  // namespace codecllm::cuda
