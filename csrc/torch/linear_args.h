// What decode_linear checks and calls on every device.
#pragma once
#include <array>
#include <optional>
#include <vector>

#include "../core/convert.h"
#include "../core/scale.h"
#include "coded_args.h"

namespace codecllm {

using OptTensor = std::optional<Tensor>;

inline Dtype activation_dtype(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return Dtype::f32;
    case ScalarType::BFloat16:
      return Dtype::bf16;
    case ScalarType::Half:
      return Dtype::f16;
    default:
      CLLM_CHECK(false, "codecllm::decode_linear: x is ", toString(x.scalar_type()),
                 ", not Float, BFloat16 or Half");
      return Dtype::f32;
  }
}

// Checks x and what belongs to its product against the weight's shape and device (`stream`'s).
// `bias` becomes contiguous.
inline void check_product(const Tensor& x, const Operand& coded, const OptTensor& scale,
                          OptTensor& bias) {
  const char* op = "decode_linear";
  const Tensor& stream = coded.stream;
  const int64_t rows = coded.rows, cols = coded.cols;
  const Layout& layout = coded.layout;
  const bool same = stream.is_cpu()
                        ? x.is_cpu()
                        : x.is_cuda() && x.get_device_index() == stream.get_device_index();
  CLLM_CHECK(same, "codecllm::decode_linear: x is not on the ", stream.is_cpu() ? "CPU" : "GPU",
             " like the weight");
  CLLM_CHECK(x.dim() >= 1 && x.size(x.dim() - 1) == cols,
             "codecllm::decode_linear: the last dimension of x must be ", cols, ", it is ",
             x.dim() ? x.size(x.dim() - 1) : 0);
  if (bias) {
    bias = as_contiguous(*bias);
    check_tensor(*bias, x.scalar_type(), 1, op, "bias", stream);
    CLLM_CHECK(bias->size(0) == rows, "codecllm::decode_linear: bias of ", bias->size(0), " for ",
               rows, " rows");
  }
  CLLM_CHECK(bool(scale) == (layout.scale_kind != kNoScale),
             "codecllm::decode_linear: scale missing or not wanted");
  if (scale) {
    check_tensor(*scale, ScalarType::Float, 1, op, "scale", stream);
    CLLM_CHECK(scale->size(0) == Scale::count(layout.scale_kind, rows),
               "codecllm::decode_linear: ", scale->size(0), " scales for ", rows, " rows");
  }
}

// x's shape with `rows` in place of the last dimension. `m`: the rows of x.
inline std::vector<int64_t> output_shape(const Tensor& x, int64_t rows, int64_t& m) {
  std::vector<int64_t> shape;
  m = 1;
  for (int64_t d = 0; d + 1 < x.dim(); ++d) shape.push_back(x.size(d)), m *= x.size(d);
  shape.push_back(rows);
  return shape;
}

// dtype of words, by kind.
constexpr ScalarType dtype_of(Float<8, 7, true>) { return ScalarType::BFloat16; }
constexpr ScalarType dtype_of(Float<5, 10, true>) { return ScalarType::Half; }
constexpr ScalarType dtype_of(Float<8, 23, true>) { return ScalarType::Float; }
constexpr ScalarType dtype_of(Float<4, 3, false>) { return ScalarType::Float8_e4m3fn; }
constexpr ScalarType dtype_of(Float<5, 2, true>) { return ScalarType::Float8_e5m2; }
constexpr ScalarType dtype_of(Integer<8>) { return ScalarType::Char; }

// `format` exists.
inline ScalarType word_dtype(int format) {
  ScalarType found = ScalarType::Byte;
  with_format(format, [&](auto f) { found = dtype_of(typename decltype(f)::Kind{}); });
  return found;
}

// decode and F.linear in Python (codecllm_ops/ops/kernels.py): where nothing is to be decoded, or
// no fused kernel runs.
inline Tensor decode_then_linear(const Tensor& x, const Operand& coded, const OptTensor& scale,
                                 const OptTensor& bias) {
  using torch::stable::detail::from;
  std::array<StableIValue, 10> stack{
      from(x),     from(coded.stream), from(coded.raw),  from(coded.index),       from(coded.table),
      from(scale), from(coded.rows),   from(coded.cols), from(coded.layout_word), from(bias)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("codecllm::_decode_then_linear", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace codecllm
