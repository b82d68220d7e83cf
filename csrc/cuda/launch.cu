#include "launch.h"

#include <algorithm>
#include <atomic>

#include "kernels.h"
#include "linear_fma.cuh"
#include "linear_reduce.cuh"

namespace codecllm::cuda {
namespace {

constexpr int kMaxDevices = 64;

#if !defined(CLLM_EMU)
// More than 48 KB of shared memory has to be asked for. Always for the most: the attribute belongs
// to the kernel, and another thread's smaller block must not take it away before the launch.
template <class Args>
cudaError_t opt_in(void (*kernel)(Args), int bytes, int most) {
  return bytes <= 40 << 10
             ? cudaSuccess
             : cudaFuncSetAttribute((const void*)kernel,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, most);
}

template <class Args>
cudaError_t launch(void (*kernel)(Args), dim3 grid, int threads, int shared, cudaStream_t stream,
                   Args args, int most_shared = 0) {
  if (cudaError_t e = opt_in(kernel, shared, most_shared)) return e;
  void* pointers[] = {&args};
  return cudaLaunchKernel((const void*)kernel, grid, dim3(unsigned(threads)), pointers,
                          size_t(shared), stream);
}
#endif

unsigned clamp_grid(int64_t blocks) {
  return unsigned(std::max<int64_t>(1, std::min<int64_t>(blocks, (1u << 31) - 1)));
}

}  // namespace

#if !defined(CLLM_EMU)
// The device must be the current one.
cudaError_t device_properties(int device, Device& out) {
  // Filled twice at worst, with the same values.
  static std::atomic<bool> known[kMaxDevices];
  static Device properties[kMaxDevices];
  const bool cached = device >= 0 && device < kMaxDevices;
  if (cached && known[device].load(std::memory_order_acquire))
    return out = properties[device], cudaSuccess;
  const auto get = [device](cudaDeviceAttr attribute, int& value) {
    return cudaDeviceGetAttribute(&value, attribute, device);
  };
  int major = 0, minor = 0;
  if (cudaError_t e = get(cudaDevAttrComputeCapabilityMajor, major)) return e;
  if (cudaError_t e = get(cudaDevAttrComputeCapabilityMinor, minor)) return e;
  if (cudaError_t e = get(cudaDevAttrMultiProcessorCount, out.processors)) return e;
  if (cudaError_t e = get(cudaDevAttrMaxSharedMemoryPerBlockOptin, out.shared_per_block)) return e;
  if (cudaError_t e = get(cudaDevAttrMaxSharedMemoryPerMultiprocessor, out.shared_per_processor))
    return e;
  out.arch = 10 * major + minor;
  cudaFuncAttributes ignored;
  out.has_code = cudaFuncGetAttributes(&ignored, (const void*)linear_reduce) == cudaSuccess;
  cudaGetLastError();  // "no code" must not be the next call's error
  if (cached) {
    properties[device] = out;
    known[device].store(true, std::memory_order_release);
  }
  return cudaSuccess;
}
#endif

int64_t workspace_floats(const LinearPlan& plan, int64_t m, int64_t rows) {
  return plan.path == Path::mma && plan.chunks > 1 ? plan.chunks * m * rows : 0;
}

cudaError_t launch_linear(LinearArgs a, const LinearPlan& plan, cudaStream_t stream) {
  const FormatKernels* kernels = kernels_of(a.matrix.format);
  if (!kernels) return cudaErrorInvalidValue;
  a.chunks = 1;
  if (plan.path == Path::fma) {
    const dim3 grid(clamp_grid(plan.grid), unsigned(ceil_div(a.m, kFmaRows)));
    return launch(kernels->fma[a.matrix.predictor], grid, 32 * kFmaWarps, 0, stream, a);
  }
  a.x_in_quads = a.matrix.cols % 8 == 0 && uintptr_t(a.x) % 16 == 0;
  a.chunks = plan.chunks;
  a.tile_rows = plan.tile_rows;
  a.tile_columns = plan.tile_columns;
  a.x_bytes = plan.x_bytes;
  a.block = plan.block;
  const LinearKernel kernel = kernels->mma[a.dtype == Dtype::f16][plan.log2_n];
  if (!kernel) return cudaErrorInvalidValue;
  if (cudaError_t e =
          launch(kernel, dim3(clamp_grid(plan.grid), unsigned(plan.chunks)), 32 * plan.block.warps,
                 plan.block.bytes(), stream, a, plan.most_shared))
    return e;
  if (plan.chunks == 1) return cudaSuccess;
  const int64_t blocks = std::min<int64_t>(ceil_div(a.m * a.matrix.rows, 256), 1 << 16);
  return launch(&linear_reduce, dim3(clamp_grid(blocks)), 256, 0, stream, a);
}

cudaError_t launch_decode(DecodeArgs a, const DecodePlan& plan, cudaStream_t stream) {
  const FormatKernels* kernels = kernels_of(a.matrix.format);
  if (!kernels) return cudaErrorInvalidValue;
  a.block = plan.block;
  return launch(kernels->matrix[a.matrix.predictor], dim3(clamp_grid(plan.grid)),
                32 * plan.block.warps, plan.block.bytes(), stream, a, plan.most_shared);
}

cudaError_t launch_decode_rows(DecodeArgs a, int processors, cudaStream_t stream) {
  const FormatKernels* kernels = kernels_of(a.matrix.format);
  if (!kernels) return cudaErrorInvalidValue;
  const int64_t warps = ceil_div(a.ids_count, 8) * a.matrix.col_tiles;
  const int64_t blocks = std::min<int64_t>(ceil_div(warps, 4), 16 * processors);
  return launch(kernels->rows[a.matrix.predictor], dim3(clamp_grid(blocks)), 128, 0, stream, a);
}

}  // namespace codecllm::cuda
