#include "launch.h"

#include <algorithm>

#include "linear_reduce.cuh"
#include "prepare.h"

namespace codecllm::cuda {
namespace {

// Threads and dynamic shared memory of a block; `most_shared` is 0 for kernels without any.
struct Block {
  int threads, shared = 0, most_shared = 0;
};

Block block_of(const BlockLayout& layout, int most_shared) {
  return {32 * layout.warps, layout.bytes(), most_shared};
}

template <class Args>
cudaError_t launch(void (*kernel)(Args), dim3 grid, const Block& block, cudaStream_t stream,
                   Args args) {
  if (!kernel) return cudaErrorInvalidValue;
  if (const cudaError_t e = prepare_kernel((const void*)kernel, block.most_shared, stream))
    return e;
#if defined(CLLM_EMU)
  return emulated_launch(kernel, grid, block.threads, block.shared, args);
#else
  void* pointers[] = {&args};
  return cudaLaunchKernel((const void*)kernel, grid, dim3(unsigned(block.threads)), pointers,
                          size_t(block.shared), stream);
#endif
}

unsigned clamp_grid(int64_t blocks) {
  return unsigned(std::max<int64_t>(1, std::min<int64_t>(blocks, (1u << 31) - 1)));
}

}  // namespace

cudaError_t device_properties(int device, Device& out) {
  return read_device(device, (const void*)linear_reduce, out);
}

int64_t workspace_floats(const LinearPlan& plan, int64_t x_rows, int64_t rows) {
  return plan.chunks > 1 ? plan.chunks * x_rows * rows : 0;
}

cudaError_t launch_linear(LinearArgs a, const LinearPlan& plan, cudaStream_t stream) {
  a.chunks = plan.chunks;
  if (plan.path == Path::fma) {
    const dim3 grid(clamp_grid(plan.grid), unsigned(ceil_div(a.x_rows, kFmaRows)));
    return launch(plan.kernel, grid, {32 * kFmaWarps}, stream, a);
  }
  if (plan.path != Path::mma) return cudaErrorInvalidValue;
  a.x_in_quads = a.matrix.cols % 8 == 0 && uintptr_t(a.x) % 16 == 0;
  a.chunk_tiles = plan.chunk_tiles;
  a.band_rows = plan.band_rows;
  a.x_bytes = plan.x_bytes;
  a.block = plan.block;
  const dim3 grid(clamp_grid(plan.grid), unsigned(plan.chunks));
  if (const cudaError_t e =
          launch(plan.kernel, grid, block_of(plan.block, plan.most_shared), stream, a))
    return e;
  if (plan.chunks == 1) return cudaSuccess;
  const int64_t blocks = std::min<int64_t>(ceil_div(a.x_rows * a.matrix.rows, 256), 1 << 16);
  return launch(&linear_reduce, dim3(clamp_grid(blocks)), {256}, stream, a);
}

cudaError_t launch_decode(DecodeArgs a, const DecodePlan& plan, cudaStream_t stream) {
  a.block = plan.block;
  return launch(plan.kernel, dim3(clamp_grid(plan.grid)), block_of(plan.block, plan.most_shared),
                stream, a);
}

cudaError_t launch_decode_rows(DecodeArgs a, int processors, cudaStream_t stream) {
  const SourceKernels* kernels = kernels_of(a.matrix);
  if (!kernels) return cudaErrorInvalidValue;
  const int64_t warps = ceil_div(a.ids_count, 8) * a.matrix.col_tiles;
  const int64_t blocks = std::min<int64_t>(ceil_div(warps, 4), 16 * processors);
  return launch(kernels->rows, dim3(clamp_grid(blocks)), {128}, stream, a);
}

cudaError_t launch_to_fixed(ToFixedArgs a, const ToFixedPlan& plan, bool list,
                            cudaStream_t stream) {
  a.block = plan.block;
  return launch(list ? plan.kernels.list : plan.kernels.plane, dim3(clamp_grid(plan.grid)),
                block_of(plan.block, plan.most_shared), stream, a);
}

}  // namespace codecllm::cuda
