// The only place that papers over differences between the stable headers of torch 2.11 and later.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <stdexcept>
#include <vector>

#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK(call) TORCH_ERROR_CODE_CHECK(call)
#endif

// As STD_TORCH_CHECK, without the C++ function, file and line before the message: users see it.
#define CLLM_CHECK(cond, ...)                                                  \
  do {                                                                         \
    if (!(cond))                                                               \
      throw std::runtime_error(                                                \
          torch::headeronly::detail::stdTorchCheckMsgImpl("", ##__VA_ARGS__)); \
  } while (false)

namespace codecllm {

// torch::stable::new_empty and contiguous box their arguments and go through the dispatcher, which
// a small product notices. These do not.

// Uninitialised, contiguous, on the device of `like`.
inline torch::stable::Tensor make_empty(const torch::stable::Tensor& like,
                                        const std::vector<int64_t>& shape,
                                        torch::headeronly::ScalarType dtype) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t d = shape.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= shape[d] > 0 ? shape[d] : 1;
  }
  int32_t device_type, device_index;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      int64_t(shape.size()), shape.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), device_type,
      device_index, &made));
  return torch::stable::Tensor(made);
}

// The tensor itself where it is contiguous.
inline torch::stable::Tensor as_contiguous(const torch::stable::Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

}  // namespace codecllm
