// Compiled with the flags of its instruction set (setup.py); nothing here may run before
// supported() said yes.
#ifndef CLLM_NO_X86
#include "kernels_impl.h"

namespace codecllm {

static bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vbmi2");
}

extern const Kernels kAvx512 = {"avx512",  supported, false, decode_rows_of_tiles,
                                decode_as, linear};

}  // namespace codecllm
#endif
