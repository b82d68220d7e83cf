// CUDA implementations of the ops whose schemas stand in codecllm_ops/ops/schema.py: checks and
// launches on torch's current stream. No arithmetic, no host synchronisation unless asked to check.
#define USE_CUDA 1  // shows aoti_torch_get_current_cuda_stream
#include <torch/csrc/stable/accelerator.h>

#include <array>
#include <atomic>
#include <optional>
#include <tuple>
#include <vector>

#include "../cuda/launch.h"
#include "linear_args.h"

namespace codecllm {
namespace {

// GPUs below are left to pure torch: no warp shuffles of this kind, no shared memory to speak of.
constexpr int kMinArch = 75;

bool runs_on(const cuda::Device& device) { return device.arch >= kMinArch && device.has_code; }

void check_cuda(cudaError_t error, const char* op) {
  CLLM_CHECK(
      error != cudaErrorStreamCaptureUnsupported, "codecllm::", op,
      ": a CUDA graph is being captured, and this GPU has not loaded the kernel yet: run the "
      "same call once before the capture");
  CLLM_CHECK(error == cudaSuccess, "codecllm::", op, ": CUDA: ", cudaGetErrorString(error));
}

cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return cudaStream_t(stream);
}

cuda::Device properties_of(const Tensor& t, const char* op) {
  cuda::Device device = {};
  check_cuda(cuda::device_properties(t.get_device_index(), device), op);
  return device;
}

// Kernels read 16 bytes at once. Who loads streams aligns them; a view that begins elsewhere is
// copied in every call.
Tensor aligned(const Tensor& t) {
  return uintptr_t(t.const_data_ptr()) % 16 ? torch::stable::clone(t) : t;
}

// A coded matrix whose tensors live as long as the view.
struct DeviceMatrix {
  Tensor stream, raw;
  Operand coded;
  CodedView view;

  DeviceMatrix(const Operand& given, const char* op)
      : stream(aligned(given.stream)),
        raw(aligned(given.raw)),
        coded(stream, raw, given.index, given.table, given.rows, given.cols, given.layout_word),
        view(coded_view(coded, op)) {}
};

bool has_code(int64_t index) {
  const torch::stable::accelerator::DeviceGuard guard(int32_t{int(index)});
  cuda::Device device = {};
  check_cuda(cuda::device_properties(int(index), device), "_has_code");
  return device.has_code;
}

// Element i of an int64 tensor. Waits for the GPU.
int64_t element(const Tensor& t, int64_t i) {
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  Tensor all = t;
  const Tensor here = torch::stable::to(torch::stable::narrow(all, 0, i, 1), cpu);
  return *here.const_data_ptr<int64_t>();
}

// ---- checking -----------------------------------------------------------------------------------

// Kernels turn what a corrupt tile decodes to into NaN. Whoever wants an error instead pays for a
// synchronisation.
std::atomic<bool> checking{false};

bool set_check(bool on) { return checking.exchange(on); }

// `tile`: the smallest number of a corrupt tile, all ones where there is none.
void check_tile(uint64_t tile, Coding coding, const char* op) {
  if (coding == Coding::fixed)
    CLLM_CHECK(tile == ~uint64_t(0), "codecllm::", op, ": corrupt index or list: tile ",
               int64_t(tile), " lists weights that it does not have");
  CLLM_CHECK(tile == ~uint64_t(0), "codecllm::", op, ": corrupt coded plane or index: tile ",
             int64_t(tile), " does not end in the encoder's first state");
}

class StatusWord {
 public:
  StatusWord(const Tensor& like, Coding coding, const char* op) : coding_(coding) {
    if (!checking.load()) return;
    CLLM_CHECK(!cuda::is_capturing(current_stream(like)), "codecllm::", op,
               ": set_check(True) waits for the GPU, which the capture of a CUDA graph forbids");
    word_ = torch::stable::new_empty(like, {1}, ScalarType::Long);
    torch::stable::fill_(*word_, -1);
  }
  uint64_t* pointer() const {
    return word_ ? (uint64_t*)word_->mutable_data_ptr<int64_t>() : nullptr;
  }
  void check(const char* op) const {
    if (!word_) return;
    const uint64_t tile = uint64_t(element(*word_, 0));
    CLLM_CHECK(tile != cuda::kBadId, "codecllm::", op, ": an index is out of range");
    check_tile(tile, coding_, op);
  }

