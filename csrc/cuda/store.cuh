// From float32 sums to the output: scale, bias, rounding.
#pragma once
#include "args.h"
#include "device.cuh"

namespace codecllm::cuda {

// sum * scale + bias, rounded once.
CLLM_DEVICE void finish(const LinearArgs& a, int64_t x_row, int64_t row, float sum) {
  float value = a.scale.apply(sum, row);
  if (a.bias) value += load_float(a.bias, a.dtype, row);
  store_float(a.out, a.dtype, x_row * a.matrix.rows + row, value);
}

}  // namespace codecllm::cuda
