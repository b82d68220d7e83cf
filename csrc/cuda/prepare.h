// What a kernel and a device need before the first launch: once, and legal while a CUDA graph is
// captured.
#pragma once
#include <cuda_runtime_api.h>

#include "launch.h"

namespace codecllm::cuda {

// Properties of a device, read once. `probe`: any kernel of this library.
cudaError_t read_device(int device, const void* probe, Device& out);

// Loads a kernel on the current device and lets its blocks have `most_shared` bytes of shared
// memory; at once if this was done before. cudaErrorStreamCaptureUnsupported: `stream` is being
// captured, and the driver does not load kernels then.
cudaError_t prepare_kernel(const void* kernel, int most_shared, cudaStream_t stream);

}  // namespace codecllm::cuda