 private:
  Coding coding_;
  std::optional<Tensor> word_;
};

// ---- decode -------------------------------------------------------------------------------------

void decode_into(const Tensor& stream, const Tensor& raw, const Tensor& index, const Tensor& table,
                 int64_t rows, int64_t cols, int64_t layout_word, const Tensor& out) {
  const char* op = "decode";
  const torch::stable::accelerator::DeviceGuard guard(stream.get_device_index());
  const DeviceMatrix m(Operand(stream, raw, index, table, rows, cols, layout_word), op);
  check_out(out, m.coded, op);
  if (!out.numel()) return;
  if (m.coded.layout.stored()) {
    Tensor to = out;
    torch::stable::copy_(to, torch::stable::view(m.stream, {rows, out.size(1)}));
    return;
  }
  const StatusWord status(stream, m.view.coding, op);
  cuda::DecodeArgs a = {};
  a.matrix = m.view;
  a.out = out.mutable_data_ptr<uint8_t>();
  a.status = status.pointer();
  const cuda::DecodePlan plan = cuda::plan_decode(m.view, properties_of(stream, op));
  check_cuda(cuda::launch_decode(a, plan, current_stream(stream)), op);
  status.check(op);
}

Tensor decode_rows_words(const Tensor& ids, const Tensor& stream, const Tensor& raw,
                         const Tensor& index, const Tensor& table, int64_t rows, int64_t cols,
                         int64_t layout_word) {
  const char* op = "decode_rows";
  const torch::stable::accelerator::DeviceGuard guard(stream.get_device_index());
  const DeviceMatrix m(Operand(stream, raw, index, table, rows, cols, layout_word), op);
  const Layout& layout = m.coded.layout;
  check_tensor(ids, ScalarType::Long, 1, op, "ids", stream);
  const int64_t row_bytes = cols * word_bytes(layout.format, op);
  CLLM_CHECK(!layout.stored(), "codecllm::decode_rows: stored rows are for backends/stored.py");
  Tensor out = torch::stable::new_empty(stream, {ids.numel(), row_bytes}, ScalarType::Byte);
  if (!out.numel()) return out;
  CLLM_CHECK(rows > 0, "codecllm::decode_rows: an index is out of range for 0 rows");
  const StatusWord status(stream, layout.coding, op);
  cuda::DecodeArgs a = {};
  a.matrix = m.view;
  a.out = out.mutable_data_ptr<uint8_t>();
  a.ids = ids.const_data_ptr<int64_t>();
  a.ids_count = ids.numel();
  a.status = status.pointer();
  const int processors = properties_of(stream, op).processors;
  check_cuda(cuda::launch_decode_rows(a, processors, current_stream(stream)), op);
  status.check(op);
  return out;
}

// ---- to the coding fixed ------------------------------------------------------------------------

// int64 sums of int32 counts, each with its own included.
Tensor summed_up(const Tensor& counts) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(counts), from(int64_t(0)),
                                    from(std::optional<ScalarType>(ScalarType::Long))};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::cumsum", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Waits for the GPU: only the counts say how long the list is. So corruption is an error at once.
std::tuple<Tensor, Tensor, Tensor> to_fixed(const Tensor& stream, const Tensor& raw,
                                            const Tensor& index, const Tensor& table, int64_t rows,
                                            int64_t cols, int64_t layout_word, const Tensor& bases,
                                            int64_t tile_cols) {
  const char* op = "_to_fixed";
  const torch::stable::accelerator::DeviceGuard guard(stream.get_device_index());
  const cudaStream_t queue = current_stream(stream);
  CLLM_CHECK(!cuda::is_capturing(queue), "codecllm::", op,
             ": it waits for the GPU, which the capture of a CUDA graph forbids");
  const DeviceMatrix m(Operand(stream, raw, index, table, rows, cols, layout_word), op);
  CLLM_CHECK(m.view.coding != Coding::fixed, "codecllm::", op, ": the source is of coding fixed");
  check_target(tile_cols, bases, m.view, op);

  cuda::ToFixedArgs a = cuda::to_fixed_args(m.view, int(tile_cols));
  const int64_t tiles = a.tiles();
  Tensor plane = torch::stable::new_empty(stream, {a.target.tile_rows * a.target.plane_row_bytes},
                                          ScalarType::Byte);
  Tensor ends = torch::stable::new_empty(stream, {tiles}, ScalarType::Int);
  if (!tiles) return {plane, torch::stable::new_empty(stream, {0}, ScalarType::Byte), ends};

  const Tensor bases_there = torch::stable::to(bases, stream.device());
  Tensor counts = torch::stable::new_zeros(stream, {a.count()}, ScalarType::Int);
  Tensor corrupt = torch::stable::new_empty(stream, {1}, ScalarType::Long);
  torch::stable::fill_(corrupt, -1);
  a.bases = bases_there.const_data_ptr<int32_t>();
  a.plane = plane.mutable_data_ptr<uint8_t>();
  a.counts = counts.mutable_data_ptr<int32_t>();
  a.status = (uint64_t*)corrupt.mutable_data_ptr<int64_t>();
  const cuda::ToFixedPlan plan = cuda::plan_to_fixed(a, properties_of(stream, op));
  check_cuda(cuda::launch_to_fixed(a, plan, false, queue), op);
  const Tensor sums = summed_up(counts);

  a.listed = element(sums, a.count() - 1);
  check_tile(uint64_t(element(corrupt, 0)), m.view.coding, op);
  CLLM_CHECK(a.listed <= INT32_MAX, "codecllm::", op, ": ", a.listed,
             " weights outside the windows, too many for a list");
  Tensor list = torch::stable::new_empty(stream, {kListedBytes * a.listed}, ScalarType::Byte);
  a.sums = sums.const_data_ptr<int64_t>();
  a.list = (uint32_t*)list.mutable_data_ptr<uint8_t>();
  a.ends = ends.mutable_data_ptr<int32_t>();
  check_cuda(cuda::launch_to_fixed(a, plan, true, queue), op);
  return {plane, list, ends};
}

