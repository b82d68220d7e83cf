// The only place that papers over differences between the stable headers of torch 2.11 and later.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <stdexcept>

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
