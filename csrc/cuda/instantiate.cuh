// All kernels of one weight format.
#pragma once
#include "decode.cuh"
#include "kernels.h"
#include "linear_fma.cuh"
#include "linear_mma.cuh"

namespace codecllm::cuda {

template <class F, class B16>
constexpr LinearKernel mma_kernel(int log2_n) {
  if constexpr (kExact<F, B16>) {
    constexpr LinearKernel all[] = {linear_mma<F, B16, 1>,  linear_mma<F, B16, 2>,
                                    linear_mma<F, B16, 4>,  linear_mma<F, B16, 8>,
                                    linear_mma<F, B16, 16>, linear_mma<F, B16, 32>,
                                    linear_mma<F, B16, 64>};
    return all[log2_n];
  }
  return nullptr;
}

template <class F>
constexpr FormatKernels format_kernels() {
  FormatKernels k = {};
  for (int n = 0; n < kMmaSizes; ++n)
    k.mma[0][n] = mma_kernel<F, Bf16>(n), k.mma[1][n] = mma_kernel<F, Fp16>(n);
  k.fma[0] = linear_fma<F, false>, k.fma[1] = linear_fma<F, true>;
  k.matrix[0] = decode_matrix<F, false>, k.matrix[1] = decode_matrix<F, true>;
  k.rows[0] = decode_rows<F, false>, k.rows[1] = decode_rows<F, true>;
  return k;
}

}  // namespace codecllm::cuda