// ---- decode_linear ------------------------------------------------------------------------------

Tensor decode_linear(const Tensor& x, const Tensor& stream, const Tensor& raw, const Tensor& index,
                     const Tensor& table, OptTensor scale, int64_t rows, int64_t cols,
                     int64_t layout_word, OptTensor bias) {
  const char* op = "decode_linear";
  CLLM_CHECK(stream.is_cuda(), "codecllm::decode_linear: x is on a GPU, the weight is not");
  const torch::stable::accelerator::DeviceGuard guard(stream.get_device_index());
  const DeviceMatrix matrix(Operand(stream, raw, index, table, rows, cols, layout_word), op);
  const Layout& layout = matrix.coded.layout;
  const Dtype dtype = activation_dtype(x);
  check_product(x, matrix.coded, scale, bias);
  int64_t x_rows = 1;
  const std::vector<int64_t> shape = output_shape(x, rows, x_rows);
  if (x_rows == 0 || rows == 0) return torch::stable::new_empty(x, shape);
  const cuda::Device device = properties_of(stream, op);
  if (layout.stored() || cols == 0 || x_rows > cuda::kMaxFusedRows || !runs_on(device))
    return decode_then_linear(x, matrix.coded, scale, bias);

  const Tensor dense_x = torch::stable::contiguous(x);
  Tensor out = torch::stable::new_empty(x, shape);
  const cuda::LinearPlan plan = cuda::cached_plan_linear(matrix.view, x_rows, dtype, device);
  const int64_t floats = cuda::workspace_floats(plan, x_rows, rows);
  std::optional<Tensor> partial;
  if (floats) partial = torch::stable::new_empty(x, {floats}, ScalarType::Float);
  const StatusWord status(stream, layout.coding, op);
  cuda::LinearArgs a = {};
  a.matrix = matrix.view;
  a.x = dense_x.const_data_ptr();
  a.x_rows = int(x_rows);
  a.dtype = dtype;
  a.scale = Scale::of(layout.scale_kind, scale ? scale->const_data_ptr<float>() : nullptr);
  a.bias = bias ? bias->const_data_ptr() : nullptr;
  a.out = out.mutable_data_ptr();
  a.partial = partial ? partial->mutable_data_ptr<float>() : nullptr;
  a.status = status.pointer();
  check_cuda(cuda::launch_linear(a, plan, current_stream(stream)), op);
  status.check(op);
  return out;
}

}  // namespace
}  // namespace codecllm

STABLE_TORCH_LIBRARY_IMPL(codecllm, CUDA, m) {
  m.impl("_decode_into", TORCH_BOX(&codecllm::decode_into));
  m.impl("_decode_rows_words", TORCH_BOX(&codecllm::decode_rows_words));
  m.impl("decode_linear", TORCH_BOX(&codecllm::decode_linear));
  m.impl("_to_fixed", TORCH_BOX(&codecllm::to_fixed));
}

STABLE_TORCH_LIBRARY_IMPL(codecllm, CompositeExplicitAutograd, m) {
  m.impl("_has_code", TORCH_BOX(&codecllm::has_code));
  m.impl("_set_check", TORCH_BOX(&codecllm::set_check));
}
