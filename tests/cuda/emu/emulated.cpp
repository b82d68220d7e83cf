// The CUDA kernels and their launch code as a shared library for ctypes (tests/cuda/emulated.py).
#include <chrono>

// What only this build has, before the lists: a format without raw bits, a coding of fixed length.
#define CLLM_MORE_FORMATS(FORMAT) FORMAT(WholeInt8, 201, 0, 8, Integer<8>)
#include "twelve.h"

#include "cuda_emu.h"

#include "../../../csrc/cuda/instantiate.cuh"
#include "twelve.cuh"

#include "../../../csrc/cuda/launch.cu"
#include "../../../csrc/cuda/plan.cpp"
#include "../../../csrc/cuda/prepare.cpp"
#include "../../../csrc/cuda/registry.cpp"

using namespace codecllm;
using namespace codecllm::cuda;

// What tests may choose; numbers as in struct Options of emulated.py.
struct Options {
  int32_t arch, processors, shared_per_block, shared_per_processor;
  int32_t buffer_bytes;  // of a warp, 0: as planned
};

struct Planned {
  int32_t path, log2_rows, band_rows, chunk_tiles, chunks, copies, warps, shared_bytes;
  int32_t x_bytes, kernel_bytes;
  int64_t grid;
};

static Planned planned(const LinearPlan& p) {
  return {int(p.path),   p.log2_rows,
          p.band_rows,   p.chunk_tiles,
          p.chunks,      p.path == Path::mma ? copies_of(p.block) : 0,
          p.block.warps, p.path == Path::mma ? p.block.bytes() : 0,
          p.x_bytes,     p.block.kernel_bytes,
          p.grid};
}

// Its shared memory is the device's number: what is prepared for one is not for another.
static Device device_of(const Options& o) {
  emu::runtime.device = o.shared_per_block;
  return {o.arch, o.processors, o.shared_per_block, o.shared_per_processor, true};
}

static void may_read(const void* p, int64_t bytes) {
  emu::readable.push_back({(const uint8_t*)p, (const uint8_t*)p + bytes});
}

static void may_read_only(const CodedView& v) {
  emu::readable.clear();
  may_read(v.stream, v.stream_bytes);
  may_read(v.raw, v.tile_rows * v.plane_row_bytes);
  may_read(v.index, v.tile_rows * v.col_tiles * (2 + v.len_bits) * 4);
  may_read(v.table, v.segments * (kTableHeader + (int64_t(1) << v.scale_bits)) * 4);
}

extern "C" {

Planned emulated_plan(const CodedView* view, int64_t x_rows, int dtype, const Options* options) {
  return planned(plan_linear(*view, x_rows, Dtype(dtype), device_of(*options)));
}

Planned emulated_cached_plan(const CodedView* view, int64_t x_rows, int dtype,
                             const Options* options) {
  return planned(cached_plan_linear(*view, x_rows, Dtype(dtype), device_of(*options)));
}

// Nanoseconds of a plan, made or remembered.
double emulated_plan_time(const CodedView* view, int64_t x_rows, int dtype, const Options* options,
                          int cached, int repeats) {
  const auto begin = std::chrono::steady_clock::now();
  int64_t used = 0;
  for (int i = 0; i < repeats; ++i)
    used += (cached ? cached_plan_linear(*view, x_rows, Dtype(dtype), device_of(*options))
                    : plan_linear(*view, x_rows, Dtype(dtype), device_of(*options)))
                .grid;
  const std::chrono::duration<double, std::nano> taken = std::chrono::steady_clock::now() - begin;
  return used ? taken.count() / repeats : -1;
}

// Returns the status: all ones, or the smallest number of a corrupt tile.
uint64_t emulated_linear(const CodedView* view, const void* x, int64_t x_rows, int dtype,
                         const float* scale, int scale_per_row, const void* bias, void* out,
                         const Options* options) {
  may_read_only(*view);
  may_read(x, x_rows * view->cols * (Dtype(dtype) == Dtype::f32 ? 4 : 2));
  LinearPlan plan = plan_linear(*view, x_rows, Dtype(dtype), device_of(*options));
  if (options->buffer_bytes && plan.path == Path::mma)
    plan.block.warp_bytes = options->buffer_bytes;
  uint64_t status = ~0ull;
  std::vector<float> partial(size_t(workspace_floats(plan, x_rows, view->rows)), NAN);
  LinearArgs a = {};
  a.matrix = *view;
  a.x = x;
  a.x_rows = int(x_rows);
  a.dtype = Dtype(dtype);
  a.scale = {scale, scale_per_row != 0};
  a.bias = bias;
  a.out = out;
  a.partial = partial.data();
  a.status = &status;
  if (launch_linear(a, plan, nullptr) != cudaSuccess) emu::fail("launch_linear");
  return status;
}

uint64_t emulated_decode(const CodedView* view, void* out, const Options* options) {
  may_read_only(*view);
  DecodePlan plan = plan_decode(*view, device_of(*options));
  if (options->buffer_bytes) plan.block.warp_bytes = options->buffer_bytes;
  uint64_t status = ~0ull;
  DecodeArgs a = {};
  a.matrix = *view;
  a.out = (uint8_t*)out;
  a.status = &status;
  if (launch_decode(a, plan, nullptr) != cudaSuccess) emu::fail("launch_decode");
  return status;
}

uint64_t emulated_decode_rows(const CodedView* view, const int64_t* ids, int64_t count, void* out) {
  may_read_only(*view);
  may_read(ids, 8 * count);
  uint64_t status = ~0ull;
  DecodeArgs a = {};
  a.matrix = *view;
  a.out = (uint8_t*)out;
  a.ids = ids;
  a.ids_count = count;
  a.status = &status;
  if (launch_decode_rows(a, 2, nullptr) != cudaSuccess) emu::fail("launch_decode_rows");
  return status;
}

// What the pretended driver is like, and what was asked of it since the last call.
void emulated_runtime(int capturing, int loads_in_capture, int load_error, int64_t* counts) {
  emu::Runtime& r = emu::runtime;
  counts[0] = r.loads;
  counts[1] = r.attributes;
  counts[2] = r.launches;
  counts[3] = r.mode == cudaStreamCaptureModeGlobal;
  r.loads = r.attributes = r.launches = 0;
  r.capturing = capturing;
  r.loads_in_capture = loads_in_capture;
  r.load_error = load_error;
}

// The error of a launch.
int emulated_decode_error(const CodedView* view, void* out, const Options* options) {
  may_read_only(*view);
  DecodeArgs a = {};
  a.matrix = *view;
  a.out = (uint8_t*)out;
  return launch_decode(a, plan_decode(*view, device_of(*options)), nullptr);
}

// The error of launching a plan that has no kernel.
int emulated_launch_nothing(const CodedView* view) {
  LinearArgs a = {};
  a.matrix = *view;
  a.x_rows = 1;
  return launch_linear(a, plan_linear(*view, kMaxFusedRows + 1, Dtype::bf16, {90, 3}), nullptr);
}

int emulated_device(int device, int* has_code) {
  Device d = {};
  const int error = device_properties(device, d);
  *has_code = d.has_code;
  return error;
}

uint64_t sizeof_view() { return sizeof(CodedView); }
}
