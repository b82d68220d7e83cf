// Compiled with the flags of its instruction set (setup.py); nothing here may run before
// supported() said yes.
#ifndef CLLM_NO_X86
#include "decode_kernel.h"
#include "linear_kernel.h"
#include "to_fixed_kernel.h"

namespace codecllm {

static bool supported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

extern const Kernels kAvx2 = {"avx2",     supported, false,    decode,
                              decode_as,  linear,    to_fixed, to_fixed_scratch_bytes,
                              check_fixed};

}  // namespace codecllm
#endif
