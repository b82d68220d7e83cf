// Compiled with the flags of its instruction set (setup.py); nothing here may run before
// supported() said yes.
#ifndef CLLM_NO_X86
#include "decode_kernel.h"
#include "linear_kernel.h"
#include "to_fixed_kernel.h"

namespace codecllm {

static bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512bf16");
}

extern const Kernels kAvx512Bf16 = {"avx512bf16", supported, true,     decode,
                                    decode_as,    linear,    to_fixed, to_fixed_scratch_bytes,
                                    check_fixed};

}  // namespace codecllm
#endif
