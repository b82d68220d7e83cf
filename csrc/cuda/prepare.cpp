#include "prepare.h"

#include <atomic>

#include "remembered.h"

namespace codecllm::cuda {
namespace {

constexpr int kMaxDevices = 64;

// While a graph is captured in the mode `global`, which is torch's, no thread may make calls that
// the runtime holds for unsafe; the first use of a kernel loads it. This thread says that its calls
// have nothing to do with what is captured.
class Relaxed {
 public:
  Relaxed() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~Relaxed() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  Relaxed(const Relaxed&) = delete;
  Relaxed& operator=(const Relaxed&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;  // and then the one before
};

cudaError_t load(const void* kernel, int most_shared) {
  const Relaxed relaxed;
  cudaFuncAttributes ignored;
  if (const cudaError_t e = cudaFuncGetAttributes(&ignored, kernel)) return e;
  if (most_shared == 0) return cudaSuccess;
  // For the most at once: a smaller block must not take it away from another thread's launch.
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most_shared);
}

// "No code for this device" must not be the next call's error.
cudaError_t forget(cudaError_t error) {
  if (error) cudaGetLastError();
  return error;
}

}  // namespace

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  return cudaStreamIsCapturing(stream, &status) == cudaSuccess &&
         status != cudaStreamCaptureStatusNone;
}

cudaError_t read_device(int device, const void* probe, Device& out) {
  // Filled twice at worst, with the same values.
  static std::atomic<bool> known[kMaxDevices];
  static Device properties[kMaxDevices];
  const bool cached = device >= 0 && device < kMaxDevices;
  if (cached && known[device].load(std::memory_order_acquire)) {
    out = properties[device];
    return cudaSuccess;
  }
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
  const cudaError_t loaded = forget(load(probe, 0));
  out.has_code = loaded == cudaSuccess;
  // Any other error is not the device's: the next call asks again.
  if (!out.has_code && loaded != cudaErrorNoKernelImageForDevice &&
      loaded != cudaErrorInvalidDeviceFunction)
    return loaded;
  if (cached) {
    properties[device] = out;
    known[device].store(true, std::memory_order_release);
  }
  return cudaSuccess;
}

cudaError_t prepare_kernel(const void* kernel, int most_shared, cudaStream_t stream) {
  using Prepared = Remembered<2, bool>;
  static Prepared& prepared = *new Prepared;  // threads may still call while the process ends
  int device = 0;
  if (const cudaError_t e = cudaGetDevice(&device)) return e;
  const Prepared::Key key = {int64_t(intptr_t(kernel)), device};
  bool known = false;
  if (prepared.find(key, known)) return cudaSuccess;
  if (const cudaError_t e = forget(load(kernel, most_shared)))
    return is_capturing(stream) ? cudaErrorStreamCaptureUnsupported : e;
  prepared.remember(key, true);
  return cudaSuccess;
}

}  // namespace codecllm::cuda
