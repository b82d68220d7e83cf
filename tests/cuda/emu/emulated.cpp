// The CUDA kernels and their launch code as a shared library for ctypes (tests/cuda/emulated.py).
#include "cuda_emu.h"

#include "../../../csrc/cuda/kernels_bf16.cu"
#include "../../../csrc/cuda/kernels_fp16.cu"
#include "../../../csrc/cuda/kernels_fp32.cu"
#include "../../../csrc/cuda/kernels_fp8_e4m3.cu"
#include "../../../csrc/cuda/kernels_fp8_e5m2.cu"
#include "../../../csrc/cuda/kernels_int8.cu"
#include "../../../csrc/cuda/launch.cu"
#include "../../../csrc/cuda/plan.cpp"
#include "../../../csrc/cuda/registry.cpp"

using namespace codecllm;
using namespace codecllm::cuda;

// What tests may choose; numbers as in struct Options of emulated.py.
struct Options {
  int32_t arch, processors, shared_per_block, shared_per_processor;
  int32_t buffer_bytes;  // of a warp, 0: as planned
};

struct Planned {
  int32_t path, log2_n, tile_rows, tile_columns, chunks, copies, warps, shared_bytes;
  int32_t x_bytes, extra_bytes;
  int64_t grid;
};

static Device device_of(const Options& o) {
  return {o.arch, o.processors, o.shared_per_block, o.shared_per_processor, true};
}

static void may_read(const void* p, int64_t bytes) {
  emu::readable.push_back({(const uint8_t*)p, (const uint8_t*)p + bytes});
}

static void may_read_only(const CodedView& v) {
  emu::readable.clear();
  may_read(v.stream, v.stream_bytes);
  may_read(v.raw, v.tile_rows * v.raw_row_bytes);
  may_read(v.index, v.tile_rows * v.col_tiles * (2 + v.len_bits) * 4);
  may_read(v.table, v.segments * (kTableHeader + (int64_t(1) << v.scale_bits)) * 4);
}

extern "C" {

Planned emulated_plan(const CodedView* view, int64_t m, int dtype, const Options* options) {
  const LinearPlan p = plan_linear(*view, m, Dtype(dtype), device_of(*options));
  return {int(p.path),   p.log2_n,
          p.tile_rows,   p.tile_columns,
          p.chunks,      p.block.copies,
          p.block.warps, p.path == Path::mma ? p.block.bytes() : 0,
          p.x_bytes,     p.block.extra_bytes,
          p.grid};
}

// Returns the status: all ones, or the smallest number of a corrupt tile.
uint64_t emulated_linear(const CodedView* view, const void* x, int64_t m, int dtype,
                         const float* scale, int scale_per_row, const void* bias, void* out,
                         const Options* options) {
  may_read_only(*view);
  may_read(x, m * view->cols * (Dtype(dtype) == Dtype::f32 ? 4 : 2));
  LinearPlan plan = plan_linear(*view, m, Dtype(dtype), device_of(*options));
  if (options->buffer_bytes && plan.path == Path::mma)
    plan.block.buffer_bytes = std::max(options->buffer_bytes, 64 << std::max(plan.log2_n, 3));
  uint64_t status = ~0ull;
  std::vector<float> partial(size_t(workspace_floats(plan, m, view->rows)), NAN);
  LinearArgs a = {};
  a.matrix = *view;
  a.x = x;
  a.m = int(m);
  a.dtype = Dtype(dtype);
  a.scale = scale;
  a.scale_per_row = scale_per_row;
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
  if (options->buffer_bytes) plan.block.buffer_bytes = options->buffer_bytes;
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

uint64_t sizeof_view() { return sizeof(CodedView); }
}
