// What csrc/cuda/launch.h wants of the CUDA runtime, for the emulator.
#pragma once
#include "../cuda_emu.h"

using cudaError_t = int;
using cudaStream_t = void*;
constexpr int cudaSuccess = 0, cudaErrorInvalidValue = 1;
struct dim3 {
  unsigned x, y;
  explicit dim3(unsigned x, unsigned y = 1) : x(x), y(y) {}
};

namespace codecllm::cuda {
template <class Args>
cudaError_t launch(void (*kernel)(Args), dim3 grid, int threads, int shared, cudaStream_t,
                   Args args, int most_shared = 0) {
  if (shared > 40 << 10 && shared > most_shared) emu::fail("launch: more shared memory than asked");
  emu::launch(kernel, {grid.x, grid.y, 1}, threads, shared, args);
  return cudaSuccess;
}
}  // namespace codecllm::cuda
