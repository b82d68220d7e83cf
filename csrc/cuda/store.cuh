// From float32 sums to the output: scale, bias, rounding.
#pragma once
#include "../core/convert.h"
#include "args.h"
#include "device.cuh"

namespace codecllm::cuda {

CLLM_DEVICE float load_as_float(const void* p, int64_t i, Dtype dtype) {
  if (dtype == Dtype::f32) return ((const float*)p)[i];
  const uint32_t half = ((const uint16_t*)p)[i];
  return dtype == Dtype::bf16 ? word_value<Bf16>(half) : word_value<Fp16>(half);
}

CLLM_DEVICE void store_rounded(void* p, int64_t i, Dtype dtype, float value) {
  if (dtype == Dtype::f32)
    ((float*)p)[i] = value;
  else
    ((uint16_t*)p)[i] =
        uint16_t(dtype == Dtype::bf16 ? round_bits<Bf16>(value) : round_bits<Fp16>(value));
}

// sum * scale + bias, rounded once.
CLLM_DEVICE void finish(const LinearArgs& a, int64_t x_row, int64_t row, float sum) {
  if (a.scale) sum *= a.scale[a.scale_per_row ? row : 0];
  if (a.bias) sum += load_as_float(a.bias, row, a.dtype);
  store_rounded(a.out, x_row * a.matrix.rows + row, a.dtype, sum);
}

}  // namespace codecllm::cuda
