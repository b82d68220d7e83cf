// What csrc/cuda wants of the CUDA runtime, for the emulator. It counts what is called once per
// kernel and device, and can pretend that a stream is captured by a driver that does not load
// kernels then.
#pragma once
#include <map>

#include "../cuda_emu.h"

using cudaError_t = int;
using cudaStream_t = void*;
constexpr int cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidDeviceFunction = 98,
              cudaErrorNoKernelImageForDevice = 209, cudaErrorStreamCaptureUnsupported = 900;

enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeRelaxed };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor
};
struct cudaFuncAttributes {};

struct dim3 {
  unsigned x, y;
  explicit dim3(unsigned x, unsigned y = 1) : x(x), y(y) {}
};

namespace emu {

struct Runtime {
  int device = 0;
  bool capturing = false, loads_in_capture = true;
  cudaError_t load_error = cudaSuccess;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  long loads = 0, attributes = 0, launches = 0;
  std::map<std::pair<int, const void*>, int> granted;  // bytes of shared memory of a block
};
inline Runtime runtime;

// Calls that the runtime holds for unsafe while a graph is captured.
inline cudaError_t unsafe_call() {
  if (runtime.load_error) return runtime.load_error;
  const bool relaxed = runtime.mode == cudaStreamCaptureModeRelaxed;
  return runtime.capturing && !(relaxed && runtime.loads_in_capture)
             ? cudaErrorStreamCaptureUnsupported
             : cudaSuccess;
}

}  // namespace emu

inline cudaError_t cudaGetDevice(int* device) {
  *device = emu::runtime.device;
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const int values[] = {9, 0, 3, 232448, 233472};
  *value = values[attribute];
  return cudaSuccess;
}
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void*) {
  ++emu::runtime.loads;
  return emu::unsafe_call();
}
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  ++emu::runtime.attributes;
  emu::runtime.granted[{emu::runtime.device, kernel}] = bytes;
  return emu::unsafe_call();
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = emu::runtime.capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, emu::runtime.mode);
  return cudaSuccess;
}

namespace codecllm::cuda {
template <class Args>
cudaError_t emulated_launch(void (*kernel)(Args), dim3 grid, int threads, int shared, Args args) {
  ++emu::runtime.launches;
  if (shared > 48 << 10 && shared > emu::runtime.granted[{emu::runtime.device, (void*)kernel}])
    emu::fail("launch: more shared memory than the kernel was granted");
  emu::launch(kernel, {grid.x, grid.y, 1}, threads, shared, args);
  return cudaSuccess;
}
}  // namespace codecllm::cuda
