// Launches the kernels: no torch, returns CUDA error codes, never synchronises or allocates.
#pragma once
#include <cuda_runtime_api.h>

#include "plan.h"

namespace codecllm::cuda {

// Properties of a device, read once.
cudaError_t device_properties(int device, Device& out);

// Floats of workspace that `launch_linear` wants in args.partial.
int64_t workspace_floats(const LinearPlan& plan, int64_t m, int64_t rows);

// args: matrix, x, m, dtype, scale, bias, out, partial, status; the rest comes from the plan.
cudaError_t launch_linear(LinearArgs args, const LinearPlan& plan, cudaStream_t stream);
cudaError_t launch_decode(DecodeArgs args, const DecodePlan& plan, cudaStream_t stream);
cudaError_t launch_decode_rows(DecodeArgs args, int processors, cudaStream_t stream);

}  // namespace codecllm::cuda
