// Launches the kernels: no torch, returns CUDA error codes, never synchronises or allocates.
#pragma once
#include <cuda_runtime_api.h>

#include "fixed/to_fixed.h"
#include "plan.h"

namespace codecllm::cuda {

// Properties of a device, read once. It must be the current one.
cudaError_t device_properties(int device, Device& out);

// Whether a CUDA graph is captured from the stream.
bool is_capturing(cudaStream_t stream);

// Floats of workspace that `launch_linear` wants in args.partial.
int64_t workspace_floats(const LinearPlan& plan, int64_t x_rows, int64_t rows);

// args: matrix, x, x_rows, dtype, scale, bias, out, partial, status; the rest comes from the plan.
// cudaErrorInvalidValue if the plan has no kernel; cudaErrorStreamCaptureUnsupported if it would
// have to be loaded while the stream is captured and cannot be.
cudaError_t launch_linear(LinearArgs args, const LinearPlan& plan, cudaStream_t stream);
cudaError_t launch_decode(DecodeArgs args, const DecodePlan& plan, cudaStream_t stream);
cudaError_t launch_decode_rows(DecodeArgs args, int processors, cudaStream_t stream);

// The first pass, or the second (`list`). args: what to_fixed_args gives, and what a pass wants.
cudaError_t launch_to_fixed(ToFixedArgs args, const ToFixedPlan& plan, bool list,
                            cudaStream_t stream);

}  // namespace codecllm::cuda
